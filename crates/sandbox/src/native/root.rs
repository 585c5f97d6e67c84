//! What is mounted where.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use palisade_cell::{Bind, Overlay, Root, Source};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};

use super::identity::{self, INSIDE, give};
use super::idmap::Idmap;
use crate::{Error, Given, Rootfs, Spec, Workspace};

/// Where mounts come from: with root they are made here, as the sandbox's user need not be able to walk to them; without it
/// the cell makes them from paths.
pub(super) struct Sources<'a> {
    idmap: Option<Idmap<'a>>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl<'a> Sources<'a> {
    pub(super) fn new(idmap: Option<Idmap<'a>>) -> Sources<'a> {
        Sources { idmap, descriptors: Vec::new() }
    }

    fn add(&mut self, path: &Path, writable: bool) -> Result<Source, Error> {
        let Some(idmap) = &self.idmap else { return path_source(path) };
        self.descriptors.push(idmap.mount(path, writable)?);
        Ok(Source::Descriptor(self.descriptors.len() - 1))
    }
}

/// A root that is being planned.
#[derive(Debug, Default)]
struct Plan(Root);

/// Says what a sandbox's root is made of.
pub(super) fn plan(rootfs: &Rootfs, gpus: &[String], egress: bool, sources: &mut Sources<'_>) -> Result<Root, Error> {
    let mut plan = Plan::default();
    match rootfs {
        Rootfs::Host => plan.host()?,
        Rootfs::Directory(path) => plan.layers(std::slice::from_ref(path), sources)?,
        Rootfs::Layers(layers) => plan.layers(layers, sources)?,
    }
    if egress {
        plan.0.files.push(resolver());
    }
    for name in DEVICES {
        plan.device(name, *name == "tty");
    }
    for name in gpus {
        plan.device(name, false);
        let companions = COMPANIONS.iter().filter(|(prefix, _)| name.starts_with(prefix));
        for companion in companions.flat_map(|(_, names)| *names) {
            if !plan.0.binds.iter().any(|bind| bind.target == format!("/dev/{companion}")) {
                plan.device(companion, true);
            }
        }
    }
    Ok(plan.0)
}

/// Directories of the host that hold programs and libraries.
const HOST_DIRECTORIES: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "opt"];
/// What of the host's `/etc` programs need, and what says nothing about the host: no private keys in particular.
const HOST_ETC: &[&str] = &[
    "alternatives",
    "ca-certificates",
    "fonts",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "perl",
    "pki/ca-trust",
    "pki/java",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "python3",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
];
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
/// What else the devices of one maker need.
const COMPANIONS: &[(&str, &[&str])] =
    &[("nvidia", &["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"]), ("dri/", &["kfd"])];
/// The longest file of users that is read.
const LONGEST: u64 = 1 << 20;

impl Plan {
    fn device(&mut self, name: &str, optional: bool) {
        self.0.binds.push(Bind {
            source: Source::Path(format!("/dev/{name}")),
            target: format!("/dev/{name}"),
            writable: true,
            directory: false,
            optional,
            over: false,
            devices: true,
        });
    }

    fn layers(&mut self, layers: &[PathBuf], sources: &mut Sources<'_>) -> Result<(), Error> {
        if layers.is_empty() {
            return Err(Error::Spec("the image has no layers".to_owned()));
        }
        for layer in layers {
            self.0.layers.push(sources.add(layer, false)?);
        }
        self.0.files.extend(names(layers)?);
        Ok(())
    }

