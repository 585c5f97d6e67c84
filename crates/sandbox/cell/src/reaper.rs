//! PID 1 collects every process that ends: those that somebody waits for, and orphans.

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

#[derive(Default)]
struct Watched {
    waiting: HashMap<i32, SyncSender<Ended>>,
    alive: usize,
}

#[derive(Default)]
struct Reaper {
    watched: Mutex<Watched>,
    started: Condvar,
}

fn reaper() -> &'static Reaper {
    static REAPER: OnceLock<Reaper> = OnceLock::new();
    REAPER.get_or_init(|| {
        let _ = std::thread::Builder::new().name("reaper".to_owned()).stack_size(64 << 10).spawn(reap);
        Reaper::default()
    })
}

fn reap() {
    loop {
        {
            let reaper = reaper();
            let mut watched = reaper.watched.lock().unwrap_or_else(PoisonError::into_inner);
            while watched.alive == 0 {
                watched = reaper.started.wait(watched).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let mut status = 0;
        // SAFETY: the status lives through the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        let mut watched = reaper().watched.lock().unwrap_or_else(PoisonError::into_inner);
        if pid <= 0 {
            if io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) {
                watched.alive = 0;
                watched.waiting.clear();
            }
            continue;
        }
        if let Some(sender) = watched.waiting.remove(&pid) {
            watched.alive = watched.alive.saturating_sub(1);
            let ended = Ended {
                code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
                signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            };
            // Whoever asked may have given up.
            let _ = sender.try_send(ended);
        }
    }
}

/// Starts a process and says where its end will be told. Holding the lock over the start keeps the reaper from
/// collecting it before it is known.
pub(crate) fn spawn(command: &mut Command) -> io::Result<(Child, Receiver<Ended>)> {
    let (sender, receiver) = sync_channel(1);
    let reaper = reaper();
    let mut watched = reaper.watched.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    watched.waiting.insert(i32::try_from(child.id()).unwrap_or(-1), sender);
    watched.alive += 1;
    reaper.started.notify_one();
    Ok((child, receiver))
}

/// All processes that descend from `root`, and `root`, children last.
pub(crate) fn descendants(root: i32) -> Vec<i32> {
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

/// Kills a process, its group and all that descends from it.
pub(crate) fn kill_tree(root: i32) {
    let all = descendants(root);
    crate::sys::kill(-root, libc::SIGKILL);
    for pid in all {
        crate::sys::kill(pid, libc::SIGKILL);
    }
}
