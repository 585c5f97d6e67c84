//! What is mounted where.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use palisade_cell::{Bind, Claim, Overlay, Root, Setup, Source};

use super::{Failed, Step};
use crate::sys::{self, check};

/// Where everything is put together: a directory that every system has, and that no session's files are in.
const STAGE: &str = "/sys";
/// The new root, on the stage.
const ROOT: &str = "/sys/root";
/// Where a root's layers are attached while an overlay is made of them.
const ROOT_LAYERS: &str = "/sys/layers";
/// Where a session's layers are attached meanwhile: in the sandbox's own `/tmp`, which is empty then.
const LAYERS: &str = "/tmp/.layers";
const PRIVATE: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

/// Nothing that is mounted from here on is seen outside.
pub(super) fn make_private() -> io::Result<()> {
    sys::mount(c"none", c"/", None, libc::MS_SLAVE | libc::MS_REC, None)
}

/// Makes the root and all in it that sandboxes can share, and says where.
pub(super) fn root(wanted: &Root, descriptors: Vec<OwnedFd>) -> Result<&'static str, Failed> {
    let mut descriptors = Descriptors(descriptors.into_iter().map(Some).collect());
    // Sources are taken before the stage hides what it covers.
    let layers = wanted.layers.iter().map(|layer| descriptors.open(layer)).collect::<Result<Vec<_>, _>>()?;
    let binds = open_all(&wanted.binds, &mut descriptors)?;
    tmpfs(STAGE, "mode=755,size=8m", PRIVATE).step("stage", STAGE)?;
    let empty = layers.is_empty();
    // Under an image's layers this is the uppermost one: it has the places where something will be mounted.
    let at = if empty { ROOT.to_owned() } else { format!("{STAGE}/top") };
    fs::create_dir(&at).step("root", &at)?;
    if empty {
        tmpfs(&at, "mode=755,size=4m", PRIVATE).step("root", &at)?;
    }
    for place in ["dev", "proc", "tmp", "home", "home/agent", "run", "workspace", "mnt", "mnt/session", "mnt/memory"] {
        fs::create_dir(format!("{at}/{place}")).step("places", place)?;
    }
    fs::create_dir(format!("{at}/mnt/session/outputs")).step("places", "outputs")?;
    for (name, target) in &wanted.links {
        make_parent(&format!("{at}{name}")).step("root links", name)?;
        std::os::unix::fs::symlink(target, format!("{at}{name}")).step("root links", name)?;
    }
    for (name, content) in &wanted.files {
        make_parent(&format!("{at}{name}")).step("root files", name)?;
        fs::write(format!("{at}{name}"), content).step("root files", name)?;
    }
    if !empty {
        fs::create_dir(ROOT).step("root", ROOT)?;
        fs::create_dir(ROOT_LAYERS).step("layers", ROOT_LAYERS)?;
        let lower = attach_layers(ROOT_LAYERS, &layers)?;
        overlay(ROOT, &format!("lowerdir={at}:{lower},userxattr")).step("root overlay", ROOT)?;
    }
    tmpfs(&format!("{ROOT}/dev"), "mode=755,size=1m,nr_inodes=64", libc::MS_NOSUID).step("devices", "/dev")?;
    for (bind, source) in wanted.binds.iter().zip(binds) {
        let Some(source) = source else { continue };
        attach(ROOT, bind, &source).step("bind mount", &bind.target)?;
    }
    Ok(ROOT)
}

/// Mounts what is written in a sandbox, and is in memory.
pub(super) fn scratch(root: &str, setup: &Setup) -> Result<(), Failed> {
    let size = setup.tmp_bytes;
    // Empty files take kernel memory too.
    let inodes = (size >> 12).max(1024);
    for (name, options) in [
        ("tmp", format!("mode=1777,size={size},nr_inodes={inodes}")),
        ("home/agent", format!("mode=700,size={size},nr_inodes={inodes}")),
        ("run", "mode=755,size=16m,nr_inodes=4096".to_owned()),
        ("dev/shm", format!("mode=1777,size={},nr_inodes=16384", setup.shm_bytes)),
    ] {
        tmpfs(&format!("{root}/{name}"), &options, PRIVATE).step("temporary directories", name)?;
    }
    Ok(())
}

/// Mounts what belongs to the session.
pub(super) fn session(root: &str, claim: &Claim, descriptors: Vec<OwnedFd>) -> Result<(), Failed> {
    let mut descriptors = Descriptors(descriptors.into_iter().map(Some).collect());
    if claim.binds.iter().any(|bind| bind.target.starts_with("/mnt/memory/")) {
        let at = format!("{root}/mnt/memory");
        tmpfs(&at, "mode=755,size=64k", PRIVATE).step("memory", &at)?;
    }
    let binds = open_all(&claim.binds, &mut descriptors)?;
    for (bind, source) in claim.binds.iter().zip(binds) {
        let Some(source) = source else { continue };
        attach(root, bind, &source).step("bind mount", &bind.target)?;
    }
    for wanted in &claim.overlays {
        layered(root, wanted, &mut descriptors)?;
    }
    if claim.binds.iter().any(|bind| bind.target.starts_with("/mnt/memory/")) {
        let at = sys::path(&format!("{root}/mnt/memory")).step("memory", "read-only")?;
        sys::mount_setattr(libc::AT_FDCWD, &at, 0, libc::MOUNT_ATTR_RDONLY).step("memory", "read-only")?;
    }
    Ok(())
}

