//! Which calls run, in which order, and what ends them.

use std::time::Duration;

use palisade_testkit::control_plane::{Route, text};
use palisade_worker::Observation;
use serde_json::json;

use crate::rig::Rig;

/// The write's start needs both reads' end; the reads hold each other up only if they do not overlap.
#[tokio::test(flavor = "multi_thread")]
async fn reads_overlap_and_calls_with_effects_keep_their_order() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    let write = session.call("write", json!({"file_path": "/workspace/a", "content": "first\n"}));
    let reads: Vec<_> = (0..4).map(|_| session.call("read", json!({"file_path": "/workspace/a"}))).collect();
    let glob = session.call("glob", json!({"pattern": "*"}));
    let append = session.bash("echo second >> /workspace/a");
    let grep = session.call("grep", json!({"pattern": "second", "path": "/workspace"}));
    let edit = session.call("edit", json!({"file_path": "/workspace/a", "old_string": "first", "new_string": "third"}));
    session.queue();
    let working = rig.start();
    assert_eq!(rig.result(&session, &edit).await["is_error"], false);
    rig.content(&session, "a", "third\nsecond\n").await;
    for read in reads {
        let result = rig.result(&session, &read).await;
        assert!(text(&result).contains("first") && !text(&result).contains("second"), "{result}");
    }
    assert!(text(&rig.result(&session, &glob).await).contains('a'));
    assert!(text(&rig.result(&session, &grep).await).contains("second"));
    for call in [write, append] {
        assert_eq!(rig.result(&session, &call).await["is_error"], false);
    }
    let posts = rig.fake.seen_on(Route::Send);
    assert!(posts.iter().all(|post| post.body["events"].as_array().unwrap().len() == 1), "one result per request");
    assert_eq!(posts.len(), 9);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_calls_wait_denied_and_foreign_calls_never_run() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start();
    let allowed = session.ask("bash", json!({"command": "echo allowed"}));
    let refused = session.ask("bash", json!({"command": "touch /workspace/refused"}));
    let denied = session.emit(json!({"type": "agent.tool_use", "name": "bash", "evaluated_permission": "deny",
        "input": {"command": "touch /workspace/denied"}}));
    let foreign = session.call("deploy", json!({}));
    session.emit(
        json!({"type": "agent.custom_tool_use", "name": "bash", "input": {"command": "touch /workspace/custom"}}),
    );
    let free = session.bash("echo free");
    assert_eq!(text(&rig.result(&session, &free).await), "free");
    rig.observes(
        "two held calls",
        |observation| matches!(observation, Observation::CallHeld { call, .. } if *call == refused),
    )
    .await;
    assert!(session.result_of(&allowed).is_none());
    session.confirm(&refused, "deny");
    session.confirm(&allowed, "allow");
    assert_eq!(text(&rig.result(&session, &allowed).await), "allowed");
    let last = session.bash("ls /workspace");
    assert_eq!(text(&rig.result(&session, &last).await), "(no output)");
    for call in [refused, denied, foreign] {
        assert!(session.result_of(&call).is_none());
    }
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupt_kills_what_runs_and_drops_what_waits() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start();
    let running = session.bash("touch /workspace/started; while :; do echo x >> /workspace/alive; sleep 0.02; done");
    let queued = session.bash("touch /workspace/queued");
    rig.content(&session, "started", "").await;
    session.emit(json!({"type": "user.interrupt"}));
    for call in [&running, &queued] {
        session.emit(json!({"type": "agent.tool_result", "tool_use_id": call, "is_error": true,
            "content": [{"type": "text", "text": "interrupted"}]}));
    }
    let next = session.bash("echo next");
    assert_eq!(text(&rig.result(&session, &next).await), "next");
    let written = || std::fs::metadata(rig.file(&session, "alive")).map_or(0, |file| file.len());
    let before = written();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(before > 0 && written() == before && !rig.file(&session, "queued").exists());
    assert!(session.result_of(&running).is_none() && session.result_of(&queued).is_none());
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_answered_elsewhere_and_of_dead_threads_are_dropped() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start();
    let running = session.bash("touch /workspace/started; sleep 1000");
    let elsewhere = session.bash("touch /workspace/elsewhere");
    let child = session.emit(json!({"type": "agent.tool_use", "name": "bash", "session_thread_id": "sthr_child",
        "input": {"command": "touch /workspace/child"}, "evaluated_permission": "allow"}));
    rig.content(&session, "started", "").await;
    session.emit(json!({"type": "user.tool_result", "tool_use_id": elsewhere, "content": [], "is_error": false}));
    session.emit(json!({"type": "session.thread_status_terminated", "session_thread_id": "sthr_child"}));
    session.emit(json!({"type": "user.tool_result", "tool_use_id": running, "content": [], "is_error": false}));
    let next = session.bash("ls /workspace");
    assert_eq!(text(&rig.result(&session, &next).await), "started");
    assert!(session.result_of(&child).is_none());
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_session_ends_its_item_and_its_processes() {
    for event in ["session.status_terminated", "session.deleted"] {
        let rig = Rig::new().await;
        let session = rig.fake.session();
        session.bash("touch /workspace/started; sleep 1000");
        session.queue();
        let working = rig.start();
        rig.content(&session, "started", "").await;
        session.emit(json!({"type": event}));
        rig.fake.stopped(&session.id).await;
        assert!(rig.fake.seen_on(Route::Send).is_empty());
        working.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_cannot_be_served_are_stopped_untouched() {
    let rig = Rig::new().await;
    let terminated = rig.fake.session();
    terminated.edit(|session| session["status"] = json!("terminated"));
    let remembering = rig.fake.session();
    remembering
        .edit(|session| session["resources"] = json!([{"type": "memory_store", "memory_store_id": "memstore_1"}]));
    rig.fake.queue_other("sesn_nowhere", "session");
    for session in [&terminated, &remembering] {
        session.bash("touch /workspace/ran");
        session.queue();
    }
    let working = rig.start();
    for id in [&terminated.id, &remembering.id, "sesn_nowhere"] {
        rig.fake.stopped(id).await;
    }
    rig.observes("a plain reason", |observation| {
        matches!(observation, Observation::Ended { session, reason, .. }
            if *session == remembering.id && reason.contains("memory stores"))
    })
    .await;
    for session in [&terminated, &remembering] {
        assert!(!rig.file(session, "ran").exists());
    }
    assert!(rig.fake.seen_on(Route::Stream).is_empty());
    working.end().await;
}

/// Waits for input without limit, leaves after a turn; the workspace is there when the session comes back.
#[tokio::test(flavor = "multi_thread")]
async fn leaves_after_a_turn_and_finds_the_workspace_again() {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let mut options = rig.options();
    options.max_idle = Duration::from_millis(100);
    let working = rig.start_with(options);
    let first = session.bash("echo kept > /workspace/file; echo $PPID > /dev/null");
    rig.result(&session, &first).await;
    session.emit(json!({"type": "session.status_idle", "stop_reason": {"type": "requires_action", "event_ids": []}}));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.fake.item_state(&session.id).as_deref(), Some("active"));
    session.idle();
    rig.fake.stopped(&session.id).await;
    session.emit(json!({"type": "session.status_running"}));
    let second = session.call("read", json!({"file_path": "/workspace/file"}));
    session.queue();
    assert!(text(&rig.result(&session, &second).await).contains("kept"));
    working.end().await;
}

/// The hosted service refuses the sessions token on skill routes; the key does it. One skill that fails is only told.
#[tokio::test(flavor = "multi_thread")]
async fn skills_are_there_before_the_first_call_and_gone_afterwards() {
    let rig = Rig::new().await;
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(9);
    header.set_mode(0o644);
    builder.append_data(&mut header, "pdf/SKILL.md", &b"# The pdf"[..]).unwrap();
    rig.fake.skill("pdf", builder.into_inner().unwrap(), true);
    let session = rig.fake.session();
    session.edit(|session| {
        session["agent"]["skills"] = json!([
            {"type": "anthropic", "skill_id": "pdf", "version": "latest"},
            {"type": "custom", "skill_id": "skill_gone", "version": "2"},
        ]);
    });
    let call = session.bash("cat /workspace/skills/pdf/SKILL.md");
    session.queue();
    let mut options = rig.options();
    options.max_idle = Duration::from_millis(30);
    let working = rig.start_with(options);
    assert_eq!(text(&rig.result(&session, &call).await), "# The pdf");
    rig.observes(
        "the missing skill",
        |observation| matches!(observation, Observation::SkillMissing { skill, .. } if skill == "skill_gone"),
    )
    .await;
    session.idle();
    rig.fake.stopped(&session.id).await;
    assert!(!rig.file(&session, "skills").exists());
    working.end().await;
}
