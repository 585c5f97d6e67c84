//! Sessions through the engine, on the reference store, with scripted models.

use std::sync::Arc;
use std::time::Duration;

use palisade_api::{
    AgentId, ClientEvent, EnvironmentId, Event, EventId, Extra, Metadata, Session, SessionAgent, SessionId,
    SessionStatus, ThreadId, ToolParam,
};
use palisade_core::session::{Place, Rules, State};
use palisade_core::work::Leases;
use palisade_engine::model::{Models, Script, Scripted};
use palisade_engine::{
    Clock, Engine, EngineError, FrameKind, Options, PollOptions, StoppedBy, SystemClock, random_bytes,
};
use palisade_store::{EventQuery, Memory, Store};
use serde_json::{Value, json};

const TOOLSET: &str = r#"[{"type": "agent_toolset_20260401"}]"#;

async fn engine(store: &Arc<dyn Store>, script: &str) -> Arc<Engine> {
    let script = Script::parse(script).unwrap();
    let options = Options {
        store: store.clone(),
        models: Models::new().with_default(Arc::new(Scripted::new(script))),
        clock: Arc::new(SystemClock::default()),
        rules: Rules { backoff: 1000, ..Rules::default() },
        leases: Leases { ttl: 300_000, start: 300_000, ..Leases::default() },
        max_tokens: 1000,
    };
    Engine::start(options).await.unwrap()
}

fn store() -> Arc<dyn Store> {
    Arc::new(Memory::new())
}

fn state(tools: &str) -> State {
    let now = SystemClock::default().now();
    let tools: Vec<ToolParam> = serde_json::from_str(tools).unwrap();
    let agent: SessionAgent = serde_json::from_value(json!({
        "id": "agent_1", "type": "agent", "version": 1, "name": "a", "description": null, "model": {"id": "m"},
        "system": null, "tools": [], "mcp_servers": [], "skills": [], "multiagent": null,
        "execution_identity": {"type": "service_account"},
    }))
    .unwrap();
    let session = Session {
        id: SessionId::from_bytes(&random_bytes()),
        kind: "session".to_owned(),
        status: SessionStatus::Idle,
        title: None,
        agent: SessionAgent {
            id: AgentId::from("agent_1"),
            tools: tools.into_iter().map(ToolParam::resolve).collect(),
            ..agent
        },
        environment_id: EnvironmentId::from("env_1"),
        vault_ids: Vec::new(),
        resources: Vec::new(),
        metadata: Metadata::default(),
        budget: None,
        usage: palisade_api::Usage::default(),
        stats: palisade_api::SessionStats::default(),
        outcome_evaluations: Vec::new(),
        deployment_id: None,
        created_at: now,
        updated_at: now,
        archived_at: None,
        extra: Extra::new(),
    };
    State::new(session, Place::SelfHosted, ThreadId::from_bytes(&random_bytes()))
}

fn say(text: &str) -> Vec<ClientEvent> {
    serde_json::from_value(json!([{"type": "user.message", "content": [{"type": "text", "text": text}]}])).unwrap()
}

async fn log(store: &Arc<dyn Store>, session: &SessionId) -> Vec<Event> {
    let entries = store.events(&EventQuery::all(session.clone(), 10_000)).await.unwrap();
    let seqs: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs, (1..=entries.len() as u64).collect::<Vec<_>>(), "the log has no gap");
    entries.iter().map(|entry| serde_json::from_str(&entry.body).unwrap()).collect()
}

