//! The one writer: a thread that takes what is waiting and makes it durable with one commit.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_core::batch::Batch;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::sqlite::apply::{self, Refusal};
use crate::sqlite::lock::Lock;
use crate::sqlite::{BUSY, Options, schema, storage};
use crate::{Change, CommitError, StoreError};

/// Batches that may wait for the writer, and the most that share one commit.
pub(super) const QUEUE: usize = 256;

/// Pages in the write-ahead log after which they are copied to the database, unless the options say otherwise: 16 MiB.
const CHECKPOINT_PAGES: u64 = 4096;

/// Readers can keep a copied log from starting over. When it is so many times too long, new ones wait a moment for the others.
const OVERDUE: i32 = 4;

/// How long a checkpoint may hold up commits to let readers finish. A backup takes longer, and the log grows until it is done.
const READERS_FINISH: Duration = Duration::from_millis(50);

/// What a readiness probe wants to see room for.
const PROBE_BYTES: u64 = 64 * 1024;

/// With less room than this an I/O error on a write means that the disk is full: some calls (growing the shared-memory file,
/// syncing) do not say so themselves.
const SCARCE_BYTES: u64 = 1024 * 1024;

/// What the writer is asked to do.
pub(super) enum Job {
    /// Apply a batch.
    Commit(Batch, oneshot::Sender<Result<(), CommitError>>),
    /// Find out whether a write can be made durable.
    Check(oneshot::Sender<Result<(), StoreError>>),
    /// Take no new jobs, finish those that wait, end.
    Close,
}

pub(super) struct Writer {
    conn: Connection,
    path: PathBuf,
    queue: mpsc::Receiver<Job>,
    hints: broadcast::Sender<Change>,
    /// Pages between checkpoints.
    interval: i32,
    /// Pages in the write-ahead log at which the next checkpoint is due.
    due: i32,
    /// Declared last: given back after the connection is closed.
    _lock: Lock,
}

thread_local! {
    /// Pages in the write-ahead log after the last commit of this thread's connection.
    static WAL_PAGES: Cell<i32> = const { Cell::new(0) };
}

/// Opens the writing connection and migrates the schema.
pub(super) fn connect(path: &Path, options: Options) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags).map_err(storage("open the database"))?;
    conn.busy_timeout(BUSY).map_err(storage("set the lock timeout"))?;
    conn.set_prepared_statement_cache_capacity(64);
    // Before anything is written: what is not ours stays as it is.
    let version = schema::version(&conn)?;
    conn.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -8192;
         PRAGMA journal_size_limit = 67108864;",
    )
    .map_err(storage("set up the database"))?;
    schema::migrate(&mut conn, version)?;
    if let Some(max_bytes) = options.max_bytes {
        let pages = max_bytes / page_bytes(&conn)?;
        // SQLite reads zero as "leave it"; what is there already is the least it accepts anyway.
        conn.query_row(&format!("PRAGMA max_page_count = {}", pages.clamp(1, 0xffff_fffe)), [], |_| Ok(()))
            .map_err(storage("limit the database's size"))?;
    }
    Ok(conn)
}

/// The size of the database's pages.
pub(super) fn page_bytes(conn: &Connection) -> Result<u64, StoreError> {
    let bytes: u32 =
        conn.pragma_query_value(None, "page_size", |row| row.get(0)).map_err(storage("read the page size"))?;
    Ok(u64::from(bytes.max(1)))
}

