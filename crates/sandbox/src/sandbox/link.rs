//! The conversation with a cell: who waits for which answer.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_cell::{End, INPUT_WINDOW, LEAST_CHARGE, OUTPUT_WINDOW, Process, Reply, Request, decode, encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Sink, Source};
use crate::Error;
use crate::handshake::frame;

/// What is read of a cell's words at a time.
const HEARD: usize = 64 << 10;
/// Frames of output that one window allows, and the end.
pub(super) const FRAMES: usize = (OUTPUT_WINDOW / LEAST_CHARGE) as usize + 1;

/// What a tool said.
pub(super) struct Said {
    pub(super) content: Vec<Value>,
    pub(super) is_error: bool,
    pub(super) cpu_us: Option<u64>,
}

/// What a stream brings.
pub(super) enum Heard {
    Output { offset: u64, stderr: bool, bytes: Vec<u8> },
    Exit(End),
    Failed(String),
}

/// Who waits.
pub(super) enum Waiting {
    Tool(oneshot::Sender<Said>),
    Processes(oneshot::Sender<Vec<Process>>),
    Rest(oneshot::Sender<()>),
    Stream(mpsc::Sender<Heard>, Arc<Semaphore>),
}

/// The sending half. A sender that gives up midway leaves its frame's rest here, so that the next one finishes it.
pub(super) struct Writer {
    pub(super) half: Sink,
    frame: Vec<u8>,
    sent: usize,
}

impl Writer {
    pub(super) fn new(half: Sink) -> Writer {
        Writer { half, frame: Vec::new(), sent: 0 }
    }

    /// Sends a frame after what others have left. `committed` is called when from then on it is sent even if this is cancelled;
    /// before, it never is.
    pub(super) async fn send(&mut self, request: &Request, raw: &[u8], committed: impl FnOnce()) -> Result<(), Error> {
        let frame = encode(request, raw).map_err(Error::Protocol)?;
        self.flush().await.map_err(|_| Error::Ended)?;
        self.frame = frame;
        committed();
        self.flush().await.map_err(|_| Error::Ended)
    }

    async fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.frame.len() {
            let sent = self.half.write(&self.frame[self.sent..]).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.sent += sent;
        }
        self.frame = Vec::new();
        self.sent = 0;
        Ok(())
    }
}

/// Everybody who waits; none once the conversation is over.
#[derive(Clone)]
pub(super) struct Table(Arc<Mutex<Waiters>>);

struct Waiters {
    all: Option<HashMap<u64, Waiting>>,
    rest: Rest,
}

/// Whether the cell is about to be silent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    No,
    /// That nothing more is heard is no end.
    Begun,
    /// Nothing more is heard.
    Silent,
}

impl Table {
    pub(super) fn new() -> Table {
        Table(Arc::new(Mutex::new(Waiters { all: Some(HashMap::new()), rest: Rest::No })))
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, look: impl FnOnce(&mut HashMap<u64, Waiting>) -> T) -> Option<T> {
        self.lock().all.as_mut().map(look)
    }

    /// Who waits, by number.
    pub(super) fn waiting(&self) -> Vec<u64> {
        self.with(|table| table.keys().copied().collect()).unwrap_or_default()
    }

    /// From here on that the cell falls silent is no end.
    pub(super) fn rest(&self) {
        self.lock().rest = Rest::Begun;
    }

    /// The rest is over: the cell is heard again, or else this is the end if it has fallen silent.
    pub(super) fn rise(&self, heard: bool) {
        let was = std::mem::replace(&mut self.lock().rest, Rest::No);
        if was == Rest::Silent && !heard {
            self.close();
        }
    }

    /// The cell has fallen silent.
    pub(super) fn silent(&self) {
        let mut waiters = self.lock();
        if waiters.rest == Rest::No {
            drop(waiters);
            self.close();
        } else {
            waiters.rest = Rest::Silent;
        }
    }

    pub(super) fn insert(&self, id: u64, waiting: Waiting) -> Result<(), Error> {
        self.with(|table| table.insert(id, waiting)).map(drop).ok_or(Error::Ended)
    }

    /// Nobody may wait for an answer that cannot come.
    pub(super) fn close(&self) {
        let left = self.lock().all.take();
        for waiting in left.into_iter().flat_map(HashMap::into_values) {
            if let Waiting::Stream(_, input) = waiting {
                input.close();
            }
        }
    }
}

/// What a cell that rests was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// A number from which on it has heard none.
    next: u64,
    /// Calls and commands that somebody waits for.
    open: Vec<u64>,
}

