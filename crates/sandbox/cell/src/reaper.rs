//! PID 1, or who stands in for it, collects every process that ends: those that it started itself, and orphans.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use palisade_cell::Place;

use crate::sys::{self, check, interest};

/// How a process ended, and what it and those that it had waited for had used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) max_rss_kib: u64,
}

/// Hears of processes that have ended. Whoever starts a process does so on the thread that collects, so that nothing is
/// collected before it is known.
pub(crate) struct Reaper {
    ends: OwnedFd,
    /// Whether other processes than this one's descendants can be seen: then this is not PID 1, and they are not its own.
    among_others: bool,
}

impl Reaper {
    /// To be made before the first thread: all of them must leave the signal to this one.
    pub(crate) fn new(place: Place) -> io::Result<Reaper> {
        // SAFETY: a set of zeros is valid, and is filled before it is used; all pointers live through their calls.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGCHLD);
            check(libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
            check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?
        };
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let ends = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) };
        Ok(Reaper { ends, among_others: place == Place::Bare })
    }

    /// Collects what has ended and says so of each; whether somebody is left.
    pub(crate) fn collect(&self, mut each: impl FnMut(i32, Ended)) -> bool {
        // Signals of the same kind become one: taken first, so that none that comes later is lost.
        let _ = sys::read(&self.ends, &mut [0; 128]);
        loop {
            let mut status = 0;
            // SAFETY: a structure of zeros is valid; both live through the call.
            let (pid, usage) = unsafe {
                let mut usage: libc::rusage = std::mem::zeroed();
                (libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage), usage)
            };
            if pid <= 0 {
                return pid == 0;
            }
            let us = |time: libc::timeval| {
                u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
            };
            each(
                pid,
                Ended {
                    code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
                    signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
                    user_us: us(usage.ru_utime),
                    system_us: us(usage.ru_stime),
                    max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
                },
            );
        }
    }

    /// Kills every process of the sandbox but this one, all at the same instant, so that nothing that forks can get away; and
    /// waits until they have been collected, as they count as processes until then.
    pub(crate) fn kill_all(&self, mut each: impl FnMut(i32, Ended)) {
        if !self.among_others {
            sys::kill(-1, libc::SIGKILL);
        }
        // What does not even die is left to whoever starts the next process to find out.
        let until = Instant::now() + Duration::from_secs(2);
        while self.collect(&mut each) && Instant::now() < until {
            if self.among_others {
                kill_descendants();
            }
            let _ = sys::poll(&mut [interest(self.ends.as_raw_fd(), libc::POLLIN)], Some(until));
        }
    }
}

impl AsRawFd for Reaper {
    fn as_raw_fd(&self) -> RawFd {
        self.ends.as_raw_fd()
    }
}

/// Kills all that has come from this process, one by one: orphans have come to it, so they are found below it, and what they
/// start meanwhile is found after their end.
fn kill_descendants() {
    let own = own();
    descendants(own).into_iter().filter(|pid| *pid != own).for_each(|pid| sys::kill(pid, libc::SIGKILL));
}

/// The number of this process.
fn own() -> i32 {
    // SAFETY: no pointers.
    unsafe { libc::getpid() }
}

/// The processes of this sandbox: this one and all that has come from it.
pub(crate) fn all() -> Vec<i32> {
    descendants(own())
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
