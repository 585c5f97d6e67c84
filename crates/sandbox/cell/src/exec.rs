//! Commands: their output as it comes, their input, signals, and their end. One thread attends to each.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use palisade_cell::{LEAST_CHARGE, OUTPUT_WINDOW, Reply, charge};

use crate::reaper::{self, Ended, Started};
use crate::serve::Link;
use crate::sys::{self, Event, interest};

/// After a command has ended, others may hold its pipes: they are listened to no longer than this …
const DRAIN: Duration = Duration::from_millis(200);
/// … and for no more than this, which is what two pipes can hold at most.
const DRAIN_BYTES: usize = 2 << 20;
const BUFFER: usize = 32 << 10;

/// A running command, as others see it.
pub(crate) struct Running {
    pid: i32,
    wake: Event,
    wishes: Mutex<Wishes>,
}

/// What others want of the thread that attends to a command.
struct Wishes {
    input: Vec<u8>,
    close_input: bool,
    window: u64,
    kill: bool,
    over: bool,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn signal(&self, signal: i32) {
        let wishes = self.lock();
        if !wishes.over {
            sys::kill(-self.pid, signal);
        }
    }

    pub(crate) fn kill(&self) {
        self.lock().kill = true;
        self.wake.raise();
    }

    /// Input for the command; none ends it. The sender keeps to its window, so this stays small.
    pub(crate) fn write(&self, bytes: &[u8]) {
        let mut wishes = self.lock();
        wishes.input.extend_from_slice(bytes);
        wishes.close_input |= bytes.is_empty();
        self.wake.raise();
    }

    pub(crate) fn open_window(&self, bytes: u64) {
        let mut wishes = self.lock();
        wishes.window = wishes.window.saturating_add(bytes).min(OUTPUT_WINDOW);
        self.wake.raise();
    }
}

/// What is to be run.
pub(crate) struct Wanted {
    pub(crate) id: u64,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) stdin: bool,
    pub(crate) timeout_ms: u64,
}

