//! The engine: one actor per live session, the queue of work, and the models.
//!
//! Architecture invariant: every decision is made by `palisade-core`, committed by `palisade-store`, and only then seen by
//! anyone. This crate is the glue that runs effects.

mod clock;
mod context;
mod error;
mod feed;
mod metrics;
pub mod model;
mod queue;
mod session;
mod tools;

pub use clock::{Clock, RandomIds, SystemClock, random_bytes};
pub use error::EngineError;
pub use feed::{Feeds, Frame, FrameKind};
pub use metrics::{Metrics, Snapshot};
pub use queue::{Claimed, PollOptions, StoppedBy};

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palisade_api::{ClientEvent, Event, Session, SessionId};
use palisade_core::batch::{Batch, Key, Kind, Mutation, PendingEntry, Precondition};
use palisade_core::session::{self as machine, Change, Env, Rules, State};
use palisade_core::work::Leases;
use palisade_store::{ListQuery, Order, Store};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::model::Models;
use crate::session::{Actor, Message};

/// Messages that a session's actor may be behind before its callers wait.
const INBOX: usize = 64;

/// What an engine is made of.
pub struct Options {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// The model providers.
    pub models: Models,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How long sessions try.
    pub rules: Rules,
    /// How long workers may be silent.
    pub leases: Leases,
    /// The longest reply asked of a model, in tokens.
    pub max_tokens: u32,
}

/// What actors share.
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) models: Models,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rules: Rules,
    pub(crate) leases: Leases,
    pub(crate) max_tokens: u32,
    pub(crate) feeds: Feeds,
    pub(crate) queue: queue::Wakers,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: CancellationToken,
}

/// The engine.
pub struct Engine {
    shared: Arc<Shared>,
    live: Mutex<HashMap<SessionId, mpsc::Sender<Message>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// A listener's place in a session's feed.
pub struct Subscription {
    /// New frames, from the moment of subscription on.
    pub frames: broadcast::Receiver<Arc<Frame>>,
    /// The log's last sequence number at that moment: where a reader that falls behind starts to catch up.
    pub tail: u64,
}

impl Engine {
    /// Starts the engine and takes up every session that was under way when the last process ended.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(options: Options) -> Result<Arc<Engine>, EngineError> {
        let shared = Arc::new(Shared {
            store: options.store,
            models: options.models,
            clock: options.clock,
            rules: options.rules,
            leases: options.leases,
            max_tokens: options.max_tokens,
            feeds: Feeds::default(),
            queue: queue::Wakers::default(),
            metrics: Metrics::default(),
            shutdown: CancellationToken::new(),
        });
        let engine = Arc::new(Engine { shared, live: Mutex::new(HashMap::new()), tasks: Mutex::new(JoinSet::new()) });
        engine.recover().await?;
        let sweeper = engine.clone().sweep();
        engine.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(sweeper);
        Ok(engine)
    }

    async fn recover(self: &Arc<Engine>) -> Result<(), EngineError> {
        let mut sessions = self.shared.store.sessions_with_pending().await?;
        let mut query = ListQuery {
            statuses: vec!["running".to_owned(), "rescheduling".to_owned(), "idle".to_owned()],
            include_archived: true,
            order: Order::Ascending,
            limit: 500,
            ..ListQuery::new(Kind::Session)
        };
        loop {
            let page = self.shared.store.list(&query).await?;
            for record in &page {
                // An idle session is only taken up when it waits for a worker: its work item may have been lost.
                let waits = machine::needs_hands(record).map_err(EngineError::corrupt)?;
                if record.status.as_deref() != Some("idle") || waits {
                    sessions.push(SessionId::from(record.id.as_str()));
                }
            }
            let Some(last) = page.last().filter(|_| page.len() == query.limit) else { break };
            query.after = Some(palisade_store::Cursor { created_at: last.created_at, id: last.id.clone() });
        }
        sessions.sort();
        sessions.dedup();
        for session in sessions {
            self.tell(&session, Message::Wake).await;
        }
        Ok(())
    }

    /// Creates a session. `initial` has been checked to hold nothing but messages; with any, the session starts at once.
    ///
    /// # Errors
    /// When the state cannot be stored, or an event is refused.
    pub async fn create_session(
        self: &Arc<Engine>,
        mut state: State,
        initial: Vec<ClientEvent>,
        exists: Vec<Key>,
    ) -> Result<Session, EngineError> {
        let id = state.session.id.clone();
        let mut ids = RandomIds;
        let mut env = Env {
            now: self.shared.clock.now(),
            ids: &mut ids,
            rules: &self.shared.rules,
            window: self.shared.models.context_window(&state.session.agent.model.id),
        };
        let mut pending = Vec::new();
        if !initial.is_empty() {
            let outcome = machine::ingest(&mut state, initial, &std::collections::BTreeSet::new(), &mut env)
                .map_err(EngineError::Refused)?;
            for entry in outcome.enqueue {
                let body = serde_json::to_string(&entry.event).map_err(EngineError::corrupt)?;
                pending.push(PendingEntry { id: entry.event.id().clone(), at: entry.at, body });
            }
            // Documented: a session with initial events is created in `running`.
            state.session.status = palisade_api::SessionStatus::Running;
        }
        let starts = !pending.is_empty();
        let record = state.record().map_err(EngineError::corrupt)?;
        let mut batch = Batch::new().when(Precondition::Absent(record.key()));
        for key in exists {
            batch = batch.when(Precondition::Exists(key));
        }
        batch =
            batch.with(Mutation::Put(record)).with(Mutation::Put(state.agent_record().map_err(EngineError::corrupt)?));
        if starts {
            batch = batch.with(Mutation::Enqueue(id.clone(), pending));
        }
        self.shared.store.commit(batch).await?;
        if starts {
            self.tell(&id, Message::Wake).await;
        }
        Ok(state.session)
    }

