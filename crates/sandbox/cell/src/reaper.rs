//! PID 1 collects every process that ends: those that somebody waits for, and orphans.

use std::collections::HashMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::sys::{self, Event, check};

/// Whether other processes than this one's descendants can be seen: then this is not PID 1, and they are not its own to end.
pub(crate) static AMONG_OTHERS: AtomicBool = AtomicBool::new(false);

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

/// Somebody who waits for a process.
struct Waiter {
    sender: SyncSender<Ended>,
    /// Raised at its end, where the kernel has no descriptors of processes.
    event: Option<Event>,
}

#[derive(Default)]
struct Watched {
    waiting: HashMap<i32, Waiter>,
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
        // Before its number can be another's, as a descriptor of the process would be.
        if let Some(event) = watched.waiting.get(&pid).and_then(|waiter| waiter.event.as_ref()) {
            event.raise();
        }
        let mut status = 0;
        // SAFETY: the status lives through the call.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } != pid {
            continue;
        }
        if let Some(waiter) = watched.waiting.remove(&pid) {
            let ended = Ended {
                code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
                signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            };
            // Whoever asked may have given up.
            let _ = waiter.sender.try_send(ended);
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
    watched.children = true;
    reaper.started.notify_one();
    // The process cannot have been collected yet, so its number is still its own.
    let (pidfd, event) = end_of(pid).inspect_err(|_| sys::kill(pid, libc::SIGKILL))?;
    watched.waiting.insert(pid, Waiter { sender, event });
    Ok(Started { child, pid, pidfd, end })
}

/// What becomes readable when a process ends, and what the reaper has to raise for that.
fn end_of(pid: i32) -> io::Result<(OwnedFd, Option<Event>)> {
    // SAFETY: no pointers.
    match check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }) {
        Ok(pidfd) => {
            // SAFETY: the descriptor was just made and belongs to nobody else.
            Ok((unsafe { OwnedFd::from_raw_fd(RawFd::try_from(pidfd).unwrap_or(-1)) }, None))
        }
        // What imitates Linux may not have them.
        Err(why) if why.raw_os_error() == Some(libc::ENOSYS) => {
            let event = Event::new()?;
            Ok((event.share()?, Some(event)))
        }
        Err(why) => Err(why),
    }
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
    if AMONG_OTHERS.load(Ordering::Relaxed) {
        return kill_descendants();
    }
    sys::kill(-1, libc::SIGKILL);
    let Ok(reaper) = reaper() else { return };
    let watched = reaper.lock();
    // What does not even die is left to whoever starts the next process to find out.
    let gone = reaper.none.wait_timeout_while(watched, Duration::from_secs(2), |watched| watched.children);
    drop(gone.unwrap_or_else(PoisonError::into_inner));
}

/// The same, one by one: orphans have come to this process, so all of its own are found below it.
fn kill_descendants() {
    const ROUNDS: usize = 100;
    // SAFETY: no pointers.
    let own = unsafe { libc::getpid() };
    for _ in 0..ROUNDS {
        let others: Vec<i32> = descendants(own).into_iter().filter(|pid| *pid != own).collect();
        if others.is_empty() {
            return;
        }
        for pid in others {
            sys::kill(pid, libc::SIGKILL);
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
