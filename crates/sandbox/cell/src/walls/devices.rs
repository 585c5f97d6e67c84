//! A minimal `/dev`.

use std::fs;

use super::mounts::tmpfs;
use super::{Failed, Step};
use crate::sys;

/// A minimal `/dev`. The nodes themselves come from the host by bind mounts, as a user namespace cannot make any.
pub(super) fn make(root: &str, shm_bytes: u64, notes: &mut Vec<String>) -> Result<(), Failed> {
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
    let shm = format!("{dev}/shm");
    fs::create_dir_all(&shm).step("shared memory", &shm)?;
    tmpfs(&shm, &format!("mode=1777,size={shm_bytes},nr_inodes=16384"), libc::MS_NOSUID | libc::MS_NODEV)
        .step("shared memory", &shm)?;
    let pts = format!("{dev}/pts");
    fs::create_dir_all(&pts).step("pseudo-terminals", &pts)?;
    let mounted = sys::mount(
        c"devpts",
        &sys::path(&pts).step("pseudo-terminals", &pts)?,
        Some(c"devpts"),
        libc::MS_NOSUID | libc::MS_NOEXEC,
        Some(c"newinstance,ptmxmode=0666,mode=620"),
    );
    if let Err(why) = mounted {
        notes.push(format!("no pseudo-terminals: {why}"));
    }
    Ok(())
}
