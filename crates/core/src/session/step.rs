//! The building blocks of transitions: each emits its events and keeps the state in step with them.

use palisade_api::{
    AgentCustomToolUseEvent, AgentMessageEvent, AgentToolResultEvent, AgentToolUseEvent, AutoVerdict, CacheCreation,
    ClientEvent, ContentBlock, EvaluatedPermission, Evaluation, Event, EventId, Extra, ModelUsage, Money, Patch,
    PermissionPolicy, PlainEvent, RetryStatus, SessionErrorBody, SessionErrorEvent, SessionStatus,
    SessionStatusIdleEvent, SessionUpdatedEvent, SessionUsageEvent, SpanModelRequestEndEvent, StopDetails, StopReason,
    SystemMessageEvent, ThreadStatusEvent, ThreadStatusIdleEvent, Timestamp, Tool, UserCustomToolResultEvent,
    UserInterruptEvent, UserMessageEvent, UserToolConfirmationEvent, UserToolResultEvent,
};
use serde_json::{Number, Value, json};

use super::lifecycle::{denial, is_input};
use super::state::Ruling;
use super::{Answerer, Call, Effect, Env, MICROCENTS, Outcome, Phase, Place, Purpose, State};
use crate::batch::LogEntry;

/// Tokens of one model request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the wire's own, shortened")]
pub struct TokenUse {
    pub input: u64,
    pub output: u64,
    pub cache_read: u64,
    pub cache_write: u64,
    pub cache_write_5m: u64,
    pub cache_write_1h: u64,
}

pub(crate) struct Step<'s, 'e> {
    pub(crate) state: &'s mut State,
    pub(crate) env: &'s mut Env<'e>,
    pub(crate) out: Outcome,
    /// Calls of this reply that a rule refuses: the event, and what the model is told.
    denied: Vec<(EventId, String)>,
}

impl<'s, 'e> Step<'s, 'e> {
    pub(crate) fn new(state: &'s mut State, env: &'s mut Env<'e>) -> Step<'s, 'e> {
        Step { state, env, out: Outcome::default(), denied: Vec::new() }
    }

    pub(crate) fn finish(self) -> Outcome {
        if !self.out.is_empty() {
            self.state.session.updated_at = self.env.now;
        }
        self.out
    }

    /// Says that the state must be written although nothing was emitted.
    pub(crate) fn changed(&mut self) {
        self.out.dirty = true;
    }

    fn emit(&mut self, event: Event) {
        self.emit_with(event, None);
    }

    fn emit_with(&mut self, event: Event, private: Option<Value>) {
        // Encoding what was just built from encodable parts cannot fail.
        let body = serde_json::to_string(&event).unwrap_or_default();
        self.state.tail += 1;
        self.out.entries.push(LogEntry {
            seq: self.state.tail,
            id: event.id().clone(),
            kind: event.type_name().to_owned(),
            at: event.processed_at().unwrap_or(self.env.now),
            body,
            private: private.map(|value| value.to_string()),
        });
    }

    fn plain(&mut self) -> PlainEvent {
        PlainEvent::new(self.env.ids.event(), self.env.now)
    }

    fn thread(&mut self) -> ThreadStatusEvent {
        ThreadStatusEvent {
            id: self.env.ids.event(),
            session_thread_id: self.state.thread.clone(),
            agent_name: self.state.session.agent.name.clone(),
            processed_at: Some(self.env.now),
            extra: Extra::new(),
        }
    }

    // --- client events -------------------------------------------------------------------------------------------

