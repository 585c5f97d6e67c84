//! Leases: renewed while they are used, revoked when nobody may use them.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;

use super::{FIRST_PAUSE, Inner, Kept, Key, LONGEST_PAUSE, Place, Slot, State, Vault};
use crate::error::FetchError;
use crate::source::{Document, Lease};

/// How often it is looked what is due.
const LOOK: Duration = Duration::from_secs(1);
/// The most leases that wait to be revoked; beyond it the one that ends first is left to end by itself.
const ORPHANS: usize = 4096;
/// How many leases are renewed or revoked at a time.
const AT_ONCE: usize = 16;

/// How a lease stands.
#[derive(Debug)]
pub(super) struct Held {
    lease: Lease,
    ends: Duration,
    renew_at: Duration,
    failures: u32,
}

impl Held {
    fn new(lease: Lease, now: Duration) -> Self {
        let mut held = Self { lease, ends: now, renew_at: now, failures: 0 };
        held.hold(now);
        held
    }

    /// Counts the lease's time from now.
    fn hold(&mut self, now: Duration) {
        self.ends = now.saturating_add(self.lease.lasts);
        // At half of its time there is room for several more tries.
        self.renew_at = now.saturating_add(self.lease.lasts / 2);
        self.failures = 0;
    }

    /// A request that begins just before the end would be refused in the middle.
    pub(super) fn usable_until(&self) -> Duration {
        self.ends.saturating_sub((self.lease.lasts / 10).min(Duration::from_secs(10)))
    }
}

impl Kept {
    pub(super) fn new(document: Document, keep: Duration, now: Duration, wall: SystemTime) -> Self {
        let held = document.lease.clone().map(|lease| std::sync::Mutex::new(Held::new(lease, now)));
        // A leased value changes with each fetch: it is used as long as its lease is kept up.
        let mut until = if held.is_some() { Duration::MAX } else { now.saturating_add(keep) };
        if let Some(expires) = document.expires {
            until = until.min(now.saturating_add(expires.duration_since(wall).unwrap_or_default()));
        }
        Self { document, fetched: now, until, held }
    }
}

/// A lease that nobody uses any more and that its source has not yet taken back.
#[derive(Debug)]
pub(super) struct Orphan {
    place: Arc<Place>,
    lease: Lease,
    ends: Duration,
    try_at: Duration,
    failures: u32,
}

/// A lease that could not be revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseLeft {
    /// What it is a lease of, as the source calls it.
    pub of: String,
    /// Why it could not be revoked.
    pub error: FetchError,
    /// When it ends by itself at the latest.
    pub ends_in: Duration,
}

impl Vault {
    /// Keeps leases up, revokes those that could not be revoked at once, and forgets what is no longer valid. Does not
    /// return; whoever owns the vault runs it in a task and aborts it before [`Vault::close`].
    pub async fn run(&self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            self.tend().await;
        }
    }

    /// One round of [`Vault::run`].
    pub async fn tend(&self) {
        self.inner.sweep();
        for place in self.inner.places.values() {
            if place.resting(self.inner.clock.elapsed()).is_some() {
                continue;
            }
            let tended = place.source.tend().await;
            if let Err(error) = &tended {
                tracing::warn!(%error, "a source of secrets could not be kept ready");
                place.note(&tended, self.inner.clock.elapsed());
            }
        }
        self.inner.renew_due().await;
        self.inner.revoke_orphans().await;
    }
}

impl Inner {
    /// Forgets values whose time is over, so that they do not stay in memory for want of a next use.
    fn sweep(&self) {
        let now = self.clock.elapsed();
        let mut state = self.state();
        let over = |slot: &Arc<Slot>| {
            let kept = slot.kept.read().unwrap_or_else(PoisonError::into_inner);
            let refused = slot.refused.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::strong_count(slot) == 1
                && match kept.as_ref() {
                    Some(kept) => {
                        let ends =
                            kept.held.as_ref().map(|held| held.lock().unwrap_or_else(PoisonError::into_inner).ends);
                        kept.until <= now || ends.is_some_and(|ends| ends <= now)
                    }
                    None => refused.as_ref().is_none_or(|(until, _)| *until <= now),
                }
        };
        let gone: Vec<Key> = state.slots.iter().filter(|(_, slot)| over(slot)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.let_go(&mut state, &key);
        }
    }

