//! How often one credential may call.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use http::Method;

use crate::error::Fault;

/// Requests per minute and credential. A minute's worth may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Agents, environments and sessions made.
    pub create_per_minute: u32,
    /// Everything else. Generous, because each result of a tool is one request.
    pub read_per_minute: u32,
    /// No limits.
    pub off: bool,
}

impl Default for RateLimit {
    fn default() -> RateLimit {
        RateLimit { create_per_minute: 3_000, read_per_minute: 120_000, off: false }
    }
}

/// Accounts that are remembered before idle ones are forgotten.
const ACCOUNTS: usize = 10_000;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// Takes one token; else says how many seconds until there is one.
    fn take(&mut self, per_minute: u32, now: Instant) -> Result<(), u64> {
        let (most, per_second) = (f64::from(per_minute), f64::from(per_minute) / 60.0);
        self.tokens = (self.tokens + now.duration_since(self.at).as_secs_f64() * per_second).min(most);
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        if per_second <= 0.0 {
            return Err(60);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 60")]
        let wait = ((1.0 - self.tokens) / per_second).ceil().clamp(1.0, 60.0) as u64;
        Err(wait)
    }
}

/// Counts requests by credential.
#[derive(Debug)]
pub(crate) struct Limiter {
    limit: RateLimit,
    buckets: Mutex<HashMap<(String, bool), Bucket>>,
}

impl Limiter {
    pub(crate) fn new(limit: RateLimit) -> Limiter {
        Limiter { limit, buckets: Mutex::new(HashMap::new()) }
    }

    /// Counts a request.
    pub(crate) fn admit(&self, account: &str, method: &Method, path: &str) -> Result<(), Fault> {
        if self.limit.off {
            return Ok(());
        }
        let creates = method == Method::POST
            && matches!(path.trim_end_matches('/'), "/v1/agents" | "/v1/environments" | "/v1/sessions");
        let per_minute = if creates { self.limit.create_per_minute } else { self.limit.read_per_minute };
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= ACCOUNTS {
            // A bucket that nobody touched for a minute is full again.
            buckets.retain(|_, bucket| now.duration_since(bucket.at).as_secs() < 60);
        }
        let full = Bucket { tokens: f64::from(per_minute), at: now };
        let bucket = buckets.entry((account.to_owned(), creates)).or_insert(full);
        bucket.take(per_minute, now).map_err(|seconds| {
            let what = if creates { "objects made" } else { "requests" };
            let message = format!(
                "more than {per_minute} {what} per minute with one credential: wait {seconds} s, or raise the server's rate limit"
            );
            Fault::new(palisade_api::ErrorType::RateLimit, message).retry_after(seconds)
        })
    }
}
