//! The cell: PID 1 of every sandbox.
//!
//! It builds the sandbox around itself, gives up every privilege, and then runs tools and commands for the worker, which
//! it hears through one socket. When the socket closes it ends, and with it everything in the sandbox.
//!
//! Architecture invariant: small, single-purpose and without a runtime. It is executed once from a sealed memory file, as a
//! nursery that knows nothing of any session; cells are copies of that. A cell inherits one socket and nothing else, and
//! must run in any root file system.

#![allow(unsafe_code, reason = "PID 1 of a sandbox talks to the kernel; each block says why it is sound")]

mod connect;
mod copy;
mod exec;
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

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use palisade_cell::{Claim, Ready, Setup, VERSION, check_length, decode, write_frame};
use serde::de::DeserializeOwned;

/// The descriptor by which the worker is heard.
pub(crate) const SOCKET: RawFd = 3;

fn main() -> ExitCode {
    // The same program inside the sandbox, as a command: it moves files.
    let mut words = std::env::args_os().skip(1);
    if let Some(word) = words.next() {
        return copy::run(&word, words.next());
    }
    // SAFETY: no pointers. One arena: many short threads must not each keep a heap.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let mut socket = match nursery::run() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    match come_up(&mut socket) {
        Ok(claim) => {
            let Ok(from) = socket.try_clone() else { return ExitCode::FAILURE };
            serve::serve(from.into(), socket.into(), claim);
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// What was said makes no sense, or nobody said anything.
pub(crate) const SENSELESS: u8 = 2;

/// Builds the sandbox, waits for its session and seals it; a failure has been told to whoever listens.
fn come_up(socket: &mut UnixStream) -> Result<Claim, ExitCode> {
    let senseless = |_| ExitCode::from(SENSELESS);
    let gone = |_| ExitCode::FAILURE;
    let (setup, filter, descriptors) = receive::<Setup>(socket).map_err(senseless)?;
    if setup.version != VERSION {
        return Err(ExitCode::from(SENSELESS));
    }
    let built = tell(socket, walls::build(&setup, &filter, descriptors))?;
    write_frame(socket, &Ready::Built { notes: built.notes.clone() }, &[]).map_err(gone)?;
    let (claim, filter, descriptors) = receive::<Claim>(socket).map_err(senseless)?;
    let landlock_abi = tell(socket, walls::claim(built, &claim, &filter, descriptors))?;
    write_frame(socket, &Ready::Up { landlock_abi }, &[]).map_err(gone)?;
    Ok(claim)
}

/// What was made; or else the worker is told why not.
pub(crate) fn tell<T>(socket: &mut UnixStream, made: Result<T, walls::Failed>) -> Result<T, ExitCode> {
    made.map_err(|failed| {
        let errno = failed.cause.raw_os_error().unwrap_or(0);
        let answer = Ready::Failed { step: failed.step.to_owned(), errno, detail: failed.detail };
        // Nobody listens any more if this fails, and the end is the same.
        let _ = write_frame(socket, &answer, &[]);
        ExitCode::FAILURE
    })
}

/// Reads a frame with its raw bytes, and the descriptors that came with it.
pub(crate) fn receive<T: DeserializeOwned>(socket: &mut UnixStream) -> std::io::Result<(T, Vec<u8>, Vec<OwnedFd>)> {
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
    let (header, raw) = decode(&frame)?;
    Ok((header, raw.to_vec(), descriptors))
}
