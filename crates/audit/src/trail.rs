//! The trail as its users hold it.

use std::fmt;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use palisade_api::Timestamp;
use serde::Serialize;
use tokio::sync::{Semaphore, broadcast, oneshot};

use crate::error::{AppendError, OpenError};
use crate::follow::{Follow, WAITING};
use crate::read::Filter;
use crate::record::{self, Hash, MAX_BODY, MAX_KIND, MAX_SESSION, Seq};
use crate::sign::Signer;
use crate::writer::{Job, NOTES, QUEUE, Shared, Writer};
use crate::{head, lock};

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How a trail is kept.
#[derive(Clone)]
pub struct Options {
    /// The time of records.
    pub clock: Clock,
    /// Bytes after which the next segment is begun.
    pub segment_bytes: u64,
    /// Signs checkpoints. A trail that was begun with one is not continued without.
    pub signer: Option<Signer>,
    /// Records after which a checkpoint follows.
    pub checkpoint_records: u64,
    /// How old the last checkpoint may be while there are records after it.
    pub checkpoint_interval: Duration,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("segment_bytes", &self.segment_bytes)
            .field("signer", &self.signer)
            .field("checkpoint_records", &self.checkpoint_records)
            .field("checkpoint_interval", &self.checkpoint_interval)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// Segments of 64 MiB, unsigned; with a signer, a checkpoint after 1,000 records or a minute.
    pub fn new(clock: Clock) -> Options {
        Options {
            clock,
            segment_bytes: 64 * 1024 * 1024,
            signer: None,
            checkpoint_records: 1000,
            checkpoint_interval: Duration::from_secs(60),
        }
    }
}

/// How far a trail has come: what to keep elsewhere, so that an end cut off together with its head file is seen too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last durable record.
    pub seq: Seq,
    /// Its hash.
    pub hash: Hash,
}

/// A trail that is open for writing. Clones write the same one.
#[derive(Debug, Clone)]
pub struct Trail {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    queue: SyncSender<Job>,
    /// Room in the queue: whoever sends holds a permit.
    room: Arc<Semaphore>,
    /// Room for notes.
    notes: Arc<Semaphore>,
    live: broadcast::WeakSender<Arc<record::Record>>,
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held by whoever moves segments.
    archiving: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trail").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Trail {
    /// Opens the trail in a directory, or begins one where there is none, and verifies all that is there. What a crash left
    /// unfinished at its end is cut off, and a record says so. Blocks until that is done.
    ///
    /// # Errors
    ///
    /// Another process writes it, it does not verify, or its files cannot be used.
    pub fn open(dir: &Path, options: Options) -> Result<Trail, OpenError> {
        check_options(&options)?;
        let failed = |step| move |cause| OpenError::Io { dir: dir.to_owned(), step, cause };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir).map_err(failed("make the directory"))?;
        let lock = lock::take(dir)?;
        let (live, _) = broadcast::channel(WAITING);
        let weak = live.downgrade();
        let shared = Arc::new(Shared::default());
        // Permits are what bounds it: a send never waits. The places more are for the job that closes, and for the one that tells
        // of notes.
        let (queue, jobs) = sync_channel(QUEUE + 2);
        let writer = Writer::open(dir, options, lock, jobs, live, Arc::clone(&shared))?;
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run());
        let thread = thread.map_err(failed("start the writer"))?;
        let (room, notes) = (Arc::new(Semaphore::new(QUEUE)), Arc::new(Semaphore::new(NOTES)));
        let writer = Mutex::new(Some(thread));
        let (dir, archiving) = (dir.to_owned(), tokio::sync::Mutex::default());
        Ok(Trail { inner: Arc::new(Inner { dir, queue, room, notes, live: weak, shared, writer, archiving }) })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Appends a record and returns its number when it is durable: what it allows may then happen. When the future is dropped the
    /// record may be kept or not.
    ///
    /// # Errors
    ///
    /// The record was not kept. The next may be, as soon as what is in the way is gone.
    pub async fn append(&self, kind: &str, session: Option<&str>, body: impl Serialize) -> Result<Seq, AppendError> {
        let record = prepare(kind, session, &body)?;
        drop(body);
        self.keep(record).await
    }

    /// A record of the trail's own.
    pub(crate) async fn own(&self, kind: &str, body: &impl Serialize) -> Result<Seq, AppendError> {
        self.keep(written(kind, None, body)?).await
    }

    /// Held by whoever moves segments.
    pub(crate) fn archiving(&self) -> &tokio::sync::Mutex<()> {
        &self.inner.archiving
    }

    async fn keep(&self, record: String) -> Result<Seq, AppendError> {
        let room = self.room().await?;
        let (answer, done) = oneshot::channel();
        self.inner.queue.try_send(Job::Append { record, answer, room }).map_err(|_| AppendError::Closed)?;
        done.await.map_err(|_| AppendError::Closed)?
    }

    /// Appends a record that nothing waits for: it is durable with the next that somebody waits for, which follows it in the chain,
    /// and within 50 ms otherwise. Returns when it has a place in the queue. While the storage refuses, the last 4,096 such records
    /// are kept in memory; how many were lost beyond that, a later record says.
    ///
    /// # Errors
    ///
    /// It is no record, or the trail is closed.
    pub async fn note(&self, kind: &str, session: Option<&str>, body: impl Serialize) -> Result<(), AppendError> {
        let record = prepare(kind, session, &body)?;
        drop(body);
        let room = Arc::clone(&self.inner.notes).acquire_owned().await.map_err(|_| AppendError::Closed)?;
        match self.inner.shared.note(record, room) {
            Some(false) => Ok(()),
            Some(true) => self.inner.queue.try_send(Job::Notes).map_err(|_| AppendError::Closed),
            None => Err(AppendError::Closed),
        }
    }

    /// Whether the last write failed. Who may not go on without a trail then has no use for [`Trail::note`]: what
    /// [`Trail::append`] returns says whether it can be written again.
    pub fn failing(&self) -> bool {
        self.inner.shared.failing()
    }

    async fn room(&self) -> Result<tokio::sync::OwnedSemaphorePermit, AppendError> {
        Arc::clone(&self.inner.room).acquire_owned().await.map_err(|_| AppendError::Closed)
    }

    /// How far it has come.
    pub fn head(&self) -> Head {
        self.inner.shared.head()
    }

    /// Follows the records that become durable from now on.
    pub fn subscribe(&self, filter: Filter) -> Follow {
        // The sender ends with the writer; what follows a closed trail ends at once.
        let records = match self.inner.live.upgrade() {
            Some(live) => live.subscribe(),
            None => broadcast::channel(1).1,
        };
        Follow { records, filter }
    }

    /// Makes durable what waits, signs the end, and gives the directory free. Appending fails from then on.
    pub async fn close(&self) {
        let (answer, done) = oneshot::channel();
        // When it is closed already there is nothing to wait for.
        if self.inner.queue.try_send(Job::Close(Some(answer))).is_ok() {
            let _ = done.await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.queue.try_send(Job::Close(None));
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = writer {
            // One last write: whoever opens the directory next must find it free. A panic was reported by the thread.
            let _ = thread.join();
        }
    }
}