    /// The stored form of a client event that has just arrived.
    pub(crate) fn queued(&mut self, event: ClientEvent) -> Event {
        let (id, processed_at, extra) = (self.env.ids.event(), None, Extra::new());
        match event {
            ClientEvent::UserMessage(event) => {
                Event::UserMessage(UserMessageEvent { id, content: event.content, processed_at, extra })
            }
            ClientEvent::UserInterrupt(event) => Event::UserInterrupt(UserInterruptEvent {
                id,
                session_thread_id: event.session_thread_id,
                processed_at,
                extra,
            }),
            ClientEvent::UserToolConfirmation(event) => Event::UserToolConfirmation(UserToolConfirmationEvent {
                id,
                tool_use_id: event.tool_use_id,
                result: event.result,
                deny_message: event.deny_message,
                session_thread_id: None,
                processed_at,
                extra,
            }),
            ClientEvent::UserToolResult(event) => Event::UserToolResult(UserToolResultEvent {
                id,
                tool_use_id: event.tool_use_id,
                content: event.content,
                is_error: event.is_error,
                session_thread_id: None,
                processed_at,
                extra,
            }),
            ClientEvent::UserCustomToolResult(event) => Event::UserCustomToolResult(UserCustomToolResultEvent {
                id,
                custom_tool_use_id: event.custom_tool_use_id,
                content: event.content,
                is_error: event.is_error,
                session_thread_id: None,
                processed_at,
                extra,
            }),
            ClientEvent::SystemMessage(event) => {
                Event::SystemMessage(SystemMessageEvent { id, content: event.content, processed_at, extra })
            }
            ClientEvent::UserDefineOutcome(event) => Event::UserDefineOutcome(palisade_api::UserDefineOutcomeEvent {
                id,
                outcome_id: palisade_api::OutcomeId::from(""),
                description: event.description,
                rubric: event.rubric,
                max_iterations: event.max_iterations,
                processed_at,
                extra,
            }),
        }
    }

    /// Takes an answer. A second answer to the same call is acknowledged and otherwise ignored: the first one wins.
    /// Returns whether a call was answered.
    pub(crate) fn answer_by_client(&mut self, event: ClientEvent, open: bool) -> bool {
        let call = match &event {
            ClientEvent::UserToolResult(result) => result.tool_use_id.clone(),
            ClientEvent::UserCustomToolResult(result) => result.custom_tool_use_id.clone(),
            _ => return false,
        };
        let mut event = self.queued(event);
        event.set_processed_at(self.env.now);
        self.out.reply.push(event.clone());
        if !open {
            return false;
        }
        self.emit(event);
        if let Some(call) = self.state.open_call(&call) {
            call.answered = true;
        }
        true
    }

    /// Answers a call with an error in the server's own name.
    pub(crate) fn answer_by_server(&mut self, call: &EventId, text: &str) {
        let event = AgentToolResultEvent {
            id: self.env.ids.event(),
            tool_use_id: call.clone(),
            content: Some(vec![ContentBlock::text(text)]),
            is_error: Some(true),
            processed_at: Some(self.env.now),
            extra: Extra::new(),
        };
        self.emit(Event::AgentToolResult(event));
        if let Some(call) = self.state.open_call(call) {
            call.answered = true;
            call.held = false;
        }
    }

    /// Moves the event at `at` from the inbox to the log.
    pub(crate) fn promote(&mut self, at: usize) -> Option<Event> {
        let mut event = self.state.pending.remove(at)?.event;
        self.out.dequeue.push(event.id().clone());
        event.set_processed_at(self.env.now);
        self.emit(event.clone());
        Some(event)
    }

    /// Moves the first event of the inbox to the log.
    pub(crate) fn promote_first(&mut self) {
        self.promote(0);
    }

    /// Moves messages from the inbox to the log.
    fn promote_input(&mut self) {
        while let Some(at) = self.state.pending.iter().position(|pending| is_input(&pending.event)) {
            self.promote(at);
        }
    }

    // --- status --------------------------------------------------------------------------------------------------

    /// The session runs.
    pub(crate) fn running(&mut self) {
        self.state.session.status = SessionStatus::Running;
        self.state.running_since.get_or_insert(self.env.now);
        let event = Event::SessionStatusRunning(self.plain());
        self.emit(event);
        let event = Event::SessionThreadStatusRunning(self.thread());
        self.emit(event);
    }

