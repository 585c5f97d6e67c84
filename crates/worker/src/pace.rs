//! How fast things are tried again. The defaults are the protocol's; tests shorten them.

use std::time::Duration;

/// Pauses and limits of the worker's loops. All are real time.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Pause after an empty poll that the server answered at once: uniform between the two.
    pub empty_poll: (Duration, Duration),
    /// Back-off after a failed poll: first and largest.
    pub failed_poll: (Duration, Duration),
    /// Back-off before the event stream is opened again: first and largest.
    pub reconnect: (Duration, Duration),
    /// Back-off before a call that must succeed (result, events list) is tried again: first and largest.
    pub retry: (Duration, Duration),
    /// How long one result is tried before it is put aside until the next reconnection.
    pub send_for: Duration,
    /// A stream without a single byte for this long is opened again.
    pub silent_stream: Duration,
    /// The shortest and longest pause between two heartbeats; in between it is half the lease's time to live.
    pub heartbeat: (Duration, Duration),
    /// The lease's time to live before the first answer told it.
    pub assumed_ttl: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            empty_poll: (seconds(1), seconds(3)),
            failed_poll: (seconds(1), seconds(60)),
            reconnect: (Duration::from_millis(500), seconds(10)),
            retry: (seconds(1), seconds(30)),
            send_for: seconds(300),
            silent_stream: seconds(300),
            heartbeat: (seconds(1), seconds(30)),
            assumed_ttl: seconds(90),
        }
    }
}

/// Doubling delays with jitter on the upper half, so that workers that failed together do not return together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    largest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new((first, largest): (Duration, Duration)) -> Self {
        Self { first, largest, next: first }
    }

    /// The delay to wait now; `unit` is a random number in `0.0..1.0`.
    pub(crate) fn delay(&mut self, unit: f64) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.largest);
        delay.mul_f64(0.5 + unit / 2.0)
    }

    /// As [`Backoff::delay`], but never shorter than what the server asked for (bounded by the largest delay).
    pub(crate) fn delay_after(&mut self, unit: f64, asked: Option<Duration>) -> Duration {
        self.delay(unit).max(asked.unwrap_or_default().min(self.largest.max(Duration::from_secs(60))))
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A random number in `0.0..1.0`. Only jitter depends on it, so a failing source gives the middle.
pub(crate) fn unit() -> f64 {
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / (f64::from(u32::MAX) + 1.0))
}

/// A uniformly random duration between the two.
pub(crate) fn between((least, most): (Duration, Duration), unit: f64) -> Duration {
    least + most.saturating_sub(least).mul_f64(unit)
}

/// The present time. The only place that reads the machine's clock.
#[expect(clippy::disallowed_methods, reason = "this is where the machine's clock is read")]
pub(crate) fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// The wall clock, in Unix seconds.
pub(crate) fn unix_now() -> u64 {
    now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}
