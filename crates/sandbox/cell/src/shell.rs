//! The persistent shell behind the `bash` tool.
//!
//! Commands reach the shell through its standard input as one `eval` of a quoted string, so that a command can neither
//! swallow what follows it nor leave a quote open. Their exit status comes back on a pipe of its own that is closed while
//! they run, with a number that they cannot know: output cannot pass for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_cell::Claim;
use serde_json::Value;

use crate::link::Link;
use crate::ps;
use crate::reaper;
use crate::spawn::{self, Program};
use crate::sys::{self, check, interest, nonblocking, pipe};
use crate::tools::Output;

/// What is kept of a command's output.
const KEPT: usize = 100 << 10;
/// The most that a caller may wait for one command.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// Calls that may wait for their turn.
const QUEUE: usize = 64;
/// How many descriptors are watched.
pub(crate) const WATCHED: usize = 3;
/// A job that only prints must not keep this process at work: between two calls it is listened to this often.
const PAUSE: Duration = Duration::from_millis(5);
/// The kernel counts processor time in steps of this; what is shorter is not measured.
const TICK: Duration = Duration::from_millis(10);

/// The shell of this sandbox: one command at a time, in the order in which they came.
pub(crate) struct Shell {
    env: Vec<(String, String)>,
    workdir: String,
    link: Arc<Link>,
    calls: VecDeque<Call>,
    live: Option<Live>,
    running: Option<Running>,
    /// When jobs in the background may be heard again.
    hear_after: Option<Instant>,
}

/// A call of the tool.
pub(crate) struct Call {
    pub(crate) id: u64,
    pub(crate) input: Value,
    pub(crate) limit: Duration,
}

struct Live {
    pid: i32,
    stdin: OwnedFd,
    output: OwnedFd,
    status: OwnedFd,
    /// Whether nobody can write to the output any more.
    silent: bool,
    /// Whether it has been collected: its number may be another's.
    collected: bool,
    /// What came between two calls.
    pending: Kept,
    /// Processor time when it was last looked at.
    cpu_us: Option<u64>,
}

impl Drop for Live {
    fn drop(&mut self) {
        // The group of one that was collected has been killed by whoever saw the end.
        if !self.collected {
            reaper::kill_tree(self.pid);
        }
    }
}

/// A call that the shell is at work on.
struct Running {
    id: u64,
    nonce: String,
    unsent: Vec<u8>,
    sent: usize,
    status: Vec<u8>,
    kept: Kept,
    timeout: Duration,
    began: Instant,
    deadline: Instant,
    cancelled: bool,
}

enum Ended {
    Status(i32),
    Gone,
    TimedOut,
}

impl Shell {
    pub(crate) fn new(claim: Claim, link: Arc<Link>) -> Shell {
        let Claim { env, workdir, .. } = claim;
        Shell { env, workdir, link, calls: VecDeque::new(), live: None, running: None, hear_after: None }
    }

    /// Takes a call, which is answered through the link. It is begun by [`Shell::settle`].
    pub(crate) fn submit(&mut self, call: Call) {
        if self.calls.len() >= QUEUE {
            let refused = Output::error("bash: too many calls at once in this sandbox");
            return self.link.answer(call.id, refused, None);
        }
        self.calls.push_back(call);
    }

    /// Ends a call, whether it runs or waits.
    pub(crate) fn cancel(&mut self, id: u64) {
        match &mut self.running {
            Some(running) if running.id == id => {
                running.cancelled = true;
                if let Some(live) = self.live.as_ref().filter(|live| !live.collected) {
                    reaper::kill_tree(live.pid);
                }
            }
            // Whoever gave it up waits for no answer.
            _ => self.calls.retain(|call| call.id != id),
        }
    }

