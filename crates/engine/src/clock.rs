//! Time and identity, handed in so that every decision can be replayed.

use std::sync::Mutex;

use palisade_api::{EventId, Timestamp, WorkId};
use palisade_core::session::Ids;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// The time now, later than what was told before.
    fn now(&self) -> Timestamp;
}

/// The machine's clock, kept from going backwards, and from standing still: lists are ordered by it.
#[derive(Debug, Default)]
pub struct SystemClock {
    last: Mutex<i64>,
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = system_micros();
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *last = now.max(last.saturating_add(1));
        Timestamp::from_micros(*last)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is where the clock lives")]
fn system_micros() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// 128 bits from the operating system.
pub fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    // The kernel's generator cannot fail once it is seeded, and before that nothing of this program runs.
    getrandom::fill(&mut bytes).expect("the kernel's random number generator answers");
    bytes
}

/// Random ids.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomIds;

impl Ids for RandomIds {
    fn event(&mut self) -> EventId {
        EventId::from_bytes(&random_bytes())
    }

    fn work(&mut self) -> WorkId {
        WorkId::from_bytes(&random_bytes())
    }
}
