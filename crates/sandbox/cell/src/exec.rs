//! Commands: their output as it comes, their input, signals, and their end; and who listens to them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_cell::{
    Claim, End, LEAST_CHARGE, MAX_ATTACHED, MAX_COMMANDS, OUTPUT_WINDOW, Process, Reply, Size, Wanted, charge,
};

use crate::link::Link;
use crate::log::Log;
use crate::reaper::{self, Ended};
use crate::spawn::{self, Program};
use crate::sys::{self, interest};

/// After a command has ended, others may hold its pipes: they are listened to no longer than this …
const DRAIN: Duration = Duration::from_millis(200);
/// … and for no more than this, which is what two pipes can hold at most.
const DRAIN_BYTES: u64 = 2 << 20;
/// What is read and sent at a time.
pub(crate) const BUFFER: usize = 32 << 10;
/// How many descriptors each command has watched.
pub(crate) const WATCHED: usize = 3;
/// The end of input, typed.
const END_OF_INPUT: u8 = 4;

/// Somebody who hears a command.
struct Listener {
    id: u64,
    /// The offset of what is sent next.
    next: u64,
    window: u64,
    /// Whether the command waits for it.
    hold: bool,
}

/// A command, running or ended.
pub(crate) struct Command {
    wanted: Wanted,
    pid: i32,
    began: Instant,
    deadline: Option<Instant>,
    stdin: Option<OwnedFd>,
    /// Its terminal, when it has one: then this is its input as well.
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    log: Log,
    listeners: Vec<Listener>,
    /// What it is to read, and who sent it.
    input: VecDeque<(u64, Vec<u8>)>,
    close_input: bool,
    killed: bool,
    timed_out: bool,
    output_exceeded: bool,
    ended: Option<Ended>,
    wall: Duration,
    drain_until: Instant,
    drained: u64,
    /// Nothing more is read.
    silent: bool,
}

/// Who may hear the next output, and how much of it.
enum Room {
    Closed,
    Open(usize),
}