    pub(crate) fn watch(&self, watched: &mut Vec<libc::pollfd>) {
        let (mut output, mut status, mut stdin) = (-1, -1, -1);
        if let Some(live) = &self.live {
            if !live.silent && (self.running.is_some() || self.hear_after.is_none()) {
                output = live.output.as_raw_fd();
            }
            if let Some(running) = &self.running {
                status = live.status.as_raw_fd();
                if running.sent < running.unsent.len() {
                    stdin = live.stdin.as_raw_fd();
                }
            }
        }
        watched.push(interest(output, libc::POLLIN));
        watched.push(interest(status, libc::POLLIN));
        watched.push(interest(stdin, libc::POLLOUT));
    }

    /// Does what its descriptors are ready for: `ready` is what [`Shell::watch`] has put there.
    pub(crate) fn ready(&mut self, ready: &[libc::pollfd]) {
        let Some(live) = &mut self.live else { return };
        let Some(running) = &mut self.running else {
            if ready[0].revents != 0 {
                // What cannot be read now is tried again with the next call, which says why.
                let mut pending = std::mem::take(&mut live.pending);
                let _ = live.drain(&mut pending);
                live.pending = pending;
                self.hear_after = Some(Instant::now() + PAUSE);
            }
            return;
        };
        let mut ended = Ok(None);
        if ready[0].revents != 0
            && let Err(why) = live.drain(&mut running.kept)
        {
            ended = Err(why);
        }
        // The command may be longer than the pipe.
        if ready[2].revents != 0 {
            running.feed(live);
        }
        if ready[1].revents != 0 && ended.is_ok() {
            ended = running.hear(live);
        }
        match ended {
            Ok(None) => {}
            Ok(Some(ended)) => self.done(Ok(ended)),
            Err(why) => self.done(Err(why)),
        }
    }

    /// Everything stood still for so long: that was nobody's time.
    pub(crate) fn stood(&mut self, time: Duration) {
        if let Some(running) = &mut self.running {
            running.began += time;
            running.deadline += time;
        }
    }

    /// A process has ended. Whether it was the shell.
    pub(crate) fn ended(&mut self, pid: i32) -> bool {
        let Some(live) = self.live.as_mut().filter(|live| live.pid == pid && !live.collected) else { return false };
        live.collected = true;
        // An end to the jobs of its group.
        sys::kill(-pid, libc::SIGKILL);
        true
    }

    /// Looks at the time, at what is over and at what is next; when to do so again. `restart` ends what earlier shells have
    /// left behind.
    pub(crate) fn settle(&mut self, mut restart: impl FnMut()) -> Option<Instant> {
        loop {
            if let Some(running) = &mut self.running {
                if self.live.as_ref().is_some_and(|live| live.collected) {
                    // Its last status may be on its way.
                    let live = self.live.as_mut().expect("looked at just above");
                    let ended = match running.hear(live) {
                        Ok(None) => live.drain(&mut running.kept).map(|()| Ended::Gone),
                        Ok(Some(ended)) => Ok(ended),
                        Err(why) => Err(why),
                    };
                    self.done(ended);
                    continue;
                }
                if Instant::now() < running.deadline {
                    return Some(running.deadline);
                }
                self.done(Ok(Ended::TimedOut));
                continue;
            }
            if self.live.as_ref().is_some_and(|live| live.collected) {
                self.live = None;
            }
            let Some(call) = self.calls.pop_front() else { break };
            if let Err(refused) = self.begin(&call, &mut restart) {
                self.link.answer(call.id, refused, None);
            }
        }
        let now = Instant::now();
        let live = self.live.as_mut()?;
        if live.cpu_us.is_none() {
            live.cpu_us = ps::cpu_us(live.pid);
        }
        self.hear_after = self.hear_after.filter(|after| *after > now);
        self.hear_after
    }

