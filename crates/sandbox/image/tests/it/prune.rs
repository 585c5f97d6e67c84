//! What nobody uses goes, and what somebody uses stays.

use std::io::{BufRead as _, Write as _};
use std::process::{Command, Stdio};

use palisade_image::{Error, Keep, Store};

use crate::make::{dir, file, image, layer, named};
use crate::rig::{Rig, at};

#[tokio::test]
async fn only_what_no_image_needs_is_removed() {
    let rig = Rig::new();
    let store = rig.store();
    let base = || layer(&[dir("base")]);
    let one = rig.import(&image(vec![base(), layer(&[file("one", "11")])])).await.unwrap().image;
    let two = rig.import(&image(vec![base(), layer(&[file("two", "22")])])).await.unwrap().image;
    // The second import took the name, so the first image has none.
    let pruned = store.prune(&Keep { named: true, ..Keep::default() }, &[]).unwrap();
    assert_eq!((pruned.images.as_slice(), pruned.layers.len(), pruned.bytes), (&[one.digest()][..], 1, 2));
    assert!(two.layers().iter().all(|layer| layer.is_dir()));
    assert_eq!(store.images().unwrap(), std::slice::from_ref(&two));
    assert!(matches!(store.lease(&one), Err(Error::Damaged { .. })));

    let kept = store.prune(&Keep::default(), &[two.digest()]).unwrap();
    assert_eq!(kept, palisade_image::Pruned::default());
    let recent = Keep { used_since: Some(at(1_500_000_000)), ..Keep::default() };
    assert_eq!(store.prune(&recent, &[]).unwrap().images, []);
    let all = store.prune(&Keep { used_since: Some(at(i64::from(u32::MAX))), ..Keep::default() }, &[]).unwrap();
    assert_eq!((all.images.len(), all.layers.len()), (1, 2));
    assert_eq!(rig.held(&["images", "layers", "blobs/sha256", "pins", "tmp", "locks"]), Vec::<String>::new());
}

#[tokio::test]
async fn a_leased_image_stays_through_another_handle() {
    let rig = Rig::new();
    let image = rig.import(&named("a")).await.unwrap().image;
    let lease = rig.store().lease(&image).unwrap();
    let second = rig.store().lease(&image).unwrap();
    let other = Store::open(rig.path("store")).unwrap();
    let pruned = other.prune(&Keep::default(), &[]).unwrap();
    assert_eq!((pruned.images.len(), pruned.layers.len(), pruned.in_use), (0, 0, vec![image.digest()]));
    assert_eq!(lease.layers(), image.layers());
    assert!(lease.layers()[0].join("etc/name").is_file());
    drop(lease);
    assert_eq!(other.prune(&Keep::default(), &[]).unwrap().images, []);
    drop(second);
    assert_eq!(other.prune(&Keep::default(), &[]).unwrap().images, [image.digest()]);
}

/// What the process below is told by: the store that it leases an image of.
const CHILD: &str = "PALISADE_IMAGE_TEST_STORE";

/// Not a test of its own: with the variable it is the other process of the next test.
#[tokio::test]
async fn another_process_holds_a_lease() {
    let Some(store) = std::env::var_os(CHILD) else { return assert!(CHILD.starts_with("PALISADE")) };
    let store = Store::open(std::path::PathBuf::from(store)).unwrap();
    let _lease = store.lease(&store.images().unwrap()[0]).unwrap();
    println!("\nleased");
    // Until the parent closes it, or kills this process.
    std::io::stdin().lines().next();
}

#[tokio::test]
async fn a_lease_ends_with_its_process() {
    let rig = Rig::new();
    let image = rig.import(&named("a")).await.unwrap().image;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "prune::another_process_holds_a_lease", "--nocapture"])
        .env(CHILD, rig.path("store"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap() == "leased"), "the other process took no lease");
    let store = rig.store();
    assert_eq!(store.prune(&Keep::default(), &[]).unwrap().in_use, [image.digest()]);
    assert!(image.layers()[0].join("etc/name").is_file());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(store.prune(&Keep::default(), &[]).unwrap().images, [image.digest()]);
    std::io::stdout().flush().unwrap();
}

