//! Archives: the same checkpoint comes back, other tools read them, and nothing in one can do harm.

use std::fs;
use std::io::{Cursor, Write as _};
use std::os::unix::fs::{FileExt as _, symlink};
use std::process::{Command, Stdio};

use palisade_checkpoint::{Error, Format, Id, ImportLimits, ImportOptions};
use proptest::prelude::*;

use crate::rig::{BASE, Rig, at, set_mtime, set_xattr, whiteout};
use crate::round_trip::noise;

fn options() -> ImportOptions {
    ImportOptions { base: None, created: at(5), label: None, limits: ImportLimits::default() }
}

fn over_base() -> ImportOptions {
    ImportOptions { base: Some(BASE.to_owned()), ..options() }
}

fn export(rig: &Rig, id: &Id, format: Format) -> Vec<u8> {
    let mut archive = Vec::new();
    rig.store.export(id, format, &mut archive).unwrap();
    archive
}

fn varied(rig: &Rig, literal: bool) -> Id {
    let upper = rig.make("upper");
    let long = "long-".repeat(40);
    fs::create_dir_all(upper.join(&long).join(&long)).unwrap();
    fs::write(upper.join(&long).join(&long).join("ü\nfile"), noise(1, 300_000)).unwrap();
    fs::write(upper.join("empty"), b"").unwrap();
    fs::write(upper.join("tiny"), b"tiny").unwrap();
    fs::hard_link(upper.join("tiny"), upper.join(&long).join("tiny-again")).unwrap();
    fs::write(upper.join("large"), noise(2, 2_000_000)).unwrap();
    fs::hard_link(upper.join("large"), upper.join("also-large")).unwrap();
    symlink(long.repeat(3), upper.join("link")).unwrap();
    set_xattr(&upper.join("tiny"), "user.bytes", b"\0=\n\xff");
    fs::create_dir(upper.join("opaque")).unwrap();
    set_xattr(&upper.join("opaque"), "user.overlay.opaque", b"y");
    whiteout(&upper.join("removed"));
    let sparse = fs::File::create(upper.join("sparse")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    for place in [0u64, 1 << 20, 3 << 20] {
        sparse.write_all_at(&noise(place, 70_000), place).unwrap();
    }
    fs::File::create(upper.join("all-hole")).unwrap().set_len(1 << 20).unwrap();
    set_mtime(&upper.join("tiny"), -3, 5);
    set_mtime(&upper.join("large"), 1 << 34, 0);
    if literal {
        fs::write(upper.join(".wh.real"), b"x").unwrap();
        fs::create_dir(upper.join(".wh.dir")).unwrap();
        whiteout(&upper.join(".wh.dir/removed"));
        whiteout(&upper.join(".wh..opq"));
        whiteout(&upper.join(".wh.gone"));
    }
    rig.capture(&upper).checkpoint.id
}

#[test]
fn the_same_checkpoint_comes_back() {
    let rig = Rig::new();
    let id = varied(&rig, true);
    let archive = export(&rig, &id, Format::Own);
    let other = Rig::new();
    let imported = other.store.import(&archive[..], &options()).unwrap();
    assert_eq!((imported.id, imported.base.as_str(), imported.created()), (id, BASE, at(5)));
    assert_eq!(other.layer(&id), rig.layer(&id));
    assert_eq!(export(&other, &id, Format::Own), archive);
    // Compressed as well, and nothing is stored twice.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&archive).unwrap();
    assert_eq!(rig.store.import(Cursor::new(packed.finish().unwrap()), &options()).unwrap().id, id);
    let elsewhere = ImportOptions { base: Some("another".to_owned()), ..options() };
    assert!(matches!(rig.store.import(&archive[..], &elsewhere), Err(Error::Bases(..))));
}

#[test]
fn an_oci_layer_is_one() {
    let rig = Rig::new();
    let id = varied(&rig, false);
    let layer = export(&rig, &id, Format::OciLayer);
    assert!(matches!(rig.store.import(&layer[..], &options()), Err(Error::Archive(_))), "it names no base");
    assert_eq!(rig.store.import(&layer[..], &over_base()).unwrap().id, id);
    let other = Rig::new();
    let literal = varied(&other, true);
    assert!(matches!(other.store.export(&literal, Format::OciLayer, std::io::sink()), Err(Error::Inexpressible(_))));
}

/// GNU tar is an implementation that we did not write.
#[test]
fn gnu_tar_reads_and_writes_the_same() {
    let rig = Rig::new();
    let upper = rig.make("plain");
    fs::create_dir(upper.join("d")).unwrap();
    fs::write(upper.join("d/file"), noise(4, 100_000)).unwrap();
    fs::hard_link(upper.join("d/file"), upper.join("second")).unwrap();
    symlink("d/file", upper.join("link")).unwrap();
    let sparse = fs::File::create(upper.join("sparse")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    sparse.write_all_at(&noise(9, 70_000), 1 << 20).unwrap();
    let id = rig.capture(&upper).checkpoint.id;
    let tar = |args: &[&str], input: &[u8]| {
        let mut child = Command::new("tar").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let mut stdin = child.stdin.take().unwrap();
        let written = std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input));
            child.wait_with_output()
        });
        let output = written.unwrap();
        assert!(output.status.success());
        Some(output.stdout)
    };
    let unpacked = rig.make("unpacked");
    let into = unpacked.to_str().unwrap();
    let archive = export(&rig, &id, Format::OciLayer);
    if tar(&["-xpSf", "-", "-C", into], &archive).is_none() {
        eprintln!("not tried: there is no tar here");
        return;
    }
    assert_eq!(rig.capture(&unpacked).checkpoint.id, id);
    let from = upper.to_str().unwrap();
    let theirs = tar(&["--format=posix", "--sparse", "-cf", "-", "-C", from, "."], &[]).unwrap();
    assert_eq!(rig.store.import(&theirs[..], &over_base()).unwrap().id, id);
}

