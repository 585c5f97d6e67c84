//! A sandbox that is up: its tools, its commands and its files.

mod exec;
mod link;
mod patience;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use palisade_cell::egress::Sockets;
use palisade_cell::{Process, Request, Wanted};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedMutexGuard, RwLock, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub use exec::{CommandUsage, Connection, Exec, ExecRequest, ExitStatus, Input, Output};
pub use patience::within;

use crate::{Error, Report, Usage};
pub(crate) use link::Told;
use link::{Guard, Link, Table, Waiting, Writer, listen};

/// A call's own limit is kept inside; the worker waits this much longer before it takes the sandbox for dead.
const GRACE: Duration = Duration::from_secs(10);
/// A word to a sandbox that stands still is taken at once, unless there are many before it.
const AHEAD: Duration = Duration::from_millis(20);

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
    /// What it has used.
    pub usage: ToolUsage,
}

/// What a call has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ToolUsage {
    /// From the call to its result.
    pub wall: Duration,
    /// Processor time of the shell and of the commands that it waited for, in the kernel's steps of 10 ms. None for calls
    /// shorter than such a step, and for file tools.
    pub cpu: Option<Duration>,
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

    /// Writes all processes to an empty directory, for the driver to wake, and what their cell was told; then none of them
    /// runs any more.
    async fn hibernate(&self, to: &Path, told: Told) -> Result<(), Error> {
        let _ = (to, told);
        Err(Error::Awake)
    }

    /// Ends everything and waits until nothing is left, frozen or not.
    async fn end(self: Box<Self>) -> Result<(), Error>;
}

/// A sandbox. Dropping it ends everything in it.
pub struct Sandbox {
    link: Arc<Link>,
    listener: Mutex<JoinHandle<()>>,
    canceller: JoinHandle<()>,
    /// `None` once it has been destroyed, and while it is asleep.
    body: RwLock<Option<Box<dyn Body>>>,
    /// While it is asleep nobody can say anything to it.
    asleep: Mutex<Option<OwnedMutexGuard<Writer>>>,
    /// Since when everything stands still. What is waited for takes no time then.
    still: watch::Sender<Option<Instant>>,
    report: Report,
    network: Mutex<Option<Sockets>>,
}

/// A sandbox that was asleep on disk, as [`Driver::wake`](crate::Driver::wake) brings it back: either
/// [given to](Sandbox::wake) the one that it was, with all who wait for it, or [made a new one](Woken::into_sandbox).
#[derive(Debug)]
pub struct Woken {
    pub(crate) body: Box<dyn Body>,
    pub(crate) streams: Streams,
    pub(crate) report: Report,
    pub(crate) told: Told,
}

