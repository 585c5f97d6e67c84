//! Checkpoints before calls, calls that are undone, and sessions that start from a checkpoint.

use std::sync::Arc;
use std::time::Duration;

use palisade_checkpoint::Store;
use palisade_sandbox::{Oci, OciOptions};
use palisade_testkit::control_plane::{FakeSession, text};
use palisade_worker::perimeter::{CheckpointBody, Client, RestoreBody};
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
async fn what_succeeded_is_kept_however_soon_the_next_call_comes() {
    const CALLS: usize = 20;
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start_with(options(&rig, transactional()));
    // Asked for at once, so that each begins as soon as the one before it has ended. All are run by the same shell.
    let calls: Vec<String> = (0..CALLS).map(|number| session.bash(&format!("echo {number} >> log; echo $$"))).collect();
    let mut shells = Vec::new();
    for call in &calls {
        shells.push(text(&rig.result(&session, call).await).to_owned());
    }
    shells.dedup();
    assert_eq!(shells.len(), 1, "the sandbox was replaced: {shells:?}");
    let all: Vec<String> = (0..CALLS).map(|number| number.to_string()).collect();
    assert_eq!(says(&rig, &session, "cat log").await, all.join("\n"));
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_given_up_is_undone_before_anything_else_changes_the_workspace() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let policy = Checkpoints { before: Before::Gated, transactional: true, ..Checkpoints::default() };
    let mut wanted = options(&rig, policy);
    wanted.grace = Duration::from_millis(200);
    let first = rig.start_with(wanted.clone());
    assert_eq!(says(&rig, &session, "echo kept > kept; ls").await, "kept");
    let gated = session.ask("bash", json!({"command": "rm kept; touch /mnt/session/outputs/started; sleep 1000"}));
    session.confirm(&gated, "allow");
    let started = rig.dir.path().join("state/sessions").join(&session.id).join("outputs/started");
    rig.fake.wait("the call to be in its midst", |_| started.exists().then_some(())).await;
    first.crash().await;
    // The next one is wanted by no policy, and what it did is not taken back by a later one that is.
    session.queue();
    let second = rig.start_with(wanted);
    assert_eq!(says(&rig, &session, "echo new > new; ls").await, "kept\nnew");
    let asked = session.ask("bash", json!({"command": "ls"}));
    session.confirm(&asked, "allow");
    assert_eq!(text(&rig.result(&session, &asked).await), "kept\nnew");
    second.end().await;
}

