//! Bytes without sense, and sense with some bytes changed: no panic, and nothing outside is touched.

use palisade_image::{Limits, Reference, RegistryPattern, fuzz};
use proptest::prelude::*;
use proptest::test_runner::Config;

use crate::make::{Entry, dir, entry, file, gzip, hard_link, named, symlink, tar};
use crate::rig::snapshot;

fn limits() -> Limits {
    Limits { layer_bytes: 1 << 20, image_bytes: 1 << 20, entries: 1000, ..Limits::default() }
}

fn seed() -> Vec<u8> {
    tar(&[
        dir("a").pax("SCHILY.xattr.user.x", b"y"),
        file("a/f", "content"),
        hard_link("a/g", "a/f"),
        symlink("a/l", "../../../outside"),
        file("a/l", "replaced"),
        file("a/.wh.gone", ""),
        file("b/.wh..wh..opq", ""),
        entry(tar::EntryType::Char, "dev/null"),
        file(&format!("long/{}", "n".repeat(150)), "x"),
    ])
}

/// Unpacks bytes beside a canary, which must stay alone and alive.
fn unpack(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let (root, scratch, outside) = (dir.path().join("root"), dir.path().join("scratch"), dir.path().join("outside"));
    for path in [&root, &scratch, &outside] {
        std::fs::create_dir(path).unwrap();
    }
    std::fs::write(outside.join("canary"), "alive").unwrap();
    let around = || {
        let mut found = snapshot(dir.path(), &root);
        found.retain(|path, _| !path.starts_with(&scratch));
        found
    };
    let before = around();
    let _ = fuzz::layer(bytes, &root, &scratch, &limits());
    assert_eq!(before, around());
    let archive = scratch.join("whole");
    std::fs::write(&archive, bytes).unwrap();
    let _ = fuzz::archive(&archive, &scratch, &limits());
}

fn changed(seed: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = seed.len();
    proptest::collection::vec((0..length, any::<u8>()), 1..12).prop_map(move |changes| {
        let mut bytes = seed.clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        // Most changes of headers would only break their checksums.
        for header in bytes.chunks_exact_mut(512) {
            if &header[257..262] == b"ustar" {
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        bytes
    })
}

/// Paths and targets that mean harm.
fn part() -> impl Strategy<Value = String> {
    proptest::sample::select(vec![
        "a",
        "b",
        "..",
        ".",
        "",
        "a/b",
        "../outside",
        "/",
        ".wh.a",
        ".wh..wh..opq",
        ".wh.",
        "..\0",
        "a/../..",
        "outside/canary",
    ])
    .prop_map(str::to_owned)
}

fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let kinds = proptest::sample::select(b"0125364gLKx".to_vec());
    let one = (kinds, proptest::collection::vec(part(), 1..4), proptest::collection::vec(part(), 1..4));
    proptest::collection::vec(one, 1..20).prop_map(|entries| {
        let entries: Vec<Entry> = entries
            .into_iter()
            .map(|(kind, path, target)| {
                let (path, target) = (path.join("/"), target.join("/"));
                match kind {
                    b'1' => hard_link(&path, &target),
                    b'2' => symlink(&path, &target),
                    b'0' => file(&path, &target),
                    other => entry(tar::EntryType::new(other), &path),
                }
            })
            .collect();
        tar(&entries)
    })
}

proptest! {
    #![proptest_config(Config { cases: 300, failure_persistence: None, ..Config::default() })]

    #[test]
    fn layers_with_changed_bytes(bytes in changed(seed())) {
        unpack(&bytes);
    }

    #[test]
    fn compressed_layers_with_changed_bytes(bytes in changed(gzip(&seed()))) {
        unpack(&bytes);
    }

    #[test]
    fn layers_of_harmful_entries(bytes in hostile()) {
        unpack(&bytes);
    }

    #[test]
    fn layers_without_sense(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        unpack(&bytes);
    }

    #[test]
    fn documents_with_changed_bytes(bytes in changed(named("a").manifest_bytes()), config in changed(named("a").config_bytes())) {
        fuzz::documents(&bytes);
        fuzz::documents(&config);
    }

    #[test]
    fn references_without_sense(text in "[a-z0-9.:/@_\\[\\]-]{0,40}") {
        if let Ok(reference) = text.parse::<Reference>() {
            // What is written is read as the same.
            prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
        }
        let _ = text.parse::<RegistryPattern>();
    }
}
