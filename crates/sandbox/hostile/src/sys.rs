//! System calls by number, and what else attacks are made of.

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use crate::Said;

/// An error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

const NAMES: &[(i32, &str)] = &[
    (libc::EPERM, "EPERM"),
    (libc::ENOENT, "ENOENT"),
    (libc::ESRCH, "ESRCH"),
    (libc::EIO, "EIO"),
    (libc::ENXIO, "ENXIO"),
    (libc::E2BIG, "E2BIG"),
    (libc::EBADF, "EBADF"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EACCES, "EACCES"),
    (libc::EFAULT, "EFAULT"),
    (libc::EBUSY, "EBUSY"),
    (libc::EEXIST, "EEXIST"),
    (libc::EXDEV, "EXDEV"),
    (libc::ENODEV, "ENODEV"),
    (libc::ENOTDIR, "ENOTDIR"),
    (libc::EISDIR, "EISDIR"),
    (libc::EINVAL, "EINVAL"),
    (libc::ENFILE, "ENFILE"),
    (libc::EMFILE, "EMFILE"),
    (libc::ENOTTY, "ENOTTY"),
    (libc::ETXTBSY, "ETXTBSY"),
    (libc::EFBIG, "EFBIG"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::EROFS, "EROFS"),
    (libc::ENOSYS, "ENOSYS"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::ENOPROTOOPT, "ENOPROTOOPT"),
    (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT"),
    (libc::ESOCKTNOSUPPORT, "ESOCKTNOSUPPORT"),
    (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
    (libc::ENETUNREACH, "ENETUNREACH"),
    (libc::EHOSTUNREACH, "EHOSTUNREACH"),
    (libc::ECONNREFUSED, "ECONNREFUSED"),
    (libc::ETIMEDOUT, "ETIMEDOUT"),
    (libc::ELOOP, "ELOOP"),
    (libc::EDQUOT, "EDQUOT"),
];

/// Errors that say no, rather than that the question was badly put.
const REFUSALS: &[i32] = &[
    libc::EPERM,
    libc::EACCES,
    libc::EROFS,
    libc::ENOSYS,
    libc::ENOENT,
    libc::ESRCH,
    libc::ENXIO,
    libc::ENODEV,
    libc::EXDEV,
    libc::ENOTDIR,
    libc::EAFNOSUPPORT,
    libc::ENOPROTOOPT,
    libc::EPROTONOSUPPORT,
    libc::ESOCKTNOSUPPORT,
    libc::EOPNOTSUPP,
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::ECONNREFUSED,
    libc::ETIMEDOUT,
    libc::ENOSPC,
    libc::ENOMEM,
    libc::EMFILE,
    libc::ENFILE,
    libc::EDQUOT,
    libc::EFBIG,
    libc::ETXTBSY,
];

impl Errno {
    /// That of the last call.
    pub(crate) fn last() -> Errno {
        Errno::of(&std::io::Error::last_os_error())
    }

    /// That of an error of the standard library.
    pub(crate) fn of(why: &std::io::Error) -> Errno {
        Errno(why.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Whether it says no.
    pub(crate) fn is_refusal(self) -> bool {
        REFUSALS.contains(&self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

/// Something that is handed to the kernel in a register.
pub(crate) trait Word {
    /// The register's content.
    fn word(self) -> usize;
}

macro_rules! numbers {
    ($($kind:ty),*) => {
        $(impl Word for $kind {
            fn word(self) -> usize {
                self as usize
            }
        })*
    };
}
numbers!(i32, u32, i64, u64, usize);

impl Word for &CStr {
    fn word(self) -> usize {
        self.as_ptr() as usize
    }
}

impl Word for &CString {
    fn word(self) -> usize {
        self.as_ptr() as usize
    }
}

impl<T, const N: usize> Word for &[T; N] {
    fn word(self) -> usize {
        self.as_ptr() as usize
    }
}

/// What the kernel writes to.
impl<T, const N: usize> Word for &mut [T; N] {
    fn word(self) -> usize {
        self.as_mut_ptr() as usize
    }
}

/// Makes a system call: its number, then up to six arguments, which live through it.
macro_rules! call {
    ($number:expr $(, $argument:expr)* $(,)?) => {
        $crate::sys::raw(i64::from($number), &[$($crate::sys::Word::word($argument)),*])
    };
}
pub(crate) use call;

/// See [`call!`].
pub(crate) fn raw(number: i64, given: &[usize]) -> Result<usize, Errno> {
    let mut arguments = [0; 6];
    for (to, from) in arguments.iter_mut().zip(given) {
        *to = *from;
    }
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: pointers among the arguments are to values that the caller keeps through the call, as long as it says; the
    // kernel checks everything else. What a granted call does to this process is its own risk: it ends soon after.
    let value = unsafe { libc::syscall(number as libc::c_long, a, b, c, d, e, f) };
    usize::try_from(value).map_err(|_| Errno::last())
}

/// A path as the kernel wants it; what cannot be one is empty.
pub(crate) fn path(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

/// Opens a file; the descriptor stays open until the end.
pub(crate) fn open(at: &str, flags: i32) -> Result<usize, Errno> {
    call!(libc::SYS_openat, libc::AT_FDCWD, &path(at), flags | libc::O_CLOEXEC, 0o600)
}

/// The first bytes of a file. Never waits.
pub(crate) fn read(at: &str) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(at).map_err(|why| Errno::of(&why))?;
    file.take(1 << 20).read_to_end(&mut bytes).map_err(|why| Errno::of(&why))?;
    Ok(bytes)
}

/// Writes into a file that is there.
pub(crate) fn write(at: &str, text: &str) -> Result<usize, Errno> {
    let mut file =
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(at).map_err(|why| Errno::of(&why))?;
    file.write_all(text.as_bytes()).map_err(|why| Errno::of(&why))?;
    Ok(text.len())
}

/// Writes into a file, which is made unless it is there.
pub(crate) fn make(at: &str, text: &str) -> Result<usize, Errno> {
    std::fs::write(at, text).map(|()| text.len()).map_err(|why| Errno::of(&why))
}

/// A second process: zero in it, its number in this one.
pub(crate) fn fork() -> Result<i32, Errno> {
    // SAFETY: this program has one thread wherever it forks, so the child may do what the parent may.
    let pid = unsafe { libc::fork() };
    if pid < 0 { Err(Errno::last()) } else { Ok(pid) }
}

/// Ends a child of [`fork`] without running what the parent has planned for its own end.
pub(crate) fn end(code: i32) -> ! {
    // SAFETY: no pointers; it does not return.
    unsafe { libc::_exit(code) }
}

/// Starts a child that runs `body` and then waits to be killed; gives its number.
pub(crate) fn child(body: impl FnOnce()) -> Result<i32, Errno> {
    let pid = fork()?;
    if pid == 0 {
        body();
        rest()
    }
    Ok(pid)
}

/// Waits for a signal that ends this process.
pub(crate) fn rest() -> ! {
    loop {
        // SAFETY: no pointers.
        unsafe { libc::pause() };
    }
}

/// Sends a signal.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<usize, Errno> {
    call!(libc::SYS_kill, pid, signal)
}

/// Ends a child and collects it.
pub(crate) fn reap(pid: i32) {
    let _ = kill(pid, libc::SIGKILL);
    // SAFETY: a null pointer is allowed where the status is not wanted.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

/// Waits, as an attack may.
#[expect(clippy::disallowed_methods, reason = "there is no runtime in this program")]
pub(crate) fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Does something again and again for so long.
pub(crate) fn for_ms(ms: u64, mut each: impl FnMut()) {
    let end = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < end {
        each();
    }
}

/// Numbers of the processes that can be seen, without this one.
pub(crate) fn processes() -> Vec<i32> {
    let own = std::process::id() as i32;
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| *pid != own).collect()
}

/// A file that must not be readable, or whose content must not be there.
pub(crate) fn unreadable(at: &str) -> Said {
    match read(at) {
        Ok(bytes) if bytes.is_empty() => Said::Refused("empty".to_owned()),
        Ok(bytes) => Said::Through(format!("{} bytes of {at}", bytes.len())),
        Err(why) if matches!(why.0, libc::EIO | libc::EINVAL | libc::EAGAIN) => Said::Refused(why.to_string()),
        Err(why) => Said::from_error("", why),
    }
}

/// A file that must not be writable.
pub(crate) fn unwritable(at: &str, text: &str) -> Said {
    match write(at, text) {
        Ok(_) => Said::Through(format!("wrote to {at}")),
        Err(why) => Said::from_error("", why),
    }
}