    /// A turn begins.
    pub(crate) fn start_turn(&mut self) {
        self.state.rounds = 0;
        self.state.compactions = 0;
        self.state.failures = 0;
        self.running();
        // Documented: a server that cannot be reached is told at each start of a turn, and the session goes on without it.
        for server in self.state.session.agent.mcp_servers.clone() {
            let message = "this server version does not connect to MCP servers; the session goes on without its tools";
            let extra = Extra::from_iter([("mcp_server_name".to_owned(), Value::from(server.name))]);
            self.error_with("mcp_connection_failed_error", message, "exhausted", extra);
        }
    }

    /// The session waits to try again.
    pub(crate) fn rescheduled(&mut self) {
        self.pause_clock();
        self.state.session.status = SessionStatus::Rescheduling;
        let event = Event::SessionStatusRescheduled(self.plain());
        self.emit(event);
        let event = Event::SessionThreadStatusRescheduled(self.thread());
        self.emit(event);
    }

    /// The session is over.
    pub(crate) fn terminated(&mut self) {
        self.pause_clock();
        self.state.phase = Phase::Terminated;
        self.state.session.status = SessionStatus::Terminated;
        let duration = self.env.now.seconds_since(self.state.session.created_at);
        self.state.session.stats.duration_seconds = Number::from_f64(duration);
        let event = Event::SessionThreadStatusTerminated(self.thread());
        self.emit(event);
        let event = Event::SessionStatusTerminated(self.plain());
        self.emit(event);
    }

    /// The session is idle: thread, usage and session say so, in this order.
    fn idle(&mut self, stop_reason: StopReason, stop_details: Option<StopDetails>) {
        self.pause_clock();
        self.state.session.status = SessionStatus::Idle;
        let thread = self.thread();
        self.emit(Event::SessionThreadStatusIdle(ThreadStatusIdleEvent {
            id: thread.id,
            session_thread_id: thread.session_thread_id,
            agent_name: thread.agent_name,
            stop_reason: stop_reason.clone(),
            stop_details: stop_details.clone(),
            processed_at: thread.processed_at,
            extra: Extra::new(),
        }));
        let usage = Event::SessionUsage(SessionUsageEvent {
            id: self.env.ids.event(),
            usage: self.state.session.usage.clone(),
            budget: self.state.session.budget.clone(),
            processed_at: Some(self.env.now),
            extra: Extra::new(),
        });
        self.emit(usage);
        let idle = Event::SessionStatusIdle(SessionStatusIdleEvent {
            id: self.env.ids.event(),
            stop_reason,
            stop_details,
            processed_at: Some(self.env.now),
            extra: Extra::new(),
        });
        self.emit(idle);
    }

    /// Counts the time since the session began to run.
    fn pause_clock(&mut self) {
        let Some(since) = self.state.running_since.take() else { return };
        let ran = self.env.now.seconds_since(since);
        let usage = &mut self.state.session.usage;
        let before = usage.active_seconds.as_ref().and_then(Number::as_f64).unwrap_or(0.0);
        usage.active_seconds = Number::from_f64(before + ran);
        self.state.session.stats.active_seconds = usage.active_seconds.clone();
        // Documented price basis: 0.08 dollars per running hour.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number of microcents")]
        let cost = (ran * 8.0 / 3600.0 * 1e6) as u64;
        self.state.cost += cost;
        self.price();
    }

    /// The turn is over.
    pub(crate) fn end_turn(&mut self, reason: StopReason, details: Option<StopDetails>) {
        self.state.calls.clear();
        self.state.phase = Phase::Idle;
        self.idle(reason, details);
    }

    /// The agent has nothing more to say: messages that came meanwhile are read, else the turn is over.
    pub(crate) fn turn_done(&mut self) {
        if self.state.pending.iter().any(|pending| is_input(&pending.event)) {
            self.next_request(Purpose::Reply);
        } else {
            self.end_turn(StopReason::EndTurn, None);
        }
    }

