//! System-call filters.

use std::io;

use super::{Failed, Step};
use crate::sys::check;

/// Installs a filter, as [`palisade_cell::filter_bytes`] writes it; it holds for this process and for all that it starts.
pub(crate) fn install(bytes: &[u8]) -> Result<(), Failed> {
    let (instructions, rest) = bytes.as_chunks::<8>();
    let length = u16::try_from(instructions.len()).ok().filter(|length| *length > 0 && rest.is_empty());
    let length = length.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)).step("seccomp", "length")?;
    let program: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|&[a, b, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_ne_bytes([a, b]),
            jt,
            jf,
            k: u32::from_ne_bytes(k),
        })
        .collect();
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program and its instructions live through the call; the kernel copies and checks them.
    let installed =
        check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) });
    installed.step("seccomp", "install").map(drop)
}
