//! The network namespace and the host name.

use std::io;
use std::os::fd::RawFd;

use crate::sys::check;

/// The sandbox's own name.
pub(super) fn hostname(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// The loopback device is the only one, and is up.
pub(super) fn loopback() -> io::Result<()> {
    // SAFETY: no pointers.
    let socket = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    let socket = RawFd::try_from(socket).unwrap_or(-1);
    // SAFETY: a request of zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request lives through the call and has the form that this operation wants.
    let done = check(unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw mut request) }.into());
    // SAFETY: the descriptor was made above and is not used again.
    unsafe { libc::close(socket) };
    done.map(drop)
}