/// Starts a command. It is answered through `link`.
pub(crate) fn start(wanted: Wanted, base: &[(String, String)], link: &Arc<Link>) -> io::Result<Arc<Running>> {
    let (program, arguments) = wanted.argv.split_first().ok_or_else(|| io::Error::other("argv is empty"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(base.iter().map(|(name, value)| (name, value)))
        .envs(wanted.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&wanted.cwd)
        .stdin(if wanted.stdin { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let wake = Event::new()?;
    let started = reaper::spawn(&mut command)?;
    let pid = started.pid;
    let wishes = Wishes { input: Vec::new(), close_input: false, window: OUTPUT_WINDOW, kill: false, over: false };
    let running = Arc::new(Running { pid, wake, wishes: Mutex::new(wishes) });
    let (link, shared) = (link.clone(), running.clone());
    let thread = std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
        let id = wanted.id;
        let (ended, timed_out) = attend(started, &wanted, &shared, &link);
        shared.lock().over = true;
        link.forget(id);
        link.send(&Reply::Exit { id, code: ended.code, signal: ended.signal, timed_out }, &[]);
    });
    if let Err(why) = thread {
        reaper::kill_tree(pid);
        return Err(why);
    }
    Ok(running)
}

/// A command's streams, as far as they are open.
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Streams {
    fn of(started: &mut Started) -> Streams {
        let streams = Streams {
            stdin: started.child.stdin.take().map(Into::into),
            stdout: started.child.stdout.take().map(Into::into),
            stderr: started.child.stderr.take().map(Into::into),
        };
        for fd in [&streams.stdin, &streams.stdout, &streams.stderr].into_iter().flatten() {
            // A pipe that was just made has no way to refuse; if it did, only this command would wait.
            let _ = sys::nonblocking(fd);
        }
        streams
    }
}

/// Attends to a command until it has ended and what it wrote has been sent.
fn attend(mut started: Started, wanted: &Wanted, running: &Running, link: &Link) -> (Ended, bool) {
    let mut streams = Streams::of(&mut started);
    let deadline = (wanted.timeout_ms > 0).then(|| Instant::now() + Duration::from_millis(wanted.timeout_ms));
    let mut buffer = vec![0; BUFFER];
    let (mut timed_out, mut killed) = (false, false);
    let mut ended: Option<Ended> = None;
    let (mut drain_until, mut drained) = (Instant::now(), 0);
    loop {
        if streams.stdin.is_none() {
            discard(wanted.id, running, link);
        }
        let (window, input, kill) = {
            let wishes = running.lock();
            (wishes.window, !wishes.input.is_empty() || wishes.close_input, wishes.kill)
        };
        timed_out |= ended.is_none() && deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if (kill || timed_out) && !killed && ended.is_none() {
            reaper::kill_tree(started.pid);
            killed = true;
        }
        let open = window >= LEAST_CHARGE;
        if let Some(ended) = ended {
            let silent = streams.stdout.is_none() && streams.stderr.is_none();
            // Time that the receiver takes for itself does not count.
            if !open {
                drain_until = Instant::now() + DRAIN;
            }
            if silent || kill || drained >= DRAIN_BYTES || Instant::now() >= drain_until {
                return (ended, timed_out);
            }
        }
        let fd = |stream: &Option<OwnedFd>, wanted: bool| match stream {
            Some(stream) if wanted => stream.as_raw_fd(),
            _ => -1,
        };
        let mut watched = [
            interest(running.wake.as_raw_fd(), libc::POLLIN),
            interest(if ended.is_none() { started.pidfd.as_raw_fd() } else { -1 }, libc::POLLIN),
            interest(fd(&streams.stdout, open), libc::POLLIN),
            interest(fd(&streams.stderr, open), libc::POLLIN),
            interest(fd(&streams.stdin, input), libc::POLLOUT),
        ];
        let until = match ended {
            Some(_) => open.then_some(drain_until),
            None if killed => None,
            None => deadline,
        };
        if sys::poll(&mut watched, until).is_err() {
            // Without memory for a handful of descriptors nothing else works either.
            reaper::kill_tree(started.pid);
            return (started.end(), timed_out);
        }
        if watched[0].revents != 0 {
            running.wake.clear();
        }
        if watched[4].revents != 0 {
            feed(&mut streams.stdin, wanted.id, running, link);
        }
        let mut left = window;
        for (ready, stream, stderr) in
            [(watched[2], &mut streams.stdout, false), (watched[3], &mut streams.stderr, true)]
        {
            if ready.revents != 0 && left >= LEAST_CHARGE {
                let sent = forward(stream, &mut buffer, left, stderr, wanted.id, link);
                if sent > 0 {
                    left -= charge(sent);
                    let mut wishes = running.lock();
                    wishes.window = wishes.window.saturating_sub(charge(sent));
                    drained += if ended.is_some() { sent } else { 0 };
                }
            }
        }
        if watched[1].revents != 0 {
            // A signal must not meet whoever gets this number next.
            running.lock().over = true;
            ended = Some(started.end());
            drain_until = Instant::now() + DRAIN;
            streams.stdin = None;
        }
    }
}

/// Writes what is there for the command's input, and says how much was taken.
fn feed(stdin: &mut Option<OwnedFd>, id: u64, running: &Running, link: &Link) {
    let Some(pipe) = stdin else { return };
    let mut wishes = running.lock();
    let taken = match sys::write(pipe, &wishes.input) {
        Ok(taken) => taken,
        Err(why) if why.kind() == io::ErrorKind::WouldBlock => return,
        Err(_) => {
            // The command reads no more: what it was to get goes nowhere.
            wishes.close_input = true;
            wishes.input.len()
        }
    };
    wishes.input.drain(..taken);
    if wishes.input.is_empty() && wishes.close_input {
        *stdin = None;
    }
    drop(wishes);
    if taken > 0 {
        link.send(&Reply::Taken { id, bytes: taken as u64 }, &[]);
    }
}

/// Input for a command that reads no more goes nowhere; its sender must not wait for that.
fn discard(id: u64, running: &Running, link: &Link) {
    let bytes = std::mem::take(&mut running.lock().input).len() as u64;
    if bytes > 0 {
        link.send(&Reply::Taken { id, bytes }, &[]);
    }
}

/// Sends on what a stream has, within the window; says how much. A stream at its end is closed.
fn forward(stream: &mut Option<OwnedFd>, buffer: &mut [u8], window: u64, stderr: bool, id: u64, link: &Link) -> usize {
    let Some(pipe) = stream else { return 0 };
    let most = usize::try_from(window).unwrap_or(BUFFER).min(BUFFER);
    match sys::read(pipe, &mut buffer[..most]) {
        Ok(read @ 1..) => {
            link.send(&Reply::Output { id, stderr }, &buffer[..read]);
            read
        }
        Err(why) if why.kind() == io::ErrorKind::WouldBlock => 0,
        Ok(0) | Err(_) => {
            *stream = None;
            0
        }
    }
}
