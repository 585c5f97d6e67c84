//! An image comes in, is listed, shown, and goes again.

use palisade_image::Digest;
use serde_json::json;

use crate::rig::Rig;

/// Writes a layout with one image of one file, as a builder would.
fn layout(rig: &Rig) -> String {
    let dir = rig.path("layout");
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest = Digest::of(bytes);
        std::fs::write(dir.join("blobs").join(digest.to_string().replace(':', "/")), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": bytes.len()})
    };
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(2);
    archive.append_data(&mut header, "etc/hello", &b"hi"[..]).unwrap();
    let layer = archive.into_inner().unwrap();
    let config = json!({
        "os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}, "config": {"Cmd": ["sh"]},
    });
    let manifest = json!({
        "schemaVersion": 2, "config": blob(config.to_string().as_bytes(), "config.v1+json"),
        "layers": [blob(&layer, "layer.v1.tar")],
    });
    let index = json!({"schemaVersion": 2, "manifests": [blob(manifest.to_string().as_bytes(), "manifest.v1+json")]});
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    Digest::of(manifest.to_string().as_bytes()).to_string()
}

#[test]
fn an_image_is_imported_shown_and_pruned() {
    let rig = Rig::new();
    let digest = layout(&rig);
    let printed = rig.text(&["image", "import", "layout"]);
    assert_eq!(printed.trim(), format!("oci:layout@{digest}"));
    let pulled = rig.object(&["image", "pull", "oci:layout"]);
    assert_eq!((&pulled["digest"], &pulled["new_layers"]), (&json!(digest), &json!(0)));

    let listed = rig.object(&["image", "list"]);
    assert_eq!((&listed["digest"], &listed["bytes"]), (&json!(digest), &json!(2)));
    let shown = rig.object(&["image", "inspect", &digest]);
    assert_eq!(shown["config"]["cmd"], json!(["sh"]));
    let directory = std::path::Path::new(shown["directories"][0].as_str().unwrap());
    assert!(directory.starts_with(rig.path("state/images").canonicalize().unwrap()));
    assert_eq!(std::fs::read_to_string(directory.join("etc/hello")).unwrap(), "hi");
    assert!(rig.text(&["image", "inspect", "oci:layout"]).contains(&digest));

    // A worker looks where `palisade image` has put it.
    for name in [&*digest, "oci:layout"] {
        let up = rig.start(&["up", "--image", name, "--allow-mutable-image"]);
        assert!(up.end().0);
    }
    let tag = rig.run(&["up", "--image", "oci:layout", "--listen", "127.0.0.1:0"]);
    assert!(String::from_utf8_lossy(&tag.stderr).contains(&digest), "{tag:?}");

    assert_eq!(rig.object(&["image", "prune"])["images"], json!([]));
    assert_eq!(rig.object(&["image", "prune", "--all"])["images"], json!([digest]));
    assert!(!directory.exists());
    assert_eq!(rig.objects(&["image", "list"]), Vec::<serde_json::Value>::new());
    assert_eq!(rig.run(&["image", "inspect", &digest]).status.code(), Some(1));
}

#[test]
fn images_that_are_refused_say_why() {
    let rig = Rig::new();
    layout(&rig);
    std::fs::write(rig.path("key.pub"), "no key").unwrap();
    for (args, why) in [
        (&["image", "pull", "https://ghcr.io/a"][..], "is a URL"),
        (&["image", "pull", "Debian"], "the repository"),
        (&["image", "pull", "ghcr.io/a/b", "--allow-registry", "docker.io"], "allowed are docker.io"),
        (&["image", "pull", "oci:nowhere"], "nowhere cannot be read"),
        (&["image", "import", "layout", "--cosign-key", "key.pub"], "PEM"),
        (&["image", "inspect", "debian"], "is not in the store"),
    ] {
        let output = rig.run(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains(why), "{args:?}: {said}");
    }
}
