//! Two layers over one base, side by side. Only what at least one of the two touches is looked at.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use super::{Change, ChangeKind, EntryKind, Version};
use crate::error::At as _;
use crate::store::Store;
use crate::store::index::Index;
use crate::tree::{Content, Extent, Node, Tree};
use crate::{Id, LayerPath, Result, descent};

/// The base's directory.
pub(super) struct Base {
    root: OwnedFd,
    path: PathBuf,
}

impl Base {
    pub(super) fn open(path: &Path) -> Result<Base> {
        Ok(Base { root: descent::open_dir(path).at("opening the base", path)?, path: path.to_owned() })
    }

    /// The directory of this path; a link is none.
    fn directory(&self, path: &LayerPath) -> Result<OwnedFd> {
        let mut dir = self.root.try_clone().at("opening the base", &self.path)?;
        for name in path.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            dir = descent::open_dir_at(&dir, name).at("opening a directory of the base", &self.path)?;
        }
        Ok(dir)
    }

    fn look(&self, dir: &LayerPath, name: &[u8]) -> Result<Option<Version>> {
        let stat = match descent::stat_at(self.directory(dir)?, name) {
            Ok(stat) => stat,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(why).at("reading the base", &self.path),
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            _ => EntryKind::Other,
        };
        let size = if matches!(kind, EntryKind::File | EntryKind::Symlink) { stat.st_size as u64 } else { 0 };
        Ok(Some(Version { kind, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, size }))
    }

    fn parent<'p>(&self, path: &'p LayerPath) -> Result<(OwnedFd, &'p [u8])> {
        let (dir, name) = match path.0.iter().rposition(|byte| *byte == b'/') {
            Some(place) => (LayerPath(path.0[..place].to_vec()), &path.0[place + 1..]),
            None => (LayerPath::default(), &path.0[..]),
        };
        Ok((self.directory(&dir)?, name))
    }

    fn open_file(&self, path: &LayerPath) -> Result<File> {
        let (dir, name) = self.parent(path)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(rustix::fs::openat(dir, name, flags, Mode::empty()).at("reading the base", &self.path)?.into())
    }

    /// Whether a file of the base has this content, of the same size. No more than a chunk is in memory at a time.
    fn holds(
        &self,
        path: &LayerPath,
        content: &Content,
        mut chunk: impl FnMut(&Id) -> Result<Vec<u8>>,
    ) -> Result<bool> {
        let mut file = self.open_file(path)?;
        let mut buffer = vec![0; 64 * 1024];
        let mut next = |wanted: &[u8]| -> Result<bool> {
            for piece in wanted.chunks(buffer.len()) {
                let read = &mut buffer[..piece.len()];
                file.read_exact(read).at("reading the base", &self.path)?;
                if read != piece {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let extents = match content {
            Content::Inline(bytes) => return next(bytes),
            Content::Extents(extents) => extents,
        };
        let zeros = vec![0; 64 * 1024];
        for extent in extents {
            match extent {
                Extent::Chunk { id, .. } => {
                    if !next(&chunk(id)?)? {
                        return Ok(false);
                    }
                }
                Extent::Hole { len } => {
                    let mut left = *len;
                    while left > 0 {
                        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
                        if !next(&zeros[..piece])? {
                            return Ok(false);
                        }
                        left -= piece as u64;
                    }
                }
            }
        }
        Ok(true)
    }

    /// The bytes of a file, or of a link's target; at most `most` and one more.
    pub(super) fn read(&self, path: &LayerPath, kind: EntryKind, most: u64) -> Result<Vec<u8>> {
        let (dir, name) = self.parent(path)?;
        if kind == EntryKind::Symlink {
            let target = rustix::fs::readlinkat(dir, name, Vec::new()).at("reading the base", &self.path)?;
            return Ok(target.into_bytes());
        }
        let file = self.open_file(path)?;
        let mut bytes = Vec::new();
        file.take(most.saturating_add(1)).read_to_end(&mut bytes).at("reading the base", &self.path)?;
        Ok(bytes)
    }
}

/// Where something that is compared was found.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    Layer(Version, Node),
    Base(Version),
    /// In a base that was not given, so that only its being there is known.
    Unseen,
}

impl Found {
    pub(super) fn version(&self) -> Option<Version> {
        match self {
            Found::Layer(version, _) | Found::Base(version) => Some(*version),
            Found::Unseen => None,
        }
    }
}

/// One of the two at some directory.
#[derive(Clone, Copy)]
pub(super) struct Side<'t> {
    tree: Option<&'t Tree>,
    /// Its directory in the layer.
    layer: Option<usize>,
    /// Whether the base's directory shines through.
    base: bool,
}

