//! Commands in a sandbox, those who listen to them, and connections to its ports.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use palisade_cell::{End, INPUT_WINDOW, OUTPUT_WINDOW, Request, Size, charge};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

use super::link::{FRAMES, Heard, Link, Waiting};
use crate::Error;

/// What was taken is told in portions: each telling wakes the cell up.
const PORTION: u64 = OUTPUT_WINDOW / 4;
/// Input that is sent at a time.
const PIECE: usize = 64 << 10;

/// A command to run.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables on top of the sandbox's own.
    pub env: Vec<(String, String)>,
    /// The working directory; `/workspace` unless told.
    pub cwd: Option<String>,
    /// Whether it gets input; else its input is empty. With a terminal it always does.
    pub stdin: bool,
    /// A terminal for it, of this size.
    pub tty: Option<Size>,
    /// Whether it goes on when its [`Exec`] is dropped. What it then writes is kept as far as 256 KiB go.
    pub detach: bool,
    /// What people call it.
    pub label: String,
    /// The user that it is to run as. Only the sandbox's own is possible; another is refused.
    pub uid: Option<u32>,
    /// The most time it may take.
    pub timeout: Option<Duration>,
    /// The most that it may write to both streams together, in bytes; it is killed when it writes more.
    pub output_limit: Option<u64>,
}

/// How a command ended, and what it has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether its time had run out.
    pub timed_out: bool,
    /// Whether it had written more than it was allowed to.
    pub output_exceeded: bool,
    /// What it has used.
    pub usage: CommandUsage,
}

/// What a command, and those of its children that it had waited for, have used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommandUsage {
    /// From its start to its end.
    pub wall: Duration,
    /// Processor time in programs.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// The most memory that one process held, in KiB.
    pub max_rss_kib: u64,
}

impl From<End> for ExitStatus {
    fn from(end: End) -> ExitStatus {
        ExitStatus {
            code: end.code,
            signal: end.signal,
            timed_out: end.timed_out,
            output_exceeded: end.output_exceeded,
            usage: CommandUsage {
                wall: Duration::from_micros(end.wall_us),
                user: Duration::from_micros(end.user_us),
                system: Duration::from_micros(end.system_us),
                max_rss_kib: end.max_rss_kib,
            },
        }
    }
}

/// Output of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// From its standard output, or from its terminal.
    Stdout(Vec<u8>),
    /// From its standard error.
    Stderr(Vec<u8>),
    /// So many bytes are missing here: they fell out before this listener could be sent them.
    Lost(u64),
}

/// A command that runs, as its starter or somebody attached to it hears it. Dropping the starter's kills the command unless
/// it is detached; dropping another's only ends the listening.
pub struct Exec {
    link: Arc<Link>,
    id: u64,
    process: u64,
    heard: mpsc::Receiver<Heard>,
    /// What may still be sent as input.
    input: Arc<Semaphore>,
    /// What was taken and has not been told.
    taken: u64,
    offset: u64,
    after_gap: Option<Output>,
    status: Option<ExitStatus>,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").field("process", &self.process).finish_non_exhaustive()
    }
}

impl Exec {
    /// Waits under `id` for what is said of `process`, of which `offset` bytes are known.
    pub(super) fn expect(link: &Arc<Link>, id: u64, process: u64, offset: u64) -> Result<Exec, Error> {
        // The cell sends no more than its window, so this many frames never fill up.
        let (sender, heard) = mpsc::channel(FRAMES);
        let input = Arc::new(Semaphore::new(INPUT_WINDOW as usize));
        link.waiting.insert(id, Waiting::Stream(sender, input.clone()))?;
        // From here on dropping it takes everything back.
        let link = link.clone();
        Ok(Exec { link, id, process, heard, input, taken: 0, offset, after_gap: None, status: None })
    }

    /// The command's number in its sandbox, by which others attach to it and signal it.
    pub fn process(&self) -> u64 {
        self.process
    }