    fn start(&self) -> io::Result<Live> {
        let (out_read, out_write) = pipe()?;
        let (status_read, status_write) = pipe()?;
        let (in_read, in_write) = pipe()?;
        let program = ["/bin/bash", "/usr/bin/bash"].into_iter().find(|path| std::path::Path::new(path).exists());
        let program = program.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "there is no /bin/bash in this sandbox's root file system")
        })?;
        let mut env: Vec<(String, String)> = self.env.clone();
        env.retain(|(name, _)| name != "PS1" && name != "PS2");
        env.extend([("PS1".to_owned(), String::new()), ("PS2".to_owned(), String::new())]);
        nonblocking(&in_write)?;
        nonblocking(&out_read)?;
        nonblocking(&status_read)?;
        let out = out_write.as_raw_fd();
        let pid = spawn::spawn(&Program {
            file: program,
            argv: &[program.to_owned(), "--noprofile".to_owned(), "--norc".to_owned()],
            env: &env,
            cwd: &self.workdir,
            descriptors: &[(in_read.as_raw_fd(), 0), (out, 1), (out, 2), (status_write.as_raw_fd(), STATUS)],
            terminal: None,
            session: true,
        })?;
        Ok(Live {
            pid,
            stdin: in_write,
            output: out_read,
            status: status_read,
            silent: false,
            collected: false,
            pending: Kept::default(),
            cpu_us: Some(0),
        })
    }

    /// Begins a call; an error is its answer, and so is the end of one that only restarts.
    fn begin(&mut self, call: &Call, restart: &mut impl FnMut()) -> Result<(), Output> {
        let input = &call.input;
        let restarts = input["restart"].as_bool().unwrap_or(false);
        let command = match &input["command"] {
            Value::String(command) if !command.trim().is_empty() => Some(command.as_str()),
            Value::Null | Value::String(_) => None,
            _ => return Err(Output::error("bash: command must be a string")),
        };
        if command.is_none() && !restarts {
            return Err(Output::error("bash: command is required"));
        }
        let timeout = match &input["timeout_ms"] {
            Value::Null => call.limit,
            value => match value.as_u64() {
                Some(ms) if ms > 0 => Duration::from_millis(ms).min(call.limit.max(Duration::from_millis(1))),
                _ => return Err(Output::error("bash: timeout_ms must be a positive number of milliseconds")),
            },
        }
        .min(MAX_TIMEOUT);
        if command.is_some_and(|command| command.contains('\0')) {
            return Err(Output::error("bash: command must not contain NUL bytes"));
        }
        if restarts {
            self.live = None;
            restart();
        }
        let Some(command) = command else { return Err(Output::text("bash: session restarted")) };
        let started = match self.live.take() {
            Some(live) => Ok(live),
            None => self.start(),
        };
        let mut live = started.map_err(|why| match why.raw_os_error() {
            Some(libc::EAGAIN) => Output::error(
                "bash: the sandbox has reached its limit of processes; restart: true ends all that were left behind",
            ),
            _ => Output::error(format!("bash: the shell could not be started: {why}")),
        })?;
        let nonce = nonce().map_err(|why| Output::error(format!("bash: {why}")))?;
        let began = Instant::now();
        let mut running = Running {
            id: call.id,
            unsent: line(command, &nonce).into_bytes(),
            sent: 0,
            nonce,
            status: Vec::new(),
            kept: std::mem::take(&mut live.pending),
            timeout,
            began,
            deadline: began + timeout,
            cancelled: false,
        };
        running.feed(&live);
        self.live = Some(live);
        self.running = Some(running);
        Ok(())
    }

    /// A call is over: it is answered, and the shell is kept if it can go on.
    fn done(&mut self, ended: io::Result<Ended>) {
        let Some(running) = self.running.take() else { return };
        let (took, text) = (running.began.elapsed(), running.kept.text());
        let mut cpu_us = None;
        if let Some(live) = &mut self.live {
            // What a short one has used counts when the shell is next at rest.
            let now = if took >= TICK { ps::cpu_us(live.pid) } else { None };
            cpu_us = now.and_then(|now| now.checked_sub(live.cpu_us?));
            live.cpu_us = now;
        }
        let keep = matches!(ended, Ok(Ended::Status(_))) && !running.cancelled;
        let output = match ended {
            _ if running.cancelled => Output::error("bash: cancelled"),
            Ok(Ended::Status(code)) => match (code, text.is_empty()) {
                (0, true) => Output::text("(no output)"),
                (0, false) => Output::text(text),
                (code, true) => Output::error(format!("exit {code}")),
                (_, false) => Output::error(text),
            },
            Ok(Ended::Gone) if text.is_empty() => Output::error("bash: bash session terminated"),
            Ok(Ended::Gone) => Output::error(format!("{text}\nbash: bash session terminated")),
            Ok(Ended::TimedOut) => {
                let said = format!("bash: bash command timed out after {}ms", running.timeout.as_millis());
                Output::error(if text.is_empty() { said } else { format!("{text}\n{said}") })
            }
            Err(why) => Output::error(format!("bash: {why}")),
        };
        if !keep {
            // Before the answer: what runs in it must not go on when somebody thinks that it has ended.
            self.live = None;
        }
        self.link.answer(running.id, output, cpu_us);
    }
}