impl Default for Told {
    fn default() -> Told {
        Told { next: 1, open: Vec::new() }
    }
}

/// What is shared by all who speak with one cell.
pub(super) struct Link {
    pub(super) writer: Arc<tokio::sync::Mutex<Writer>>,
    pub(super) waiting: Table,
    next: AtomicU64,
    /// Wishes of those who cannot wait: calls that were dropped.
    cancels: mpsc::Sender<u64>,
}

impl Link {
    pub(super) fn new(writer: Sink, waiting: Table, told: &Told, cancels: mpsc::Sender<u64>) -> Link {
        for id in &told.open {
            // Nobody waits for them here. There is room for more than a cell takes on.
            let _ = cancels.try_send(*id);
        }
        let writer = Arc::new(tokio::sync::Mutex::new(Writer::new(writer)));
        Link { writer, waiting, next: AtomicU64::new(told.next), cancels }
    }

    /// What the cell was told so far.
    pub(super) fn told(&self) -> Told {
        Told { next: self.next.load(Ordering::Relaxed), open: self.waiting.waiting() }
    }

    /// A number that nobody has.
    pub(super) fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn forget(&self, id: u64) -> bool {
        self.waiting.with(|table| table.remove(&id).is_some()).unwrap_or(false)
    }

    /// Gives up what has this number, unless it is over.
    pub(super) fn cancel(&self, id: u64) {
        if self.forget(id) {
            // A full channel means that the sandbox is being torn down or is beyond help; either way it ends soon.
            let _ = self.cancels.try_send(id);
        }
    }

    pub(super) async fn send(&self, request: &Request, raw: &[u8]) -> Result<(), Error> {
        self.send_then(request, raw, || ()).await
    }

    /// Calls `committed` at the moment from which on the frame is sent even when this is cancelled; before, it never is.
    pub(super) async fn send_then(&self, request: &Request, raw: &[u8], committed: impl FnOnce()) -> Result<(), Error> {
        self.writer.lock().await.send(request, raw, committed).await
    }
}

/// Gives a call up when it is dropped before it was answered.
pub(super) struct Guard<'a> {
    pub(super) link: &'a Link,
    pub(super) id: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // One that was answered is not waited for any more.
        self.link.cancel(self.id);
    }
}

/// Hears the cell until it falls silent or talks nonsense.
pub(super) async fn listen(reader: Source, waiting: &Table) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(HEARD, reader);
    loop {
        let frame = frame(&mut reader).await?;
        let (reply, raw) = decode::<Reply>(&frame)?;
        match waiting.with(|table| tell(table, reply, raw)) {
            Some(told) => told?,
            None => return Ok(()),
        }
    }
}

fn tell(table: &mut HashMap<u64, Waiting>, reply: Reply, raw: &[u8]) -> io::Result<()> {
    let stream = |table: &mut HashMap<u64, Waiting>, id, heard| {
        if let Some(Waiting::Stream(sender, input)) = table.remove(&id) {
            input.close();
            let _ = sender.try_send(heard);
        }
    };
    match reply {
        Reply::Tool { id, content, is_error, cpu_us } => {
            if let Some(Waiting::Tool(sender)) = table.remove(&id) {
                let _ = sender.send(Said { content, is_error, cpu_us });
            }
        }
        Reply::Processes { id, processes } => {
            if let Some(Waiting::Processes(sender)) = table.remove(&id) {
                let _ = sender.send(processes);
            }
        }
        Reply::Resting { id } => {
            if let Some(Waiting::Rest(sender)) = table.remove(&id) {
                let _ = sender.send(());
            }
        }
        // Heard by whoever wakes it.
        Reply::Awake => {}
        Reply::Exit { id, end } => stream(table, id, Heard::Exit(end)),
        Reply::ExecFailed { id, message } => stream(table, id, Heard::Failed(message)),
        Reply::Output { id, stderr, offset } => {
            if let Some(Waiting::Stream(sender, _)) = table.get(&id) {
                let heard = Heard::Output { offset, stderr, bytes: raw.to_vec() };
                if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(heard) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "more output than its window allows"));
                }
            }
        }
        Reply::Taken { id, bytes } => {
            if let Some(Waiting::Stream(_, input)) = table.get(&id) {
                let room = (INPUT_WINDOW as usize).saturating_sub(input.available_permits());
                input.add_permits(usize::try_from(bytes).unwrap_or(room).min(room));
            }
        }
    }
    Ok(())
}
