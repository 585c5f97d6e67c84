//! Layers that attack whoever unpacks them. Each is refused or disarmed; nothing outside the store is touched, and nothing
//! of a refused one stays.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use palisade_image::{Error, Excess, Keep, UnpackError};
use tar::EntryType;

use crate::make::{Entry, Layer, dir, entry, file, gzip, hard_link, layer, plain_layer, symlink, tar, tar_open};
use crate::rig::{Rig, snapshot};

/// Imports a hostile layer and gives the reason why it is refused, after a look around.
async fn refused_with(rig: &Rig, hostile: Layer) -> UnpackError {
    std::fs::create_dir_all(rig.path("outside/dir")).unwrap();
    std::fs::write(rig.path("outside/canary"), "alive").unwrap();
    let store = rig.path("store");
    let layout = rig.path("layout");
    let around = || {
        let mut around = snapshot(rig.dir.path(), &store);
        around.retain(|path, _| !path.starts_with(&layout));
        around
    };
    let before = around();
    let error = rig.unpack(hostile).await.unwrap_err();
    assert_eq!(before, around(), "{error}");
    rig.assert_nothing_made();
    match error {
        Error::Layer { cause, .. } => cause,
        other => panic!("refused for another reason: {other}"),
    }
}

async fn refused(entries: &[Entry]) -> UnpackError {
    refused_with(&Rig::new(), layer(entries)).await
}

#[tokio::test]
async fn paths_that_leave_the_layer() {
    for path in ["../x", "a/../../x", "/etc/x", "//etc/x", "./../x", "..", "a/..", "\\../..//../x"] {
        let error = refused(&[file(path, "x")]).await;
        assert!(matches!(error, UnpackError::Path { .. }), "{path}: {error}");
    }
    let long = format!("{}/../../x", "a".repeat(200));
    assert!(matches!(refused(&[file(&long, "x")]).await, UnpackError::Path { .. }));
    let pax = refused(&[file("fine", "x").pax("path", b"../../x")]).await;
    assert!(matches!(pax, UnpackError::Path { .. }));
    let null = refused(&[file("fine", "x").pax("path", b"a\0/../../x")]).await;
    assert!(matches!(null, UnpackError::Path { .. }));
}

#[tokio::test]
async fn writing_through_links() {
    let rig = Rig::new();
    let outside = rig.path("outside/dir").display().to_string();
    for target in [outside.as_str(), "../../../../../outside/dir", "/", ".", ".."] {
        for attack in [
            vec![symlink("a", target), file("a/x", "x")],
            vec![symlink("a", target), dir("a/x")],
            vec![symlink("a", target), symlink("a/x", "y")],
            vec![symlink("a", target), file(".wh.b", ""), file("a/.wh.canary", "")],
            vec![symlink("a", target), file("a/.wh..wh..opq", "")],
            vec![dir("b"), symlink("b/a", target), file("b/a/x", "x")],
            vec![file("f", "x"), symlink("a", target), hard_link("a/x", "f")],
            // A directory that was used a moment ago is swapped for a link.
            vec![dir("a"), file("a/first", "1"), symlink("a", target), file("a/x", "x")],
        ] {
            let error = refused_with(&rig, layer(&attack)).await;
            assert!(matches!(error, UnpackError::Path { .. }), "{target}: {error}");
        }
    }
}

#[tokio::test]
async fn hard_links_to_elsewhere() {
    let rig = Rig::new();
    let canary = rig.path("outside/canary").display().to_string();
    for target in [canary.as_str(), "/etc/passwd", "../../../../outside/canary", "missing", ".", "d", "d/../d/f"] {
        let error = refused_with(&rig, layer(&[dir("d"), file("d/f", ""), hard_link("x", target)])).await;
        assert!(matches!(error, UnpackError::HardLink { .. }), "{target}: {error}");
    }
    // Through a link, to a link, to a whiteout, and to what the link would replace.
    for attack in [
        vec![symlink("l", &rig.path("outside").display().to_string()), hard_link("x", "l/canary")],
        vec![symlink("l", &canary), hard_link("x", "l")],
        vec![file(".wh.gone", ""), hard_link("x", "gone")],
        vec![dir("d"), file("d/f", ""), hard_link("d", "d/f")],
    ] {
        let error = refused_with(&rig, layer(&attack)).await;
        assert!(matches!(error, UnpackError::HardLink { .. }), "{error}");
    }
}

