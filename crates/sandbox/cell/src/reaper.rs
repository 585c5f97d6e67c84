//! PID 1 collects every process that ends: those that somebody waits for, and orphans.

use std::collections::HashMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::sys::{self, check};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

/// A process that was started here.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) pid: i32,
    /// Readable when the process has ended.
    pub(crate) pidfd: OwnedFd,
    end: Receiver<Ended>,
}

impl Started {
    /// How it ended; waits until it has.
    pub(crate) fn end(&self) -> Ended {
        self.end.recv().unwrap_or(Ended { code: None, signal: None })
    }
}

#[derive(Default)]
struct Watched {
    waiting: HashMap<i32, SyncSender<Ended>>,
    /// Whether this process may have children, known ones or orphans.
    children: bool,
}

#[derive(Default)]
struct Reaper {
    watched: Mutex<Watched>,
    started: Condvar,
    none: Condvar,
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reaper() -> io::Result<&'static Reaper> {
    static REAPER: OnceLock<Reaper> = OnceLock::new();
    static THREAD: Mutex<bool> = Mutex::new(false);
    let mut running = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    let reaper = REAPER.get_or_init(Reaper::default);
    if !*running {
        std::thread::Builder::new().name("reaper".to_owned()).stack_size(64 << 10).spawn(move || reap(reaper))?;
        *running = true;
    }
    Ok(reaper)
}

fn reap(reaper: &Reaper) {
    loop {
        // Looked at without being collected: whoever starts a process holds the lock until it is known, and the standard
        // library collects by itself what could not be executed.
        // SAFETY: the structure lives through the call, and one of zeros is valid.
        let (found, pid) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let found = libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT);
            (found, info.si_pid())
        };
        let mut watched = reaper.lock();
        if found < 0 {
            // Nobody is left, unless somebody was started since.
            watched.children = !watched.waiting.is_empty();
            if !watched.children {
                reaper.none.notify_all();
            }
            while !watched.children {
                watched = reaper.started.wait(watched).unwrap_or_else(PoisonError::into_inner);
            }
            continue;
        }
        let mut status = 0;
        // SAFETY: the status lives through the call.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } != pid {
            continue;
        }
        if let Some(sender) = watched.waiting.remove(&pid) {
            let ended = Ended {
                code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
                signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            };
            // Whoever asked may have given up.
            let _ = sender.try_send(ended);
        }
    }
}

/// Starts a process. Holding the lock over the start keeps the reaper from collecting it before it is known.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Started> {
    let (sender, end) = sync_channel(1);
    let reaper = reaper()?;
    let mut watched = reaper.lock();
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    watched.waiting.insert(pid, sender);
    watched.children = true;
    reaper.started.notify_one();
    // SAFETY: no pointers; the process cannot have been collected yet, so its number is still its own.
    let pidfd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) });
    let pidfd = pidfd.inspect_err(|_| sys::kill(pid, libc::SIGKILL))?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(pidfd).unwrap_or(-1)) };
    Ok(Started { child, pid, pidfd, end })
}

/// All processes that descend from `root`, and `root`, children last.
fn descendants(root: i32) -> Vec<i32> {
    let mut parents: Vec<(i32, i32)> = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name is in parentheses and may hold anything, so look behind the last one.
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_ascii_whitespace().skip(1);
        if let Some(parent) = fields.next().and_then(|field| field.parse().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        // A process has one parent, so nothing is found twice.
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// Kills a process that has not been collected, its group and all that descends from it.
pub(crate) fn kill_tree(root: i32) {
    /// Looks at the processes before what keeps forking is left to the limits.
    const ROUNDS: usize = 8;
    // Stopped first: what is killed one by one could start more meanwhile, and its orphans could not be told from others.
    let mut stopped: Vec<i32> = Vec::new();
    for _ in 0..ROUNDS {
        let before = stopped.len();
        for pid in descendants(root) {
            if !stopped.contains(&pid) {
                sys::kill(pid, libc::SIGSTOP);
                stopped.push(pid);
            }
        }
        if stopped.len() == before {
            break;
        }
    }
    sys::kill(-root, libc::SIGKILL);
    for pid in stopped {
        sys::kill(pid, libc::SIGKILL);
    }
}

/// Kills every process but this one, all at the same instant, so that nothing that forks can get away; and waits until they
/// have been collected, as they count as processes until then.
pub(crate) fn kill_all() {
    sys::kill(-1, libc::SIGKILL);
    let Ok(reaper) = reaper() else { return };
    let watched = reaper.lock();
    // What does not even die is left to whoever starts the next process to find out.
    let gone = reaper.none.wait_timeout_while(watched, Duration::from_secs(2), |watched| watched.children);
    drop(gone.unwrap_or_else(PoisonError::into_inner));
}
