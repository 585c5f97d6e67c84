//! A session that was started from a checkpoint: its own layer over that one is one layer over the base. What overlayfs shows is
//! the measure, as a model, and as it is mounted where this machine allows it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use crate::rig::{Data, Entry, Kind, Rig, Tree, assert_same, read, write};

/// What overlayfs shows of layers, the uppermost first, and which paths are one file.
fn shown(layers: &[&Tree]) -> (Tree, Vec<Vec<Vec<u8>>>) {
    let mut view = Tree::new();
    let mut files: BTreeMap<(usize, Vec<u8>), Vec<Vec<u8>>> = BTreeMap::new();
    let mut waiting = vec![(Vec::new(), (0..layers.len()).collect::<Vec<_>>())];
    while let Some((path, active)) = waiting.pop() {
        let mut found: Option<(usize, &Entry)> = None;
        let mut below = Vec::new();
        for layer in active {
            let Some(entry) = layers[layer].get(&path) else { continue };
            match (&entry.kind, found) {
                (Kind::Directory { opaque }, _) => {
                    found = found.or(Some((layer, entry)));
                    below.push(layer);
                    // A root is merged whatever it says.
                    if *opaque && !path.is_empty() {
                        break;
                    }
                }
                (Kind::Whiteout, _) | (_, Some(_)) => break,
                (_, None) => {
                    found = Some((layer, entry));
                    break;
                }
            }
        }
        let Some((layer, entry)) = found else { continue };
        let mut entry = entry.clone();
        if let Some(first) = entry.same_as.take() {
            files.entry((layer, first)).or_default().push(path.clone());
        }
        if let Kind::Directory { opaque } = &mut entry.kind {
            *opaque = false;
            let mut names: Vec<Vec<u8>> = Vec::new();
            for layer in &below {
                let children = layers[*layer].keys().filter(|child| {
                    let rest = if path.is_empty() {
                        Some(&child[..])
                    } else {
                        child.strip_prefix(&[&path[..], b"/"].concat()[..])
                    };
                    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(&b'/'))
                });
                names.extend(children.cloned());
            }
            names.sort();
            names.dedup();
            waiting.extend(names.into_iter().map(|name| (name, below.clone())));
        }
        view.insert(path, entry);
    }
    let mut groups: Vec<_> = files.into_values().filter(|names| names.len() > 1).collect();
    groups.iter_mut().for_each(|names| names.sort());
    groups.sort();
    (view, groups)
}

#[derive(Debug, Clone)]
struct Edit {
    path: Vec<u8>,
    kind: u8,
    seed: u8,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let path = prop::collection::vec(0u8..3, 1..4);
    let edit = (path, 0u8..8, any::<u8>()).prop_map(|(path, kind, seed)| {
        let names: Vec<Vec<u8>> = path.into_iter().map(|name| vec![b'a' + name]).collect();
        Edit { path: names.join(&b'/'), kind, seed }
    });
    prop::collection::vec(edit, 0..16)
}

fn entry(kind: Kind, seed: u8) -> Entry {
    let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { 0o700 | u32::from(seed & 0o77) };
    let (mode, mtime) =
        if kind == Kind::Whiteout { (0, (0, 0)) } else { (mode, (i64::from(seed) * 1000, i64::from(seed))) };
    let owner =
        if kind == Kind::Whiteout || !crate::rig::is_root() { (0, 0) } else { (u32::from(seed), u32::from(seed / 2)) };
    let mut xattrs = BTreeMap::new();
    if seed.is_multiple_of(5) && matches!(kind, Kind::File { .. } | Kind::Directory { .. }) {
        xattrs.insert("user.seed".to_owned(), vec![seed]);
    }
    Entry { kind, mode, owner, mtime, xattrs, same_as: None }
}

