//! A minimal `/dev`.

use std::fs;

use super::{Failed, Step};
use crate::sys;

/// Links and places. The nodes themselves come from the host by bind mounts, as a user namespace cannot make any.
pub(super) fn make(root: &str) -> Result<(), Failed> {
    let dev = format!("{root}/dev");
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        std::os::unix::fs::symlink(target, format!("{dev}/{link}")).step("device links", link)?;
    }
    for place in ["shm", "pts"] {
        fs::create_dir(format!("{dev}/{place}")).step("devices", place)?;
    }
    Ok(())
}

/// Pseudo-terminals of the sandbox's own.
pub(super) fn terminals(root: &str, notes: &mut Vec<String>) -> Result<(), Failed> {
    let mounted = sys::mount(
        c"devpts",
        &sys::path(&format!("{root}/dev/pts")).step("pseudo-terminals", root)?,
        Some(c"devpts"),
        libc::MS_NOSUID | libc::MS_NOEXEC,
        Some(c"newinstance,ptmxmode=0666,mode=620"),
    );
    if let Err(why) = mounted {
        notes.push(format!("no pseudo-terminals: {why}"));
    }
    Ok(())
}