impl Writer {
    pub(super) fn new(
        conn: Connection,
        path: PathBuf,
        lock: Lock,
        queue: mpsc::Receiver<Job>,
        hints: broadcast::Sender<Change>,
        checkpoint_pages: Option<u64>,
    ) -> Writer {
        let interval = i32::try_from(checkpoint_pages.unwrap_or(CHECKPOINT_PAGES)).unwrap_or(i32::MAX).max(1);
        Writer { conn, path, queue, hints, interval, due: interval, _lock: lock }
    }

    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        // In place of SQLite's automatic checkpoint, which would run inside a commit, before the answers.
        self.conn.wal_hook(Some(|_, pages| {
            WAL_PAGES.set(pages);
            Ok(())
        }));
        let mut group = Vec::with_capacity(QUEUE);
        while self.queue.blocking_recv_many(&mut group, QUEUE) > 0 {
            let (mut batches, mut checks) = (Vec::with_capacity(group.len()), Vec::new());
            for job in group.drain(..) {
                match job {
                    Job::Commit(batch, answer) => batches.push((batch, answer)),
                    Job::Check(answer) => checks.push(answer),
                    Job::Close => self.queue.close(),
                }
            }
            if !batches.is_empty() {
                self.settle(batches);
            }
            if !checks.is_empty() {
                // In a transaction of its own: a probe that finds no room must not take batches down with it.
                let outcome = self.probe();
                for answer in checks {
                    let _ = answer.send(outcome.clone());
                }
            }
            self.checkpoint_when_due();
        }
        self.checkpoint("TRUNCATE");
    }

    /// Commits a group and answers everybody in it. An answer that nobody waits for any more is dropped.
    fn settle(&mut self, group: Vec<(Batch, oneshot::Sender<Result<(), CommitError>>)>) {
        let (batches, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        match self.transact(&batches) {
            Ok(outcomes) => {
                for (answer, outcome) in answers.into_iter().zip(outcomes) {
                    let outcome = outcome.map(|changes| {
                        for change in changes {
                            // Nobody may be watching.
                            let _ = self.hints.send(change);
                        }
                    });
                    let _ = answer.send(outcome);
                }
            }
            Err(why) => {
                tracing::warn!(error = %why, batches = answers.len(), "a group of commits failed");
                for answer in answers {
                    let _ = answer.send(Err(CommitError::Store(why.clone())));
                }
                if why == StoreError::Full {
                    // Lets the write-ahead log start over in the room that it has.
                    self.checkpoint("PASSIVE");
                }
            }
        }
    }

    /// Runs the batches in one transaction, each in a savepoint of its own. When the storage fails none of them is kept.
    fn transact(&mut self, batches: &[Batch]) -> Result<Vec<Result<Vec<Change>, CommitError>>, StoreError> {
        self.statement("BEGIN IMMEDIATE").map_err(|why| self.fault("begin a transaction", &why))?;
        let mut outcomes = Vec::with_capacity(batches.len());
        for batch in batches {
            match apply::batch(&self.conn, batch) {
                Ok(changes) => outcomes.push(Ok(changes)),
                Err(Refusal::Batch(why)) => outcomes.push(Err(why)),
                Err(Refusal::Storage(step, why)) => {
                    self.roll_back()?;
                    return Err(self.fault(step, &why));
                }
            }
        }
        self.end()?;
        Ok(outcomes)
    }

    /// Commits the open transaction.
    fn end(&self) -> Result<(), StoreError> {
        let Err(why) = self.statement("COMMIT") else { return Ok(()) };
        self.roll_back()?;
        let fault = self.fault("commit", &why);
        if why.sqlite_error_code() == Some(ErrorCode::DiskFull) || extended(&why) == ffi::SQLITE_IOERR_WRITE {
            // The frame that marks the commit is written last: where a write failed there is nothing to come back.
            return Err(fault);
        }
        // The frames may be in the log, complete, and only their sync have failed: after a crash recovery would find them.
        // A commit that succeeds is written over them, and then they are gone for good.
        match self.statement("UPDATE probe SET ticks = ticks + 1") {
            Ok(()) => Err(fault),
            Err(_) => {
                self.roll_back()?;
                Err(StoreError::Unconfirmed { cause: why.to_string() })
            }
        }
    }

    /// Ends a failed transaction; SQLite may have done so itself.
    fn roll_back(&self) -> Result<(), StoreError> {
        if self.conn.is_autocommit() {
            return Ok(());
        }
        self.statement("ROLLBACK").map_err(|why| self.fault("roll back", &why))
    }

    /// Writes something small, and finds out whether something larger would have had room: on the disk (the small write may
    /// fit in room that the write-ahead log already has) and in the database.
    fn probe(&mut self) -> Result<(), StoreError> {
        if self.has_less_than(PROBE_BYTES) {
            return Err(StoreError::Full);
        }
        let tried = (|| {
            self.statement("BEGIN IMMEDIATE")?;
            self.statement("SAVEPOINT room")?;
            self.conn.prepare_cached("UPDATE probe SET room = zeroblob(?1)")?.execute([PROBE_BYTES.cast_signed()])?;
            self.statement("ROLLBACK TO room")?;
            self.statement("RELEASE room")?;
            self.statement("UPDATE probe SET ticks = ticks + 1")
        })();
        if let Err(why) = tried {
            self.roll_back()?;
            return Err(self.fault("write a probe", &why));
        }
        self.end()
    }

    fn checkpoint_when_due(&mut self) {
        let pages = WAL_PAGES.get();
        if pages < self.interval {
            self.due = self.interval;
        } else if pages >= self.due {
            if pages / self.interval < OVERDUE {
                self.checkpoint("PASSIVE");
            } else {
                // Setting a timeout cannot fail on an open connection; if it did, the longer one would be waited for.
                let _ = self.conn.busy_timeout(READERS_FINISH);
                self.checkpoint("RESTART");
                let _ = self.conn.busy_timeout(BUSY);
            }
            // Not at every commit while readers hold it back.
            self.due = pages.saturating_add(self.interval);
        }
    }

    fn checkpoint(&self, mode: &str) {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        match self.conn.query_row(&sql, [], |_| Ok(())) {
            // The next commit says how much there is: it starts the log over when all was copied and nobody reads it.
            Ok(()) => {}
            // Nothing is lost: the log keeps what was not copied.
            Err(why) => tracing::warn!(error = %why, "the write-ahead log was not checkpointed"),
        }
    }

    fn statement(&self, sql: &str) -> rusqlite::Result<()> {
        self.conn.prepare_cached(sql)?.execute([]).map(|_| ())
    }

    /// The store's error for SQLite's.
    fn fault(&self, step: &'static str, why: &rusqlite::Error) -> StoreError {
        let full = why.sqlite_error_code() == Some(ErrorCode::DiskFull)
            || matches!(
                extended(why),
                ffi::SQLITE_IOERR_WRITE
                    | ffi::SQLITE_IOERR_FSYNC
                    | ffi::SQLITE_IOERR_DIR_FSYNC
                    | ffi::SQLITE_IOERR_TRUNCATE
                    | ffi::SQLITE_IOERR_SHMSIZE
            ) && self.has_less_than(SCARCE_BYTES);
        if full { StoreError::Full } else { StoreError::Storage { step, cause: why.to_string() } }
    }

    /// Whether the file system says that it has no more room than this. One that counts no blocks does not know.
    fn has_less_than(&self, bytes: u64) -> bool {
        rustix::fs::statvfs(&self.path)
            .is_ok_and(|disk| disk.f_blocks > 0 && disk.f_bavail.saturating_mul(disk.f_frsize) < bytes)
    }
}

fn extended(why: &rusqlite::Error) -> i32 {
    why.sqlite_error().map_or(0, |error| error.extended_code)
}
