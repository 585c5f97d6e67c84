//! Exclusive ownership of a database: two servers on one file would each believe to be the one writer.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::StoreError;

/// The lock is held until this file is closed, by the kernel if need be: a killed server leaves nothing behind.
pub(super) type Lock = File;

/// Takes the lock beside the database and writes this process's id into it.
pub(super) fn take(database: &Path) -> Result<Lock, StoreError> {
    let cause = |why: std::io::Error| StoreError::Storage { step: "lock the database", cause: why.to_string() };
    let mut name = OsString::from(database);
    name.push(".lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(PathBuf::from(name))
        .map_err(cause)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The id only helps to find the holder: a lock file that cannot be read is a lock all the same.
            let known = file.read_to_string(&mut pid).is_ok() && pid.trim().parse::<u32>().is_ok();
            let holder = if known { format!("process {}", pid.trim()) } else { "another process".to_owned() };
            return Err(StoreError::InUse { path: database.display().to_string(), holder });
        }
        Err(TryLockError::Error(why)) => return Err(cause(why)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(cause)?;
    Ok(file)
}
