//! A store whose files were changed. The input is a list of changes: a file, what to do to it, where, and a byte. Asserts: no
//! panic, nothing outside the store changes, and a checkpoint comes back as it was or not at all.
#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use palisade_checkpoint::{CaptureOptions, Format, Id, Ownership, Store};
use palisade_fuzz::{Scene, contents, plant};

const FLAT: Ownership = Ownership::Flat { uid: 1000, gid: 1000 };
/// More than this, and the store writes its index.
const CHECKPOINTS: usize = 18;

/// A whole store, and what its newest checkpoint holds.
struct Good {
    files: Vec<(PathBuf, Vec<u8>)>,
    id: Id,
    layer: BTreeMap<PathBuf, String>,
}

fuzz_target!(init: plant(&seeds()), |data: &[u8]| {
    thread_local! {
        static GOOD: Good = good();
    }
    GOOD.with(|good| {
        let scene = Scene::new();
        let dir = scene.inside();
        write(&dir, &changed(&good.files, data));
        read(&dir, good);
        scene.check();
    });
});

fn read(dir: &Path, good: &Good) {
    let Ok(store) = Store::open(dir) else { return };
    let _ = store.list();
    let _ = store.find_named("label");
    let made = store.materialise(&good.id, FLAT);
    let whole = made.as_ref().is_ok_and(|layer| contents(layer.path()) == good.layer);
    assert!(made.is_err() || whole, "a checkpoint came back as another");
    let mut archive = Vec::new();
    let _ = store.export(&good.id, Format::Own, &mut archive);
    if let Ok(verified) = store.verify()
        && verified.faults.is_empty()
        && store.show(&good.id).is_ok()
    {
        assert!(whole, "what cannot be read was verified: {made:?}");
    }
}

fn good() -> Good {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("d/e")).expect("a directory can be made");
    fs::write(upper.join("d/small"), "small").expect("a file can be written");
    std::os::unix::fs::symlink("../small", upper.join("d/e/link")).expect("a link can be made");
    fs::hard_link(upper.join("d/small"), upper.join("again")).expect("a link can be made");
    let store = Store::open(dir.path().join("store")).expect("a store can be made");
    let options = CaptureOptions { ownership: FLAT, ..CaptureOptions::new("base", SystemTime::UNIX_EPOCH) };
    let mut last = None;
    for number in 0..CHECKPOINTS {
        fs::write(upper.join("d/large"), format!("{number} ").repeat(9000)).expect("a file can be written");
        let captured = store.capture(&upper, &options).expect("what was just made can be captured");
        last = Some(captured.checkpoint.id);
    }
    let id = last.expect("there is one");
    store.label(&id, Some("label")).expect("there is one");
    drop(store);
    // Writes the index.
    let store = Store::open(dir.path().join("store")).expect("the store can be read");
    let layer = contents(store.materialise(&id, FLAT).expect("the store is whole").path());
    let mut files = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        for entry in fs::read_dir(store.dir().join(&path)).expect("it is there").flatten() {
            let path = path.join(entry.file_name());
            let kept = !path.starts_with("layers") && !path.starts_with("tmp");
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && kept => waiting.push(path),
                Ok(kind) if kind.is_file() && kept => {
                    files.push((path.clone(), fs::read(store.dir().join(path)).expect("it is there")));
                }
                _ => {}
            }
        }
    }
    assert!(files.iter().any(|(path, _)| path == Path::new("index")));
    files.sort();
    Good { files, id, layer }
}

fn write(dir: &Path, files: &[(PathBuf, Vec<u8>)]) {
    for sub in ["packs", "checkpoints", "layers", "tmp"] {
        fs::create_dir(dir.join(sub)).expect("a directory can be made");
    }
    for (path, bytes) in files {
        fs::write(dir.join(path), bytes).expect("a file can be written");
    }
}

fn changed(good: &[(PathBuf, Vec<u8>)], data: &[u8]) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = good.to_vec();
    for change in data.chunks_exact(6).take(32) {
        let [which, what, place @ .., value] = change else { continue };
        let count = files.len();
        let number = place.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
        let (path, bytes) = &mut files[usize::from(*which) % count];
        let at = number % bytes.len().max(1);
        match what % 8 {
            0 => bytes.truncate(at),
            1 => bytes.insert(at.min(bytes.len()), *value),
            2 => bytes.extend(std::iter::repeat_n(*value, number % 4096)),
            // The check at the end is made to fit: what is before it must then be held against the packs.
            3 if path == Path::new("index") && bytes.len() > 32 => {
                let end = bytes.len() - 32;
                bytes[at % end] = *value;
                let check = *blake3::hash(&bytes[..end]).as_bytes();
                bytes[end..].copy_from_slice(&check);
            }
            3 if path.starts_with("checkpoints") => {
                let text = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
                bytes.truncate(text);
                if text > 0 {
                    bytes[at % text] = *value;
                }
                let check = blake3::hash(bytes).to_hex();
                bytes.extend_from_slice(format!("\n{check}\n").as_bytes());
            }
            // Another file's bytes under this one's name.
            4 => {
                let other = files[usize::from(*value) % count].1.clone();
                files[usize::from(*which) % count].1 = other;
            }
            _ if bytes.is_empty() => {}
            // The end is where a pack says what is in it.
            5 => {
                let end = bytes.len() - 1 - at % bytes.len().min(96);
                bytes[end] = *value;
            }
            6 => bytes[at] ^= 1 << (value % 8),
            _ => bytes[at] = *value,
        }
    }
    files
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![Vec::new()];
    for which in 0..8 {
        for what in 0..8 {
            seeds.push(vec![which * 5, what, 0, 1, 2, 3]);
        }
    }
    seeds
}
