//! A sandbox that is up: its tools and commands.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use palisade_cell::{INPUT_WINDOW, LEAST_CHARGE, OUTPUT_WINDOW, Reply, Request, charge, check_length, decode, encode};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::{Error, Report, Usage};

/// A call's own limit is kept inside; the worker waits this much longer before it takes the sandbox for dead.
const GRACE: Duration = Duration::from_secs(10);

/// A call of one of the six tools.
#[derive(Debug, Clone)]
pub struct ToolCall {
    /// `bash`, `read`, `write`, `edit`, `glob` or `grep`.
    pub name: String,
    /// Its input.
    pub input: Value,
    /// The most time it may take.
    pub timeout: Duration,
}

/// A tool's result.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolOutput {
    /// Blocks of content, as the API has them.
    pub content: Vec<Value>,
    /// Whether it failed.
    pub is_error: bool,
}

/// A command to run.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables on top of the sandbox's own.
    pub env: Vec<(String, String)>,
    /// The working directory; `/workspace` unless told.
    pub cwd: Option<String>,
    /// Whether it gets input; else its input is empty.
    pub stdin: bool,
    /// The most time it may take.
    pub timeout: Option<Duration>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether its time had run out.
    pub timed_out: bool,
}

/// Output of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// From its standard output.
    Stdout(Vec<u8>),
    /// From its standard error.
    Stderr(Vec<u8>),
}

enum Waiting {
    Tool(oneshot::Sender<ToolOutput>),
    Exec(mpsc::Sender<Heard>, Arc<Semaphore>),
}

enum Heard {
    Output(Output),
    Exit(ExitStatus),
    Failed(String),
}

/// Frames of output that one window allows, and the end.
const FRAMES: usize = (OUTPUT_WINDOW / LEAST_CHARGE) as usize + 1;

/// The sending half. A sender that gives up midway leaves its frame's rest here, so that the next one finishes it.
struct Writer {
    half: Sink,
    frame: Vec<u8>,
    sent: usize,
}

impl Writer {
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

type Table = Arc<Mutex<Option<HashMap<u64, Waiting>>>>;

struct Link {
    writer: tokio::sync::Mutex<Writer>,
    waiting: Table,
    next: AtomicU64,
    /// Wishes of those who cannot wait: calls that were dropped.
    cancels: mpsc::Sender<u64>,
}

/// Where a cell is heard.
pub(crate) type Source = Box<dyn AsyncRead + Send + Unpin>;
/// Where a cell hears.
pub(crate) type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// What a driver holds of a sandbox from outside. Dropping it ends the sandbox.
#[async_trait]
pub(crate) trait Body: fmt::Debug + Send + Sync {
    /// The host's number of the sandbox's first process, where the host can see it.
    fn pid(&self) -> Option<i32>;

    /// Stops every process; when this returns, none of them runs.
    async fn freeze(&self) -> Result<(), Error>;

    /// Lets them go on.
    async fn thaw(&self) -> Result<(), Error>;

    /// What all of them have used so far.
    async fn usage(&self) -> Result<Usage, Error>;

    /// Ends everything and waits until nothing is left, frozen or not.
    async fn end(self: Box<Self>) -> Result<(), Error>;
}

/// A sandbox. Dropping it ends everything in it.
pub struct Sandbox {
    link: Arc<Link>,
    tasks: [JoinHandle<()>; 2],
    body: Option<Box<dyn Body>>,
    report: Report,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("body", &self.body).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// A sandbox whose cell has said that it is up.
    pub(crate) fn new(body: Box<dyn Body>, reader: Source, writer: Sink, report: Report) -> Sandbox {
        let waiting: Table = Arc::new(Mutex::new(Some(HashMap::new())));
        let (cancels, mut wishes) = mpsc::channel(256);
        let link = Arc::new(Link {
            writer: tokio::sync::Mutex::new(Writer { half: writer, frame: Vec::new(), sent: 0 }),
            waiting: waiting.clone(),
            next: AtomicU64::new(1),
            cancels,
        });
        let listener = tokio::spawn(async move {
            // However it ends, nobody may wait for an answer that cannot come.
            let _ = listen(reader, &waiting).await;
            let left = waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
            for waiting in left.into_iter().flat_map(HashMap::into_values) {
                if let Waiting::Exec(_, input) = waiting {
                    input.close();
                }
            }
        });
        let canceller = {
            let link = Arc::downgrade(&link);
            tokio::spawn(async move {
                while let Some(id) = wishes.recv().await {
                    let Some(link) = link.upgrade() else { return };
                    if link.send(&Request::Cancel { id }, &[]).await.is_err() {
                        return;
                    }
                }
            })
        };
        Sandbox { link, tasks: [listener, canceller], body: Some(body), report }
    }

