//! What goes wrong between the worker and the control plane, and heals.

use palisade_testkit::control_plane::{Reply, Route, text};
use palisade_worker::Observation;
use serde_json::json;

use crate::rig::Rig;

/// The official workers stand still for ever after this one.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_events_list_is_tried_again_until_it_works() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let call = session.bash("echo healed");
    rig.fake.fault(
        Route::Events,
        [Reply::error(500), Reply::error(403), Reply::body("<html>"), Reply::Regular, Reply::error(502)],
    );
    session.queue();
    let working = rig.start();
    assert_eq!(text(&rig.result(&session, &call).await), "healed");
    assert_eq!(session.streams_opened(), 1);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_cut_while_a_tool_runs_loses_nothing_and_repeats_nothing() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start();
    let call = session
        .bash("echo x >> /workspace/count; touch /workspace/started; until [ -e /mnt/session/outputs/go ]; do sleep 0.01; done");
    rig.content(&session, "started", "").await;
    for (round, clean) in [false, true, false].into_iter().enumerate() {
        rig.fake.fault(Route::Stream, [Reply::error(503)]);
        session.cut(clean);
        rig.fake.wait("a new stream", |_| (session.streams_opened() >= round + 2).then_some(())).await;
    }
    session.cut(true);
    let meanwhile = session.bash("echo meanwhile");
    session.raw_frame("data: {\"type\":\"unknown.kind\"}\n\n: comment\n\nevent: error\ndata: {\"error\":{\"message\":\"overloaded\"}}\n\n");
    rig.go(&session);
    assert_eq!(text(&rig.result(&session, &meanwhile).await), "meanwhile");
    rig.result(&session, &call).await;
    rig.content(&session, "count", "x\n").await;
    assert_eq!(session.results().len(), 2);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_posted_until_it_is_taken_and_run_once() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let call = session.bash("echo x >> /workspace/count; echo result");
    rig.fake.fault(Route::Send, [500, 429, 409, 503].map(Reply::error));
    session.queue();
    let working = rig.start();
    assert_eq!(text(&rig.result(&session, &call).await), "result");
    rig.content(&session, "count", "x\n").await;
    assert_eq!(rig.fake.seen_on(Route::Send).len(), 5);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_result_is_replaced_once_and_then_given_up() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start();
    rig.fake.fault(Route::Send, [Reply::error(400)]);
    let replaced = session.bash("echo x >> /workspace/count");
    let result = rig.result(&session, &replaced).await;
    assert_eq!(result["is_error"], true);
    assert!(text(&result).contains("could not be delivered"), "{result}");

    rig.fake.fault(Route::Send, [Reply::error(400), Reply::error(400)]);
    let lost = session.bash("echo x >> /workspace/count");
    rig.observes(
        "the surrender",
        |observation| matches!(observation, Observation::ResultRefused { call, .. } if *call == lost),
    )
    .await;
    // A new connection brings the call up again; it is not run a second time.
    let streams = session.streams_opened();
    session.cut(true);
    rig.fake.wait("a new stream", |_| (session.streams_opened() > streams).then_some(())).await;
    let next = session.bash("echo x >> /workspace/count");
    rig.result(&session, &next).await;
    rig.content(&session, "count", "x\nx\nx\n").await;
    working.end().await;
}

/// Somebody answered first: the late result is accepted by the control plane and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_result_is_no_trouble() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start();
    rig.fake.fault(Route::Send, [Reply::error(503)]);
    let call = session.bash("echo ours");
    rig.fake.wait("the first attempt", |fake| fake.seen_on(Route::Send).pop()).await;
    session.emit(json!({"type": "user.tool_result", "tool_use_id": call, "content": [], "is_error": false}));
    let next = session.bash("echo next");
    assert_eq!(text(&rig.result(&session, &next).await), "next");
    assert_eq!(rig.fake.item_state(&session.id).as_deref(), Some("active"));
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_secret_falls_back_to_the_key_and_an_expired_token_too() {
    let rig = Rig::new().await;
    let broken = rig.fake.session();
    let expired = rig.fake.session();
    let first = broken.bash("echo by key");
    let second = expired.bash("echo by key");
    broken.queue_with_secret(Some("%%% not base64 %%%".into()));
    // A token of another session is as good as an expired one: 401.
    expired.queue_with_secret(Some("eyJzZXNzaW9uc190b2tlbiI6InNrLWFudC1yZXEtb2xkIn0".into()));
    let working = rig.start();
    assert_eq!(text(&rig.result(&broken, &first).await), "by key");
    assert_eq!(text(&rig.result(&expired, &second).await), "by key");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_refused_for_good_ends_the_item() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    rig.fake.fault(Route::Stream, [Reply::error(403)]);
    session.queue();
    let working = rig.start();
    rig.fake.stopped(&session.id).await;
    assert_eq!(working.end().await.failed, 1);
}
