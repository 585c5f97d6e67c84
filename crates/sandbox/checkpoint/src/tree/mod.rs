//! A layer in memory: what a manifest says. Directories are in one table and refer to each other by place, so that nothing here
//! recurses, however deep a hostile tree nests.

mod decode;
mod encode;
mod merge;
#[cfg(test)]
mod tests;

pub(crate) use decode::{Reader, content as content_of, decode, is_name, is_xattr, xattrs as xattrs_of};
pub(crate) use encode::{content, encode, number, text, xattrs};
pub(crate) use merge::merge;

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::{Error, Id, Result};

/// The deepest nesting of a layer.
pub(crate) const MAX_DEPTH: usize = 4096;
/// The most entries in one checkpoint.
pub(crate) const MAX_ENTRIES: u64 = 4_000_000;
/// The length of all paths together, in bytes. Few names, deeply nested, would otherwise make paths that no memory holds.
pub(crate) const MAX_PATHS: u64 = 1 << 30;
/// What the entries of one checkpoint hold besides their names, in bytes: attributes, small files, targets of links, lists of
/// chunks. It is all in memory at once, and a few nodes that name each other many times would fill any.
pub(crate) const MAX_HELD: u64 = 2 << 30;
/// Files up to this size are kept inside their directory's node.
pub(crate) const INLINE: u64 = 512;

/// Extended attributes, by name.
pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What every entry has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Meta {
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970 and nanoseconds below a second.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Xattrs,
}

impl Meta {
    /// What it holds in memory besides itself, in bytes, about.
    pub(crate) fn held(&self) -> u64 {
        let of_one = |(name, value): (&Box<[u8]>, &Box<[u8]>)| (name.len() + value.len() + 32) as u64;
        self.xattrs.iter().map(of_one).sum()
    }
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Chunk { id: Id, len: u32 },
    Hole { len: u64 },
}

impl Extent {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Extent::Chunk { len, .. } => u64::from(*len),
            Extent::Hole { len } => *len,
        }
    }
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Inline(Box<[u8]>),
    Extents(Vec<Extent>),
}

impl Content {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Extents(extents) => extents.iter().fold(0, |sum, it| sum.saturating_add(it.len())),
        }
    }

    pub(crate) fn extents(&self) -> &[Extent] {
        match self {
            Content::Inline(_) => &[],
            Content::Extents(extents) => extents,
        }
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = Id> + '_ {
        self.extents().iter().filter_map(|it| match it {
            Extent::Chunk { id, .. } => Some(*id),
            Extent::Hole { .. } => None,
        })
    }
}

/// A regular file. Files with the same link number are one file with several names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) meta: Meta,
    pub(crate) content: Content,
    pub(crate) link: Option<u32>,
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A place in the table of directories, greater than its parent's.
    Directory(usize),
    File(File),
    Symlink {
        meta: Meta,
        target: Box<[u8]>,
    },
    /// What the layers below have under this name is hidden.
    Whiteout,
}

impl Node {
    /// What it holds in memory besides itself, in bytes, about.
    pub(crate) fn held(&self) -> u64 {
        match self {
            Node::Directory(_) | Node::Whiteout => 0,
            Node::File(file) => {
                let content = match &file.content {
                    Content::Inline(bytes) => bytes.len(),
                    Content::Extents(extents) => size_of_val(&extents[..]),
                };
                file.meta.held() + content as u64
            }
            Node::Symlink { meta, target } => meta.held() + target.len() as u64,
        }
    }
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Dir {
    pub(crate) meta: Meta,
    /// Everything that the layers below have here is hidden.
    pub(crate) opaque: bool,
    pub(crate) entries: BTreeMap<Box<[u8]>, Node>,
}

/// A layer: `dirs[0]` is its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) base: String,
    pub(crate) dirs: Vec<Dir>,
}

impl Tree {
    pub(crate) fn new(base: &str) -> Tree {
        Tree { base: base.to_owned(), dirs: vec![Dir::default()] }
    }