/// A layer that overlayfs could have made; a base has nothing hidden in it.
fn layer(edits: &[Edit], base: bool) -> Tree {
    let mut tree = Tree::new();
    tree.insert(Vec::new(), entry(Kind::Directory { opaque: false }, 9));
    let mut linkable: Option<Vec<Vec<u8>>> = None;
    for edit in edits {
        let mut parents: Vec<Vec<u8>> = Vec::new();
        for (place, _) in edit.path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            parents.push(edit.path[..place].to_vec());
        }
        let directory = |entry: &Entry| matches!(entry.kind, Kind::Directory { .. });
        let blocked = parents.iter().any(|path| tree.get(path).is_some_and(|entry| !directory(entry)));
        if blocked || tree.contains_key(&edit.path) {
            continue;
        }
        for parent in parents {
            let opaque = !base && edit.seed.is_multiple_of(7);
            tree.entry(parent).or_insert_with(|| entry(Kind::Directory { opaque }, edit.seed));
        }
        let made = match edit.kind {
            0 => entry(Kind::Directory { opaque: false }, edit.seed),
            1 => entry(Kind::Directory { opaque: !base }, edit.seed),
            2 | 3 if !base => entry(Kind::Whiteout, 0),
            4 => entry(Kind::Symlink(edit.path.repeat(usize::from(edit.seed % 3) + 1)), edit.seed),
            5 if linkable.is_some() => {
                // Another name for the file that was made last.
                let names = linkable.as_mut().unwrap();
                names.push(edit.path.clone());
                let first = names.iter().min().unwrap().clone();
                let file = Entry { same_as: Some(first), ..tree[&names[0]].clone() };
                for name in &names[..names.len() - 1] {
                    tree.insert(name.clone(), file.clone());
                }
                file
            }
            _ => {
                let data = crate::round_trip::noise(u64::from(edit.seed), usize::from(edit.seed) * 20);
                let file = entry(Kind::File { data: Data([&edit.path[..], &data].concat()), sparse: false }, edit.seed);
                linkable = Some(vec![edit.path.clone()]);
                file
            }
        };
        tree.insert(edit.path.clone(), made);
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_layer_comes_back(edits in edits()) {
        let rig = Rig::new();
        let upper = rig.make("upper");
        write(&upper, &layer(&edits, false));
        let before = read(&upper);
        let id = rig.capture(&upper).checkpoint.id;
        let after = rig.layer(&id);
        // What hides nothing because all is hidden already is left out; over any base the two are the same.
        let mut everything = Tree::new();
        for name in before.keys() {
            everything.insert(name.clone(), entry(Kind::Directory { opaque: false }, 1));
            everything.insert([&name[..], if name.is_empty() { b"x" } else { b"/x" }].concat(), entry(Kind::Symlink(b"t".to_vec()), 1));
        }
        assert_eq!(shown(&[&after, &everything]), shown(&[&before, &everything]));
        assert_eq!(shown(&[&after]), shown(&[&before]));
    }

    #[test]
    fn merged_is_what_an_overlay_of_both_shows(base in edits(), lower in edits(), upper in edits()) {
        let rig = Rig::new();
        let base = layer(&base, true);
        let (lower_dir, upper_dir) = (rig.make("lower"), rig.make("upper"));
        write(&lower_dir, &layer(&lower, false));
        write(&upper_dir, &layer(&upper, false));
        let parent = rig.capture(&lower_dir).checkpoint.id;
        let merged = rig.capture_over(&upper_dir, parent).checkpoint;
        let (lower, upper) = (read(&lower_dir), read(&upper_dir));
        let found = rig.layer(&merged.id);
        let (expected, found) = (shown(&[&upper, &lower, &base]), shown(&[&found, &base]));
        assert_same(&found.0, &expected.0);
        assert_eq!(found.1, expected.1);
        // A third session on top of that.
        let again = rig.capture_over(&lower_dir, merged.id).checkpoint.id;
        let three = shown(&[&lower, &upper, &lower, &base]);
        assert_same(&shown(&[&rig.layer(&again), &base]).0, &three.0);
    }
}