/// The two ways between the worker and a cell.
pub(crate) struct Streams {
    pub(crate) reader: Source,
    pub(crate) writer: Sink,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

impl Woken {
    /// A sandbox of its own. Whoever waited for the one that it was is gone, so what they waited for is given up: calls, and
    /// commands that are not detached. All else goes on.
    pub fn into_sandbox(self) -> Sandbox {
        Sandbox::speaking(self.body, self.streams, self.report, &self.told)
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("body", &self.body).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// A sandbox whose cell has said that it is up.
    pub(crate) fn new(body: Box<dyn Body>, reader: Source, writer: Sink, report: Report) -> Sandbox {
        Sandbox::speaking(body, Streams { reader, writer }, report, &Told::default())
    }

    fn speaking(body: Box<dyn Body>, streams: Streams, report: Report, told: &Told) -> Sandbox {
        let waiting = Table::new();
        let (cancels, mut wishes) = mpsc::channel(256);
        let link = Arc::new(Link::new(streams.writer, waiting.clone(), told, cancels));
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
        Sandbox {
            link,
            listener: Mutex::new(hear(streams.reader, waiting)),
            canceller,
            body: RwLock::new(Some(body)),
            asleep: Mutex::default(),
            still: watch::Sender::new(None),
            report,
            network: Mutex::default(),
        }
    }

    /// The same, with where its network leads to.
    pub(crate) fn leading_to(mut self, network: Option<Sockets>) -> Sandbox {
        self.network = Mutex::new(network);
        self
    }

    /// Where its network leads to, for a spec with [`egress`](crate::Spec::egress); once.
    pub fn network(&self) -> Option<Sockets> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What keeps it in.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The process id of its first process on the host, where the host can see it.
    pub fn pid(&self) -> Option<i32> {
        // Whoever ends it, or puts it to sleep, has taken it away.
        self.body.try_read().ok()?.as_ref()?.pid()
    }

    /// Stops every process of the sandbox; when this returns, none of them runs. Calls wait until [`Sandbox::thaw`].
    ///
    /// # Errors
    /// When the driver cannot do it here; then all of them run.
    pub async fn freeze(&self) -> Result<(), Error> {
        self.body.read().await.as_ref().ok_or(Error::Ended)?.freeze().await?;
        self.still.send_if_modified(|since| {
            let first = since.is_none();
            since.get_or_insert_with(Instant::now);
            first
        });
        Ok(())
    }

    /// Lets the processes go on.
    ///
    /// # Errors
    /// When the driver cannot do it.
    pub async fn thaw(&self) -> Result<(), Error> {
        let body = self.body.read().await;
        let body = body.as_ref().ok_or(Error::Ended)?;
        let since = *self.still.borrow();
        let ms = since.map_or(0, |since| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
        let stood = Request::Stood { ms };
        let mut told = false;
        if ms > 0 {
            // Before it can look at a clock. Where what was said before it has not been taken, it is said as soon as it can be.
            let early = self.link.send_then(&stood, &[], || told = true);
            let _ = tokio::time::timeout(AHEAD, early).await;
        }
        if told {
            // Should it not go on now, what was told is not told again.
            self.still.send_replace(Some(Instant::now()));
        }
        body.thaw().await?;
        self.still.send_replace(None);
        if ms > 0 && !told { self.link.send(&stood, &[]).await } else { Ok(()) }
    }

    /// Writes all processes to an empty directory, from which [`Driver::wake`](crate::Driver::wake) brings them back; nothing of
    /// the sandbox is left in memory. Until it is [woken](Sandbox::wake), whoever waits for something of it goes on waiting, and
    /// takes no time for it. Its directories must stay as they are.
    ///
    /// # Errors
    /// When the driver cannot do it, or the sandbox does not answer; then it goes on, unless it has ended.
    pub async fn hibernate(&self, to: &Path) -> Result<(), Error> {
        let mut body = self.body.write().await;
        let awake = body.as_ref().ok_or(Error::Ended)?;
        let mut writer = self.link.writer.clone().lock_owned().await;
        let id = self.link.id();
        let (sender, resting) = oneshot::channel();
        self.link.waiting.insert(id, Waiting::Rest(sender))?;
        writer.send(&Request::Rest { id }, &[], || ()).await?;
        self.link.waiting.rest();
        let wake = async |mut writer: OwnedMutexGuard<Writer>, why| {
            self.link.forget(id);
            // Where it was not at rest this is nothing to it.
            let _ = writer.send(&Request::Wake, &[], || ()).await;
            self.link.waiting.rise(false);
            Err(why)
        };
        match tokio::time::timeout(GRACE, resting).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return wake(writer, Error::Ended).await,
            Err(_) => return wake(writer, Error::Timeout(GRACE.as_secs())).await,
        }
        self.still.send_replace(Some(Instant::now()));
        if let Err(why) = awake.hibernate(to, self.link.told()).await {
            self.still.send_replace(None);
            return wake(writer, why).await;
        }
        self.lock_listener().abort();
        *self.asleep.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        match body.take() {
            Some(body) => body.end().await,
            None => Ok(()),
        }
    }

    /// Whether its processes are on disk.
    pub fn is_asleep(&self) -> bool {
        self.asleep.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Goes on as what was woken: whoever waits is answered by that.
    ///
    /// # Errors
    /// When it was not asleep, or has been destroyed. What was woken ends then.
    pub async fn wake(&self, woken: Woken) -> Result<(), Error> {
        let mut body = self.body.write().await;
        let writer = self.asleep.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut writer = writer.ok_or(Error::Ended)?;
        *writer = Writer::new(woken.streams.writer);
        self.link.waiting.rise(true);
        *self.lock_listener() = hear(woken.streams.reader, self.link.waiting.clone());
        *body = Some(woken.body);
        self.still.send_replace(None);
        Ok(())
    }

    fn lock_listener(&self) -> MutexGuard<'_, JoinHandle<()>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all processes of the sandbox have used so far.
    ///
    /// # Errors
    /// When the driver cannot say.
    pub async fn usage(&self) -> Result<Usage, Error> {
        self.body.read().await.as_ref().ok_or(Error::Ended)?.usage().await
    }

    /// Runs a tool. Dropping the future gives the call up: a running command is killed with all that it started.
    ///
    /// # Errors
    /// When the sandbox has ended. What goes wrong inside a tool is its result.
    pub async fn tool(&self, call: ToolCall) -> Result<ToolOutput, Error> {
        let began = Instant::now();
        let id = self.link.id();
        let (sender, answer) = oneshot::channel();
        self.link.waiting.insert(id, Waiting::Tool(sender))?;
        let _guard = Guard { link: &self.link, id };
        let timeout_ms = u64::try_from(call.timeout.as_millis()).unwrap_or(u64::MAX);
        self.link.send(&Request::Tool { id, name: call.name, input: call.input, timeout_ms }, &[]).await?;
        let limit = call.timeout.saturating_add(GRACE);
        let said = within(limit, self.still.subscribe(), Option::is_some, answer).await;
        let said = said.ok_or(Error::Timeout(call.timeout.as_secs()))?.map_err(|_| Error::Ended)?;
        let usage = ToolUsage { wall: began.elapsed(), cpu: said.cpu_us.map(Duration::from_micros) };
        Ok(ToolOutput { content: said.content, is_error: said.is_error, usage })
    }

    /// Starts a command.
    ///
    /// # Errors
    /// When the sandbox has ended. A program that cannot be started is told by [`Exec::next`].
    pub async fn exec(&self, request: ExecRequest) -> Result<Exec, Error> {
        let timeout_ms = request.timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis().max(1)).unwrap_or(0));
        self.start(Wanted {
            id: self.link.id(),
            argv: request.argv,
            own: false,
            env: request.env,
            cwd: request.cwd.unwrap_or_default(),
            stdin: request.stdin,
            tty: request.tty,
            detach: request.detach,
            label: request.label,
            uid: request.uid,
            timeout_ms,
            output_bytes: request.output_limit.map_or(0, |limit| limit.max(1)),
        })
        .await
    }