impl Running {
    fn feed(&mut self, live: &Live) {
        while self.sent < self.unsent.len() {
            match sys::write(&live.stdin, &self.unsent[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody reads: the shell is about to end, which is what is said then.
                Err(_) => self.sent = self.unsent.len(),
            }
        }
    }

    /// What the shell says about the command's end.
    fn hear(&mut self, live: &mut Live) -> io::Result<Option<Ended>> {
        let mut buffer = [0; 256];
        match sys::read(&live.status, &mut buffer) {
            // Only the shell holds the other end: it has let go of it, and no status can come any more.
            Ok(0) => {
                live.drain(&mut self.kept)?;
                return Ok(Some(Ended::Gone));
            }
            Ok(got) => self.status.extend_from_slice(&buffer[..got]),
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
            Err(why) => return Err(why),
        }
        if let Some(code) = parse(&self.status, &self.nonce) {
            live.drain(&mut self.kept)?;
            return Ok(Some(Ended::Status(code)));
        }
        // Nobody but a forger writes more than one line.
        if self.status.len() > 4096 {
            self.status.clear();
        }
        Ok(None)
    }
}

/// The shell's descriptor for exit statuses. Bash keeps its own descriptors above 9, so this one is free.
pub(crate) const STATUS: RawFd = 9;

/// Keeps the number of the status descriptor from being given to anything else in this process, for good.
pub(crate) fn reserve() -> io::Result<()> {
    // SAFETY: no pointers; nothing has this number yet.
    check(unsafe { libc::dup3(0, STATUS, libc::O_CLOEXEC) }.into()).map(drop)
}

/// One line of the shell's own grammar: it is read whole before any of it runs, and byte by byte, so it is short.
fn line(command: &str, nonce: &str) -> String {
    let quoted = command.replace('\'', r"'\''");
    format!("eval '{quoted}'</dev/null {STATUS}>&-;{{ builtin echo {nonce} \"$?\">&{STATUS};}} 2>/dev/null\n")
}

fn parse(status: &[u8], nonce: &str) -> Option<i32> {
    let text = String::from_utf8_lossy(status);
    // Without its end a number may be the beginning of another.
    let (whole, _) = text.rsplit_once('\n')?;
    whole.lines().find_map(|line| line.split_once(nonce)?.1.strip_prefix(' ')?.parse().ok())
}

/// A word that nobody can know: 48 bits, of which a command has one guess for each line that it writes.
fn nonce() -> io::Result<String> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.";
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is as long as the length says.
    check(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } as libc::c_long)?;
    Ok(bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte & 63)])).collect())
}

impl Live {
    /// Takes what is there. A background job may write for ever, so no more than a few buffers are taken at a time.
    fn drain(&mut self, kept: &mut Kept) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        for _ in 0..64 {
            match sys::read(&self.output, &mut buffer) {
                Ok(0) => {
                    self.silent = true;
                    return Ok(());
                }
                Ok(got) => kept.add(&buffer[..got]),
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }
}

/// The end of a command's output.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    /// Bytes that came before those and are not kept.
    dropped: u64,
}

