//! The cell's side of the conversation with the worker: one thread that hears the worker, commands, the shell and the end of
//! processes, and threads for the file tools.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use palisade_cell::{Claim, Place, Process, Reply, Request, check_length, decode};
use serde_json::Value;

use crate::connect::Connections;
use crate::exec::{BUFFER, Commands};
use crate::link::Link;
use crate::ps;
use crate::reaper::Reaper;
use crate::shell::{self, Call, Shell};
use crate::sys::{self, interest};
use crate::tools::{self, Output, Roots, Stop};

/// Calls of file tools that wait.
const LIMIT: usize = 64;
/// Calls of file tools that run at the same time.
const THREADS: usize = 8;
/// What a thread that runs file tools may use for its calls, in bytes.
pub(crate) const TOOL_STACK: usize = 512 << 10;
/// A thread that was started for a burst of calls ends when there was none for so long.
const LINGER: Duration = Duration::from_secs(5);
/// What is read of the worker's words at a time.
const HEARD: usize = 16 << 10;

/// Serves until the worker's side closes. Nothing here waits for anything inside the sandbox.
pub(crate) fn serve(from: File, to: File, place: Place, claim: Claim) {
    let link = Arc::new(Link::new(to));
    // Before the first thread.
    let Ok(reaper) = Reaper::new(place) else { return };
    let Some(pool) = Pool::start(Roots::new(&claim.workdir, &claim.roots), link.clone()) else { return };
    let mut cell = Cell {
        link: link.clone(),
        ears: Ears { from, bytes: Vec::new(), used: 0 },
        commands: Commands::new(&claim, link.clone()),
        connections: Connections::new(link.clone()),
        shell: Shell::new(claim, link),
        reaper,
        pool,
        buffer: vec![0; BUFFER],
    };
    let mut watched = Vec::new();
    while cell.turn(&mut watched).is_ok() {}
    if place == Place::Bare {
        // Without a process namespace nothing else ends what was started.
        cell.reaper.kill_all(|_, _| {});
    }
}

struct Cell {
    link: Arc<Link>,
    ears: Ears,
    commands: Commands,
    connections: Connections,
    shell: Shell,
    reaper: Reaper,
    pool: Arc<Pool>,
    buffer: Vec<u8>,
}

impl Cell {
    /// Waits for something to happen and attends to all that has. An error is the end: the worker is gone, or the two ends no
    /// longer understand each other.
    fn turn(&mut self, watched: &mut Vec<libc::pollfd>) -> io::Result<()> {
        let due = self.settle();
        watched.clear();
        watched.push(interest(self.ears.from.as_raw_fd(), libc::POLLIN));
        watched.push(interest(self.reaper.as_raw_fd(), libc::POLLIN));
        self.shell.watch(watched);
        self.commands.watch(watched);
        self.connections.watch(watched);
        sys::poll(watched, due)?;
        let (own, rest) = watched.split_at(2);
        let (shell, rest) = rest.split_at(shell::WATCHED);
        let (commands, connections) = rest.split_at(self.commands.watched());
        debug_assert_eq!(connections.len(), self.connections.watched());
        self.shell.ready(shell);
        self.commands.ready(commands, &mut self.buffer);
        self.connections.ready(connections, &mut self.buffer);
        let some_ended = own[1].revents != 0;
        if own[0].revents != 0 {
            self.ears.listen()?;
            while let Some(frame) = self.ears.frame()? {
                let (request, raw) = decode::<Request>(&frame)?;
                self.attend(request, raw)?;
            }
        }
        // Last: that everything stood still is heard before the time is looked at that a command has taken.
        if some_ended {
            let (shell, commands) = (&mut self.shell, &mut self.commands);
            self.reaper.collect(|pid, ended| _ = shell.ended(pid) || commands.ended(pid, ended));
        }
        Ok(())
    }

    /// What is over, and what is next; when to look again.
    fn settle(&mut self) -> Option<Instant> {
        let commands = self.commands.settle();
        let idle = self.commands.is_idle();
        let mut gone = Vec::new();
        let shell = self.shell.settle(|| {
            // What could belong to a command that is not the shell's stays.
            if idle {
                self.reaper.kill_all(|pid, ended| gone.push((pid, ended)));
            }
        });
        for (pid, ended) in gone {
            let _ = self.shell.ended(pid) || self.commands.ended(pid, ended);
        }
        match (commands, shell) {
            (Some(commands), Some(shell)) => Some(commands.min(shell)),
            (one, other) => one.or(other),
        }
    }

    fn attend(&mut self, request: Request, raw: &[u8]) -> io::Result<()> {
        match request {
            Request::Tool { id, name, input, timeout_ms } if name == "bash" => {
                self.shell.submit(Call { id, input, limit: Duration::from_millis(timeout_ms) });
            }
            Request::Tool { id, name, input, .. } => self.pool.submit(Job::Tool { id, name, input }),
            Request::Exec(wanted) => self.commands.start(*wanted),
            Request::Attach { id, process, from, hold } => self.commands.attach(id, process, from, hold),
            Request::Connect { id, port } => self.connections.start(id, port),
            Request::Processes { id } => self.pool.submit(Job::Processes { id, commands: self.commands.seen() }),
            Request::Stdin { id } => {
                if !self.connections.write(id, raw) {
                    self.commands.write(id, raw);
                }
            }
            Request::Resize { id, size } => self.commands.resize(id, size),
            Request::Signal { id, signal } => self.commands.signal(id, signal),
            Request::Window { id, bytes } => {
                if !self.commands.open_window(id, bytes) {
                    self.connections.open_window(id, bytes);
                }
            }
            Request::Cancel { id } => {
                if !self.commands.cancel(id) && !self.connections.cancel(id) && !self.pool.cancel(id) {
                    self.shell.cancel(id);
                }
            }
            Request::Stood { ms } => self.stood(Duration::from_millis(ms)),
            Request::Rest { id } => {
                let began = Instant::now();
                let ears = &mut self.ears;
                self.link.rest(id, || ears.await_waking())?;
                self.stood(began.elapsed());
            }
            // It was not at rest.
            Request::Wake => {}
        }
        Ok(())
    }