    async fn start(&self, wanted: Wanted) -> Result<Exec, Error> {
        let exec = Exec::expect(&self.link, wanted.id, wanted.id, 0)?;
        self.link.send(&Request::Exec(Box::new(wanted)), &[]).await?;
        Ok(exec)
    }

    /// Listens to a command that somebody has started, from the byte at `from` on, or from the first that is kept. With
    /// `hold` the command waits for this listener; without, a listener that does not keep up loses output and is told so.
    ///
    /// # Errors
    /// When the sandbox has ended. That there is no such command is told by [`Exec::next`].
    pub async fn attach(&self, process: u64, from: Option<u64>, hold: bool) -> Result<Exec, Error> {
        let id = self.link.id();
        let exec = Exec::expect(&self.link, id, process, from.unwrap_or(0))?;
        self.link.send(&Request::Attach { id, process, from, hold }, &[]).await?;
        Ok(exec)
    }

    /// Which processes there are: commands first, those that are detached and have ended included.
    ///
    /// # Errors
    /// When the sandbox has ended or does not answer.
    pub async fn processes(&self) -> Result<Vec<Process>, Error> {
        let id = self.link.id();
        let (sender, answer) = oneshot::channel();
        self.link.waiting.insert(id, Waiting::Processes(sender))?;
        let _guard = Guard { link: &self.link, id };
        self.link.send(&Request::Processes { id }, &[]).await?;
        let answer = tokio::time::timeout(GRACE, answer).await.map_err(|_| Error::Timeout(GRACE.as_secs()))?;
        answer.map_err(|_| Error::Ended)
    }

