//! The cell's protocol, which the sandbox crate and PID 1 of a sandbox speak, and the archives in which files cross.

pub mod archive;
pub mod egress;
mod protocol;

pub use protocol::*;

/// How many files one sandbox may watch, by what a user of the host may (the text of `/proc/sys/fs/inotify/max_user_watches`): they
/// are counted for whoever made its user namespace too, and others must get theirs.
pub fn watches(whole: &str) -> u64 {
    let whole = whole.trim().parse().unwrap_or(0u64);
    (whole / 8).clamp(1024, 16384)
}
