//! Checkpoints before calls, calls that are undone, and sessions that start from a checkpoint.

use std::time::Duration;

use palisade_checkpoint::Store;
use palisade_testkit::control_plane::{FakeSession, text};
use palisade_worker::{Before, Checkpoints, Observation, Options};
use serde_json::json;

use crate::rig::Rig;

fn options(rig: &Rig, checkpoints: Checkpoints) -> Options {
    Options { concurrency: 1, checkpoints, ..rig.options() }
}

fn transactional() -> Checkpoints {
    Checkpoints { before: Before::All, transactional: true, ..Checkpoints::default() }
}

fn taken(rig: &Rig) -> Vec<(String, String)> {
    let observed = rig.observed.lock().unwrap();
    let found = observed.iter().filter_map(|observation| match observation {
        Observation::CheckpointTaken { checkpoint, why, .. } => Some((checkpoint.clone(), why.clone())),
        _ => None,
    });
    found.collect()
}

async fn says(rig: &Rig, session: &FakeSession, command: &str) -> String {
    text(&rig.result(session, &session.bash(command)).await).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_is_undone_whole() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start_with(options(&rig, transactional()));
    assert_eq!(says(&rig, &session, "mkdir d; echo one > d/f; ln d/f same; ls").await, "d\nsame");
    let failed = session.bash("echo two > d/f; rm same; mkdir other; mv d moved; sleep 1000 & exit 3");
    let failed = rig.result(&session, &failed).await;
    assert_eq!(failed["is_error"], true);
    let content = failed["content"].as_array().unwrap();
    assert!(content.last().unwrap()["text"].as_str().unwrap().contains("returned to its state before this call"));
    assert_eq!(
        says(&rig, &session, "ls; cat d/f; stat -c %h d/f; pgrep sleep || echo nobody").await,
        "d\nsame\none\n2\nnobody"
    );
    // What succeeded stays.
    assert_eq!(says(&rig, &session, "echo three > g; ls").await, "d\ng\nsame");
    let failed = session.call("write", json!({"file_path": "/proc/x", "content": "x"}));
    assert_eq!(rig.result(&session, &failed).await["is_error"], true);
    assert_eq!(says(&rig, &session, "cat g").await, "three");
    assert_eq!(taken(&rig).len(), 6);
    working.end().await;
    assert!(!rig.dir.path().join("state/sessions").join(&session.id).join("transaction.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_cut_off_is_undone_by_the_next_worker() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let first = rig.start_with(options(&rig, transactional()));
    assert_eq!(says(&rig, &session, "echo kept > kept; ls").await, "kept");
    let cut = session.bash("rm kept; echo half > half; touch /mnt/session/outputs/started; sleep 1000");
    let started = rig.dir.path().join("state/sessions").join(&session.id).join("outputs/started");
    rig.fake.wait("the call to be in its midst", |_| started.exists().then_some(())).await;
    first.crash().await;

    session.queue();
    let second = rig.start_with(options(&rig, transactional()));
    let result = rig.result(&session, &cut).await;
    assert!(text(&result).contains("returned to its state before the call"), "{result}");
    assert_eq!(says(&rig, &session, "ls").await, "kept");
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_stopped_is_undone() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let mut wanted = options(&rig, transactional());
    wanted.grace = Duration::from_millis(200);
    let first = rig.start_with(wanted.clone());
    assert_eq!(says(&rig, &session, "echo kept > kept; ls").await, "kept");
    session.bash("rm kept; touch /mnt/session/outputs/started; sleep 1000");
    let started = rig.dir.path().join("state/sessions").join(&session.id).join("outputs/started");
    rig.fake.wait("the call to be in its midst", |_| started.exists().then_some(())).await;
    first.end().await;

    session.queue();
    let second = rig.start_with(wanted);
    assert_eq!(says(&rig, &session, "ls").await, "kept");
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_calls_that_a_person_confirmed_are_gated() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let policy = Checkpoints { before: Before::Gated, transactional: true, ..Checkpoints::default() };
    let working = rig.start_with(options(&rig, policy));
    assert_eq!(says(&rig, &session, "echo free > free").await, "(no output)");
    assert_eq!(taken(&rig), []);
    let asked = session.ask("bash", json!({"command": "rm free; false"}));
    session.confirm(&asked, "allow");
    assert_eq!(rig.result(&session, &asked).await["is_error"], true);
    assert_eq!(taken(&rig).len(), 1);
    assert_eq!(says(&rig, &session, "rm free; false; ls; false").await, "exit 1");
    assert_eq!(says(&rig, &session, "ls").await, "(no output)");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_start_from_a_checkpoint_and_share_what_it_holds() {
    let rig = Rig::new().await;
    let seed = rig.dir.path().join("seed");
    std::fs::create_dir(&seed).unwrap();
    std::fs::write(seed.join("from-seed"), "seed\n").unwrap();
    let origin = rig.fake.session();
    origin.queue();
    let mut wanted = options(&rig, Checkpoints { on_idle: true, ..Checkpoints::default() });
    wanted.seed = Some(seed);
    wanted.concurrency = 4;
    wanted.max_idle = Duration::from_millis(30);
    let working = rig.start_with(wanted);
    assert_eq!(
        says(&rig, &origin, "cat from-seed; echo changed > from-seed; echo more > more; ls").await,
        "seed\nfrom-seed\nmore"
    );
    origin.idle();
    let (checkpoint, why) = rig.fake.wait("the checkpoint of the idle session", |_| taken(&rig).pop()).await;
    assert_eq!(why, "idle");
    let forks: Vec<FakeSession> = (0..3).map(|_| rig.fake.session()).collect();
    for (number, fork) in forks.iter().enumerate() {
        fork.edit(|session| session["metadata"] = json!({"palisade.checkpoint": checkpoint.as_str()}));
        fork.queue();
        assert_eq!(
            says(&rig, fork, &format!("cat from-seed more; echo {number} > mine; cat mine")).await,
            format!("changed\nmore\n{number}")
        );
    }
    // Nothing was copied: what a fork has of its own is what it wrote.
    let written = std::fs::read_dir(rig.file(&forks[0], "")).unwrap().count();
    assert_eq!(written, 1);
    // A checkpoint of a fork stands on the same base, whole.
    forks[0].idle();
    rig.fake.wait("the checkpoint of the fork", |_| (taken(&rig).len() == 2).then_some(())).await;
    let (second, _) = taken(&rig).pop().unwrap();
    let store = Store::open(rig.dir.path().join("state/checkpoints")).unwrap();
    let changes = store.diff(Some(&checkpoint.parse().unwrap()), &second.parse().unwrap(), None).unwrap();
    assert_eq!(changes.len(), 1, "{changes:?}");
    let lost = rig.fake.session();
    lost.edit(|session| session["metadata"] = json!({"palisade.checkpoint": "nonsense"}));
    lost.queue();
    rig.fake.stopped(&lost.id).await;
    rig.observes("the reason", |observation| matches!(observation, Observation::Ended { session, reason, .. } if *session == lost.id && reason.contains("palisade.checkpoint"))).await;
    working.end().await;
}
