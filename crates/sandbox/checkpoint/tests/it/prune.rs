//! Removing by policy.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use palisade_checkpoint::{CaptureOptions, Error, Id, Retention, Store};

use crate::rig::{Rig, assert_same, at, options, ownership, read};
use crate::round_trip::noise;

fn checkpoints(rig: &Rig, count: u64) -> Vec<Id> {
    let upper = rig.make("upper");
    fs::write(upper.join("common"), noise(1000, 400_000)).unwrap();
    let mut ids = Vec::new();
    for place in 0..count {
        fs::write(upper.join("file"), noise(place, 200_000)).unwrap();
        let options = CaptureOptions { created: at(place * 10), ..options() };
        ids.push(rig.store.capture(&upper, &options).unwrap().checkpoint.id);
    }
    ids
}

fn left(store: &Store) -> BTreeSet<Id> {
    store.list().unwrap().into_iter().map(|it| it.id).collect()
}

fn size(store: &Store) -> u64 {
    fs::read_dir(store.dir().join("packs")).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn each_rule_keeps_what_it_says() {
    let rig = Rig::new();
    let ids = checkpoints(&rig, 10);
    rig.store.label(&ids[1], Some("kept")).unwrap();
    let held = rig.store.materialise(&ids[3], ownership()).unwrap();
    drop(rig.store.materialise(&ids[4], ownership()).unwrap());
    let keep = Retention {
        last: 2,
        labelled: true,
        younger: Some(Duration::from_secs(31)),
        now: Some(at(100)),
        live: BTreeSet::from([ids[0]]),
    };
    let before = size(&rig.store);
    let pruned = rig.store.prune(&keep).unwrap();
    // The last two, the one with a label, those of the last 31 seconds, the live one, and the one whose layer is held.
    let expected = BTreeSet::from([ids[9], ids[8], ids[1], ids[7], ids[0], ids[3]]);
    assert_eq!(left(&rig.store), expected);
    assert_eq!((pruned.checkpoints.len(), pruned.layers), (4, 1));
    assert_eq!(before - size(&rig.store), pruned.bytes);
    assert!(pruned.bytes > 3 * 200_000, "{pruned:?}");
    assert!(held.path().join("file").exists());
    assert!(matches!(rig.store.materialise(&ids[4], ownership()), Err(Error::Unknown(_))));
    let verified = rig.store.verify().unwrap();
    assert_eq!((verified.checkpoints, verified.faults.len()), (6, 0));
    for id in expected {
        rig.store.materialise(&id, ownership()).unwrap();
    }
    // Another process sees it too.
    assert_eq!(Store::open(rig.store.dir()).unwrap().verify().unwrap().checkpoints, 6);
    drop(held);
    rig.store.prune(&Retention::default()).unwrap();
    assert_eq!((left(&rig.store).len(), size(&rig.store)), (0, 0));
}

#[test]
fn many_small_packs_become_few() {
    let rig = Rig::new();
    let upper = rig.make("upper");
    for place in 0..40u8 {
        fs::write(upper.join("file"), noise(u64::from(place), 1000)).unwrap();
        rig.capture(&upper);
    }
    let packs = || fs::read_dir(rig.store.dir().join("packs")).unwrap().count();
    assert_eq!(packs(), 40);
    rig.store.prune(&Retention { last: 100, ..Retention::default() }).unwrap();
    assert_eq!((packs(), left(&rig.store).len()), (1, 40));
    assert!(rig.store.verify().unwrap().faults.is_empty());
}

#[test]
fn what_cannot_be_read_stops_it_before_anything_is_removed() {
    let rig = Rig::new();
    let ids = checkpoints(&rig, 3);
    for pack in fs::read_dir(rig.store.dir().join("packs")).unwrap() {
        let pack = pack.unwrap().path();
        let mut bytes = fs::read(&pack).unwrap();
        // The manifest is the last thing before the footer, and the end of the file says where that begins.
        let trailer = bytes.len() - 24;
        let footer = u64::from_le_bytes(bytes[trailer..trailer + 8].try_into().unwrap()) as usize;
        bytes[footer - 5] ^= 1;
        fs::write(&pack, &bytes).unwrap();
    }
    let store = Store::open(rig.store.dir()).unwrap();
    let error = store.prune(&Retention { last: 1, ..Retention::default() }).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert_eq!(left(&store), ids.into_iter().collect());
}

#[test]
fn two_at_once_do_not_disturb_each_other() {
    let rig = Rig::new();
    let dir = rig.store.dir().to_owned();
    let upper = |place: u64| {
        let upper = rig.make(&format!("upper-{place}"));
        fs::write(upper.join("own"), noise(place, 150_000)).unwrap();
        fs::write(upper.join("common"), noise(99, 300_000)).unwrap();
        upper
    };
    let uppers: Vec<_> = (0..4).map(upper).collect();
    std::thread::scope(|scope| {
        for upper in &uppers {
            let dir = &dir;
            scope.spawn(move || {
                // As a process of its own would.
                let store = Store::open(dir).unwrap();
                for _ in 0..8 {
                    let id = store.capture(upper, &options()).unwrap().checkpoint.id;
                    match store.materialise(&id, ownership()) {
                        Ok(layer) => assert_same(&read(layer.path()), &read(upper)),
                        Err(Error::Unknown(_)) => {}
                        Err(why) => panic!("{why}"),
                    }
                }
            });
        }
        scope.spawn(|| {
            let store = Store::open(&dir).unwrap();
            for _ in 0..20 {
                store.prune(&Retention { last: 1, ..Retention::default() }).unwrap();
            }
        });
    });
    let store = Store::open(&dir).unwrap();
    assert!(store.verify().unwrap().faults.is_empty());
    assert_eq!(fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
}
