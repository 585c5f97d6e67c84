//! Project quotas: a number that files inherit from their directory, and a limit for all files of a number.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat};

use super::{Error, Limit};

/// The first number for sessions: the range is that of the host users of sandboxes.
const FIRST: u32 = 0x7000_0000;
/// Directories with a limit at a time, on one file system.
const COUNT: u32 = 1 << 15;
/// Directories in directories that are given a number.
const DEEPEST: usize = 128;

const PROJECT: u32 = 2; // PRJQUOTA
const GET: u32 = 0x80_0007; // Q_GETQUOTA
const SET: u32 = 0x80_0008; // Q_SETQUOTA
const STATE: u32 = 0x5805; // Q_XGETQSTAT
const IN_FORCE: u16 = 1 << 5; // FS_QUOTA_PDQ_ENFD
const LIMITS: u32 = 1 | 4; // QIF_LIMITS

const GET_ATTRIBUTES: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl; // FS_IOC_FSGETXATTR
const SET_ATTRIBUTES: libc::Ioctl = 0x401c_5820_u32 as libc::Ioctl; // FS_IOC_FSSETXATTR
const INHERIT: u32 = 0x200; // FS_XFLAG_PROJINHERIT

/// `struct if_dqblk` of `linux/quota.h`.
#[repr(C)]
#[derive(Debug, Default)]
struct Quota {
    bytes_hard_kib: u64,
    bytes_soft_kib: u64,
    bytes: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes: u64,
    bytes_time: u64,
    inodes_time: u64,
    valid: u32,
}

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// A directory with a number of its own. The number and its limit stay with its files; it is free again when they are gone.
#[derive(Debug)]
pub(super) struct Project {
    top: OwnedFd,
    number: u32,
}

impl fmt::Display for Project {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "project quota {}", self.number)
    }
}

impl Project {
    pub(super) fn open(directory: &Path, limit: Limit) -> Result<Project, Error> {
        let wrong = |step| move |cause: io::Error| Error::step(step, directory, cause);
        let top = openat(CWD, directory, DIRECTORY, Mode::empty())
            .map_err(|why| wrong("opening the directory")(why.into()))?;
        in_force(top.as_fd()).map_err(Error::Unavailable)?;
        let found = attributes(top.as_fd()).map_err(wrong("reading the project"))?;
        let own = FIRST..FIRST + COUNT;
        // The top gets its number last: that it has one means that all below it has.
        let (number, _claim) = if found.flags & INHERIT != 0 && own.contains(&found.project) {
            (found.project, None)
        } else {
            let (number, claim) = free(top.as_fd()).map_err(wrong("finding a free project"))?;
            (number, Some(claim))
        };
        let project = Project { top, number };
        let quota = Quota {
            bytes_hard_kib: limit.bytes.map_or(0, |bytes| bytes.div_ceil(1024).max(1)),
            inodes_hard: limit.inodes.map_or(0, |inodes| inodes.max(1)),
            valid: LIMITS,
            ..Quota::default()
        };
        project.control(SET, quota).map_err(wrong("setting the quota"))?;
        if project.number != found.project {
            number_below(project.top.as_fd(), number, 0).map_err(wrong("setting the project"))?;
        }
        Ok(project)
    }

    pub(super) fn used(&self) -> Option<u64> {
        self.control(GET, Quota::default()).ok().map(|quota| quota.bytes)
    }

    fn control(&self, command: u32, quota: Quota) -> io::Result<Quota> {
        control(self.top.as_fd(), command, self.number, quota)
    }
}

/// Whether project quotas are in force where this directory is; else why not.
pub(crate) fn enforced(directory: &Path) -> Result<(), String> {
    let top = openat(CWD, directory, DIRECTORY, Mode::empty()).map_err(|why| why.to_string())?;
    in_force(top.as_fd())
}

fn in_force(top: BorrowedFd<'_>) -> Result<(), String> {
    let none = || "its file system is not mounted with project quotas (prjquota)".to_owned();
    // `struct fs_quota_stat` of `linux/dqblk_xfs.h` is shorter; its flags are its second half word.
    let mut state = [0u16; 64];
    match quotactl(top, STATE, 0, state.as_mut_ptr().cast()) {
        Ok(()) if state[1] & IN_FORCE != 0 => Ok(()),
        Ok(()) => Err(none()),
        Err(why) if why.raw_os_error() == Some(libc::EPERM) => Err(format!("quotas cannot be set: {why}")),
        Err(_) => Err(none()),
    }
}

/// A number that no file has. Nobody else takes it while the claim lasts.
fn free(top: BorrowedFd<'_>) -> io::Result<(u32, UnixDatagram)> {
    let device = fstat(top)?.st_dev;
    let start = std::process::id().wrapping_mul(2_654_435_761);
    for n in 0..COUNT {
        let number = FIRST + start.wrapping_add(n) % COUNT;
        let name = SocketAddr::from_abstract_name(format!("palisade/project/{device}/{number}"))?;
        let claim = match UnixDatagram::bind_addr(&name) {
            Err(why) if why.kind() == io::ErrorKind::AddrInUse => continue,
            claim => claim?,
        };
        match control(top, GET, number, Quota::default()) {
            Ok(quota) if (quota.bytes, quota.inodes) == (0, 0) => return Ok((number, claim)),
            // Never heard of.
            Err(why) if matches!(why.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok((number, claim)),
            Ok(_) => {}
            Err(why) => return Err(why),
        }
    }
    Err(io::Error::other("all of them are in use"))
}

/// Gives a tree its number: directories and plain files, without following links.
fn number_below(directory: BorrowedFd<'_>, number: u32, depth: usize) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = FileType::from_raw_mode(statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match kind {
            FileType::Directory if depth < DEEPEST => {
                let below = openat(directory, name, DIRECTORY, Mode::empty())?;
                number_below(below.as_fd(), number, depth + 1)?;
            }
            FileType::Directory => return Err(io::Error::other("directories too deep in each other")),
            FileType::RegularFile => set_number(openat(directory, name, flags, Mode::empty())?.as_fd(), number)?,
            _ => {}
        }
    }
    set_number(directory, number)
}

fn set_number(file: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    let mut attributes = attributes(file)?;
    attributes.project = number;
    if FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory {
        attributes.flags |= INHERIT;
    }
    // SAFETY: the structure lives through the call, and is the one that this request reads.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), SET_ATTRIBUTES, &raw const attributes) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the structure lives through the call, and is the one that this request writes.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), GET_ATTRIBUTES, &raw mut attributes) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(attributes) }
}

fn control(top: BorrowedFd<'_>, command: u32, number: u32, mut quota: Quota) -> io::Result<Quota> {
    quotactl(top, command, number, (&raw mut quota).cast())?;
    Ok(quota)
}

/// `addr` must be what the command reads and writes, and live through the call.
fn quotactl(top: BorrowedFd<'_>, command: u32, number: u32, addr: *mut c_void) -> io::Result<()> {
    let command = command << 8 | PROJECT;
    // SAFETY: the callers of this private function give each command its own structure.
    let done = unsafe { libc::syscall(libc::SYS_quotactl_fd, top.as_raw_fd(), command, number, addr) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
