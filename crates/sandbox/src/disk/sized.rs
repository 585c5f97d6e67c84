//! File systems in sparse files: their size is the limit.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{Error, Limit};

/// The smallest disk that can hold a file system.
pub const LEAST: u64 = 16 << 20;
/// What a disk without a limit of its own in bytes has.
const MOST: u64 = 1 << 40;
/// From this size on it keeps a journal.
const JOURNAL: u64 = 64 << 20;
/// How long another holder of the file is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

const CONFIGURE: libc::Ioctl = 0x4c0a; // LOOP_CONFIGURE
const GET_FREE: libc::Ioctl = 0x4c82; // LOOP_CTL_GET_FREE
const AUTOCLEAR: u32 = 4; // LO_FLAGS_AUTOCLEAR
const DIRECT_IO: u32 = 16; // LO_FLAGS_DIRECT_IO
const BLOCK: u32 = 4096;
/// The major number of loop devices.
const LOOP: u32 = 7;

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// A disk that is mounted. Dropping it unmounts it.
#[derive(Debug)]
pub(super) struct Sized {
    directory: PathBuf,
    /// Locked: see the invariant of the parent module.
    _image: File,
}

/// The file that a directory's disk is in.
pub fn image_of(directory: &Path) -> PathBuf {
    let mut name = OsString::from(directory);
    name.push(".img");
    name.into()
}

impl Sized {
    pub(super) fn open(directory: &Path, limit: Limit) -> Result<Sized, Error> {
        let image = image_of(directory);
        let file = if image.exists() { locked(&image, false, PATIENCE)? } else { make(directory, &image, limit)? };
        detach(directory).map_err(|why| Error::step("unmounting a leftover", directory, why))?;
        let before = fs::metadata(directory).map_err(|why| Error::step("directory", directory, why))?;
        attach_and_mount(&image, directory, "errors=remount-ro,discard")?;
        let sized = Sized { directory: directory.to_owned(), _image: file };
        let _ = fs::remove_dir(directory.join("lost+found"));
        let top = fs::metadata(directory).map_err(|why| Error::step("directory", directory, why))?;
        if top.ino() == before.ino() && top.dev() == before.dev() {
            return Err(Error::step("mounting", directory, io::Error::other("it is not there")));
        }
        // What belongs to root has not been given away yet.
        if top.uid() == 0 {
            let mode = fs::Permissions::from_mode(before.mode() & 0o7777);
            chown(directory, Some(before.uid()), Some(before.gid()))
                .and_then(|()| fs::set_permissions(directory, mode))
                .map_err(|why| Error::step("giving the disk its owner", directory, why))?;
        }
        Ok(sized)
    }

    pub(super) fn used(&self) -> Option<u64> {
        let stat = statvfs(&self.directory).ok()?;
        Some(stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize))
    }

    /// What it has room for, if that is more than the limit.
    pub(super) fn exceeds(&self, limit: Limit) -> Option<Limit> {
        let stat = statvfs(&self.directory).ok()?;
        let has = Limit { bytes: Some(stat.f_blocks.saturating_mul(stat.f_frsize)), inodes: Some(stat.f_files) };
        let bytes = limit.bytes.is_some_and(|bytes| has.bytes > Some(bytes));
        // They come in whole blocks, for each group of the file system.
        let inodes = limit.inodes.is_some_and(|inodes| stat.f_files > inodes.max(1024).saturating_mul(2));
        (bytes || inodes).then_some(has)
    }
}

#[cfg(test)]
impl Sized {
    /// Lets go of it as a process does that is killed.
    pub(super) fn abandon(self) {
        let mut held = std::mem::ManuallyDrop::new(self);
        held._image = File::open("/dev/null").expect("every system has it");
    }
}

impl Drop for Sized {
    fn drop(&mut self) {
        // Somebody may still look into it; it goes when they do, and its file is found in use until then.
        let _ =
            unmount(&self.directory, UnmountFlags::empty()).or_else(|_| unmount(&self.directory, UnmountFlags::DETACH));
    }
}

