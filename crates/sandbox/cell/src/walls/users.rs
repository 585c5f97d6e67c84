//! A user namespace, inside walls that have none of their own.

use std::fs;
use std::io;

use super::{Failed, Step, privileges};
use crate::sys;

/// Enters a user namespace whose one user is the caller, and keeps no privilege in it. What the kernel counts for each user
/// it then counts for this sandbox too, and its limits are this sandbox's own.
///
/// # Errors
/// The outer one when that cannot be had here, and nothing has changed; the inner one when it was left half done.
pub(crate) fn enter() -> io::Result<Result<(), Failed>> {
    // There is no way back out of it.
    sys::in_child(0, || all().map_err(|failed| failed.cause))?;
    Ok(all())
}

fn all() -> Result<(), Failed> {
    const STEP: &str = "user namespace";
    // SAFETY: no pointers.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: no pointers; this process has one thread.
    sys::check(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into()).step(STEP, "unshare")?;
    for (file, map) in [
        ("uid_map", format!("{user} {user} 1")),
        // Without it the kernel takes no map of groups from a user.
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("{group} {group} 1")),
    ] {
        fs::write(format!("/proc/self/{file}"), map).step(STEP, file)?;
    }
    privileges::bound()?;
    privileges::clear()
}
