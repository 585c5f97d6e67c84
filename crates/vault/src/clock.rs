//! Time, handed in.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

/// Where the time comes from.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time of day, for signatures and for expiry dates that others gave.
    fn now(&self) -> SystemTime;

    /// Time since some fixed moment; it never goes back. What is kept is aged by it, so that setting the machine's clock
    /// neither keeps a secret too long nor drops one too early.
    fn elapsed(&self) -> Duration;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock that counts from now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everybody else is handed")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// RFC 3339 in UTC, in whole seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time).and_then(|time| jiff::Timestamp::from_second(time.as_second())) {
        Ok(time) => time.to_string(),
        Err(_) => "a time out of range".to_owned(),
    }
}

/// Seconds since the Unix epoch; a time before it is the epoch.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
