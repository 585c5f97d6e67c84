//! The one writer: a thread that takes what is waiting and makes it durable with one write and one sync.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, broadcast, oneshot};

use crate::error::{AppendError, OpenError, ReadError, SignerError};
use crate::head::HeadFile;
use crate::lock::Lock;
use crate::record::{self, Hash, Line, Record, Seq};
use crate::segment;
use crate::sign::{CHECKPOINT, PublicKey};
use crate::trail::{Head, Options, begin};
use crate::verify::Walk;

/// Records that may wait for the writer, and the most that it takes at once.
pub(crate) const QUEUE: usize = 1024;

/// Notes that may wait for the writer.
pub(crate) const NOTES: usize = 4 * QUEUE;

/// Bytes of records that are written at once, unless one alone is longer.
const BATCH_BYTES: usize = 1024 * 1024;

/// How long a record that nobody waits for may stay in memory.
const NOTE_DELAY: Duration = Duration::from_millis(50);

/// Records that nobody waits for are kept up to this number while the storage refuses.
const KEPT: usize = 4096;

/// And up to so many bytes of them.
const KEPT_BYTES: usize = 8 * 1024 * 1024;

/// When the storage refused and nobody asks, it is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// The format that the first record of a trail names.
const FORMAT: u32 = 1;

/// What the writer is asked to do.
pub(crate) enum Job {
    /// Keep a record and answer when it is durable.
    Append { record: String, answer: oneshot::Sender<Result<Seq, AppendError>>, room: OwnedSemaphorePermit },
    /// There are notes: the first of them, or as many as are written at once.
    Notes,
    /// Finish what came before, end.
    Close(Option<oneshot::Sender<()>>),
}

/// Records that nobody waits for, until the writer takes them: it is woken once for all that come within [`NOTE_DELAY`], as waking
/// costs more than a record.
#[derive(Debug, Default)]
struct Notes {
    records: Vec<(String, OwnedSemaphorePermit)>,
    /// The writer has been told, and has not looked yet.
    told: bool,
    /// Nobody takes them any more.
    closed: bool,
}

/// What the writer and those who write through it share.
#[derive(Debug)]
pub(crate) struct Shared {
    head: Mutex<Head>,
    notes: Mutex<Notes>,
    /// The last write failed.
    failing: AtomicBool,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            head: Mutex::new(Head { seq: 0, hash: Hash::NONE }),
            notes: Mutex::default(),
            failing: AtomicBool::new(false),
        }
    }
}

impl Shared {
    pub(crate) fn head(&self) -> Head {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a note. Says whether the writer must be told, or none if nobody takes it.
    pub(crate) fn note(&self, record: String, room: OwnedSemaphorePermit) -> Option<bool> {
        let mut notes = self.notes();
        if notes.closed {
            return None;
        }
        notes.records.push((record, room));
        let tell = !notes.told && matches!(notes.records.len(), 1 | QUEUE..);
        notes.told |= tell;
        Some(tell)
    }

    pub(crate) fn failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }
}

/// A record that is not durable.
struct Waiting {
    record: String,
    answer: Option<(oneshot::Sender<Result<Seq, AppendError>>, OwnedSemaphorePermit)>,
}

/// Where the chain is. Copied before a batch, and put back when the batch fails.
#[derive(Debug, Clone, Copy)]
struct Chain {
    head: Head,
    /// Records after the last checkpoint.
    unsigned: u64,
}

/// What was refused and lost since the last record that was kept.
#[derive(Debug, Clone, Default, Serialize)]
struct Gap {
    /// Records that somebody waited for, and was told of.
    refused: u64,
    /// Records that nobody waited for.
    lost: u64,
    /// Why.
    cause: String,
}

/// What a trail that was not closed was found like.
#[derive(Debug, Serialize)]
struct Recovered {
    /// Bytes of an unfinished end, cut off.
    cut_bytes: u64,
    /// Records after the one that the head file names: they verify, but the head does not vouch for them.
    beyond_head: u64,
    /// Whether a line of the head file was damaged.
    head_torn: bool,
}