    async fn renew_due(self: &Arc<Self>) {
        let now = self.clock.elapsed();
        let mut due = Vec::new();
        for (key, slot) in &self.state().slots {
            let kept = slot.kept.read().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(kept) = kept else { continue };
            let Some(held) = &kept.held else { continue };
            let lease = {
                let held = held.lock().unwrap_or_else(PoisonError::into_inner);
                (held.lease.renewable && held.renew_at <= now).then(|| held.lease.clone())
            };
            let place = self.places.get(&(key.kind, key.source.clone()));
            if let (Some(lease), Some(place)) = (lease, place)
                && place.resting(now).is_none()
            {
                due.push((key.clone(), slot.clone(), kept.clone(), place.clone(), lease));
            }
        }
        let mut running = JoinSet::new();
        for (key, slot, kept, place, lease) in due {
            if running.len() >= AT_ONCE {
                running.join_next().await;
            }
            let inner = self.clone();
            running.spawn(async move { inner.renew(&key, &slot, &kept, &place, &lease).await });
        }
        while running.join_next().await.is_some() {}
    }

    async fn renew(&self, key: &Key, slot: &Arc<Slot>, kept: &Arc<Kept>, place: &Arc<Place>, lease: &Lease) {
        // Counted from before the call: the source's count begins before its answer arrives.
        let asked = self.clock.elapsed();
        let renewed = place.source.renew(lease).await;
        let Some(held) = &kept.held else { return };
        match renewed {
            Ok(renewed) => {
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                held.lease.lasts = renewed.lasts;
                held.lease.renewable = renewed.renewable;
                held.hold(asked);
                // Near its maximum a source grants less and less; the rest is used, and then a new one is fetched.
                held.lease.renewable &= renewed.lasts > Duration::from_secs(2);
            }
            Err(error) if error.is_unavailable() => {
                place.note(&Err::<(), _>(error), self.clock.elapsed());
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                held.failures += 1;
                held.renew_at = asked + pause(held.failures);
            }
            Err(error) => {
                tracing::warn!(%error, of = lease.shown(), "a lease is lost; the next use fetches a new one");
                let mut current = slot.kept.write().unwrap_or_else(PoisonError::into_inner);
                if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, kept)) {
                    *current = None;
                }
                drop(current);
                tracing::debug!(path = key.path, "forgotten");
            }
        }
    }

    /// Puts a lease among those to revoke.
    pub(super) fn orphan(&self, state: &mut State, place: Arc<Place>, lease: Lease) {
        let now = self.clock.elapsed();
        if state.orphans.len() >= ORPHANS
            && let Some(first) =
                state.orphans.iter().enumerate().min_by_key(|(_, orphan)| orphan.ends).map(|(index, _)| index)
        {
            let left = state.orphans.swap_remove(first);
            tracing::warn!(of = left.lease.shown(), "too many leases wait to be revoked; this one ends by itself");
        }
        let ends = now.saturating_add(lease.lasts);
        state.orphans.push(Orphan { place, lease, ends, try_at: now, failures: 0 });
    }

    /// Revokes what is due to be; returns what could not be.
    pub(super) async fn revoke_orphans(self: &Arc<Self>) -> Vec<LeaseLeft> {
        let now = self.clock.elapsed();
        let due: Vec<Orphan> = {
            let mut state = self.state();
            state.orphans.retain(|orphan| now < orphan.ends);
            state.orphans.extract_if(.., |orphan| orphan.try_at <= now).collect()
        };
        let permits = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        // Tasks of their own, so that a caller that goes away loses no lease.
        let tasks: Vec<_> = due
            .into_iter()
            .map(|orphan| {
                let (inner, permits) = (self.clone(), permits.clone());
                self.fetches.spawn(async move {
                    let _permit = permits.acquire().await;
                    inner.revoke_one(orphan).await
                })
            })
            .collect();
        let mut left = Vec::new();
        for task in tasks {
            if let Ok(Some(lease)) = task.await {
                left.push(lease);
            }
        }
        left
    }

    async fn revoke_one(&self, mut orphan: Orphan) -> Option<LeaseLeft> {
        let revoked = orphan.place.source.revoke(&orphan.lease).await;
        let now = self.clock.elapsed();
        match revoked {
            Ok(()) | Err(FetchError::NotFound { .. }) => None,
            Err(error) => {
                tracing::warn!(%error, of = orphan.lease.shown(), "a lease could not be revoked; it is tried again");
                orphan.failures += 1;
                orphan.try_at = now + pause(orphan.failures);
                let ends_in = orphan.ends.saturating_sub(now);
                let left = LeaseLeft { of: orphan.lease.shown().to_owned(), error, ends_in };
                self.state().orphans.push(orphan);
                Some(left)
            }
        }
    }
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_PAUSE)
}
