//! A writer that is killed at any moment leaves every acknowledged record, and a chain that goes on.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use palisade_audit::{Options, Signer, Trail, verify, verify_with};

use crate::{all, options};

/// Tells the child process where to write.
const WRITER: &str = "PALISADE_AUDIT_CRASH";

/// 100 kills in all.
const TRAILS: u64 = 10;
const KILLS: u64 = 10;

fn opened(dir: &Path) -> (Trail, Signer) {
    let signer = Signer::open(&dir.join("key")).unwrap();
    let crash = Options { signer: Some(signer.clone()), checkpoint_records: 20, segment_bytes: 16 * 1024, ..options() };
    (Trail::open(&dir.join("audit"), crash).unwrap(), signer)
}

/// The writer, in the child: says each record's number and body when it is acknowledged. Elsewhere it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_that_writes() {
    let Some(dir) = std::env::var_os(WRITER) else { return };
    let (trail, _) = opened(Path::new(&dir));
    // Whoever listens knows that from here on there is something to lose.
    println!("\nopen");
    let callers = (0..8).map(|caller| {
        let trail = trail.clone();
        tokio::spawn(async move {
            for n in 0u64.. {
                let body = (std::process::id(), caller, n, "x".repeat(usize::try_from(n * 37 % 500).unwrap()));
                trail.note("note", Some("sesn_1"), n).await.unwrap();
                let seq = trail.append("record", Some("sesn_1"), &body).await.unwrap();
                let line = format!("{seq} {}\n", serde_json::to_string(&body).unwrap());
                // The reader may be gone a moment before this process is.
                if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
}

#[test]
fn acknowledged_records_survive_kills_at_any_moment() {
    // Any sequence does, as long as the moments differ.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(std::process::id());
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    // Short trails: each is verified whole after each kill.
    let kept: usize = (0..TRAILS).map(|_| one_trail(&mut next)).sum();
    assert!(kept > 500, "only {kept} records were acknowledged");
}

/// Kills the writers of one trail, and returns how many of their records were acknowledged.
fn one_trail(next: &mut impl FnMut(u64) -> u64) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::process_that_writes", "--nocapture"])
            .env(WRITER, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        // One while it starts or opens, most while they write.
        let lines = if kill == 0 { next(4) } else { 5 + next(40) };
        let mut told: Vec<String> = out.by_ref().take(usize::try_from(lines).unwrap()).map(Result::unwrap).collect();
        for _ in 0..next(200_000) {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What was said before the end counts, but for a line that was cut short.
        told.extend(out.map_while(Result::ok));
        let whole = |line: &str| {
            let (seq, body) = line.split_once(' ')?;
            body.ends_with(']').then(|| Some((seq.parse::<u64>().ok()?, body.to_owned())))?
        };
        for (seq, body) in told.iter().filter_map(|line| whole(line)) {
            assert_eq!(acknowledged.insert(seq, body), None, "record {seq} was acknowledged twice");
        }
        if !dir.path().join("audit/head").exists() {
            assert!(acknowledged.is_empty());
            continue;
        }
        let report = verify(&dir.path().join("audit")).unwrap();
        assert!(report.intact(), "after kill {kill}: {report:?}");
        let last = acknowledged.last_key_value().map_or(0, |(seq, _)| *seq);
        assert!(report.head.unwrap().0 >= last, "the head is behind what was acknowledged: {report:?}");
    }
    let (trail, signer) = opened(dir.path());
    drop(trail);
    let audit = dir.path().join("audit");
    let report = verify_with(&audit, &[signer.public_key()]).unwrap();
    assert!(report.intact() && report.segments > 1, "{report:?}");
    let records: BTreeMap<u64, String> =
        all(&audit).into_iter().map(|record| (record.seq, record.body.get().to_owned())).collect();
    for (seq, body) in &acknowledged {
        assert_eq!(records.get(seq), Some(body), "record {seq} is lost");
    }
    acknowledged.len()
}
