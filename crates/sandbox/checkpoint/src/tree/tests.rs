//! Nodes that somebody has made to do harm. In the store their hashes are checked first; here they are not.

use std::collections::HashMap;

use super::encode::directory_node;
use super::{Content, Dir, Extent, File, Limits, MAX_PATHS, Meta, Node, Tree, decode, encode};
use crate::{Error, Id, Result};

fn wrong(id: &Id, what: &str) -> Error {
    Error::Archive(format!("{id}: {what}"))
}

fn nodes(tree: &Tree) -> (Id, HashMap<Id, Vec<u8>>) {
    let mut nodes = HashMap::new();
    let id = encode(tree, |bytes| {
        nodes.insert(Id::of(bytes), bytes.to_vec());
        Ok(Id::of(bytes))
    });
    (id.unwrap(), nodes)
}

fn read(id: &Id, nodes: &HashMap<Id, Vec<u8>>) -> Result<Tree> {
    read_within(id, nodes, Limits::default())
}

fn read_within(id: &Id, nodes: &HashMap<Id, Vec<u8>>, limits: Limits) -> Result<Tree> {
    decode(id, limits, |id| nodes.get(id).cloned().ok_or_else(|| wrong(id, "missing")), wrong)
}

/// A tree in which each of `levels` directories holds the one below it twice, and the lowest is `bottom`.
fn doubled(levels: usize, bottom: Dir) -> (Id, HashMap<Id, Vec<u8>>) {
    let mut nodes = HashMap::new();
    let mut add = |bytes: Vec<u8>| {
        let id = Id::of(&bytes);
        nodes.insert(id, bytes);
        id
    };
    let mut child = add(directory_node(&bottom, &[]));
    for _ in 1..levels {
        let entries = [(Box::from(&b"a"[..]), Node::Directory(0)), (Box::from(&b"b"[..]), Node::Directory(0))].into();
        child = add(directory_node(&Dir { entries, ..Dir::default() }, &[child]));
    }
    let mut manifest = encode::MANIFEST.to_vec();
    super::text(&mut manifest, b"base");
    manifest.extend_from_slice(&child.0);
    (add(manifest), nodes)
}

fn small() -> Tree {
    let mut tree = Tree::new("base");
    let file = |content, link| Node::File(File { meta: Meta { mode: 0o644, ..Meta::default() }, content, link });
    let extents = vec![Extent::Chunk { id: Id::of(b"chunk"), len: 600 }, Extent::Hole { len: 1 << 40 }];
    let inline = Content::Inline(Box::from(&b"inline"[..]));
    let mut meta = Meta { mode: 0o755, uid: 300, gid: 70_000, mtime: (-5, 999_999_999), ..Meta::default() };
    meta.xattrs.insert(Box::from(&b"user.a"[..]), Box::from(&b"value"[..]));
    tree.dirs[0].entries = [
        (Box::from(&b"a"[..]), Node::Directory(1)),
        (Box::from(&b"b"[..]), file(inline.clone(), Some(0))),
        (Box::from(&b"c"[..]), file(inline, Some(0))),
        (Box::from(&b"d"[..]), Node::Whiteout),
        (
            Box::from(&b"e"[..]),
            Node::Symlink { meta: Meta { mode: 0o777, ..meta.clone() }, target: Box::from(&b"to"[..]) },
        ),
    ]
    .into();
    let mut dir = Dir { meta, opaque: true, ..Dir::default() };
    dir.entries.insert(Box::from(&b"large"[..]), file(Content::Extents(extents), None));
    tree.dirs.push(dir);
    tree
}

#[test]
fn a_tree_comes_back() {
    let (id, nodes) = nodes(&small());
    assert_eq!(read(&id, &nodes).unwrap(), small());
}

#[test]
fn mutated_nodes_are_refused_or_mean_what_they_say() {
    let (id, good) = nodes(&small());
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    let mut ids: Vec<&Id> = good.keys().collect();
    ids.sort();
    let child = Id::of(&directory_node(&small().dirs[1], &[]));
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut bad = good.clone();
        let node = bad.get_mut(ids[random(ids.len())]).unwrap();
        for _ in 0..=random(3) {
            let place = random(node.len());
            match random(4) {
                0 => node[place] = random(256) as u8,
                1 => node.truncate(place.max(1)),
                2 => node.insert(place, random(256) as u8),
                _ => node[place] ^= 1 << random(8),
            }
        }
        if let Ok(tree) = read(&id, &bad) {
            accepted += 1;
            tree.check().unwrap();
            // There is one way to write what is accepted.
            if tree.dirs.len() == 2 {
                assert_eq!(directory_node(&tree.dirs[1], &[]), bad[&child]);
            }
        }
    }
    assert!(accepted > 0);
}

#[test]
fn few_nodes_cannot_stand_for_many_entries() {
    let (id, nodes) = doubled(64, Dir::default());
    // With the real limit it takes a while.
    let limits = Limits { most_entries: 50_000, ..Limits::default() };
    let error = read_within(&id, &nodes, limits).unwrap_err();
    assert!(matches!(error, Error::Limit { limit: 50_000, .. }), "{error}");
}

#[test]
fn paths_have_a_limit_together() {
    let mut tree = Tree::new("base");
    for depth in 0..3500 {
        tree.dirs[depth].entries.insert(vec![b'x'; 255].into(), Node::Directory(depth + 1));
        tree.dirs.push(Dir::default());
    }
    let (id, nodes) = nodes(&tree);
    assert!(matches!(tree.check(), Err(Error::Limit { limit: MAX_PATHS, .. })));
    assert!(matches!(read(&id, &nodes), Err(Error::Limit { limit: MAX_PATHS, .. })));
}

#[test]
fn few_nodes_cannot_hold_much() {
    let mut meta = Meta::default();
    meta.xattrs.insert(Box::from(&b"user.a"[..]), vec![0; 60_000].into());
    let heavy = Node::Symlink { meta, target: Box::from(&b"to"[..]) };
    let (id, nodes) = doubled(20, Dir { entries: [(Box::from(&b"x"[..]), heavy)].into(), ..Dir::default() });
    // With the real limit it would take 2 GiB.
    let limits = Limits { most_held: 8 << 20, ..Limits::default() };
    let error = read_within(&id, &nodes, limits).unwrap_err();
    assert!(matches!(error, Error::Limit { limit: 8388608, .. }), "{error}");
}

#[test]
fn link_numbers_beyond_all_entries_are_refused() {
    let mut tree = small();
    for name in [&b"b"[..], b"c"] {
        let Some(Node::File(file)) = tree.dirs[0].entries.get_mut(name) else { panic!("it is a file") };
        file.link = Some(u32::MAX - 1);
    }
    let (id, nodes) = nodes(&tree);
    // The numbers of two layers are added where they are combined.
    assert!(read(&id, &nodes).unwrap_err().to_string().contains("link number"));
}
