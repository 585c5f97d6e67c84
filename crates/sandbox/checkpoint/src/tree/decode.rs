//! Reading a tree's nodes. They may come from elsewhere, so a node is held to everything that [`super::encode`] would write, and
//! a tree to limits: a few nodes that name each other many times can stand for more entries than any memory holds.

use std::collections::{BTreeMap, HashMap};

use super::encode::{DIRECTORY, MANIFEST, kind};
use super::{Content, Dir, Extent, File, INLINE, Limits, MAX_ENTRIES, Meta, Node, Tree, Xattrs};
use crate::{Error, Id, Result};

/// Reads the tree with this name. `fetch` gives a node's bytes, with the hash checked; `wrong` makes the error for a node
/// that is not as it must be.
pub(crate) fn decode(
    id: &Id,
    mut limits: Limits,
    mut fetch: impl FnMut(&Id) -> Result<Vec<u8>>,
    wrong: impl Fn(&Id, &str) -> Error,
) -> Result<Tree> {
    let bytes = fetch(id)?;
    let (base, root) = manifest(&bytes).map_err(|what| wrong(id, what))?;
    let mut tree = Tree { base, dirs: vec![Dir::default()] };
    let mut waiting = vec![(0, root, 0, 0)];
    let mut linked: HashMap<u32, (usize, Box<[u8]>)> = HashMap::new();
    while let Some((place, id, depth, length)) = waiting.pop() {
        let bytes = fetch(&id)?;
        let mut children = Vec::new();
        let next = tree.dirs.len();
        let dir = directory(&bytes, next, &mut children).map_err(|what| wrong(&id, what))?;
        limits.directory(&dir, depth, length)?;
        for (name, node) in &dir.entries {
            let Node::File(file @ File { link: Some(link), .. }) = node else { continue };
            if let Some((place, name)) = linked.get(link) {
                let same = match &tree.dirs[*place].entries.get(name) {
                    Some(Node::File(other)) => other == file,
                    // Its other name is in this very directory.
                    _ => dir.entries.get(name) == Some(node),
                };
                if !same {
                    return Err(wrong(&id, "two names of one file differ"));
                }
            } else {
                linked.insert(*link, (place, name.clone()));
            }
        }
        // Names and children are in the same order.
        let directories = dir.entries.iter().filter(|(_, node)| matches!(node, Node::Directory(_)));
        for ((offset, id), (name, _)) in children.into_iter().enumerate().zip(directories) {
            tree.dirs.push(Dir::default());
            waiting.push((next + offset, id, depth + 1, length + name.len() as u64 + 1));
        }
        tree.dirs[place] = dir;
    }
    Ok(tree)
}

fn manifest(bytes: &[u8]) -> Result<(String, Id), &'static str> {
    let mut reader = Reader::new(bytes);
    if reader.take(MANIFEST.len())? != MANIFEST {
        return Err("it is no manifest");
    }
    let base = String::from_utf8(reader.text()?.to_vec()).map_err(|_| "the base's name is not UTF-8")?;
    let root = reader.id()?;
    reader.end()?;
    Ok((base, root))
}

fn directory(bytes: &[u8], first: usize, children: &mut Vec<Id>) -> Result<Dir, &'static str> {
    let mut reader = Reader::new(bytes);
    if reader.take(DIRECTORY.len())? != DIRECTORY {
        return Err("it is no directory");
    }
    let meta = meta(&mut reader)?;
    let opaque = flag(&mut reader)?;
    let count = reader.number()?;
    let mut entries = BTreeMap::new();
    let mut last: Option<&[u8]> = None;
    for _ in 0..count {
        let name = reader.text()?;
        if !is_name(name) {
            return Err("a name in it is none");
        }
        if last.is_some_and(|last| last >= name) {
            return Err("its names are not in order");
        }
        last = Some(name);
        let node = match reader.byte()? {
            kind::DIRECTORY => {
                children.push(reader.id()?);
                Node::Directory(first + children.len() - 1)
            }
            kind::FILE => {
                let meta = self::meta(&mut reader)?;
                let link = match reader.number()? {
                    0 => None,
                    // They count from 0, so that there are fewer than entries.
                    link if link > MAX_ENTRIES => return Err("a link number is too large"),
                    link => Some(u32::try_from(link - 1).map_err(|_| "a link number is too large")?),
                };
                Node::File(File { meta, link, content: content(&mut reader)? })
            }
            kind::SYMLINK => {
                let meta = self::meta(&mut reader)?;
                let target = reader.text()?;
                if target.is_empty() || target.len() > 4095 || target.contains(&0) {
                    return Err("a symbolic link's target is none");
                }
                Node::Symlink { meta, target: target.into() }
            }
            kind::WHITEOUT => Node::Whiteout,
            _ => return Err("an entry is of an unknown kind"),
        };
        entries.insert(name.into(), node);
    }
    reader.end()?;
    Ok(Dir { meta, opaque, entries })
}

