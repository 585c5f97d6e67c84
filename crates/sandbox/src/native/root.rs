//! What is mounted where.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use palisade_cell::{Bind, Source};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::identity;
use crate::{Error, Rootfs, Spec};

/// Mounts, links and files of a sandbox's root, and the descriptors that some of the mounts come from.
#[derive(Debug, Default)]
pub(crate) struct Root {
    pub(crate) binds: Vec<Bind>,
    pub(crate) links: Vec<(String, String)>,
    pub(crate) files: Vec<(String, String)>,
    pub(super) descriptors: Vec<OwnedFd>,
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
/// Names in a root file system that the sandbox has of its own.
const OWN: &[&str] = &["dev", "proc", "sys", "tmp", "run", "home", "workspace", "mnt"];
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

impl Root {
    pub(super) fn plan(spec: &Spec) -> Result<Root, Error> {
        let mut root = Root::default();
        match &spec.rootfs {
            Rootfs::Host => root.host()?,
            Rootfs::Directory(path) => root.directory(path)?,
            Rootfs::Layers(_) => return Err(Error::Spec("layers are mounted by the next change".to_owned())),
        }
        for name in DEVICES {
            root.binds.push(Bind {
                source: Source::Path(format!("/dev/{name}")),
                target: format!("/dev/{name}"),
                writable: true,
                directory: false,
                optional: *name == "tty",
                devices: true,
            });
        }
        root.writable(spec.workspace.written(), "/workspace", true)?;
        root.writable(&spec.outputs, "/mnt/session/outputs", true)?;
        for mount in &spec.memory {
            root.writable(&mount.host, &format!("/mnt/memory/{}", mount.name), !mount.read_only)?;
        }
        Ok(root)
    }

    /// The host's programs and libraries.
    pub(crate) fn host(&mut self) -> Result<(), Error> {
        for name in HOST_DIRECTORIES {
            self.entry(Path::new("/"), name, false)?;
        }
        for name in HOST_ETC {
            let source = format!("/etc/{name}");
            let Ok(meta) = fs::metadata(&source) else { continue };
            self.binds.push(Bind {
                source: Source::Path(source.clone()),
                target: source,
                writable: false,
                directory: meta.is_dir(),
                optional: true,
                devices: false,
            });
        }
        let files = [
            (
                "/etc/passwd",
                "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nagent:x:1000:1000:agent:/home/agent:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
            ),
            ("/etc/group", "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n"),
            ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
            ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
            ("/etc/hostname", "sandbox\n"),
        ];
        self.files.extend(files.map(|(name, content)| (name.to_owned(), content.to_owned())));
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> Result<(), Error> {
        let wrong = |cause| Error::Directory { path: path.to_owned(), cause };
        for entry in fs::read_dir(path).map_err(wrong)? {
            let name = entry.map_err(wrong)?.file_name();
            let Some(name) = name.to_str() else { continue };
            if !OWN.contains(&name) {
                self.entry(path, name, true)?;
            }
        }
        Ok(())
    }

    /// One entry at the top of a root file system: a link stays a link, anything else is mounted read-only.
    fn entry(&mut self, base: &Path, name: &str, by_descriptor: bool) -> Result<(), Error> {
        let source = base.join(name);
        let Ok(meta) = fs::symlink_metadata(&source) else { return Ok(()) };
        if meta.is_symlink() {
            let target = fs::read_link(&source).map_err(|cause| Error::Directory { path: source.clone(), cause })?;
            let target = target.to_string_lossy().into_owned();
            self.links.push((format!("/{name}"), target));
            return Ok(());
        }
        if !meta.is_dir() && !meta.is_file() {
            return Ok(());
        }
        let source = if by_descriptor { self.source(&source)? } else { path_source(&source)? };
        self.binds.push(Bind {
            source,
            target: format!("/{name}"),
            writable: false,
            directory: meta.is_dir(),
            optional: false,
            devices: false,
        });
        Ok(())
    }

    fn writable(&mut self, host: &Path, target: &str, writable: bool) -> Result<(), Error> {
        let source = self.source(host)?;
        self.binds.push(Bind {
            source,
            target: target.to_owned(),
            writable,
            directory: true,
            optional: false,
            devices: false,
        });
        Ok(())
    }

    /// With root the mount is taken here: the sandbox's user need not be able to walk to it.
    fn source(&mut self, path: &Path) -> Result<Source, Error> {
        if !identity::is_root() {
            return path_source(path);
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(rustix::fs::CWD, path, flags)
            .map_err(|cause| Error::Directory { path: path.to_owned(), cause: cause.into() })?;
        self.descriptors.push(tree);
        Ok(Source::Descriptor(self.descriptors.len() - 1))
    }
}

fn path_source(path: &Path) -> Result<Source, Error> {
    let text = path.to_str().ok_or_else(|| Error::Directory {
        path: path.to_owned(),
        cause: io::Error::other("the path must be valid UTF-8"),
    })?;
    Ok(Source::Path(text.to_owned()))
}
