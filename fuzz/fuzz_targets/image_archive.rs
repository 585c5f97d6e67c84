//! An image in an archive: an OCI layout or what `docker save` wrote, compressed or not. Asserts: no panic, and nothing outside
//! the directory for what is needed meanwhile changes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_fuzz::{Scene, plant, repair, seed};
use palisade_image::{Limits, fuzz};
use tar::EntryType::{Link, Regular, Symlink};

fuzz_target!(init: plant(&seeds()), |data: &[u8]| {
    let scene = Scene::new();
    let limits = Limits { layer_bytes: 1 << 20, image_bytes: 1 << 20, entries: 1000, ..Limits::default() };
    let archive = scene.inside().join("archive");
    std::fs::write(&archive, repair(data)).expect("a file can be written");
    let _ = fuzz::archive(&archive, &scene.scratch(), &limits);
    let _ = fuzz::layout(&archive, &scene.scratch(), &limits);
    scene.check();
});

fn seeds() -> Vec<Vec<u8>> {
    // The digest of `{}`.
    let name = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{name}","size":2,"annotations":{{"org.opencontainers.image.ref.name":"a"}}}}]}}"#
    );
    let blob = format!("blobs/sha256/{name}");
    let oci = seed::tar(&[
        (Regular, "oci-layout", "", br#"{"imageLayoutVersion":"1.0.0"}"#),
        (Regular, "index.json", "", index.as_bytes()),
        (Regular, &blob, "", b"{}"),
    ]);
    let docker = seed::tar(&[
        (
            Regular,
            "manifest.json",
            "",
            br#"[{"Config":"c.json","RepoTags":["a:b"],"Layers":["1/layer.tar","2/layer.tar"]}]"#,
        ),
        (Regular, "c.json", "", br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#),
        (Regular, "1/layer.tar", "", b"x"),
        (Symlink, "2/layer.tar", "../1/layer.tar", b""),
        (Link, "hard", "1/layer.tar", b""),
    ]);
    let loops = seed::tar(&[
        (Symlink, "manifest.json", "oci-layout", b""),
        (Symlink, "oci-layout", "manifest.json", b""),
        (Symlink, "index.json", "../../outside/canary", b""),
    ]);
    vec![seed::gzip(&oci), seed::gzip(&docker), oci, docker, loops]
}