impl Command {
    fn start(wanted: Wanted, base: &[(String, String)], workdir: &str) -> io::Result<Command> {
        let own = "/proc/self/exe";
        let file =
            if wanted.own { own } else { wanted.argv.first().ok_or_else(|| io::Error::other("argv is empty"))? };
        let mut env = base.to_vec();
        if wanted.tty.is_some() {
            set(&mut env, "TERM", "xterm-256color");
        }
        for (name, value) in &wanted.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(io::Error::other(format!("the environment variable {name:?} is malformed")));
            }
            set(&mut env, name, value);
        }
        let mut program = Program {
            file,
            argv: &wanted.argv,
            env: &env,
            cwd: if wanted.cwd.is_empty() { workdir } else { &wanted.cwd },
            descriptors: &[],
            terminal: None,
            session: false,
        };
        let (pid, stdin, stdout, stderr);
        if let Some(size) = wanted.tty {
            let (master, path) = spawn::terminal(size)
                .map_err(|why| io::Error::new(why.kind(), format!("the sandbox has no terminal to give: {why}")))?;
            program.terminal = Some(&path);
            program.session = true;
            pid = spawn::spawn(&program)?;
            (stdin, stdout, stderr) = (None, Some(master), None);
        } else {
            let (out_read, out_write) = sys::pipe()?;
            let (err_read, err_write) = sys::pipe()?;
            let input = if wanted.stdin { Some(sys::pipe()?) } else { None };
            // Without input it gets this process's, which is empty.
            let source = input.as_ref().map_or(0, |(read, _)| read.as_raw_fd());
            let descriptors = [(source, 0), (out_write.as_raw_fd(), 1), (err_write.as_raw_fd(), 2)];
            program.descriptors = &descriptors;
            pid = spawn::spawn(&program)?;
            let input = input.map(|(_, write)| write);
            for pipe in [Some(&out_read), Some(&err_read), input.as_ref()].into_iter().flatten() {
                // A pipe that was just made has no way to refuse.
                sys::nonblocking(pipe)?;
            }
            (stdin, stdout, stderr) = (input, Some(out_read), Some(err_read));
        }
        let began = Instant::now();
        let deadline = (wanted.timeout_ms > 0).then(|| began + Duration::from_millis(wanted.timeout_ms));
        let first = Listener { id: wanted.id, next: 0, window: OUTPUT_WINDOW, hold: true };
        Ok(Command {
            wanted,
            pid,
            began,
            deadline,
            stdin,
            stdout,
            stderr,
            log: Log::default(),
            listeners: vec![first],
            input: VecDeque::new(),
            close_input: false,
            killed: false,
            timed_out: false,
            output_exceeded: false,
            ended: None,
            wall: Duration::ZERO,
            drain_until: began,
            drained: 0,
            silent: false,
        })
    }

    fn is_tty(&self) -> bool {
        self.wanted.tty.is_some()
    }

    /// Where its input goes.
    fn input(&self) -> Option<&OwnedFd> {
        if self.is_tty() { self.stdout.as_ref() } else { self.stdin.as_ref() }
    }

    /// How much may be read: only what everybody who is waited for can be sent at once.
    fn room(&self) -> Room {
        let mut most = OUTPUT_WINDOW;
        for listener in self.listeners.iter().filter(|listener| listener.hold) {
            if listener.next < self.log.end() || listener.window < LEAST_CHARGE {
                return Room::Closed;
            }
            most = most.min(listener.window);
        }
        Room::Open(usize::try_from(most).unwrap_or(BUFFER).min(BUFFER))
    }

    fn watch(&self, watched: &mut Vec<libc::pollfd>) {
        let fd = |stream: Option<&OwnedFd>, wanted: bool| match stream {
            Some(stream) if wanted => stream.as_raw_fd(),
            _ => -1,
        };
        let open = matches!(self.room(), Room::Open(_));
        let input = !self.input.is_empty() || self.close_input;
        watched.push(interest(fd(self.stdout.as_ref(), open), libc::POLLIN));
        watched.push(interest(fd(self.stderr.as_ref(), open), libc::POLLIN));
        watched.push(interest(fd(self.input(), input), libc::POLLOUT));
    }

    /// Does what its descriptors are ready for.
    fn ready(&mut self, ready: &[libc::pollfd], buffer: &mut [u8], link: &Link) {
        if ready[2].revents != 0 {
            self.feed(link);
        }
        for (ready, stderr) in [(&ready[0], false), (&ready[1], true)] {
            if ready.revents != 0
                && let Room::Open(most) = self.room()
            {
                self.read(&mut buffer[..most], stderr);
                self.tell(link);
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8], stderr: bool) {
        let stream = if stderr { &mut self.stderr } else { &mut self.stdout };
        let Some(pipe) = stream else { return };
        let read = match sys::read(pipe, buffer) {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => return,
            // A terminal whose other end is closed says so with an error.
            Ok(0) | Err(_) => {
                *stream = None;
                return;
            }
            Ok(read) => read,
        };
        let mut keep = read;
        if self.wanted.output_bytes > 0 {
            let left = self.wanted.output_bytes.saturating_sub(self.log.end());
            keep = keep.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        self.log.add(&buffer[..keep], stderr);
        self.drained += if self.ended.is_some() { read as u64 } else { 0 };
        if keep < read {
            self.output_exceeded = true;
            self.kill();
            (self.stdout, self.stderr) = (None, None);
        }
    }

    /// Sends everybody what is there for them, as far as their windows are open.
    fn tell(&mut self, link: &Link) {
        for listener in &mut self.listeners {
            while listener.window >= LEAST_CHARGE {
                let most = usize::try_from(listener.window).unwrap_or(BUFFER).min(BUFFER);
                let Some(piece) = self.log.piece(listener.next, most) else { break };
                let reply = Reply::Output { id: listener.id, stderr: piece.stderr, offset: piece.offset };
                link.send(&reply, piece.bytes);
                listener.window -= charge(piece.bytes.len()).min(listener.window);
                listener.next = piece.offset + piece.bytes.len() as u64;
            }
        }
    }

    /// Writes what is there for the command's input, and says how much was taken.
    fn feed(&mut self, link: &Link) {
        while let Some((from, bytes)) = self.input.front_mut() {
            let pipe = if self.wanted.tty.is_some() { &self.stdout } else { &self.stdin };
            let Some(pipe) = pipe else { return };
            let taken = match sys::write(pipe, bytes) {
                Ok(taken) => taken,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // The command reads no more: what it was to get goes nowhere.
                    self.close_input = true;
                    self.stdin = None;
                    return self.discard(link);
                }
            };
            link.send(&Reply::Taken { id: *from, bytes: taken as u64 }, &[]);
            bytes.drain(..taken);
            if bytes.is_empty() {
                self.input.pop_front();
            }
        }
        if self.close_input {
            if self.is_tty() {
                // A terminal's input has no end; this is what somebody types to say so.
                if let Some(master) = &self.stdout {
                    let _ = sys::write(master, &[END_OF_INPUT]);
                }
                self.close_input = false;
            }
            self.stdin = None;
        }
    }

    /// Input for a command that reads no more goes nowhere; its sender must not wait for that.
    fn discard(&mut self, link: &Link) {
        for (from, bytes) in self.input.drain(..) {
            link.send(&Reply::Taken { id: from, bytes: bytes.len() as u64 }, &[]);
        }
    }

    fn write(&mut self, from: u64, bytes: &[u8], link: &Link) {
        if bytes.is_empty() {
            self.close_input = true;
        } else {
            self.input.push_back((from, bytes.to_vec()));
        }
        if self.input().is_none() {
            return self.discard(link);
        }
        // What fits is written at once.
        self.feed(link);
    }

    fn signal(&self, signal: i32) {
        // A number that was collected may be another's.
        if self.ended.is_some() {
            return;
        }
        let foreground = self.stdout.as_ref().filter(|_| self.is_tty()).and_then(spawn::foreground);
        let foreground = foreground.filter(|group| *group != self.pid);
        if let Some(group) = foreground {
            sys::kill(-group, signal);
        }
        // What keys send is for the job in the foreground: a shell that got it as well would throw away what is typed next.
        if foreground.is_none() || !matches!(signal, libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP) {
            sys::kill(-self.pid, signal);
        }
    }

    fn kill(&mut self) {
        if !self.killed && self.ended.is_none() {
            reaper::kill_tree(self.pid);
            self.killed = true;
        }
    }

    fn ended(&mut self, ended: Ended, link: &Link) {
        let now = Instant::now();
        self.ended = Some(ended);
        self.wall = now.saturating_duration_since(self.began);
        self.drain_until = now + DRAIN;
        self.stdin = None;
        self.close_input = true;
        self.discard(link);
    }

    /// Looks at the time, and at what is over.
    fn settle(&mut self, now: Instant, link: &Link) {
        if self.ended.is_none() {
            if self.deadline.is_some_and(|deadline| now >= deadline) && !self.killed {
                self.timed_out = true;
                self.kill();
            }
            return;
        }
        if !self.silent {
            // Time that somebody who is waited for takes for itself does not count.
            if matches!(self.room(), Room::Closed) {
                self.drain_until = now + DRAIN;
            }
            let none = self.stdout.is_none() && self.stderr.is_none();
            if none || now >= self.drain_until || self.drained >= DRAIN_BYTES || self.listeners.is_empty() {
                self.silent = true;
                (self.stdout, self.stderr) = (None, None);
            }
        }
        if let Some(end) = self.end() {
            let last = self.log.end();
            self.listeners.retain(|listener| {
                let done = listener.next >= last;
                if done {
                    link.send(&Reply::Exit { id: listener.id, end }, &[]);
                }
                !done
            });
        }
    }

    /// When to look again.
    fn due(&self) -> Option<Instant> {
        match self.ended {
            None if self.killed => None,
            None => self.deadline,
            Some(_) if self.silent || matches!(self.room(), Room::Closed) => None,
            Some(_) => Some(self.drain_until),
        }
    }

    /// How it ended, once nothing more is read.
    fn end(&self) -> Option<End> {
        let ended = self.ended.filter(|_| self.silent)?;
        Some(End {
            code: ended.code,
            signal: ended.signal,
            timed_out: self.timed_out,
            output_exceeded: self.output_exceeded,
            wall_us: u64::try_from(self.wall.as_micros()).unwrap_or(u64::MAX),
            user_us: ended.user_us,
            system_us: ended.system_us,
            max_rss_kib: ended.max_rss_kib,
        })
    }

    /// Whether nobody can ask for it any more.
    fn is_over(&self) -> bool {
        self.silent && self.ended.is_some() && self.listeners.is_empty() && !self.wanted.detach
    }

    fn seen(&self, now: Instant) -> Process {
        Process {
            id: Some(self.wanted.id),
            label: self.wanted.label.clone(),
            pid: if self.ended.is_some() { 0 } else { self.pid },
            argv: self.wanted.argv.clone(),
            detached: self.wanted.detach,
            age_ms: u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX),
            written: self.log.end(),
            end: self.end(),
            ..Process::default()
        }
    }
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    env.retain(|(known, _)| known != name);
    env.push((name.to_owned(), value.to_owned()));
}

