//! Starts programs, with `posix_spawn(3)`: the new process borrows this one's memory until it has become another program,
//! so that nothing is copied.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use palisade_cell::Size;

use crate::sys::{self, check};

/// How often, and how long apart, a file is tried that somebody has open for writing.
const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// A program that is to be started. It gets no descriptor but those that are named.
pub(crate) struct Program<'a> {
    /// Its file, or a name that is looked for in the environment's `PATH`.
    pub(crate) file: &'a str,
    pub(crate) argv: &'a [String],
    pub(crate) env: &'a [(String, String)],
    pub(crate) cwd: &'a str,
    /// Descriptors of this process, and their numbers in the new one.
    pub(crate) descriptors: &'a [(RawFd, RawFd)],
    /// The path of a terminal that becomes its standard streams and controls it.
    pub(crate) terminal: Option<&'a CStr>,
    /// Whether it begins a session of its own, rather than a group.
    pub(crate) session: bool,
}

/// Frees what the C library has filled.
struct Prepared {
    actions: libc::posix_spawn_file_actions_t,
    attributes: libc::posix_spawnattr_t,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: both were initialised, once, and are not used again.
        unsafe {
            libc::posix_spawn_file_actions_destroy(&raw mut self.actions);
            libc::posix_spawnattr_destroy(&raw mut self.attributes);
        }
    }
}

/// These calls return the error instead of setting it.
fn done(errno: libc::c_int) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// Starts a program; the number of its process, which leads a group of its own.
pub(crate) fn spawn(program: &Program<'_>) -> io::Result<i32> {
    let file = find(program.file, program.env)?;
    let argv: Vec<CString> = program.argv.iter().map(|word| sys::path(word)).collect::<Result<_, _>>()?;
    let variable = |(name, value): &(String, String)| sys::path(&format!("{name}={value}"));
    let env: Vec<CString> = program.env.iter().map(variable).collect::<Result<_, _>>()?;
    let cwd = sys::path(program.cwd)?;
    let prepared = prepare(program, &cwd)?;
    let env = pointers(&env);
    let mut started = execute(&prepared, &file, &pointers(&argv), &env);
    // A file that was just written may still be open in a process that is about to become another program, here or outside.
    for _ in 0..BUSY_TRIES {
        match &started {
            Err(why) if why.raw_os_error() == Some(libc::ETXTBSY) => {
                sys::poll(&mut [], Some(Instant::now() + BUSY_PAUSE))?;
                started = execute(&prepared, &file, &pointers(&argv), &env);
            }
            _ => break,
        }
    }
    let started = match started {
        // A script that does not say who reads it is the shell's.
        Err(why) if why.raw_os_error() == Some(libc::ENOEXEC) => {
            let mut words = vec![c"/bin/sh".to_owned(), file];
            words.extend(argv.into_iter().skip(1));
            execute(&prepared, c"/bin/sh", &pointers(&words), &env)
        }
        started => started,
    };
    started.map_err(|why| {
        if !Path::new(program.cwd).is_dir() {
            return io::Error::new(why.kind(), format!("the working directory {} cannot be used: {why}", program.cwd));
        }
        why
    })
}

fn pointers(words: &[CString]) -> Vec<*mut libc::c_char> {
    words.iter().map(|word| word.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

fn execute(prepared: &Prepared, file: &CStr, argv: &[*mut libc::c_char], env: &[*mut libc::c_char]) -> io::Result<i32> {
    let mut pid = 0;
    // SAFETY: the path, both lists, which end in null, and what they point to live through the call, which changes none.
    done(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            file.as_ptr(),
            &raw const prepared.actions,
            &raw const prepared.attributes,
            argv.as_ptr(),
            env.as_ptr(),
        )
    })?;
    Ok(pid)
}

