//! Resource limits of each process.

use std::fs;
use std::io;

use crate::sys::check;

/// Lowers limits; none is ever raised.
pub(crate) fn lower(limits: &[(u32, u64)]) -> io::Result<()> {
    for &(resource, wanted) in limits {
        let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure lives through the call.
        check(unsafe { libc::getrlimit64(resource as _, &raw mut now) }.into())?;
        // Never raised: an unprivileged process may not, and the host's own limit stands.
        let limit = wanted.min(now.rlim_max);
        let limit = libc::rlimit64 { rlim_cur: limit, rlim_max: limit };
        // SAFETY: as above.
        check(unsafe { libc::setrlimit64(resource as _, &raw const limit) }.into())?;
    }
    Ok(())
}

/// No part of memory would be written to a dump, if there could be one.
pub(crate) fn forget_dumps() {
    // A second lock: the limit of core dumps is the first. Kernels without dumps do not have the file.
    let _ = fs::write("/proc/self/coredump_filter", "0");
}
