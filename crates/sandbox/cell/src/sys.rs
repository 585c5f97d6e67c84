//! The few system calls that the standard library does not have, each with its error.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

/// Turns a return value into a result.
pub(crate) fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Does something in a process of its own, in new namespaces of these kinds, and says how that ended. Only for as long as this
/// process has one thread.
pub(crate) fn in_child(namespaces: i32, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: this process has one thread, and without CLONE_VM the child has its own copy of this memory.
    let child = check(unsafe { libc::syscall(libc::SYS_clone, namespaces | libc::SIGCHLD, 0, 0, 0, 0) })?;
    if child == 0 {
        let errno = act().err().map_or(0, |why| why.raw_os_error().unwrap_or(libc::EIO));
        // SAFETY: the child ends without running anything that its parent would run at its end.
        unsafe { libc::_exit(errno) };
    }
    let mut status = 0;
    // SAFETY: the status lives through the call.
    check(unsafe { libc::waitpid(i32::try_from(child).unwrap_or(-1), &raw mut status, 0) }.into())?;
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        0 => Err(io::ErrorKind::Interrupted.into()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// A path as the kernel wants it.
pub(crate) fn path(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// `mount(2)`.
pub(crate) fn mount(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> io::Result<()> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    let data = data.map_or(std::ptr::null(), |data| data.as_ptr().cast());
    // SAFETY: all pointers are to C strings that live through the call, or null where that is allowed.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, data) }.into()).map(drop)
}

/// `open_tree(2)`: a detached copy of the mount at `source`.
pub(crate) fn open_tree(source: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: the path is a C string; the kernel returns a new descriptor or an error.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags) })?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) })
}

/// `mount_setattr(2)` on a descriptor, or on a path when `fd` is `AT_FDCWD`.
pub(crate) fn mount_setattr(fd: RawFd, at: &CStr, flags: libc::c_int, set: u64) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the structure and the path live through the call, and the size is the structure's own.
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, at.as_ptr(), flags, &raw const attr, size_of::<libc::mount_attr>())
    })
    .map(drop)
}

/// `move_mount(2)`: attaches a detached mount.
pub(crate) fn move_mount(fd: &OwnedFd, target: &CStr) -> io::Result<()> {
    // SAFETY: both paths are C strings that live through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// `prctl(2)` with numbers only.
pub(crate) fn prctl(option: libc::c_int, args: [libc::c_ulong; 4]) -> io::Result<()> {
    // SAFETY: no argument is a pointer.
    check(unsafe { libc::prctl(option, args[0], args[1], args[2], args[3]) }.into()).map(drop)
}

/// Receives one byte string and the descriptors that came with it.
pub(crate) fn receive(socket: RawFd, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = [0u64; 64];
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a message header of zeros is valid; its pointers are set to buffers that live through the call.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header and everything it points to live through the call.
    let read = check(unsafe { libc::recvmsg(socket, &raw mut header, libc::MSG_CMSG_CLOEXEC) } as libc::c_long)?;
    // SAFETY: the kernel has filled the control buffer of this header, and the macros walk only what it has filled.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*message).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    descriptors.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    usize::try_from(read).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Refuses a file of `/proc`. What is this process's own there is nobody else's to see, and a name that was looked at before
/// may lead there by the time that it is opened.
pub(crate) fn refuse_process_files(file: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: a structure of zeros is valid.
    let mut stat: libc::statfs64 = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives through the call.
    check(unsafe { libc::fstatfs64(file.as_raw_fd(), &raw mut stat) }.into())?;
    if stat.f_type == libc::PROC_SUPER_MAGIC { Err(io::Error::from_raw_os_error(libc::EACCES)) } else { Ok(()) }
}

/// The most descriptors that are sent at once.
const DESCRIPTORS: usize = 8;

/// Sends one byte string, with descriptors if there are any.
pub(crate) fn send(socket: &impl AsRawFd, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    if descriptors.len() > DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Room for the message's own header, and the descriptors.
    let mut control = [0u64; 4 + DESCRIPTORS / 2];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: a message header of zeros is valid; its pointers are set to buffers that live through the call.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !descriptors.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        let length = size_of::<RawFd>() * descriptors.len();
        // SAFETY: the control buffer is aligned and has room for one message with as many descriptors as there may be.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(length as libc::c_uint) as _;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(length as libc::c_uint) as _;
            let data = libc::CMSG_DATA(message).cast::<RawFd>();
            for (index, descriptor) in descriptors.iter().enumerate() {
                data.add(index).write_unaligned(descriptor.as_raw_fd());
            }
        }
    }
    // SAFETY: the header and everything it points to live through the call.
    let sent =
        check(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) } as libc::c_long)?;
    if usize::try_from(sent).is_ok_and(|sent| sent == bytes.len()) {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// `kill(2)`; a negative number names a process group.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: no pointers; a process that is gone is an error that means the wish is fulfilled.
    unsafe { libc::kill(pid, signal) };
}

/// What to wait for: `fd` becoming ready for `events`; a negative number is never ready.
pub(crate) fn interest(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// `poll(2)`, until `deadline` if there is one.
pub(crate) fn poll(watched: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let ms = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: what is left of a millisecond is waited for, not spun through.
            i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        // SAFETY: the pointer and the length are those of one slice.
        match check(unsafe { libc::poll(watched.as_mut_ptr(), watched.len() as libc::nfds_t, ms) }.into()) {
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            done => return done.map(drop),
        }
    }
}

/// `read(2)`.
pub(crate) fn read(fd: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is as long as the length says.
    let read = check(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } as libc::c_long)?;
    Ok(usize::try_from(read).unwrap_or(0))
}

/// `write(2)`.
pub(crate) fn write(fd: &impl AsRawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the buffer is as long as the length says.
    let wrote = check(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) } as libc::c_long)?;
    Ok(usize::try_from(wrote).unwrap_or(0))
}

/// `pipe2(2)`: the end to read and the end to write.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }.into())?;
    // SAFETY: both were just made and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Makes reads and writes return at once.
pub(crate) fn nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }.into()).map(drop)
}

/// Gives free memory back to the kernel.
pub(crate) fn give_back_memory() {
    // SAFETY: no pointers; only memory that nobody holds is given back.
    unsafe { libc::malloc_trim(0) };
}