/// Whether disks can be made here: how, or why not.
pub(crate) fn possible() -> Result<String, String> {
    if !crate::native::is_root() {
        return Err("mounts cannot be made without root".to_owned());
    }
    let program = program().map_err(|why| why.to_string())?;
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.lines().any(|line| line.ends_with("\text4")) {
        return Err("this kernel has no ext4 loaded".to_owned());
    }
    File::open("/dev/loop-control").map_err(|why| format!("/dev/loop-control: {why}"))?;
    Ok(format!("loop devices and {}", program.display()))
}

fn program() -> Result<PathBuf, Error> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];
    let found = places.iter().map(|place| Path::new(place).join("mke2fs")).find(|path| path.exists());
    found.ok_or_else(|| Error::Unavailable("mke2fs is not installed (package e2fsprogs)".to_owned()))
}

/// Opens a file and locks it, once nobody else has it. The lock goes with what is returned, not with a device that has the file.
fn locked(image: &Path, fresh: bool, patience: Duration) -> Result<File, Error> {
    let mut options = File::options();
    options.read(true).write(true).create(fresh).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(image).map_err(|why| Error::step("opening the disk", image, why))?;
    let late = Instant::now() + patience;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < late => {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Busy(image.to_owned())),
            Err(why) => return Err(Error::step("locking the disk", image, why)),
        }
    }
}

/// Makes a disk for an empty directory. It is there whole or not at all.
fn make(directory: &Path, image: &Path, limit: Limit) -> Result<File, Error> {
    let filled = fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some());
    if filled {
        return Err(Error::Unavailable("a directory that holds files already cannot be given a disk".to_owned()));
    }
    let program = program()?;
    let bytes = limit.bytes.unwrap_or(MOST) / u64::from(BLOCK) * u64::from(BLOCK);
    if bytes < LEAST {
        return Err(Error::Unavailable(format!("a disk has at least {} MiB", LEAST >> 20)));
    }
    let partial = image.with_extension("img.partial");
    let file = locked(&partial, true, PATIENCE)?;
    if image.exists() {
        // Somebody else has just made it.
        return locked(image, false, PATIENCE);
    }
    let wrong = |cause| Error::step("making the disk", &partial, cause);
    file.set_len(0).and_then(|()| file.set_len(bytes)).map_err(wrong)?;
    let mut command = Command::new(program);
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"]);
    command.args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]);
    if bytes < JOURNAL {
        command.args(["-O", "^resize_inode,^has_journal"]);
    } else {
        command.args(["-O", "^resize_inode", "-J", "size=4"]);
    }
    match limit.inodes {
        Some(inodes) => command.args(["-N", &inodes.max(64).to_string()]),
        None => command.args(["-i", "16384"]),
    };
    let made = command.arg(&partial).env_clear().stdin(Stdio::null()).output().map_err(wrong)?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        return Err(wrong(io::Error::other(said)));
    }
    fs::rename(&partial, image).map_err(wrong)?;
    Ok(file)
}

/// Mounts the file system that is in a file.
pub(super) fn attach_and_mount(image: &Path, directory: &Path, options: &str) -> Result<(), Error> {
    let options = std::ffi::CString::new(options).map_err(|why| Error::step("mounting", directory, why))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    // A device that is just being let go of cannot be had again.
    let mut last = None;
    for _ in 0..50 {
        let (device, _open) = match in_use(image) {
            Some(found) => found,
            None => attach(image).map_err(|why| refused("attaching a loop device", image, why))?,
        };
        match mount(&device, directory, "ext4", flags, Some(options.as_c_str())) {
            Ok(()) => return Ok(()),
            Err(why @ (rustix::io::Errno::NXIO | rustix::io::Errno::BUSY | rustix::io::Errno::IO)) => last = Some(why),
            Err(why) => return Err(refused("mounting", directory, why.into())),
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Err(Error::step("mounting", directory, last.map_or(io::ErrorKind::TimedOut.into(), io::Error::from)))
}

/// What is not permitted is not available here.
fn refused(step: &'static str, path: &Path, why: io::Error) -> Error {
    match why.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOENT | libc::ENODEV | libc::ENOTTY | libc::EINVAL) => {
            Error::Unavailable(format!("a disk of its own cannot be mounted: {step}: {why}"))
        }
        _ => Error::step(step, path, why),
    }
}

