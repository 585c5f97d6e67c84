//! Values when they are needed, kept for a moment, gone when they end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use palisade_api::Secret;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, rfc3339};
use crate::error::{FetchError, VaultError};
use crate::reference::{Kind, Reference};
use crate::source::{Document, Source};

mod keeping;

pub use keeping::LeaseLeft;
use keeping::{Held, Orphan};

/// The first pause after a source failed; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a refusal of one secret is remembered, so that a busy agent does not hammer its source.
const REFUSAL: Duration = Duration::from_secs(5);

/// What is kept, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest that any value is used without asking its source again.
    pub keep: Duration,
    /// The most documents that are kept.
    pub entries: usize,
    /// The most leases of one session.
    pub leases_per_session: usize,
    /// The longest that a fetch may take, all steps together.
    pub fetch: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { keep: Duration::from_secs(300), entries: 1024, leases_per_session: 64, fetch: Duration::from_secs(35) }
    }
}

/// Configured sources, by kind and name.
pub type Sources = BTreeMap<(Kind, String), Arc<dyn Source>>;

/// Gives out values and takes them back. Clones are the same vault.
#[derive(Debug, Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    places: BTreeMap<(Kind, String), Arc<Place>>,
    limits: Limits,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Fetches go on when whoever asked has gone: a lease must not be given and then forgotten.
    fetches: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    slots: HashMap<Key, Arc<Slot>>,
    sessions: HashMap<String, u64>,
    live: HashSet<u64>,
    next_session: u64,
    revoked: HashSet<Reference>,
    orphans: Vec<Orphan>,
}

/// A source and how it fares.
#[derive(Debug)]
struct Place {
    source: Arc<dyn Source>,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    /// Not asked before this.
    until: Duration,
    last: Option<FetchError>,
}

/// One document, for all sessions or for one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: Kind,
    source: String,
    path: String,
    session: Option<u64>,
}

#[derive(Debug)]
struct Slot {
    kept: RwLock<Option<Arc<Kept>>>,
    refused: Mutex<Option<(Duration, FetchError)>>,
    /// Held by the one fetch; whoever waits for it finds its result in `kept`.
    fetching: Arc<tokio::sync::Mutex<()>>,
    /// Milliseconds of the clock.
    used: AtomicU64,
}

#[derive(Debug)]
struct Kept {
    document: Document,
    fetched: Duration,
    until: Duration,
    held: Option<Mutex<Held>>,
}

/// What a session gets its values through.
#[derive(Debug, Clone)]
pub struct Session {
    vault: Vault,
    number: u64,
}

/// What trying a reference showed; the value is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// How long a lease on it lasts. The lease that the trial was given is already revoked.
    pub lease: Option<Duration>,
    /// When the value ends, if its source says so.
    pub expires: Option<SystemTime>,
}

/// A configured source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceState {
    /// Its kind.
    pub kind: Kind,
    /// Its name; empty where there is one of the kind.
    pub name: String,
    /// What it is and where.
    pub description: String,
    /// Why it is not asked now, and for how long.
    pub down: Option<(FetchError, Duration)>,
}

impl Vault {
    /// A vault over these sources.
    pub fn new(sources: Sources, limits: Limits, clock: Arc<dyn Clock>) -> Self {
        let places = sources
            .into_iter()
            .map(|(name, source)| (name, Arc::new(Place { source, health: Mutex::default() })))
            .collect();
        let inner = Inner { places, limits, clock, state: Mutex::default(), fetches: TaskTracker::new() };
        Self { inner: Arc::new(inner) }
    }

    /// What a session gets its values through; the same for the same name until [`Vault::end_session`].
    pub fn session(&self, name: &str) -> Session {
        let mut state = self.inner.state();
        let number = match state.sessions.get(name) {
            Some(number) => *number,
            None => {
                state.next_session += 1;
                let number = state.next_session;
                state.sessions.insert(name.to_owned(), number);
                state.live.insert(number);
                number
            }
        };
        Session { vault: self.clone(), number }
    }

    /// Ends a session: it gets no more values, and its leases are revoked. What could not be revoked now is returned, and
    /// tried again by [`Vault::run`] until it would have ended by itself.
    pub async fn end_session(&self, name: &str) -> Vec<LeaseLeft> {
        {
            let mut state = self.inner.state();
            let Some(number) = state.sessions.remove(name) else { return Vec::new() };
            state.live.remove(&number);
            let gone: Vec<Key> = state.slots.keys().filter(|key| key.session == Some(number)).cloned().collect();
            for key in gone {
                self.inner.let_go(&mut state, &key);
            }
        }
        self.inner.revoke_orphans().await
    }