/// A session in whose workspace two files are rewritten all the time: `a`, then `b` with the same number.
async fn restless(rig: &Rig, session: &FakeSession) -> Client {
    let command = "(i=0; while :; do i=$((i+1)); echo $i > t; mv t a; echo $i > t; mv t b; done) > /dev/null 2>&1 & \
                   until [ -e b ]; do sleep 0.01; done; echo on";
    assert_eq!(says(rig, session, command).await, "on");
    Client::new(rig.dir.path().join("state"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_of_one_moment() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start_with(options(&rig, Checkpoints::default()));
    let client = restless(&rig, &session).await;
    let store = Store::open(rig.dir.path().join("state/checkpoints")).unwrap();
    let mut seen = Vec::new();
    for _ in 0..20 {
        let taken = client.checkpoint(&session.id, &CheckpointBody::default()).await.unwrap();
        let layer = store.materialise(&taken.id, palisade_checkpoint::Ownership::Kept).unwrap();
        let number =
            |name: &str| -> u64 { std::fs::read_to_string(layer.path().join(name)).unwrap().trim().parse().unwrap() };
        let (a, b) = (number("a"), number("b"));
        assert!(a == b || a == b + 1, "{a} and {b} never were there together");
        seen.push(a);
    }
    assert!(seen.is_sorted() && seen[0] < seen[19], "nothing went on between the checkpoints: {seen:?}");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_wakes_nobody_who_is_paused() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start_with(options(&rig, Checkpoints::default()));
    let client = restless(&rig, &session).await;
    client.pause(&session.id).await.unwrap();
    let at = || std::fs::read_to_string(rig.file(&session, "b")).unwrap();
    let before = at();
    client.checkpoint(&session.id, &CheckpointBody::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(at(), before);
    client.resume(&session.id).await.unwrap();
    rig.fake.wait("it to go on", |_| (at() != before).then_some(())).await;
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_restores_is_not_undone_by_the_call_that_it_cut_off() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start_with(options(&rig, transactional()));
    assert_eq!(says(&rig, &session, "echo first > first; ls").await, "first");
    let client = Client::new(rig.dir.path().join("state"));
    let wanted = client.checkpoint(&session.id, &CheckpointBody::default()).await.unwrap();
    assert_eq!(says(&rig, &session, "echo second > second; ls").await, "first\nsecond");
    let cut = session.bash("rm first; touch /mnt/session/outputs/started; sleep 1000");
    let started = rig.dir.path().join("state/sessions").join(&session.id).join("outputs/started");
    rig.fake.wait("the call to be in its midst", |_| started.exists().then_some(())).await;
    client.restore(&session.id, &RestoreBody { checkpoint: wanted.id.to_string() }).await.unwrap();
    let result = rig.result(&session, &cut).await;
    assert!(result.to_string().contains("an operator brought the workspace back"), "{result}");
    assert_eq!(says(&rig, &session, "ls").await, "first");
    working.end().await;
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

/// gVisor's sandboxes, whose processes can be written to disk.
#[expect(clippy::print_stdout, reason = "a test that is not run says why")]
fn gvisor(rig: &Rig) -> Option<Options> {
    // Where the command line has it, in a directory that is closed to others.
    std::fs::set_permissions(rig.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let options = OciOptions {
        runtime: "runsc".into(),
        arguments: vec!["--platform=ptrace".to_owned()],
        scratch: Some(rig.dir.path().join("state/containers")),
    };
    match Oci::new(options) {
        Ok(driver) => Some(Options { driver: Arc::new(driver), ..self::options(rig, Checkpoints::default()) }),
        Err(why) if std::env::var_os("CI").is_none() || !rustix::process::geteuid().is_root() => {
            println!("not run: {why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_put_to_disk_goes_on_with_its_processes() {
    let rig = Rig::new().await;
    let Some(wanted) = gvisor(&rig) else { return };
    let session = rig.fake.session();
    session.queue();
    let working = rig.start_with(Options { tool_timeout: Duration::from_secs(5), ..wanted });
    let client = Client::new(rig.dir.path().join("state"));
    assert_eq!(says(&rig, &session, "x=kept; (while :; do echo . >> beats; sleep 0.05; done) & echo on").await, "on");
    // A call is under way, and has less time than the pause takes.
    let call = session.bash("touch begun; sleep 1; echo $x");
    let begun = rig.file(&session, "begun");
    rig.fake.wait("the call to be in its midst", |_| begun.exists().then_some(())).await;
    let asleep = client.hibernate(&session.id).await.unwrap();
    assert!(asleep.processes_kept);
    let shown = client.sessions().await.unwrap();
    assert_eq!((shown[0].sandbox, shown[0].paused), (false, true));
    let beats = || std::fs::metadata(rig.file(&session, "beats")).unwrap().len();
    let before = beats();
    // Its files can be looked at and kept meanwhile, and doing it twice is doing it once.
    client.checkpoint(&session.id, &CheckpointBody::default()).await.unwrap();
    assert!(client.hibernate(&session.id).await.unwrap().processes_kept);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(session.result_of(&call).is_none());
    assert_eq!(beats(), before);
    assert_eq!(client.resume(&session.id).await.unwrap().processes_kept, Some(true));
    assert_eq!(text(&rig.result(&session, &call).await), "kept");
    rig.fake.wait("what runs in the background", |_| (beats() > before).then_some(())).await;
    // Whoever goes back to a checkpoint has no processes.
    client.hibernate(&session.id).await.unwrap();
    client.restore(&session.id, &RestoreBody { checkpoint: asleep.checkpoint.id.to_string() }).await.unwrap();
    client.resume(&session.id).await.unwrap();
    assert_eq!(says(&rig, &session, "echo ${x:-none}; ls").await, "none\nbeats\nbegun");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_disk_outlives_its_worker() {
    let rig = Rig::new().await;
    let Some(wanted) = gvisor(&rig) else { return };
    let session = rig.fake.session();
    session.queue();
    let root = rig.dir.path().join("state/sessions").join(&session.id);
    let images = || {
        let names = std::fs::read_dir(&root).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("asleep")).collect();
        names.sort();
        names
    };
    let first = rig.start_with(wanted);
    let client = Client::new(rig.dir.path().join("state"));
    assert_eq!(says(&rig, &session, "x=kept; (while :; do echo . >> beats; sleep 0.05; done) & echo on").await, "on");
    assert!(client.hibernate(&session.id).await.unwrap().processes_kept);
    let beats = || std::fs::metadata(rig.file(&session, "beats")).unwrap().len();
    let before = beats();
    first.crash().await;
    assert_eq!(images(), ["asleep"]);

    // Another worker serves it, and leaves it as it is until it is told to go on.
    session.queue();
    let second = rig.start_with(gvisor(&rig).unwrap());
    let call = session.bash("echo $x");
    let mut served = false;
    for _ in 0..500 {
        served = client.sessions().await.is_ok_and(|all| all.iter().any(|one| one.paused));
        if served {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(served);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(session.result_of(&call).is_none());
    assert_eq!(beats(), before);
    assert_eq!(client.resume(&session.id).await.unwrap().processes_kept, Some(true));
    rig.fake.wait("what runs in the background", |_| (beats() > before).then_some(())).await;
    assert_eq!(text(&rig.result(&session, &call).await), "kept");
    // They are not there twice.
    assert_eq!(images(), Vec::<String>::new());

    // A worker that crashed while it woke them leaves the files, and nothing else.
    assert!(client.hibernate(&session.id).await.unwrap().processes_kept);
    second.crash().await;
    std::fs::rename(root.join("asleep"), root.join("asleep.woken")).unwrap();
    // So does one that crashed while it wrote them.
    std::fs::create_dir_all(root.join("asleep.new/image")).unwrap();
    std::fs::remove_file(root.join("paused")).unwrap();
    session.queue();
    let third = rig.start_with(gvisor(&rig).unwrap());
    assert_eq!(says(&rig, &session, "echo ${x:-none}; ls").await, "none\nbeats");
    assert_eq!(images(), Vec::<String>::new());

    // What cannot be brought back costs the processes, not the session.
    client.hibernate(&session.id).await.unwrap();
    std::fs::write(root.join("asleep/image/checkpoint.img"), "nonsense").unwrap();
    assert_eq!(client.resume(&session.id).await.unwrap().processes_kept, Some(false));
    assert_eq!(says(&rig, &session, "ls").await, "beats");
    client.hibernate(&session.id).await.unwrap();
    third.crash().await;
    // A session that no worker serves can be told as well; it goes on with the next one.
    std::fs::write(root.join("asleep/asleep.json"), "{}").unwrap();
    let other = rig.fake.session();
    other.queue();
    let fourth = rig.start_with(gvisor(&rig).unwrap());
    assert_eq!(says(&rig, &other, "echo other").await, "other");
    assert_eq!(client.resume(&session.id).await.unwrap().processes_kept, None);
    client.resume(&session.id).await.unwrap_err();
    fourth.end().await;
    session.queue();
    let fifth = rig.start_with(gvisor(&rig).unwrap());
    assert_eq!(says(&rig, &session, "ls").await, "beats");
    assert_eq!(images(), Vec::<String>::new());
    fifth.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_costs_a_session_neither_its_calls_nor_its_processes() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let wanted = options(&rig, Checkpoints::default());
    let second = Duration::from_secs(1);
    let wanted = Options { tool_timeout: 2 * second, max_idle: second, ..wanted };
    let first = rig.start_with(wanted.clone());
    let client = Client::new(rig.dir.path().join("state"));
    assert_eq!(says(&rig, &session, "x=kept; echo on").await, "on");
    let call = session.bash("touch begun; sleep 0.5; echo $x");
    let begun = rig.file(&session, "begun");
    rig.fake.wait("the call to be in its midst", |_| begun.exists().then_some(())).await;
    client.pause(&session.id).await.unwrap();
    // Longer than the call may take, with all that is waited beyond that.
    tokio::time::sleep(13 * second).await;
    assert!(session.result_of(&call).is_none());
    let refused = client.sessions().await.unwrap();
    assert!(refused[0].paused && refused[0].sandbox);
    client.resume(&session.id).await.unwrap();
    assert_eq!(text(&rig.result(&session, &call).await), "kept");
    // One that is idle stays as long as it is paused.
    client.pause(&session.id).await.unwrap();
    session.idle();
    tokio::time::sleep(3 * second).await;
    assert!(client.sessions().await.unwrap()[0].paused);
    let call = session.bash("echo $x");
    tokio::time::sleep(second / 2).await;
    assert!(session.result_of(&call).is_none());
    client.resume(&session.id).await.unwrap();
    assert_eq!(text(&rig.result(&session, &call).await), "kept");
    // A pause outlives the worker; what was in memory does not.
    client.pause(&session.id).await.unwrap();
    first.crash().await;
    session.queue();
    let next = rig.start_with(wanted);
    let call = session.bash("echo ${x:-none}");
    tokio::time::sleep(second).await;
    assert!(session.result_of(&call).is_none());
    client.resume(&session.id).await.unwrap();
    assert_eq!(text(&rig.result(&session, &call).await), "none");
    next.end().await;
}
