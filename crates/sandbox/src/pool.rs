//! Sandboxes that wait for their sessions: how many of which kind. All decisions, no effects; the time is handed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many sandboxes may wait for sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOptions {
    /// The most that wait or are being made to wait, of all kinds together. Zero for no pool.
    pub most: usize,
    /// How many wait of each kind that is in use, even when little is asked for.
    pub least: usize,
    /// What all that wait may take of the machine's memory, in bytes.
    pub memory_bytes: u64,
    /// None wait of a kind that was not asked for in this time. The demand that is prepared for halves in it, too.
    pub idle: Duration,
}

impl Default for PoolOptions {
    /// No pool.
    fn default() -> PoolOptions {
        PoolOptions { most: 0, least: 0, memory_bytes: 0, idle: Duration::from_secs(300) }
    }
}

impl PoolOptions {
    /// A pool of at most so many, of which at least one of each kind waits.
    pub fn of(most: usize) -> PoolOptions {
        PoolOptions { most, least: most.min(1), memory_bytes: most as u64 * COST, ..PoolOptions::default() }
    }

    /// What the pool may hold, by number and by memory.
    fn bound(&self) -> usize {
        self.most.min(usize::try_from(self.memory_bytes / COST).unwrap_or(usize::MAX))
    }
}

/// Memory that one takes while it waits, the kernel's share included, in bytes.
const COST: u64 = 2 << 20;
/// Demand is the number of sandboxes asked for within this time: what comes faster than new ones are made.
const BURST: Duration = Duration::from_secs(1);
/// After a failure the next one is made no sooner than this; it doubles with each further failure …
const PAUSE: Duration = Duration::from_secs(1);
/// … up to so many times.
const DOUBLINGS: u32 = 6;

/// What waits, by kind. `K` says what is the same, `T` is what waits.
#[derive(Debug)]
pub(crate) struct Pool<K, T> {
    options: PoolOptions,
    kinds: Vec<Kind<K, T>>,
    /// Whether no more are to be made.
    closed: bool,
}

#[derive(Debug)]
struct Kind<K, T> {
    key: K,
    waiting: VecDeque<T>,
    under_way: usize,
    /// When it was asked for, within the last [`BURST`].
    asked: VecDeque<Instant>,
    last: Instant,
    /// The most that was asked for within a [`BURST`], less what time has taken from it.
    peak: f64,
    faded: Instant,
    failures: u32,
    not_before: Option<Instant>,
}

impl<K, T> Kind<K, T> {
    fn held(&self) -> usize {
        self.waiting.len() + self.under_way
    }
}

impl<K: Clone + PartialEq, T> Pool<K, T> {
    /// Nothing yet.
    pub(crate) fn new(options: PoolOptions) -> Pool<K, T> {
        Pool { options, kinds: Vec::new(), closed: false }
    }

    /// Takes one of a kind, which is thereby asked for. The one that has waited longest goes first.
    pub(crate) fn take(&mut self, key: &K, now: Instant) -> Option<T> {
        if self.options.bound() == 0 || self.closed {
            return None;
        }
        let idle = self.options.idle;
        let index = self.kinds.iter().position(|kind| kind.key == *key).unwrap_or_else(|| {
            self.kinds.push(Kind {
                key: key.clone(),
                waiting: VecDeque::new(),
                under_way: 0,
                asked: VecDeque::new(),
                last: now,
                peak: 0.0,
                faded: now,
                failures: 0,
                not_before: None,
            });
            self.kinds.len() - 1
        });
        let kind = &mut self.kinds[index];
        kind.fade(idle, now);
        kind.last = now;
        kind.asked.push_back(now);
        while kind.asked.front().is_some_and(|then| now.saturating_duration_since(*then) > BURST) {
            kind.asked.pop_front();
        }
        // No more than that can ever be prepared for.
        kind.asked.truncate(self.options.most);
        kind.peak = kind.peak.max(kind.asked.len() as f64);
        kind.waiting.pop_front()
    }