    /// Takes a secret from everybody, from the next use on, and revokes its leases. A reference without a field takes all
    /// fields. Returns the leases that could not be revoked now.
    pub async fn revoke(&self, reference: &Reference) -> Vec<LeaseLeft> {
        {
            let mut state = self.inner.state();
            state.revoked.insert(reference.clone());
            self.inner.drop_document(&mut state, reference);
        }
        tracing::info!(%reference, "revoked");
        self.inner.revoke_orphans().await
    }

    /// As [`Vault::revoke`], before anything was fetched: what an earlier process was told.
    pub fn begin_without(&self, reference: Reference) {
        tracing::info!(%reference, "revoked, as before");
        self.inner.state().revoked.insert(reference);
    }

    /// Undoes [`Vault::revoke`]; says whether there was something to undo.
    pub fn allow(&self, reference: &Reference) -> bool {
        self.inner.state().revoked.remove(reference)
    }

    /// What is revoked here.
    pub fn revoked(&self) -> Vec<Reference> {
        let mut all: Vec<Reference> = self.inner.state().revoked.iter().cloned().collect();
        all.sort();
        all
    }

    /// The sources and how they fare.
    pub fn sources(&self) -> Vec<SourceState> {
        let now = self.inner.clock.elapsed();
        let show = |((kind, name), place): (&(Kind, String), &Arc<Place>)| SourceState {
            kind: *kind,
            name: name.clone(),
            description: place.source.description(),
            down: place.resting(now),
        };
        self.inner.places.iter().map(show).collect()
    }

    /// Whether a reference names a configured source; for refusing a configuration before anything runs.
    pub fn check(&self, reference: &Reference) -> Result<(), VaultError> {
        self.inner.place(reference).map(|_| ())
    }

    /// Fetches anew what a reference names and shows nothing of it. A lease that comes with it is revoked at once.
    pub async fn probe(&self, reference: &Reference) -> Result<Probe, VaultError> {
        let place = self.inner.place(reference)?;
        let (inner, path) = (self.inner.clone(), reference.path().to_owned());
        let fetched = {
            let place = place.clone();
            let task = async move {
                let fetched = inner.fetch(&place, &path).await;
                if let Ok(document) = &fetched
                    && let Some(lease) = &document.lease
                {
                    inner.orphan(&mut inner.state(), place, lease.clone());
                    inner.revoke_orphans().await;
                }
                fetched
            };
            self.inner.fetches.spawn(task).await
        };
        let document = fetched.map_err(|_| VaultError::Closed)?.map_err(|error| VaultError::Source {
            reference: reference.to_string(),
            error,
            retry_in: None,
        })?;
        pick(&document, reference)?;
        Ok(Probe { lease: document.lease.map(|lease| lease.lasts), expires: document.expires })
    }

    /// Revokes all leases and gives back what the sources hold. Nothing is given out afterwards.
    pub async fn close(&self) -> Vec<LeaseLeft> {
        {
            let mut state = self.inner.state();
            state.closed = true;
            state.sessions.clear();
            state.live.clear();
            let all: Vec<Key> = state.slots.keys().cloned().collect();
            for key in all {
                self.inner.let_go(&mut state, &key);
            }
        }
        self.inner.fetches.close();
        self.inner.fetches.wait().await;
        let left = self.inner.revoke_orphans().await;
        for place in self.inner.places.values() {
            if let Err(error) = place.source.close().await {
                tracing::warn!(%error, "a source could not be left in order");
            }
        }
        left
    }
}

impl Session {
    /// The value now.
    pub async fn value(&self, reference: &Reference) -> Result<Arc<Secret>, VaultError> {
        let inner = &self.vault.inner;
        let (key, slot, place) = self.slot(reference)?;
        let now = inner.clock.elapsed();
        slot.used.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(kept) = slot.fresh(&place, &key.path, now) {
            return pick(&kept.document, reference);
        }
        let only = slot.fetching.clone().lock_owned().await;
        let now = inner.clock.elapsed();
        if let Some(kept) = slot.fresh(&place, &key.path, now) {
            inner.allowed(self.number, reference)?;
            return pick(&kept.document, reference);
        }
        let failed = |error: FetchError, retry_in: Option<Duration>| VaultError::Source {
            reference: reference.to_string(),
            error,
            retry_in,
        };
        if let Some((error, wait)) = place.resting(now) {
            return Err(failed(error, Some(wait)));
        }
        if let Some(error) = slot.refused(now) {
            return Err(failed(error, None));
        }
        // The task owns the lock: if whoever asked goes away, the fetch still ends in the slot.
        let task = {
            let (inner, slot, place) = (inner.clone(), slot.clone(), place.clone());
            async move {
                let kept = inner.fill(&key, &slot, place).await;
                drop(only);
                kept
            }
        };
        let kept = inner.fetches.spawn(task).await.map_err(|_| VaultError::Closed)?;
        inner.allowed(self.number, reference)?;
        let kept = kept.map_err(|error| {
            let wait = place.resting(inner.clock.elapsed()).map(|(_, wait)| wait);
            failed(error, wait)
        })?;
        pick(&kept.document, reference)
    }

