//! Kernel keyrings.

use std::io;

use crate::sys::check;

/// A session keyring of the sandbox's own, empty: the worker's is not inherited.
pub(super) fn renew() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: without a name the call takes no pointer.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match check(joined) {
        // A kernel without keyrings, or one whose own filter keeps them away from everybody.
        Err(why) if matches!(why.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        done => done.map(drop),
    }
}
