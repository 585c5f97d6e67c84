//! Storage that refuses: callers are told, nothing is kept by halves, and it goes on when there is room.

use std::path::Path;
use std::time::Duration;

use palisade_audit::{AppendError, Filter, Head, Seen, Trail, verify};
use palisade_testkit::storage;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::{all, options};

/// Appends until it is refused.
async fn fill(trail: &Trail, bytes: usize) -> AppendError {
    for n in 0..10_000 {
        if let Err(why) = trail.append("fill", None, json!({ "n": n, "text": "x".repeat(bytes) })).await {
            return why;
        }
    }
    panic!("there is no end of room")
}

/// All that is asked of a trail on storage that refuses at first, and then has room.
async fn refuses_and_goes_on(dir: &Path, expected: impl Fn(&AppendError) -> bool, make_room: impl FnOnce()) {
    let trail = Trail::open(dir, palisade_audit::Options { segment_bytes: 64 * 1024, ..options() }).unwrap();
    let why = fill(&trail, 8000).await;
    assert!(expected(&why), "{why}");
    let Head { seq, hash } = trail.head();
    // Many at once are all told; what is noted meanwhile waits.
    let rush = (0..16).map(|_| {
        let trail = trail.clone();
        tokio::spawn(async move { trail.append("rush", None, "x".repeat(8000)).await })
    });
    for n in 0..10 {
        trail.note("outcome", Some("sesn_1"), json!({ "n": n, "text": "x".repeat(8000) })).await.unwrap();
    }
    for refused in rush.collect::<Vec<_>>() {
        let why = refused.await.unwrap().unwrap_err();
        assert!(expected(&why), "{why}");
    }
    assert_eq!(trail.head(), Head { seq, hash });
    let report = verify(dir).unwrap();
    assert!(report.intact() && report.records == seq && report.beyond_head == 0, "{report:?}");

    let mut follow = trail.subscribe(Filter::default());
    make_room();
    // Without anybody asking.
    let seen = tokio::time::timeout(Duration::from_secs(60), follow.next()).await.unwrap();
    let Some(Seen::Record(gap)) = seen else { panic!("{seen:?}") };
    assert_eq!((gap.seq, gap.kind.as_str()), (seq + 1, "trail.gap"));
    let gap: Value = serde_json::from_str(gap.body.get()).unwrap();
    assert_eq!((&gap["refused"], &gap["lost"]), (&json!(17), &json!(0)));
    let next = trail.append("x", None, ()).await.unwrap();
    assert_eq!(next, seq + 12);
    trail.close().await;
    let report = verify(dir).unwrap();
    assert!(report.intact(), "{report:?}");
    let kept: Vec<String> =
        all(dir).into_iter().skip(usize::try_from(seq).unwrap()).map(|record| record.kind).collect();
    assert_eq!(kept[1..], [vec!["outcome"; 10], vec!["x"]].concat());
}

/// The other half of the test below, in a mount namespace with a file system of 1 MiB. Elsewhere there is nothing to fill.
#[tokio::test]
async fn process_on_a_small_disk() {
    let Some(disk) = storage::place() else { return };
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![1; 512 * 1024]).unwrap();
    refuses_and_goes_on(
        &disk.join("audit"),
        |why| *why == AppendError::Full,
        || {
            std::fs::remove_file(&ballast).unwrap();
        },
    )
    .await;
    println!("\nwent on");
}

#[test]
fn a_full_disk() {
    let said = storage::on_a_small_disk("full::process_on_a_small_disk", 1);
    assert!(said.contains("went on"), "{said}");
}

/// The other half of the test below: sets the limit for itself, then takes it away. The write that meets the limit is done in part.
#[tokio::test]
async fn process_with_short_files() {
    let Some(dir) = storage::place() else { return };
    let before = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(30_000), ..before }).unwrap();
    let expected = |why: &AppendError| matches!(why, AppendError::Storage { step: "write", .. });
    refuses_and_goes_on(Path::new(&dir), expected, || setrlimit(Resource::Fsize, before).unwrap()).await;
    println!("\nwent on");
}

#[test]
fn a_failing_write() {
    let said = storage::with_short_files("full::process_with_short_files");
    assert!(said.contains("went on"), "{said}");
}
