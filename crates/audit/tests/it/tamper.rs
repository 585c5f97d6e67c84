//! Whatever is done to a trail without its writer is found.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use palisade_audit::{Flaw, OpenError, Options, Report, Trail, verify};
use proptest::prelude::*;
use serde_json::json;

use crate::{all, kinds, options};

/// A closed trail of several segments: names and contents.
static WHOLE: LazyLock<Vec<(String, Vec<u8>)>> =
    // A thread of its own: it is asked for inside and outside of runtimes.
    LazyLock::new(|| std::thread::spawn(whole).join().unwrap());

#[tokio::main(flavor = "current_thread")]
async fn whole() -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let trail = Trail::open(dir.path(), Options { segment_bytes: 4096, ..options() }).unwrap();
    for n in 0..50 {
        trail.append("egress.request", Some("sesn_1"), json!({ "to": "a.example:443", "n": n })).await.unwrap();
    }
    trail.close().await;
    let mut files: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| name != "lock")
        .collect();
    files.sort();
    assert!(files.len() >= 5, "some segments and a head");
    files
}

/// A copy to do things to.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in WHOLE.iter() {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    found.sort();
    found
}

/// All lines with the segments they are in.
fn lines(dir: &Path) -> Vec<(PathBuf, Vec<String>)> {
    let lines = |path: &PathBuf| std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect();
    segments(dir).into_iter().map(|path| (path.clone(), lines(&path))).collect()
}

fn put(path: &Path, lines: &[String]) {
    std::fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

/// It does not verify and is not continued.
fn found(dir: &Path) -> Report {
    let report = verify(dir).unwrap();
    assert!(!report.intact(), "not found: {report:?}");
    report
}

fn refused(dir: &Path) {
    let why = Trail::open(dir, options()).unwrap_err();
    assert!(matches!(why, OpenError::Broken { .. }), "{why}");
    assert!(why.to_string().contains("Keep the directory as evidence"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_changed_byte(file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), mask in 1u8..) {
        let dir = copy();
        let (name, bytes) = file.get(&WHOLE);
        let mut bytes = bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        std::fs::write(dir.path().join(name), bytes).unwrap();
        found(dir.path());
        // One line of the head may be damaged by a crash: that is mended, and said.
        if name == "head" {
            drop(Trail::open(dir.path(), options()).unwrap());
            prop_assert!(kinds(dir.path()).contains(&"trail.recovered".to_owned()));
        } else {
            refused(dir.path());
        }
    }

    #[test]
    fn a_line_removed_doubled_swapped_or_put_elsewhere(
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        what in 0..4,
    ) {
        let dir = copy();
        let mut lines = lines(dir.path());
        let places: Vec<(usize, usize)> =
            lines.iter().enumerate().flat_map(|(file, (_, lines))| (0..lines.len()).map(move |line| (file, line))).collect();
        let (a, b) = (*from.get(&places), *to.get(&places));
        prop_assume!(a != b);
        let line = lines[a.0].1[a.1].clone();
        match what {
            0 => { lines[a.0].1.remove(a.1); }
            1 => lines[b.0].1.insert(b.1, line),
            2 => {
                lines[a.0].1[a.1] = lines[b.0].1[b.1].clone();
                lines[b.0].1[b.1] = line;
            }
            _ => lines[b.0].1.insert(b.1, format!("{{\"n\":{}}}", b.1)),
        }
        for (path, lines) in &lines {
            put(path, lines);
        }
        found(dir.path());
        refused(dir.path());
    }

    #[test]
    fn a_segment_cut_anywhere(file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        let dir = copy();
        let segments = segments(dir.path());
        let path = file.get(&segments);
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..at.index(bytes.len())]).unwrap();
        found(dir.path());
        refused(dir.path());
    }
}

#[test]
fn a_missing_segment_or_head() {
    for gone in &*WHOLE {
        let dir = copy();
        std::fs::remove_file(dir.path().join(&gone.0)).unwrap();
        let report = found(dir.path());
        refused(dir.path());
        let last = WHOLE.iter().rev().find(|(name, _)| name.ends_with("jsonl")).unwrap();
        match &report.broken.unwrap().flaw {
            Flaw::HeadMissing => assert_eq!(gone.0, "head"),
            Flaw::Truncated { head: 52, .. } => assert_eq!(gone, last),
            Flaw::BeginningMissing { .. } => assert_eq!(gone.0, "00000000000000000001.jsonl"),
            Flaw::SegmentMissing { .. } => {}
            other => panic!("{other}"),
        }
    }
}

#[test]
fn the_place_and_the_reason_are_named() {
    let dir = copy();
    let mut lines = lines(dir.path());
    let (path, first) = &mut lines[0];
    first[4] = first[4].replace("a.example", "b.example");
    put(path, first);
    let report = found(dir.path());
    let broken = report.broken.unwrap();
    let offset: usize = first[..4].iter().map(|line| line.len() + 1).sum();
    assert_eq!((broken.seq, report.records), (5, 4));
    assert_eq!(broken.at, Some((path.file_name().unwrap().to_str().unwrap().to_owned(), offset as u64)));
    assert!(matches!(broken.flaw, Flaw::Altered { .. }));
    assert!(
        broken
            .to_string()
            .starts_with(&format!("record 5 (00000000000000000001.jsonl, byte {offset}): it was altered"))
    );
}

#[tokio::test]
async fn an_unfinished_line_is_cut_off_and_that_is_recorded() {
    for rest in [&br#"{"seq":53,"time":"2026"#[..], b"\0\0\0\0", b"{\"seq\":53\0\0\0\0\0\n\0\0\n", b"{"] {
        let dir = copy();
        let last = segments(dir.path()).pop().unwrap();
        let whole = std::fs::read(&last).unwrap();
        std::fs::write(&last, [&whole, rest].concat()).unwrap();
        let report = verify(dir.path()).unwrap();
        assert_eq!((report.intact(), report.torn_bytes), (true, rest.len() as u64), "{rest:?}");
        let trail = Trail::open(dir.path(), options()).unwrap();
        trail.append("x", None, ()).await.unwrap();
        trail.close().await;
        let report = verify(dir.path()).unwrap();
        assert_eq!((report.intact(), report.torn_bytes, report.records), (true, 0, 55));
        let recovered = all(dir.path()).into_iter().find(|record| record.seq == 53).unwrap();
        assert_eq!(recovered.kind, "trail.recovered");
        assert_eq!(
            recovered.body.get(),
            format!(r#"{{"cut_bytes":{},"beyond_head":0,"head_torn":false}}"#, rest.len())
        );
    }
}

#[tokio::test]
async fn segments_that_a_crash_left_empty_are_written_on() {
    let dir = copy();
    std::fs::write(dir.path().join("00000000000000000053.jsonl"), b"").unwrap();
    let trail = Trail::open(dir.path(), options()).unwrap();
    trail.append("x", None, ()).await.unwrap();
    trail.close().await;
    assert!(verify(dir.path()).unwrap().intact());
    let last = segments(dir.path()).pop().unwrap();
    assert_eq!(std::fs::read_to_string(last).unwrap().lines().count(), 2);

    // A directory in which not even the first segment was made.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("head"), &WHOLE.last().unwrap().1).unwrap();
    refused(dir.path());
    std::fs::remove_file(dir.path().join("head")).unwrap();
    drop(Trail::open(dir.path(), options()).unwrap());
    assert!(verify(dir.path()).unwrap().intact());
}
