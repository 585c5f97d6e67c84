//! The cell's side of the conversation.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use palisade_cell::{Claim, Reply, Request, decode, read_frame, write_frame};
use serde_json::Value;

use crate::exec::{self, Running, Wanted};
use crate::shell::{Call, Shell};
use crate::tools::{self, Output, Roots};

/// Calls that wait and commands that run, each at most so many.
const LIMIT: usize = 64;
/// Calls of file tools that run at the same time.
const THREADS: usize = 8;
/// A thread that was started for a burst of calls ends when there was none for so long.
const LINGER: Duration = Duration::from_secs(5);

/// The way back to the worker, and what is running.
pub(crate) struct Link {
    back: Mutex<File>,
    commands: Mutex<HashMap<u64, Arc<Running>>>,
}

impl Link {
    /// Sends a frame; without a worker there is nobody to hear it, and this process is about to end.
    pub(crate) fn send(&self, reply: &Reply, raw: &[u8]) {
        let mut back = self.back.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = write_frame(&mut *back, reply, raw);
    }

    fn answer(&self, id: u64, output: Output) {
        self.send(&Reply::Tool { id, content: output.content, is_error: output.is_error }, &[]);
    }

    pub(crate) fn forget(&self, id: u64) {
        self.commands().remove(&id);
    }

    /// Whether no command runs that was started by itself.
    pub(crate) fn is_idle(&self) -> bool {
        self.commands().is_empty()
    }

    fn commands(&self) -> MutexGuard<'_, HashMap<u64, Arc<Running>>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, id: u64) -> Option<Arc<Running>> {
        self.commands().get(&id).cloned()
    }
}

/// Serves until the worker is gone. Nothing here waits for anything inside the sandbox.
pub(crate) fn serve(mut from: File, to: File, claim: Claim) {
    let link = Arc::new(Link { back: Mutex::new(to), commands: Mutex::new(HashMap::new()) });
    let Ok(shell) = Shell::new(claim.env.clone(), claim.workdir.clone(), link.clone()) else { return };
    let shell = Arc::new(shell);
    let Some(pool) = Pool::start(Roots::new(&claim.workdir, &claim.roots), link.clone()) else { return };
    // A malformed frame means that the two ends no longer understand each other: the end, as with a closed socket.
    while let Ok(Some(frame)) = read_frame(&mut from) {
        let Ok((request, raw)) = decode::<Request>(&frame) else { return };
        match request {
            Request::Tool { id, name, input, timeout_ms } if name == "bash" => {
                let call = Call { id, input, limit: Duration::from_millis(timeout_ms) };
                if let Err(refused) = shell.submit(call) {
                    link.answer(id, refused);
                }
            }
            Request::Tool { id, name, input, .. } => pool.submit(Job { id, name, input }),
            Request::Exec { id, argv, env, cwd, stdin, timeout_ms } => {
                let cwd = if cwd.is_empty() { claim.workdir.clone() } else { cwd };
                let wanted = Wanted { id, argv, env, cwd, stdin, timeout_ms };
                // The command is known before it can end, so that its end removes it.
                let mut commands = link.commands();
                let started = if commands.len() >= LIMIT {
                    Err(std::io::Error::other("too many commands at once in this sandbox"))
                } else {
                    exec::start(wanted, &claim.env, &link)
                };
                match started {
                    Ok(running) => {
                        commands.insert(id, running);
                    }
                    Err(why) => {
                        drop(commands);
                        link.send(&Reply::ExecFailed { id, message: why.to_string() }, &[]);
                    }
                }
            }
            Request::Stdin { id } => {
                if let Some(running) = link.command(id) {
                    running.write(raw);
                }
            }
            Request::Signal { id, signal } => {
                if let Some(running) = link.command(id) {
                    running.signal(signal);
                }
            }
            Request::Window { id, bytes } => {
                if let Some(running) = link.command(id) {
                    running.open_window(bytes);
                }
            }
            Request::Cancel { id } => match link.command(id) {
                Some(running) => running.kill(),
                None => shell.cancel(id),
            },
        }
    }
}

/// A call of a file tool.
struct Job {
    id: u64,
    name: String,
    input: Value,
}

/// The threads that run file tools. One is always there: a sandbox that has used up its processes can still be looked into.
struct Pool {
    roots: Roots,
    link: Arc<Link>,
    work: Mutex<Work>,
    more: Condvar,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

impl Pool {
    fn start(roots: Roots, link: Arc<Link>) -> Option<Arc<Pool>> {
        let work = Work { threads: 1, ..Work::default() };
        let pool = Arc::new(Pool { roots, link, work: Mutex::new(work), more: Condvar::new() });
        pool.thread(true).then_some(pool)
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thread(self: &Arc<Pool>, stays: bool) -> bool {
        let pool = self.clone();
        let thread = std::thread::Builder::new().name("tools".to_owned()).stack_size(512 << 10);
        thread.spawn(move || pool.run(stays)).is_ok()
    }

    fn submit(self: &Arc<Pool>, job: Job) {
        let mut work = self.lock();
        if work.jobs.len() >= LIMIT {
            drop(work);
            let refused = Output::error(format!("{}: too many calls at once in this sandbox", job.name));
            return self.link.answer(job.id, refused);
        }
        work.jobs.push_back(job);
        if work.idle < work.jobs.len() && work.threads < THREADS && self.thread(false) {
            work.threads += 1;
        }
        self.more.notify_one();
    }

    fn run(&self, stays: bool) {
        let mut work = self.lock();
        loop {
            if let Some(job) = work.jobs.pop_front() {
                drop(work);
                let output = tools::run(&self.roots, &job.name, &job.input);
                self.link.answer(job.id, output);
                work = self.lock();
                continue;
            }
            work.idle += 1;
            let (woken, waited) = self
                .more
                .wait_timeout(work, if stays { Duration::MAX } else { LINGER })
                .unwrap_or_else(PoisonError::into_inner);
            work = woken;
            work.idle -= 1;
            if waited.timed_out() && work.jobs.is_empty() && !stays {
                work.threads -= 1;
                return;
            }
        }
    }
}