    /// Sends a signal to a command's process group, and to the one in the foreground of its terminal. Without effect when
    /// the command has ended.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn signal(&self, process: u64, signal: i32) -> Result<(), Error> {
        self.link.send(&Request::Signal { id: process, signal }, &[]).await
    }

    /// Connects to a TCP port of the sandbox's own loopback device.
    ///
    /// # Errors
    /// When nobody listens there, or the sandbox has ended.
    pub async fn connect(&self, port: u16) -> Result<Connection, Error> {
        let id = self.link.id();
        let mut exec = Exec::expect(&self.link, id, id, 0)?;
        self.link.send(&Request::Connect { id, port }, &[]).await?;
        let made = tokio::time::timeout(GRACE, exec.next()).await.map_err(|_| Error::Timeout(GRACE.as_secs()))?;
        match made {
            Ok(_) => Ok(Connection(exec)),
            Err(Error::Exec(reason)) => Err(Error::Connect { port, reason }),
            Err(why) => Err(why),
        }
    }

    /// Unpacks a tar stream, the command's input, at a path of the sandbox: inside it when it is a directory, else under its
    /// last name. The cell's program does it, under the sandbox's own user; what it cannot do is on standard error.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn copy_in(&self, path: &str) -> Result<Exec, Error> {
        self.copy("unpack", path, true).await
    }

    /// Packs what is at a path of the sandbox into a tar stream, the command's standard output.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn copy_out(&self, path: &str) -> Result<Exec, Error> {
        self.copy("pack", path, false).await
    }

    async fn copy(&self, word: &str, path: &str, stdin: bool) -> Result<Exec, Error> {
        let argv = vec!["palisade-copy".to_owned(), word.to_owned(), path.to_owned()];
        let label = format!("{word} {path}");
        self.start(Wanted { id: self.link.id(), argv, own: true, stdin, label, ..Wanted::default() }).await
    }

    /// Ends the sandbox and everything in it, whoever else holds on to it, and waits until it is gone. What is asked of it
    /// afterwards fails with [`Error::Ended`].
    ///
    /// # Errors
    /// When an engine whose help is needed cannot be reached or refuses.
    pub async fn destroy(&self) -> Result<(), Error> {
        self.hang_up();
        let body = self.body.write().await.take();
        match body {
            Some(body) => body.end().await,
            None => Ok(()),
        }
    }

    fn hang_up(&self) {
        self.canceller.abort();
        self.lock_listener().abort();
        self.link.waiting.close();
        // What they wait to say goes nowhere.
        self.asleep.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Hears a cell until it falls silent.
fn hear(reader: Source, waiting: Table) -> JoinHandle<()> {
    tokio::spawn(async move {
        // However it ends, nobody may wait for an answer that cannot come.
        let _ = listen(reader, &waiting).await;
        waiting.silent();
    })
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.hang_up();
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use palisade_cell::{Reply, encode};
    use tokio::io::AsyncWriteExt as _;
    use tokio::sync::Semaphore;

    use super::link::FRAMES;
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
        let output = |raw: &[u8]| encode(&Reply::Output { id: 1, stderr: false, offset: 0 }, raw).unwrap();
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
            let table = Table::new();
            table.insert(1, Waiting::Stream(sender, input)).unwrap();
            let (_, mut theirs) = theirs.into_split();
            let speak = async move { theirs.write_all(&said).await };
            let (heard, _) = tokio::join!(listen(Box::new(reader), &table), speak);
            assert_eq!(heard.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