fn prepare(program: &Program<'_>, cwd: &CStr) -> io::Result<Prepared> {
    // SAFETY: structures of zeros are initialised before anything else is done with them; all pointers live through their
    // calls, and the C library copies what it keeps.
    unsafe {
        let mut prepared = Prepared { actions: std::mem::zeroed(), attributes: std::mem::zeroed() };
        done(libc::posix_spawn_file_actions_init(&raw mut prepared.actions))?;
        done(libc::posix_spawnattr_init(&raw mut prepared.attributes))?;
        let actions = &raw mut prepared.actions;
        done(libc::posix_spawn_file_actions_addchdir_np(actions, cwd.as_ptr()))?;
        if let Some(terminal) = program.terminal {
            // The first terminal that the leader of a session opens controls it.
            done(libc::posix_spawn_file_actions_addopen(actions, 0, terminal.as_ptr(), libc::O_RDWR, 0))?;
            done(libc::posix_spawn_file_actions_adddup2(actions, 0, 1))?;
            done(libc::posix_spawn_file_actions_adddup2(actions, 0, 2))?;
        }
        for (ours, theirs) in program.descriptors {
            done(libc::posix_spawn_file_actions_adddup2(actions, *ours, *theirs))?;
        }
        let attributes = &raw mut prepared.attributes;
        let own = if program.session { libc::POSIX_SPAWN_SETSID } else { libc::POSIX_SPAWN_SETPGROUP as libc::c_short };
        let signals = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        done(libc::posix_spawnattr_setflags(attributes, own | signals as libc::c_short))?;
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        done(libc::posix_spawnattr_setsigmask(attributes, &raw const set))?;
        // All of them are ignored here. Not `sigfillset`, which leaves out two that are the C library's own.
        (&raw mut set).write_bytes(0xff, 1);
        done(libc::posix_spawnattr_setsigdefault(attributes, &raw const set))?;
        Ok(prepared)
    }
}

/// The file of a program.
fn find(name: &str, env: &[(String, String)]) -> io::Result<CString> {
    if name.contains('/') {
        return sys::path(name);
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map_or("/usr/bin:/bin", |(_, value)| value);
    let mut refused = io::Error::from_raw_os_error(libc::ENOENT);
    for directory in path.split(':').filter(|_| !name.is_empty()) {
        let file = sys::path(&format!("{}/{name}", if directory.is_empty() { "." } else { directory }))?;
        // SAFETY: the path is a C string.
        match check(unsafe { libc::access(file.as_ptr(), libc::X_OK) }.into()) {
            Ok(_) if Path::new(std::ffi::OsStr::new(file.to_str().unwrap_or_default())).is_dir() => {}
            Ok(_) => return Ok(file),
            Err(why) if why.raw_os_error() == Some(libc::EACCES) => refused = why,
            Err(_) => {}
        }
    }
    Err(refused)
}

/// A new pseudo-terminal of this sandbox: the end that is kept, and the path of the other.
pub(crate) fn terminal(size: Size) -> io::Result<(OwnedFd, CString)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the path is a C string; the kernel returns a new descriptor or an error.
    let master = check(unsafe { libc::open(c"/dev/pts/ptmx".as_ptr(), flags) }.into())?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let master = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(master).unwrap_or(-1)) };
    let (mut number, unlock): (libc::c_uint, libc::c_int) = (0, 0);
    // SAFETY: both numbers live through their calls and are what these operations take.
    unsafe {
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlock).into())?;
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN as _, &raw mut number).into())?;
    }
    resize(&master, size)?;
    Ok((master, sys::path(&format!("/dev/pts/{number}"))?))
}

/// Tells a terminal, and those who run in it, its size.
pub(crate) fn resize(master: &OwnedFd, size: Size) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the structure lives through the call and is what this operation takes.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) }.into()).map(drop)
}

/// The group in a terminal's foreground.
pub(crate) fn foreground(master: &OwnedFd) -> Option<i32> {
    // SAFETY: no pointers.
    let group = unsafe { libc::tcgetpgrp(master.as_raw_fd()) };
    (group > 0).then_some(group)
}
