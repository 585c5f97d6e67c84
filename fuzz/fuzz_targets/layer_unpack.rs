//! A layer of an image, compressed or not. Asserts: no panic, and nothing outside the directory changes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_fuzz::{Scene, plant, repair, seed};
use palisade_image::{Limits, fuzz};

fuzz_target!(init: plant(&seed::archives()), |data: &[u8]| {
    let scene = Scene::new();
    let limits = Limits { layer_bytes: 1 << 20, image_bytes: 1 << 20, entries: 1000, ..Limits::default() };
    let _ = fuzz::layer(&repair(data), &scene.inside(), &scene.scratch(), &limits);
    scene.check();
});
