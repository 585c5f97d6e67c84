//! The embedded back-end: one SQLite database, one writer thread with group commit, a few reading connections.

mod apply;
mod backup;
mod lock;
mod reader;
mod schema;
mod writer;

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use async_trait::async_trait;
use palisade_api::{EventId, SessionId};
use palisade_core::batch::{Batch, Key, LogEntry, PendingEntry, Record};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::sync::{broadcast, mpsc, oneshot};

pub use self::backup::backup_file;
use self::reader::Readers;
use self::writer::{Job, QUEUE, Writer};
use crate::{Change, CommitError, DueQuery, EventQuery, HINTS, ListQuery, Store, StoreError};

/// How a database is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// The size that the database file may grow to, in bytes; writes beyond it fail with [`StoreError::Full`]. The
    /// write-ahead log beside it is not counted. A file that is larger already stays and does not grow.
    pub max_bytes: Option<u64>,
    /// The size of the write-ahead log, in bytes, at which it is copied to the database; 16 MiB when not given. A smaller
    /// one takes less room and costs more writes.
    pub checkpoint_bytes: Option<u64>,
}

/// A store in one SQLite file. Only one process at a time can have it open; an advisory lock on `FILE.lock` sees to that.
pub struct Sqlite {
    path: PathBuf,
    /// Only `None` while dropping: the writer ends when the last sender is gone.
    jobs: Option<mpsc::Sender<Job>>,
    readers: Readers,
    hints: broadcast::Sender<Change>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Sqlite {
    /// Opens the database at `path`, made with mode 0600 when it is not there; its directory must exist. Blocks for the
    /// time of a few disk writes.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another server has it open, [`StoreError::TooNew`] when a newer version wrote it,
    /// [`StoreError::Full`] or [`StoreError::Storage`] when the file cannot be made or read.
    pub fn open(path: &Path) -> Result<Sqlite, StoreError> {
        Sqlite::open_with(path, Options::default())
    }

    /// Opens the database at `path` with these options.
    ///
    /// # Errors
    /// As for [`Sqlite::open`].
    pub fn open_with(path: &Path, options: Options) -> Result<Sqlite, StoreError> {
        let cause = |step| move |why: std::io::Error| StoreError::Storage { step, cause: why.to_string() };
        // SQLite gives its own files (-wal, -shm) the mode of the database.
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
            .map_err(cause("make the database file"))?;
        // The real path, so that a link to the database leads to the same lock.
        let path = fs::canonicalize(path).map_err(cause("find the database file"))?;
        let lock = lock::take(&path)?;
        if let Some(directory) = path.parent() {
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(cause("sync the state directory"))?;
        }
        let conn = writer::connect(&path, options)?;
        let page_bytes = writer::page_bytes(&conn)?;
        let hints = broadcast::Sender::new(HINTS);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Writer::new(
            conn,
            path.clone(),
            lock,
            queue,
            hints.clone(),
            options.checkpoint_bytes.map(|bytes| bytes / page_bytes),
        );
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(cause("start the writer thread"))?;
        Ok(Sqlite { readers: Readers::new(&path), path, jobs: Some(jobs), hints, writer: Mutex::new(Some(writer)) })
    }

    /// Finishes the commits that are under way, then closes the database and gives its lock back. Later calls fail with
    /// [`StoreError::Closed`]. Dropping the store does the same, blocking.
    pub async fn close(&self) {
        self.readers.close();
        if let Some(jobs) = &self.jobs {
            // Fails only when the writer has ended already.
            let _ = jobs.send(Job::Close).await;
        }
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // A panic of the writer was reported by its own thread.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job(answer)).await.map_err(|_| StoreError::Closed)?;
        // A writer that ends without an answer panicked: what became of the batch is not known.
        answered.await.map_err(|_| StoreError::Unconfirmed { cause: "the writer thread ended".into() })
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.readers.close();
        self.jobs = None;
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // A panic of the writer was reported by its own thread.
            let _ = writer.join();
        }
    }
}

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sqlite").field("path", &self.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        self.ask(|answer| Job::Commit(batch, answer)).await?
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        let key = key.clone();
        self.readers.read(move |conn| reader::get(conn, &key)).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Record>, StoreError> {
        let query = query.clone();
        self.readers.read(move |conn| reader::list(conn, &query)).await
    }

    async fn due(&self, query: &DueQuery) -> Result<Vec<Record>, StoreError> {
        let query = query.clone();
        self.readers.read(move |conn| reader::due(conn, &query)).await
    }

    async fn count(&self, query: &ListQuery) -> Result<u64, StoreError> {
        let query = query.clone();
        self.readers.read(move |conn| reader::count(conn, &query)).await
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<LogEntry>, StoreError> {
        let query = query.clone();
        self.readers.read(move |conn| reader::events(conn, &query)).await
    }

    async fn event(&self, session: &SessionId, id: &EventId) -> Result<Option<LogEntry>, StoreError> {
        let (session, id) = (session.clone(), id.clone());
        self.readers.read(move |conn| reader::event(conn, &session, &id)).await
    }

    async fn pending(&self, session: &SessionId) -> Result<Vec<PendingEntry>, StoreError> {
        let session = session.clone();
        self.readers.read(move |conn| reader::pending(conn, &session)).await
    }

    async fn sessions_with_pending(&self) -> Result<Vec<SessionId>, StoreError> {
        self.readers.read(reader::sessions_with_pending).await
    }

    async fn tail(&self, session: &SessionId) -> Result<u64, StoreError> {
        let session = session.clone();
        Ok(self.readers.read(move |conn| reader::log_state(conn, &session)).await?.0)
    }

    async fn epoch(&self, session: &SessionId) -> Result<u64, StoreError> {
        let session = session.clone();
        Ok(self.readers.read(move |conn| reader::log_state(conn, &session)).await?.1)
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.hints.subscribe()
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.ask(Job::Check).await?
    }

    async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let (from, to) = (self.path.clone(), to.to_owned());
        tokio::task::spawn_blocking(move || backup_file(&from, &to)).await.map_err(|_| StoreError::Closed)?
    }
}

/// A connection that cannot write.
fn connect_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY)?;
    Ok(conn)
}

/// How long to wait for a file lock that another connection holds for a moment (recovery, the end of a checkpoint).
const BUSY: std::time::Duration = std::time::Duration::from_secs(5);

/// Turns SQLite's error of this step into the store's.
fn storage(step: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |why| match why.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full,
        _ => StoreError::Storage { step, cause: why.to_string() },
    }
}
