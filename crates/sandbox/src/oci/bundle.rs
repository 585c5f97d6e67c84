//! A bundle: what an OCI runtime is given to make a container of.

use std::ffi::CString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use palisade_cell::Source;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde_json::{Value, json};

use super::config::{self, Mount};
use crate::native::{self, INSIDE, Identity, Idmap};
use crate::{Error, Limits, Rootfs, Spec, Workspace};

/// Mount points that every sandbox has.
const PLACES: &[&str] = &["dev", "proc", "tmp", "run", "home/agent", "workspace", "mnt/session/outputs", "mnt/memory"];
/// Where the cell's program is inside.
pub(crate) const CELL: &str = "/.palisade/cell";

/// A mount to be made on the host's side before the runtime starts, seen by nobody else.
#[derive(Debug)]
pub(super) enum Outer {
    /// A detached mount, attached where the runtime can reach it once it is the sandbox's user.
    Attach { tree: OwnedFd, target: CString },
    /// Layers.
    Overlay {
        target: CString,
        flags: libc::c_ulong,
        options: CString,
        /// Root inside: whose what the kernel adds is.
        user: u32,
    },
}

/// A bundle on disk.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) path: PathBuf,
    /// What must be mounted for it to be whole, in order.
    pub(super) outer: Vec<Outer>,
    /// Whether the sandbox's kernel is not the host's.
    imitated: bool,
    /// The host's number for root inside.
    root: u32,
}

fn wrong(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |cause| Error::Scratch { path: path.to_owned(), cause }
}

fn text(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| wrong(path)(io::ErrorKind::InvalidInput.into()))
}

impl Bundle {
    /// Writes the bundle of a sandbox. What is there when a step fails goes with it.
    pub(super) fn write(
        path: PathBuf,
        spec: &Spec,
        identity: &Identity,
        cell: &Path,
        imitated: bool,
    ) -> Result<Bundle, Error> {
        DirBuilder::new().mode(0o711).create(&path).map_err(wrong(&path))?;
        // Whatever the worker's mask is.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).map_err(wrong(&path))?;
        let mut bundle = Bundle { path, outer: Vec::new(), imitated, root: identity.root() };
        match bundle.fill(spec, identity, cell) {
            Ok(()) => Ok(bundle),
            Err(why) => {
                bundle.remove();
                Err(why)
            }
        }
    }

    fn fill(&mut self, spec: &Spec, identity: &Identity, cell: &Path) -> Result<(), Error> {
        let idmap = Idmap::ahead(identity)?;
        let owner = Owner(identity.root());
        let mut mounts = Vec::new();
        let root = self.root(spec, &idmap, &owner, &mut mounts)?;
        for (index, (host, target, writable)) in places(spec).into_iter().enumerate() {
            let at = self.directory(&format!("p{index}"))?;
            match (&spec.workspace, index) {
                (Workspace::Layered { lower, upper }, 0) => self.layered(lower, upper, &at, &idmap)?,
                _ => {
                    ours(host, writable)?;
                    self.attach(idmap.mount(host, writable)?, &at)?;
                }
            }
            owner.directory(&root, &target)?;
            mounts.push(Mount::bind(&at, &target, writable).like(host));
        }
        if spec.egress {
            write_files(&root, &owner, &[native::resolver()])?;
        }
        for (index, given) in spec.given.iter().enumerate() {
            if given.over && !exists(spec, &given.target) {
                continue;
            }
            let name = format!("g{index}");
            let at = if given.host.is_dir() { self.directory(&name)? } else { self.file(&name)? };
            self.attach(idmap.mount(&given.host, false)?, &at)?;
            // What is below `/run` the runtime makes in its tmpfs; anything else is there.
            mounts.push(Mount::bind(&at, &given.target, false).like(&given.host));
        }
        owner.file(&root, CELL)?;
        mounts.push(Mount::bind(cell, CELL, false));
        self.config(&config::config(spec, identity, &mounts))
    }

    fn config(&self, config: &Value) -> Result<(), Error> {
        let path = self.path.join("config.json");
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let write = file.and_then(|mut file| file.write_all(config.to_string().as_bytes()));
        write.map_err(wrong(&path))
    }