    /// What keeps it in.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The process id of its first process on the host, where the host can see it.
    pub fn pid(&self) -> Option<i32> {
        self.body.as_ref().and_then(|body| body.pid())
    }

    /// Stops every process of the sandbox; when this returns, none of them runs. Calls wait until [`Sandbox::thaw`].
    ///
    /// # Errors
    /// When the driver cannot do it here; then all of them run.
    pub async fn freeze(&self) -> Result<(), Error> {
        self.body()?.freeze().await
    }

    /// Lets the processes go on.
    ///
    /// # Errors
    /// When the driver cannot do it.
    pub async fn thaw(&self) -> Result<(), Error> {
        self.body()?.thaw().await
    }

    /// What all processes of the sandbox have used so far.
    ///
    /// # Errors
    /// When the driver cannot say.
    pub async fn usage(&self) -> Result<Usage, Error> {
        self.body()?.usage().await
    }

    fn body(&self) -> Result<&dyn Body, Error> {
        self.body.as_deref().ok_or(Error::Ended)
    }

    /// Runs a tool. Dropping the future gives the call up: a running command is killed with all that it started.
    ///
    /// # Errors
    /// When the sandbox has ended. What goes wrong inside a tool is its result.
    pub async fn tool(&self, call: ToolCall) -> Result<ToolOutput, Error> {
        let id = self.link.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.link.expect(id, Waiting::Tool(sender))?;
        let mut guard = Guard { link: &self.link, id, armed: true };
        let timeout_ms = u64::try_from(call.timeout.as_millis()).unwrap_or(u64::MAX);
        self.link.send(&Request::Tool { id, name: call.name, input: call.input, timeout_ms }, &[]).await?;
        let output = tokio::time::timeout(call.timeout.saturating_add(GRACE), answer).await;
        match output {
            Ok(Ok(output)) => {
                guard.armed = false;
                Ok(output)
            }
            Ok(Err(_)) => {
                guard.armed = false;
                Err(Error::Ended)
            }
            Err(_) => Err(Error::Timeout(call.timeout.as_secs())),
        }
    }

    /// Starts a command.
    ///
    /// # Errors
    /// When the sandbox has ended. A program that cannot be started is told by [`Exec::next`].
    pub async fn exec(&self, request: ExecRequest) -> Result<Exec, Error> {
        let id = self.link.next.fetch_add(1, Ordering::Relaxed);
        // The cell sends no more than its window, so this many frames never fill up.
        let (sender, heard) = mpsc::channel(FRAMES);
        let input = Arc::new(Semaphore::new(INPUT_WINDOW as usize));
        self.link.expect(id, Waiting::Exec(sender, input.clone()))?;
        // From here on dropping it takes everything back.
        let exec = Exec { link: self.link.clone(), id, heard, input, status: None };
        let timeout_ms = request.timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis().max(1)).unwrap_or(0));
        let message = Request::Exec {
            id,
            argv: request.argv,
            env: request.env,
            cwd: request.cwd.unwrap_or_default(),
            stdin: request.stdin,
            timeout_ms,
        };
        self.link.send(&message, &[]).await?;
        Ok(exec)
    }

    /// Ends the sandbox and everything in it, and waits until it is gone.
    ///
    /// # Errors
    /// When an engine whose help is needed cannot be reached or refuses.
    pub async fn destroy(mut self) -> Result<(), Error> {
        for task in &self.tasks {
            task.abort();
        }
        match self.body.take() {
            Some(body) => body.end().await,
            None => Ok(()),
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Link {
    fn expect(&self, id: u64, waiting: Waiting) -> Result<(), Error> {
        let mut table = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        table.as_mut().ok_or(Error::Ended)?.insert(id, waiting);
        Ok(())
    }

    fn forget(&self, id: u64) -> bool {
        let mut table = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        table.as_mut().is_some_and(|table| table.remove(&id).is_some())
    }

    async fn send(&self, request: &Request, raw: &[u8]) -> Result<(), Error> {
        let frame = encode(request, raw).map_err(Error::Protocol)?;
        let mut writer = self.writer.lock().await;
        writer.flush().await.map_err(|_| Error::Ended)?;
        writer.frame = frame;
        writer.flush().await.map_err(|_| Error::Ended)
    }
}

struct Guard<'a> {
    link: &'a Link,
    id: u64,
    armed: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.armed && self.link.forget(self.id) {
            // A full channel means that the sandbox is being torn down or is beyond help; either way it ends soon.
            let _ = self.link.cancels.try_send(self.id);
        }
    }
}