    /// The model cannot be reached: the turn is dead, what was queued is flushed to the log, the session is idle.
    pub(crate) fn exhausted(&mut self, kind: &str, message: &str) {
        self.error(kind, message, "exhausted");
        while !self.state.pending.is_empty() {
            self.promote_first();
        }
        self.state.failures = 0;
        self.end_turn(StopReason::RetriesExhausted, None);
    }

    /// Says what went wrong.
    pub(crate) fn error(&mut self, kind: &str, message: &str, retry: &str) {
        self.error_with(kind, message, retry, Extra::new());
    }

    fn error_with(&mut self, kind: &str, message: &str, retry: &str, extra: Extra) {
        let event = Event::SessionError(SessionErrorEvent {
            id: self.env.ids.event(),
            error: SessionErrorBody {
                kind: kind.to_owned(),
                message: message.to_owned(),
                retry_status: RetryStatus { kind: retry.to_owned(), extra: Extra::new() },
                extra,
            },
            processed_at: Some(self.env.now),
            extra: Extra::new(),
        });
        self.emit(event);
    }

    /// Says what a client changed; nothing when nothing changed.
    pub(crate) fn updated(&mut self, changed: &super::lifecycle::ChangedFields) {
        if !(changed.title || changed.metadata || changed.agent || changed.budget) {
            return;
        }
        self.out.agent_changed |= changed.agent;
        let session = &self.state.session;
        let as_patch = |value: Option<String>| value.map_or(Patch::Null, Patch::Value);
        let event = Event::SessionUpdated(SessionUpdatedEvent {
            id: self.env.ids.event(),
            title: if changed.title { as_patch(session.title.clone()) } else { Patch::Absent },
            metadata: (changed.metadata && !session.metadata.is_empty()).then(|| session.metadata.clone()),
            agent: changed.agent.then(|| Box::new(session.agent.clone())),
            budget: match (changed.budget, &session.budget) {
                (false, _) => Patch::Absent,
                (true, None) => Patch::Null,
                (true, Some(budget)) => Patch::Value(budget.clone()),
            },
            processed_at: Some(self.env.now),
            extra: Extra::new(),
        });
        self.emit(event);
    }

    // --- work ----------------------------------------------------------------------------------------------------

    /// Asks for hands, if the session's tools run at a worker and no item asks already.
    pub(crate) fn ensure_work(&mut self) {
        if self.state.place == Place::SelfHosted && self.state.work.is_none() {
            self.offer_work(None);
        }
    }

    pub(crate) fn offer_work(&mut self, not_before: Option<Timestamp>) {
        let work = self.env.ids.work();
        self.state.work = Some(work.clone());
        self.out.work = Some((work, not_before));
    }

    // --- model requests ------------------------------------------------------------------------------------------

    /// Whether the budget is used up.
    pub(crate) fn over_budget(&self) -> bool {
        let Some(cap) = self.state.session.budget.as_ref().and_then(|budget| budget.cents().ok()) else {
            return false;
        };
        let priced = self.env.rules.prices.contains_key(&self.state.session.agent.model.id);
        !priced || self.state.cost >= cap.saturating_mul(MICROCENTS)
    }

    /// Makes the next model request of the turn, unless a limit stands against it.
    pub(crate) fn next_request(&mut self, purpose: Purpose) {
        self.state.calls.clear();
        if self.over_budget() {
            self.state.phase = Phase::Exhausted;
            self.idle(StopReason::BudgetReached, None);
            return;
        }
        if self.state.rounds >= self.env.rules.max_rounds {
            self.exhausted("tool_use_limit_reached_error", "the turn has reached its limit of model requests");
            return;
        }
        let full = self.state.window_used.saturating_mul(100)
            >= u64::from(self.env.window).saturating_mul(self.env.rules.compact_at);
        let purpose = if full { Purpose::Compaction } else { purpose };
        if purpose == Purpose::Compaction {
            if self.state.compactions >= self.env.rules.max_compactions {
                self.exhausted(
                    "compaction_limit_reached_error",
                    "the conversation does not fit the model's window even when it is summarised",
                );
                return;
            }
            self.state.compactions += 1;
        }
        self.state.rounds += 1;
        self.request(purpose);
    }

