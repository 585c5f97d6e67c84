//! Checkpoints: what who has the trail, but not its key, cannot do.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use palisade_audit::{
    Filter, Flaw, OpenError, Options, PublicKey, Report, Seen, Signer, SignerError, Trail, verify, verify_with,
};
use ring::digest::{SHA256, digest};
use serde_json::json;

use crate::{all, kinds, options};

fn signed_options(signer: &Signer) -> Options {
    Options { signer: Some(signer.clone()), checkpoint_records: 10, segment_bytes: 8192, ..options() }
}

async fn fill(dir: &Path, signer: &Signer, records: u32) {
    let trail = Trail::open(dir, signed_options(signer)).unwrap();
    for n in 0..records {
        trail.append("egress.request", Some("sesn_1"), json!({ "to": "a.example:443", "n": n })).await.unwrap();
    }
    trail.close().await;
}

fn flaw(report: Report) -> Option<Flaw> {
    report.broken.map(|broken| broken.flaw)
}

/// Writes the whole chain anew, with good hashes and a good head, as anybody can: `change` is given each body, `None` leaves it out.
fn rewrite(dir: &Path, change: impl Fn(u64, &str) -> Option<String>) {
    let hex = |text: &str| {
        digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let (mut out, mut seq, mut prev) = (String::new(), 0, "0".repeat(64));
    for record in all(dir) {
        let Some(body) = change(record.seq, record.body.get()) else { continue };
        seq += 1;
        let session = serde_json::to_string(&record.session).unwrap();
        let (time, kind) = (record.time, record.kind);
        let line = format!(
            r#"{{"seq":{seq},"time":"{time}","kind":"{kind}","session":{session},"body":{body},"prev":"{prev}""#
        );
        prev = hex(&line);
        out.push_str(&format!("{line},\"hash\":\"{prev}\"}}\n"));
    }
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::write(dir.join("00000000000000000001.jsonl"), out).unwrap();
    // The best signature that there is: that of the head as it was.
    let old = std::fs::read_to_string(dir.join("head")).unwrap();
    let old = old.lines().max().unwrap().split(' ').nth(2).unwrap().to_owned();
    let head = format!("{seq:020} {prev} {old}");
    let head = format!("{head} {}\n", hex(&head));
    std::fs::write(dir.join("head"), format!("{head}{head}")).unwrap();
}

#[tokio::test]
async fn checkpoints_vouch_for_all_before_them() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, key) = (dir.path().join("audit"), dir.path().join("key"));
    let signer = Signer::open(&key).unwrap();
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    fill(&audit, &signer, 35).await;
    // The same key is read back.
    let signer = Signer::open(&key).unwrap();
    fill(&audit, &signer, 5).await;

    let report = verify(&audit).unwrap();
    assert!(report.intact(), "{report:?}");
    let signed = report.signed.clone().unwrap();
    assert_eq!((signed.last.seq, signed.keys), (report.records, vec![signer.public_key().id()]));
    let pem = audit.join(format!("checkpoint-{}.pem", signer.public_key().id()));
    let public = PublicKey::read(&pem).unwrap();
    assert_eq!(public, signer.public_key());
    assert_eq!(verify_with(&audit, &[public]).unwrap(), report);
    let (mut run, mut longest) = (0, 0);
    for kind in kinds(&audit) {
        run = if kind == "trail.checkpoint" { 0 } else { run + 1 };
        longest = longest.max(run);
    }
    assert_eq!(longest, 10);

    // Not without the key, and not with another's word.
    assert!(matches!(Trail::open(&audit, options()), Err(OpenError::KeyMissing { .. })));
    let other = Signer::open(&dir.path().join("other")).unwrap();
    assert!(matches!(flaw(verify_with(&audit, &[other.public_key()]).unwrap()), Some(Flaw::UnknownKey { .. })));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Signer::open(&key), Err(SignerError::Exposed { mode: 0o640, .. })));

    // A new key goes on, and both are needed to verify.
    fill(&audit, &other, 5).await;
    assert_eq!(verify(&audit).unwrap().signed.unwrap().keys, [public.id(), other.public_key().id()]);
    assert!(verify_with(&audit, &[public, other.public_key()]).unwrap().intact());
    assert!(!verify_with(&audit, &[other.public_key()]).unwrap().intact());
}