async fn listen(mut reader: Source, waiting: &Table) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        reader.read_exact(&mut length).await?;
        let mut frame = vec![0; check_length(length)?];
        reader.read_exact(&mut frame).await?;
        let (reply, raw) = decode::<Reply>(&frame)?;
        let (id, last) = match &reply {
            Reply::Tool { id, .. } | Reply::Exit { id, .. } | Reply::ExecFailed { id, .. } => (*id, true),
            Reply::Output { id, .. } | Reply::Taken { id, .. } => (*id, false),
        };
        let mut table = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(table) = table.as_mut() else { return Ok(()) };
        if last {
            let waiting = table.remove(&id);
            if let Some(Waiting::Exec(_, input)) = &waiting {
                input.close();
            }
            match (waiting, reply) {
                (Some(Waiting::Tool(sender)), Reply::Tool { content, is_error, .. }) => {
                    let _ = sender.send(ToolOutput { content, is_error });
                }
                (Some(Waiting::Exec(sender, _)), Reply::Exit { code, signal, timed_out, .. }) => {
                    let _ = sender.try_send(Heard::Exit(ExitStatus { code, signal, timed_out }));
                }
                (Some(Waiting::Exec(sender, _)), Reply::ExecFailed { message, .. }) => {
                    let _ = sender.try_send(Heard::Failed(message));
                }
                _ => {}
            }
        } else if let Some(Waiting::Exec(sender, input)) = table.get(&id) {
            match reply {
                Reply::Output { stderr, .. } => {
                    let bytes = raw.to_vec();
                    let output = if stderr { Output::Stderr(bytes) } else { Output::Stdout(bytes) };
                    if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(Heard::Output(output)) {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "more output than its window allows"));
                    }
                }
                Reply::Taken { bytes, .. } => {
                    let room = (INPUT_WINDOW as usize).saturating_sub(input.available_permits());
                    input.add_permits(usize::try_from(bytes).unwrap_or(room).min(room));
                }
                _ => {}
            }
        }
    }
}