    /// Opens the span of a model request and asks for it.
    pub(crate) fn request(&mut self, purpose: Purpose) {
        if purpose == Purpose::Reply {
            self.promote_input();
        }
        self.ensure_work();
        let event = self.plain();
        let request = event.id.clone();
        self.emit(Event::SpanModelRequestStart(event));
        self.state.phase = Phase::Sampling { request: request.clone(), purpose };
        self.out.effects.push(Effect::Sample { request, purpose });
    }

    /// Closes the span of a model request and counts what it used.
    pub(crate) fn close_request(&mut self, request: EventId, is_error: bool, usage: Option<TokenUse>) {
        let used = usage.unwrap_or_default();
        let total = &mut self.state.session.usage;
        let add = |field: &mut Option<u64>, more: u64| *field = Some(field.unwrap_or(0).saturating_add(more));
        add(&mut total.input_tokens, used.input);
        add(&mut total.output_tokens, used.output);
        add(&mut total.cache_read_input_tokens, used.cache_read);
        let cache = total.cache_creation.get_or_insert_with(CacheCreation::default);
        let untold = used.cache_write.saturating_sub(used.cache_write_5m + used.cache_write_1h);
        cache.ephemeral_5m_input_tokens += used.cache_write_5m + untold;
        cache.ephemeral_1h_input_tokens += used.cache_write_1h;
        if let Some(price) = self.env.rules.prices.get(&self.state.session.agent.model.id) {
            // Cents per million tokens are microcents per token.
            self.state.cost += used.input * price.input
                + used.output * price.output
                + used.cache_read * price.cache_read
                + used.cache_write * price.cache_write;
            self.price();
        }
        let event = Event::SpanModelRequestEnd(SpanModelRequestEndEvent {
            id: self.env.ids.event(),
            model_request_start_id: request,
            is_error: Some(is_error),
            model_usage: ModelUsage {
                input_tokens: used.input,
                output_tokens: used.output,
                cache_read_input_tokens: used.cache_read,
                cache_creation_input_tokens: used.cache_write,
                extra: Extra::new(),
            },
            processed_at: Some(self.env.now),
            extra: Extra::new(),
        });
        self.emit(event);
        self.state.phase = Phase::Idle;
    }

    /// Shows the cost, where the model has a price.
    fn price(&mut self) {
        if self.env.rules.prices.contains_key(&self.state.session.agent.model.id) {
            let cents = (self.state.cost + MICROCENTS / 2) / MICROCENTS;
            self.state.session.usage.list_cost = Some(Money::cents(cents));
        }
    }

    /// The conversation so far is replaced by a summary.
    pub(crate) fn compacted(&mut self, summary: String) {
        let event = Event::AgentThreadContextCompacted(self.plain());
        self.emit_with(event, Some(json!({"summary": summary})));
    }

    pub(crate) fn message(&mut self, id: EventId, text: String) {
        if text.is_empty() {
            return;
        }
        self.emit(Event::AgentMessage(AgentMessageEvent {
            id,
            content: vec![ContentBlock::text(text)],
            processed_at: Some(self.env.now),
            extra: Extra::new(),
        }));
    }

    pub(crate) fn thinking(&mut self, id: EventId, block: Value) {
        self.emit_with(Event::AgentThinking(PlainEvent::new(id, self.env.now)), Some(block));
    }

    // --- tool calls ----------------------------------------------------------------------------------------------

    /// How the agent's configuration rules this tool.
    fn ruling(&self, name: &str) -> Ruling {
        for tool in &self.state.session.agent.tools {
            match tool {
                Tool::Custom(custom) if custom.name == name => return Ruling::Custom,
                Tool::AgentToolset(toolset) => match toolset.tool(name) {
                    Some(resolved) if resolved.enabled => return Ruling::Builtin(resolved.policy),
                    _ => {}
                },
                _ => {}
            }
        }
        Ruling::Unknown
    }

