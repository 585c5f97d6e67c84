//! Exclusive ownership of a trail: two writers would each continue the chain from the same record.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::error::OpenError;

/// The lock is held until this file is closed, by the kernel if need be: a killed writer leaves nothing behind.
pub(crate) type Lock = File;

/// Takes the lock of a directory and writes this process's id into it.
pub(crate) fn take(dir: &Path) -> Result<Lock, OpenError> {
    let failed = |cause| OpenError::Io { dir: dir.to_owned(), step: "lock the directory", cause };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The id only helps to find the holder: a lock file that cannot be read is a lock all the same.
            let known = file.read_to_string(&mut pid).is_ok() && pid.trim().parse::<u32>().is_ok();
            let holder = if known { format!("process {}", pid.trim()) } else { "another process".to_owned() };
            return Err(OpenError::InUse { dir: dir.to_owned(), holder });
        }
        Err(TryLockError::Error(why)) => return Err(failed(why)),
    }
    // On a full disk the id may not fit, and the trail must open all the same: to say what was lost when there is room.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}
