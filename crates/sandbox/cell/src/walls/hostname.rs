//! The host name.

use std::io;

use crate::sys::check;

/// The sandbox's own name.
pub(super) fn set(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}
