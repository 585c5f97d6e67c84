//! What a checkpoint costs: 500 edits and 100 removals, 6 MB, in a workspace of 20,000 files and 233 MB. Only the session's own
//! layer matters, so the base is not even made. `cargo bench -p palisade-checkpoint`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use divan::Bencher;
use palisade_checkpoint::{CaptureOptions, Id, Ownership, Retention, Store};
use rustix::fs::{CWD, FileType, Mode};

const EDITS: u64 = 500;
const REMOVALS: u64 = 100;
const EDIT: usize = 12_000;

fn main() {
    divan::main();
}

/// Something like source code: it compresses to about a third.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let words = [
        "let ", "value", " = ", "self.", "name", "(", ")", ";\n", "    ", "if ", "return ", "Some", "data", "{\n",
        "}\n",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.extend_from_slice(words[(state >> 40) as usize % words.len()].as_bytes());
        if state.is_multiple_of(11) {
            text.extend_from_slice(&state.to_le_bytes());
        }
    }
    text.truncate(len);
    text
}

fn upper(root: &Path, salt: u64) {
    for place in 0..EDITS {
        let dir = root.join(format!("src/module-{}/part-{}", place % 20, place % 60));
        fs::create_dir_all(&dir).expect("the disk has room");
        fs::write(dir.join(format!("file-{place}.rs")), text(salt + place, EDIT)).expect("the disk has room");
    }
    for place in 0..REMOVALS {
        let path = root.join(format!("src/module-{}/removed-{place}.rs", place % 20));
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).expect("whiteouts can be made");
    }
}

fn ownership() -> Ownership {
    let root = rustix::process::geteuid().is_root();
    if root { Ownership::Kept } else { Ownership::Flat { uid: 1000, gid: 1000 } }
}

fn options() -> CaptureOptions {
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    CaptureOptions { ownership: ownership(), ..CaptureOptions::new("base", created) }
}

struct Rig {
    dir: tempfile::TempDir,
    upper: PathBuf,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().expect("a folder can be made");
        let upper = dir.path().join("upper");
        fs::create_dir(&upper).expect("a folder can be made");
        self::upper(&upper, 1);
        Rig { dir, upper }
    }

    fn store(&self) -> Store {
        Store::open(self.dir.path().join("store")).expect("a store can be made")
    }

    fn captured(&self) -> (Store, Id) {
        let store = self.store();
        let id = store.capture(&self.upper, &options()).expect("it can be captured").checkpoint.id;
        (store, id)
    }
}

/// The first capture: all 600 changes are new.
#[divan::bench(sample_count = 30, sample_size = 1)]
fn capture(bencher: Bencher<'_, '_>) {
    let rig = Rig::new();
    bencher
        .with_inputs(|| {
            let _ = fs::remove_dir_all(rig.dir.path().join("store"));
            rig.store()
        })
        .bench_local_values(|store| store.capture(&rig.upper, &options()).expect("it can be captured"));
}

/// The next one, with ten files changed.
#[divan::bench(sample_count = 30, sample_size = 1)]
fn capture_again(bencher: Bencher<'_, '_>) {
    let rig = Rig::new();
    let store = rig.store();
    let options = CaptureOptions { cache: Some(rig.dir.path().join("cache")), ..options() };
    store.capture(&rig.upper, &options).expect("it can be captured");
    let mut salt = 1000;
    bencher
        .with_inputs(|| {
            for place in 0..10 {
                salt += 1;
                let path = rig.upper.join(format!("src/module-{place}/changed.rs"));
                fs::write(path, text(salt, EDIT)).expect("the disk has room");
            }
        })
        .bench_local_values(|()| store.capture(&rig.upper, &options).expect("it can be captured"));
}

/// The first restore: the layer is written.
#[divan::bench(sample_count = 30, sample_size = 1)]
fn materialise(bencher: Bencher<'_, '_>) {
    let rig = Rig::new();
    let (store, id) = rig.captured();
    bencher
        .with_inputs(|| {
            let _ = fs::remove_dir_all(rig.dir.path().join("store/layers").join(id.to_string()));
        })
        .bench_local_values(|()| store.materialise(&id, ownership()).expect("it can be restored"));
}

/// Ten sessions from one checkpoint, its layer not yet there; their mounts are the sandbox's.
#[divan::bench(sample_count = 30, sample_size = 1)]
fn fork_10(bencher: Bencher<'_, '_>) {
    let rig = Rig::new();
    let (store, id) = rig.captured();
    let sessions = rig.dir.path().join("sessions");
    bencher
        .with_inputs(|| {
            let _ = fs::remove_dir_all(rig.dir.path().join("store/layers").join(id.to_string()));
            let _ = fs::remove_dir_all(&sessions);
        })
        .bench_local_values(|()| {
            let fork = |place: usize| {
                let layer = store.materialise(&id, ownership()).expect("it can be restored");
                let session = sessions.join(place.to_string());
                fs::create_dir_all(session.join("upper")).expect("a folder can be made");
                fs::create_dir_all(session.join("work")).expect("a folder can be made");
                layer
            };
            (0..10).map(fork).collect::<Vec<_>>()
        });
}

/// Half of twenty checkpoints go.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn prune(bencher: Bencher<'_, '_>) {
    let rig = Rig::new();
    bencher
        .with_inputs(|| {
            let _ = fs::remove_dir_all(rig.dir.path().join("store"));
            let store = rig.store();
            for place in 0..20 {
                for file in 0..20 {
                    fs::write(rig.upper.join(format!("src/module-{file}/changed.rs")), text(place * 100 + file, EDIT))
                        .expect("the disk has room");
                }
                store.capture(&rig.upper, &options()).expect("it can be captured");
            }
            store
        })
        .bench_local_values(|store| {
            store.prune(&Retention { last: 10, ..Retention::default() }).expect("it can be pruned")
        });
}
