//! Moving finished segments elsewhere: nothing is lost, and nobody else can take any away.

use std::path::{Path, PathBuf};

use palisade_api::Timestamp;
use palisade_audit::{ArchiveError, Archived, Flaw, Signer, Trail, verify, verify_archived, verify_with};
use serde_json::json;

use crate::{all, options};

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    found.sort();
    found
}

async fn fill(trail: &Trail, count: u32) {
    for number in 0..count {
        trail.append("x", None, json!({"number": number, "text": "x".repeat(500)})).await.unwrap();
    }
}

fn small() -> palisade_audit::Options {
    palisade_audit::Options { segment_bytes: 4096, ..options() }
}

fn later() -> Timestamp {
    Timestamp::from_micros(i64::MAX / 2)
}

#[tokio::test]
async fn what_is_archived_and_what_stays_are_one_chain() {
    let place = tempfile::tempdir().unwrap();
    let (dir, to) = (place.path().join("trail"), place.path().join("far/archive"));
    let signer = Signer::open(&place.path().join("key")).unwrap();
    let key = signer.public_key();
    let trail = Trail::open(&dir, palisade_audit::Options { signer: Some(signer.clone()), ..small() }).unwrap();
    assert_eq!(trail.archive(later(), &to).await.unwrap(), Archived::default());
    fill(&trail, 30).await;
    let before = all(&dir);
    // Only what is old enough, whole segments of it.
    let middle = before[before.len() / 2].time;
    let moved = trail.archive(middle, &to).await.unwrap();
    let through = moved.through.unwrap();
    assert!(moved.segments > 0 && through < before[before.len() / 2].seq, "{moved:?}");
    assert_eq!(segments(&to).len(), usize::try_from(moved.segments).unwrap());
    assert!(segments(&to).iter().all(|path| !dir.join(path.file_name().unwrap()).exists()));
    fill(&trail, 10).await;
    let report = verify(&dir).unwrap();
    assert!(report.intact() && report.first.unwrap().seq == through + 1, "{:?}", report.broken);
    let rest = trail.archive(later(), &to).await.unwrap();
    assert!(rest.through.unwrap() > through);
    assert_eq!(segments(&dir).len(), 1);
    fill(&trail, 1).await;
    trail.close().await;

    let whole = verify_archived(&dir, &to).unwrap();
    assert!(whole.intact() && whole.first.as_ref().unwrap().seq == 1 && whole.records > 42, "{whole:?}");
    assert!(verify_with(&dir, &[key]).unwrap().intact());
    // It goes on where it was.
    let again = Trail::open(&dir, palisade_audit::Options { signer: Some(signer), ..small() }).unwrap();
    fill(&again, 10).await;
    again.archive(later(), &to).await.unwrap();
    drop(again);
    assert!(verify(&dir).unwrap().intact() && verify_archived(&dir, &to).unwrap().intact());
    let readable: Vec<u64> = all(&to).iter().chain(&all(&dir)).map(|record| record.seq).collect();
    assert!(readable.iter().zip(1..).all(|(seq, expected)| *seq == expected), "nothing is missing between them");
}