/// The device that still has this file, held open so that it is not let go of: the kernel then mounts the same file system
/// again, not a second one on the same blocks.
fn in_use(image: &Path) -> Option<(PathBuf, File)> {
    let has = |device: &Path| {
        let backing = fs::read_to_string(device.join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end_matches('\n')) == image).then_some(())
    };
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(b"loop") || has(&entry.path()).is_none() {
            continue;
        }
        let device = Path::new("/dev").join(entry.file_name());
        let open = File::open(&device).ok()?;
        return has(&entry.path()).map(|()| (device, open));
    }
    None
}

/// Makes a free loop device have this file, for as long as anybody uses it.
fn attach(image: &Path) -> io::Result<(PathBuf, File)> {
    // Opened anew: the device holds on to what it is given, and with it to the lock that goes with that.
    let file = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(image)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..100 {
        // SAFETY: the request has no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(true).open(&path)?;
        // SAFETY: a structure of numbers may be all zeros.
        let mut config: Config = unsafe { std::mem::zeroed() };
        config.file = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
        config.block_size = BLOCK;
        config.info.flags = AUTOCLEAR | DIRECT_IO;
        // SAFETY: the structure lives through the call, and is the one that this request reads.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const config) };
        if done == 0 {
            return Ok((path, device));
        }
        let why = io::Error::last_os_error();
        // Somebody else was faster.
        if why.raw_os_error() != Some(libc::EBUSY) {
            return Err(why);
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Unmounts disks from a directory whose file's lock is held, or that has no file.
fn detach(directory: &Path) -> rustix::io::Result<()> {
    let parent = directory.parent().unwrap_or(directory);
    let device = |path: &Path| rustix::fs::lstat(path).map(|stat| stat.st_dev);
    for _ in 0..16 {
        let own = device(directory)?;
        if own == device(parent)? || rustix::fs::major(own) != LOOP {
            return Ok(());
        }
        match unmount(directory, UnmountFlags::DETACH) {
            // Not the top of a mount.
            Err(rustix::io::Errno::INVAL) => return Ok(()),
            done => done?,
        }
    }
    Ok(())
}

/// Removes a directory's disk with all that is in it. The directory stays, empty. Nothing happens when there is none.
///
/// # Errors
/// When somebody has it, or it cannot be unmounted or removed.
pub fn clear(directory: &Path) -> Result<(), Error> {
    let image = image_of(directory);
    if !image.exists() {
        return Ok(());
    }
    let _lock = locked(&image, false, Duration::ZERO)?;
    detach(directory).map_err(|why| Error::step("unmounting", directory, why))?;
    fs::remove_file(&image).map_err(|why| Error::step("removing the disk", &image, why))
}

/// Unmounts the disks below a directory whose holders have ended without doing so. What they hold stays.
pub fn sweep(below: &Path) {
    let Ok(below) = below.canonicalize() else { return };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for directory in mounts.lines().filter_map(mount_point) {
        if !directory.starts_with(&below) {
            continue;
        }
        let Ok(image) = File::options().read(true).write(true).open(image_of(&directory)) else { continue };
        if flock(&image, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = detach(&directory);
        }
    }
}

/// Where disks are mounted now, of this process's and others': a mount namespace that is made now has them too, and would
/// keep them when they are closed here.
pub(crate) fn mounted() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(mount_point).filter(|directory| image_of(directory).exists()).collect()
}

/// Where a line of `mountinfo` says that a loop device is mounted.
fn mount_point(line: &str) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    if !right.split(' ').nth(1)?.starts_with("/dev/loop") {
        return None;
    }
    let mut path = Vec::new();
    let mut bytes = left.split(' ').nth(4)?.bytes();
    // Spaces and the like are written in octal.
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'\\' {
            bytes
                .by_ref()
                .take(3)
                .fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit.wrapping_sub(b'0')))
        } else {
            byte
        };
        path.push(byte);
    }
    Some(OsString::from_vec(path).into())
}