#[test]
fn the_layer_below_is_not_read() {
    let rig = Rig::new();
    let (lower, upper) = (rig.make("lower"), rig.make("upper"));
    fs::write(lower.join("large"), crate::round_trip::noise(5, 1 << 20)).unwrap();
    let parent = rig.capture(&lower).checkpoint.id;
    // A fork that changed nothing is the checkpoint it was made from.
    fs::File::open(&upper).unwrap().set_modified(fs::metadata(&lower).unwrap().modified().unwrap()).unwrap();
    assert_eq!(rig.capture_over(&upper, parent).checkpoint.id, parent);
    fs::write(upper.join("small"), b"new").unwrap();
    let merged = rig.capture_over(&upper, parent);
    assert!(merged.grown < 2000, "{}", merged.grown);
    assert_eq!((merged.checkpoint.parent, merged.checkpoint.counts.files), (Some(parent), 2));
    let other = palisade_checkpoint::CaptureOptions {
        base: "another".to_owned(),
        parent: Some(parent),
        ..crate::rig::options()
    };
    assert!(rig.store.capture(&upper, &other).unwrap_err().to_string().contains("bases differ"));
}

/// The kernel's own overlay: edits made through a mount, captured, restored under a second mount, edited and captured again.
#[test]
fn real_overlays_show_what_was_captured() {
    let rig = Rig::new();
    let dir = rig.dir.path();
    for name in ["base", "upper", "work", "merged", "upper2", "work2", "merged2", "merged3", "upper3", "work3"] {
        rig.make(name);
    }
    let base = dir.join("base");
    fs::create_dir_all(base.join("d/sub")).unwrap();
    fs::write(base.join("d/sub/deep"), b"deep").unwrap();
    fs::write(base.join("keep"), b"keep").unwrap();
    fs::write(base.join("gone"), b"gone").unwrap();
    fs::create_dir(base.join("replaced")).unwrap();
    fs::write(base.join("replaced/old"), b"old").unwrap();
    let mount = |lower: &str, upper: &str, work: &str, at: &str, then: &str| {
        let script = format!(
            "cd {dir} && mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={work},userxattr {at} || exit 99\n\
             cd {at} && {then}\n",
            dir = dir.display(),
        );
        Command::new("unshare").args(["-m", "sh", "-ec", &script]).output()
    };
    let edits = "rm gone; rm -r replaced; mkdir replaced; echo new >replaced/new; echo more >>d/sub/deep; ln d/sub/deep d/second";
    let made = mount("base", "upper", "work", "merged", edits);
    match &made {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            eprintln!("not tried: overlays cannot be mounted here: {}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        Err(why) => {
            eprintln!("not tried: unshare cannot be run: {why}");
            return;
        }
    }
    let first = rig.capture(&dir.join("upper")).checkpoint;
    let layer = rig.store.materialise(&first.id, crate::rig::ownership()).unwrap();
    let lower = format!("{}:base", layer.path().display());
    let list = "find . -mindepth 1 | sort | while read f; do stat -c '%n %A %s %Y' \"$f\"; test -f \"$f\" && cat \"$f\"; done; true";
    let said = |output: std::io::Result<std::process::Output>| {
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let before = said(mount("base", "upper", "work", "merged", list));
    assert_eq!(said(mount(&lower, "upper2", "work2", "merged2", list)), before);
    assert!(!before.contains("gone") && !before.contains("old") && before.contains("new"), "{before}");
    // A fork of it goes on: removes what the checkpoint had made, replaces a directory, brings one back.
    let edits =
        "rm -r replaced; rm d/second; echo x >gone; rm -r d/sub; mkdir d/sub; echo y >d/sub/other; mv keep kept";
    said(mount(&lower, "upper2", "work2", "merged2", edits));
    let expected = said(mount(&lower, "upper2", "work2", "merged2", list));
    let second = rig.capture_over(&dir.join("upper2"), first.id).checkpoint;
    let merged = rig.store.materialise(&second.id, crate::rig::ownership()).unwrap();
    let lower = format!("{}:base", merged.path().display());
    assert_eq!(said(mount(&lower, "upper3", "work3", "merged3", list)), expected);
    assert!(Path::new(merged.path()).join("d/sub/other").exists());
}