    /// Puts off whatever ends by the clock.
    fn stood(&mut self, time: Duration) {
        self.shell.stood(time);
        self.commands.stood(time);
    }
}

/// The worker's words, cut into frames.
struct Ears {
    from: File,
    bytes: Vec<u8>,
    /// What of them has been attended to.
    used: usize,
}

impl Ears {
    /// Takes what is there, once.
    fn listen(&mut self) -> io::Result<()> {
        self.bytes.drain(..self.used);
        self.used = 0;
        // A long frame is taken in long pieces, and its memory is given back.
        let most = HEARD.max(self.missing().unwrap_or(0));
        if self.bytes.capacity() > 64 * HEARD && most == HEARD {
            self.bytes.shrink_to(HEARD);
        }
        let have = self.bytes.len();
        self.bytes.resize(have + most, 0);
        let read = match self.from.read(&mut self.bytes[have..]) {
            Err(why) if matches!(why.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Some(0),
            read => Some(read?).filter(|read| *read > 0),
        };
        self.bytes.truncate(have + read.unwrap_or(0));
        read.map(drop).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Waits until it is time to go on; anything else would be said to nobody.
    fn await_waking(&mut self) -> io::Result<()> {
        loop {
            if let Some(frame) = self.frame()? {
                return match decode::<Request>(&frame)?.0 {
                    Request::Wake => Ok(()),
                    _ => Err(io::ErrorKind::InvalidData.into()),
                };
            }
            sys::poll(&mut [interest(self.from.as_raw_fd(), libc::POLLIN)], None)?;
            self.listen()?;
        }
    }

    /// How much of the next frame is not there yet.
    fn missing(&self) -> Option<usize> {
        let length = self.bytes.first_chunk::<4>()?;
        (4 + check_length(*length).ok()?).checked_sub(self.bytes.len())
    }

    /// The next whole frame.
    fn frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        let rest = &self.bytes[self.used..];
        let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
        let length = check_length(*length)?;
        let Some(frame) = rest.get(4..4 + length) else { return Ok(None) };
        let frame = frame.to_vec();
        self.used += 4 + length;
        Ok(Some(frame))
    }
}

/// What is done by a thread of its own.
enum Job {
    /// A call of a file tool.
    Tool { id: u64, name: String, input: Value },
    /// A look at the processes; the commands among them are known.
    Processes { id: u64, commands: Vec<Process> },
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
    /// Calls that run, each with what tells it to end.
    running: Vec<(u64, Arc<AtomicBool>)>,
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
        let thread = std::thread::Builder::new().name("tools".to_owned()).stack_size(TOOL_STACK);
        thread.spawn(move || pool.run(stays)).is_ok()
    }

    fn submit(self: &Arc<Pool>, job: Job) {
        let mut work = self.lock();
        if work.jobs.len() >= LIMIT {
            drop(work);
            return match job {
                Job::Tool { id, name, .. } => {
                    let refused = Output::error(format!("{name}: too many calls at once in this sandbox"));
                    self.link.answer(id, refused, None);
                }
                Job::Processes { id, commands } => {
                    self.link.send(&Reply::Processes { id, processes: commands }, &[]);
                }
            };
        }
        work.jobs.push_back(job);
        if work.idle < work.jobs.len() && work.threads < THREADS && self.thread(false) {
            work.threads += 1;
        }
        self.more.notify_one();
    }

    /// Gives a call up: whoever wanted it waits for no answer. Whether it was here.
    fn cancel(&self, id: u64) -> bool {
        let mut work = self.lock();
        if let Some((_, cancelled)) = work.running.iter().find(|(running, _)| *running == id) {
            cancelled.store(true, Ordering::Relaxed);
            return true;
        }
        let before = work.jobs.len();
        work.jobs.retain(|job| !matches!(job, Job::Tool { id: waiting, .. } if *waiting == id));
        work.jobs.len() < before
    }

    fn run(&self, stays: bool) {
        let mut work = self.lock();
        loop {
            if let Some(job) = work.jobs.pop_front() {
                match job {
                    Job::Tool { id, name, input } => {
                        let cancelled = Arc::new(AtomicBool::new(false));
                        work.running.push((id, cancelled.clone()));
                        drop(work);
                        let output = tools::run(&self.roots, &name, &input, &Stop::when(cancelled));
                        self.link.answer(id, output, None);
                        work = self.lock();
                        work.running.retain(|(running, _)| *running != id);
                    }
                    Job::Processes { id, commands } => {
                        drop(work);
                        self.link.send(&Reply::Processes { id, processes: ps::list(commands) }, &[]);
                        work = self.lock();
                    }
                }
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