/// Whether these bytes can be one name in a directory.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, &'static str> {
    match reader.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err("a flag is neither set nor unset"),
    }
}

fn meta(reader: &mut Reader<'_>) -> Result<Meta, &'static str> {
    let small = |value: u64| u32::try_from(value).map_err(|_| "a number is too large");
    let mode = small(reader.number()?)?;
    if mode > 0o7777 {
        return Err("a mode has bits that are no permissions");
    }
    let (uid, gid) = (small(reader.number()?)?, small(reader.number()?)?);
    if uid == u32::MAX || gid == u32::MAX {
        return Err("an owner is none");
    }
    let seconds = i64::from_le_bytes(reader.array()?);
    let nanos = u32::from_le_bytes(reader.array()?);
    if nanos >= 1_000_000_000 {
        return Err("a time has more than a second of nanoseconds");
    }
    Ok(Meta { mode, uid, gid, mtime: (seconds, nanos), xattrs: xattrs(reader)? })
}

pub(crate) fn xattrs(reader: &mut Reader<'_>) -> Result<Xattrs, &'static str> {
    let count = reader.number()?;
    let mut xattrs = Xattrs::new();
    for _ in 0..count {
        let (name, value) = (reader.text()?, reader.text()?);
        if !is_xattr(name) || value.len() > 65536 {
            return Err("an extended attribute is none");
        }
        if xattrs.last_key_value().is_some_and(|(last, _)| **last >= *name) {
            return Err("its extended attributes are not in order");
        }
        xattrs.insert(name.into(), value.into());
    }
    Ok(xattrs)
}

/// Whether an extended attribute may be in a checkpoint. Those of overlayfs would give a layer another meaning.
pub(crate) fn is_xattr(name: &[u8]) -> bool {
    name.len() > b"user.".len()
        && name.len() <= 255
        && name.starts_with(b"user.")
        && !name.starts_with(b"user.overlay.")
        && !name.contains(&0)
}

pub(crate) fn content(reader: &mut Reader<'_>) -> Result<Content, &'static str> {
    match reader.byte()? {
        kind::INLINE => {
            let bytes = reader.text()?;
            if bytes.len() as u64 > INLINE {
                return Err("a file inside its directory is too large for that");
            }
            Ok(Content::Inline(bytes.into()))
        }
        kind::EXTENTS => {
            let count = reader.number()?;
            let mut extents = Vec::new();
            let mut size = 0u64;
            for _ in 0..count {
                let extent = match reader.byte()? {
                    kind::HOLE => Extent::Hole { len: reader.number()? },
                    kind::CHUNK => {
                        let len = u32::try_from(reader.number()?).map_err(|_| "a chunk is too large")?;
                        Extent::Chunk { id: reader.id()?, len }
                    }
                    _ => return Err("an extent is of an unknown kind"),
                };
                if extent.len() == 0 {
                    return Err("an extent is empty");
                }
                size =
                    size.checked_add(extent.len()).filter(|it| *it <= i64::MAX as u64).ok_or("a file is too large")?;
                extents.push(extent);
            }
            if size <= INLINE {
                return Err("a small file is not inside its directory");
            }
            Ok(Content::Extents(extents))
        }
        _ => Err("a file's content is of an unknown kind"),
    }
}

/// A cursor over bytes that may be anything.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

const SHORT: &str = "it ends too early";

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(SHORT)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, &'static str> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn id(&mut self) -> Result<Id, &'static str> {
        self.array().map(Id)
    }

    pub(crate) fn number(&mut self) -> Result<u64, &'static str> {
        let mut value = 0u64;
        for shift in (0..).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift > 63 || (shift == 63 && bits > 1) || (byte == 0 && shift > 0) {
                return Err("a number is not written as it must be");
            }
            value |= bits << shift;
            if byte < 0x80 {
                break;
            }
        }
        Ok(value)
    }

    pub(crate) fn text(&mut self) -> Result<&'a [u8], &'static str> {
        let len = self.number()?;
        self.take(usize::try_from(len).map_err(|_| SHORT)?)
    }

    pub(crate) fn end(&self) -> Result<(), &'static str> {
        if self.rest.is_empty() { Ok(()) } else { Err("it has more than it should") }
    }
}