/// A command that runs. Dropping it kills it.
pub struct Exec {
    link: Arc<Link>,
    id: u64,
    heard: mpsc::Receiver<Heard>,
    /// What may still be sent as input.
    input: Arc<Semaphore>,
    status: Option<ExitStatus>,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Exec {
    /// The next piece of output; none when the command has ended.
    ///
    /// # Errors
    /// When the command could not be started or the sandbox has ended.
    pub async fn next(&mut self) -> Result<Option<Output>, Error> {
        if self.status.is_some() {
            return Ok(None);
        }
        match self.heard.recv().await {
            Some(Heard::Output(output)) => {
                let (Output::Stdout(bytes) | Output::Stderr(bytes)) = &output;
                // Only what has been taken may be followed by more: a slow reader slows the command down.
                self.link.send(&Request::Window { id: self.id, bytes: charge(bytes.len()) }, &[]).await?;
                Ok(Some(output))
            }
            Some(Heard::Exit(status)) => {
                self.status = Some(status);
                Ok(None)
            }
            Some(Heard::Failed(message)) => {
                self.status = Some(ExitStatus { code: None, signal: None, timed_out: false });
                Err(Error::Exec(message))
            }
            None => Err(Error::Ended),
        }
    }

    /// Reads all output and says how the command ended.
    ///
    /// # Errors
    /// When the command could not be started or the sandbox has ended.
    pub async fn wait(mut self) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), Error> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(output) = self.next().await? {
            match output {
                Output::Stdout(bytes) => out.extend_from_slice(&bytes),
                Output::Stderr(bytes) => err.extend_from_slice(&bytes),
            }
        }
        Ok((self.status.ok_or(Error::Ended)?, out, err))
    }

    /// How the command ended, once [`Exec::next`] has said that it has.
    pub fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// Sends input; waits while the command has not taken what was sent before. What a command does not read any more is
    /// thrown away: its status says the rest.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(64 << 10) {
            let wanted = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            // Closed when the command has ended.
            let Ok(permits) = self.input.acquire_many(wanted).await else { return Ok(()) };
            permits.forget();
            self.link.send(&Request::Stdin { id: self.id }, piece).await?;
        }
        Ok(())
    }

    /// Ends the input.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        self.link.send(&Request::Stdin { id: self.id }, &[]).await
    }

    /// Sends a signal to the command's process group.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.link.send(&Request::Signal { id: self.id, signal }, &[]).await
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if self.status.is_none() && self.link.forget(self.id) {
            let _ = self.link.cancels.try_send(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Driver, Native, Options, Spec};

    fn call() -> ToolCall {
        let input = serde_json::json!({"command": "echo hi"});
        ToolCall { name: "bash".to_owned(), input, timeout: Duration::from_secs(10) }
    }

    #[tokio::test]
    async fn a_malformed_frame_ends_the_cell() {
        for frame in [&[0u8; 8][..], &[0xff; 16], &[8, 0, 0, 0, 9, 0, 0, 0, 1, 2, 3, 4], b"\x08\0\0\0\x04\0\0\0null"] {
            let home = tempfile::tempdir().unwrap();
            std::fs::create_dir(home.path().join("outputs")).unwrap();
            let spec = Spec::new(home.path(), home.path().join("outputs"));
            let sandbox = Native::new(Options::default()).create(spec).await.unwrap();
            assert_eq!(sandbox.tool(call()).await.unwrap().content[0]["text"], "hi");
            sandbox.link.writer.lock().await.half.write_all(frame).await.unwrap();
            let after = sandbox.tool(call()).await;
            assert!(matches!(after, Err(Error::Ended)), "{after:?}");
            sandbox.destroy().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_cell_that_talks_nonsense_is_not_listened_to() {
        let output = |raw: &[u8]| encode(&Reply::Output { id: 1, stderr: false }, raw).unwrap();
        let header = |text: &str| {
            let mut frame = (u32::try_from(text.len()).unwrap() + 4).to_le_bytes().to_vec();
            frame.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
            frame.extend(text.as_bytes());
            frame
        };
        for said in [
            vec![0; 64],
            vec![0xff; 64],
            header("{}"),
            header("nonsense"),
            header(r#"{"op":"exit","id":"one"}"#),
            header(&format!(r#"{{"op":"tool","id":2,"is_error":false,"content":{}"#, "[".repeat(200))),
            // More than the window allows.
            output(b"x").repeat(FRAMES + 1),
        ] {
            let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
            let (reader, _writer) = ours.into_split();
            let (sender, _heard) = mpsc::channel(FRAMES);
            let input = Arc::new(Semaphore::new(0));
            let waiting = Waiting::Exec(sender, input);
            let table: Table = Arc::new(Mutex::new(Some(HashMap::from([(1, waiting)]))));
            let (_, mut theirs) = theirs.into_split();
            let speak = async move { theirs.write_all(&said).await };
            let (heard, _) = tokio::join!(listen(Box::new(reader), &table), speak);
            assert_eq!(heard.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
