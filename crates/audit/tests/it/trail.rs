//! What a trail does for those who write, read and follow it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use palisade_audit::{AppendError, Filter, OpenError, Seen, Trail, read, verify};
use serde_json::json;
use serde_json::value::RawValue;

use crate::{all, kinds, options};

#[tokio::test]
async fn records_are_numbered_chained_and_there_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("new/audit");
    let trail = Trail::open(&dir, options()).unwrap();
    let first = trail.append("egress.request", Some("sesn_1"), json!({ "to": "a.example:443" })).await.unwrap();
    trail.note("egress.outcome", Some("sesn_1"), json!({ "of": first })).await.unwrap();
    let text = "line\nfeed \"quoted\" \u{2028} ü";
    let odd = trail.append("x", Some(text), json!({ text: text })).await.unwrap();
    let raw: Box<RawValue> = serde_json::from_str("{\n \"a\":\r\n 1}").unwrap();
    trail.append("raw", None, &raw).await.unwrap();
    assert!(matches!(Trail::open(&dir, options()), Err(OpenError::InUse { holder, .. })
        if holder == format!("process {}", std::process::id())));
    trail.close().await;
    assert_eq!(trail.append("x", None, ()).await, Err(AppendError::Closed));
    assert_eq!(trail.note("x", None, ()).await, Err(AppendError::Closed));
    let head = trail.head();

    let again = Trail::open(&dir, options()).unwrap();
    again.append("x", None, ()).await.unwrap();
    drop(again);
    let report = verify(&dir).unwrap();
    assert!(report.intact(), "{report:?}");
    assert_eq!((report.records, report.beyond_head, report.torn_bytes), (8, 0, 0));
    let records = all(&dir);
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    assert!(records.windows(2).all(|pair| pair[1].prev == pair[0].hash));
    assert_eq!(records[usize::try_from(head.seq).unwrap() - 1].hash, head.hash);
    let record = &records[usize::try_from(odd).unwrap() - 1];
    assert_eq!(record.session.as_deref(), Some(text));
    assert_eq!(serde_json::from_str::<serde_json::Value>(record.body.get()).unwrap(), json!({ text: text }));
    assert_eq!(kinds(&dir)[..2], ["trail.began", "trail.opened"]);

    // Nobody else may read it.
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.clone()), 0o700);
    for entry in std::fs::read_dir(&dir).unwrap() {
        assert_eq!(mode(entry.unwrap().path()), 0o600);
    }
}

