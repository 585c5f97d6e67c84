//! The cell's program: once per process, in a sealed memory file.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

/// The cell, built for this target by the build script.
pub(crate) static CELL: &[u8] = include_bytes!(env!("PALISADE_CELL"));

/// A descriptor to execute the cell from. Nobody can change what is behind it, the sandbox included.
pub(crate) fn cell() -> io::Result<&'static OwnedFd> {
    static PROGRAM: OnceLock<Result<OwnedFd, i32>> = OnceLock::new();
    let made = PROGRAM.get_or_init(|| seal().map_err(|why| why.raw_os_error().unwrap_or(libc::EIO)));
    made.as_ref().map_err(|errno| io::Error::from_raw_os_error(*errno))
}

fn seal() -> io::Result<OwnedFd> {
    // Kernels before 6.3 do not know MFD_EXEC and make every memory file executable.
    let mut fd = -1;
    for flags in [libc::MFD_EXEC, 0] {
        // SAFETY: the name is a C string; the kernel returns a new descriptor or an error.
        fd = unsafe {
            libc::memfd_create(c"palisade-cell".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | flags)
        };
        if fd >= 0 {
            break;
        }
    }
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(CELL)?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: no pointers.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Above the descriptors that a child rearranges.
    // SAFETY: no pointers; the kernel returns a new descriptor or an error.
    let high = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
    if high < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(high) })
}