    fn host(&mut self) -> Result<(), Error> {
        for name in HOST_DIRECTORIES {
            self.entry(name)?;
        }
        for name in HOST_ETC {
            let source = format!("/etc/{name}");
            let Ok(meta) = fs::metadata(&source) else { continue };
            self.0.binds.push(Bind {
                source: Source::Path(source.clone()),
                target: source,
                writable: false,
                directory: meta.is_dir(),
                optional: true,
                over: false,
                devices: false,
            });
        }
        let files = [
            (
                "/etc/passwd",
                "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nagent:x:1000:1000:agent:/home/agent:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
            ),
            ("/etc/group", "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n"),
            ("/etc/hosts", HOSTS),
            ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
            ("/etc/hostname", "sandbox\n"),
            // The host's own settings are not for sandboxes; a session's may take their place.
            ("/etc/ssh/ssh_config", ""),
        ];
        self.0.files.extend(files.map(|(name, content)| (name.to_owned(), content.to_owned())));
        Ok(())
    }

    /// One entry at the top of the host's root: a link stays a link, a directory is mounted read-only.
    fn entry(&mut self, name: &str) -> Result<(), Error> {
        let source = Path::new("/").join(name);
        let Ok(meta) = fs::symlink_metadata(&source) else { return Ok(()) };
        if meta.is_symlink() {
            let target = fs::read_link(&source).map_err(|cause| Error::Directory { path: source.clone(), cause })?;
            self.0.links.push((format!("/{name}"), target.to_string_lossy().into_owned()));
        } else if meta.is_dir() {
            self.0.binds.push(bind(path_source(&source)?, &format!("/{name}"), false));
        }
        Ok(())
    }
}

/// The file that says whom to ask for names.
pub(crate) fn resolver() -> (String, String) {
    ("/etc/resolv.conf".to_owned(), RESOLVER.to_owned())
}