    /// Prepares the root file system; returns the directory in which mount points can be made.
    fn root(
        &mut self,
        spec: &Spec,
        idmap: &Idmap<'_>,
        owner: &Owner,
        mounts: &mut Vec<Mount>,
    ) -> Result<PathBuf, Error> {
        let root = self.directory("rootfs")?;
        let layers = match &spec.rootfs {
            Rootfs::Host => &[],
            Rootfs::Directory(directory) => std::slice::from_ref(directory),
            Rootfs::Layers(layers) if layers.is_empty() => {
                return Err(Error::Spec("the image has no layers".to_owned()));
            }
            Rootfs::Layers(layers) => layers.as_slice(),
        };
        if layers.is_empty() {
            places_of_all(&root, owner)?;
            host(&root, owner, mounts)?;
            return Ok(root);
        }
        let top = self.directory("top")?;
        places_of_all(&top, owner)?;
        write_files(&top, owner, &native::names(layers)?)?;
        let mut lower = vec![top.clone()];
        lower.extend(self.lower("r", layers, idmap)?);
        // gVisor cannot take over a root with more flags than its own; nothing is executed from it by the host's kernel.
        let locked = if self.imitated { 0 } else { libc::MS_NOSUID | libc::MS_NODEV };
        self.overlay(&lower, None, &root, libc::MS_RDONLY | locked)?;
        Ok(top)
    }

    fn layered(&mut self, lower: &[PathBuf], upper: &Path, at: &Path, idmap: &Idmap<'_>) -> Result<(), Error> {
        for name in ["upper", "work"] {
            let part = upper.join(name);
            native::own_directory(&part).map_err(|cause| Error::Directory { path: part, cause })?;
        }
        let lower = self.lower("l", lower, idmap)?;
        let own = self.directory("own")?;
        self.attach(idmap.mount(upper, true)?, &own)?;
        self.overlay(&lower, Some(&own), at, libc::MS_NOSUID | libc::MS_NODEV)
    }

