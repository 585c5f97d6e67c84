//! A bundle: what an OCI runtime is given to make a container of.

use std::ffi::CString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use palisade_cell::Source;
use serde_json::{Value, json};

use super::config::{self, Mount};
use crate::native::{Identity, Root};
use crate::{Error, Rootfs, Spec, Workspace};

/// Mount points that every sandbox has.
const PLACES: &[&str] = &["dev", "proc", "tmp", "run", "home/agent", "workspace", "mnt/session/outputs", "mnt/memory"];
/// Where the cell's program is inside.
pub(crate) const CELL: &str = "/.palisade/cell";

/// A mount to be made on the host's side before the runtime starts, seen by nobody else.
#[derive(Debug, Clone)]
pub(super) struct Outer {
    pub(super) source: CString,
    pub(super) target: CString,
    pub(super) kind: Option<CString>,
    pub(super) flags: libc::c_ulong,
    pub(super) data: Option<CString>,
}

/// A bundle on disk.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) path: PathBuf,
    /// What must be mounted for it to be whole, in order.
    pub(super) outer: Vec<Outer>,
    /// Whether the sandbox's kernel is not the host's.
    imitated: bool,
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
        let mut bundle = Bundle { path, outer: Vec::new(), imitated };
        match bundle.fill(spec, identity, cell) {
            Ok(()) => Ok(bundle),
            Err(why) => {
                bundle.remove();
                Err(why)
            }
        }
    }

    fn fill(&mut self, spec: &Spec, identity: &Identity, cell: &Path) -> Result<(), Error> {
        let mut mounts = Vec::new();
        let users = config::Users::of(identity);
        let root = self.root(spec, &users, &mut mounts)?;
        for (index, (host, target, writable)) in places(spec).into_iter().enumerate() {
            let at = self.path.join(format!("place-{index}"));
            self.directory(&at)?;
            match (&spec.workspace, index) {
                (Workspace::Layered { lower, upper }, 0) => self.layered(lower, upper, &at)?,
                // By way of a directory that the runtime can reach once it is the sandbox's user.
                _ => self.bind(host, &at)?,
            }
            make_directory(&root, &target, &users)?;
            mounts.push(Mount::bind(&at, &target, writable).like(host));
        }
        make_file(&root, CELL, &users)?;
        mounts.push(Mount::bind(cell, CELL, false));
        let config = config::config(spec, &users, &mounts);
        self.config(&config)
    }

    fn config(&self, config: &Value) -> Result<(), Error> {
        let path = self.path.join("config.json");
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let write = file.and_then(|mut file| file.write_all(config.to_string().as_bytes()));
        write.map_err(wrong(&path))
    }

    /// Prepares the root file system; returns the directory in which mount points can be made.
    fn root(&mut self, spec: &Spec, users: &config::Users, mounts: &mut Vec<Mount>) -> Result<PathBuf, Error> {
        let root = self.path.join("rootfs");
        self.directory(&root)?;
        let top = match &spec.rootfs {
            Rootfs::Host => root.clone(),
            Rootfs::Directory(_) | Rootfs::Layers(_) => {
                let top = self.path.join("top");
                self.directory(&top)?;
                top
            }
        };
        for place in PLACES {
            make_directory(&top, &format!("/{place}"), users)?;
        }
        let layers = match &spec.rootfs {
            Rootfs::Host => {
                host(&top, users, mounts)?;
                return Ok(top);
            }
            Rootfs::Directory(directory) => std::slice::from_ref(directory),
            Rootfs::Layers(layers) => layers.as_slice(),
        };
        let lower: Vec<&Path> = std::iter::once(top.as_path()).chain(layers.iter().map(PathBuf::as_path)).collect();
        // gVisor cannot take over a root with more flags than its own; nothing is executed from it by the host's kernel.
        let locked = if self.imitated { 0 } else { libc::MS_NOSUID | libc::MS_NODEV };
        self.overlay(&lower, None, &root, libc::MS_RDONLY | locked)?;
        Ok(top)
    }

    fn layered(&mut self, lower: &[PathBuf], upper: &Path, at: &Path) -> Result<(), Error> {
        let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
        self.overlay(&lower, Some(upper), at, libc::MS_NOSUID | libc::MS_NODEV)
    }

    fn overlay(&mut self, lower: &[&Path], upper: Option<&Path>, at: &Path, flags: libc::c_ulong) -> Result<(), Error> {
        let mut data = b"userxattr,lowerdir=".to_vec();
        for (index, layer) in lower.iter().enumerate() {
            if index > 0 {
                data.push(b':');
            }
            data.extend(escaped(layer));
        }
        if let Some(upper) = upper {
            for (name, part) in [("upperdir", "upper"), ("workdir", "work")] {
                data.extend(format!(",{name}=").into_bytes());
                data.extend(escaped(&upper.join(part)));
            }
        }
        // A page, with the end: what `mount(2)` takes.
        if data.len() > 4095 {
            return Err(Error::Spec(format!("{} layers have too long names together", lower.len())));
        }
        let data = CString::new(data).map_err(|_| Error::Spec("a layer's name holds NUL".to_owned()))?;
        self.outer.push(Outer {
            source: c"overlay".into(),
            target: text(at)?,
            kind: Some(c"overlay".into()),
            flags,
            data: Some(data),
        });
        Ok(())
    }

    fn bind(&mut self, host: &Path, at: &Path) -> Result<(), Error> {
        let (source, target) = (text(host)?, text(at)?);
        self.outer.push(Outer { source, target, kind: None, flags: libc::MS_BIND, data: None });
        Ok(())
    }

    fn directory(&self, path: &Path) -> Result<(), Error> {
        DirBuilder::new().mode(0o755).create(path).map_err(wrong(path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(wrong(path))
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

/// The host's programs: links and files of its root are written, directories become mounts.
fn host(top: &Path, users: &config::Users, mounts: &mut Vec<Mount>) -> Result<(), Error> {
    let mut root = Root::default();
    root.host()?;
    for bind in &root.binds {
        let Source::Path(source) = &bind.source else { continue };
        if bind.directory {
            make_directory(top, &bind.target, users)?;
        } else {
            make_file(top, &bind.target, users)?;
        }
        mounts.push(Mount::bind(Path::new(source), &bind.target, false));
    }
    for (name, target) in &root.links {
        let at = top.join(name.trim_start_matches('/'));
        symlink(target, &at).map_err(wrong(&at))?;
    }
    for (name, content) in &root.files {
        make_file(top, name, users)?;
        let at = top.join(name.trim_start_matches('/'));
        fs::write(&at, content).map_err(wrong(&at))?;
    }
    Ok(())
}

/// A directory of the sandbox's own root, with those above it.
fn make_directory(top: &Path, name: &str, users: &config::Users) -> Result<(), Error> {
    let mut at = top.to_owned();
    for part in name.split('/').filter(|part| !part.is_empty()) {
        at.push(part);
        match fs::create_dir(&at) {
            Ok(()) => users.give_to_root(&at).map_err(wrong(&at))?,
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
            Err(cause) => return Err(wrong(&at)(cause)),
        }
    }
    Ok(())
}

fn make_file(top: &Path, name: &str, users: &config::Users) -> Result<(), Error> {
    let (parent, _) = name.rsplit_once('/').unwrap_or_default();
    make_directory(top, parent, users)?;
    let at = top.join(name.trim_start_matches('/'));
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(&at);
    file.map(drop).and_then(|()| users.give_to_root(&at)).map_err(wrong(&at))
}

impl config::Users {
    fn give_to_root(&self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.root), Some(self.root))
    }
}

/// Makes the two directories of a layered workspace, before they are given away with all that is below it.
pub(super) fn prepare_layers(workspace: &Workspace) -> Result<(), Error> {
    let Workspace::Layered { upper, .. } = workspace else { return Ok(()) };
    for part in ["upper", "work"] {
        let at = upper.join(part);
        DirBuilder::new().recursive(true).create(&at).map_err(wrong(&at))?;
    }
    Ok(())
}

/// The mounts of an overlay's root that the runtime makes itself.
pub(super) fn system_mounts(tmp_bytes: u64) -> Vec<Value> {
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
        tmpfs("/dev/shm", "mode=1777,size=64m,nr_inodes=16384".to_owned()),
        tmpfs("/tmp", format!("mode=1777,size={tmp_bytes},nr_inodes={inodes}")),
        tmpfs("/home/agent", format!("mode=700,size={tmp_bytes},nr_inodes={inodes},{own}")),
        tmpfs("/run", format!("mode=755,size=16m,nr_inodes=4096,{own}")),
    ]
}