/// All commands of the sandbox.
pub(crate) struct Commands {
    all: BTreeMap<u64, Command>,
    /// Which command a listener hears.
    listening: HashMap<u64, u64>,
    env: Vec<(String, String)>,
    workdir: String,
    link: Arc<Link>,
}

impl Commands {
    pub(crate) fn new(claim: &Claim, link: Arc<Link>) -> Commands {
        let (env, workdir) = (claim.env.clone(), claim.workdir.clone());
        Commands { all: BTreeMap::new(), listening: HashMap::new(), env, workdir, link }
    }

    /// Starts a command. It is answered through the link.
    pub(crate) fn start(&mut self, wanted: Wanted) {
        let id = wanted.id;
        match self.try_start(wanted) {
            Ok(command) => {
                self.listening.insert(id, id);
                self.all.insert(id, command);
            }
            Err(why) => self.link.send(&Reply::ExecFailed { id, message: why.to_string() }, &[]),
        }
    }

    fn try_start(&mut self, wanted: Wanted) -> io::Result<Command> {
        // SAFETY: no pointers.
        let own = unsafe { libc::getuid() };
        if let Some(uid) = wanted.uid.filter(|uid| *uid != own) {
            return Err(io::Error::other(format!(
                "it cannot run as user {uid}: a sandbox has one user, {own}, and no capability to become another"
            )));
        }
        if self.all.values().filter(|command| command.ended.is_none()).count() >= MAX_COMMANDS {
            return Err(io::Error::other(format!(
                "too many commands at once in this sandbox: {MAX_COMMANDS} are the most"
            )));
        }
        // Those that have ended give way, the oldest first, and those that somebody hears last.
        while self.all.len() >= 2 * MAX_COMMANDS {
            let ended = || self.all.values().filter(|command| command.ended.is_some());
            let old = ended().find(|command| command.listeners.is_empty()).or_else(|| ended().next());
            let Some(command) = old.map(|old| old.wanted.id).and_then(|old| self.all.remove(&old)) else { break };
            self.let_go(&command);
        }
        Command::start(wanted, &self.env, &self.workdir)
    }