fn check_options(options: &Options) -> Result<(), OpenError> {
    for (option, least, holds) in [
        ("segment size", "4 KiB", options.segment_bytes >= 4096),
        ("records between checkpoints", "1", options.checkpoint_records >= 1),
        ("time between checkpoints", "1 ms", options.checkpoint_interval >= Duration::from_millis(1)),
    ] {
        if !holds {
            return Err(OpenError::Option { option, least });
        }
    }
    Ok(())
}

/// Checks what a caller wants recorded, and writes the part of the record that the caller gives.
fn prepare(kind: &str, session: Option<&str>, body: &impl Serialize) -> Result<String, AppendError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'.';
    if kind.is_empty() || kind.len() > MAX_KIND || !kind.bytes().all(plain) || kind.starts_with("trail.") {
        return Err(AppendError::Kind { kind: kind.chars().take(MAX_KIND).collect() });
    }
    if let Some(bytes) = session.map(str::len).filter(|bytes| *bytes > MAX_SESSION) {
        return Err(AppendError::Session { bytes });
    }
    written(kind, session, body)
}

fn written(kind: &str, session: Option<&str>, body: &impl Serialize) -> Result<String, AppendError> {
    let json = |why: serde_json::Error| AppendError::Body { kind: kind.to_owned(), cause: why.to_string() };
    let (middle, bytes) = record::middle(kind, session, body).map_err(json)?;
    if bytes > MAX_BODY {
        return Err(AppendError::TooLarge { kind: kind.to_owned(), bytes });
    }
    Ok(middle)
}

/// Makes a directory's head file when the directory is new.
pub(crate) fn begin(dir: &Path) -> Result<(), OpenError> {
    let failed = |step| move |cause| OpenError::Io { dir: dir.to_owned(), step, cause };
    head::HeadFile::create(dir).map_err(failed("make the head file"))?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("keep the head file"))
}