#[tokio::test]
async fn whiteouts_that_hide_what_must_not_be_hidden() {
    for attack in [
        vec![file(".wh.", "")],
        vec![file("a/.wh..", "")],
        vec![file(".wh...", "")],
        vec![file("a/.wh...", "")],
        vec![file(".wh.a/b", "x")],
        vec![dir(".wh.a")],
        vec![symlink(".wh.a", "/")],
        vec![entry(EntryType::Char, ".wh.a")],
        vec![file("f", ""), file("f/.wh.x", "")],
    ] {
        let error = refused(&attack).await;
        assert!(matches!(error, UnpackError::Path { .. }), "{error}");
    }
}

#[tokio::test]
async fn replacing_the_root() {
    for attack in [vec![file(".", "x")], vec![symlink("./", "/")], vec![entry(EntryType::Link, "./.")]] {
        assert!(matches!(refused(&attack).await, UnpackError::Path { .. }));
    }
}

#[tokio::test]
async fn what_only_the_kernel_should_make_is_left_out() {
    let rig = Rig::new();
    let attack = layer(&[
        dir("dev"),
        entry(EntryType::Char, "dev/mem"),
        entry(EntryType::Block, "dev/sda"),
        entry(EntryType::Fifo, "dev/pipe"),
        // A device 0:0 is a whiteout for the kernel.
        entry(EntryType::Char, "dev/null"),
        file("su", "x").mode(0o6755),
        dir("shared").mode(0o3777),
        file("caps", "x").pax("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
        dir("hider").pax("SCHILY.xattr.user.overlay.opaque", b"y").pax("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        file("plain", "x").pax("SCHILY.xattr.user.note", b"kept").pax("SCHILY.xattr.user.overlay.redirect", b"/etc"),
    ]);
    let root = rig.unpack(attack).await.unwrap();
    assert_eq!(std::fs::read_dir(root.join("dev")).unwrap().count(), 0);
    let mode = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("su"), 0o755);
    assert_eq!(mode("shared"), 0o1777);
    let attributes = |name: &str| {
        let mut names = vec![0; 1000];
        let length = rustix::fs::listxattr(root.join(name), &mut names).unwrap();
        names.truncate(length);
        String::from_utf8(names).unwrap()
    };
    assert_eq!(attributes("caps"), "");
    assert_eq!(attributes("hider"), "");
    assert_eq!(attributes("plain"), "user.note\0");
    let notes = rig.store().images().unwrap()[0].notes().join("\n");
    for note in
        ["device nodes left out: 3", "named pipes left out: 1 (dev/pipe)", "bits removed: 2", "attributes left out: 4"]
    {
        assert!(notes.contains(note), "{note} is not in {notes}");
    }
}

#[tokio::test]
async fn links_may_lead_anywhere_and_are_not_followed() {
    let rig = Rig::new();
    let attack =
        [symlink("a", "/etc/passwd"), symlink("b", "../../.."), file("a", "mine"), symlink("c", "/"), dir("c")];
    let root = rig.unpack(layer(&attack)).await.unwrap();
    assert_eq!(std::fs::read_to_string(root.join("a")).unwrap(), "mine");
    assert_eq!(std::fs::read_link(root.join("b")).unwrap().to_str(), Some("../../.."));
    assert!(std::fs::symlink_metadata(root.join("c")).unwrap().is_dir());
}

#[tokio::test]
async fn an_entry_that_comes_twice_replaces_the_first() {
    let rig = Rig::new();
    let root = rig
        .unpack(layer(&[
            dir("d"),
            dir("d/e"),
            file("d/e/f", "1"),
            file("d", "now a file"),
            file("x", "1"),
            hard_link("y", "x"),
            file("x", "2"),
            file("z", "1"),
            dir("z"),
            file("z/in", "it"),
            hard_link("x", "x"),
        ]))
        .await
        .unwrap();
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    assert_eq!(read("d"), "now a file");
    assert_eq!((read("x"), read("y"), read("z/in")), ("2".into(), "1".into(), "it".into()));
}

#[tokio::test]
async fn sizes_that_do_not_end() {
    let mut rig = Rig::new();
    rig.policy.limits.layer_bytes = 1 << 20;
    let claims = |size: u64| {
        let mut archive = tar_open(&[file("f", "x").claims(size)]);
        archive.resize(4096, 0);
        plain_layer(archive)
    };
    for size in [1 << 21, u64::MAX / 2, u64::MAX - 511, u64::MAX] {
        let error = refused_with(&rig, claims(size)).await;
        assert!(matches!(error, UnpackError::Excess(_) | UnpackError::Archive(_)), "{size}: {error}");
    }
    let bomb = tar(&[Entry::claims(file("f", &"\0".repeat(2 << 20)), 2 << 20)]);
    let bomb = Layer { blob: gzip(&bomb), ..plain_layer(bomb) };
    assert!(matches!(refused_with(&rig, bomb).await, UnpackError::Excess(Excess::Bytes(_))));
    // What follows the end mark counts, too.
    let mut tail = tar(&[file("f", "x")]);
    tail.resize(2 << 20, 0);
    let tail = Layer { blob: gzip(&tail), ..plain_layer(tail) };
    assert!(matches!(refused_with(&rig, tail).await, UnpackError::Excess(Excess::Bytes(_))));
}

#[tokio::test]
async fn a_sparse_file_is_as_large_as_it_says() {
    let sparse = |real: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_path("holes").unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(4);
        let gnu = header.as_gnu_mut().unwrap();
        let octal = |field: &mut [u8; 12], value: u64| field.copy_from_slice(format!("{value:011o}\0").as_bytes());
        octal(&mut gnu.sparse[0].offset, real - 4);
        octal(&mut gnu.sparse[0].numbytes, 4);
        octal(&mut gnu.realsize, real);
        header.set_cksum();
        let mut archive = header.as_bytes().to_vec();
        archive.extend_from_slice(b"tail");
        archive.resize(2048, 0);
        plain_layer(archive)
    };
    let mut rig = Rig::new();
    rig.policy.limits.layer_bytes = 1 << 20;
    assert!(matches!(refused_with(&rig, sparse(1 << 30)).await, UnpackError::Excess(Excess::Bytes(_))));
    let root = rig.unpack(sparse(1 << 19)).await.unwrap();
    let data = std::fs::read(root.join("holes")).unwrap();
    assert_eq!((data.len(), &data[data.len() - 4..]), (1 << 19, &b"tail"[..]));
    let blocks = std::fs::metadata(root.join("holes")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 19, "{blocks} blocks hold the holes");
    let pax = refused(&[file("f", "x").pax("GNU.sparse.major", b"1")]).await;
    assert!(matches!(pax, UnpackError::Kind { .. }));
}