    /// Tells those who still hear a command that is forgotten.
    fn let_go(&mut self, command: &Command) {
        for listener in &command.listeners {
            self.listening.remove(&listener.id);
            let id = listener.id;
            let reply = match command.end().filter(|_| listener.next >= command.log.end()) {
                Some(end) => Reply::Exit { id, end },
                None => Reply::ExecFailed {
                    id,
                    message: "the command was forgotten for newer ones before all of it was heard".to_owned(),
                },
            };
            self.link.send(&reply, &[]);
        }
    }

    pub(crate) fn attach(&mut self, id: u64, process: u64, from: Option<u64>, hold: bool) {
        let refuse = |message: String| self.link.send(&Reply::ExecFailed { id, message }, &[]);
        let Some(command) = self.all.get_mut(&process) else {
            return refuse(format!("there is no command {process} in this sandbox (any more)"));
        };
        if command.listeners.len() >= MAX_ATTACHED {
            return refuse(format!("{MAX_ATTACHED} are attached to this command, and no more may be"));
        }
        // Nobody hears what has not been said.
        let next = from.unwrap_or(command.log.start()).min(command.log.end());
        command.listeners.push(Listener { id, next, window: OUTPUT_WINDOW, hold });
        self.listening.insert(id, process);
        command.tell(&self.link);
    }

