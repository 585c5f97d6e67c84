//! The queue of work: what the eight operations on work items do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palisade_api::{
    EnvironmentId, Heartbeat, MetadataPatch, QueueStats, SessionId, Timestamp, Work, WorkId, WorkState,
};
use palisade_core::batch::{Batch, Key, Kind, Mutation, Precondition, Record};
use palisade_core::session::needs_hands;
use palisade_core::work::{Item, Lapse, Refused};
use palisade_store::{DueQuery, ListQuery, Order};
use tokio::sync::Notify;
use tracing::warn;

use crate::session::Message;
use crate::{Engine, EngineError, Shared};

/// Workers seen within this time count as polling.
const POLLING: i64 = 30_000_000;
/// How often silent workers are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// How a worker polls.
#[derive(Debug, Clone, Default)]
pub struct PollOptions {
    /// Wait so long for an item.
    pub block: Duration,
    /// Hand out again what was handed out this long ago and never acknowledged, in microseconds.
    pub reclaim: i64,
    /// Who polls.
    pub worker: Option<String>,
}

/// An item that was handed out.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The item, without its secret.
    pub work: Work,
    /// Its session.
    pub session: SessionId,
}

/// Who ended an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoppedBy {
    /// A person or a program of theirs: the session is left alone until it gets input.
    Operator,
    /// The worker: if calls still wait, another item is offered.
    Worker,
}

/// Who waits for work, by environment.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    environments: Mutex<HashMap<EnvironmentId, Arc<Notify>>>,
    seen: Mutex<HashMap<(EnvironmentId, String), Timestamp>>,
}

impl Wakers {
    fn of(&self, environment: &EnvironmentId) -> Arc<Notify> {
        let mut environments = self.environments.lock().unwrap_or_else(PoisonError::into_inner);
        environments.entry(environment.clone()).or_default().clone()
    }

    /// There may be work now.
    pub(crate) fn wake(&self, environment: &EnvironmentId) {
        self.of(environment).notify_waiters();
    }

    /// Forgets the environments that nobody waits at.
    fn prune(&self) {
        let mut environments = self.environments.lock().unwrap_or_else(PoisonError::into_inner);
        environments.retain(|_, waker| Arc::strong_count(waker) > 1);
    }

    fn saw(&self, environment: &EnvironmentId, worker: &str, now: Timestamp) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() > 10_000 {
            seen.retain(|_, at| at.plus(POLLING) >= now);
        }
        seen.insert((environment.clone(), worker.chars().take(128).collect()), now);
    }

    fn polling(&self, environment: &EnvironmentId, now: Timestamp) -> Option<u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let count = seen.iter().filter(|((env, _), at)| env == environment && at.plus(POLLING) >= now).count();
        (count > 0).then_some(count as u64)
    }
}

impl Shared {
    async fn item(&self, environment: &EnvironmentId, work: &WorkId) -> Result<Option<(Record, Item)>, EngineError> {
        let Some(record) = self.store.get(&Key::new(Kind::Work, work.as_str())).await? else {
            return Ok(None);
        };
        if record.parent.as_deref() != Some(environment.as_str()) {
            return Ok(None);
        }
        let item = record.decode().map_err(EngineError::corrupt)?;
        Ok(Some((record, item)))
    }

    async fn save(&self, record: &Record, item: &Item) -> Result<(), EngineError> {
        let batch = Batch::new()
            .when(Precondition::Revision(record.key(), record.revision))
            .with(Mutation::Put(item.record(&self.leases).map_err(EngineError::corrupt)?));
        Ok(self.store.commit(batch).await?)
    }

    /// Changes an item, again and again while others change it at the same time.
    async fn change<T>(
        &self,
        environment: &EnvironmentId,
        work: &WorkId,
        mut verb: impl FnMut(&mut Item, Timestamp) -> T,
    ) -> Result<Option<(Item, T)>, EngineError> {
        loop {
            let Some((record, mut item)) = self.item(environment, work).await? else { return Ok(None) };
            let before = item.clone();
            let result = verb(&mut item, self.clock.now());
            if item == before {
                return Ok(Some((item, result)));
            }
            match self.save(&record, &item).await {
                Ok(()) => return Ok(Some((item, result))),
                Err(EngineError::Conflict) => {}
                Err(why) => return Err(why),
            }
        }
    }