    /// Says that a value was refused where it was used, so that the next use asks the source again: it may have been rotated,
    /// or its lease revoked at the source. Does nothing for values that are younger than a few seconds.
    pub fn rejected(&self, reference: &Reference) {
        let inner = &self.vault.inner;
        let Ok((_, slot, place)) = self.slot(reference) else { return };
        let now = inner.clock.elapsed();
        let mut state = inner.state();
        let mut kept = slot.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_some_and(|kept| kept.fetched + REFUSAL <= now)
            && let Some(held) = kept.take().and_then(|kept| kept.document.lease.clone())
        {
            inner.orphan(&mut state, place, held);
        }
    }

    fn slot(&self, reference: &Reference) -> Result<(Key, Arc<Slot>, Arc<Place>), VaultError> {
        let inner = &self.vault.inner;
        inner.allowed(self.number, reference)?;
        let place = inner.place(reference)?;
        let own = place.source.per_session(reference.path());
        let key = Key {
            kind: reference.kind(),
            source: reference.source().to_owned(),
            path: reference.path().to_owned(),
            session: own.then_some(self.number),
        };
        let mut state = inner.state();
        if let Some(slot) = state.slots.get(&key) {
            return Ok((key, slot.clone(), place));
        }
        if own {
            let limit = inner.limits.leases_per_session;
            if state.slots.keys().filter(|key| key.session == Some(self.number)).count() >= limit {
                return Err(VaultError::TooManyLeases { reference: reference.to_string(), limit });
            }
        } else {
            inner.make_room(&mut state);
        }
        let slot = Arc::new(Slot {
            kept: RwLock::new(None),
            refused: Mutex::new(None),
            fetching: Arc::default(),
            used: AtomicU64::new(0),
        });
        state.slots.insert(key.clone(), slot.clone());
        Ok((key, slot, place))
    }
}

impl Slot {
    fn fresh(&self, place: &Place, path: &str, now: Duration) -> Option<Arc<Kept>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let holds = match &kept.held {
            Some(held) => now < held.lock().unwrap_or_else(PoisonError::into_inner).usable_until(),
            None => true,
        };
        (holds && now < kept.until && place.source.unchanged(path, &kept.document.stamp)).then_some(kept)
    }

    fn refused(&self, now: Duration) -> Option<FetchError> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.as_ref().filter(|(until, _)| now < *until).map(|(_, error)| error.clone())
    }
}

impl Place {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the source is left alone now, and how long still.
    fn resting(&self, now: Duration) -> Option<(FetchError, Duration)> {
        let health = self.health();
        let last = health.last.as_ref().filter(|_| now < health.until)?;
        Some((last.clone(), health.until - now))
    }

