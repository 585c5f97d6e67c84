//! A stream of files that crosses the wall of a sandbox. Asserts: no panic, nothing outside the directory changes, and what is
//! unpacked can be packed and unpacked again.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use palisade_cell::archive::{pack, unpack};
use palisade_fuzz::{Scene, plant, repair, seed};

fuzz_target!(init: plant(&seed::archives()), |data: &[u8]| {
    let scene = Scene::new();
    let bytes = repair(data);
    // Into a directory, and under another name.
    let whole = unpack(&bytes[..], &scene.inside());
    let _ = unpack(&bytes[..], &scene.scratch().join("renamed"));
    scene.check();
    if whole.is_ok() {
        let mut again = Vec::new();
        // A directory that its owner may not read is only an error.
        if pack(&scene.inside(), &mut again).is_ok() {
            let second = scene.scratch().join("second");
            let _ = fs::create_dir(&second);
            unpack(&again[..], &second).expect("what was packed can be unpacked");
            scene.check();
        }
    }
});
