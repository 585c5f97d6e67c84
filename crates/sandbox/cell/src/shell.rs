//! The persistent shell behind the `bash` tool.
//!
//! Commands reach the shell through its standard input as one `eval` of a quoted string, so that a command can neither
//! swallow what follows it nor leave a quote open. Their exit status comes back on a pipe of its own that is closed while
//! they run, with a number that they cannot know: output cannot pass for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use palisade_cell::Reply;
use serde_json::Value;

use crate::reaper::{self, Started};
use crate::serve::Link;
use crate::sys::{self, Event, check, interest, nonblocking, pipe};
use crate::tools::Output;

/// What is kept of a command's output.
const KEPT: usize = 100 << 10;
/// The most that a caller may wait for one command.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// Calls that may wait for their turn.
const QUEUE: usize = 64;

/// The shell of this sandbox: one command at a time, in the order in which they came.
pub(crate) struct Shell {
    env: Vec<(String, String)>,
    workdir: String,
    link: Arc<Link>,
    wake: Event,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    calls: VecDeque<Call>,
    /// The call that runs, and its shell.
    running: Option<Current>,
    thread: bool,
}

struct Current {
    id: u64,
    pid: i32,
    cancelled: bool,
}

/// A call of the tool.
pub(crate) struct Call {
    pub(crate) id: u64,
    pub(crate) input: Value,
    pub(crate) limit: Duration,
}

struct Live {
    process: Started,
    stdin: OwnedFd,
    output: OwnedFd,
    status: OwnedFd,
    /// Whether nobody can write to the output any more.
    silent: bool,
    /// What came between two calls.
    pending: Kept,
}

impl Drop for Live {
    fn drop(&mut self) {
        // A number that was collected may be another's; its group has been killed by whoever saw the end.
        let mut watched = [interest(self.process.pidfd.as_raw_fd(), libc::POLLIN)];
        let ended = sys::poll(&mut watched, Some(Instant::now())).is_ok() && watched[0].revents != 0;
        if !ended {
            reaper::kill_tree(self.process.pid);
        }
    }
}

enum Ended {
    Status(i32),
    Gone,
    TimedOut,
}