    fn note<T>(&self, result: &Result<T, FetchError>, now: Duration) {
        let mut health = self.health();
        match result {
            // Several that were under way together have failed once, not several times.
            Err(error) if error.is_unavailable() && now < health.until => health.last = Some(error.clone()),
            Err(error) if error.is_unavailable() => {
                let pause = FIRST_PAUSE.saturating_mul(1 << health.failures.min(10)).min(LONGEST_PAUSE);
                health.failures += 1;
                health.until = now + pause;
                health.last = Some(error.clone());
                tracing::warn!(%error, pause_s = pause.as_secs(), "a source of secrets is left alone");
            }
            _ => *health = Health::default(),
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, reference: &Reference) -> Result<Arc<Place>, VaultError> {
        let name = (reference.kind(), reference.source().to_owned());
        self.places.get(&name).cloned().ok_or_else(|| VaultError::NoSource {
            reference: reference.to_string(),
            kind: reference.kind().word(),
            source_name: reference.source().to_owned(),
        })
    }

    /// Whether this session may have this secret. Asked before and after a fetch, which takes time.
    fn allowed(&self, session: u64, reference: &Reference) -> Result<(), VaultError> {
        let state = self.state();
        if state.closed {
            return Err(VaultError::Closed);
        }
        if !state.live.contains(&session) {
            return Err(VaultError::SessionEnded);
        }
        if state.revoked.iter().any(|revoked| revoked.covers(reference)) {
            return Err(VaultError::Revoked { reference: reference.to_string() });
        }
        Ok(())
    }

    async fn fetch(&self, place: &Place, path: &str) -> Result<Document, FetchError> {
        let fetched = match tokio::time::timeout(self.limits.fetch, place.source.fetch(path)).await {
            Ok(fetched) => fetched,
            Err(_) => {
                let why = format!("no answer within {} s", self.limits.fetch.as_secs());
                Err(FetchError::unavailable(&place.source.description(), why))
            }
        };
        place.note(&fetched, self.clock.elapsed());
        let document = fetched?;
        if let Some(expires) = document.expires
            && expires <= self.clock.now()
        {
            let why = format!("it ended at {}; put a new one in its place", rfc3339(expires));
            return Err(FetchError::denied(&place.source.description(), why));
        }
        Ok(document)
    }

    /// Fetches into a slot. What nobody may use any more by then goes straight back.
    async fn fill(self: &Arc<Self>, key: &Key, slot: &Arc<Slot>, place: Arc<Place>) -> Result<Arc<Kept>, FetchError> {
        let fetched = self.fetch(&place, &key.path).await;
        let now = self.clock.elapsed();
        let document = match fetched {
            Ok(document) => document,
            Err(error) => {
                let mut refused = slot.refused.lock().unwrap_or_else(PoisonError::into_inner);
                *refused = (!error.is_unavailable()).then(|| (now + REFUSAL, error.clone()));
                // What is no longer valid does not stay in memory until the source is well again.
                self.replace(key, slot, None, &place);
                return Err(error);
            }
        };
        let lease = document.lease.clone();
        let kept = Arc::new(Kept::new(document, self.limits.keep.min(place.source.keep()), now, self.clock.now()));
        if !self.replace(key, slot, Some(kept.clone()), &place)
            && let Some(lease) = lease
        {
            self.orphan(&mut self.state(), place, lease);
            self.revoke_orphans().await;
        }
        Ok(kept)
    }

    /// Puts a document into its slot, and the lease of the one before it among those to revoke. Says whether the slot is
    /// still in use.
    fn replace(&self, key: &Key, slot: &Arc<Slot>, kept: Option<Arc<Kept>>, place: &Arc<Place>) -> bool {
        let mut state = self.state();
        let current = !state.closed && state.slots.get(key).is_some_and(|current| Arc::ptr_eq(current, slot));
        if current {
            let before = std::mem::replace(&mut *slot.kept.write().unwrap_or_else(PoisonError::into_inner), kept);
            if let Some(lease) = before.and_then(|before| before.document.lease.clone()) {
                self.orphan(&mut state, place.clone(), lease);
            }
        }
        current
    }

    /// Takes a slot away; its lease is among those to revoke.
    fn let_go(&self, state: &mut State, key: &Key) {
        let Some(slot) = state.slots.remove(key) else { return };
        let kept = slot.kept.write().unwrap_or_else(PoisonError::into_inner).take();
        let place = self.places.get(&(key.kind, key.source.clone()));
        if let (Some(lease), Some(place)) = (kept.and_then(|kept| kept.document.lease.clone()), place) {
            self.orphan(state, place.clone(), lease);
        }
    }

    fn drop_document(&self, state: &mut State, reference: &Reference) {
        let same = |key: &&Key| {
            key.kind == reference.kind() && key.source == reference.source() && key.path == reference.path()
        };
        let gone: Vec<Key> = state.slots.keys().filter(same).cloned().collect();
        for key in gone {
            self.let_go(state, &key);
        }
    }

    /// Lets go of what was used longest ago, if there is no room for one more.
    fn make_room(&self, state: &mut State) {
        while state.slots.len() >= self.limits.entries.max(1) {
            // A slot that somebody holds is being fetched, and a leased one is limited by its session.
            let idle = |(key, slot): &(&Key, &Arc<Slot>)| key.session.is_none() && Arc::strong_count(slot) == 1;
            let oldest = state.slots.iter().filter(idle).min_by_key(|(_, slot)| slot.used.load(Ordering::Relaxed));
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            self.let_go(state, &key);
        }
    }
}

fn pick(document: &Document, reference: &Reference) -> Result<Arc<Secret>, VaultError> {
    let value = document
        .content
        .pick(reference.field())
        .map_err(|why| VaultError::Field { reference: reference.to_string(), why })?;
    if value.is_blank() {
        return Err(VaultError::Field { reference: reference.to_string(), why: "is empty at its source".to_owned() });
    }
    Ok(value)
}
