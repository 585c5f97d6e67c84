//! A store that somebody made: its packs and records are what their names say, and its nodes are anything. The input is nodes, each
//! behind its length (two bytes, little-endian); 32 bytes that begin with `NODE` and a number stand for the name of an earlier one.
//! Asserts: no panic, nothing outside the store changes, and what is verified can be materialised, and nothing else.
#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use palisade_checkpoint::{Error, Format, Id, Ownership, Store};
use palisade_fuzz::{Scene, plant};

const DIRECTORY: &[u8] = b"palisade directory 1\n";
const MANIFEST: &[u8] = b"palisade manifest 1\n";
const MARK: &[u8] = b"NODE";
const FLAT: Ownership = Ownership::Flat { uid: 1000, gid: 1000 };
const MOST_NODES: usize = 64;
const MOST_BYTES: usize = 1 << 20;

fuzz_target!(init: plant(&seeds()), |data: &[u8]| {
    let scene = Scene::new();
    let dir = scene.inside();
    let Some(id) = forge(&dir, data) else { return };
    let store = Store::open(&dir).expect("its frame is whole");
    let verified = store.verify().expect("its packs can be read");
    assert_eq!(store.list().expect("its record is whole").len(), 1);
    match store.materialise(&id, FLAT) {
        // A name or a size that this file system does not take, a time that it cannot keep.
        Err(Error::Io { .. } | Error::Full { .. }) => {}
        made => assert_eq!(made.is_ok(), verified.checkpoints == 1, "{made:?}, {:?}", verified.faults),
    }
    let mut archive = Vec::new();
    let _ = store.export(&id, Format::Own, &mut Limited(&mut archive));
    let _ = store.export(&id, Format::OciLayer, &mut Limited(&mut archive));
    scene.check();
});

/// One chunk may be named any number of times.
struct Limited<'a>(&'a mut Vec<u8>);

impl std::io::Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() > 1 << 20 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Makes a store of the nodes; the last one is the root of its checkpoint.
fn forge(dir: &Path, mut data: &[u8]) -> Option<Id> {
    for sub in ["packs", "checkpoints", "layers", "tmp"] {
        fs::create_dir(dir.join(sub)).expect("a directory can be made");
    }
    let mut chunks: Vec<Vec<u8>> = Vec::new();
    let mut names: Vec<[u8; 32]> = Vec::new();
    // How much each stands for, with all that it names.
    let mut sizes: Vec<usize> = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<2>()
        && chunks.len() < MOST_NODES
    {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let mut node = rest[..length].to_vec();
        data = &rest[length..];
        let mut size = node.len();
        let mut at = 0;
        while at + 32 <= node.len() && !names.is_empty() {
            if node[at..].starts_with(MARK) {
                let which = usize::from(node[at + MARK.len()]) % names.len();
                node[at..at + 32].copy_from_slice(&names[which]);
                size += sizes[which];
                at += 32;
            } else {
                at += 1;
            }
        }
        let name = *blake3::hash(&node).as_bytes();
        if !names.contains(&name) {
            names.push(name);
            chunks.push(node);
            sizes.push(size);
        }
    }
    // That few nodes cannot stand for more than memory holds has tests of its own; here it would only take time.
    if sizes.last().is_some_and(|size| *size > MOST_BYTES) {
        return None;
    }
    let mut manifest = MANIFEST.to_vec();
    manifest.extend_from_slice(b"\x04base");
    manifest.extend_from_slice(names.last().unwrap_or(&[0; 32]));
    let id = blake3::hash(&manifest);
    names.push(*id.as_bytes());
    chunks.push(manifest);

    let (mut pack, mut footer) = (b"plsdpak1".to_vec(), Vec::new());
    for (chunk, name) in chunks.iter().zip(&names) {
        let length = u32::try_from(chunk.len()).expect("it is short").to_le_bytes();
        footer.extend_from_slice(name);
        footer.extend_from_slice(&(pack.len() as u64).to_le_bytes());
        footer.extend_from_slice(&length);
        footer.extend_from_slice(&length);
        pack.extend_from_slice(chunk);
    }
    let (offset, count) = (pack.len() as u64, chunks.len() as u64);
    pack.extend_from_slice(&footer);
    pack.extend_from_slice(&offset.to_le_bytes());
    pack.extend_from_slice(&count.to_le_bytes());
    pack.extend_from_slice(b"plsdpak1");
    let counts = r#"{"files":0,"directories":0,"symlinks":0,"whiteouts":0}"#;
    let record = format!(
        r#"{{"id":"{id}","base":"base","parent":null,"created_ms":1,"label":null,"counts":{counts},"bytes":0}}"#
    );
    let check = blake3::hash(record.as_bytes());
    for (name, bytes) in [
        (format!("packs/{}", blake3::hash(&footer)), pack),
        (format!("checkpoints/{id}.json"), format!("{record}\n{check}\n").into_bytes()),
        ("format".to_owned(), b"palisade checkpoints 1\n".to_vec()),
    ] {
        fs::write(dir.join(name), bytes).expect("a file can be written");
    }
    Some(id.to_hex().as_str().parse().expect("it is a name"))
}

fn mark(number: u8) -> Vec<u8> {
    let mut mark = MARK.to_vec();
    mark.push(number);
    mark.resize(32, b'.');
    mark
}

fn text(bytes: &[u8]) -> Vec<u8> {
    let mut text = vec![u8::try_from(bytes.len()).expect("it is short")];
    text.extend_from_slice(bytes);
    text
}

/// Mode 0755 or the like, root, a time, no attributes.
fn meta() -> Vec<u8> {
    let mut meta = vec![0xed, 0x03, 0, 0];
    meta.extend_from_slice(&1_700_000_000i64.to_le_bytes());
    meta.extend_from_slice(&5u32.to_le_bytes());
    meta.push(0);
    meta
}

fn directory(entries: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    let mut node = DIRECTORY.to_vec();
    node.extend(meta());
    node.push(0);
    node.push(u8::try_from(entries.len()).expect("they are few"));
    for (name, entry) in entries {
        node.extend(text(name));
        node.extend_from_slice(entry);
    }
    node
}

fn seeds() -> Vec<Vec<u8>> {
    let child = |number| [vec![1], mark(number)].concat();
    let small = |link: u8| [vec![2], meta(), vec![link, 0], text(b"small")].concat();
    let large =
        |number| [vec![2], meta(), vec![0, 1, 2, 1, 0xac, 0x02], mark(number), vec![0, 0x80, 0x80, 0x40]].concat();
    let link = |target: &[u8]| [vec![3], meta(), text(target)].concat();
    let stores = [
        vec![directory(&[])],
        vec![directory(&[(b"f", small(0)), (b"w", vec![4])])],
        vec![
            vec![7; 300],
            directory(&[(b"a", small(1)), (b"b", small(1)), (b"large", large(0))]),
            directory(&[(b"d", child(1)), (b"l", link(b"../../../outside"))]),
        ],
        vec![
            directory(&[]),
            directory(&[(b"a", child(0)), (b"b", child(0))]),
            directory(&[(b"a", child(1)), (b"b", child(1))]),
        ],
        vec![directory(&[(b"l", link(b"/"))]), directory(&[(b"..", child(0)), (b"a/b", small(0))])],
        vec![vec![8; 300], directory(&[(b"f", large(0)), (b"g", large(0))])],
    ];
    let framed = |node: &Vec<u8>| [&u16::try_from(node.len()).expect("it is short").to_le_bytes()[..], node].concat();
    stores.iter().map(|nodes| nodes.iter().flat_map(framed).collect()).collect()
}
