//! A worker that dies and comes back: results are never lost, effects never doubled.

use palisade_testkit::control_plane::{Reply, Route, text};
use serde_json::json;

use crate::rig::Rig;

/// One slot: a worker that is busy does not poll, so the poll of one that died cannot take the next one's item away.
fn options(rig: &Rig) -> palisade_worker::Options {
    palisade_worker::Options { concurrency: 1, ..rig.options() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_result_is_posted_again_and_the_call_not_run_again() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let call = session.bash("echo x >> /workspace/count; echo the result");
    rig.fake.fault(Route::Send, [Reply::Hang]);
    session.queue();
    let first = rig.start_with(options(&rig));
    rig.fake.wait("the post that is never answered", |fake| fake.seen_on(Route::Send).pop()).await;
    first.crash().await;
    assert!(session.result_of(&call).is_none());

    session.queue();
    let second = rig.start_with(options(&rig));
    assert_eq!(text(&rig.result(&session, &call).await), "the result");
    rig.content(&session, "count", "x\n").await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_cut_short_is_answered_not_repeated_and_reads_just_run() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let call = session.bash("echo x >> /workspace/count; sleep 1000");
    let read = session.call("read", json!({"file_path": "/workspace/count"}));
    session.queue();
    let first = rig.start_with(options(&rig));
    rig.content(&session, "count", "x\n").await;
    first.crash().await;

    session.queue();
    let second = rig.start_with(options(&rig));
    let result = rig.result(&session, &call).await;
    assert_eq!(result["is_error"], true);
    assert!(text(&result).contains("restarted while"), "{result}");
    assert!(text(&rig.result(&session, &read).await).contains('x'));
    rig.content(&session, "count", "x\n").await;
    second.end().await;
}

/// The result was accepted, but the worker died before it heard so.
#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_result_is_not_posted_again() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let call = session.bash("echo once");
    session.queue();
    let first = rig.start_with(options(&rig));
    rig.result(&session, &call).await;
    first.crash().await;
    let posts = rig.fake.seen_on(Route::Send).len();

    session.queue();
    let second = rig.start_with(options(&rig));
    let next = session.bash("echo next");
    rig.result(&session, &next).await;
    assert_eq!(rig.fake.seen_on(Route::Send).len(), posts + 1);
    second.end().await;
}
