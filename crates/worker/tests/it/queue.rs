//! Polling, claiming, many sessions, and the end of a worker.

use std::sync::Arc;
use std::time::Duration;

use palisade_sandbox::{Bare, BareOptions, Facility};
use palisade_testkit::control_plane::{KEY, Reply, Route, text, token};
use palisade_worker::{Error, Mode, Secret};

use crate::rig::{Rig, native};

/// The whole trace of one item, as the official workers' is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn one_session_from_claim_to_stop() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let call = session.bash("echo hi; pwd");
    session.queue();
    let mut options = rig.options();
    options.max_idle = Duration::from_millis(50);
    options.worker_id = Some("worker-7".into());
    let working = rig.start_with(options);
    let result = rig.result(&session, &call).await;
    assert_eq!(text(&result), "hi\n/workspace");
    assert_eq!(result["is_error"], false);
    session.idle();
    rig.fake.stopped(&session.id).await;
    let summary = working.end().await;
    assert_eq!((summary.claimed, summary.completed, summary.failed, summary.lost), (1, 1, 0, 0));

    let seen = rig.fake.seen();
    let polls = rig.fake.seen_on(Route::Poll);
    assert_eq!(polls[0].query, "block_ms=999");
    assert_eq!((polls[0].bearer.as_str(), polls[0].worker_id.as_deref()), (KEY, Some("worker-7")));
    assert_eq!(rig.fake.seen_on(Route::Ack)[0].bearer, KEY);
    assert_eq!(rig.fake.seen_on(Route::Heartbeat)[0].query, "expected_last_heartbeat=NO_HEARTBEAT");
    assert!(rig.fake.seen_on(Route::Events)[0].query.starts_with("limit=1000"));
    assert_eq!(rig.fake.seen_on(Route::Stop)[0].body, serde_json::json!({"force": true}));
    let first = |route| seen.iter().position(|seen| seen.route == route).unwrap();
    assert!(first(Route::Ack) < first(Route::Heartbeat));
    assert!(first(Route::Stream) < first(Route::Events));
    assert!(first(Route::Events) < first(Route::Send));
    let session_calls = seen.iter().filter(|seen| !matches!(seen.route, Route::Poll | Route::Ack));
    assert!(session_calls.clone().all(|seen| seen.bearer == token(&session.id)), "per-item calls carry the token");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_an_empty_queue_and_every_stale_item_is_passed_over() {
    let rig = Rig::new().await;
    rig.fake.hold_polls(false);
    let empty = [Reply::body("null"), Reply::body("{}"), Reply::body(""), Reply::Raw(204, "", String::new())];
    rig.fake.fault(Route::Poll, empty);
    rig.fake.fault(Route::Poll, [404, 404, 404, 429, 500, 502].map(Reply::error));
    rig.fake.queue_other("work_health", "healthcheck");
    let session = rig.fake.session();
    let call = session.bash("echo after all");
    session.queue();
    let working = rig.start();
    assert_eq!(text(&rig.result(&session, &call).await), "after all");
    rig.fake.stopped("work_health").await;
    let looked_up = rig.fake.seen_on(Route::Session);
    assert!(looked_up.iter().all(|seen| seen.path.ends_with(&session.id)), "no session call for a healthcheck");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_ends_the_worker_with_its_reason() {
    let rig = Rig::new().await;
    let mut options = rig.options();
    options.environment_key = Secret::new("sk-ant-oat01-revoked");
    let error = rig.start_with(options).outcome().await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("environment key") && !shown.contains("revoked-") && !shown.contains("oat01"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_acknowledgements_do_not_end_the_worker() {
    let rig = Rig::new().await;
    let gone = rig.fake.session();
    let refused = rig.fake.session();
    let served = rig.fake.session();
    let call = served.bash("echo served");
    rig.fake.fault(Route::Ack, [Reply::error(404), Reply::error(400), Reply::error(500), Reply::Regular]);
    for session in [&gone, &refused, &served] {
        session.queue();
    }
    let working = rig.start();
    rig.result(&served, &call).await;
    rig.fake.stopped(&refused.id).await;
    assert_ne!(rig.fake.item_state(&gone.id).as_deref(), Some("stopped"));
    working.end().await;
}

/// Each of two sessions waits for what the other one's call posts: neither could finish alone.
#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_at_once_and_each_alone_in_its_sandbox() {
    let rig = Rig::new().await;
    let (one, two) = (rig.fake.session(), rig.fake.session());
    let first = one
        .bash("echo one > /workspace/mine; until [ -e /mnt/session/outputs/go ]; do sleep 0.01; done; echo one ends");
    one.queue();
    let second = two.bash("ls /workspace; echo two ends");
    two.queue();
    let working = rig.start();
    assert_eq!(text(&rig.result(&two, &second).await), "two ends");
    rig.go(&one);
    assert_eq!(text(&rig.result(&one, &first).await), "one ends");
    assert_eq!(rig.fake.item_state(&one.id).as_deref(), Some("active"));
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_sessions_than_slots() {
    let rig = Rig::new().await;
    let (one, two) = (rig.fake.session(), rig.fake.session());
    let first = one.bash("echo one");
    one.queue();
    two.bash("echo two");
    two.queue();
    let mut options = rig.options();
    options.concurrency = 1;
    options.max_idle = Duration::from_millis(30);
    let working = rig.start_with(options);
    rig.result(&one, &first).await;
    assert_eq!(rig.fake.item_state(&two.id).as_deref(), Some("queued"));
    one.idle();
    rig.fake.wait("the second session to be served", |_| two.results().pop()).await;
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_serves_what_is_queued_and_ends() {
    let rig = Rig::new().await;
    let sessions: Vec<_> = (0..3).map(|_| rig.fake.session()).collect();
    for session in &sessions {
        session.bash("echo drained");
        session.queue();
    }
    let mut options = rig.options();
    options.mode = Mode::Drain;
    options.concurrency = 2;
    options.max_idle = Duration::from_millis(30);
    let working = rig.start_with(options);
    for session in &sessions {
        rig.fake.wait("a result", |_| session.results().pop()).await;
        session.idle();
    }
    let summary = working.outcome().await.unwrap();
    assert_eq!((summary.claimed, summary.completed), (3, 3));
    for session in &sessions {
        assert_eq!(text(&session.results()[0]), "drained");
    }
    assert!(rig.fake.seen_on(Route::Poll).iter().all(|poll| poll.query == "reclaim_older_than_ms=2000"));
}

/// SIGTERM: no new claims, the running call finishes and is posted, the pending one stays for the next worker.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_what_runs_and_releases_the_rest() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let running = session
        .bash("touch /workspace/started; until [ -e /mnt/session/outputs/go ]; do sleep 0.01; done; echo finished");
    let pending = session.bash("echo by the next worker");
    session.queue();
    let working = rig.start();
    rig.content(&session, "started", "").await;
    working.shutdown.cancel();
    let late = rig.fake.session();
    late.queue();
    rig.go(&session);
    let summary = working.outcome().await.unwrap();
    assert_eq!(summary.completed, 1);
    assert_eq!(text(&session.result_of(&running).unwrap()), "finished");
    assert!(session.result_of(&pending).is_none());
    assert_eq!(rig.fake.item_state(&session.id).as_deref(), Some("stopped"));
    assert_ne!(rig.fake.item_state(&late.id).as_deref(), Some("starting"));

    session.queue();
    let next = rig.start();
    assert_eq!(text(&rig.result(&session, &pending).await), "by the next worker");
    next.end().await;
}

/// A call that outlasts the grace is killed and answered, because its effects may not be repeated.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_kills_and_answers_what_outlasts_the_grace() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let call = session.bash("touch /workspace/started; sleep 1000");
    session.queue();
    let mut options = rig.options();
    // Of which a fifth is left for telling.
    options.grace = Duration::from_secs(10);
    let working = rig.start_with(options);
    rig.content(&session, "started", "").await;
    working.end().await;
    let result = session.result_of(&call).unwrap();
    assert_eq!(result["is_error"], true);
    assert!(text(&result).contains("shutting down"), "{result}");
    assert_eq!(rig.fake.item_state(&session.id).as_deref(), Some("stopped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_be_in_force_is_or_no_session_is_claimed() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let call = session.bash("echo inside");
    session.queue();
    let mut options = rig.options();
    options.require = vec![Facility::Seccomp];
    options.driver = Arc::new(Bare::new(BareOptions { development: true, allow_root: true }).unwrap());
    let error = rig.start_with(options.clone()).outcome().await.unwrap_err();
    assert!(matches!(error, Error::Boundary(_)) && error.to_string().contains("seccomp is required"), "{error}");
    assert!(rig.fake.seen().is_empty(), "something was asked for");
    // Where it is, nothing is in the way, and nothing stays of the trial.
    options.driver = native();
    let state = options.state_dir.clone();
    let working = rig.start_with(options);
    assert_eq!(text(&rig.result(&session, &call).await), "inside");
    let names = std::fs::read_dir(state).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.filter(|name| name.starts_with(".boundary-")).count() == 0);
    working.end().await;
}

#[tokio::test]
async fn options_that_cannot_work_are_refused_with_their_reason() {
    let rig = Rig::new().await;
    let refused = |change: &dyn Fn(&mut palisade_worker::Options)| {
        let mut options = rig.options();
        change(&mut options);
        palisade_worker::Worker::new(options).unwrap_err()
    };
    assert!(matches!(refused(&|options| options.base_url = "ftp://x".into()), Error::BaseUrl(_)));
    assert!(matches!(refused(&|options| options.base_url = "http://10.0.0.1".into()), Error::PlainHttp(_)));
    assert!(matches!(refused(&|options| options.environment_key = Secret::new(" ")), Error::NoKey));
    assert!(matches!(refused(&|options| options.environment_key = Secret::new("a\nb")), Error::Client(_)));
    assert!(matches!(refused(&|options| options.ca_file = Some("/dev/null".into())), Error::Client(_)));
    for (name, value) in [("ANTHROPIC_API_KEY", "x"), ("SAFE", KEY)] {
        let error = refused(&|options| options.sandbox_env = vec![(name.into(), value.into())]);
        assert!(matches!(&error, Error::SandboxEnv(_)) && !error.to_string().contains(KEY), "{error}");
    }
}
