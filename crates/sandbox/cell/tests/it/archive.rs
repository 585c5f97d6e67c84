//! Archives that were changed on the way or made to do harm.

use std::fs;
use std::path::Path;

use palisade_cell::archive::{Error, pack, unpack};
use tar::{EntryType, Header};

use crate::chance::Chance;

fn header(kind: EntryType, path: &str, target: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size);
    let bytes = header.as_mut_bytes();
    bytes[..path.len()].copy_from_slice(path.as_bytes());
    bytes[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    header
}

fn seed() -> Vec<u8> {
    use EntryType::{Directory, Link, Regular, Symlink};
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, path, target, content) in [
        (Directory, "a/", "", &b""[..]),
        (Regular, "a/f", "", b"content"),
        (Link, "a/g", "a/f", b""),
        (Symlink, "a/l", "../../outside", b""),
        (Regular, "a/l", "", b"replaced"),
        (Regular, "b/c/d", "", &[7; 600]),
    ] {
        builder.append(&header(kind, path, target, content.len() as u64), content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Unpacks beside a canary, which must stay alone and alive.
fn beside(bytes: &[u8]) -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    let outside = dir.path().join("outside");
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "alive").unwrap();
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let done = unpack(bytes, &inside);
    assert_eq!(names(dir.path()), ["inside", "outside"]);
    assert_eq!(names(&outside), ["canary"]);
    assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "alive");
    done.map(drop)
}

#[test]
fn changed_archives_stay_inside() {
    let seed = seed();
    beside(&seed).unwrap();
    let mut chance = Chance::new(2);
    let mut whole = 0;
    for _ in 0..150 {
        let mut bytes = chance.change(&seed);
        // Most changes of headers would only break their checksums.
        for block in bytes.chunks_exact_mut(512).filter(|it| &it[257..262] == b"ustar") {
            let mut header = Header::from_byte_slice(block).clone();
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        whole += usize::from(beside(&bytes).is_ok());
    }
    assert!(whole > 10, "{whole}");
}

#[test]
fn a_few_bytes_do_not_become_many() {
    // A name without end would be read into memory.
    let name = header(EntryType::GNULongName, "././@LongLink", "", 1 << 40);
    let endless = std::io::Read::chain(&name.as_bytes()[..], std::io::repeat(b'n'));
    let dir = tempfile::tempdir().unwrap();
    let refused = unpack(endless, dir.path()).unwrap_err();
    assert!(refused.to_string().contains("headers of one entry are larger"), "{refused}");
    // A hole of any size would be written to the disk.
    let mut sparse = header(EntryType::GNUSparse, "holes", "", 0);
    let gnu = sparse.as_gnu_mut().unwrap();
    gnu.realsize.copy_from_slice(b"77777777777\0");
    gnu.sparse[0].offset.copy_from_slice(b"77777777777\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
    sparse.set_cksum();
    let mut bytes = sparse.as_bytes().to_vec();
    bytes.extend_from_slice(&[0; 1024]);
    let refused = unpack(&bytes[..], dir.path()).unwrap_err();
    assert!(matches!(refused, Error::Entry { .. }), "{refused}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_is_packed_can_be_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let top = place("top");
    // With its own name as many as an archive may have, and a file below that.
    let mut deepest = top.clone();
    deepest.extend(std::iter::repeat_n("d", 255));
    fs::create_dir_all(&deepest).unwrap();
    let mut archive = Vec::new();
    pack(&top, &mut archive).unwrap();
    unpack(&archive[..], &place("to")).unwrap();
    fs::write(deepest.join("f"), "f").unwrap();
    let refused = pack(&top, Vec::new()).unwrap_err();
    assert!(refused.to_string().contains("deep"), "{refused}");
}