#[tokio::test]
async fn headers_and_entries_that_do_not_end() {
    let name = "a".repeat(3 << 20);
    let error = refused(&[file(&name, "x")]).await;
    assert!(matches!(error, UnpackError::Excess(Excess::Headers(_))), "{error}");
    let error = refused(&[file("f", "x").pax("comment", &vec![b'x'; 3 << 20])]).await;
    assert!(matches!(error, UnpackError::Excess(Excess::Headers(_))), "{error}");

    let mut rig = Rig::new();
    rig.policy.limits.entries = 10;
    let many: Vec<Entry> = (0..11).map(|number| file(&number.to_string(), "")).collect();
    assert!(matches!(refused_with(&rig, layer(&many)).await, UnpackError::Excess(Excess::Entries(10))));
    for path in ["a/".repeat(200) + "x", "a".repeat(256), "a/".repeat(3000)] {
        assert!(matches!(refused(&[file(&path, "")]).await, UnpackError::Path { .. }));
    }
}

#[tokio::test]
async fn directories_that_only_paths_name() {
    let mut rig = Rig::new();
    rig.policy.limits.entries = 100;
    let deep = |name: &str| file(&format!("{name}/{}f", "d/".repeat(59)), "");
    // Sixty directories and a file each.
    rig.unpack(layer(&[deep("a")])).await.unwrap();
    rig.store().prune(&Keep::default(), &[]).unwrap();
    let error = refused_with(&rig, layer(&[deep("a"), deep("b")])).await;
    assert!(matches!(error, UnpackError::Excess(Excess::Entries(100))), "{error}");
    // Also those that take the place of something that was hidden.
    let hidden = (0..34).flat_map(|number| [file(&format!(".wh.{number}"), ""), file(&format!("{number}/f"), "")]);
    let error = refused_with(&rig, layer(&hidden.collect::<Vec<_>>())).await;
    assert!(matches!(error, UnpackError::Excess(Excess::Entries(100))), "{error}");
}