impl<'t> Side<'t> {
    pub(super) fn new(tree: Option<&'t Tree>) -> Side<'t> {
        Side { tree, layer: tree.map(|_| 0), base: true }
    }

    fn entry(&self, name: &[u8]) -> Option<&'t Node> {
        self.tree?.dirs[self.layer?].entries.get(name)
    }

    fn names(&self) -> impl Iterator<Item = &'t [u8]> + use<'t> {
        let dir = self.tree.zip(self.layer).map(|(tree, place)| &tree.dirs[place]);
        dir.into_iter().flat_map(|dir| dir.entries.keys().map(|name| &**name))
    }

    fn below(&self, found: Option<&Found>, base_has_directory: bool) -> Side<'t> {
        let layer = match found {
            Some(Found::Layer(_, Node::Directory(place))) => Some(*place),
            _ => None,
        };
        let opaque = self.tree.zip(layer).is_some_and(|(tree, place)| tree.dirs[place].opaque);
        let there = matches!(found, Some(Found::Layer(_, Node::Directory(_)) | Found::Base(_)));
        Side { tree: self.tree, layer, base: there && self.base && !opaque && base_has_directory }
    }
}

fn version(tree: &Tree, node: &Node) -> Option<Version> {
    let (kind, meta, size) = match node {
        Node::Directory(place) => (EntryKind::Directory, &tree.dirs[*place].meta, 0),
        Node::File(file) => (EntryKind::File, &file.meta, file.content.size()),
        Node::Symlink { meta, target } => (EntryKind::Symlink, meta, target.len() as u64),
        Node::Whiteout => return None,
    };
    Some(Version { kind, mode: meta.mode, uid: meta.uid, gid: meta.gid, size })
}

/// Everything that differs, in no order.
pub(super) fn compare(
    store: &Store,
    index: &Index,
    sides: [Side<'_>; 2],
    base: Option<&Base>,
) -> Result<Vec<(Change, [Option<Found>; 2])>> {
    let mut changes = Vec::new();
    let mut waiting = vec![(LayerPath::default(), sides)];
    while let Some((path, sides)) = waiting.pop() {
        let mut names: BTreeSet<Vec<u8>> = sides.iter().flat_map(Side::names).map(<[u8]>::to_vec).collect();
        if let (true, Some(base)) = (sides[0].base != sides[1].base, base) {
            let listed = descent::names(base.directory(&path)?).at("reading the base", &base.path)?;
            names.extend(listed.into_iter().map(Vec::from));
        }
        for name in names {
            let below = if sides.iter().any(|side| side.base) {
                base.map(|it| it.look(&path, &name)).transpose()?
            } else {
                None
            };
            let in_base = below.flatten();
            let look = |side: &Side<'_>| match (side.entry(&name), side.tree) {
                (Some(node), Some(tree)) => version(tree, node).map(|it| Found::Layer(it, node.clone())),
                _ if !side.base => None,
                _ => match (in_base, base) {
                    (Some(version), _) => Some(Found::Base(version)),
                    (None, Some(_)) => None,
                    // Something that the other side hides must have been there.
                    (None, None) => {
                        sides.iter().any(|it| it.entry(&name) == Some(&Node::Whiteout)).then_some(Found::Unseen)
                    }
                },
            };
            let found = [look(&sides[0]), look(&sides[1])];
            let at = path.join(&name);
            if let Some(kind) = differ(store, index, base, &at, &found)? {
                let [before, after] = [0, 1].map(|side: usize| found[side].as_ref().and_then(Found::version));
                changes.push((Change { path: at.clone(), kind, before, after }, found.clone()));
            }
            let directory = in_base.is_some_and(|it| it.kind == EntryKind::Directory) || base.is_none();
            let next = [0, 1].map(|side: usize| sides[side].below(found[side].as_ref(), directory));
            let is_directory = |found: &Option<Found>| {
                found.as_ref().and_then(Found::version).is_some_and(|it| it.kind == EntryKind::Directory)
            };
            let touched = next.iter().any(|side| side.layer.is_some()) || next[0].base != next[1].base;
            if found.iter().any(is_directory) && touched {
                waiting.push((at, next));
            }
        }
    }
    Ok(changes)
}