/// What the process below is told by: the directory whose layouts it imports and prunes until it is killed.
const BUSY: &str = "PALISADE_IMAGE_TEST_BUSY";

/// Not a test of its own: with the variable it is the process that the next test kills.
#[tokio::test]
async fn another_process_imports_and_prunes() {
    let Some(dir) = std::env::var_os(BUSY) else { return assert!(BUSY.starts_with("PALISADE")) };
    let dir = std::path::PathBuf::from(dir);
    let store = Store::open(dir.join("store")).unwrap();
    for number in (0..3).cycle() {
        let policy = palisade_image::Policy::default();
        let imported = store.import(dir.join(number.to_string()), &policy, at(1)).await.unwrap();
        println!("\nimported");
        if number == 2 {
            store.prune(&Keep::default(), &[imported.image.digest()]).unwrap();
            println!("\npruned");
            store.prune(&Keep::default(), &[]).unwrap();
        }
    }
}

#[tokio::test]
async fn a_process_that_is_killed_leaves_whole_images() {
    let rig = Rig::new();
    let files: Vec<_> = (0..200).map(|n| file(&format!("base/{n}"), &"x".repeat(2000))).collect();
    let base = layer(&files);
    for number in 0..3 {
        let top = layer(&[file("n", &number.to_string())]);
        image(vec![base.clone(), top]).layout(&rig.path(&number.to_string()), "latest");
    }
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "prune::another_process_imports_and_prunes", "--nocapture"])
            .env(BUSY, rig.dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Wherever it is after so many steps: it does not wait for this process.
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let steps = lines.filter(|line| matches!(line.as_deref(), Ok("imported" | "pruned"))).take(round % 7).count();
        assert_eq!(steps, round % 7);
        child.kill().unwrap();
        child.wait().unwrap();
        let store = rig.store();
        assert_eq!(rig.held(&["tmp"]), Vec::<String>::new());
        for image in store.images().unwrap() {
            let lease = store.lease(&image).unwrap();
            assert!(lease.layers()[0].join("n").is_file());
            assert_eq!(std::fs::read_dir(lease.layers()[1].join("base")).unwrap().count(), 200);
        }
        for number in 0..3 {
            rig.pull(&format!("oci:{}", rig.path(&number.to_string()).display())).await.unwrap();
        }
    }
}

#[tokio::test]
async fn pulls_and_prunes_at_once_leave_whole_images() {
    let rig = Rig::new();
    let store = rig.store();
    let base = layer(&[file("base", &"x".repeat(50_000))]);
    let images: Vec<_> = (0..12).map(|n| image(vec![base.clone(), layer(&[file("n", &n.to_string())])])).collect();
    for (number, image) in images.iter().enumerate() {
        image.layout(&rig.path(&number.to_string()), "latest");
    }
    // Ends the other thread also when this one fails.
    let (going, stop) = std::sync::mpsc::sync_channel::<()>(0);
    let pruning = std::thread::spawn(move || {
        while stop.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            store.prune(&Keep::default(), &[]).unwrap();
        }
    });
    for (number, image) in images.iter().enumerate() {
        let pulled = rig.pull(&format!("oci:{}", rig.path(&number.to_string()).display())).await.unwrap();
        assert_eq!(pulled.image.digest(), image.digest());
        // It may have been pruned at once; if it is leased, it is whole.
        if let Ok(lease) = rig.store().lease(&pulled.image) {
            assert_eq!(std::fs::read_to_string(lease.layers()[0].join("n")).unwrap(), number.to_string());
            assert!(lease.layers()[1].join("base").is_file());
        }
    }
    drop(going);
    pruning.join().unwrap();
}