    /// Attaches layers that are only read, each under a short name.
    fn lower(&mut self, name: &str, layers: &[PathBuf], idmap: &Idmap<'_>) -> Result<Vec<PathBuf>, Error> {
        let mut attached = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            let at = self.directory(&format!("{name}{index}"))?;
            self.attach(idmap.mount(layer, false)?, &at)?;
            attached.push(at);
        }
        Ok(attached)
    }

    fn overlay(
        &mut self,
        lower: &[PathBuf],
        upper: Option<&Path>,
        at: &Path,
        flags: libc::c_ulong,
    ) -> Result<(), Error> {
        let mut options = b"userxattr,lowerdir=".to_vec();
        for (index, layer) in lower.iter().enumerate() {
            if index > 0 {
                options.push(b':');
            }
            options.extend(escaped(layer));
        }
        if let Some(upper) = upper {
            for (name, part) in [("upperdir", "upper"), ("workdir", "work")] {
                options.extend(format!(",{name}=").into_bytes());
                options.extend(escaped(&upper.join(part)));
            }
        }
        // A page, with the end: what `mount(2)` takes.
        if options.len() > 4095 {
            return Err(Error::Spec(format!("{} layers are too many for one mount here", lower.len())));
        }
        let options = CString::new(options).map_err(|_| wrong(at)(io::ErrorKind::InvalidInput.into()))?;
        self.outer.push(Outer::Overlay { target: text(at)?, flags, options, user: self.root });
        Ok(())
    }

    /// Shows a directory to the runtime, wherever it is; returns where the runtime finds it.
    pub(super) fn show(&mut self, name: &str, directory: &Path) -> Result<PathBuf, Error> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, directory, flags).map_err(|why| wrong(directory)(why.into()))?;
        let at = self.directory(name)?;
        self.attach(tree, &at)?;
        Ok(at)
    }

    fn attach(&mut self, tree: OwnedFd, at: &Path) -> Result<(), Error> {
        self.outer.push(Outer::Attach { tree, target: text(at)? });
        Ok(())
    }

    fn directory(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        DirBuilder::new().mode(0o755).create(&path).map_err(wrong(&path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(wrong(&path))?;
        Ok(path)
    }

    fn file(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path).map_err(wrong(&path))?;
        Ok(path)
    }

    /// The file that the runtime writes its container's process id to.
    pub(super) fn pid_file(&self) -> PathBuf {
        self.path.join("pid")
    }

    /// The file that holds what the runtime said.
    pub(super) fn said(&self) -> PathBuf {
        self.path.join("said")
    }

    /// Removes it. Its mounts were never seen here.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What the host gives: where it is, where it goes, and whether it may be written.
fn places(spec: &Spec) -> Vec<(&Path, String, bool)> {
    let mut places = vec![
        (spec.workspace.written(), "/workspace".to_owned(), true),
        (spec.outputs.as_path(), "/mnt/session/outputs".to_owned(), true),
    ];
    places.extend(
        spec.memory.iter().map(|mount| (mount.host.as_path(), format!("/mnt/memory/{}", mount.name), !mount.read_only)),
    );
    places
}

/// Whether a root has a file at this path, and no link on the way to it.
fn exists(spec: &Spec, path: &str) -> bool {
    match &spec.rootfs {
        Rootfs::Host => native::exists(&["/".into()], path),
        Rootfs::Directory(directory) => native::exists(std::slice::from_ref(directory), path),
        Rootfs::Layers(layers) => native::exists(layers, path),
    }
}

/// A colon separates layers, a comma options.
fn escaped(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b':' | b',') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

/// Makes what belongs to root belong to the user inside, where it must be written or could not be read otherwise.
fn ours(host: &Path, writable: bool) -> Result<(), Error> {
    let wrong = |cause| Error::Directory { path: host.to_owned(), cause };
    let readable = fs::symlink_metadata(host).map_err(wrong)?.mode() & 0o005 == 0o005;
    if writable || !readable {
        native::give(host, INSIDE).map_err(|why| wrong(why.into()))?;
    }
    Ok(())
}

fn places_of_all(top: &Path, owner: &Owner) -> Result<(), Error> {
    PLACES.iter().try_for_each(|place| owner.directory(top, place))?;
    // runc before 1.2 gives a tmpfs the mode of what it is mounted on, whatever `mode=` says.
    for (place, mode) in [("tmp", 0o1777), ("home/agent", 0o700)] {
        let at = top.join(place);
        fs::set_permissions(&at, fs::Permissions::from_mode(mode)).map_err(wrong(&at))?;
    }
    Ok(())
}

/// The host's programs: links and files of its root are written, directories become mounts.
fn host(top: &Path, owner: &Owner, mounts: &mut Vec<Mount>) -> Result<(), Error> {
    let root = native::host()?;
    for bind in &root.binds {
        let Source::Path(source) = &bind.source else { continue };
        if bind.directory {
            owner.directory(top, &bind.target)?;
        } else {
            owner.file(top, &bind.target)?;
        }
        mounts.push(Mount::bind(Path::new(source), &bind.target, false).like(Path::new(source)));
    }
    for (name, target) in &root.links {
        let at = top.join(name.trim_start_matches('/'));
        symlink(target, &at).map_err(wrong(&at))?;
    }
    write_files(top, owner, &root.files)
}

fn write_files(top: &Path, owner: &Owner, files: &[(String, String)]) -> Result<(), Error> {
    for (name, content) in files {
        owner.file(top, name)?;
        let at = top.join(name.trim_start_matches('/'));
        fs::write(&at, content).map_err(wrong(&at))?;
    }
    Ok(())
}

/// The host's number for root inside, whose the sandbox's own root is: the runtime may then mount on it. What is made is open to
/// the user inside, whatever the worker's mask is.
struct Owner(u32);

impl Owner {
    /// A directory of the sandbox's own root, with those above it.
    fn directory(&self, top: &Path, name: &str) -> Result<(), Error> {
        let mut at = top.to_owned();
        for part in name.split('/').filter(|part| !part.is_empty()) {
            at.push(part);
            match fs::create_dir(&at) {
                Ok(()) => self.give(&at, 0o755)?,
                Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(wrong(&at)(cause)),
            }
        }
        Ok(())
    }

    fn file(&self, top: &Path, name: &str) -> Result<(), Error> {
        let (parent, _) = name.rsplit_once('/').unwrap_or_default();
        self.directory(top, parent)?;
        let at = top.join(name.trim_start_matches('/'));
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(&at);
        file.map_err(wrong(&at))?;
        self.give(&at, 0o644)
    }

    fn give(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let open = fs::set_permissions(path, fs::Permissions::from_mode(mode));
        open.and_then(|()| chown(path, Some(self.0), Some(self.0))).map_err(wrong(path))
    }
}

/// The mounts that the runtime makes itself.
pub(super) fn system_mounts(limits: &Limits) -> Vec<Value> {
    let (tmp_bytes, shm_bytes) = (limits.tmp_bytes, limits.shm_bytes);
    let tmpfs = |at: &str, options: String| {
        let mut all = vec!["nosuid".to_owned(), "nodev".to_owned()];
        all.extend(options.split(',').map(ToOwned::to_owned));
        json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": all})
    };
    // Empty files take kernel memory too.
    let inodes = (tmp_bytes >> 12).max(1024);
    let own = "uid=1000,gid=1000";
    vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
        tmpfs("/dev/shm", format!("mode=1777,size={shm_bytes},nr_inodes={}", (shm_bytes >> 12).max(1024))),
        tmpfs("/tmp", format!("mode=1777,size={tmp_bytes},nr_inodes={inodes}")),
        tmpfs("/home/agent", format!("mode=700,size={tmp_bytes},nr_inodes={inodes},{own}")),
        tmpfs("/run", format!("mode=755,size=16m,nr_inodes=4096,{own}")),
    ]
}
