//! The cell: PID 1 of every sandbox.
//!
//! It builds the sandbox around itself, gives up every privilege, and then runs tools and commands for the worker, which
//! it hears through one stream. When that closes it ends, and with it everything in the sandbox.
//!
//! Architecture invariant: small, single-purpose and without a runtime. It is executed from a sealed memory file, inherits
//! one socket and nothing else, and must run in any root file system.

#![allow(unsafe_code, reason = "PID 1 of a sandbox talks to the kernel; each block says why it is sound")]

mod exec;
mod given;
mod reaper;
mod serve;
mod shell;
mod sys;
mod tools;
mod walls;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use palisade_cell::{Claim, Place, Ready, Setup, VERSION, check_length, decode, write_frame};
use serde::de::DeserializeOwned;

/// The descriptor that the worker hands over.
const SOCKET: RawFd = 3;
/// The way back.
const BACK: RawFd = 4;
/// The argument with which the worker speaks through standard input and output: a container runtime passes nothing else on.
const STDIO: &str = "stdio";

fn main() -> ExitCode {
    // SAFETY: no pointers. One arena: many short threads must not each keep a heap.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let stdio = std::env::args_os().nth(1).is_some_and(|argument| argument == STDIO);
    let Ok((from, to)) = prepare(stdio) else { return ExitCode::from(SENSELESS) };
    let mut worker = Worker { from, to, socket: !stdio };
    match come_up(&mut worker) {
        Ok((place, claim)) => {
            serve::serve(worker.from, worker.to, claim);
            if place == Place::Bare {
                // Without a process namespace nothing else ends what was started.
                reaper::kill_all();
            }
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// Where the worker is heard, and where it hears.
struct Worker {
    from: File,
    to: File,
    /// Whether descriptors can come with what it says.
    socket: bool,
}

/// What was said makes no sense, or nobody said anything.
const SENSELESS: u8 = 2;

/// Builds the sandbox, waits for its session and seals it; a failure has been told to whoever listens.
fn come_up(worker: &mut Worker) -> Result<(Place, Claim), ExitCode> {
    let senseless = |_| ExitCode::from(SENSELESS);
    let gone = |_| ExitCode::FAILURE;
    let (setup, base, descriptors) = receive::<Setup>(worker).map_err(senseless)?;
    if setup.version != VERSION {
        return Err(ExitCode::from(SENSELESS));
    }
    if setup.place != Place::Own {
        write_frame(&mut worker.to, &Ready::Built { notes: Vec::new() }, &[]).map_err(gone)?;
        let (claim, seal, _) = receive::<Claim>(worker).map_err(senseless)?;
        let entered = match setup.place {
            Place::Bare => given::settle(&setup, &claim),
            Place::Own | Place::Given => given::enter(&setup, &claim, [&base, &seal]),
        };
        let entered = tell(worker, entered)?;
        let up = Ready::Up {
            landlock_abi: entered.landlock_abi,
            seccomp: entered.seccomp,
            filtered: entered.filtered,
            notes: entered.notes,
        };
        write_frame(&mut worker.to, &up, &[]).map_err(gone)?;
        return Ok((setup.place, claim));
    }
    let built = tell(worker, walls::build(&setup, &base, descriptors))?;
    write_frame(&mut worker.to, &Ready::Built { notes: built.notes.clone() }, &[]).map_err(gone)?;
    let (claim, seal, descriptors) = receive::<Claim>(worker).map_err(senseless)?;
    let landlock_abi = tell(worker, walls::claim(built, &claim, &seal, descriptors))?;
    let up = Ready::Up { landlock_abi, seccomp: true, filtered: false, notes: Vec::new() };
    write_frame(&mut worker.to, &up, &[]).map_err(gone)?;
    Ok((setup.place, claim))
}

/// What was made; or else the worker is told why not.
fn tell<T>(worker: &mut Worker, made: Result<T, walls::Failed>) -> Result<T, ExitCode> {
    made.map_err(|failed| {
        let errno = failed.cause.raw_os_error().unwrap_or(0);
        let answer = Ready::Failed { step: failed.step.to_owned(), errno, detail: failed.detail };
        // Nobody listens any more if this fails, and the end is the same.
        let _ = write_frame(&mut worker.to, &answer, &[]);
        ExitCode::FAILURE
    })
}

/// Takes what the worker's way of starting this process has left: its own descriptors must not reach commands, and signals
/// that the worker ignores must not be ignored by them. Returns where the worker is heard, and where it hears.
fn prepare(stdio: bool) -> std::io::Result<(File, File)> {
    if stdio {
        close_from(SOCKET)?;
        for (standard, own) in [(0, SOCKET), (1, BACK)] {
            // SAFETY: no pointers; whatever had this number was closed.
            sys::check(unsafe { libc::dup3(standard, own, libc::O_CLOEXEC) }.into())?;
        }
        let null = File::options().read(true).write(true).open("/dev/null")?;
        for standard in 0..3 {
            // SAFETY: no pointers; the standard descriptors are nobody's.
            sys::check(unsafe { libc::dup2(null.as_raw_fd(), standard) }.into())?;
        }
    } else {
        // Whatever the worker forgot to close on execution. All that is opened from here on closes itself.
        close_from(BACK)?;
        // SAFETY: no pointers; the socket is nobody's yet.
        sys::check(unsafe { libc::fcntl(SOCKET, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
        // SAFETY: as above.
        sys::check(unsafe { libc::dup3(SOCKET, BACK, libc::O_CLOEXEC) }.into())?;
    }
    shell::reserve()?;
    for signal in 1..=libc::SIGRTMAX() {
        if signal != libc::SIGPIPE {
            // SAFETY: the default needs no handler. What cannot be set is at its default already.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    // SAFETY: both were made above and belong to nobody else.
    Ok(unsafe { (File::from_raw_fd(SOCKET), File::from_raw_fd(BACK)) })
}

fn close_from(first: RawFd) -> std::io::Result<()> {
    // SAFETY: no pointers; nothing above the socket is in use yet.
    match sys::check(unsafe { libc::syscall(libc::SYS_close_range, first, i32::MAX, 0) }) {
        // Kernels before 5.9 and some that imitate Linux: no more is ever open at this point.
        Err(why) if why.raw_os_error() == Some(libc::ENOSYS) => {
            for fd in first..1024 {
                // SAFETY: as above.
                unsafe { libc::close(fd) };
            }
            Ok(())
        }
        done => done.map(drop),
    }
}

/// Reads a frame with its raw bytes, and the descriptors that come with it through a socket.
fn receive<T: DeserializeOwned>(worker: &mut Worker) -> std::io::Result<(T, Vec<u8>, Vec<OwnedFd>)> {
    let mut descriptors = Vec::new();
    let mut length = [0; 4];
    if worker.socket {
        let mut have = 0;
        while have < length.len() {
            let read = sys::receive(worker.from.as_raw_fd(), &mut length[have..], &mut descriptors)?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            have += read;
        }
    } else {
        worker.from.read_exact(&mut length)?;
    }
    let mut frame = vec![0; check_length(length)?];
    worker.from.read_exact(&mut frame)?;
    let (header, raw) = decode(&frame)?;
    Ok((header, raw.to_vec(), descriptors))
}
