//! Heartbeats and what their answers do.

use std::time::Duration;

use palisade_testkit::control_plane::{Reply, Route, text};
use palisade_worker::Observation;

use crate::rig::Rig;

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_echo_the_last_one_byte_for_byte_through_failures() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let call = session.bash("echo x");
    let failures = [Reply::error(500), Reply::Regular, Reply::error(429), Reply::error(503), Reply::Hang];
    rig.fake.fault(Route::Heartbeat, failures);
    // The one that is never answered is given up after half of it.
    rig.fake.ttl_seconds(10);
    session.queue();
    let working = rig.start();
    rig.result(&session, &call).await;
    let beats = || rig.fake.seen_on(Route::Heartbeat);
    let beats = rig.fake.wait("more heartbeats", |_| Some(beats()).filter(|beats| beats.len() >= 9)).await;
    assert!(beats[1].query.ends_with("NO_HEARTBEAT"), "a failed first beat is repeated as the first");
    // The fake compares the value; a wrong one would have ended the item.
    assert!(beats[8].query.contains("beat%2B"), "{}", beats[8].query);
    assert_eq!(rig.fake.item_state(&session.id).as_deref(), Some("active"));
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_kills_the_call_posts_nothing_and_stops_nothing() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.bash("touch /workspace/started; while :; do echo x >> /workspace/alive; sleep 0.02; done");
    session.queue();
    let working = rig.start();
    rig.content(&session, "started", "").await;
    session.steal_lease();
    rig.observes("the loss", |observation| matches!(observation, Observation::LeaseLost { .. })).await;
    let written = || std::fs::metadata(rig.file(&session, "alive")).map_or(0, |file| file.len());
    let before = written();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(written(), before, "it still runs");
    assert!(rig.fake.seen_on(Route::Send).is_empty());
    assert!(rig.fake.seen_on(Route::Stop).is_empty());
    assert_eq!(working.end().await.lost, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_accepted_heartbeat_for_a_time_to_live_is_a_loss() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let call = session.bash("echo x");
    session.queue();
    let working = rig.start();
    rig.result(&session, &call).await;
    // Only now, so that it lasts until here.
    rig.fake.ttl_seconds(1);
    let beats = rig.fake.seen_on(Route::Heartbeat).len();
    let lost = || rig.observed.lock().unwrap().iter().any(|seen| matches!(seen, Observation::LeaseLost { .. }));
    // The first of two was answered with it. If the machine stands still the lease is lost by itself, which is what is wanted.
    rig.fake
        .wait("two beats", |fake| (fake.seen_on(Route::Heartbeat).len() >= beats + 2 || lost()).then_some(()))
        .await;
    rig.fake.fault(Route::Heartbeat, (0..500).map(|_| Reply::error(500)));
    rig.observes("the loss", |observation| matches!(observation, Observation::LeaseLost { .. })).await;
    assert!(rig.fake.seen_on(Route::Stop).is_empty());
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_lets_the_running_call_finish_and_starts_no_other() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let running =
        session.bash("touch /workspace/started; until [ -e /mnt/session/outputs/go ]; do sleep 0.01; done; echo done");
    let next = session.bash("touch /workspace/next");
    session.queue();
    let working = rig.start();
    rig.content(&session, "started", "").await;
    session.ask_to_stop();
    let beats = rig.fake.seen_on(Route::Heartbeat).len();
    rig.fake.wait("a beat", |fake| (fake.seen_on(Route::Heartbeat).len() > beats + 1).then_some(())).await;
    rig.go(&session);
    rig.fake.stopped(&session.id).await;
    assert_eq!(text(&session.result_of(&running).unwrap()), "done");
    assert!(session.result_of(&next).is_none());
    assert!(!rig.file(&session, "next").exists());
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_vanished_ends_and_nothing_runs_before_the_lease_is_held() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.bash("touch /workspace/ran");
    rig.fake.fault(Route::Heartbeat, [Reply::error(404)]);
    session.queue();
    let working = rig.start();
    rig.fake.stopped(&session.id).await;
    assert!(!rig.file(&session, "ran").exists());
    working.end().await;
}