    /// Ends an item because its session is over.
    pub(crate) async fn stop_item(&self, environment: &EnvironmentId, work: &WorkId) -> Result<(), EngineError> {
        self.change(environment, work, |item, now| item.stop(true, now).is_ok()).await?;
        Ok(())
    }
}

impl Engine {
    /// Hands out the item that has waited longest, waiting for one if asked to.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn poll(
        &self,
        environment: &EnvironmentId,
        options: &PollOptions,
    ) -> Result<Option<Claimed>, EngineError> {
        let deadline = tokio::time::Instant::now() + options.block;
        let waker = self.shared.queue.of(environment);
        loop {
            // Listen before looking, so that an item queued in between is not missed.
            let notified = waker.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(worker) = &options.worker {
                self.shared.queue.saw(environment, worker, self.shared.clock.now());
            }
            if let Some(claimed) = self.claim(environment, options.reclaim).await? {
                self.shared.metrics.poll(true);
                return Ok(Some(claimed));
            }
            tokio::select! {
                () = &mut notified => {}
                () = tokio::time::sleep_until(deadline) => break,
                () = self.shared.shutdown.cancelled() => break,
            }
        }
        self.shared.metrics.poll(false);
        Ok(None)
    }

    async fn claim(&self, environment: &EnvironmentId, reclaim: i64) -> Result<Option<Claimed>, EngineError> {
        let now = self.shared.clock.now();
        let due = DueQuery {
            kind: Kind::Work,
            parent: Some(environment.as_str().to_owned()),
            statuses: vec!["queued".to_owned()],
            before: now,
            limit: 16,
        };
        for record in self.shared.store.due(&due).await? {
            let mut item: Item = record.decode().map_err(EngineError::corrupt)?;
            if !item.claimable(now, reclaim) {
                continue;
            }
            let session = SessionId::from(item.work.data.id());
            let live = match self.shared.store.get(&Key::new(Kind::Session, session.as_str())).await? {
                Some(session) => session.status.as_deref() != Some("terminated"),
                None => false,
            };
            if live {
                item.claim(now);
            } else {
                // A poll never fails because of one stale item: the item is dropped and the next one looked at.
                let _ = item.stop(true, now);
            }
            match self.shared.save(&record, &item).await {
                Ok(()) if live => return Ok(Some(Claimed { work: item.work, session })),
                // Another worker was faster.
                Ok(()) | Err(EngineError::Conflict) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(None)
    }

    /// The worker has the item.
    ///
    /// # Errors
    /// When the store fails; the inner error when the item is past this.
    pub async fn ack(
        &self,
        environment: &EnvironmentId,
        work: &WorkId,
    ) -> Result<Option<Result<Work, Refused>>, EngineError> {
        let changed = self.shared.change(environment, work, |item, now| item.ack(now)).await?;
        Ok(changed.map(|(item, result)| result.map(|()| item.work)))
    }

    /// Extends an item's lease.
    ///
    /// # Errors
    /// When the store fails; the inner error when the lease is not the caller's.
    pub async fn beat(
        &self,
        environment: &EnvironmentId,
        work: &WorkId,
        expected: Option<&str>,
        ttl: Option<i64>,
    ) -> Result<Option<Result<Heartbeat, Refused>>, EngineError> {
        let leases = self.shared.leases;
        let changed = self.shared.change(environment, work, |item, now| item.beat(expected, ttl, &leases, now)).await?;
        Ok(changed.map(|(_, result)| result))
    }

    /// Stops an item, and offers another when its session still waits for hands.
    ///
    /// # Errors
    /// When the store fails; the inner error when it is stopped already.
    pub async fn stop_work(
        self: &Arc<Engine>,
        environment: &EnvironmentId,
        work: &WorkId,
        force: bool,
        by: StoppedBy,
    ) -> Result<Option<Result<Work, Refused>>, EngineError> {
        let changed = self.shared.change(environment, work, |item, now| item.stop(force, now)).await?;
        let Some((item, result)) = changed else { return Ok(None) };
        if result.is_ok() && item.work.state == WorkState::Stopped {
            self.ended(&item, by == StoppedBy::Operator).await;
        }
        Ok(Some(result.map(|()| item.work)))
    }

    async fn ended(self: &Arc<Engine>, item: &Item, by_operator: bool) {
        if let Some(session) = item.work.data.session_id() {
            self.tell(&session, Message::WorkEnded { work: item.work.id.clone(), by_operator }).await;
        }
    }

    /// One item.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn work(&self, environment: &EnvironmentId, work: &WorkId) -> Result<Option<Work>, EngineError> {
        Ok(self.shared.item(environment, work).await?.map(|(_, item)| item.work))
    }

    /// Changes an item's metadata; `check` sees the result first.
    ///
    /// # Errors
    /// When the store fails; the inner error when the result breaks a limit.
    pub async fn update_work(
        &self,
        environment: &EnvironmentId,
        work: &WorkId,
        patch: &MetadataPatch,
    ) -> Result<Option<Result<Work, String>>, EngineError> {
        let changed = self
            .shared
            .change(environment, work, |item, _| {
                let mut merged = item.work.metadata.clone();
                patch.apply(&mut merged);
                merged.validate()?;
                item.work.metadata = merged;
                Ok(())
            })
            .await?;
        Ok(changed.map(|(item, result)| result.map(|()| item.work)))
    }

    /// How full an environment's queue is.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn queue_stats(&self, environment: &EnvironmentId) -> Result<QueueStats, EngineError> {
        let mut query = ListQuery {
            parent: Some(environment.as_str().to_owned()),
            statuses: vec!["queued".to_owned()],
            order: Order::Ascending,
            limit: 500,
            ..ListQuery::new(Kind::Work)
        };
        let (mut depth, mut pending, mut oldest) = (0, 0, None);
        loop {
            let page = self.shared.store.list(&query).await?;
            for record in &page {
                let item: Item = record.decode().map_err(EngineError::corrupt)?;
                if item.claimed_at.is_some() {
                    pending += 1;
                } else {
                    depth += 1;
                    oldest = oldest.or(Some(item.work.created_at));
                }
            }
            let Some(last) = page.last().filter(|_| page.len() == query.limit) else { break };
            query.after = Some(palisade_store::Cursor { created_at: last.created_at, id: last.id.clone() });
        }
        Ok(QueueStats {
            kind: "work_queue_stats".to_owned(),
            depth,
            pending,
            oldest_queued_at: oldest,
            workers_polling: self.shared.queue.polling(environment, self.shared.clock.now()),
            extra: palisade_api::Extra::new(),
        })
    }

    async fn wanted(&self, item: &Item) -> Result<bool, EngineError> {
        match self.shared.store.get(&Key::new(Kind::Session, item.work.data.id())).await? {
            Some(session) => needs_hands(&session).map_err(EngineError::corrupt),
            None => Ok(false),
        }
    }

    /// Takes items back from workers that have fallen silent, for as long as the engine runs.
    pub(crate) async fn sweep(self: Arc<Engine>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SWEEP) => {}
                () = self.shared.shutdown.cancelled() => return,
            }
            self.shared.feeds.prune();
            self.shared.queue.prune();
            if let Err(why) = self.sweep_once().await {
                warn!(error = %why, "silent workers could not be looked for; trying again");
            }
        }
    }

    async fn sweep_once(self: &Arc<Engine>) -> Result<(), EngineError> {
        let due = DueQuery {
            kind: Kind::Work,
            parent: None,
            statuses: vec!["starting".to_owned(), "active".to_owned(), "stopping".to_owned()],
            before: self.shared.clock.now(),
            limit: 256,
        };
        for record in self.shared.store.due(&due).await? {
            let mut item: Item = record.decode().map_err(EngineError::corrupt)?;
            let now = self.shared.clock.now();
            let mut lapse = item.lapse(&self.shared.leases, now);
            // A session that has nothing to do for a worker must not keep the next one busy.
            if lapse == Lapse::Requeued && !self.wanted(&item).await? && item.stop(true, now).is_ok() {
                lapse = Lapse::Stopped;
            }
            match self.shared.save(&record, &item).await {
                Ok(()) => {}
                // The worker was faster: it has beaten or stopped meanwhile.
                Err(EngineError::Conflict) => continue,
                Err(why) => return Err(why),
            }
            match lapse {
                Lapse::Requeued => {
                    self.shared.metrics.requeue();
                    self.shared.queue.wake(&item.work.environment_id);
                }
                Lapse::Stopped => self.ended(&item, false).await,
                Lapse::Held => {}
            }
        }
        Ok(())
    }
}