pub(crate) struct Writer {
    dir: PathBuf,
    options: Options,
    jobs: Receiver<Job>,
    live: broadcast::Sender<Arc<Record>>,
    shared: Arc<Shared>,
    head: HeadFile,
    /// The segment that is written.
    file: File,
    /// Bytes of it that are durable.
    length: u64,
    /// Whether there may be more in it, of a batch that failed.
    dirty: bool,
    /// Whether the next segment must be begun first. Stays so when that fails: the file may be there by now, with its name.
    rotate: bool,
    chain: Chain,
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    /// When what waits must be written, if nobody hurries it.
    due: Option<Instant>,
    /// When the last checkpoint was made.
    signed: Instant,
    gap: Option<Gap>,
    buffer: Vec<u8>,
    /// When it is written: one time for all that are written together.
    time: String,
    /// Declared last: given back after all else.
    _lock: Lock,
}

impl Writer {
    /// Verifies what is there, mends what a crash left, and writes the records that say so.
    pub(crate) fn open(
        dir: &Path,
        options: Options,
        lock: Lock,
        jobs: Receiver<Job>,
        live: broadcast::Sender<Arc<Record>>,
        shared: Arc<Shared>,
    ) -> Result<Writer, OpenError> {
        let failed = |step| move |cause| OpenError::Io { dir: dir.to_owned(), step, cause };
        let mut keys = PublicKey::all_beside(dir).map_err(failed("read its public keys"))?;
        if let Some(signer) = &options.signer {
            keys.push(signer.public_key());
            signer.public_key().put(dir).map_err(|why| match why {
                SignerError::Io { cause, .. } => failed("put the public key beside it")(cause),
                other => failed("put the public key beside it")(io::Error::other(other)),
            })?;
        }
        let mut walk = Walk::new(keys, false);
        let there = walk.walk(dir).map_err(|why| match why {
            ReadError::Io { cause, .. } => failed("read it")(cause),
            other => failed("read it")(io::Error::other(other)),
        })?;
        if let Some(broken) = walk.report.broken {
            return Err(OpenError::Broken { dir: dir.to_owned(), broken: Box::new(broken) });
        }
        if !there {
            begin(dir)?;
        }
        if walk.report.signed.is_some() && options.signer.is_none() {
            return Err(OpenError::KeyMissing { dir: dir.to_owned() });
        }
        let head = Head { seq: walk.next - 1, hash: walk.hash };
        let file = open_segment(dir, walk.segment.unwrap_or(1)).map_err(failed("open the segment"))?;
        if walk.report.torn_bytes > 0 {
            let bytes = walk.report.torn_bytes;
            tracing::warn!(dir = %dir.display(), bytes, after = head.seq, "cut off the unfinished end of the audit trail");
            file.set_len(walk.length).and_then(|()| file.sync_all()).map_err(failed("cut off its unfinished end"))?;
        }
        let signer = options.signer.clone();
        let head_file = HeadFile::open(dir, signer, head.seq, head.hash).map_err(failed("open the head file"))?;
        let unsigned = walk.report.signed.as_ref().map_or(head.seq, |signed| head.seq - signed.last.seq);
        let mut writer = Writer {
            dir: dir.to_owned(),
            options,
            jobs,
            live,
            shared,
            head: head_file,
            file,
            length: walk.length,
            dirty: false,
            rotate: false,
            chain: Chain { head, unsigned },
            waiting: Vec::new(),
            waiting_bytes: 0,
            due: None,
            signed: Instant::now(),
            gap: None,
            buffer: Vec::new(),
            time: String::new(),
            _lock: lock,
        };
        if writer.options.signer.is_some() && unsigned > 0 {
            // By itself: what is there may be as much as its last checkpoint lets follow.
            writer.write(true).map_err(|why| failed(why.step)(why.cause))?;
        }
        if head.seq == 0 {
            writer.own("trail.began", &serde_json::json!({ "format": FORMAT, "trail": random_id() }));
        }
        let recovered = Recovered {
            cut_bytes: walk.report.torn_bytes,
            beyond_head: walk.report.beyond_head,
            head_torn: walk.head_torn,
        };
        if recovered.cut_bytes > 0 || recovered.beyond_head > 0 || recovered.head_torn {
            writer.own("trail.recovered", &recovered);
        }
        let signed = writer.options.signer.as_ref().map(|signer| signer.public_key().id());
        writer.own("trail.opened", &serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "key": signed }));
        writer.write(true).map_err(|why| failed(why.step)(why.cause))?;
        // They are written; nobody waits for an answer.
        writer.waiting.clear();
        writer.waiting_bytes = 0;
        Ok(writer)
    }

    /// Puts a record of the trail's own among those that wait.
    fn own(&mut self, kind: &str, body: &impl Serialize) {
        match record::middle(kind, None, body) {
            Ok((record, _)) => self.wait(Waiting { record, answer: None }),
            Err(why) => tracing::error!(kind, error = %why, "a record of the audit trail's own cannot be written"),
        }
    }

    fn wait(&mut self, waiting: Waiting) {
        self.waiting_bytes += waiting.record.len();
        self.waiting.push(waiting);
    }

    /// Takes the notes that there are, for the last time or not.
    fn take_notes(&mut self, last: bool) {
        let records = {
            let mut notes = self.shared.notes();
            notes.closed |= last;
            std::mem::take(&mut notes.records)
        };
        for (record, _room) in records {
            self.wait(Waiting { record, answer: None });
        }
    }

    /// Works until it is closed.
    pub(crate) fn run(mut self) {
        let answer = loop {
            let job = match self.wake() {
                None => self.jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.jobs.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let mut job = match job {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break None,
            };
            let mut closing = None;
            let mut awaited = false;
            let (mut taken, before) = (0, self.waiting_bytes);
            loop {
                taken += 1;
                match job.take() {
                    Some(Job::Append { record, answer, room }) => {
                        awaited = true;
                        // What its caller had noted before stands before it.
                        self.take_notes(false);
                        self.wait(Waiting { record, answer: Some((answer, room)) });
                    }
                    Some(Job::Notes) => {
                        let mut notes = self.shared.notes();
                        notes.told = false;
                        let many = notes.records.len() >= QUEUE;
                        let some = !notes.records.is_empty();
                        drop(notes);
                        if many {
                            self.take_notes(false);
                        } else if some {
                            self.due.get_or_insert_with(|| Instant::now() + NOTE_DELAY);
                        }
                    }
                    Some(Job::Close(answer)) => {
                        closing = Some(answer);
                        break;
                    }
                    None => {}
                }
                if taken >= QUEUE || self.waiting_bytes - before >= BATCH_BYTES {
                    break;
                }
                job = match self.jobs.try_recv() {
                    Ok(job) => Some(job),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                };
            }
            // While the storage refuses, notes alone do not make it be tried again and again.
            let full = self.gap.is_none() && (self.waiting.len() >= QUEUE || self.waiting_bytes >= BATCH_BYTES);
            let due = self.due.is_some_and(|due| due <= Instant::now());
            if due {
                self.take_notes(false);
            }
            if awaited || full || due {
                self.settle(false);
            } else if self.checkpoint_due().is_some_and(|due| due <= Instant::now()) {
                self.settle(true);
            }
            self.forget();
            if let Some(answer) = closing {
                break answer;
            }
        };
        self.take_notes(true);
        self.settle(self.chain.unsigned > 0);
        if let Err(why) = self.head.sync() {
            tracing::warn!(error = %why, "the head of the audit trail may not be on the disk");
        }
        if !self.waiting.is_empty() {
            tracing::error!(
                records = self.waiting.len(),
                "records of the audit trail were lost: it was closed while it could not be written"
            );
        }
        // Who waits for the end finds the directory free.
        drop(self);
        if let Some(answer) = answer {
            let _ = answer.send(());
        }
    }

    /// When there is something to do without being asked.
    fn wake(&self) -> Option<Instant> {
        [self.due, self.checkpoint_due()].into_iter().flatten().min()
    }

    fn checkpoint_due(&self) -> Option<Instant> {
        let due = self.signed + self.options.checkpoint_interval;
        // After a failure there is a time to try again in any case.
        (self.options.signer.is_some() && self.chain.unsigned > 0 && self.gap.is_none()).then_some(due)
    }

    /// Makes what waits durable and answers everybody. With `sign`, or when one is due, a checkpoint follows.
    fn settle(&mut self, sign: bool) {
        let sign =
            self.options.signer.is_some() && (sign || self.checkpoint_due().is_some_and(|due| due <= Instant::now()));
        if self.waiting.is_empty() && !sign && self.gap.is_none() {
            return;
        }
        match self.write(sign) {
            Ok(numbers) => {
                self.due = None;
                self.gap = None;
                self.shared.failing.store(false, Ordering::Release);
                self.waiting_bytes = 0;
                for (waiting, seq) in self.waiting.drain(..).zip(numbers) {
                    if let Some((answer, _room)) = waiting.answer {
                        // Who does not wait any more is not told.
                        let _ = answer.send(Ok(seq));
                    }
                }
            }
            Err(why) => {
                let error = why.error();
                self.shared.failing.store(true, Ordering::Release);
                if self.gap.is_none() {
                    tracing::error!(dir = %self.dir.display(), %error, "the audit trail cannot be written");
                }
                let gap = self.gap.get_or_insert_with(Gap::default);
                gap.cause = why.cause.to_string();
                let mut kept = Vec::with_capacity(self.waiting.len());
                for waiting in self.waiting.drain(..) {
                    match waiting.answer {
                        Some((answer, _room)) => {
                            gap.refused += 1;
                            self.waiting_bytes -= waiting.record.len();
                            let _ = answer.send(Err(error.clone()));
                        }
                        None => kept.push(waiting),
                    }
                }
                self.waiting = kept;
                self.due = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Lets go of the oldest of too many records that could not be written.
    fn forget(&mut self) {
        let mut over = self.waiting.len().saturating_sub(KEPT);
        let mut bytes: usize = self.waiting[..over].iter().map(|waiting| waiting.record.len()).sum();
        while self.waiting_bytes - bytes > KEPT_BYTES {
            bytes += self.waiting[over].record.len();
            over += 1;
        }
        if over > 0 {
            self.waiting.drain(..over);
            self.waiting_bytes -= bytes;
            self.gap.get_or_insert_with(Gap::default).lost += over as u64;
        }
    }

    /// Writes what waits behind the chain and makes it durable: all of it, or nothing. Returns the numbers it got, in order.
    fn write(&mut self, sign: bool) -> Result<Vec<Seq>, Fault> {
        self.restore()?;
        let before = self.chain;
        let signed = self.signed;
        let outcome = self.render(sign).and_then(|numbers| self.store(before.head.seq + 1).map(|()| numbers));
        if outcome.is_err() {
            self.chain = before;
            self.signed = signed;
            // What was refused should not be found by a reader, or after a crash. If it cannot go now it will before the next write.
            let _ = self.restore();
            return outcome;
        }
        // Before anybody is told: whoever was told of a record must find its loss out.
        let head = self.chain.head;
        if let Err(why) = self.head.write(head.seq, head.hash) {
            // Records are durable all the same, and a head that is behind is one that a crash could have left.
            tracing::warn!(error = %why, "the head of the audit trail could not be written");
        }
        if self.signed != signed
            && let Err(why) = self.head.sync()
        {
            tracing::warn!(error = %why, "the head of the audit trail may not be on the disk");
        }
        *self.shared.head.lock().unwrap_or_else(PoisonError::into_inner) = head;
        self.publish();
        self.buffer.clear();
        self.buffer.shrink_to(BATCH_BYTES);
        outcome
    }

    /// Takes away what a failed batch may have left. Until that is durable nothing else is written: after a crash parts of both
    /// would lie at the same place.
    fn restore(&mut self) -> Result<(), Fault> {
        if self.dirty {
            self.file.set_len(self.length).map_err(fault("cut off a failed write"))?;
            self.file.sync_all().map_err(fault("sync the segment"))?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Writes the records into the buffer.
    fn render(&mut self, sign: bool) -> Result<Vec<Seq>, Fault> {
        self.buffer.clear();
        self.time = (self.options.clock)().to_string();
        if let Some(gap) = &self.gap {
            let (middle, _) =
                record::middle("trail.gap", None, gap).map_err(|why| fault("write a record")(why.into()))?;
            self.push(&middle)?;
        }
        let mut numbers = Vec::with_capacity(self.waiting.len());
        let waiting = std::mem::take(&mut self.waiting);
        let outcome = waiting.iter().try_for_each(|waiting| {
            numbers.push(self.push(&waiting.record)?);
            Ok(())
        });
        self.waiting = waiting;
        outcome?;
        if sign && self.chain.unsigned > 0 {
            self.sign()?;
        }
        Ok(numbers)
    }

    /// One record behind the chain, and a checkpoint if it is time for one.
    fn push(&mut self, middle: &str) -> Result<Seq, Fault> {
        // Before the record that would be one too many, so that no crash leaves more than are allowed.
        if self.chain.unsigned >= self.options.checkpoint_records {
            self.sign()?;
        }
        let seq = self.chain.head.seq + 1;
        let hash = record::write(&mut self.buffer, seq, &self.time, middle, self.chain.head.hash);
        self.chain = Chain { head: Head { seq, hash }, unsigned: self.chain.unsigned + 1 };
        Ok(seq)
    }

    fn sign(&mut self) -> Result<(), Fault> {
        let Some(signer) = &self.options.signer else { return Ok(()) };
        let Head { seq, hash } = self.chain.head;
        let body = signer.checkpoint(seq, hash, &self.time, self.options.checkpoint_records);
        let middle = record::middle(CHECKPOINT, None, &body);
        let (middle, _) = middle.map_err(|why| fault("write a checkpoint")(why.into()))?;
        let hash = record::write(&mut self.buffer, seq + 1, &self.time, &middle, hash);
        self.chain = Chain { head: Head { seq: seq + 1, hash }, unsigned: 0 };
        self.signed = Instant::now();
        Ok(())
    }

    /// Makes the buffer durable, in a new segment if this one is full.
    fn store(&mut self, first: Seq) -> Result<(), Fault> {
        self.rotate |= self.length > 0 && self.length + self.buffer.len() as u64 > self.options.segment_bytes;
        if self.rotate {
            self.file = open_segment(&self.dir, first).map_err(fault("begin a segment"))?;
            self.length = 0;
            self.rotate = false;
        }
        self.dirty = true;
        self.file.write_all_at(&self.buffer, self.length).map_err(fault("write"))?;
        self.file.sync_data().map_err(fault("sync"))?;
        self.dirty = false;
        self.length += self.buffer.len() as u64;
        Ok(())
    }

    /// Shows the records in the buffer to those who follow.
    fn publish(&self) {
        if self.live.receiver_count() == 0 {
            return;
        }
        for line in self.buffer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match Line::parse(line).and_then(|line| line.to_record()) {
                // The last follower may have gone meanwhile.
                Ok(record) => drop(self.live.send(Arc::new(record))),
                Err(why) => tracing::error!(error = %why, "a record of the audit trail does not read back"),
            }
        }
    }
}

/// Opens a segment, and makes it when it is not there: its name is durable.
fn open_segment(dir: &Path, first: Seq) -> io::Result<File> {
    let path = segment::path(dir, first);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    File::open(dir)?.sync_all()?;
    Ok(file)
}

/// What tells this trail from all others.
fn random_id() -> Option<String> {
    let mut bytes = [0; 16];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut bytes).ok()?;
    let mut id = Hash::of(&bytes).to_string();
    id.truncate(32);
    Some(id)
}

/// A step that failed.
#[derive(Debug)]
struct Fault {
    step: &'static str,
    cause: io::Error,
}

fn fault(step: &'static str) -> impl Fn(io::Error) -> Fault {
    move |cause| Fault { step, cause }
}

impl Fault {
    fn error(&self) -> AppendError {
        match Errno::from_io_error(&self.cause) {
            Some(Errno::NOSPC | Errno::DQUOT) => AppendError::Full,
            _ => AppendError::Storage { step: self.step, cause: self.cause.to_string() },
        }
    }
}
