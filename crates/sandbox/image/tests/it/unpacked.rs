//! What an unpacked image looks like, to this process and to the kernel's overlay.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use palisade_image::Ownership;

use crate::make::{Entry, dir, entry, file, gzip, hard_link, image, layer, named, symlink};
use crate::rig::{Rig, at};

fn base() -> Vec<Entry> {
    vec![
        dir("./"),
        dir("etc"),
        file("etc/removed", "1"),
        file("etc/kept", "1").mode(0o640).owner(10, 20),
        hard_link("etc/again", "etc/kept"),
        dir("var"),
        file("var/hidden", "1"),
        dir("swapped"),
        file("swapped/below", "1"),
        symlink("bin", "usr/bin"),
    ]
}

fn top() -> Vec<Entry> {
    vec![
        file("etc/.wh.removed", ""),
        dir("var"),
        file("var/.wh..wh..opq", ""),
        file("var/new", "2"),
        // Removed and made anew: what was below must stay hidden.
        file(".wh.swapped", ""),
        dir("swapped"),
        file("swapped/new", "2"),
    ]
}

#[tokio::test]
async fn an_overlay_of_the_layers_is_the_image() {
    let rig = Rig::new();
    let pulled = rig.import(&image(vec![layer(&base()), layer(&top())])).await.unwrap();
    let layers: Vec<String> = pulled.image.layers().iter().map(|path| path.display().to_string()).collect();
    let options = format!("userxattr,lowerdir={}", layers.join(":"));
    std::fs::create_dir(rig.path("merged")).unwrap();
    let root = rustix::process::geteuid().is_root();
    let mut command = Command::new("unshare");
    command.args(if root { &["--mount"][..] } else { &["--user", "--map-root-user", "--mount"] });
    let script = "mount -t overlay overlay -o \"$1\" \"$2\" || exit 77; cd \"$2\"; find . | sort; cat etc/kept";
    let output = command.args(["sh", "-c", script, "sh", &options]).arg(rig.path("merged")).output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        other => {
            println!("the overlay is not looked at: it cannot be mounted here: {other:?}");
            return;
        }
    };
    let found = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = found.split_whitespace().collect();
    let wanted = ". ./bin ./etc ./etc/again ./etc/kept ./swapped ./swapped/new ./var ./var/new 1";
    assert_eq!(lines, wanted.split(' ').collect::<Vec<_>>());
}

#[tokio::test]
async fn whiteouts_say_nothing_about_their_own_layer() {
    let rig = Rig::new();
    let mut reversed = top();
    reversed.reverse();
    // Parents come without entries of their own then.
    let root = rig.unpack(layer(&reversed)).await.unwrap();
    for name in ["var/new", "swapped/new"] {
        assert_eq!(std::fs::read_to_string(root.join(name)).unwrap(), "2");
    }
    let opaque = |name: &str| {
        let mut value = [0; 8];
        rustix::fs::getxattr(root.join(name), "user.overlay.opaque", &mut value).map(|length| value[..length].to_vec())
    };
    assert_eq!(opaque("var").unwrap(), b"y");
    assert_eq!(opaque("swapped").unwrap(), b"y");
    assert!(opaque("etc").is_err());
}

#[tokio::test]
async fn a_layer_that_hides_everything_is_the_lowest() {
    let rig = Rig::new();
    let hiding = layer(&[file(".wh..wh..opq", ""), file("only", "1")]);
    let pulled = rig.import(&image(vec![layer(&base()), hiding, layer(&top())])).await.unwrap();
    assert_eq!(pulled.image.layers().len(), 2);
    assert!(pulled.image.layers()[1].join("only").exists());
}

#[tokio::test]
async fn modes_times_and_links_are_kept() {
    let rig = Rig::new();
    let mut entries = base();
    entries.push(dir("closed").mode(0o500));
    entries.push(file("closed/in", "x").mode(0o400));
    entries.push(entry(tar::EntryType::Regular, "old/"));
    let root = rig.unpack(layer(&entries)).await.unwrap();
    let meta = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(meta("etc/kept").mode() & 0o7777, 0o640);
    assert_eq!(meta("etc/kept").ino(), meta("etc/again").ino());
    assert_eq!(std::fs::read_link(root.join("bin")).unwrap().to_str(), Some("usr/bin"));
    assert!(meta("old").is_dir());
    for name in ["etc", "etc/kept", "bin", "closed"] {
        assert_eq!(meta(name).mtime(), 1_000_000_000, "{name}");
    }
    if rustix::process::geteuid().is_root() {
        assert_eq!((meta("etc/kept").uid(), meta("etc/kept").gid()), (10, 20));
        assert_eq!(meta("closed").mode() & 0o7777, 0o500);
    } else {
        println!("owners are not looked at: not root");
    }
}