/// Waits until the log ends with this type of event and, if given, this stop reason.
async fn until(store: &Arc<dyn Store>, session: &SessionId, last: &str, reason: &str) -> Vec<Event> {
    for _ in 0..500 {
        let events = log(store, session).await;
        if let Some(event) = events.last() {
            let json: Value = serde_json::to_value(event).unwrap();
            if event.type_name() == last && (reason.is_empty() || json["stop_reason"]["type"] == reason) {
                return events;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came to {last} {reason}: {:?}", log(store, session).await.last());
}

fn count(events: &[Event], name: &str) -> usize {
    events.iter().filter(|event| event.type_name() == name).count()
}

#[tokio::test]
async fn a_stream_shows_the_log_and_previews_first() {
    let store = store();
    let engine = engine(&store, "name: s\nsteps:\n  - chunk: 2\n    reply: [{text: hello}]\n").await;
    let session = engine.create_session(state("[]"), Vec::new(), Vec::new()).await.unwrap().id;
    let mut stream = engine.subscribe(&session).await.unwrap();
    let sent = engine.send(&session, say("hi")).await.unwrap();
    let events = until(&store, &session, "session.status_idle", "end_turn").await;
    let mut logged = 0;
    let mut seen = Vec::new();
    while logged < events.len() {
        let frame = stream.frames.recv().await.unwrap();
        seen.push(match &frame.kind {
            FrameKind::Logged(seq) => {
                logged += 1;
                assert_eq!(*seq, logged as u64);
                events[logged - 1].type_name().to_owned()
            }
            FrameKind::Queued => format!("queued {}", sent[0].type_name()),
            FrameKind::PreviewStart(..) => "start".to_owned(),
            FrameKind::PreviewDelta(..) => "delta".to_owned(),
            FrameKind::Deleted => "deleted".to_owned(),
        });
    }
    assert_eq!(seen[0], "queued user.message");
    let at = |name: &str| seen.iter().position(|seen| seen == name).unwrap();
    assert!(at("start") < at("delta") && at("delta") < at("agent.message"), "{seen:?}");
    assert_eq!(seen.iter().filter(|seen| *seen == "delta").count(), 3);
}

#[tokio::test]
async fn a_session_goes_on_from_its_last_durable_event() {
    let store = store();
    // The first request never ends; the second process asks again.
    let hang = "name: s\nsteps:\n  - error: hang\n    reply: [{text: never}]\n";
    let first = engine(&store, hang).await;
    let session = first.create_session(state("[]"), Vec::new(), Vec::new()).await.unwrap().id;
    first.send(&session, say("hi")).await.unwrap();
    until(&store, &session, "span.model_request_start", "").await;
    first.send(&session, say("and more")).await.unwrap();
    first.shutdown().await;
    assert!(matches!(first.send(&session, say("x")).await, Err(EngineError::ShuttingDown)));
    let second = engine(&store, "name: s\notherwise: {reply: [{text: done}]}\n").await;
    let events = until(&store, &session, "session.status_idle", "end_turn").await;
    assert_eq!(count(&events, "user.message"), 2, "each of the user's events is processed once");
    let (starts, ends) = (count(&events, "span.model_request_start"), count(&events, "span.model_request_end"));
    assert_eq!(starts, ends);
    second.shutdown().await;
}

#[tokio::test]
async fn two_processes_cannot_write_one_session() {
    let store = store();
    let script = "name: s\notherwise: {reply: [{text: done}]}\n";
    let (first, second) = (engine(&store, script).await, engine(&store, script).await);
    let session = first.create_session(state("[]"), Vec::new(), Vec::new()).await.unwrap().id;
    first.send(&session, say("one")).await.unwrap();
    until(&store, &session, "session.status_idle", "end_turn").await;
    second.send(&session, say("two")).await.unwrap();
    until(&store, &session, "session.status_idle", "end_turn").await;
    // The first one still has the session in memory, at an epoch that is no longer its own: it loses, and then takes over.
    // What was waiting behind the message that met the loss is not lost with it.
    let (lost, behind) = futures::join!(first.send(&session, say("lost")), first.send(&session, say("three")));
    assert!(matches!(lost, Err(EngineError::Lost)), "{lost:?}");
    behind.unwrap();
    for _ in 0..500 {
        if count(&log(&store, &session).await, "agent.message") == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let events = until(&store, &session, "session.status_idle", "end_turn").await;
    assert_eq!(count(&events, "user.message"), 3);
    assert_eq!(count(&events, "agent.message"), 3);
}

#[tokio::test]
async fn a_model_that_fails_is_asked_again() {
    let store = store();
    let script = "name: s\nsteps:\n  - error: overloaded\n    times: 2\n    reply: [{text: at last}]\n";
    let engine = engine(&store, script).await;
    let session = engine.create_session(state("[]"), say("hi"), Vec::new()).await.unwrap();
    assert_eq!(session.status, SessionStatus::Running, "initial events start the session");
    let events = until(&store, &session.id, "session.status_idle", "end_turn").await;
    assert_eq!(count(&events, "session.status_rescheduled"), 2);
    assert_eq!(count(&events, "agent.message"), 1);
    engine.shutdown().await;
}

#[tokio::test]
async fn a_model_that_cannot_be_served_ends_the_turn_with_a_reason() {
    let store = store();
    let script = "name: s\notherwise:\n  error: malformed_tool_input\n  reply: [{text: x}]\n";
    let engine = engine(&store, script).await;
    let session = engine.create_session(state(TOOLSET), say("hi"), Vec::new()).await.unwrap().id;
    let events = until(&store, &session, "session.status_idle", "retries_exhausted").await;
    assert_eq!(count(&events, "agent.tool_use"), 0, "a call that is no JSON never runs");
    assert!(count(&events, "session.error") > 1);
}

#[tokio::test]
async fn silent_workers_lose_their_item_and_idle_sessions_need_none() {
    let store = store();
    let script =
        "name: s\nsteps:\n  - reply: [{tool: {name: bash, input: {command: x}}}]\notherwise: {reply: [{text: done}]}\n";
    let engine = engine(&store, script).await;
    let environment = EnvironmentId::from("env_1");
    let session = engine.create_session(state(TOOLSET), say("go"), Vec::new()).await.unwrap().id;
    let events = until(&store, &session, "session.status_idle", "requires_action").await;
    let poll = PollOptions { block: Duration::from_millis(900), reclaim: 5_000_000, worker: None };
    let claimed = engine.poll(&environment, &poll).await.unwrap().unwrap();
    assert_eq!(claimed.session, session);
    engine.ack(&environment, &claimed.work.id).await.unwrap().unwrap().unwrap();
    let beat = engine.beat(&environment, &claimed.work.id, None, None).await.unwrap().unwrap().unwrap();
    // Silence: the lease lapses, and the item comes back to whoever polls.
    let again = loop {
        if let Some(again) = engine.poll(&environment, &poll).await.unwrap() {
            break again;
        }
    };
    assert_eq!(again.work.id, claimed.work.id);
    let late = engine.beat(&environment, &claimed.work.id, Some(&beat.last_heartbeat), None).await.unwrap().unwrap();
    assert!(late.is_err(), "the worker that fell silent has lost it");
    engine.ack(&environment, &again.work.id).await.unwrap().unwrap().unwrap();
    // A worker that gives up while the call waits: another item is offered.
    engine.stop_work(&environment, &again.work.id, true, StoppedBy::Worker).await.unwrap().unwrap().unwrap();
    let third = loop {
        if let Some(third) = engine.poll(&environment, &poll).await.unwrap() {
            break third;
        }
    };
    assert_ne!(third.work.id, again.work.id);
    engine.ack(&environment, &third.work.id).await.unwrap().unwrap().unwrap();
    engine.beat(&environment, &third.work.id, None, Some(2)).await.unwrap().unwrap().unwrap();
    let call: EventId = events.iter().find(|event| event.type_name() == "agent.tool_use").unwrap().id().clone();
    let result = json!([{"type": "user.tool_result", "tool_use_id": call, "content": []}]);
    engine.send(&session, serde_json::from_value(result).unwrap()).await.unwrap();
    until(&store, &session, "session.status_idle", "end_turn").await;
    // Now silence means that the item is over: nobody else needs to look after an idle session.
    for _ in 0..500 {
        let work = engine.work(&environment, &third.work.id).await.unwrap().unwrap();
        if work.state.as_str() == "stopped" {
            let stats = engine.queue_stats(&environment).await.unwrap();
            assert_eq!((stats.depth, stats.pending), (0, 0));
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the item of an idle session is still there");
}
