//! An archive that is to become a checkpoint. Asserts: no panic, nothing outside the store changes, and what is imported is whole
//! and comes back under the same name.
#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use palisade_checkpoint::{Format, ImportLimits, ImportOptions, Ownership, Store};
use palisade_fuzz::{Scene, plant, repair, seed};

fuzz_target!(init: plant(&seed::archives()), |data: &[u8]| {
    let scene = Scene::new();
    let store = Store::open(scene.inside().join("store")).expect("a store can be made");
    let options = ImportOptions {
        base: None,
        created: SystemTime::UNIX_EPOCH,
        label: None,
        limits: ImportLimits { entries: 1000, bytes: 1 << 20, ratio: 200 },
    };
    let over = |base: &str| ImportOptions { base: Some(base.to_owned()), ..options.clone() };
    let bytes = repair(data);
    let imported = match store.import(&bytes[..], &options) {
        Err(_) => store.import(&bytes[..], &over("base")),
        done => done,
    };
    if let Ok(found) = &imported {
        let verified = store.verify().expect("the store can be read");
        assert!(verified.faults.is_empty(), "{:?}", verified.faults);
        // A name that this file system does not take is only an error.
        let _ = store.materialise(&found.id, Ownership::Flat { uid: 1000, gid: 1000 });
        let mut archive = Vec::new();
        store.export(&found.id, Format::Own, &mut archive).expect("what is whole can be exported");
        let again = store.import(&archive[..], &ImportOptions { limits: ImportLimits::default(), ..options });
        assert_eq!(again.expect("what was exported can be imported").id, found.id);
    } else {
        assert_eq!(store.list().expect("the store can be read"), []);
    }
    scene.check();
});
