//! A layer in memory: what a manifest says. Directories are in one table and refer to each other by place, so that nothing here
//! recurses, however deep a hostile tree nests.

mod decode;
mod encode;
mod merge;

pub(crate) use decode::{Limits, Reader, content as content_of, decode, is_name, is_xattr, xattrs as xattrs_of};
pub(crate) use encode::{content, encode, number, text, xattrs};
pub(crate) use merge::merge;

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::{Id, Text};

/// The deepest nesting of a layer.
pub(crate) const MAX_DEPTH: usize = 4096;
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

    pub(crate) fn chunks(&self) -> impl Iterator<Item = Id> + '_ {
        let extents = match self {
            Content::Inline(_) => &[][..],
            Content::Extents(extents) => extents,
        };
        extents.iter().filter_map(|it| match it {
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

    /// The path of a directory.
    pub(crate) fn path(&self, wanted: usize) -> Text {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut place = wanted;
        while place != 0 {
            // Only for messages: a scan for each level is fast enough.
            let parent = self.dirs.iter().enumerate().find_map(|(parent, dir)| {
                let name = dir.entries.iter().find(|(_, node)| **node == Node::Directory(place))?.0;
                Some((parent, name))
            });
            let Some((parent, name)) = parent else { break };
            names.push(name);
            place = parent;
        }
        names.reverse();
        Text(names.join(&b'/'))
    }

    /// Every chunk that the tree's files need, as often as they need it.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = Id> + '_ {
        self.dirs
            .iter()
            .flat_map(|dir| dir.entries.values())
            .flat_map(|node| match node {
                Node::File(file) => Some(file.content.chunks()),
                _ => None,
            })
            .flatten()
    }
}
