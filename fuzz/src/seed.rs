//! What the corpora begin with.

use std::io::Write as _;
use std::path::Path;

use tar::EntryType;

/// Writes seeds to the first directory that libFuzzer was told: its corpus.
pub fn plant(seeds: &[Vec<u8>]) {
    let Some(corpus) = std::env::args().skip(1).find(|argument| Path::new(argument).is_dir()) else { return };
    for (number, seed) in seeds.iter().enumerate() {
        // A corpus that cannot be written starts empty.
        let _ = std::fs::write(Path::new(&corpus).join(format!("seed-{number}")), seed);
    }
}

/// One entry of a tar: kind, path, target of a link, content.
pub type Entry<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

/// A tar with any paths, also those that a well-meaning writer refuses.
pub fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, path, target, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_size(content.len() as u64);
        header.set_mtime(1_700_000_000);
        let bytes = header.as_mut_bytes();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        bytes[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, *content).expect("memory takes it");
    }
    builder.into_inner().expect("memory takes it")
}

/// The records of an extended header, each behind its length.
pub fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        // The digits of the length count, too.
        let length = (rest + 1..).find(|length| length.to_string().len() + rest == *length).unwrap_or_default();
        bytes.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
    }
    bytes
}

/// Compresses.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// A zip.
pub fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in entries {
        let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
        if name.ends_with('/') {
            writer.add_directory(*name, options).expect("memory takes it");
        } else {
            writer.start_file(*name, options).expect("memory takes it");
            writer.write_all(content).expect("memory takes it");
        }
    }
    writer.finish().expect("memory takes it").into_inner()
}

/// Archives with all that files can be, and with all that leads out of a directory.
pub fn archives() -> Vec<Vec<u8>> {
    use EntryType::{Char, Directory, GNULongLink, GNULongName, Link, Regular, Symlink, XGlobalHeader, XHeader};
    let plain = tar(&[
        (Directory, "a/", "", b""),
        (Regular, "a/f", "", b"content"),
        (Link, "a/g", "a/f", b""),
        (Symlink, "a/l", "f", b""),
        (Regular, "b/c/d", "", &[7; 700]),
    ]);
    let global = pax(&[("PALISADE.base", "base")]);
    let attributes = pax(&[("SCHILY.xattr.user.x", "y"), ("mtime", "1700000000.5"), ("path", "long/name/x")]);
    let holes = pax(&[
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.realsize", "9000"),
        ("GNU.sparse.name", "s"),
    ]);
    let mut map = b"1\n8192\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"end");
    let extended = tar(&[
        (XGlobalHeader, "pax_global_header", "", &global),
        (XHeader, "x", "", &attributes),
        (Regular, "f", "", b"x"),
        (XHeader, "x", "", &holes),
        (Regular, "GNUSparseFile.0/s", "", &map),
        (GNULongName, "././@LongLink", "", b"very/long/name\0"),
        (GNULongLink, "././@LongLink", "", b"very/long/target\0"),
        (Symlink, "short", "t", b""),
    ]);
    let whiteouts = tar(&[
        (Directory, "d/", "", b""),
        (Regular, "d/f", "", b"1"),
        (Regular, "d/.wh.f", "", b""),
        (Regular, "d/.wh..wh..opq", "", b""),
        (Char, "d/n", "", b""),
        (Regular, "d", "", b"replaced"),
    ]);
    let hostile = tar(&[
        (Symlink, "out", "../outside", b""),
        (Regular, "out/canary", "", b"dead"),
        (Link, "hard", "../outside/canary", b""),
        (Link, "hard", "out/canary", b""),
        (Directory, "out/directory/", "", b""),
        (Regular, "../outside/canary", "", b"dead"),
        (Regular, "out/.wh.canary", "", b""),
        (Symlink, "out", "/", b""),
    ]);
    vec![gzip(&plain), gzip(&hostile), plain, extended, whiteouts, hostile]
}