    /// The offset of the next byte of output: who attaches from there misses nothing and gets nothing twice.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next piece of output; none when the command has ended. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When the command could not be started or attached to, or the sandbox has ended.
    pub async fn next(&mut self) -> Result<Option<Output>, Error> {
        if let Some(output) = self.after_gap.take() {
            return Ok(Some(output));
        }
        if self.status.is_some() {
            return Ok(None);
        }
        // Only what has been taken may be followed by more: a slow reader slows the command down.
        if self.taken >= PORTION {
            let window = Request::Window { id: self.id, bytes: self.taken };
            let taken = &mut self.taken;
            self.link.send_then(&window, &[], || *taken = 0).await?;
        }
        match self.heard.recv().await {
            Some(Heard::Output { offset, stderr, bytes }) => {
                self.taken += charge(bytes.len());
                let lost = offset.saturating_sub(self.offset);
                self.offset = offset + bytes.len() as u64;
                let output = if stderr { Output::Stderr(bytes) } else { Output::Stdout(bytes) };
                if lost == 0 {
                    return Ok(Some(output));
                }
                self.after_gap = Some(output);
                Ok(Some(Output::Lost(lost)))
            }
            Some(Heard::Exit(end)) => {
                self.status = Some(end.into());
                Ok(None)
            }
            Some(Heard::Failed(message)) => {
                self.status = Some(ExitStatus::default());
                Err(Error::Exec(message))
            }
            None => Err(Error::Ended),
        }
    }

    /// Reads all output and says how the command ended: its status, standard output and standard error.
    ///
    /// # Errors
    /// When the command could not be started or the sandbox has ended.
    pub async fn wait(mut self) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), Error> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(output) = self.next().await? {
            match output {
                Output::Stdout(bytes) => out.extend_from_slice(&bytes),
                Output::Stderr(bytes) => err.extend_from_slice(&bytes),
                Output::Lost(_) => {}
            }
        }
        Ok((self.status.ok_or(Error::Ended)?, out, err))
    }

    /// How the command ended, once [`Exec::next`] has said that it has.
    pub fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// Somebody who writes to the command and signals it, while another reads.
    pub fn input(&self) -> Input {
        Input { link: self.link.clone(), id: self.id, input: self.input.clone() }
    }

    /// Sends input; see [`Input::write`].
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        self.input().write(bytes).await
    }

    /// Ends the input; see [`Input::close`].
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        self.input().close().await
    }

    /// Sends a signal; see [`Input::signal`].
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.input().signal(signal).await
    }

    /// Gives the command's terminal another size.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn resize(&self, size: Size) -> Result<(), Error> {
        self.input().resize(size).await
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.link.cancel(self.id);
        }
    }
}

/// The way to a command. It outlives the command, and is without effect then.
#[derive(Clone)]
pub struct Input {
    link: Arc<Link>,
    id: u64,
    input: Arc<Semaphore>,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").finish_non_exhaustive()
    }
}

impl Input {
    /// Sends input; waits while the command has not taken what was sent before. What a command does not read any more is
    /// thrown away: its status says the rest.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(PIECE) {
            let wanted = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            // Closed when the command has ended.
            let Ok(permits) = self.input.acquire_many(wanted).await else { return Ok(()) };
            // Given back when this is cancelled before the piece is sent.
            self.link.send_then(&Request::Stdin { id: self.id }, piece, || permits.forget()).await?;
        }
        Ok(())
    }

    /// Ends the input. To a terminal that is an end-of-input character.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn close(&self) -> Result<(), Error> {
        self.link.send(&Request::Stdin { id: self.id }, &[]).await
    }

    /// Sends a signal to the command's process group, and to the one in the foreground of its terminal.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.link.send(&Request::Signal { id: self.id, signal }, &[]).await
    }

    /// Gives the command's terminal another size.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn resize(&self, size: Size) -> Result<(), Error> {
        self.link.send(&Request::Resize { id: self.id, size }, &[]).await
    }
}

/// A connection to a port inside a sandbox. Dropping it closes it.
#[derive(Debug)]
pub struct Connection(pub(super) Exec);

impl Connection {
    /// Carries bytes both ways until the sandbox's side closes or `stream` fails. The end of what `stream` sends is passed on.
    ///
    /// # Errors
    /// When the sandbox has ended. A failure of `stream` is an end like another.
    pub async fn relay(mut self, stream: impl AsyncRead + AsyncWrite) -> Result<(), Error> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let input = self.0.input();
        let inwards = async move {
            let mut buffer = vec![0; 16 << 10];
            loop {
                match reader.read(&mut buffer).await {
                    Ok(0) => {
                        input.close().await?;
                        // What comes back decides when it is over.
                        return std::future::pending::<Result<(), Error>>().await;
                    }
                    Ok(read) => input.write(&buffer[..read]).await?,
                    Err(_) => return Ok(()),
                }
            }
        };
        let outwards = async {
            while let Some(output) = self.0.next().await? {
                if let Output::Stdout(bytes) | Output::Stderr(bytes) = output
                    && writer.write_all(&bytes).await.is_err()
                {
                    return Ok(());
                }
            }
            let _ = writer.shutdown().await;
            Ok(())
        };
        tokio::select! {
            done = inwards => done,
            done = outwards => done,
        }
    }
}