#[tokio::test]
async fn nobody_takes_away_more_than_was_archived() {
    let place = tempfile::tempdir().unwrap();
    let (dir, to) = (place.path().join("trail"), place.path().join("archive"));
    let trail = Trail::open(&dir, small()).unwrap();
    fill(&trail, 30).await;
    // Without a word of the trail.
    std::fs::remove_file(&segments(&dir)[0]).unwrap();
    let flaw = |dir: &Path| verify(dir).unwrap().broken.map(|broken| broken.flaw);
    assert!(matches!(flaw(&dir), Some(Flaw::BeginningMissing { .. })));
    drop(trail);
    assert!(Trail::open(&dir, small()).is_err(), "it is not continued");

    let dir = place.path().join("another");
    let trail = Trail::open(&dir, small()).unwrap();
    fill(&trail, 30).await;
    assert!(trail.archive(later(), &to).await.unwrap().segments > 2);
    fill(&trail, 20).await;
    drop(trail);
    assert_eq!(flaw(&dir), None);
    let kept: Vec<_> = segments(&dir).iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    assert!(kept.len() > 2);
    // One more, then all but the last: also where the record itself is gone.
    for count in 1..kept.len() {
        std::fs::remove_file(&kept[count - 1].0).unwrap();
        assert!(matches!(flaw(&dir), Some(Flaw::BeginningMissing { .. })), "{count}");
    }
    for (path, content) in &kept {
        std::fs::write(path, content).unwrap();
    }
    // Somebody who changes what was archived is found out by what stayed.
    let archived = &segments(&to)[0];
    let text = std::fs::read_to_string(archived).unwrap();
    std::fs::write(archived, text.replacen("\"number\":1", "\"number\":7", 1)).unwrap();
    assert!(matches!(verify_archived(&dir, &to).unwrap().broken.unwrap().flaw, Flaw::Altered { .. }));
    // The oldest may be thrown away some day; a hole is none of those.
    std::fs::remove_file(archived).unwrap();
    assert!(verify_archived(&dir, &to).unwrap().intact());
    std::fs::remove_file(segments(&to).last().unwrap()).unwrap();
    assert!(matches!(verify_archived(&dir, &to).unwrap().broken.unwrap().flaw, Flaw::SegmentMissing { .. }));
}

#[tokio::test]
async fn an_archive_that_was_cut_off_is_done_again() {
    let place = tempfile::tempdir().unwrap();
    let (dir, to) = (place.path().join("trail"), place.path().join("archive"));
    let trail = Trail::open(&dir, small()).unwrap();
    fill(&trail, 30).await;
    let before: Vec<_> = segments(&dir).iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    // It ended after some were copied, one of them not whole.
    std::fs::create_dir(&to).unwrap();
    std::fs::copy(&before[0].0, to.join(before[0].0.file_name().unwrap())).unwrap();
    std::fs::write(to.join("00000000000000000002.new"), "half").unwrap();
    assert!(verify(&dir).unwrap().intact() && verify_archived(&dir, &to).unwrap().intact());
    let moved = trail.archive(later(), &to).await.unwrap();
    assert_eq!(moved.segments + 1, before.len() as u64);
    // It ended before all were removed: oldest first, so the newest are still there.
    for (path, content) in &before[1..before.len() - 1] {
        std::fs::write(path, content).unwrap();
        std::fs::remove_file(&before[0].0).ok();
    }
    assert!(verify(&dir).unwrap().intact() && verify_archived(&dir, &to).unwrap().intact());
    drop(trail);
    let trail = Trail::open(&dir, small()).unwrap();
    fill(&trail, 10).await;
    trail.archive(later(), &to).await.unwrap();
    assert_eq!(segments(&dir).len(), 1);
    assert!(verify(&dir).unwrap().intact() && verify_archived(&dir, &to).unwrap().intact());
}

#[tokio::test]
async fn where_it_cannot_go_nothing_is_removed() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("trail");
    let trail = Trail::open(&dir, small()).unwrap();
    fill(&trail, 30).await;
    let before = segments(&dir);
    let file = place.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(trail.archive(later(), &file).await, Err(ArchiveError::Io { .. })));
    assert!(matches!(trail.archive(later(), &dir).await, Err(ArchiveError::Same)));
    // Another trail's.
    let other = place.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join(before[0].file_name().unwrap()), "{}\n").unwrap();
    let why = trail.archive(later(), &other).await.unwrap_err();
    assert!(matches!(&why, ArchiveError::Taken { .. }), "{why}");
    assert_eq!(segments(&dir), before);
    trail.close().await;
    assert!(matches!(trail.archive(later(), &place.path().join("new")).await, Err(ArchiveError::Trail(_))));
    assert_eq!(segments(&dir)[..before.len() - 1], before[..before.len() - 1]);
}