fn differ(
    store: &Store,
    index: &Index,
    base: Option<&Base>,
    path: &LayerPath,
    found: &[Option<Found>; 2],
) -> Result<Option<ChangeKind>> {
    let (before, after) = match found {
        [before, after] if before == after => return Ok(None),
        [None, None] => return Ok(None),
        [None, Some(_)] => return Ok(Some(ChangeKind::Added)),
        [Some(_), None] => return Ok(Some(ChangeKind::Removed)),
        [Some(before), Some(after)] => (before, after),
    };
    let (Some(old), Some(new)) = (before.version(), after.version()) else { return Ok(Some(ChangeKind::Modified)) };
    if old.kind != new.kind {
        return Ok(Some(ChangeKind::Type));
    }
    let same_content = match (before, after) {
        (Found::Layer(_, Node::File(a)), Found::Layer(_, Node::File(b))) => a.content == b.content,
        (Found::Layer(_, Node::Symlink { target: a, .. }), Found::Layer(_, Node::Symlink { target: b, .. })) => a == b,
        _ if old.size != new.size => false,
        (Found::Layer(_, Node::File(file)), Found::Base(_)) | (Found::Base(_), Found::Layer(_, Node::File(file))) => {
            let base = base.expect("what was found in the base was found in one that was given");
            base.holds(path, &file.content, |id| store.read(index, id))?
        }
        _ if old.kind == EntryKind::Symlink => {
            let bytes = |found| read(store, index, base, path, found, old.size);
            bytes(before)? == bytes(after)?
        }
        _ => true,
    };
    let same_rights = (old.mode, old.uid, old.gid) == (new.mode, new.uid, new.gid);
    Ok(match (same_content, same_rights) {
        (false, _) => Some(ChangeKind::Modified),
        // A link's mode means nothing.
        (true, false) if old.kind != EntryKind::Symlink => Some(ChangeKind::Mode),
        (true, _) => None,
    })
}

/// The bytes of a file, or of a link's target. More than `most` are cut off somewhere behind it.
pub(super) fn read(
    store: &Store,
    index: &Index,
    base: Option<&Base>,
    path: &LayerPath,
    found: &Found,
    most: u64,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match found {
        Found::Layer(_, Node::File(file)) => match &file.content {
            Content::Inline(inline) => bytes.extend_from_slice(inline),
            Content::Extents(extents) => {
                for extent in extents {
                    match extent {
                        Extent::Chunk { id, .. } => bytes.extend(store.read(index, id)?),
                        Extent::Hole { len } => {
                            let len = (*len).min(most.saturating_add(1).saturating_sub(bytes.len() as u64));
                            bytes.resize(bytes.len() + usize::try_from(len).unwrap_or(usize::MAX / 2), 0);
                        }
                    }
                    if bytes.len() as u64 > most {
                        break;
                    }
                }
            }
        },
        Found::Layer(_, Node::Symlink { target, .. }) => bytes.extend_from_slice(target),
        Found::Base(version) => {
            if let Some(base) = base {
                bytes = base.read(path, version.kind, most)?;
            }
        }
        Found::Layer(..) | Found::Unseen => {}
    }
    Ok(bytes)
}