impl Kept {
    fn add(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        // Cut now and then rather than at each read; escape sequences are removed later and do not count.
        if self.bytes.len() > 4 * KEPT {
            self.dropped += self.bytes.drain(..self.bytes.len() - 2 * KEPT).len() as u64;
        }
    }

    fn text(mut self) -> String {
        let mut plain = strip_escapes(&self.bytes);
        if plain.len() > KEPT {
            self.dropped += plain.drain(..plain.len() - KEPT).len() as u64;
            // Do not begin in the middle of a character.
            let start = plain.iter().take(4).position(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
            self.dropped += plain.drain(..start).len() as u64;
        }
        let text = String::from_utf8_lossy(&plain);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        match self.dropped {
            0 => text.to_owned(),
            dropped => format!("[output truncated: the first {dropped} bytes are missing]\n{text}"),
        }
    }
}

/// Removes terminal escape sequences and other control characters: whoever looks at a log must see what was printed.
pub(crate) fn strip_escapes(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            0x1b => rest = &tail[escape(tail)..],
            b'\n' | b'\t' => plain.push(byte),
            b'\r' => {
                if tail.first() != Some(&b'\n') {
                    plain.push(b'\n');
                }
            }
            0x00..=0x1f | 0x7f => {}
            // U+0080 to U+009F: the same controls in another coat.
            0xc2 if matches!(tail.first(), Some(0x80..=0x9f)) => rest = &tail[1..],
            _ => plain.push(byte),
        }
    }
    plain
}

/// How many bytes behind an escape character belong to it. One that is not ended takes nothing with it: output must not be
/// hidden by a sequence that never closes.
fn escape(tail: &[u8]) -> usize {
    /// Longer strings than this are not what terminals understand.
    const LONGEST: usize = 4096;
    match tail.first() {
        // Control sequence: parameters, then one final byte.
        Some(b'[') => {
            let end = 1 + tail[1..].iter().take(LONGEST).take_while(|byte| (0x20..=0x3f).contains(*byte)).count();
            if tail.get(end).is_some_and(|byte| (0x40..=0x7e).contains(byte)) { end + 1 } else { 1 }
        }
        // Strings: until BEL or ESC \, on one line.
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let string = &tail[1..tail.len().min(LONGEST)];
            match string.iter().position(|byte| matches!(byte, 0x07 | 0x1b | b'\n')).map(|at| (at, string[at])) {
                Some((at, 0x07)) => at + 2,
                Some((at, 0x1b)) if string.get(at + 1) == Some(&b'\\') => at + 3,
                _ => 1,
            }
        }
        // A character set: intermediate bytes and a final one.
        Some(b'(' | b')' | b'*' | b'+' | b'#' | b'%' | b' ') => tail.len().min(2),
        Some(0x30..=0x7e) => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_removed() {
        assert_eq!(strip_escapes(b"\x1b[31mred\x1b[0m\x1b]0;title\x07 a\x08b\x1b(B\r\nc\x1b"), b"red ab\nc");
        assert_eq!(strip_escapes("ü\x1bPq\x1b\\ß\u{9b}2J".as_bytes()), "üß2J".as_bytes());
    }

    #[test]
    fn an_open_escape_hides_nothing() {
        assert_eq!(strip_escapes(b"\x1b]0;seen\nall\x1b[12\nof it\x1b"), b"0;seen\nall12\nof it");
        let many = b"\x1b]".repeat(100_000);
        assert_eq!(strip_escapes(&many), b"");
    }

    #[test]
    fn a_status_needs_its_nonce_and_its_end() {
        assert_eq!(parse(b"forged 0\nabc 7\n", "abc"), Some(7));
        assert_eq!(parse(b"abd 0\n", "abc"), None);
        assert_eq!(parse(b"abc 12", "abc"), None);
    }
}