    /// The agent calls a tool.
    pub(crate) fn tool_use(&mut self, id: EventId, model_id: String, name: String, input: Extra) {
        let private = Some(json!({"id": model_id}));
        let ruling = self.ruling(&name);
        if ruling == Ruling::Custom {
            self.emit_with(
                Event::AgentCustomToolUse(AgentCustomToolUseEvent {
                    id: id.clone(),
                    name: name.clone(),
                    input,
                    session_thread_id: None,
                    processed_at: Some(self.env.now),
                    extra: Extra::new(),
                }),
                private,
            );
            self.call(id, name, Answerer::Client, false);
            return;
        }
        let (permission, evaluation) = match &ruling {
            Ruling::Builtin(policy) => judge(policy, &name),
            _ => (EvaluatedPermission::Deny, None),
        };
        self.emit_with(
            Event::AgentToolUse(AgentToolUseEvent {
                id: id.clone(),
                name: name.clone(),
                input,
                evaluated_permission: Some(permission),
                evaluation,
                session_thread_id: None,
                processed_at: Some(self.env.now),
                extra: Extra::new(),
            }),
            private,
        );
        let hosted = matches!(name.as_str(), "web_search" | "web_fetch");
        if ruling == Ruling::Unknown {
            let text = format!("{} The agent has no tool of this name that is enabled.", denial(&name, ""));
            self.denied.push((id.clone(), text));
        } else if permission == EvaluatedPermission::Deny {
            self.denied.push((id.clone(), denial(&name, "")));
        } else if hosted || self.state.place == Place::Cloud {
            let text = if hosted {
                format!("{name} is not available: this server does not run web tools.")
            } else {
                format!(
                    "{name} is not available: this server runs no sandboxes for cloud environments; use a self_hosted environment."
                )
            };
            self.denied.push((id.clone(), text));
        }
        self.call(id, name, Answerer::Worker, permission == EvaluatedPermission::Ask);
    }

    fn call(&mut self, event: EventId, name: String, answerer: Answerer, held: bool) {
        self.state.calls.push(Call { event, name, answerer, held, answered: false });
    }

    /// Tells the model which of its calls were refused.
    pub(crate) fn refuse_denied(&mut self) {
        for (call, text) in std::mem::take(&mut self.denied) {
            self.answer_by_server(&call, &text);
        }
    }

    /// Goes on when every call is answered; else says what the turn waits for.
    pub(crate) fn settle(&mut self) {
        let blocking = self.state.blocking();
        if blocking.is_empty() {
            if self.state.phase == Phase::Waiting {
                self.running();
            }
            self.next_request(Purpose::Reply);
            return;
        }
        self.state.phase = Phase::Waiting;
        self.ensure_work();
        self.idle(StopReason::RequiresAction { event_ids: blocking }, None);
    }
}

/// Evaluates a policy. `auto` lets tools that only read pass and asks about the rest: this version has no judge that could
/// tell a harmless command from a harmful one.
fn judge(policy: &PermissionPolicy, name: &str) -> (EvaluatedPermission, Option<Evaluation>) {
    let auto = |kind, code: Option<&str>| {
        Some(Evaluation::Auto {
            evaluated_permission: AutoVerdict { kind, reason_code: code.map(str::to_owned), extra: Extra::new() },
        })
    };
    match policy {
        PermissionPolicy::AlwaysAllow {} => (EvaluatedPermission::Allow, Some(Evaluation::AlwaysAllow {})),
        PermissionPolicy::AlwaysAsk {} => (EvaluatedPermission::Ask, Some(Evaluation::AlwaysAsk {})),
        PermissionPolicy::Auto {} if matches!(name, "read" | "glob" | "grep") => {
            (EvaluatedPermission::Allow, auto(EvaluatedPermission::Allow, None))
        }
        PermissionPolicy::Auto {} => (EvaluatedPermission::Ask, auto(EvaluatedPermission::Ask, Some("indeterminate"))),
    }
}
