//! The cell: PID 1 of every sandbox.
//!
//! It builds the sandbox around itself, or finds it built, gives up every privilege, and then runs tools and commands for the
//! worker, which it hears through one stream. When that closes it ends, and with it everything in the sandbox.
//!
//! Architecture invariant: small, single-purpose and without a runtime. It is executed once from a sealed memory file, as a
//! nursery that knows nothing of any session; cells are copies of that. Inside the walls of a container runtime it is executed
//! by that, as a cell from the start. A cell inherits its way to the worker and nothing else, and must run in any root file
//! system.

#![allow(unsafe_code, reason = "PID 1 of a sandbox talks to the kernel; each block says why it is sound")]

mod connect;
mod copy;
mod exec;
mod given;
mod link;
mod log;
mod nursery;
mod ps;
mod reaper;
mod serve;
mod shell;
mod spawn;
mod sys;
mod tools;
mod walls;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use palisade_cell::{Claim, Place, Ready, STDIO, Setup, VERSION, check_length, decode, write_frame};
use serde::de::DeserializeOwned;

use crate::given::Entered;

/// The descriptor by which the worker is heard.
pub(crate) const SOCKET: RawFd = 3;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let streams = match words.next() {
        None => nursery::run().and_then(|socket| match socket.try_clone() {
            Ok(other) => Ok([socket, other]),
            Err(_) => Err(ExitCode::FAILURE),
        }),
        Some(word) if word == STDIO => take_over_streams().map_err(|_| ExitCode::from(SENSELESS)),
        // The same program inside the sandbox, as a command: it moves files.
        Some(word) => return copy::run(&word, words.next()),
    };
    match streams.and_then(|[from, to]| Ok((come_up(&from, &to)?, from, to))) {
        Ok(((place, claim), from, to)) => {
            serve::serve(from, to, place, claim);
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// What was said makes no sense, or nobody said anything.
pub(crate) const SENSELESS: u8 = 2;

/// Takes over the first standard streams, as the way to the worker, from what the worker's way of starting this process has
/// left: nothing else that is open must reach commands.
pub(crate) fn take_over_streams<const COUNT: usize>() -> std::io::Result<[File; COUNT]> {
    // SAFETY: no pointers. One arena: many short threads must not each keep a heap.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    close_from(SOCKET)?;
    for (standard, own) in (0..).zip(SOCKET..).take(COUNT) {
        // SAFETY: no pointers; what had this number was closed.
        sys::check(unsafe { libc::dup3(standard, own, libc::O_CLOEXEC) }.into())?;
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for standard in 0..SOCKET {
        // SAFETY: no pointers; the standard descriptors are nobody's.
        sys::check(unsafe { libc::dup2(null.as_raw_fd(), standard) }.into())?;
    }
    shell::reserve()?;
    ignore_signals()?;
    let mut next = SOCKET..;
    // SAFETY: these were made above and belong to nobody else.
    Ok(std::array::from_fn(|_| unsafe { File::from_raw_fd(next.next().unwrap_or(-1)) }))
}

/// Ignores every signal but that of a child's end, whatever was inherited; commands begin with the defaults. The kernel
/// keeps signals at their default from PID 1 only as long as its first thread does not block them, which the C library
/// does whenever it starts something: a second thread is then found to die of them, and with it the sandbox.
fn ignore_signals() -> std::io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        let handler = match signal {
            libc::SIGKILL | libc::SIGSTOP => continue,
            libc::SIGCHLD => libc::SIG_DFL,
            _ => libc::SIG_IGN,
        };
        // As the kernel has it: handler, flags, restorer, mask. The C library's call keeps two signals to itself.
        let action = [handler as u64, 0, 0, 0];
        // SAFETY: the action lives through the call and is as long as the kernel reads for a mask of this size.
        sys::check(unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        })?;
    }
    Ok(())
}

fn close_from(first: RawFd) -> std::io::Result<()> {
    // SAFETY: no pointers; nothing but the standard descriptors is in use yet.
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

/// Builds the sandbox, waits for its session and seals it; a failure has been told to whoever listens.
fn come_up(from: &File, mut to: &File) -> Result<(Place, Claim), ExitCode> {
    let senseless = |_| ExitCode::from(SENSELESS);
    let gone = |_| ExitCode::FAILURE;
    let (setup, base, descriptors) = receive::<Setup>(from).map_err(senseless)?;
    if setup.version != VERSION {
        return Err(ExitCode::from(SENSELESS));
    }
    let built = match setup.place {
        Place::Own => Some(tell(to, walls::build(&setup, &base, descriptors))?),
        Place::Given | Place::Bare => None,
    };
    let notes = built.as_ref().map(|built| built.notes.clone()).unwrap_or_default();
    write_frame(&mut to, &Ready::Built { notes }, &[]).map_err(gone)?;
    let (claim, seal, descriptors) = receive::<Claim>(from).map_err(senseless)?;
    let entered = match (setup.place, built) {
        (_, Some(built)) => walls::claim(built, &claim, &seal, descriptors).map(Entered::own),
        (Place::Bare, None) => given::settle(&setup, &claim),
        (Place::Own | Place::Given, None) => given::enter(&setup, &claim, [&base, &seal]),
    };
    let Entered { landlock_abi, seccomp, filtered, notes } = tell(to, entered)?;
    write_frame(&mut to, &Ready::Up { landlock_abi, seccomp, filtered, notes }, &[]).map_err(gone)?;
    Ok((setup.place, claim))
}

/// What was made; or else the worker is told why not.
pub(crate) fn tell<T>(mut to: &File, made: Result<T, walls::Failed>) -> Result<T, ExitCode> {
    made.map_err(|failed| {
        let errno = failed.cause.raw_os_error().unwrap_or(0);
        let answer = Ready::Failed { step: failed.step.to_owned(), errno, detail: failed.detail };
        // Nobody listens any more if this fails, and the end is the same.
        let _ = write_frame(&mut to, &answer, &[]);
        ExitCode::FAILURE
    })
}

/// Reads a frame with its raw bytes, and the descriptors that came with it.
pub(crate) fn receive<T: DeserializeOwned>(mut from: &File) -> std::io::Result<(T, Vec<u8>, Vec<OwnedFd>)> {
    let mut descriptors = Vec::new();
    let mut length = [0; 4];
    let mut have = 0;
    while have < length.len() {
        let read = match sys::receive(from.as_raw_fd(), &mut length[have..], &mut descriptors) {
            // A pipe, which no descriptor comes through.
            Err(why) if why.raw_os_error() == Some(libc::ENOTSOCK) => from.read(&mut length[have..]),
            read => read,
        }?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        have += read;
    }
    let mut frame = vec![0; check_length(length)?];
    from.read_exact(&mut frame)?;
    let (header, raw) = decode(&frame)?;
    Ok((header, raw.to_vec(), descriptors))
}