#[tokio::test]
async fn who_writes_the_whole_chain_anew_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, key) = (dir.path().join("audit"), dir.path().join("key"));
    let signer = Signer::open(&key).unwrap();
    fill(&audit, &signer, 25).await;
    let trusted = [signer.public_key()];
    let other = |body: &str| Some(body.replace("a.example", "b.example"));

    rewrite(&audit, |_, body| Some(body.to_owned()));
    assert!(verify_with(&audit, &trusted).unwrap().intact(), "the attack itself writes a good chain");

    // The chain is good, and what the checkpoints signed is another one.
    rewrite(&audit, |_, body| other(body));
    assert_eq!(flaw(verify(&audit).unwrap()), Some(Flaw::CheckpointMoved));
    assert!(matches!(Trail::open(&audit, signed_options(&signer)), Err(OpenError::Broken { .. })));
    std::fs::remove_dir_all(&audit).unwrap();

    // Without checkpoints: it verifies by itself, but not for one who knows that there should be some.
    fill(&audit, &signer, 25).await;
    rewrite(&audit, |_, body| if body.contains("signature") { None } else { other(body) });
    assert_eq!(flaw(verify_with(&audit, &trusted).unwrap()), Some(Flaw::Unsigned));
    assert_eq!(verify(&audit).unwrap().signed, None);
    std::fs::remove_dir_all(&audit).unwrap();

    // Only the end, behind a checkpoint: no more than may be unsigned.
    fill(&audit, &signer, 25).await;
    let checkpoints: Vec<u64> =
        all(&audit).iter().filter(|record| record.kind == "trail.checkpoint").map(|record| record.seq).collect();
    rewrite(&audit, |seq, body| {
        if seq > checkpoints[1] && body.contains("signature") { None } else { other_after(seq, checkpoints[1], body) }
    });
    let report = verify_with(&audit, &trusted).unwrap();
    assert_eq!(report.broken.unwrap().seq, checkpoints[1] + 11);
    std::fs::remove_dir_all(&audit).unwrap();

    // Signed with a key of the attacker's, put beside in place of the other.
    fill(&audit, &Signer::open(&dir.path().join("attacker")).unwrap(), 25).await;
    assert!(verify(&audit).unwrap().intact());
    assert!(matches!(flaw(verify_with(&audit, &trusted).unwrap()), Some(Flaw::UnknownKey { .. })));

    // A checkpoint with its signature changed.
    std::fs::remove_dir_all(&audit).unwrap();
    fill(&audit, &signer, 5).await;
    let last = all(&audit).last().unwrap().seq;
    rewrite(&audit, |seq, body| {
        Some(if seq == last { body.replace("\"every\":10", "\"every\":1000000") } else { body.to_owned() })
    });
    assert!(matches!(flaw(verify(&audit).unwrap()), Some(Flaw::Forged { .. })));
}

/// Adds a record behind the end, with a good hash; the head stays as it is.
fn add(dir: &Path) {
    let last = all(dir).pop().unwrap();
    let line = format!(
        r#"{{"seq":{},"time":"{}","kind":"egress.request","session":"sesn_9","body":{{}},"prev":"{}""#,
        last.seq + 1,
        last.time,
        last.hash
    );
    let hash: String = digest(&SHA256, line.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut segments: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    let segment = segments.into_iter().max().unwrap();
    let text = std::fs::read_to_string(&segment).unwrap();
    std::fs::write(segment, format!("{text}{line},\"hash\":\"{hash}\"}}\n")).unwrap();
}

#[tokio::test]
async fn the_end_is_the_writers() {
    let dir = tempfile::tempdir().unwrap();
    let audit = dir.path().join("audit");
    let signer = Signer::open(&dir.path().join("key")).unwrap();

    // Cut off behind a checkpoint, with the head moved back: all that is left is signed, but for the head.
    fill(&audit, &signer, 25).await;
    let first = all(&audit).into_iter().find(|record| record.kind == "trail.checkpoint").unwrap().seq;
    rewrite(&audit, |seq, body| if seq > first { None } else { Some(body.to_owned()) });
    assert_eq!(flaw(verify(&audit).unwrap()), Some(Flaw::HeadForged));
    assert!(matches!(Trail::open(&audit, signed_options(&signer)), Err(OpenError::Broken { .. })));
    std::fs::remove_dir_all(&audit).unwrap();

    // Added while nobody writes, with the head moved on.
    fill(&audit, &signer, 25).await;
    add(&audit);
    rewrite(&audit, |_, body| Some(body.to_owned()));
    assert_eq!(flaw(verify(&audit).unwrap()), Some(Flaw::HeadForged));
    std::fs::remove_dir_all(&audit).unwrap();

    // Added, with the head as it was: a crash could leave it so, and the next writer says what it found.
    fill(&audit, &signer, 25).await;
    add(&audit);
    let report = verify(&audit).unwrap();
    assert!(report.intact() && report.beyond_head == 1, "{report:?}");
    fill(&audit, &signer, 1).await;
    let recovered = all(&audit).into_iter().find(|record| record.kind == "trail.recovered").unwrap();
    assert_eq!(recovered.body.get(), r#"{"cut_bytes":0,"beyond_head":1,"head_torn":false}"#);
    let report = verify_with(&audit, &[signer.public_key()]).unwrap();
    assert!(report.intact() && report.beyond_head == 0, "{report:?}");
}

fn other_after(seq: u64, after: u64, body: &str) -> Option<String> {
    Some(if seq > after { body.replace("a.example", "b.example") } else { body.to_owned() })
}

#[tokio::test]
async fn a_quiet_trail_is_signed_after_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::open(&dir.path().join("key")).unwrap();
    let audit = dir.path().join("audit");
    let trail =
        Trail::open(&audit, Options { checkpoint_interval: Duration::from_millis(20), ..signed_options(&signer) })
            .unwrap();
    let mut follow = trail.subscribe(Filter { kinds: vec!["trail.checkpoint".into()], ..Filter::default() });
    trail.append("x", None, ()).await.unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(60), follow.next()).await.unwrap();
    assert!(matches!(seen, Some(Seen::Record(_))));
    // And not again while nothing happens.
    trail.close().await;
    assert!(follow.next().await.is_none());
}

/// The document has a script that needs nothing of ours; this runs it.
#[tokio::test]
async fn a_script_without_palisade_verifies_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let audit = dir.path().join("audit");
    fill(&audit, &Signer::open(&dir.path().join("key")).unwrap(), 12).await;
    let script = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/security/audit.md")).unwrap();
    let script = script.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let check = |expected: bool| {
        let output =
            Command::new("python3").arg("-c").arg(script).arg(&audit).output().expect("python3 is on this machine");
        assert_eq!(output.status.success(), expected, "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(check(true), format!("{} records, {}\n", all(&audit).len(), all(&audit).last().unwrap().hash));
    let segment = audit.join("00000000000000000001.jsonl");
    let text = std::fs::read_to_string(&segment).unwrap();
    std::fs::write(&segment, text.replacen("a.example", "b.example", 1)).unwrap();
    check(false);
}