    /// All directories' places, each after its parent, in an order that depends on names only.
    pub(crate) fn order(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.dirs.len());
        let mut queue = VecDeque::from([0]);
        while let Some(place) = queue.pop_front() {
            order.push(place);
            queue.extend(self.dirs[place].entries.values().filter_map(|node| match node {
                Node::Directory(child) => Some(*child),
                _ => None,
            }));
        }
        order
    }

    /// Brings the tree into the one form that trees of the same meaning have: link numbers count from 0 in the tree's order and
    /// stand only where there are two names, and nothing is hidden twice.
    pub(crate) fn normalise(&mut self) {
        let order = self.order();
        let mut hidden = vec![false; self.dirs.len()];
        let mut names: HashMap<u32, u32> = HashMap::new();
        for &place in &order {
            let dir = &mut self.dirs[place];
            if hidden[place] {
                dir.opaque = false;
            }
            let below = hidden[place] || dir.opaque;
            if below {
                dir.entries.retain(|_, node| *node != Node::Whiteout);
            }
            for node in dir.entries.values() {
                match node {
                    Node::Directory(child) => hidden[*child] = below,
                    Node::File(File { link: Some(link), .. }) => *names.entry(*link).or_default() += 1,
                    _ => {}
                }
            }
        }
        let mut numbers: HashMap<u32, u32> = HashMap::new();
        for place in order {
            for node in self.dirs[place].entries.values_mut() {
                if let Node::File(File { link, .. }) = node {
                    *link = link.filter(|it| names[it] > 1).map(|it| {
                        let next = u32::try_from(numbers.len()).expect("a tree has fewer entries than 2^32");
                        *numbers.entry(it).or_insert(next)
                    });
                }
            }
        }
    }

    /// Whether the tree is within the limits to which it is held when it is read again.
    pub(crate) fn check(&self) -> Result<()> {
        let mut limits = Limits::default();
        let mut lengths = vec![(0, 0); self.dirs.len()];
        for place in self.order() {
            let (depth, length) = lengths[place];
            limits.directory(&self.dirs[place], depth, length)?;
            for (name, node) in &self.dirs[place].entries {
                if let Node::Directory(child) = node {
                    lengths[*child] = (depth + 1, length + name.len() as u64 + 1);
                }
            }
        }
        Ok(())
    }

    /// Every chunk that the tree's files need, as often as they need it.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = Id> + '_ {
        self.contents().flat_map(Content::chunks)
    }

    /// What is in the tree's files.
    pub(crate) fn contents(&self) -> impl Iterator<Item = &Content> + '_ {
        self.dirs.iter().flat_map(|dir| dir.entries.values()).filter_map(|node| match node {
            Node::File(file) => Some(&file.content),
            _ => None,
        })
    }
}

/// Counts what a tree has against the most that it may have.
#[derive(Debug)]
pub(crate) struct Limits {
    most_entries: u64,
    most_held: u64,
    entries: u64,
    paths: u64,
    held: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { most_entries: MAX_ENTRIES, most_held: MAX_HELD, entries: 0, paths: 0, held: 0 }
    }
}

impl Limits {
    /// Counts a directory that is so deep and whose path is so long.
    pub(crate) fn directory(&mut self, dir: &Dir, depth: usize, length: u64) -> Result<()> {
        self.entries += dir.entries.len() as u64;
        self.paths += dir.entries.keys().map(|name| length + name.len() as u64 + 1).sum::<u64>();
        self.held += dir.meta.held() + dir.entries.values().map(Node::held).sum::<u64>();
        if self.held > self.most_held {
            return Err(Error::Limit { what: "what entries hold besides their names", limit: self.most_held });
        }
        if self.entries > self.most_entries {
            return Err(Error::Limit { what: "the number of entries", limit: self.most_entries });
        }
        if depth >= MAX_DEPTH {
            return Err(Error::Limit { what: "the depth of the layer", limit: MAX_DEPTH as u64 });
        }
        if self.paths > MAX_PATHS {
            return Err(Error::Limit { what: "the length of all paths", limit: MAX_PATHS });
        }
        Ok(())
    }
}