#[tokio::test]
async fn what_is_no_record_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let trail = Trail::open(dir.path(), options()).unwrap();
    for kind in ["", "Upper", "a b", "a\"b", "trail.began", "ü", &"x".repeat(65)] {
        assert!(matches!(trail.append(kind, None, ()).await, Err(AppendError::Kind { .. })), "{kind}");
    }
    let long = trail.append("x", None, "x".repeat(64 * 1024)).await;
    assert_eq!(long, Err(AppendError::TooLarge { kind: "x".into(), bytes: 64 * 1024 + 2 }));
    trail.append("x", None, "x".repeat(64 * 1024 - 2)).await.unwrap();
    assert_eq!(trail.append("x", Some(&"s".repeat(257)), ()).await, Err(AppendError::Session { bytes: 257 }));
    trail.append("x", Some(&"\u{1}".repeat(256)), "x".repeat(64 * 1024 - 2)).await.unwrap();
    let no_json = std::collections::BTreeMap::from([((1, 2), 3)]);
    assert!(matches!(trail.append("x", None, no_json).await, Err(AppendError::Body { .. })));
    trail.close().await;
    assert!(verify(dir.path()).unwrap().intact());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_segments_and_each_number_is_given_once() {
    let dir = tempfile::tempdir().unwrap();
    let trail = Trail::open(dir.path(), palisade_audit::Options { segment_bytes: 16 * 1024, ..options() }).unwrap();
    let callers = (0..32).map(|caller| {
        let trail = trail.clone();
        tokio::spawn(async move {
            let mut numbers = Vec::new();
            for n in 0..40 {
                if n % 2 == 0 {
                    trail.note("note", Some("sesn_1"), (caller, n)).await.unwrap();
                } else {
                    numbers.push(trail.append("record", Some("sesn_1"), (caller, n)).await.unwrap());
                }
            }
            numbers
        })
    });
    let mut numbers = BTreeSet::new();
    for caller in callers.collect::<Vec<_>>() {
        let own = caller.await.unwrap();
        assert!(own.is_sorted());
        numbers.extend(own);
    }
    assert_eq!(numbers.len(), 32 * 20);
    trail.close().await;
    let report = verify(dir.path()).unwrap();
    assert!(report.intact() && report.segments > 8, "{report:?}");
    let records = all(dir.path());
    assert_eq!(records.len(), 2 + 32 * 40);
    let of = |kind: &str| records.iter().filter(|record| record.kind == kind).map(|record| record.seq).collect();
    assert_eq!(numbers, of("record"));
    // Of one caller all are in the order they were given, notes and others.
    for caller in 0..32 {
        let own: Vec<(u32, u32)> = records[2..]
            .iter()
            .map(|record| serde_json::from_str(record.body.get()).unwrap())
            .filter(|(of, _)| *of == caller)
            .collect();
        assert_eq!(own, (0..40).map(|n| (caller, n)).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_note_becomes_durable_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let trail = Trail::open(dir.path(), options()).unwrap();
    let mut follow = trail.subscribe(Filter::default());
    trail.note("note", None, ()).await.unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(60), follow.next()).await.unwrap();
    assert!(matches!(seen, Some(Seen::Record(record)) if record.kind == "note" && record.seq == 3));
    assert_eq!(kinds(dir.path())[2], "note");
}

#[tokio::test]
async fn followers_see_what_is_durable_and_are_told_what_they_missed() {
    let dir = tempfile::tempdir().unwrap();
    let trail = Trail::open(dir.path(), options()).unwrap();
    let filter = Filter { session: Some("sesn_1".into()), kinds: vec!["egress.".into()], ..Filter::default() };
    let (mut follow, mut slow) = (trail.subscribe(filter), trail.subscribe(Filter::default()));
    trail.append("egress.request", Some("sesn_2"), ()).await.unwrap();
    trail.append("tool.call", Some("sesn_1"), ()).await.unwrap();
    let wanted = trail.append("egress.request", Some("sesn_1"), ()).await.unwrap();
    let Some(Seen::Record(record)) = follow.next().await else { panic!("no record") };
    assert_eq!(record.seq, wanted);

    for _ in 0..2000 {
        trail.note("tool.call", None, ()).await.unwrap();
    }
    trail.close().await;
    let Some(Seen::Missed(missed)) = slow.next().await else { panic!("nothing missed") };
    let mut seen = 0;
    while let Some(Seen::Record(record)) = slow.next().await {
        seen += 1;
        assert_eq!(record.seq, 2 + missed + seen);
    }
    assert_eq!(missed + seen, 2003);
    // None of what was passed over is of its session, but it may have been among what was missed.
    assert!(matches!(follow.next().await, Some(Seen::Missed(_)) | None));
    assert!(trail.subscribe(Filter::default()).next().await.is_none());
}

#[tokio::test]
async fn a_reader_finds_what_it_asks_for_and_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    assert!(read(dir.path(), Filter::default()).is_err() && verify(dir.path()).is_err());
    let trail = Trail::open(dir.path(), palisade_audit::Options { segment_bytes: 4096, ..options() }).unwrap();
    for n in 0..60 {
        let session = if n % 2 == 0 { "sesn_1" } else { "sesn_2" };
        trail.append(["a.x", "a.y", "b"][n % 3], Some(session), n).await.unwrap();
    }
    let count = |filter| read(dir.path(), filter).unwrap().map(Result::unwrap).count();
    let session = Some("sesn_1".to_owned());
    assert_eq!(count(Filter { session: session.clone(), ..Filter::default() }), 30);
    assert_eq!(count(Filter { session, kinds: vec!["b".into()], ..Filter::default() }), 10);
    assert_eq!(count(Filter { kinds: vec!["a.".into()], ..Filter::default() }), 40);
    assert_eq!(count(Filter { after: 52, ..Filter::default() }), 10);
    let at = read(dir.path(), Filter { after: 52, ..Filter::default() }).unwrap().next().unwrap().unwrap().time;
    assert_eq!(count(Filter { since: Some(at), ..Filter::default() }), 10);

    let mut records = read(dir.path(), Filter { after: 62, ..Filter::default() }).unwrap();
    for n in 63..160 {
        assert!(records.next().is_none());
        trail.append("more", None, "x".repeat(n)).await.unwrap();
        assert_eq!(records.next().unwrap().unwrap().seq, n as u64);
    }
    assert!(verify(dir.path()).unwrap().segments > 5);
}