impl Shell {
    pub(crate) fn new(env: Vec<(String, String)>, workdir: String, link: Arc<Link>) -> io::Result<Shell> {
        Ok(Shell { env, workdir, link, wake: Event::new()?, queue: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a call, which is answered through the link; an error is the answer.
    pub(crate) fn submit(self: &Arc<Shell>, call: Call) -> Result<(), Output> {
        let mut queue = self.lock();
        if queue.calls.len() >= QUEUE {
            return Err(Output::error("bash: too many calls at once in this sandbox"));
        }
        if !queue.thread {
            let shell = self.clone();
            let thread = std::thread::Builder::new().name("shell".to_owned()).stack_size(256 << 10);
            if thread.spawn(move || shell.serve()).is_err() {
                return Err(Output::error("bash: the sandbox has reached its limit of processes"));
            }
            queue.thread = true;
        }
        queue.calls.push_back(call);
        self.wake.raise();
        Ok(())
    }

    /// Ends a call, whether it runs or waits.
    pub(crate) fn cancel(&self, id: u64) {
        let mut queue = self.lock();
        match queue.running.as_mut() {
            Some(current) if current.id == id => {
                current.cancelled = true;
                reaper::kill_tree(current.pid);
            }
            // Whoever gave it up waits for no answer.
            _ => queue.calls.retain(|call| call.id != id),
        }
    }

    fn serve(&self) {
        let mut live = None;
        loop {
            let call = self.next(&mut live);
            let output = self.bash(&mut live, &call);
            self.link.send(&Reply::Tool { id: call.id, content: output.content, is_error: output.is_error }, &[]);
        }
    }

    /// The next call. Until there is one, what jobs in the background print is taken off them, so that they can go on.
    fn next(&self, live: &mut Option<Live>) -> Call {
        loop {
            self.wake.clear();
            if let Some(call) = self.lock().calls.pop_front() {
                return call;
            }
            let output = live.as_ref().filter(|live| !live.silent).map_or(-1, |live| live.output.as_raw_fd());
            let mut watched = [interest(self.wake.as_raw_fd(), libc::POLLIN), interest(output, libc::POLLIN)];
            let failed = sys::poll(&mut watched, None).is_err();
            if let Some(live) = live.as_mut()
                && watched[1].revents != 0
            {
                live.drain_into_pending();
                // A job that only prints must not keep this thread at work.
                let _ = sys::poll(&mut watched[..1], Some(Instant::now() + Duration::from_millis(5)));
            }
            if failed {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
    }

    fn start(&self) -> io::Result<Live> {
        let (out_read, out_write) = pipe()?;
        let (status_read, status_write) = pipe()?;
        let (in_read, in_write) = pipe()?;
        let program = ["/bin/bash", "/usr/bin/bash"].into_iter().find(|path| std::path::Path::new(path).exists());
        let program = program.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "there is no /bin/bash in this sandbox's root file system")
        })?;
        let errors = out_write.try_clone()?;
        let status: RawFd = status_write.as_raw_fd();
        let mut command = Command::new(program);
        command
            .args(["--noprofile", "--norc"])
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("PS1", "")
            .env("PS2", "")
            .current_dir(&self.workdir)
            .stdin(Stdio::from(in_read))
            .stdout(Stdio::from(out_write))
            .stderr(Stdio::from(errors));
        // SAFETY: between fork and exec only async-signal-safe calls are made, on numbers captured before. The number
        // that is given to the status pipe is held by the cell for this, so no other descriptor can have it.
        unsafe {
            command.pre_exec(move || {
                check(libc::setsid().into())?;
                check(libc::dup2(status, STATUS).into())?;
                Ok(())
            });
        }
        nonblocking(&in_write)?;
        nonblocking(&out_read)?;
        nonblocking(&status_read)?;
        let process = reaper::spawn(&mut command)?;
        let pending = Kept::default();
        Ok(Live { process, stdin: in_write, output: out_read, status: status_read, silent: false, pending })
    }

    fn bash(&self, live: &mut Option<Live>, call: &Call) -> Output {
        let input = &call.input;
        let restart = input["restart"].as_bool().unwrap_or(false);
        let command = match &input["command"] {
            Value::String(command) if !command.trim().is_empty() => Some(command.as_str()),
            Value::Null | Value::String(_) => None,
            _ => return Output::error("bash: command must be a string"),
        };
        if command.is_none() && !restart {
            return Output::error("bash: command is required");
        }
        let timeout = match &input["timeout_ms"] {
            Value::Null => call.limit,
            value => match value.as_u64() {
                Some(ms) if ms > 0 => Duration::from_millis(ms).min(call.limit.max(Duration::from_millis(1))),
                _ => return Output::error("bash: timeout_ms must be a positive number of milliseconds"),
            },
        }
        .min(MAX_TIMEOUT);
        if command.is_some_and(|command| command.contains('\0')) {
            return Output::error("bash: command must not contain NUL bytes");
        }
        if restart {
            *live = None;
            // What earlier shells left behind goes too, unless it could belong to a command that is not the shell's.
            if self.link.is_idle() {
                reaper::kill_all();
            }
        }
        let Some(command) = command else { return Output::text("bash: session restarted") };
        let mut current = match live.take().map_or_else(|| self.start(), Ok) {
            Ok(current) => current,
            Err(why) if why.raw_os_error() == Some(libc::EAGAIN) => {
                return Output::error(
                    "bash: the sandbox has reached its limit of processes; restart: true ends all that were left behind",
                );
            }
            Err(why) => return Output::error(format!("bash: the shell could not be started: {why}")),
        };
        self.lock().running = Some(Current { id: call.id, pid: current.process.pid, cancelled: false });
        let mut kept = std::mem::take(&mut current.pending);
        let ended = run(&mut current, command, timeout, &mut kept);
        let cancelled = self.lock().running.take().is_some_and(|current| current.cancelled);
        let text = kept.text();
        match ended {
            _ if cancelled => Output::error("bash: cancelled"),
            Ok(Ended::Status(code)) => {
                *live = Some(current);
                match (code, text.is_empty()) {
                    (0, true) => Output::text("(no output)"),
                    (0, false) => Output::text(text),
                    (code, true) => Output::error(format!("exit {code}")),
                    (_, false) => Output::error(text),
                }
            }
            Ok(Ended::Gone) if text.is_empty() => Output::error("bash: bash session terminated"),
            Ok(Ended::Gone) => Output::error(format!("{text}\nbash: bash session terminated")),
            Ok(Ended::TimedOut) => {
                let said = format!("bash: bash command timed out after {}ms", timeout.as_millis());
                Output::error(if text.is_empty() { said } else { format!("{text}\n{said}") })
            }
            Err(why) => Output::error(format!("bash: {why}")),
        }
    }
}

/// The shell's descriptor for exit statuses. Bash keeps its own descriptors above 9, so this one is free.
const STATUS: RawFd = 9;

/// Keeps the number of the status descriptor from being given to anything else in this process, for good.
pub(crate) fn reserve() -> io::Result<()> {
    // SAFETY: no pointers; nothing has this number yet.
    check(unsafe { libc::dup3(0, STATUS, libc::O_CLOEXEC) }.into()).map(drop)
}

fn run(live: &mut Live, command: &str, timeout: Duration, kept: &mut Kept) -> io::Result<Ended> {
    let nonce = nonce()?;
    let quoted = command.replace('\'', r"'\''");
    // One line of the shell's own grammar: it is read whole before any of it runs.
    let line =
        format!("eval '{quoted}' </dev/null {STATUS}>&-; {{ builtin echo {nonce} \"$?\" >&{STATUS}; }} 2>/dev/null\n");
    let deadline = Instant::now() + timeout;
    let mut unsent = line.as_bytes();
    let mut status = Vec::new();
    loop {
        if Instant::now() >= deadline {
            return Ok(Ended::TimedOut);
        }
        let mut watched = [
            interest(if live.silent { -1 } else { live.output.as_raw_fd() }, libc::POLLIN),
            interest(live.status.as_raw_fd(), libc::POLLIN),
            interest(if unsent.is_empty() { -1 } else { live.stdin.as_raw_fd() }, libc::POLLOUT),
            interest(live.process.pidfd.as_raw_fd(), libc::POLLIN),
        ];
        sys::poll(&mut watched, Some(deadline))?;
        if watched[0].revents != 0 {
            live.drain(kept)?;
        }
        // The command may be longer than the pipe.
        if watched[2].revents != 0 {
            match sys::write(&live.stdin, unsent) {
                Ok(written) => unsent = &unsent[written..],
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                // Nobody reads: the shell is about to end, which is what is said then.
                Err(_) => unsent = &[],
            }
        }
        if watched[1].revents != 0 {
            let mut buffer = [0; 256];
            match sys::read(&live.status, &mut buffer) {
                // Only the shell holds the other end: it has let go of it, and no status can come any more.
                Ok(0) => return live.gone(kept),
                Ok(got) => status.extend_from_slice(&buffer[..got]),
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                Err(why) => return Err(why),
            }
            if let Some(code) = parse(&status, &nonce) {
                live.drain(kept)?;
                return Ok(Ended::Status(code));
            }
            // Nobody but a forger writes more than one line.
            if status.len() > 4096 {
                status.clear();
            }
        } else if watched[3].revents != 0 {
            return live.gone(kept);
        }
    }
}

fn parse(status: &[u8], nonce: &str) -> Option<i32> {
    let text = String::from_utf8_lossy(status);
    // Without its end a number may be the beginning of another.
    let (whole, _) = text.rsplit_once('\n')?;
    whole.lines().find_map(|line| line.split_once(nonce)?.1.strip_prefix(' ')?.parse().ok())
}

fn nonce() -> io::Result<String> {
    // The shell reads its input byte by byte, so this is no longer than it needs to be.
    let mut bytes = [0; 8];
    // SAFETY: the buffer is as long as the length says.
    check(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } as libc::c_long)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Live {
    /// Takes what is there. A background job may write for ever, so no more than a few buffers are taken at a time.
    fn drain(&mut self, kept: &mut Kept) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        for _ in 0..16 {
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

    fn drain_into_pending(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        // What cannot be read now is tried again with the next call, which says why.
        let _ = self.drain(&mut pending);
        self.pending = pending;
    }

    /// The shell has ended: what it printed last, and an end to the jobs of its group.
    fn gone(&mut self, kept: &mut Kept) -> io::Result<Ended> {
        self.drain(kept)?;
        sys::kill(-self.process.pid, libc::SIGKILL);
        Ok(Ended::Gone)
    }
}

/// The end of a command's output.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    cut: bool,
}

impl Kept {
    fn add(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        // Cut now and then rather than at each read; escape sequences are removed later and do not count.
        if self.bytes.len() > 4 * KEPT {
            self.bytes.drain(..self.bytes.len() - 2 * KEPT);
            self.cut = true;
        }
    }

    fn text(mut self) -> String {
        let mut plain = strip_escapes(&self.bytes);
        if plain.len() > KEPT {
            plain.drain(..plain.len() - KEPT);
            // Do not begin in the middle of a character.
            let start = plain.iter().take(4).position(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
            plain.drain(..start);
            self.cut = true;
        }
        let text = String::from_utf8_lossy(&plain);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        if self.cut { format!("[output truncated]\n{text}") } else { text.to_owned() }
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
