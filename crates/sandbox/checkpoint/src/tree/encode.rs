//! The canonical form of a tree: one node for each directory, and a manifest that names the root's. Equal directories have equal
//! nodes, wherever they are.

use super::{Content, Dir, Extent, Meta, Node, Tree, Xattrs};
use crate::{Id, Result};

pub(super) const DIRECTORY: &[u8] = b"palisade directory 1\n";
pub(super) const MANIFEST: &[u8] = b"palisade manifest 1\n";

pub(super) mod kind {
    pub(crate) const DIRECTORY: u8 = 1;
    pub(crate) const FILE: u8 = 2;
    pub(crate) const SYMLINK: u8 = 3;
    pub(crate) const WHITEOUT: u8 = 4;
    pub(crate) const INLINE: u8 = 0;
    pub(crate) const EXTENTS: u8 = 1;
    pub(crate) const HOLE: u8 = 0;
    pub(crate) const CHUNK: u8 = 1;
}

/// Hands every node of a normalised tree to `keep`, children first, the manifest last. The manifest's name is the tree's.
pub(crate) fn encode(tree: &Tree, mut keep: impl FnMut(&[u8]) -> Result<Id>) -> Result<Id> {
    let mut ids = vec![Id([0; 32]); tree.dirs.len()];
    let mut bytes = Vec::new();
    for (place, dir) in tree.dirs.iter().enumerate().rev() {
        bytes.clear();
        directory(&mut bytes, dir, &ids);
        ids[place] = keep(&bytes)?;
    }
    bytes.clear();
    bytes.extend_from_slice(MANIFEST);
    text(&mut bytes, tree.base.as_bytes());
    bytes.extend_from_slice(&ids[0].0);
    keep(&bytes)
}

fn directory(out: &mut Vec<u8>, dir: &Dir, ids: &[Id]) {
    out.extend_from_slice(DIRECTORY);
    meta(out, &dir.meta);
    out.push(u8::from(dir.opaque));
    number(out, dir.entries.len() as u64);
    for (name, node) in &dir.entries {
        text(out, name);
        match node {
            Node::Directory(place) => {
                out.push(kind::DIRECTORY);
                out.extend_from_slice(&ids[*place].0);
            }
            Node::File(file) => {
                out.push(kind::FILE);
                meta(out, &file.meta);
                number(out, file.link.map_or(0, |link| u64::from(link) + 1));
                content(out, &file.content);
            }
            Node::Symlink { meta: it, target } => {
                out.push(kind::SYMLINK);
                meta(out, it);
                text(out, target);
            }
            Node::Whiteout => out.push(kind::WHITEOUT),
        }
    }
}

/// The node of one directory, whose children have these names.
#[cfg(test)]
pub(super) fn directory_node(dir: &Dir, ids: &[Id]) -> Vec<u8> {
    let mut bytes = Vec::new();
    directory(&mut bytes, dir, ids);
    bytes
}

fn meta(out: &mut Vec<u8>, meta: &Meta) {
    number(out, u64::from(meta.mode));
    number(out, u64::from(meta.uid));
    number(out, u64::from(meta.gid));
    out.extend_from_slice(&meta.mtime.0.to_le_bytes());
    out.extend_from_slice(&meta.mtime.1.to_le_bytes());
    xattrs(out, &meta.xattrs);
}

pub(crate) fn xattrs(out: &mut Vec<u8>, xattrs: &Xattrs) {
    number(out, xattrs.len() as u64);
    for (name, value) in xattrs {
        text(out, name);
        text(out, value);
    }
}

/// A file's content; also the form in which the cache of unchanged files keeps it.
pub(crate) fn content(out: &mut Vec<u8>, content: &Content) {
    match content {
        Content::Inline(bytes) => {
            out.push(kind::INLINE);
            text(out, bytes);
        }
        Content::Extents(extents) => {
            out.push(kind::EXTENTS);
            number(out, extents.len() as u64);
            for extent in extents {
                match extent {
                    Extent::Hole { len } => {
                        out.push(kind::HOLE);
                        number(out, *len);
                    }
                    Extent::Chunk { id, len } => {
                        out.push(kind::CHUNK);
                        number(out, u64::from(*len));
                        out.extend_from_slice(&id.0);
                    }
                }
            }
        }
    }
}

/// Seven bits a byte, the lowest first.
pub(crate) fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes behind their number.
pub(crate) fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
