//! One actor per live session: the only writer of its log while it holds the lease.
//!
//! Invariant: nothing is answered, streamed or asked of a model before the commit that says so has returned. Every commit
//! carries the lease's epoch, so that an actor that lost its session can no longer write to it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use palisade_api::{ClientEvent, Event, EventId, Session, SessionId, Timestamp, WorkId};
use palisade_core::batch::{Batch, Key, Kind, Mutation, PendingEntry, Precondition};
use palisade_core::session::{self, Change, Effect, Env, Outcome, Pending, Phase, Refusal, State};
use palisade_core::work::Item;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use crate::clock::RandomIds;
use crate::feed::{Frame, FrameKind};
use crate::session::sampling::{Sampling, Step as SampleStep};
use crate::{EngineError, Shared};

/// How long an actor without anything to do stays in memory.
const IDLE: Duration = Duration::from_secs(60);
/// Between two tries of a commit that the store refused.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// What an actor is asked to do.
#[derive(Debug)]
pub(crate) enum Message {
    Send { events: Vec<ClientEvent>, reply: oneshot::Sender<Result<Vec<Event>, EngineError>> },
    Update { change: Change, reply: oneshot::Sender<Result<Session, EngineError>> },
    Archive { reply: oneshot::Sender<Result<Session, EngineError>> },
    Delete { reply: oneshot::Sender<Result<(), EngineError>> },
    WorkEnded { work: WorkId, by_operator: bool },
    Wake,
}

pub(crate) struct Actor {
    shared: Arc<Shared>,
    id: SessionId,
    epoch: u64,
    state: State,
    inbox: mpsc::Receiver<Message>,
    sampling: Option<Sampling>,
    wake: Option<Timestamp>,
}

/// Why an actor ended.
enum End {
    Idle,
    Deleted,
    Lost,
}

impl Actor {
    /// Takes the session's lease and reads its state.
    pub(crate) async fn load(
        shared: Arc<Shared>,
        id: SessionId,
        inbox: mpsc::Receiver<Message>,
    ) -> Result<Actor, EngineError> {
        let store = &shared.store;
        let session = store.get(&Key::new(Kind::Session, id.as_str())).await?;
        let agent = store.get(&Key::new(Kind::SessionAgent, id.as_str())).await?;
        let (Some(session), Some(agent)) = (session, agent) else { return Err(EngineError::NoSession) };
        let before = store.epoch(&id).await?;
        let epoch = before + 1;
        let lease = Batch::new()
            .when(Precondition::Exists(session.key()))
            .when(Precondition::Epoch(id.clone(), before))
            .with(Mutation::TakeLease(id.clone(), epoch));
        store.commit(lease).await?;
        // Read again under the lease: whoever held it before can write no more.
        let session = store.get(&session.key()).await?.ok_or(EngineError::NoSession)?;
        let agent = store.get(&agent.key()).await?.ok_or(EngineError::NoSession)?;
        let mut state = State::from_records(&session, &agent).map_err(EngineError::corrupt)?;
        for entry in store.pending(&id).await? {
            let event = serde_json::from_str(&entry.body).map_err(EngineError::corrupt)?;
            state.pending.push_back(Pending { event, at: entry.at });
        }
        Ok(Actor { shared, id, epoch, state, inbox, sampling: None, wake: None })
    }

    /// Serves the session until it has nothing to do, is deleted, or belongs to somebody else.
    ///
    /// Returns the messages that it did not come to: they arrived while it was ending, and are for whoever serves the
    /// session next.
    pub(crate) async fn run(mut self) -> Vec<Message> {
        let end = match self.recover().await {
            Ok(()) => self.serve().await,
            Err(end) => end,
        };
        if let Some(sampling) = self.sampling.take() {
            sampling.stop().await;
        }
        if matches!(end, End::Deleted) {
            self.shared.feeds.close(&self.id);
        }
        self.inbox.close();
        let mut left = Vec::new();
        while let Some(message) = self.inbox.recv().await {
            left.push(message);
        }
        left
    }

    async fn recover(&mut self) -> Result<(), End> {
        self.apply(session::resume).await?;
        if let Some(work) = self.state.work.clone()
            && self.state.needs_hands()
        {
            let stored = self.shared.store.get(&Key::new(Kind::Work, work.as_str())).await;
            let live = match stored {
                Ok(Some(record)) => record.status.as_deref() != Some("stopped"),
                Ok(None) => false,
                Err(_) => true,
            };
            if !live {
                self.apply(|state, env| session::work_ended(state, &work, false, env)).await?;
            }
        }
        self.advance().await
    }

