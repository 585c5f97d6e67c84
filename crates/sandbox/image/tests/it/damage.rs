//! Images that are not what they say, and machines that stop in between.

use palisade_image::{Digest, Error, LayoutError, ManifestError, Store, UnpackError};
use serde_json::json;

use crate::make::{Layer, ZSTD, dir, file, image, layer, named, plain_layer, tar};
use crate::rig::Rig;

async fn cause(rig: &Rig, layer: Layer) -> UnpackError {
    let error = rig.unpack(layer).await.unwrap_err();
    rig.assert_nothing_made();
    match error {
        Error::Layer { cause, .. } => cause,
        other => panic!("refused for another reason: {other}"),
    }
}

#[tokio::test]
async fn damaged_layers_leave_nothing() {
    let rig = Rig::new();
    let good = layer(&[file("a", &"x".repeat(5000)), file("b", "y")]);
    let mut cut = good.clone();
    cut.blob.truncate(cut.blob.len() - 6);
    assert!(matches!(cause(&rig, cut).await, UnpackError::Archive(_)));
    let mut corrupt = good.clone();
    let middle = corrupt.blob.len() / 2;
    corrupt.blob[middle] ^= 0xff;
    assert!(matches!(cause(&rig, corrupt).await, UnpackError::Archive(_) | UnpackError::DiffId { .. }));
    let other = Layer { diff_id: Digest::of(b"another"), ..good.clone() };
    assert!(matches!(cause(&rig, other).await, UnpackError::DiffId { .. }));
    let short = tar(&[file("a", &"x".repeat(5000))])[..3000].to_vec();
    assert!(matches!(cause(&rig, plain_layer(short)).await, UnpackError::Archive(_)));
    assert!(matches!(cause(&rig, plain_layer(b"no archive at all".repeat(100))).await, UnpackError::Archive(_)));
    // The good one still comes in after all of that.
    rig.unpack(good).await.unwrap();
}

#[tokio::test]
async fn zstd_layers_are_unpacked() {
    let rig = Rig::new();
    let archive = tar(&[file("a", "x")]);
    let blob = zstd::encode_all(&archive[..], 3).unwrap();
    let root = rig.unpack(Layer { media_type: ZSTD, diff_id: Digest::of(&archive), blob }).await.unwrap();
    assert_eq!(std::fs::read_to_string(root.join("a")).unwrap(), "x");
}

#[tokio::test]
async fn files_of_a_layout_that_were_changed() {
    let rig = Rig::new();
    let image = named("a");
    for part in [Digest::of(&image.layers[0].blob), Digest::of(&image.config_bytes()), image.digest()] {
        let layout = rig.path("layout");
        image.layout(&layout, "latest");
        let path = layout.join("blobs").join(part.to_string().replace(':', "/"));
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let reference = format!("oci:{}", layout.display());
        let pull = || rig.pull(&reference);
        assert!(matches!(pull().await, Err(Error::Layout(LayoutError::Digest { .. }))), "{reference} {part}");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(pull().await, Err(Error::Layout(LayoutError::Missing { .. }))));
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(matches!(pull().await, Err(Error::Layout(LayoutError::Read { .. }))));
        std::fs::remove_file(&path).unwrap();
        rig.assert_nothing_made();
    }
}

#[tokio::test]
async fn configurations_that_do_not_fit() {
    let rig = Rig::new();
    let mut mismatch = named("a");
    mismatch.config["rootfs"]["diff_ids"] = json!([]);
    assert!(matches!(rig.import(&mismatch).await, Err(Error::Manifest(ManifestError::Mismatch { .. }))));
    let mut foreign = named("a");
    foreign.config["architecture"] = json!("mips");
    assert!(matches!(rig.import(&foreign).await, Err(Error::Manifest(ManifestError::Platform { .. }))));
    let mut encrypted = named("a");
    encrypted.layers[0].media_type = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    assert!(matches!(rig.import(&encrypted).await, Err(Error::Manifest(ManifestError::Layer { .. }))));
    assert!(matches!(rig.import(&image(vec![])).await, Err(Error::Manifest(ManifestError::Empty))));
    rig.assert_nothing_made();
}

#[tokio::test]
async fn an_image_that_is_too_large_as_a_whole() {
    let mut rig = Rig::new();
    rig.policy.limits.image_bytes = 1500;
    let part = |name: &str| layer(&[file(name, &"x".repeat(1000))]);
    let result = rig.import(&image(vec![part("a"), part("b")])).await;
    assert!(matches!(result, Err(Error::Size { limit: 1500 })));
    assert_eq!(rig.held(&["images", "pins", "tmp"]), Vec::<String>::new());
}

#[tokio::test]
async fn leftovers_are_swept_and_work_of_the_living_is_not() {
    let rig = Rig::new();
    rig.store();
    let tmp = rig.path("store/tmp");
    std::fs::create_dir_all(tmp.join("dead/layer/root")).unwrap();
    std::fs::write(tmp.join("dead/blob"), "half").unwrap();
    std::fs::create_dir(tmp.join("alive")).unwrap();
    let alive = std::fs::File::open(tmp.join("alive")).unwrap();
    alive.try_lock().unwrap();
    Store::open(rig.path("store")).unwrap();
    assert_eq!(rig.held(&["tmp"]), ["tmp/alive"]);
    drop(alive);
    Store::open(rig.path("store")).unwrap();
    assert_eq!(rig.held(&["tmp"]), Vec::<String>::new());
}

#[tokio::test]
async fn a_store_that_others_can_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let rig = Rig::new();
    rig.store();
    std::fs::set_permissions(rig.path("store"), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Store::open(rig.path("store")), Err(Error::Shared { .. })));
}

#[tokio::test]
async fn a_layer_is_unpacked_once_however_many_want_it() {
    let rig = Rig::new();
    let shared = || layer(&[dir("d"), file("d/f", &"x".repeat(100_000))]);
    let one = image(vec![shared(), layer(&[file("one", "1")])]);
    let two = image(vec![shared(), layer(&[file("two", "2")])]);
    for (name, image) in [("one", &one), ("two", &two)] {
        image.layout(&rig.path(name), "latest");
    }
    let (a, b) = (format!("oci:{}", rig.path("one").display()), format!("oci:{}", rig.path("two").display()));
    // Each opens the store anew, as another process would.
    let (first, second) = tokio::join!(rig.pull(&a), rig.pull(&b));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.new_layers + second.new_layers, 3);
    assert_eq!(first.image.layers().last(), second.image.layers().last());
    assert_eq!(rig.held(&["layers"]).len(), 3);
}
