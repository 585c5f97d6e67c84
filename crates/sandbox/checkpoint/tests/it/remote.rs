//! A store on another machine.

use std::fs;

use futures::TryStreamExt as _;
use palisade_checkpoint::object_store::local::LocalFileSystem;
use palisade_checkpoint::object_store::memory::InMemory;
use palisade_checkpoint::object_store::path::Path;
use palisade_checkpoint::object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use palisade_checkpoint::{Error, Remote};

use crate::rig::Rig;
use crate::round_trip::noise;

async fn sizes(objects: &dyn ObjectStore) -> Vec<(String, u64)> {
    let found: Vec<_> = objects.list(None).try_collect().await.unwrap();
    let mut sizes: Vec<_> = found.into_iter().map(|it| (it.location.to_string(), it.size)).collect();
    sizes.sort();
    sizes
}

async fn there_and_back(objects: &dyn ObjectStore) {
    let remote = Remote::new(objects, "team/a");
    let rig = Rig::new();
    let upper = rig.make("upper");
    fs::write(upper.join("large"), noise(1, 3_000_000)).unwrap();
    fs::create_dir(upper.join("d")).unwrap();
    fs::write(upper.join("d/small"), noise(2, 3000)).unwrap();
    let first = rig.capture(&upper).checkpoint;
    let sent = rig.store.push(&first.id, remote).await.unwrap();
    assert!(sent.bytes > 3_000_000, "{sent:?}");
    assert_eq!(remote.list().await.unwrap(), std::slice::from_ref(&first));
    // Nothing is sent twice, and of a second checkpoint only what is new.
    assert_eq!(rig.store.push(&first.id, remote).await.unwrap().chunks, 0);
    fs::write(upper.join("d/small"), noise(3, 3000)).unwrap();
    let second = rig.capture(&upper).checkpoint;
    let sent = rig.store.push(&second.id, remote).await.unwrap();
    assert!(sent.bytes < 10_000, "{sent:?}");

    let other = Rig::new();
    let (pulled, moved) = other.store.pull(&second.id, remote).await.unwrap();
    assert_eq!(pulled, second);
    assert!(moved.bytes > 3_000_000, "{moved:?}");
    assert_eq!(other.layer(&second.id), rig.layer(&second.id));
    assert!(other.store.verify().unwrap().faults.is_empty());
    // The first one's small file is all that is missing; its pack has come along already.
    assert_eq!(other.store.pull(&first.id, remote).await.unwrap().1.bytes, 0);
    let unknown = palisade_checkpoint::Id::clone(&first.id).to_string().replace(char::is_numeric, "0").parse().unwrap();
    assert!(matches!(other.store.pull(&unknown, remote).await, Err(Error::Unknown(_))));
}

#[tokio::test]
async fn in_memory() {
    there_and_back(&InMemory::new()).await;
}

#[tokio::test]
async fn in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    there_and_back(&LocalFileSystem::new_with_prefix(dir.path()).unwrap()).await;
}

#[tokio::test]
async fn what_comes_back_is_not_believed() {
    let objects = InMemory::new();
    let remote = Remote::new(&objects, "");
    let rig = Rig::new();
    let upper = rig.make("upper");
    fs::write(upper.join("file"), noise(1, 3000)).unwrap();
    let id = rig.capture(&upper).checkpoint.id;
    rig.store.push(&id, remote).await.unwrap();
    for (path, size) in sizes(&objects).await {
        let path = Path::from(path);
        let good = objects.get(&path).await.unwrap().bytes().await.unwrap();
        for place in (0..size as usize).step_by(if size > 1000 { 61 } else { 7 }) {
            let mut bad = good.to_vec();
            bad[place] ^= 4;
            objects.put(&path, PutPayload::from(bad)).await.unwrap();
            let other = Rig::new();
            let result = other.store.pull(&id, remote).await;
            assert!(result.is_err(), "{path} at {place}");
            assert_eq!(other.store.list().unwrap().len(), 0);
            let packs = other.store.verify().unwrap();
            assert!(packs.faults.is_empty(), "{path} at {place}");
        }
        objects.put(&path, PutPayload::from(good)).await.unwrap();
    }
    assert_eq!(Rig::new().store.pull(&id, remote).await.unwrap().0.id, id);
}
