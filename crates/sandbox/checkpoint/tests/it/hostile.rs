//! Trees and stores that somebody has made to do harm.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use palisade_checkpoint::{Error, Id, Store};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::rig::{Kind, Rig, assert_same, is_root, ownership, read, set_xattr};
use crate::round_trip::noise;

#[test]
fn devices_are_refused_and_pipes_named() {
    let rig = Rig::new();
    let upper = rig.make("upper");
    fs::create_dir(upper.join("d")).unwrap();
    rustix::fs::mknodat(CWD, upper.join("d/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = UnixListener::bind(upper.join("d/socket")).unwrap();
    fs::write(upper.join("d/file"), b"x").unwrap();
    let captured = rig.capture(&upper);
    let skipped: Vec<_> = captured.skipped_paths.iter().map(ToString::to_string).collect();
    assert_eq!((captured.skipped, skipped), (2, vec!["d/pipe".to_owned(), "d/socket".to_owned()]));
    assert_eq!(rig.layer(&captured.checkpoint.id).len(), 3);
    if !is_root() {
        eprintln!("not tried: devices, which only root can make");
        return;
    }
    for (kind, device) in
        [(FileType::CharacterDevice, (1, 5)), (FileType::BlockDevice, (7, 0)), (FileType::BlockDevice, (0, 0))]
    {
        let path = upper.join("d/device");
        rustix::fs::mknodat(CWD, &path, kind, Mode::RUSR, rustix::fs::makedev(device.0, device.1)).unwrap();
        let error = rig.store.capture(&upper, &crate::rig::options()).unwrap_err();
        assert!(matches!(&error, Error::Device(path) if path.to_string() == "d/device"), "{error}");
        fs::remove_file(&path).unwrap();
    }
    // What was refused left nothing.
    assert_eq!(rig.store.list().unwrap().len(), 1);
    assert_eq!(fs::read_dir(rig.store.dir().join("tmp")).unwrap().count(), 0);
}

#[test]
fn content_elsewhere_is_refused() {
    for (name, file) in
        [("user.overlay.redirect", false), ("user.overlay.metacopy", true), ("user.overlay.redirect", true)]
    {
        let rig = Rig::new();
        let upper = rig.make("upper");
        if file {
            fs::write(upper.join("it"), b"x").unwrap()
        } else {
            fs::create_dir(upper.join("it")).unwrap()
        }
        set_xattr(&upper.join("it"), name, b"/etc");
        assert!(matches!(rig.store.capture(&upper, &crate::rig::options()), Err(Error::Redirect(_))), "{name}");
    }
}

#[test]
fn links_lead_nowhere() {
    let rig = Rig::new();
    let outside = rig.make("outside");
    fs::write(outside.join("secret"), b"secret").unwrap();
    let upper = rig.make("upper");
    symlink(&outside, upper.join("directory")).unwrap();
    symlink("loop-b", upper.join("loop-a")).unwrap();
    symlink("loop-a", upper.join("loop-b")).unwrap();
    symlink("/proc/self/root", upper.join("root")).unwrap();
    // A second name of a file that is outside is only content.
    fs::hard_link(outside.join("secret"), upper.join("linked")).unwrap();
    let id = rig.capture(&upper).checkpoint.id;
    let layer = rig.layer(&id);
    assert_eq!(layer[&b"directory"[..]].kind, Kind::Symlink(outside.as_os_str().as_bytes().to_vec()));
    assert_eq!((layer.len(), layer[&b"linked"[..]].same_as.clone()), (6, None));
    // The upper directory itself must be one.
    symlink(&upper, rig.dir.path().join("alias")).unwrap();
    assert!(rig.store.capture(&rig.dir.path().join("alias"), &crate::rig::options()).is_err());
}

#[test]
fn any_name_comes_back() {
    let rig = Rig::new();
    let upper = rig.make("upper");
    for name in [
        &b"new\nline"[..],
        b"\xff\xfe",
        b" ",
        b"-rf",
        b".wh.real",
        b".wh..wh..opq",
        b"\x1b[2J",
        "ü–☃".as_bytes(),
        &[b'n'; 255],
    ] {
        fs::write(upper.join(OsStr::from_bytes(name)), name).unwrap();
        fs::create_dir_all(upper.join("d").join(OsStr::from_bytes(name))).unwrap();
    }
    let id = rig.capture(&upper).checkpoint.id;
    assert_same(&rig.layer(&id), &read(&upper));
}

#[test]
fn depth_costs_neither_stack_nor_descriptors() {
    let rig = Rig::new();
    let upper = rig.make("upper");
    // By descriptors: no path is long enough.
    let open = |dir: &std::os::fd::OwnedFd, name: &str| {
        rustix::fs::openat(dir, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    };
    let mut here = rustix::fs::openat(CWD, &upper, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for depth in 0..1200 {
        // Two ways down at each level, so that every level is come back to.
        for name in ["a", "b"] {
            rustix::fs::mkdirat(&here, name, Mode::RWXU).unwrap();
        }
        if depth % 500 == 0 {
            let file = rustix::fs::openat(&here, "file", OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR)
                .unwrap();
            rustix::io::write(&file, b"deep").unwrap();
        }
        here = open(&here, "a");
    }
    let captured = rig.capture(&upper).checkpoint;
    assert_eq!((captured.counts.directories, captured.counts.files), (2400, 3));
    let layer = rig.store.materialise(&captured.id, ownership()).unwrap();
    assert_eq!(rig.capture(layer.path()).checkpoint.id, captured.id);
    assert_eq!(rig.store.diff(None, &captured.id, None).unwrap().len(), 2403);
    drop(layer);
    rig.store.prune(&palisade_checkpoint::Retention::default()).unwrap();
    // Deeper than that is refused, by name.
    for _ in 0..3000 {
        rustix::fs::mkdirat(&here, "a", Mode::RWXU).unwrap();
        here = open(&here, "a");
    }
    assert!(matches!(rig.store.capture(&upper, &crate::rig::options()), Err(Error::Limit { .. })));
    // The test's own folder is removed by a recursion that has neither limit; this one has.
    let status = std::process::Command::new("rm").arg("-rf").arg(&upper).status().unwrap();
    assert!(status.success());
}

/// Whether the store gives back exactly this, or an error: never something else.
fn right_or_error(dir: &Path, id: &Id, expected: &crate::rig::Tree) -> bool {
    let store = match Store::open(dir) {
        Ok(store) => store,
        Err(error) => {
            assert!(error.to_string().contains("store"), "{error}");
            return false;
        }
    };
    let layers = dir.join("layers");
    fs::remove_dir_all(&layers).unwrap();
    fs::create_dir(&layers).unwrap();
    let verified = store.verify();
    match store.materialise(id, ownership()) {
        Ok(layer) => {
            assert_same(&read(layer.path()), expected);
            true
        }
        Err(_) => {
            assert!(verified.map_or(true, |it| !it.faults.is_empty()), "what cannot be read must not be verified");
            false
        }
    }
}

fn small_store() -> (Rig, Id, crate::rig::Tree) {
    let rig = Rig::new();
    let upper = rig.make("upper");
    fs::create_dir(upper.join("d")).unwrap();
    fs::write(upper.join("d/file"), noise(1, 900)).unwrap();
    fs::write(upper.join("d/text"), "text ".repeat(300)).unwrap();
    fs::write(upper.join("tiny"), b"tiny").unwrap();
    symlink("tiny", upper.join("link")).unwrap();
    let id = rig.capture(&upper).checkpoint.id;
    let tree = read(&upper);
    (rig, id, tree)
}

fn only(dir: &Path) -> std::path::PathBuf {
    fs::read_dir(dir).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn flipped_bits_and_cuts_anywhere_are_noticed() {
    let (rig, id, expected) = small_store();
    let dir = rig.store.dir();
    for file in [only(&dir.join("packs")), only(&dir.join("checkpoints")), dir.join("format")] {
        let good = fs::read(&file).unwrap();
        for place in (0..good.len()).step_by(3) {
            let mut bad = good.clone();
            bad[place] ^= 1 << (place % 8);
            fs::write(&file, &bad).unwrap();
            right_or_error(dir, &id, &expected);
        }
        for len in (0..good.len()).step_by(29) {
            fs::write(&file, &good[..len]).unwrap();
            assert!(!right_or_error(dir, &id, &expected), "{} cut at {len}", file.display());
        }
        fs::write(&file, &good).unwrap();
    }
    assert!(right_or_error(dir, &id, &expected));
    // A chunk's error names the pack and the chunk.
    let pack = only(&dir.join("packs"));
    let mut bad = fs::read(&pack).unwrap();
    bad[10] ^= 1;
    fs::write(&pack, &bad).unwrap();
    let verified = Store::open(dir).unwrap().verify().unwrap();
    let said = verified.faults[0].error.to_string();
    assert!(said.contains(&pack.display().to_string()) && said.contains("chunk "), "{said}");
    assert!(verified.faults.iter().any(|fault| fault.checkpoint == Some(id)));
    // A pack that is gone.
    fs::remove_file(&pack).unwrap();
    let error = Store::open(dir).unwrap().materialise(&id, ownership()).unwrap_err();
    assert!(matches!(error, Error::MissingChunk { .. } | Error::Corrupt { .. }), "{error}");
}

#[test]
fn the_index_is_only_a_cache() {
    let rig = Rig::new();
    let upper = rig.make("upper");
    let mut ids = Vec::new();
    for place in 0..20 {
        fs::write(upper.join("file"), noise(place, 2000)).unwrap();
        ids.push(rig.capture(&upper).checkpoint.id);
    }
    let index = rig.store.dir().join("index");
    drop(Store::open(rig.store.dir()).unwrap());
    let good = fs::read(&index).unwrap();
    for place in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[place] ^= 0x10;
        fs::write(&index, &bad).unwrap();
        let store = Store::open(rig.store.dir()).unwrap();
        store.materialise(&ids[place % 20], ownership()).unwrap();
    }
    // One that is whole and says otherwise than the packs is found.
    let mut bad = good[..good.len() - 32].to_vec();
    let first = "palisade index 1\n".len() + 32 + 8;
    bad[first] ^= 0x10;
    let check = *blake3::hash(&bad).as_bytes();
    bad.extend_from_slice(&check);
    fs::write(&index, &bad).unwrap();
    let faults = Store::open(rig.store.dir()).unwrap().verify().unwrap().faults;
    assert!(faults.iter().any(|fault| fault.error.to_string().contains("says otherwise than the packs")), "{faults:?}");
    // One by which chunks are longer than any can be is as good as none, and one by which they are longer than their pack makes no
    // room for them.
    for (length, read) in [(u32::MAX, true), (1 << 30, false)] {
        let mut bad = good[..good.len() - 32].to_vec();
        let mut at = 0;
        // By packs: name, count, and of each chunk name, place, length as stored and as it is.
        let mut rest = "palisade index 1\n".len();
        while rest < bad.len() {
            let count = u64::from_le_bytes(bad[rest + 32..rest + 40].try_into().unwrap());
            rest += 40;
            for _ in 0..count {
                bad[rest + 40..rest + 44].copy_from_slice(&length.to_le_bytes());
                bad[rest + 44..rest + 48].copy_from_slice(&length.to_le_bytes());
                rest += 48;
                at += 1;
            }
        }
        assert!(at >= 20);
        let check = *blake3::hash(&bad).as_bytes();
        bad.extend_from_slice(&check);
        fs::write(&index, &bad).unwrap();
        let store = Store::open(rig.store.dir()).unwrap();
        fs::remove_dir_all(rig.store.dir().join("layers")).unwrap();
        fs::create_dir(rig.store.dir().join("layers")).unwrap();
        match store.materialise(&ids[0], ownership()) {
            Ok(_) => assert!(read),
            Err(why) => assert!(!read && why.to_string().contains("it ends inside chunk"), "{why}"),
        }
    }
    fs::remove_file(&index).unwrap();
    let verified = Store::open(rig.store.dir()).unwrap().verify().unwrap();
    assert_eq!((verified.checkpoints, verified.faults.len()), (20, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Mutations of a pack that keep its own names in order, so that they reach the readers of nodes and chunks.
    #[test]
    fn no_mutation_of_a_pack_is_believed(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<Option<prop::sample::Index>>()) {
        thread_local! {
            static STORE: (Rig, Id, crate::rig::Tree) = small_store();
        }
        STORE.with(|(rig, id, expected)| {
            let pack = only(&rig.store.dir().join("packs"));
            let good = fs::read(&pack).unwrap();
            let mut bad = good.clone();
            for (place, byte) in edits {
                let place = place.index(bad.len());
                bad[place] = byte;
            }
            if let Some(cut) = cut {
                bad.truncate(cut.index(bad.len()));
            }
            fs::write(&pack, &bad).unwrap();
            right_or_error(rig.store.dir(), id, expected);
            fs::write(&pack, &good).unwrap();
        });
    }
}

#[test]
fn a_full_disk_leaves_nothing_half_made() {
    if !is_root() {
        eprintln!("not tried: a small file system, which only root can mount");
        return;
    }
    let rig = Rig::new();
    let small = rig.make("small");
    let options = c"size=1m";
    let mounted = rustix::mount::mount("tmpfs", &small, "tmpfs", rustix::mount::MountFlags::empty(), options);
    if let Err(why) = mounted {
        eprintln!("not tried: tmpfs cannot be mounted here: {why}");
        return;
    }
    let upper = rig.make("upper");
    fs::write(upper.join("fits"), noise(1, 100_000)).unwrap();
    let store = Store::open(small.join("store")).unwrap();
    let first = store.capture(&upper, &crate::rig::options()).unwrap().checkpoint;
    fs::write(upper.join("does not"), noise(2, 3_000_000)).unwrap();
    let error = store.capture(&upper, &crate::rig::options()).unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&first));
    assert_eq!(fs::read_dir(small.join("store/tmp")).unwrap().count(), 0);
    // The same for a layer.
    let filler = small.join("filler");
    let _ = fs::write(&filler, vec![0; 2 << 20]);
    let error = store.materialise(&first.id, ownership()).unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert_eq!(fs::read_dir(small.join("store/tmp")).unwrap().count(), 0);
    fs::remove_file(&filler).unwrap();
    drop(store.materialise(&first.id, ownership()).unwrap());
    assert!(store.verify().unwrap().faults.is_empty());
    drop(store);
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
}