fn layered(root: &str, wanted: &Overlay, descriptors: &mut Descriptors) -> Result<(), Failed> {
    let lower = wanted.lower.iter().map(|layer| descriptors.open(layer)).collect::<Result<Vec<_>, _>>()?;
    let upper = descriptors.open(&wanted.upper)?;
    let place = format!("{root}{LAYERS}");
    fs::create_dir(&place).step("layers", &place)?;
    // On a mount of their own, so that all of them are let go of at once: each time costs as much as many mounts.
    tmpfs(&place, "mode=755,size=64k", PRIVATE).step("layers", &place)?;
    let lower = attach_layers(&place, &lower)?;
    let top = format!("{place}/top");
    attach_layer(&top, &upper, false).step("upper layer", &top)?;
    let at = format!("{root}{}", wanted.target);
    overlay(&at, &format!("lowerdir={lower},upperdir={top}/upper,workdir={top}/work,userxattr"))
        .step("overlay", &wanted.target)?;
    // The overlay holds on to its layers; nobody else is to reach them.
    let path = sys::path(&place).step("layers", &place)?;
    // SAFETY: the path is a C string.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }.into()).step("layers", "detach")?;
    fs::remove_dir(&place).step("layers", &place)
}

/// Attaches layers below `place` and names them as overlayfs wants them, topmost first.
fn attach_layers(place: &str, layers: &[OwnedFd]) -> Result<String, Failed> {
    let mut names = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let at = format!("{place}/{number}");
        attach_layer(&at, layer, true).step("layer", &at)?;
        names.push(at);
    }
    Ok(names.join(":"))
}

fn attach_layer(at: &str, layer: &OwnedFd, read_only: bool) -> io::Result<()> {
    fs::create_dir(at)?;
    restrict(layer, !read_only, false)?;
    sys::move_mount(layer, &sys::path(at)?)
}

fn overlay(at: &str, options: &str) -> io::Result<()> {
    sys::mount(c"overlay", &sys::path(at)?, Some(c"overlay"), PRIVATE, Some(&sys::path(options)?))
}

/// The descriptors that came with a frame, each taken once.
struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    fn open(&mut self, source: &Source) -> Result<OwnedFd, Failed> {
        match source {
            Source::Path(text) => {
                sys::path(text).and_then(|path| sys::open_tree(&path)).step("open mount source", text)
            }
            Source::Descriptor(index) => {
                let taken = self.0.get_mut(*index).and_then(Option::take);
                let missing = || io::Error::from_raw_os_error(libc::EBADF);
                taken.ok_or_else(missing).step("open mount source", index.to_string())
            }
        }
    }
}

fn open_all(binds: &[Bind], descriptors: &mut Descriptors) -> Result<Vec<Option<OwnedFd>>, Failed> {
    let mut sources = Vec::with_capacity(binds.len());
    for bind in binds {
        sources.push(match descriptors.open(&bind.source) {
            Ok(source) => Some(source),
            Err(failed) if bind.optional && failed.cause.raw_os_error() == Some(libc::ENOENT) => None,
            Err(failed) => return Err(failed),
        });
    }
    Ok(sources)
}

/// What holds for a mount and all below it.
fn restrict(source: &OwnedFd, writable: bool, devices: bool) -> io::Result<()> {
    let mut flags = libc::MOUNT_ATTR_NOSUID;
    if !writable {
        flags |= libc::MOUNT_ATTR_RDONLY;
    }
    if !devices {
        flags |= libc::MOUNT_ATTR_NODEV;
    }
    sys::mount_setattr(source.as_raw_fd(), c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, flags)
}

fn attach(root: &str, bind: &Bind, source: &OwnedFd) -> io::Result<()> {
    // What comes as a descriptor has its attributes.
    if let Source::Path(_) = bind.source {
        restrict(source, bind.writable, bind.devices)?;
    }
    let target = format!("{root}{}", bind.target);
    let at = sys::path(&target)?;
    match sys::move_mount(source, &at) {
        Err(why) if why.raw_os_error() == Some(libc::ENOENT) && bind.over => return Ok(()),
        Err(why) if why.raw_os_error() == Some(libc::ENOENT) => {}
        done => return done,
    }
    if bind.directory {
        fs::create_dir_all(&target)?;
    } else {
        make_parent(&target)?;
        drop(fs::OpenOptions::new().create(true).append(true).open(&target)?);
    }
    sys::move_mount(source, &at)
}

fn make_parent(at: &str) -> io::Result<()> {
    match at.rsplit_once('/') {
        Some((parent, _)) if !parent.is_empty() => fs::create_dir_all(parent),
        _ => Ok(()),
    }
}

/// A file system in memory.
pub(super) fn tmpfs(at: &str, options: &str, flags: libc::c_ulong) -> io::Result<()> {
    sys::mount(c"tmpfs", &sys::path(at)?, Some(c"tmpfs"), flags, Some(&sys::path(options)?))
}

/// Makes the new root the root and lets go of the host's; says where the root is now.
pub(super) fn leave_host() -> Result<&'static str, Failed> {
    chdir(ROOT).step("pivot root", ROOT)?;
    // SAFETY: both arguments are C strings; with the same directory twice the old root lands on top of the new one.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }).step("pivot root", ROOT)?;
    // SAFETY: the path is a C string.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }.into()).step("detach host root", ".")?;
    chdir("/").step("detach host root", "/")?;
    Ok("")
}

/// Nothing can be put into the root any more.
pub(super) fn seal_root() -> Result<(), Failed> {
    sys::mount_setattr(libc::AT_FDCWD, c"/dev", 0, libc::MOUNT_ATTR_RDONLY).step("read-only devices", "/dev")?;
    sys::mount_setattr(libc::AT_FDCWD, c"/", 0, libc::MOUNT_ATTR_RDONLY).step("read-only root", "/")
}

#[expect(clippy::disallowed_methods, reason = "there is no other thread yet")]
pub(crate) fn chdir(to: &str) -> io::Result<()> {
    std::env::set_current_dir(to)
}
