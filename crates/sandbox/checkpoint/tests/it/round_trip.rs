//! What is captured comes back.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};

use palisade_checkpoint::{CaptureOptions, Durable, Store, write_whole};

use crate::rig::{Kind, Rig, assert_same, at, is_root, options, read, set_mtime, set_xattr, whiteout};

/// Bytes without a pattern that a compressor finds, the same each time.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(next).collect()
}

#[test]
fn a_file_that_is_written_whole_is_its_owners_alone() {
    let rig = Rig::new();
    let dir = rig.make("small");
    let path = dir.join("state");
    fs::write(&path, "old, and longer").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    for durable in [Durable::Yes, Durable::No] {
        write_whole(&dir, "state", b"new", durable).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }
}

#[test]
fn every_kind_of_entry_comes_back() {
    let rig = Rig::new();
    let upper = rig.make("upper");
    fs::create_dir(upper.join("src")).unwrap();
    fs::write(upper.join("src/empty"), b"").unwrap();
    fs::write(upper.join("src/tiny"), b"hello\n").unwrap();
    fs::write(upper.join("src/text"), "a line of text\n".repeat(1000)).unwrap();
    fs::write(upper.join("src/large"), noise(1, 3_000_000)).unwrap();
    fs::write(upper.join("src/zeros"), vec![0; 700_000]).unwrap();
    fs::hard_link(upper.join("src/large"), upper.join("src/large-again")).unwrap();
    fs::hard_link(upper.join("src/large"), upper.join("other-place")).unwrap();
    symlink("../../etc/passwd", upper.join("src/link")).unwrap();
    whiteout(&upper.join("removed"));
    fs::create_dir_all(upper.join("replaced/inner")).unwrap();
    set_xattr(&upper.join("replaced"), "user.overlay.opaque", b"y");
    set_xattr(&upper.join("replaced"), "user.overlay.origin", b"of this machine");
    set_xattr(&upper.join("src"), "user.overlay.impure", b"y");
    set_xattr(&upper.join("src/text"), "user.note", b"\0binary\xff");
    set_xattr(&upper.join("src"), "user.dir", b"");
    let sparse = fs::File::create(upper.join("sparse")).unwrap();
    sparse.set_len(10 << 20).unwrap();
    sparse.write_all_at(&noise(2, 5000), 4 << 20).unwrap();
    fs::set_permissions(upper.join("src/tiny"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(upper.join("replaced/inner"), fs::Permissions::from_mode(0o1555)).unwrap();
    if is_root() {
        std::os::unix::fs::lchown(upper.join("src/link"), Some(1000), Some(1001)).unwrap();
        std::os::unix::fs::chown(upper.join("src/text"), Some(1000), Some(1000)).unwrap();
        std::os::unix::fs::chown(upper.join("src"), Some(1000), Some(1000)).unwrap();
    } else {
        eprintln!("not tried: owners, which only root can give away");
    }
    set_mtime(&upper.join("src/link"), -5, 999_999_999);
    set_mtime(&upper.join("src/text"), 1, 7);
    set_mtime(&upper.join("src"), 2_000_000_000, 123_456_789);
    set_mtime(&upper, 77, 1);

    let captured = rig.capture(&upper);
    let layer = rig.store.materialise(&captured.checkpoint.id, crate::rig::ownership()).unwrap();
    let mut expected = read(&upper);
    for entry in expected.values_mut() {
        entry.xattrs.retain(|name, _| !name.starts_with("user.overlay."));
    }
    let found = read(layer.path());
    assert_same(&found, &expected);
    assert!(matches!(&found[&b"sparse"[..]].kind, Kind::File { sparse: true, .. }));
    assert_eq!(rig.store.list().unwrap(), std::slice::from_ref(&captured.checkpoint));
    let counts = captured.checkpoint.counts;
    assert_eq!((counts.files, counts.directories, counts.symlinks, counts.whiteouts), (8, 3, 1, 1));

    // The layer captured again is the same checkpoint, and nothing is stored twice.
    let again = rig.capture(layer.path());
    assert_eq!((again.checkpoint.id, again.grown), (captured.checkpoint.id, 0));
    assert_eq!(rig.store.verify().unwrap().faults.len(), 0);
}

#[test]
fn the_name_is_of_the_content() {
    let rig = Rig::new();
    let upper = rig.make("upper");
    fs::write(upper.join("file"), noise(3, 100_000)).unwrap();
    let first = rig.capture(&upper).checkpoint;
    assert_eq!(rig.capture(&upper).checkpoint.id, first.id);
    let other_base = CaptureOptions { base: "base-2".to_owned(), ..options() };
    assert_ne!(rig.store.capture(&upper, &other_base).unwrap().checkpoint.id, first.id);
    fs::set_permissions(upper.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_ne!(rig.capture(&upper).checkpoint.id, first.id);
    // In a store of its own it has the same name.
    let other = Rig::new();
    let layer = rig.store.materialise(&first.id, crate::rig::ownership()).unwrap();
    assert_eq!(other.capture(layer.path()).checkpoint.id, first.id);
    // It is in the store, and not in what the process remembers.
    let again = Store::open(rig.store.dir()).unwrap();
    assert_eq!(again.show(&first.id).unwrap(), first);
    assert_eq!(again.list().unwrap().len(), 3);
}

#[test]
fn what_did_not_change_is_not_read_again() {
    let rig = Rig::new();
    let upper = rig.make("upper");
    let cache = rig.dir.path().join("cache");
    let options = CaptureOptions { cache: Some(cache.clone()), ..options() };
    for place in 0..50 {
        let path = upper.join(format!("file-{place}"));
        fs::write(&path, noise(place, 20_000)).unwrap();
        set_xattr(&path, "user.place", place.to_string().as_bytes());
    }
    // What was written in the clock's present tick may be written again unseen, so it is read once more.
    let captured = |reused: u64| {
        for _ in 0..1000 {
            let captured = rig.store.capture(&upper, &options).unwrap();
            assert_eq!(captured.read + captured.reused, 50);
            if captured.reused == reused {
                return captured.checkpoint.id;
            }
        }
        panic!("{reused} files of 50 should be known");
    };
    let first = captured(50);
    // The same size and the same time of change of content: only the time of change itself tells.
    let touched = upper.join("file-7");
    let before = fs::metadata(&touched).unwrap();
    fs::write(&touched, noise(99, 20_000)).unwrap();
    fs::File::options().write(true).open(&touched).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let second = rig.store.capture(&upper, &options).unwrap();
    assert_eq!((second.read, second.reused), (1, 49));
    assert_ne!(second.checkpoint.id, first);
    assert_same(&rig.layer(&second.checkpoint.id), &read(&upper));
    // Notes that are wrong or of another layer are no notes.
    let mut bytes = fs::read(&cache).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&cache, &bytes).unwrap();
    assert_eq!(rig.store.capture(&upper, &options).unwrap().reused, 0);
    captured(50);
    let other = rig.make("other");
    fs::write(other.join("file"), b"other").unwrap();
    assert_eq!(rig.store.capture(&other, &options).unwrap().reused, 0);
}

#[test]
fn records_can_be_found_and_labelled() {
    let rig = Rig::new();
    let upper = rig.make("upper");
    let first = rig.capture(&upper).checkpoint;
    fs::write(upper.join("file"), b"x").unwrap();
    let second = rig.store.capture(&upper, &CaptureOptions { created: at(9), ..options() }).unwrap().checkpoint;
    assert_eq!(rig.store.list().unwrap(), [second.clone(), first.clone()]);
    assert_eq!(rig.store.find_named(&first.id.to_string()[..12]).unwrap().id, first.id);
    assert!(rig.store.find_named("no such").is_err());
    rig.store.label(&first.id, Some("before the change")).unwrap();
    assert_eq!(rig.store.find_named("before the change").unwrap().id, first.id);
    // The same content again keeps the label and is as new as its last capture.
    fs::remove_file(upper.join("file")).unwrap();
    set_mtime(&upper, 1, 1);
    let old = rig.store.capture(&upper, &options()).unwrap().checkpoint;
    rig.store.label(&old.id, Some("again")).unwrap();
    let new = rig.store.capture(&upper, &CaptureOptions { created: at(60), ..options() }).unwrap().checkpoint;
    assert_eq!((new.id, new.label.as_deref(), new.created()), (old.id, Some("again"), at(60)));
    assert_eq!(rig.store.label(&old.id, None).unwrap().label, None);
}

#[test]
fn a_layer_is_made_once_and_shared() {
    let rig = Rig::new();
    // An empty one, which a rename could replace.
    let upper = rig.make("upper");
    let id = rig.capture(&upper).checkpoint.id;
    let layers: Vec<_> = std::thread::scope(|scope| {
        let made: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let store = Store::open(rig.store.dir()).unwrap();
                    let layer = store.materialise(&id, crate::rig::ownership()).unwrap();
                    (std::os::unix::fs::MetadataExt::ino(&fs::metadata(layer.path()).unwrap()), layer)
                })
            })
            .collect();
        made.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert!(layers.iter().all(|(inode, layer)| *inode == layers[0].0 && layer.path() == layers[0].1.path()));
    assert_eq!(fs::read_dir(rig.store.dir().join("tmp")).unwrap().count(), 0);
}