#[tokio::test]
async fn paths_that_fill_the_memory() {
    let mut rig = Rig::new();
    rig.policy.limits.path_bytes = 100_000;
    let name = "n".repeat(200);
    let deep = |place: &str| format!("{place}/{}", format!("{name}/").repeat(15));
    let paths = |error: UnpackError| {
        assert!(matches!(error, UnpackError::Excess(Excess::Paths(100_000))), "{error}");
    };
    // Each directory's path has all those above it.
    for few in [[file(&(deep("a") + "f"), "")], [dir(&deep("a"))]] {
        rig.unpack(layer(&few)).await.unwrap();
        rig.store().prune(&Keep::default(), &[]).unwrap();
    }
    for make in [|path: String| file(&(path + "f"), ""), |path: String| dir(&path)] {
        let many: Vec<Entry> = ["a", "b", "c", "d"].map(|place| make(deep(place))).into();
        paths(refused_with(&rig, layer(&many)).await);
    }
    let noted = |place: &str| dir(place).pax("SCHILY.xattr.user.note", &[b'x'; 60_000]);
    paths(refused_with(&rig, layer(&[noted("a"), noted("b")])).await);
    // What was replaced is not held.
    let again: Vec<Entry> = (0..10).flat_map(|_| [file(&(deep("a") + "f"), ""), file("a", ""), dir("a")]).collect();
    rig.unpack(layer(&again)).await.unwrap();
}

#[tokio::test]
async fn owners_that_no_sandbox_has() {
    let entries = || layer(&[file("f", "x").owner(70_000, 0)]);
    if rustix::process::geteuid().is_root() {
        assert!(matches!(refused_with(&Rig::new(), entries()).await, UnpackError::Owner { owner: 70_000, .. }));
    } else {
        // Owners are not looked at where they cannot be kept.
        Rig::new().unpack(entries()).await.unwrap();
        println!("owners are not kept: not root");
    }
}

#[tokio::test]
async fn entries_of_unknown_kinds() {
    for kind in [b'V', b'M', b'D', b'~'] {
        let error = refused(&[entry(EntryType::new(kind), "x")]).await;
        assert!(matches!(error, UnpackError::Kind { .. } | UnpackError::Archive(_)), "{error}");
    }
}

#[tokio::test]
async fn nothing_special_is_made_but_whiteouts() {
    let rig = Rig::new();
    let root = rig.unpack(layer(&[dir("a"), file("a/.wh.gone", "x"), file(".wh..wh.plnk", "")])).await.unwrap();
    let gone = std::fs::symlink_metadata(root.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
}
