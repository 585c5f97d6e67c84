//! Commands: their output as it comes, their input, signals, and their end.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use palisade_cell::Reply;

use crate::reaper::{self, Ended};
use crate::serve::Link;
use crate::sys;

/// Output that may be under way before the receiver must have taken some.
const WINDOW: u64 = 1 << 20;
/// After a command has ended, others may hold its pipes: they are listened to no longer than this.
const DRAIN: Duration = Duration::from_millis(200);

/// A running command, as others see it.
pub(crate) struct Running {
    pid: i32,
    stdin: Mutex<Option<std::process::ChildStdin>>,
    window: Mutex<u64>,
    opened: Condvar,
    over: AtomicBool,
}

impl Running {
    pub(crate) fn signal(&self, signal: i32) {
        sys::kill(-self.pid, signal);
    }

    pub(crate) fn kill(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.opened.notify_all();
        reaper::kill_tree(self.pid);
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes.is_empty() {
            *stdin = None;
        } else if let Some(pipe) = stdin.as_mut()
            && pipe.write_all(bytes).is_err()
        {
            // The command reads no more.
            *stdin = None;
        }
    }

    pub(crate) fn open_window(&self, bytes: u64) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        *window = window.saturating_add(bytes).min(WINDOW);
        self.opened.notify_all();
    }

    /// Waits until something may be sent, and takes up to `wanted` of it.
    fn take_window(&self, wanted: u64) -> u64 {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        while *window == 0 && !self.over.load(Ordering::Relaxed) {
            window = self.opened.wait(window).unwrap_or_else(PoisonError::into_inner);
        }
        let taken = wanted.min(*window);
        *window -= taken;
        taken
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
    let (program, arguments) =
        wanted.argv.split_first().ok_or_else(|| io::Error::other("argv is empty"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(base.iter().map(|(name, value)| (name, value)))
        .envs(wanted.env.iter().map(|(name, value)| (name, value)))
        .current_dir(if wanted.cwd.is_empty() { "/workspace" } else { &wanted.cwd })
        .stdin(if wanted.stdin { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let (mut child, ended) = reaper::spawn(&mut command)?;
    let running = Arc::new(Running {
        pid: i32::try_from(child.id()).unwrap_or(-1),
        stdin: Mutex::new(child.stdin.take()),
        window: Mutex::new(WINDOW),
        opened: Condvar::new(),
        over: AtomicBool::new(false),
    });
    let out = child.stdout.take().map(|pipe| pump(pipe, false, wanted.id, &running, link));
    let err = child.stderr.take().map(|pipe| pump(pipe, true, wanted.id, &running, link));
    let (id, timeout, link, shared) = (wanted.id, wanted.timeout_ms, link.clone(), running.clone());
    std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
        let (ended, timed_out) = await_end(&ended, timeout, &shared);
        let deadline = Instant::now() + DRAIN;
        for pump in [out, err].into_iter().flatten().flatten() {
            while !pump.is_finished() && Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_micros(300));
            }
        }
        shared.over.store(true, Ordering::Relaxed);
        shared.opened.notify_all();
        link.forget(id);
        link.send(&Reply::Exit { id, code: ended.code, signal: ended.signal, timed_out }, &[]);
    })?;
    Ok(running)
}

fn await_end(
    ended: &std::sync::mpsc::Receiver<Ended>,
    timeout_ms: u64,
    running: &Running,
) -> (Ended, bool) {
    let unknown = Ended { code: None, signal: None };
    if timeout_ms == 0 {
        return (ended.recv().unwrap_or(unknown), false);
    }
    match ended.recv_timeout(Duration::from_millis(timeout_ms)) {
        Ok(ended) => (ended, false),
        Err(RecvTimeoutError::Disconnected) => (unknown, false),
        Err(RecvTimeoutError::Timeout) => {
            running.kill();
            (ended.recv().unwrap_or(unknown), true)
        }
    }
}

fn pump(
    mut pipe: impl Read + Send + 'static,
    stderr: bool,
    id: u64,
    running: &Arc<Running>,
    link: &Arc<Link>,
) -> io::Result<std::thread::JoinHandle<()>> {
    let (running, link) = (running.clone(), link.clone());
    std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            let mut from = 0;
            while from < read {
                let taken = running.take_window((read - from) as u64);
                if taken == 0 {
                    return;
                }
                let to = from + usize::try_from(taken).unwrap_or(0);
                if !link.send(&Reply::Output { id, stderr }, &buffer[from..to]) {
                    return;
                }
                from = to;
            }
        }
    })
}
