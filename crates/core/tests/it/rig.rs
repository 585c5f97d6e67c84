//! A session with counted ids and a clock that only moves when told.

use std::collections::{BTreeMap, BTreeSet};

use palisade_api::{
    AgentId, ClientEvent, EnvironmentId, Event, EventId, Extra, Metadata, Session, SessionAgent, SessionId,
    SessionStatus, ThreadId, Timestamp, ToolParam, WorkId,
};
use palisade_core::session::{
    self, Effect, Ended, Env, Failure, FailureKind, Ids, Outcome, Part, PartContent, Phase, Place, Price, Refusal,
    Reply, Rules, State, TokenUse,
};
use serde_json::{Value, json};

#[derive(Default)]
pub(crate) struct Counter(u64);

impl Ids for Counter {
    fn event(&mut self) -> EventId {
        self.0 += 1;
        EventId::from(format!("sevt_{}", self.0))
    }

    fn work(&mut self) -> WorkId {
        self.0 += 1;
        WorkId::from(format!("work_{}", self.0))
    }
}

/// A session and everything that it has emitted.
pub(crate) struct Rig {
    pub(crate) state: State,
    pub(crate) ids: Counter,
    pub(crate) rules: Rules,
    pub(crate) now: i64,
    pub(crate) window: u32,
    pub(crate) log: Vec<Event>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) work: Vec<WorkId>,
}

impl Rig {
    pub(crate) fn new(place: Place, tools: Value) -> Rig {
        let params: Vec<ToolParam> = serde_json::from_value(tools).unwrap();
        let start = Timestamp::from_micros(1_000_000);
        let agent: SessionAgent = serde_json::from_value(json!({
            "id": "agent_1", "type": "agent", "version": 1, "name": "a", "description": null,
            "model": {"id": "m"}, "system": null, "tools": [], "mcp_servers": [], "skills": [],
            "multiagent": null, "execution_identity": {"type": "service_account"},
        }))
        .unwrap();
        let session = Session {
            id: SessionId::from("sesn_1"),
            kind: "session".to_owned(),
            status: SessionStatus::Idle,
            title: None,
            agent: SessionAgent {
                id: AgentId::from("agent_1"),
                tools: params.into_iter().map(ToolParam::resolve).collect(),
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
            created_at: start,
            updated_at: start,
            archived_at: None,
            extra: Extra::new(),
        };
        let state = State::new(session, place, ThreadId::from("sthr_1"));
        let price = Price { input: 100, output: 500, cache_read: 10, cache_write: 125 };
        let rules = Rules { prices: BTreeMap::from([("m".to_owned(), price)]), ..Rules::default() };
        Rig {
            state,
            ids: Counter::default(),
            rules,
            now: 1_000_000,
            window: 1000,
            log: Vec::new(),
            effects: Vec::new(),
            work: Vec::new(),
        }
    }

    pub(crate) fn toolset() -> Value {
        json!([{"type": "agent_toolset_20260401"}])
    }

    pub(crate) fn step<T>(&mut self, transition: impl FnOnce(&mut State, &mut Env<'_>) -> T) -> T {
        self.now += 1000;
        let mut env =
            Env { now: Timestamp::from_micros(self.now), ids: &mut self.ids, rules: &self.rules, window: self.window };
        transition(&mut self.state, &mut env)
    }

    /// Keeps what an outcome emitted, and checks what must hold of every outcome.
    pub(crate) fn keep(&mut self, outcome: Outcome) -> Vec<Event> {
        for entry in outcome.entries {
            assert_eq!(entry.seq, self.log.len() as u64 + 1, "the log has no gap");
            self.log.push(serde_json::from_str(&entry.body).unwrap());
        }
        assert_eq!(self.state.tail, self.log.len() as u64);
        self.effects = outcome.effects;
        self.work.extend(outcome.work.map(|(work, _)| work));
        // What is stored is what is in memory, but for the inbox, which is stored elsewhere.
        let (session, agent) = (self.state.record().unwrap(), self.state.agent_record().unwrap());
        let mut stored = State::from_records(&session, &agent).unwrap();
        stored.pending = self.state.pending.clone();
        assert_eq!(stored, self.state);
        outcome.reply
    }

    pub(crate) fn send(&mut self, events: Value) -> Result<Vec<Event>, Refusal> {
        let events: Vec<ClientEvent> = serde_json::from_value(events).unwrap();
        let past: BTreeSet<EventId> = self.log.iter().map(|event| event.id().clone()).collect();
        let outcome = self.step(|state, env| session::ingest(state, events, &past, env))?;
        Ok(self.keep(outcome))
    }

    pub(crate) fn say(&mut self, text: &str) -> Vec<Event> {
        self.send(json!([{"type": "user.message", "content": [{"type": "text", "text": text}]}])).unwrap()
    }

    pub(crate) fn result(&mut self, call: &EventId) -> Vec<Event> {
        self.send(
            json!([{"type": "user.tool_result", "tool_use_id": call, "content": [{"type": "text", "text": "ok"}]}]),
        )
        .unwrap()
    }

    pub(crate) fn advance(&mut self) {
        loop {
            let outcome = self.step(session::advance);
            if outcome.is_empty() {
                return;
            }
            self.keep(outcome);
        }
    }

    /// The model request under way.
    pub(crate) fn request(&self) -> EventId {
        match &self.state.phase {
            Phase::Sampling { request, .. } => request.clone(),
            other => panic!("no request is under way: {other:?}"),
        }
    }

    pub(crate) fn complete(&mut self, parts: Vec<PartContent>, ended: Ended) {
        let parts = parts.into_iter().map(|content| Part { id: self.ids.event(), content }).collect::<Vec<_>>();
        let usage = TokenUse { input: 100, output: 10, ..TokenUse::default() };
        let request = self.request();
        let reply = Reply { parts, ended, usage };
        let outcome = self.step(|state, env| session::complete(state, &request, reply, env));
        self.keep(outcome);
    }

    pub(crate) fn fail(&mut self, kind: FailureKind, retry: bool) {
        let request = self.request();
        let failure = Failure { kind, message: "no".to_owned(), retry, after: None, usage: None };
        let outcome = self.step(|state, env| session::fail(state, &request, failure, env));
        self.keep(outcome);
    }

    /// The types of the events since `from`, the `session.` prefix cut for brevity.
    pub(crate) fn types(&self, from: usize) -> Vec<&str> {
        self.log[from..].iter().map(Event::type_name).collect()
    }

    /// The ids of the calls of the last reply.
    pub(crate) fn calls(&self) -> Vec<EventId> {
        self.state.calls.iter().map(|call| call.event.clone()).collect()
    }
}

pub(crate) fn text(text: &str) -> PartContent {
    PartContent::Text { text: text.to_owned() }
}

pub(crate) fn tool(name: &str) -> PartContent {
    PartContent::ToolUse { id: format!("toolu_{name}"), name: name.to_owned(), input: Extra::new() }
}
