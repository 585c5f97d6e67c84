//! What a session has used of what its rules allow.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Policy, Reason, Refusal, RuleName};

const MINUTE: u128 = 60_000_000_000;

/// The use that one session has made of its policy's rates and bytes. Shared by all of its connections; time is handed in.
#[derive(Debug)]
pub struct Budgets {
    began: Instant,
    rules: HashMap<Arc<str>, Use>,
    /// Those of the whole session: one for each section that has one.
    sections: Vec<Use>,
}

/// What is used of one rule or section.
#[derive(Debug)]
struct Use {
    rate: Option<Rate>,
    bytes: Option<Arc<Bytes>>,
}

/// Counts bytes of one connection or request against all budgets that hold for it: cheap enough for every chunk.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    rule: Option<RuleName>,
    budgets: Vec<Arc<Bytes>>,
}

impl Budgets {
    /// Nothing used yet, for the rules of one session's policy.
    pub fn new(policy: &Policy, now: Instant) -> Budgets {
        let mut rules = HashMap::new();
        let mut sections = Vec::new();
        for layer in policy.layers() {
            if layer.max_session_bytes.is_some() || layer.requests_per_minute.is_some() {
                sections.push(Use::new(layer.requests_per_minute, layer.max_session_bytes));
            }
            for rule in &layer.rules {
                if rule.max_session_bytes.is_some() || rule.requests_per_minute.is_some() {
                    rules.insert(rule.name.clone(), Use::new(rule.requests_per_minute, rule.max_session_bytes));
                }
            }
        }
        Budgets { began: now, rules, sections }
    }

    /// Counts a request. Refused if its rule has no more of them for the moment; then nothing is counted.
    pub fn request(&self, rule: &RuleName, now: Instant) -> Result<(), Refusal> {
        let now = now.saturating_duration_since(self.began).as_nanos();
        let rates: Vec<&Rate> = self.holding(rule).filter_map(|used| used.rate.as_ref()).collect();
        for (position, rate) in rates.iter().enumerate() {
            if let Err(wait) = rate.take(now) {
                // What the others have counted is given back: the request does not go out.
                rates[..position].iter().for_each(|rate| rate.give_back());
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                let message = format!(
                    "refused by the egress policy: rule `{rule}` allows {} requests per minute, which are used up. Wait {seconds} s \
                     before the next one",
                    rate.per_minute
                );
                let mut refusal = Refusal::new(Reason::RateExceeded, Some(rule.clone()), message);
                refusal.retry_after = Some(wait);
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Counts bytes that are about to be passed on, either way. Refused if they are more than what is left; then the budget is
    /// used up, whatever comes later.
    pub fn bytes(&self, rule: &RuleName, bytes: u64) -> Result<(), Refusal> {
        self.meter(rule).bytes(bytes)
    }

    /// For one connection or request that goes on for a while.
    pub fn meter(&self, rule: &RuleName) -> Meter {
        Meter { rule: Some(rule.clone()), budgets: self.holding(rule).filter_map(|used| used.bytes.clone()).collect() }
    }

    fn holding<'a>(&'a self, rule: &'a RuleName) -> impl Iterator<Item = &'a Use> {
        rule.parts().filter_map(|name| self.rules.get(name)).chain(&self.sections)
    }
}

impl Meter {
    /// Counts bytes that are about to be passed on. See [`Budgets::bytes`].
    pub fn bytes(&self, bytes: u64) -> Result<(), Refusal> {
        for budget in &self.budgets {
            if !budget.take(bytes) {
                let rule = self.rule.as_ref().map(|rule| format!("rule `{rule}` allows ")).unwrap_or_default();
                let message = format!(
                    "refused by the egress policy: {rule}{} bytes for the whole session, which are used up. Trying again does not \
                     help; what would: a higher max_session_bytes",
                    budget.most
                );
                return Err(Refusal::new(Reason::BudgetExhausted, self.rule.clone(), message));
            }
        }
        Ok(())
    }
}

impl Use {
    fn new(rate: Option<u32>, bytes: Option<u64>) -> Use {
        Use { rate: rate.map(Rate::new), bytes: bytes.map(|most| Arc::new(Bytes { most, used: AtomicU64::new(0) })) }
    }
}

/// Bytes of which only so many may pass.
#[derive(Debug)]
struct Bytes {
    most: u64,
    used: AtomicU64,
}

impl Bytes {
    fn take(&self, bytes: u64) -> bool {
        // Beyond the most it stays there, so that what was refused once is not followed by something smaller.
        let add = |used: u64| Some(used.saturating_add(bytes).min(self.most.saturating_add(1)));
        let before = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).unwrap_or(u64::MAX);
        before.checked_add(bytes).is_some_and(|after| after <= self.most)
    }
}

/// A bucket that holds a minute's requests and is filled evenly. Kept as the time at which it is full again, in nanoseconds
/// since the session began, times the rate: whole numbers, so that nothing is lost by rounding.
#[derive(Debug)]
struct Rate {
    per_minute: u32,
    full_at: Mutex<u128>,
}

impl Rate {
    fn new(per_minute: u32) -> Rate {
        Rate { per_minute, full_at: Mutex::new(0) }
    }

    /// Takes one, or says how long there is none.
    fn take(&self, now: u128) -> Result<(), Duration> {
        let rate = u128::from(self.per_minute);
        if rate == 0 {
            return Err(Duration::from_secs(60));
        }
        let now = now * rate;
        let mut full_at = self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let after = (*full_at).max(now) + MINUTE;
        // A request takes a minute of scaled time; the bucket holds `rate` of them.
        let most = now + MINUTE * rate;
        if after > most {
            let nanoseconds = (after - most).div_ceil(rate);
            return Err(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)));
        }
        *full_at = after;
        Ok(())
    }

    fn give_back(&self) {
        let mut full_at = self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *full_at = full_at.saturating_sub(MINUTE);
    }
}
