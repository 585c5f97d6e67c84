//! A skill's archive: zip, tar or tar.gz. Asserts: no panic, nothing outside the workspace changes, and nothing in it but the
//! skill's own directory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_fuzz::{Scene, contents, plant, repair, seed};

// The worker builds the cell into itself, and not for fuzzing: only its unpacker is taken.
#[path = "../../crates/worker/src/skills/unpack.rs"]
mod unpack;

fuzz_target!(init: plant(&seeds()), |data: &[u8]| {
    let scene = Scene::new();
    let workspace = scene.inside();
    let _ = unpack::unpack(&repair(data).into(), &workspace, "s", &[]);
    scene.check();
    for (path, what) in contents(&workspace) {
        let above = ["", "skills"].iter().any(|above| path.as_os_str() == *above);
        assert!(above || path.starts_with("skills/s"), "{path:?}");
        assert!(what.starts_with("40") || what.starts_with("100"), "{path:?} is {what}");
    }
});

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = seed::archives();
    seeds.push(seed::zip(&[("s/", b""), ("s/SKILL.md", b"# s"), ("s/bin/run", &[7; 300])]));
    seeds.push(seed::zip(&[("../outside/canary", b"dead"), ("/a", b""), ("a/../b", b"x"), ("a\\b", b"x")]));
    seeds
}