fn entry(kind: tar::EntryType, path: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    use tar::EntryType as E;
    let file = |path: &str| entry(E::Regular, path, "", b"data");
    let pax = |records: &str| entry(E::XHeader, "pax", "", records.as_bytes());
    let huge = {
        let mut bytes = entry(E::Regular, "huge", "", b"");
        let mut header = tar::Header::from_byte_slice(&bytes).clone();
        header.set_size(1 << 40);
        header.set_cksum();
        bytes.copy_from_slice(header.as_bytes());
        bytes
    };
    let long = "a/".repeat(49);
    let deep: String = "a/".repeat(5000);
    let deep = format!("{} path={deep}b\n", deep.len() + 13);
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("up", vec![file("../out")]),
        ("up inside", vec![file("a/../../out")]),
        ("absolute", vec![file("/etc/cron.d/x")]),
        ("absolute in pax", vec![pax("15 path=/etc/x\n"), file("x")]),
        ("through a link", vec![entry(E::Symlink, "link", "/etc", b""), file("link/passwd")]),
        ("link, then file", vec![entry(E::Symlink, "it", "/etc/passwd", b""), file("it")]),
        ("below a file", vec![file("it"), file("it/below")]),
        ("file, then directory", vec![file("it"), entry(E::Directory, "it", "", b"")]),
        ("twice", vec![file("it"), file("it")]),
        ("hard link out", vec![entry(E::Link, "it", "../etc/passwd", b"")]),
        ("hard link to absolute", vec![entry(E::Link, "it", "/etc/passwd", b"")]),
        ("hard link to nothing", vec![entry(E::Link, "it", "missing", b"")]),
        ("hard link to directory", vec![entry(E::Directory, "d", "", b""), entry(E::Link, "it", "d", b"")]),
        ("hard link through link", vec![entry(E::Symlink, "l", ".", b""), file("f"), entry(E::Link, "it", "l/f", b"")]),
        ("character device", vec![entry(E::Char, "null", "", b"")]),
        ("block device", vec![entry(E::Block, "disk", "", b"")]),
        ("whiteout of up", vec![file(".wh...")]),
        ("whiteout of here", vec![file(".wh..")]),
        ("whiteout of nothing", vec![entry(E::Regular, ".wh.", "", b"")]),
        ("whiteout of its own", vec![file("x"), entry(E::Regular, ".wh.x", "", b"")]),
        ("short", vec![file("x")[..700].to_vec()]),
        ("huge", vec![huge]),
        ("bad pax", vec![pax("99 path=x\n"), file("x")]),
        ("deep", vec![pax(&deep), file("x")]),
        (
            "sparse without map",
            vec![pax("22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.realsize=9\n"), file("x")],
        ),
        ("bad checksum", vec![vec![b'x'; 512]]),
        ("no archive", vec![b"hello".to_vec()]),
        ("nothing", vec![]),
    ];
    let rig = Rig::new();
    let outside = fs::read("/etc/passwd").unwrap_or_default();
    for (what, parts) in cases {
        let archive = parts.concat();
        let error = rig.store.import(&archive[..], &over_base()).expect_err(what);
        assert!(matches!(error, Error::Archive(_) | Error::Limit { .. }), "{what}: {error}");
        assert_eq!(rig.store.list().unwrap().len(), 0, "{what}");
        assert_eq!(fs::read_dir(rig.store.dir().join("tmp")).unwrap().count(), 0, "{what}");
        assert_eq!(fs::read_dir(rig.store.dir().join("packs")).unwrap().count(), 0, "{what}");
    }
    assert_eq!(fs::read("/etc/passwd").unwrap_or_default(), outside);
    let fits = [file(&format!("{long}x")), vec![0; 1024]].concat();
    rig.store.import(&fits[..], &over_base()).unwrap();
    // Limits.
    let many: Vec<u8> = (0..50).flat_map(|place| file(&format!("file-{place}"))).chain([0; 1024]).collect();
    let limited = |limits| rig.store.import(&many[..], &ImportOptions { limits, ..over_base() });
    let limits = ImportLimits::default();
    assert!(matches!(limited(ImportLimits { entries: 49, ..limits }), Err(Error::Limit { limit: 49, .. })));
    assert!(matches!(limited(ImportLimits { bytes: 20_000, ..limits }), Err(Error::Limit { limit: 20_000, .. })));
    limited(limits).unwrap();
    // A bomb: 100 MiB of zeros in 100 KiB.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_size(100 << 20);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    bomb.write_all(header.as_bytes()).unwrap();
    for _ in 0..100 {
        bomb.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    assert!(matches!(rig.store.import(&bomb[..], &over_base()), Err(Error::Limit { limit: 200, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mutation_of_an_archive_does_harm(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), mend: bool) {
        thread_local! {
            static ARCHIVE: (Rig, Vec<u8>) = {
                let rig = Rig::new();
                let upper = rig.make("upper");
                fs::create_dir(upper.join("d")).unwrap();
                fs::write(upper.join("d/file"), noise(1, 700)).unwrap();
                fs::hard_link(upper.join("d/file"), upper.join("second")).unwrap();
                whiteout(&upper.join("gone"));
                let sparse = fs::File::create(upper.join("sparse")).unwrap();
                sparse.set_len(1 << 16).unwrap();
                sparse.write_all_at(b"x", 1 << 15).unwrap();
                let id = rig.capture(&upper).checkpoint.id;
                let archive = export(&rig, &id, Format::Own);
                (rig, archive)
            };
        }
        ARCHIVE.with(|(rig, archive)| {
            let mut bad = archive.clone();
            for (place, byte) in edits {
                let place = place.index(bad.len());
                bad[place] = byte;
                if mend {
                    // With a checksum that fits, so that the fields themselves are read.
                    let block = place / 512 * 512;
                    let mut header = tar::Header::from_byte_slice(&bad[block..block + 512]).clone();
                    if header.as_ustar().is_some() {
                        header.set_cksum();
                        bad[block..block + 512].copy_from_slice(header.as_bytes());
                    }
                }
            }
            let limits = ImportLimits { bytes: 1 << 22, ..ImportLimits::default() };
            if let Ok(checkpoint) = rig.store.import(&bad[..], &ImportOptions { limits, ..over_base() }) {
                assert!(rig.store.verify().unwrap().faults.is_empty());
                rig.store.show(&checkpoint.id).unwrap();
            }
        });
    }
}
