//! The cell: PID 1 of every sandbox.
//!
//! It builds the sandbox around itself, gives up every privilege, and then runs tools and commands for the worker, which
//! it hears through one socket. When the socket closes it ends, and with it everything in the sandbox.
//!
//! Architecture invariant: small, single-purpose and without a runtime. It is executed from a sealed memory file, inherits
//! one socket and nothing else, and must run in any root file system.

#![allow(unsafe_code, reason = "PID 1 of a sandbox talks to the kernel; each block says why it is sound")]

mod connect;
mod copy;
mod exec;
mod landlock;
mod link;
mod log;
mod ps;
mod reaper;
mod seal;
mod serve;
mod setup;
mod shell;
mod spawn;
mod sys;
mod tools;

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use palisade_cell::{Ready, Setup, VERSION, check_length, decode, write_frame};

/// The descriptor that the worker hands over.
pub(crate) const SOCKET: RawFd = 3;

fn main() -> ExitCode {
    // The same program inside the sandbox, as a command: it moves files.
    let mut words = std::env::args_os().skip(1);
    if let Some(word) = words.next() {
        return copy::run(&word, words.next());
    }
    // SAFETY: no pointers. One arena: many short threads must not each keep a heap.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    if prepare().is_err() {
        return ExitCode::from(2);
    }
    // SAFETY: the worker hands this descriptor over; if it did not, `prepare` has failed.
    let mut socket = unsafe { UnixStream::from_raw_fd(SOCKET) };
    let Ok((setup, descriptors)) = receive_setup(&mut socket) else { return ExitCode::from(2) };
    let answer = match setup::build(&setup, descriptors) {
        Ok(built) => Ready::Up { landlock_abi: built.landlock_abi, notes: built.notes },
        Err(failed) => {
            let answer = Ready::Failed {
                step: failed.step.to_owned(),
                errno: failed.cause.raw_os_error().unwrap_or(0),
                detail: failed.detail,
            };
            // Nobody listens any more if this fails, and the end is the same.
            let _ = write_frame(&mut socket, &answer, &[]);
            return ExitCode::from(1);
        }
    };
    if write_frame(&mut socket, &answer, &[]).is_err() {
        return ExitCode::from(1);
    }
    let Ok(from) = socket.try_clone() else { return ExitCode::from(1) };
    serve::serve(from.into(), socket.into(), setup);
    ExitCode::SUCCESS
}

/// Takes what the worker's way of starting this process has left: its own descriptors must not reach commands, and signals
/// that the worker ignores must not be ignored by them.
fn prepare() -> std::io::Result<()> {
    // SAFETY: no pointers.
    sys::check(unsafe { libc::fcntl(SOCKET, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // Whatever the worker forgot to close on execution. All that is opened from here on closes itself.
    // SAFETY: no pointers; nothing above the socket is in use yet.
    sys::check(unsafe { libc::syscall(libc::SYS_close_range, SOCKET + 1, u32::MAX, 0) })?;
    shell::reserve()?;
    for signal in 1..=libc::SIGRTMAX() {
        if signal != libc::SIGPIPE {
            // SAFETY: the default needs no handler. What cannot be set is at its default already.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    Ok(())
}

/// Reads the first frame, and the descriptors that came with it.
fn receive_setup(socket: &mut UnixStream) -> std::io::Result<(Setup, Vec<OwnedFd>)> {
    let mut descriptors = Vec::new();
    let mut length = [0; 4];
    let mut have = 0;
    while have < length.len() {
        let read = sys::receive(socket.as_raw_fd(), &mut length[have..], &mut descriptors)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        have += read;
    }
    let mut frame = vec![0; check_length(length)?];
    socket.read_exact(&mut frame)?;
    let (setup, _): (Setup, _) = decode(&frame)?;
    if setup.version != VERSION {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    Ok((setup, descriptors))
}
