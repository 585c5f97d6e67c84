//! Trees on disk: made from a description, and read back as one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use palisade_checkpoint::{CaptureOptions, Captured, Id, Ownership, Store};
use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

pub(crate) const BASE: &str = "base-1";

/// A moment of the tests' own clock, in seconds.
pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

/// How the tests' user owns files.
pub(crate) fn ownership() -> Ownership {
    if is_root() { Ownership::Kept } else { Ownership::Flat { uid: 1000, gid: 1000 } }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn options() -> CaptureOptions {
    CaptureOptions { ownership: ownership(), ..CaptureOptions::new(BASE, at(0)) }
}

/// A store and a place for layers, gone at the end.
pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Rig { dir, store }
    }

    /// A new directory.
    pub(crate) fn make(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    pub(crate) fn capture(&self, upper: &Path) -> Captured {
        self.store.capture(upper, &options()).unwrap()
    }

    pub(crate) fn capture_over(&self, upper: &Path, parent: Id) -> Captured {
        self.store.capture(upper, &CaptureOptions { parent: Some(parent), ..options() }).unwrap()
    }

    /// What the layer of a checkpoint holds.
    pub(crate) fn layer(&self, id: &Id) -> Tree {
        read(self.store.materialise(id, ownership()).unwrap().path())
    }
}

/// Everything that is seen of an entry, apart from its children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path of the same file, when it has several.
    pub(crate) same_as: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory { opaque: bool },
    File { data: Data, sparse: bool },
    Symlink(Vec<u8>),
    Whiteout,
}

/// A file's bytes, shown as their number and the first few.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Data(pub(crate) Vec<u8>);

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes: {:?}", self.0.len(), &self.0[..self.0.len().min(8)])
    }
}

/// Says where two trees differ.
#[track_caller]
pub(crate) fn assert_same(found: &Tree, expected: &Tree) {
    let names: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let differ: Vec<_> = names.into_iter().filter(|name| found.get(*name) != expected.get(*name)).collect();
    let show = |name: &&Vec<u8>| {
        let path = String::from_utf8_lossy(name);
        format!("{path}\n  found    {:?}\n  expected {:?}", found.get(*name), expected.get(*name))
    };
    assert!(differ.is_empty(), "{}", differ.iter().take(5).map(show).collect::<Vec<_>>().join("\n"));
}

/// A layer, by path; the root's path is empty.
pub(crate) type Tree = BTreeMap<Vec<u8>, Entry>;

/// Reads a directory in overlayfs's format.
pub(crate) fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut seen = BTreeMap::new();
    let mut waiting = vec![(root.to_owned(), Vec::new())];
    while let Some((path, name)) = waiting.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let kind = stat.file_type();
        let mut xattrs = BTreeMap::new();
        let mut opaque = false;
        if !kind.is_symlink() && !kind.is_char_device() {
            xattrs = read_xattrs(&path);
            opaque = xattrs.remove("user.overlay.opaque").is_some_and(|value| value == b"y");
        }
        let found = if kind.is_dir() {
            for child in fs::read_dir(&path).unwrap() {
                let child = child.unwrap();
                let mut path = name.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(child.file_name().as_bytes());
                waiting.push((child.path(), path));
            }
            Kind::Directory { opaque }
        } else if kind.is_symlink() {
            Kind::Symlink(fs::read_link(&path).unwrap().into_os_string().into_vec())
        } else if kind.is_char_device() {
            assert_eq!(stat.rdev(), 0, "{}", path.display());
            Kind::Whiteout
        } else {
            assert!(kind.is_file(), "{}", path.display());
            Kind::File { data: Data(fs::read(&path).unwrap()), sparse: stat.blocks() * 512 + 4096 <= stat.size() }
        };
        if kind.is_file() && stat.nlink() > 1 {
            seen.entry(stat.ino()).or_insert_with(Vec::new).push(name.clone());
        }
        let plain = matches!(found, Kind::Whiteout);
        let entry = Entry {
            kind: found,
            mode: if plain { 0 } else { stat.permissions().mode() & 0o7777 },
            owner: if plain { (0, 0) } else { (stat.uid(), stat.gid()) },
            mtime: if plain { (0, 0) } else { (stat.mtime(), stat.mtime_nsec()) },
            xattrs,
            same_as: None,
        };
        tree.insert(name, entry);
    }
    for mut names in seen.into_values().filter(|names| names.len() > 1) {
        names.sort();
        for name in &names {
            tree.get_mut(name).unwrap().same_as = Some(names[0].clone());
        }
    }
    tree
}

fn read_xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 65536];
    let len = rustix::fs::listxattr(path, &mut list[..]).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    let value = |name: &str| {
        let mut value = vec![0; 65536];
        let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
        value.truncate(len);
        value
    };
    names.map(|name| String::from_utf8(name.to_vec()).unwrap()).map(|name| (name.clone(), value(&name))).collect()
}

pub(crate) fn join(root: &Path, name: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(name))
}

pub(crate) fn whiteout(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

pub(crate) fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Writes a tree to an empty directory.
pub(crate) fn write(root: &Path, tree: &Tree) {
    for (name, entry) in tree {
        let path = join(root, name);
        match &entry.kind {
            Kind::Directory { .. } if name.is_empty() => {}
            Kind::Directory { .. } => fs::create_dir(&path).unwrap(),
            Kind::File { data, .. } => match &entry.same_as {
                Some(first) if first != name => fs::hard_link(join(root, first), &path).unwrap(),
                _ => fs::write(&path, &data.0).unwrap(),
            },
            Kind::Symlink(target) => symlink(OsStr::from_bytes(target), &path).unwrap(),
            Kind::Whiteout => whiteout(&path),
        }
    }
    for (name, entry) in tree.iter().rev() {
        let path = join(root, name);
        if entry.kind == Kind::Whiteout {
            continue;
        }
        if is_root() {
            std::os::unix::fs::lchown(&path, Some(entry.owner.0), Some(entry.owner.1)).unwrap();
        }
        if !matches!(entry.kind, Kind::Symlink(_)) {
            entry.xattrs.iter().for_each(|(name, value)| set_xattr(&path, name, value));
            if (Kind::Directory { opaque: true }) == entry.kind {
                set_xattr(&path, "user.overlay.opaque", b"y");
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)).unwrap();
        }
        set_mtime(&path, entry.mtime.0, entry.mtime.1);
    }
}