    fn of(&mut self, id: u64) -> Option<&mut Command> {
        self.all.get_mut(self.listening.get(&id)?)
    }

    pub(crate) fn write(&mut self, id: u64, bytes: &[u8]) {
        let link = self.link.clone();
        if let Some(command) = self.of(id) {
            command.write(id, bytes, &link);
        }
    }

    pub(crate) fn signal(&mut self, id: u64, signal: i32) {
        let process = self.listening.get(&id).copied().unwrap_or(id);
        if let Some(command) = self.all.get_mut(&process) {
            command.signal(signal);
        }
    }

    pub(crate) fn resize(&mut self, id: u64, size: Size) {
        if let Some(command) = self.of(id)
            && command.is_tty()
            && let Some(master) = &command.stdout
        {
            // Programs that do not hear of it keep their size; nothing else depends on it.
            let _ = spawn::resize(master, size);
        }
    }

    /// More output may be sent. Whether `id` hears a command.
    pub(crate) fn open_window(&mut self, id: u64, bytes: u64) -> bool {
        let link = self.link.clone();
        let Some(command) = self.of(id) else { return false };
        if let Some(listener) = command.listeners.iter_mut().find(|listener| listener.id == id) {
            listener.window = listener.window.saturating_add(bytes).min(OUTPUT_WINDOW);
        }
        command.tell(&link);
        true
    }

    /// Lets go of a command, which ends it when it is not detached. Whether `id` heard one.
    pub(crate) fn cancel(&mut self, id: u64) -> bool {
        let Some(process) = self.listening.remove(&id) else { return false };
        if let Some(command) = self.all.get_mut(&process) {
            command.listeners.retain(|listener| listener.id != id);
            if process == id && !command.wanted.detach {
                command.kill();
            }
        }
        true
    }

    /// Whether none runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.all.values().all(|command| command.ended.is_some())
    }

    pub(crate) fn watch(&self, watched: &mut Vec<libc::pollfd>) {
        for command in self.all.values() {
            command.watch(watched);
        }
    }

    /// Does what descriptors are ready for: `ready` is what [`Commands::watch`] has put there, `buffer` of [`BUFFER`] bytes.
    pub(crate) fn ready(&mut self, ready: &[libc::pollfd], buffer: &mut [u8]) {
        for (command, ready) in self.all.values_mut().zip(ready.chunks(WATCHED)) {
            if ready.iter().any(|ready| ready.revents != 0) {
                command.ready(ready, buffer, &self.link);
            }
        }
    }

    /// How many descriptors are watched.
    pub(crate) fn watched(&self) -> usize {
        WATCHED * self.all.len()
    }

    /// A process has ended. Whether it was one of these.
    pub(crate) fn ended(&mut self, pid: i32, ended: Ended) -> bool {
        let found = self.all.values_mut().find(|command| command.pid == pid && command.ended.is_none());
        found.map(|command| command.ended(ended, &self.link)).is_some()
    }

    /// Looks at the time, and at what is over; when to do so again.
    pub(crate) fn settle(&mut self) -> Option<Instant> {
        if self.all.is_empty() {
            return None;
        }
        let now = Instant::now();
        for command in self.all.values_mut() {
            command.settle(now, &self.link);
        }
        let all = &self.all;
        self.listening.retain(|id, process| {
            all.get(process).is_some_and(|command| command.listeners.iter().any(|listener| listener.id == *id))
        });
        self.all.retain(|_, command| !command.is_over());
        self.all.values().filter_map(Command::due).min()
    }

    /// Everything stood still for so long: that was nobody's time.
    pub(crate) fn stood(&mut self, time: Duration) {
        for command in self.all.values_mut() {
            command.began += time;
            command.deadline = command.deadline.map(|deadline| deadline + time);
            command.drain_until += time;
        }
    }

    pub(crate) fn seen(&self) -> Vec<Process> {
        let now = Instant::now();
        self.all.values().map(|command| command.seen(now)).collect()
    }
}