    /// Takes another of the same kind, after one that was of no use: it is not asked for twice.
    pub(crate) fn another(&mut self, key: &K) -> Option<T> {
        self.kinds.iter_mut().find(|kind| kind.key == *key)?.waiting.pop_front()
    }

    /// The kind of which one more is to be made now, and is from here on under way; [`Pool::made`] or [`Pool::failed`] must
    /// follow.
    pub(crate) fn wanted(&mut self, now: Instant) -> Option<K> {
        if self.closed {
            return None;
        }
        let options = self.options.clone();
        let held: usize = self.kinds.iter().map(Kind::held).sum();
        if held >= options.bound() {
            return None;
        }
        for kind in &mut self.kinds {
            kind.fade(options.idle, now);
        }
        // The kind that is furthest from its target first.
        let lacking = self.kinds.iter_mut().filter(|kind| kind.not_before.is_none_or(|then| now >= then));
        let (lack, kind) = lacking
            .map(|kind| (kind.target(&options, now).saturating_sub(kind.held()), kind))
            .max_by_key(|(lack, _)| *lack)?;
        if lack == 0 {
            return None;
        }
        kind.under_way += 1;
        Some(kind.key.clone())
    }

    /// One was made. It is handed back if nobody wants it any more.
    pub(crate) fn made(&mut self, key: &K, made: T, now: Instant) -> Option<T> {
        let (options, closed) = (self.options.clone(), self.closed);
        let Some(kind) = self.kinds.iter_mut().find(|kind| kind.key == *key) else { return Some(made) };
        kind.under_way = kind.under_way.saturating_sub(1);
        kind.failures = 0;
        kind.not_before = None;
        if closed || kind.target(&options, now) <= kind.waiting.len() {
            return Some(made);
        }
        kind.waiting.push_back(made);
        None
    }

    /// One could not be made.
    pub(crate) fn failed(&mut self, key: &K, now: Instant) {
        if let Some(kind) = self.kinds.iter_mut().find(|kind| kind.key == *key) {
            kind.under_way = kind.under_way.saturating_sub(1);
            kind.not_before = Some(now + PAUSE * 2u32.pow(kind.failures.min(DOUBLINGS)));
            kind.failures += 1;
        }
    }

    /// Takes out what waits in vain, and forgets kinds that nobody asks for.
    pub(crate) fn surplus(&mut self, now: Instant) -> Vec<T> {
        let options = self.options.clone();
        let mut surplus = Vec::new();
        for kind in &mut self.kinds {
            kind.fade(options.idle, now);
            let target = if self.closed { 0 } else { kind.target(&options, now) };
            while kind.held() > target {
                let Some(one) = kind.waiting.pop_front() else { break };
                surplus.push(one);
            }
        }
        self.kinds.retain(|kind| kind.held() > 0 || now.saturating_duration_since(kind.last) < options.idle);
        surplus
    }

    /// Nothing is made or handed out any more; returns what waits.
    pub(crate) fn close(&mut self) -> Vec<T> {
        self.closed = true;
        self.kinds.iter_mut().flat_map(|kind| kind.waiting.drain(..)).collect()
    }

    /// Whether it was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.kinds.iter().map(|kind| kind.waiting.len()).sum()
    }

    /// Takes out those that wait and do not pass.
    pub(crate) fn reject(&mut self, passes: impl Fn(&K, &T) -> bool) -> Vec<T> {
        let mut rejected = Vec::new();
        for kind in &mut self.kinds {
            for one in std::mem::take(&mut kind.waiting) {
                if passes(&kind.key, &one) { kind.waiting.push_back(one) } else { rejected.push(one) }
            }
        }
        rejected
    }
}

impl<K, T> Kind<K, T> {
    /// What was asked for once matters less and less.
    fn fade(&mut self, idle: Duration, now: Instant) {
        let passed = now.saturating_duration_since(self.faded).as_secs_f64();
        self.peak *= 0.5f64.powf(passed / idle.as_secs_f64().max(0.001));
        self.faded = now;
    }