    /// Sends client events to a session.
    ///
    /// # Errors
    /// When the session does not exist or refuses them.
    pub async fn send(
        self: &Arc<Engine>,
        session: &SessionId,
        events: Vec<ClientEvent>,
    ) -> Result<Vec<Event>, EngineError> {
        self.ask(session, |reply| Message::Send { events, reply }).await
    }

    /// Changes a session.
    ///
    /// # Errors
    /// When the session does not exist or refuses the change.
    pub async fn update(self: &Arc<Engine>, session: &SessionId, change: Change) -> Result<Session, EngineError> {
        self.ask(session, |reply| Message::Update { change, reply }).await
    }

    /// Archives a session.
    ///
    /// # Errors
    /// When the session does not exist or is running.
    pub async fn archive(self: &Arc<Engine>, session: &SessionId) -> Result<Session, EngineError> {
        self.ask(session, |reply| Message::Archive { reply }).await
    }

    /// Deletes a session, its log included.
    ///
    /// # Errors
    /// When the session does not exist or is running.
    pub async fn delete(self: &Arc<Engine>, session: &SessionId) -> Result<(), EngineError> {
        self.ask(session, |reply| Message::Delete { reply }).await
    }

    /// Listens to a session from now on.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn subscribe(&self, session: &SessionId) -> Result<Subscription, EngineError> {
        // First listen, then look: nothing that is committed in between can be missed.
        let frames = self.shared.feeds.subscribe(session);
        let tail = self.shared.store.tail(session).await?;
        Ok(Subscription { frames, tail })
    }

    /// The store, for queries.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// The time.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// The rules in force.
    pub fn rules(&self) -> &Rules {
        &self.shared.rules
    }

    /// What has been counted.
    pub fn metrics(&self) -> Snapshot {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.shared.metrics.snapshot(live, self.shared.feeds.readers())
    }

    /// Stops every actor at its last durable step, and ends every stream.
    pub async fn shutdown(&self) {
        self.shared.shutdown.cancel();
        self.shared.feeds.close_all();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(10), all).await.is_err() {
            warn!("some sessions did not stop in time; they go on from their last durable step");
        }
    }

    async fn ask<T>(
        self: &Arc<Engine>,
        session: &SessionId,
        message: impl FnOnce(oneshot::Sender<Result<T, EngineError>>) -> Message,
    ) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.post(session, message(reply)).await?;
        // The actor drops the question when it ends between two messages.
        answer.await.map_err(|_| EngineError::Lost)?
    }

    async fn tell(self: &Arc<Engine>, session: &SessionId, message: Message) {
        match self.post(session, message).await {
            Ok(()) | Err(EngineError::NoSession) => {}
            Err(why) => warn!(%session, error = %why, "the session could not be reached"),
        }
    }

    /// Hands a message to the session's actor, which is started when it is not there.
    async fn post(self: &Arc<Engine>, session: &SessionId, mut message: Message) -> Result<(), EngineError> {
        for _ in 0..8 {
            if self.shared.shutdown.is_cancelled() {
                return Err(EngineError::ShuttingDown);
            }
            let sender = self.actor(session);
            match sender.send(message).await {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendError(back)) => {
                    message = back;
                    self.forget(session, &sender);
                }
            }
        }
        // Either it does not exist, which is the usual case, or it keeps failing to load.
        match self.shared.store.get(&Key::new(Kind::Session, session.as_str())).await? {
            None => Err(EngineError::NoSession),
            Some(_) => Err(EngineError::Lost),
        }
    }

    fn actor(self: &Arc<Engine>, session: &SessionId) -> mpsc::Sender<Message> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = live.get(session) {
            return sender.clone();
        }
        let (sender, inbox) = mpsc::channel(INBOX);
        live.insert(session.clone(), sender.clone());
        let (engine, id, own) = (self.clone(), session.clone(), sender.clone());
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let left = match Actor::load(engine.shared.clone(), id.clone(), inbox).await {
                Ok(actor) => actor.run().await,
                Err(EngineError::NoSession) => Vec::new(),
                Err(why) => {
                    warn!(session = %id, error = %why, "the session could not be loaded");
                    Vec::new()
                }
            };
            engine.forget(&id, &own);
            drop(own);
            for message in left {
                engine.tell(&id, message).await;
            }
        });
        sender
    }

    /// Removes an actor that has ended, unless another has taken its place.
    fn forget(&self, session: &SessionId, sender: &mpsc::Sender<Message>) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.get(session).is_some_and(|current| current.same_channel(sender)) {
            live.remove(session);
        }
    }
}