#[tokio::test]
async fn a_flattened_image_is_the_callers() {
    let rig = Rig::new();
    let entries = [dir("d").mode(0).owner(70_000, 1), file("d/f", "x").mode(0).owner(5, 5), symlink("l", "x")];
    image(vec![layer(&entries)]).layout(&rig.path("layout"), "latest");
    let store = rig.store().flattened();
    let pulled = store.import(rig.path("layout"), &rig.policy, at(1)).await.unwrap();
    assert_eq!(pulled.image.ownership(), Ownership::Flattened);
    let root = pulled.image.layers().remove(0);
    for (name, mode) in [("d", 0o700), ("d/f", 0o400)] {
        let meta = std::fs::metadata(root.join(name)).unwrap();
        assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());
        assert_eq!(meta.mode() & 0o7777, mode);
    }
}

#[tokio::test]
async fn the_same_image_comes_from_every_form() {
    let rig = Rig::new();
    let twice = layer(&[file("twice", "1")]);
    let image = image(vec![twice.clone(), layer(&base()), twice]);
    image.layout(&rig.path("layout"), "v1");
    let archive = crate::make::archived(&rig.path("layout"));
    std::fs::write(rig.path("oci.tar"), &archive).unwrap();
    std::fs::write(rig.path("oci.tar.gz"), gzip(&archive)).unwrap();
    let mut plain = image.clone();
    for layer in &mut plain.layers {
        let mut archive = Vec::new();
        std::io::copy(&mut flate2::read::GzDecoder::new(&layer.blob[..]), &mut archive).unwrap();
        *layer = crate::make::plain_layer(archive);
    }
    let saved = plain.docker_archive("acme/app:v1");
    std::fs::write(rig.path("docker.tar"), &saved).unwrap();
    std::fs::write(rig.path("docker.tar.gz"), gzip(&saved)).unwrap();

    let place = |name: &str| rig.path(name).display().to_string();
    let from = async |reference: String| {
        let pulled = rig.pull(&reference).await.unwrap_or_else(|error| panic!("{reference}: {error}"));
        assert_eq!(pulled.image.layers().len(), 2, "the same layer is mounted once");
        (pulled.image.digest(), pulled.image.layers())
    };
    let (digest, layers) = from(format!("oci:{}", place("layout"))).await;
    assert_eq!(digest, image.digest());
    for reference in [
        format!("oci:{}:v1", place("layout")),
        format!("oci:{}@{digest}", place("layout")),
        format!("oci-archive:{}", place("oci.tar")),
        format!("oci:{}:v1", place("oci.tar.gz")),
    ] {
        assert_eq!(from(reference).await, (digest, layers.clone()));
    }
    let (docker, docker_layers) = from(format!("docker-archive:{}", place("docker.tar"))).await;
    assert_eq!(docker_layers, layers);
    for reference in [
        format!("docker-archive:{}:acme/app:v1", place("docker.tar.gz")),
        format!("docker-archive:{}:docker.io/acme/app:v1@{docker}", place("docker.tar")),
    ] {
        assert_eq!(from(reference).await, (docker, layers.clone()));
    }
    for path in ["layout", "oci.tar.gz", "docker.tar.gz", "docker.tar"] {
        let imported = rig.store().import(rig.path(path), &rig.policy, at(2)).await.unwrap();
        assert_eq!(imported.image.layers(), layers, "{path}");
        assert_eq!(imported.new_layers, 0);
    }
    for missing in [
        format!("oci:{}:v2", place("layout")),
        format!("docker-archive:{}:acme/app:v2", place("docker.tar")),
        format!("docker-archive:{}@{digest}", place("docker.tar")),
        format!("docker-archive:{}", place("oci.tar")),
        format!("oci-archive:{}", place("layout")),
        format!("oci:{}", place("nowhere")),
    ] {
        let error = rig.pull(&missing).await;
        // An image that the store has by its digest needs no archive.
        assert!(error.is_err() || missing.contains('@'), "{missing}");
    }
}

#[tokio::test]
async fn the_configuration_is_handed_out() {
    let rig = Rig::new();
    let pulled = rig.import(&named("a")).await.unwrap();
    let config = pulled.image.config();
    assert_eq!(config.env, [("PATH".to_owned(), "/bin".to_owned())]);
    assert_eq!((config.entrypoint.as_slice(), config.cmd.as_slice()), (&["/bin/sh".into()][..], &["-l".into()][..]));
    assert_eq!((config.working_dir.as_deref(), config.user.as_deref()), (Some("/srv"), Some("app")));
    assert_eq!(config.labels["made"], "here");
}