    fn target(&self, options: &PoolOptions, now: Instant) -> usize {
        if now.saturating_duration_since(self.last) >= options.idle {
            return 0;
        }
        // Rounded down: a single request does not make a second one wait.
        let demand = self.peak as usize;
        demand.max(options.least).min(options.bound())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 8;

    fn pool() -> (Pool<&'static str, u32>, Instant) {
        let options = PoolOptions { least: 2, ..PoolOptions::of(MOST) };
        (Pool::new(options), Instant::now())
    }

    /// Makes all that is wanted.
    fn fill(pool: &mut Pool<&'static str, u32>, now: Instant) -> usize {
        let mut made = 0;
        while let Some(key) = pool.wanted(now) {
            assert_eq!(pool.made(&key, 0, now), None);
            made += 1;
        }
        made
    }

    #[test]
    fn nothing_waits_before_it_was_asked_for_or_without_a_pool() {
        let (mut pool, now) = pool();
        assert_eq!(pool.wanted(now), None);
        assert_eq!(pool.take(&"a", now), None);
        assert_eq!(fill(&mut pool, now), 2);
        let mut none: Pool<&str, u32> = Pool::new(PoolOptions::default());
        assert_eq!(none.take(&"a", now), None);
        assert_eq!(none.wanted(now), None);
    }

    #[test]
    fn those_under_way_count() {
        let (mut pool, now) = pool();
        pool.take(&"a", now);
        assert_eq!((pool.wanted(now), pool.wanted(now)), (Some("a"), Some("a")));
        // However often it is looked at before they are there.
        for later in 0..100 {
            assert_eq!(pool.wanted(now + Duration::from_millis(later)), None);
        }
        assert_eq!(pool.made(&"a", 1, now), None);
        assert_eq!(pool.wanted(now), None);
        assert_eq!((pool.take(&"a", now), pool.take(&"a", now)), (Some(1), None));
    }

    #[test]
    fn a_burst_is_prepared_for_and_forgotten() {
        let (mut pool, now) = pool();
        for _ in 0..5 {
            pool.take(&"a", now);
        }
        assert_eq!(fill(&mut pool, now), 5);
        let later = now + PoolOptions::default().idle * 9 / 10;
        let surplus = pool.surplus(later);
        assert_eq!((surplus.len(), pool.waiting()), (3, 2));
        let much_later = later + PoolOptions::default().idle;
        assert_eq!(pool.surplus(much_later).len(), 2);
        assert!(pool.kinds.is_empty());
    }

    #[test]
    fn there_are_never_more_than_the_most() {
        let (mut pool, now) = pool();
        for key in ["a", "b", "c"] {
            for _ in 0..1000 {
                pool.take(&key, now);
            }
        }
        assert_eq!(fill(&mut pool, now), MOST);
        let options = PoolOptions { memory_bytes: 3 * COST, ..PoolOptions::of(MOST) };
        let mut small = Pool::new(options);
        for _ in 0..100 {
            small.take(&"a", now);
        }
        assert_eq!(fill(&mut small, now), 3);
    }

    #[test]
    fn failures_are_not_repeated_at_once() {
        let (mut pool, now) = pool();
        pool.take(&"a", now);
        let mut at = now;
        let mut tries = 0;
        for second in 0..60 {
            at = now + Duration::from_secs(second);
            while let Some(key) = pool.wanted(at) {
                pool.failed(&key, at);
                tries += 1;
            }
        }
        assert_eq!(tries, 6);
        // Another kind is not held up by it.
        pool.take(&"b", at);
        assert_eq!(pool.wanted(at), Some("b"));
    }

    #[test]
    fn a_closed_pool_takes_nothing_in() {
        let (mut pool, now) = pool();
        pool.take(&"a", now);
        assert_eq!(pool.wanted(now), Some("a"));
        assert_eq!(pool.wanted(now), Some("a"));
        assert_eq!(pool.made(&"a", 1, now), None);
        assert_eq!(pool.close(), vec![1]);
        assert_eq!(pool.made(&"a", 2, now), Some(2));
        assert_eq!((pool.take(&"a", now), pool.wanted(now)), (None, None));
    }
}