    async fn serve(&mut self) -> End {
        loop {
            let idle = self.sampling.is_none() && self.wake.is_none();
            let wake = self.wake;
            let now = self.shared.clock.now();
            let until_wake =
                wake.map(|at| Duration::from_micros((at.as_micros() - now.as_micros()).max(0).unsigned_abs()));
            let step = tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.handle(message).await,
                    None => return End::Idle,
                },
                step = Sampling::next(&mut self.sampling) => self.sampled(step).await,
                () = tokio::time::sleep(until_wake.unwrap_or(IDLE)), if wake.is_some() || idle => {
                    if wake.is_none() {
                        return End::Idle;
                    }
                    self.wake = None;
                    self.advance().await
                }
                () = self.shared.shutdown.cancelled() => return End::Idle,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn handle(&mut self, message: Message) -> Result<(), End> {
        match message {
            Message::Send { events, reply } => {
                let past = match self.past_calls(&events).await {
                    Ok(past) => past,
                    Err(why) => {
                        let _ = reply.send(Err(why));
                        return Ok(());
                    }
                };
                let done = self.try_apply(|state, env| session::ingest(state, events, &past, env)).await;
                let (answer, end) = split(done.map(|outcome| outcome.reply));
                let _ = reply.send(answer);
                end?;
                self.advance().await
            }
            Message::Update { change, reply } => {
                let done = self.try_apply(|state, env| session::update(state, change, env)).await;
                let (answer, end) = split(done.map(|_| self.state.session.clone()));
                let _ = reply.send(answer);
                end?;
                self.advance().await
            }
            Message::Archive { reply } => {
                let done = self.try_apply(session::archive).await;
                let (answer, end) = split(done.map(|_| self.state.session.clone()));
                let _ = reply.send(answer);
                end
            }
            Message::Delete { reply } => {
                let done = self.delete().await;
                let deleted = done.is_ok();
                let _ = reply.send(done);
                if deleted { Err(End::Deleted) } else { Ok(()) }
            }
            Message::WorkEnded { work, by_operator } => {
                self.apply(|state, env| session::work_ended(state, &work, by_operator, env)).await?;
                self.advance().await
            }
            Message::Wake => self.advance().await,
        }
    }

    /// Those of the events' calls that are in the log but no longer in the state.
    async fn past_calls(&self, events: &[ClientEvent]) -> Result<BTreeSet<EventId>, EngineError> {
        let mut past = BTreeSet::new();
        for event in events {
            let id = match event {
                ClientEvent::UserToolResult(result) => &result.tool_use_id,
                ClientEvent::UserCustomToolResult(result) => &result.custom_tool_use_id,
                _ => continue,
            };
            if self.state.calls.iter().any(|call| &call.event == id) {
                continue;
            }
            if let Some(entry) = self.shared.store.event(&self.id, id).await?
                && matches!(entry.kind.as_str(), "agent.tool_use" | "agent.custom_tool_use")
            {
                past.insert(id.clone());
            }
        }
        Ok(past)
    }

    /// Advances until there is nothing left to do.
    async fn advance(&mut self) -> Result<(), End> {
        loop {
            let outcome = self.apply(session::advance).await?;
            if outcome.is_empty() {
                return Ok(());
            }
        }
    }

    async fn sampled(&mut self, step: SampleStep) -> Result<(), End> {
        match step {
            SampleStep::Preview(frame) => {
                self.shared.feeds.publish(&self.id, [frame]);
                Ok(())
            }
            SampleStep::Completed(request, reply) => {
                self.sampling = None;
                self.apply(|state, env| session::complete(state, &request, reply.clone(), env)).await?;
                self.advance().await
            }
            SampleStep::Failed(request, failure) => {
                self.sampling = None;
                self.apply(|state, env| session::fail(state, &request, failure.clone(), env)).await?;
                self.advance().await
            }
        }
    }

    /// Applies a transition that cannot be refused. While the store refuses writes it is tried again: the session waits,
    /// nothing of it is lost.
    async fn apply(&mut self, mut transition: impl FnMut(&mut State, &mut Env<'_>) -> Outcome) -> Result<Outcome, End> {
        loop {
            match self.try_apply(|state, env| Ok(transition(state, env))).await {
                Ok(outcome) => return Ok(outcome),
                Err(EngineError::Store(why)) => {
                    warn!(session = %self.id, error = %why, "the store refuses writes; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(STORE_RETRY) => {}
                        () = self.shared.shutdown.cancelled() => return Err(End::Lost),
                    }
                }
                Err(why) => {
                    error!(session = %self.id, error = %why, "the session is given up by this process");
                    return Err(End::Lost);
                }
            }
        }
    }

    /// Decides, commits, and only then lets anyone see what was decided.
    async fn try_apply(
        &mut self,
        transition: impl FnOnce(&mut State, &mut Env<'_>) -> Result<Outcome, Refusal>,
    ) -> Result<Outcome, EngineError> {
        let mut next = self.state.clone();
        let mut ids = RandomIds;
        let mut env = Env {
            now: self.shared.clock.now(),
            ids: &mut ids,
            rules: &self.shared.rules,
            window: self.shared.models.context_window(&self.state.session.agent.model.id),
        };
        let outcome = transition(&mut next, &mut env).map_err(EngineError::Refused)?;
        if !outcome.is_empty() {
            let batch = self.batch(&next, &outcome)?;
            self.shared.store.commit(batch).await.map_err(EngineError::from)?;
            self.publish(&outcome);
        }
        self.state = next;
        for effect in &outcome.effects {
            self.run_effect(effect).await;
        }
        if outcome.work.is_some() {
            self.shared.queue.wake(&self.state.session.environment_id);
        }
        Ok(outcome)
    }

    fn batch(&self, next: &State, outcome: &Outcome) -> Result<Batch, EngineError> {
        let mut batch = Batch::new()
            .when(Precondition::Epoch(self.id.clone(), self.epoch))
            .when(Precondition::Tail(self.id.clone(), self.state.tail));
        if !outcome.entries.is_empty() {
            batch = batch.with(Mutation::Append(self.id.clone(), outcome.entries.clone()));
        }
        if !outcome.dequeue.is_empty() {
            batch = batch.with(Mutation::Dequeue(self.id.clone(), outcome.dequeue.clone()));
        }
        if !outcome.enqueue.is_empty() {
            let mut entries = Vec::with_capacity(outcome.enqueue.len());
            for pending in &outcome.enqueue {
                let body = serde_json::to_string(&pending.event).map_err(EngineError::corrupt)?;
                entries.push(PendingEntry { id: pending.event.id().clone(), at: pending.at, body });
            }
            batch = batch.with(Mutation::Enqueue(self.id.clone(), entries));
        }
        batch = batch.with(Mutation::Put(next.record().map_err(EngineError::corrupt)?));
        if outcome.agent_changed {
            batch = batch.with(Mutation::Put(next.agent_record().map_err(EngineError::corrupt)?));
        }
        if let Some((work, not_before)) = &outcome.work {
            let item = Item::new(
                work.clone(),
                next.session.environment_id.clone(),
                &self.id,
                self.shared.clock.now(),
                *not_before,
            );
            batch = batch.with(Mutation::Put(item.record(&self.shared.leases).map_err(EngineError::corrupt)?));
        }
        Ok(batch)
    }

    fn publish(&self, outcome: &Outcome) {
        self.shared.metrics.events(outcome.entries.len());
        if !self.shared.feeds.is_watched(&self.id) {
            return;
        }
        let queued = outcome.enqueue.iter().filter_map(|pending| {
            let json = serde_json::to_string(&pending.event).ok()?;
            Some(Frame::new(FrameKind::Queued, pending.event.type_name(), &json))
        });
        let logged =
            outcome.entries.iter().map(|entry| Frame::new(FrameKind::Logged(entry.seq), &entry.kind, &entry.body));
        self.shared.feeds.publish(&self.id, queued.chain(logged));
    }

    async fn run_effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Sample { request, purpose } => {
                if let Some(sampling) = self.sampling.take() {
                    sampling.stop().await;
                }
                self.wake = None;
                self.sampling = Some(Sampling::start(&self.shared, &self.state.session, request.clone(), *purpose));
            }
            Effect::CancelSample => {
                if let Some(sampling) = self.sampling.take() {
                    sampling.stop().await;
                }
            }
            Effect::Wake(at) => self.wake = Some(*at),
            Effect::StopWork(work) => {
                if let Err(why) = self.shared.stop_item(&self.state.session.environment_id, work).await {
                    warn!(session = %self.id, %work, error = %why, "the work item could not be stopped; polls will drop it");
                }
            }
        }
        if !matches!(self.state.phase, Phase::Rescheduled { .. }) {
            self.wake = None;
        }
    }

    async fn delete(&mut self) -> Result<(), EngineError> {
        session::may_delete(&self.state).map_err(EngineError::Refused)?;
        if let Some(work) = self.state.work.clone() {
            let _ = self.shared.stop_item(&self.state.session.environment_id, &work).await;
        }
        let batch = Batch::new()
            .when(Precondition::Epoch(self.id.clone(), self.epoch))
            .with(Mutation::Delete(Key::new(Kind::Session, self.id.as_str())))
            .with(Mutation::Delete(Key::new(Kind::SessionAgent, self.id.as_str())));
        self.shared.store.commit(batch).await?;
        let event = session::deleted(&mut RandomIds, self.shared.clock.now());
        if let Ok(json) = serde_json::to_string(&event) {
            let frame = Frame::new(FrameKind::Deleted, event.type_name(), &json);
            self.shared.feeds.publish(&self.id, [frame]);
        }
        Ok(())
    }
}

/// Splits what happened into the caller's answer and whether the actor must end.
fn split<T>(done: Result<T, EngineError>) -> (Result<T, EngineError>, Result<(), End>) {
    let end = match &done {
        Err(EngineError::Lost) => Err(End::Lost),
        _ => Ok(()),
    };
    (done, end)
}
