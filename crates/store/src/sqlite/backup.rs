//! Online backup: a consistent copy in a new file, while the server goes on.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::StoreError;
use crate::sqlite::{BUSY, connect_to_read, schema, storage};

/// Copies the database at `database` to the new file `to`, whole or not at all; a server may have it open meanwhile. Blocks
/// until the copy is durable.
///
/// # Errors
/// [`StoreError::Full`] when `to` has no room, [`StoreError::Storage`] when `to` exists, or a file cannot be read or written.
pub fn backup_file(database: &Path, to: &Path) -> Result<(), StoreError> {
    let exists = || StoreError::Storage {
        step: "back up",
        cause: format!("{} exists: name a file that does not", to.display()),
    };
    if to.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let source = connect_to_read(database).map_err(storage("open the database to back it up"))?;
    let owner: i32 = source
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(storage("read the database to back it up"))?;
    if owner != schema::APPLICATION_ID {
        return Err(StoreError::Storage {
            step: "back up",
            cause: format!("{} is not a Palisade database", database.display()),
        });
    }
    let partial = Partial::create(to)?;
    copy(&source, &partial.0)?;
    File::open(&partial.0).and_then(|file| file.sync_all()).map_err(file_error("sync the backup"))?;
    match renameat_with(CWD, &partial.0, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Err(exists()),
        // Not every file system can refuse to replace; there the look above must do.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::rename(&partial.0, to).map_err(file_error("name the backup"))?;
        }
        Err(why) => return Err(file_error("name the backup")(why.into())),
    }
    File::open(directory_of(to)).and_then(|file| file.sync_all()).map_err(file_error("sync the backup's directory"))
}

/// The whole copy is one read transaction, so that it is consistent and no write of the server can make it start again.
fn copy(source: &Connection, to: &Path) -> Result<(), StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(to, flags).map_err(storage("open the backup"))?;
    // Nobody sees the copy before it is whole, and a failed one is removed: it needs neither journal nor SQLite's own syncs.
    target
        .execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
        .map_err(storage("prepare the backup"))?;
    let backup = Backup::new(source, &mut target).map_err(storage("begin the backup"))?;
    for _ in 0..100 {
        match backup.step(-1).map_err(storage("copy the database"))? {
            StepResult::Done => return Ok(()),
            _ => pause(),
        }
    }
    Err(StoreError::Storage { step: "copy the database", cause: "the database stayed locked".into() })
}

#[expect(clippy::disallowed_methods, reason = "a backup has a blocking thread to itself")]
fn pause() {
    std::thread::sleep(BUSY / 100);
}

/// A file that is removed unless it got its final name.
struct Partial(PathBuf);

impl Partial {
    fn create(to: &Path) -> Result<Partial, StoreError> {
        let name = to.file_name().ok_or_else(|| StoreError::Storage {
            step: "back up",
            cause: format!("{} does not name a file", to.display()),
        })?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let path = directory_of(to).join(hidden);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(file_error("make the backup file"))?;
        Ok(Partial(path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already when the backup succeeded.
        let _ = fs::remove_file(&self.0);
    }
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

fn file_error(step: &'static str) -> impl Fn(std::io::Error) -> StoreError {
    move |why| match why.kind() {
        std::io::ErrorKind::StorageFull => StoreError::Full,
        _ => StoreError::Storage { step, cause: why.to_string() },
    }
}
