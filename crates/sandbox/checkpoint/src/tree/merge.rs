//! One layer over another, as one: what overlayfs would show of both over any base.

use super::{Dir, File, Node, Tree};

/// The layer that stands for `upper` over `lower`, relative to what is below both. No file's content is read.
pub(crate) fn merge(upper: Tree, lower: &Tree) -> Tree {
    // Link numbers of the two do not mean the same files.
    let offset = upper.dirs.iter().flat_map(|dir| dir.entries.values()).filter_map(|node| match node {
        Node::File(File { link, .. }) => *link,
        _ => None,
    });
    let offset = offset.max().map_or(0, |most| most + 1);
    let mut merging = Merging { upper, lower, offset, dirs: vec![Dir::default()], waiting: Vec::new() };
    merging.waiting.push((0, Some(0), Some(0)));
    while let Some((place, over, under)) = merging.waiting.pop() {
        merging.directory(place, over, under);
    }
    let mut tree = Tree { base: merging.upper.base, dirs: merging.dirs };
    tree.normalise();
    tree
}

struct Merging<'a> {
    upper: Tree,
    lower: &'a Tree,
    offset: u32,
    dirs: Vec<Dir>,
    /// A place in the result, and the directories of the two that are shown there.
    waiting: Vec<(usize, Option<usize>, Option<usize>)>,
}

impl Merging<'_> {
    fn directory(&mut self, place: usize, over: Option<usize>, under: Option<usize>) {
        let mut dir = over.map(|it| std::mem::take(&mut self.upper.dirs[it])).unwrap_or_default();
        let under = under.map(|it| &self.lower.dirs[it]);
        if let (None, Some(under)) = (over, under) {
            dir.meta = under.meta.clone();
        }
        // A directory of the upper layer that nothing below shines through is marked opaque by whoever asked for it.
        dir.opaque |= std::mem::take(&mut self.dirs[place].opaque);
        let shown = under.filter(|_| over.is_none() || !dir.opaque);
        dir.opaque |= shown.is_some_and(|it| it.opaque);
        for (name, node) in &mut dir.entries {
            let Node::Directory(child) = *node else { continue };
            let next = self.dirs.len();
            *node = Node::Directory(next);
            let below = shown.and_then(|it| it.entries.get(name));
            let below_dir = match below {
                Some(Node::Directory(it)) => Some(*it),
                _ => None,
            };
            // Overlayfs looks no further down than the first thing that is no directory.
            let opaque = below.is_some() && below_dir.is_none();
            self.dirs.push(Dir { opaque, ..Dir::default() });
            self.waiting.push((next, Some(child), below_dir));
        }
        for (name, node) in shown.into_iter().flat_map(|it| &it.entries) {
            if dir.entries.contains_key(name) {
                continue;
            }
            let node = match node {
                Node::Directory(child) => {
                    let next = self.dirs.len();
                    self.dirs.push(Dir::default());
                    self.waiting.push((next, None, Some(*child)));
                    Node::Directory(next)
                }
                Node::File(file) => {
                    Node::File(File { link: file.link.map(|link| link.saturating_add(self.offset)), ..file.clone() })
                }
                other => other.clone(),
            };
            dir.entries.insert(name.clone(), node);
        }
        self.dirs[place] = dir;
    }
}