/// Whether one of the layers has a file at this path, and no link on the way to it.
pub(crate) fn exists(layers: &[PathBuf], path: &str) -> bool {
    layers.iter().any(|layer| {
        let open = || {
            let top =
                openat(rustix::fs::CWD, layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
            openat2(&top, path.trim_start_matches('/'), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
        };
        open().map(File::from).is_ok_and(|file| file.metadata().is_ok_and(|meta| meta.is_file()))
    })
}

/// The host's programs and libraries, without devices.
pub(crate) fn host() -> Result<Root, Error> {
    let mut plan = Plan::default();
    plan.host()?;
    Ok(plan.0)
}

/// What the root of an image needs besides: names, in files.
pub(crate) fn names(layers: &[PathBuf]) -> Result<Vec<(String, String)>, Error> {
    let mut files = Vec::new();
    // The sandbox's user has a name: programs ask for it.
    for (name, line, own) in [
        ("etc/passwd", "agent:x:1000:1000:agent:/home/agent:/bin/sh\n", ":1000:"),
        ("etc/group", "agent:x:1000:\n", ":1000:"),
    ] {
        let mut text = read_beneath(layers, name)?;
        let known = text.lines().any(|line| line.splitn(3, ':').nth(2).is_some_and(|id| id.starts_with(&own[1..])));
        if !known {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(line);
            files.push((format!("/{name}"), text));
        }
    }
    files.push(("/etc/hosts".to_owned(), HOSTS.to_owned()));
    files.push(("/etc/hostname".to_owned(), "sandbox\n".to_owned()));
    Ok(files)
}

/// What is mounted for one session.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) binds: Vec<Bind>,
    pub(super) overlays: Vec<Overlay>,
}

impl Session {
    pub(super) fn plan(spec: &Spec, sources: &mut Sources<'_>) -> Result<Session, Error> {
        let mut session = Session::default();
        if let Workspace::Layered { lower, upper } = &spec.workspace {
            let lower = lower.iter().map(|layer| sources.add(layer, false)).collect::<Result<_, _>>()?;
            let upper = sources.add(upper, true)?;
            session.overlays.push(Overlay { lower, upper, target: "/workspace".to_owned() });
        }
        for (host, at, writable) in places(spec) {
            let source = sources.add(host, writable)?;
            session.binds.push(bind(source, &at, writable));
        }
        for Given { host, target, over } in &spec.given {
            let wrong = |cause| Error::Directory { path: host.clone(), cause };
            let directory = fs::symlink_metadata(host).map_err(wrong)?.is_dir();
            let source = sources.add(host, false)?;
            session.binds.push(Bind { directory, over: *over, ..bind(source, target, false) });
        }
        Ok(session)
    }
}

/// Directories of the host, where each is inside, and whether it may be written.
fn places(spec: &Spec) -> impl Iterator<Item = (&Path, String, bool)> {
    let workspace = match &spec.workspace {
        Workspace::Directory(path) => Some((path.as_path(), "/workspace".to_owned(), true)),
        Workspace::Layered { .. } => None,
    };
    let outputs = (spec.outputs.as_path(), "/mnt/session/outputs".to_owned(), true);
    let memory =
        spec.memory.iter().map(|mount| (&*mount.host, format!("/mnt/memory/{}", mount.name), !mount.read_only));
    workspace.into_iter().chain([outputs]).chain(memory)
}

/// Directories that belong to root and are to be the sandbox's user's.
fn gifts(spec: &Spec) -> Result<Vec<&Path>, Error> {
    let mut gifts = Vec::new();
    if identity::is_root() {
        for (host, _, writable) in places(spec) {
            let wrong = |cause| Error::Directory { path: host.to_owned(), cause };
            let meta = fs::symlink_metadata(host).map_err(wrong)?;
            // What is only read, and may be read by everybody, needs no new owner: it may be anything.
            if meta.uid() == 0 && (writable || meta.mode() & 0o005 != 0o005) {
                gifts.push(host);
            }
        }
    }
    Ok(gifts)
}

/// Whether [`prepare`] has no more to do than can be done at once.
pub(super) fn is_quick(spec: &Spec) -> bool {
    gifts(spec).is_ok_and(|gifts| gifts.is_empty())
}

/// Makes and gives away what the session writes to. This may take as long as a walk through whole trees.
pub(super) fn prepare(spec: &Spec) -> Result<(), Error> {
    if let Workspace::Layered { upper, .. } = &spec.workspace {
        for name in ["upper", "work"] {
            own_directory(&upper.join(name)).map_err(|cause| Error::Directory { path: upper.join(name), cause })?;
        }
    }
    for host in gifts(spec)? {
        give(host, INSIDE).map_err(|why| Error::Directory { path: host.to_owned(), cause: why.into() })?;
    }
    Ok(())
}

/// Whatever resolver is named here, the one that is asked is the egress service's.
const RESOLVER: &str = "nameserver 127.0.0.1\noptions timeout:5 attempts:1\n";
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";

fn bind(source: Source, target: &str, writable: bool) -> Bind {
    Bind { source, target: target.to_owned(), writable, directory: true, optional: false, over: false, devices: false }
}

/// Makes a directory that the user inside can write, if it is not there.
pub(crate) fn own_directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Ok(()) if identity::is_root() => chown(path, Some(INSIDE), Some(INSIDE)),
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// What a text file of an image says, empty when there is none. A link that the image's maker put in its place leads
/// nowhere outside the image.
fn read_beneath(layers: &[PathBuf], name: &str) -> Result<String, Error> {
    let mut text = String::new();
    for layer in layers {
        let wrong = |cause: rustix::io::Errno| Error::Directory { path: layer.clone(), cause: cause.into() };
        let top = openat(rustix::fs::CWD, layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(wrong)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let Ok(file) = openat2(&top, name, flags, Mode::empty(), resolve) else { continue };
        let file = File::from(file);
        // A device in its place is overlayfs's way of saying that there is none.
        if file.metadata().is_ok_and(|meta| meta.is_file()) && file.take(LONGEST).read_to_string(&mut text).is_err() {
            text.clear();
        }
        break;
    }
    Ok(text)
}

fn path_source(path: &Path) -> Result<Source, Error> {
    let text = path.to_str().ok_or_else(|| Error::Directory {
        path: path.to_owned(),
        cause: io::Error::other("the path must be valid UTF-8"),
    })?;
    Ok(Source::Path(text.to_owned()))
}
