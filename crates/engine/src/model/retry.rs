//! When to try again, and what a provider's refusal means.

use std::time::Duration;

use palisade_api::Timestamp;
use reqwest::header::HeaderMap;
use serde_json::Value;

use super::{ModelError, ModelErrorKind};

/// The longest wish that is taken seriously; beyond it a header is nonsense.
const YEAR: f64 = 365.0 * 24.0 * 3600.0;
/// How much of a provider's words is repeated, in characters.
const QUOTED: usize = 600;

/// How often and how fast a request is tried again before anything of its reply was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often in all; 1 means never again.
    pub tries: u32,
    /// The wait after the first failure; it doubles each time.
    pub base: Duration,
    /// The longest of these waits.
    pub cap: Duration,
    /// A provider that asks for a longer wait than this is left to the session's own rescheduling, which is durable.
    pub longest: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            tries: 4,
            base: Duration::from_millis(500),
            cap: Duration::from_secs(8),
            longest: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// How long to wait after `failed` failures, or none when it is over. `random` spreads clients by up to a quarter.
    pub(super) fn wait(&self, failed: u32, asked: Option<Duration>, random: u8) -> Option<Duration> {
        if failed >= self.tries {
            return None;
        }
        if let Some(asked) = asked {
            return (asked <= self.longest).then_some(asked);
        }
        let doubled = self.base.saturating_mul(2u32.saturating_pow(failed.saturating_sub(1)));
        Some(doubled.min(self.cap).mul_f64(1.0 - f64::from(random) / 256.0 / 4.0))
    }
}

/// The wait that a response asks for: `retry-after-ms`, or `retry-after` in seconds or as an HTTP date.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let positive = |seconds: f64| (seconds > 0.0 && seconds < YEAR).then(|| Duration::from_secs_f64(seconds));
    let millis =
        text("retry-after-ms").and_then(|value| value.parse::<f64>().ok()).and_then(|ms| positive(ms / 1000.0));
    millis.or_else(|| {
        let value = text("retry-after")?;
        if let Ok(seconds) = value.parse::<f64>() {
            return positive(seconds);
        }
        let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
        positive(Timestamp::from_micros(date.as_microsecond()).seconds_since(now))
    })
}

/// What a refusal means: an HTTP answer, or, without a status, an `error` event of the stream.
pub(super) fn refusal(status: Option<u16>, headers: &HeaderMap, body: &[u8], now: Timestamp) -> ModelError {
    let envelope: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let error = &envelope["error"];
    let kind_name = error["type"].as_str().unwrap_or_default();
    let said = match error["message"].as_str() {
        Some(message) => message.to_owned(),
        // A proxy's page, most likely; without an answer's status there is always an envelope.
        None => String::from_utf8_lossy(body).into_owned(),
    };
    let code = error["details"]["error_code"].as_str().unwrap_or_default();
    let kind = kind(status, kind_name, code, &said);
    let mut message = match status {
        Some(status) => format!("the model provider answered {status}"),
        None => "the model provider broke off its reply".to_owned(),
    };
    if !kind_name.is_empty() {
        message.push_str(&format!(" {}", quote(kind_name)));
    }
    if !said.trim().is_empty() {
        message.push_str(&format!(": {}", quote(&said)));
    }
    let id = headers.get("request-id").and_then(|id| id.to_str().ok()).or(envelope["request_id"].as_str());
    if let Some(id) = id {
        message.push_str(&format!(" (request {})", quote(id)));
    }
    if let Some(advice) = advice(kind, status) {
        message.push_str(". ");
        message.push_str(advice);
    }
    let mut failure = ModelError::new(kind, message);
    failure.retryable = match headers.get("x-should-retry").map(|value| value.as_bytes()) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => failure.retryable && status.is_none_or(|status| matches!(status, 408 | 409 | 429 | 500..)),
    };
    failure.retry_after = retry_after(headers, now);
    failure
}

/// Status and names from the Messages API's error table; a name says more than the status when both are known.
fn kind(status: Option<u16>, name: &str, code: &str, said: &str) -> ModelErrorKind {
    use ModelErrorKind::*;
    let said = said.to_ascii_lowercase();
    // The API has no name of its own for these three.
    let too_long = ["prompt is too long", "exceed context limit", "context window"];
    if code.ends_with("spend_limit_reached") || said.contains("credit balance is too low") {
        return Billing;
    }
    if name == "invalid_request_error" && too_long.iter().any(|words| said.contains(words)) {
        return ContextTooLong;
    }
    match name {
        "overloaded_error" => return Overloaded,
        "rate_limit_error" => return RateLimited,
        "billing_error" => return Billing,
        "authentication_error" | "permission_error" => return Authentication,
        "request_too_large" => return ContextTooLong,
        "invalid_request_error" | "not_found_error" => return InvalidRequest,
        _ => {}
    }
    match status {
        Some(529) => Overloaded,
        Some(429) => RateLimited,
        Some(402) => Billing,
        Some(401 | 403) => Authentication,
        Some(413) => ContextTooLong,
        Some(400 | 404 | 422) => InvalidRequest,
        _ => RequestFailed,
    }
}

fn advice(kind: ModelErrorKind, status: Option<u16>) -> Option<&'static str> {
    match (kind, status) {
        (ModelErrorKind::Authentication, Some(401)) => Some("Check the provider's key"),
        (ModelErrorKind::Billing, _) => Some("Check the provider account's credit and spend limit"),
        (ModelErrorKind::InvalidRequest, Some(404)) => Some("Check the model's id and the provider's base URL"),
        _ => None,
    }
}

/// Foreign words, on one line and not too many.
fn quote(text: &str) -> String {
    let mut quoted: String = text.trim().chars().take(QUOTED).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if quoted.len() < text.trim().len() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1994-11-06T08:49:30Z.
    fn now() -> Timestamp {
        Timestamp::from_micros(784_111_770_000_000)
    }

    #[test]
    fn waits_are_asked_for_in_three_ways() {
        let cases = [
            ("250", "9", Some(250)),
            ("soon", "1.5", Some(1500)),
            ("", "Sun, 06 Nov 1994 08:49:37 GMT", Some(7000)),
            ("", "Sun, 06 Nov 1994 08:49:07 GMT", None),
            ("", "-3", None),
            ("", "1e300", None),
            ("", "NaN", None),
            ("", "", None),
        ];
        for (millis, after, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after-ms", millis.parse().unwrap());
            headers.insert("retry-after", after.parse().unwrap());
            assert_eq!(retry_after(&headers, now()), expected.map(Duration::from_millis), "{millis:?} {after:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now()), None);
    }

    #[test]
    fn waits_double_up_to_the_cap_and_end() {
        let policy = RetryPolicy { tries: 8, ..RetryPolicy::default() };
        let waits: Vec<_> = (1..9).map(|failed| policy.wait(failed, None, 0)).collect();
        let millis = [500, 1000, 2000, 4000, 8000, 8000, 8000].map(|ms| Some(Duration::from_millis(ms)));
        assert_eq!(waits[..7], millis);
        assert_eq!(waits[7], None);
        let spread = policy.wait(1, None, 255).unwrap();
        assert!(spread > Duration::from_millis(375) && spread < Duration::from_millis(376));
        assert_eq!(policy.wait(1, Some(Duration::from_secs(3)), 255), Some(Duration::from_secs(3)));
        assert_eq!(policy.wait(1, Some(Duration::from_secs(61)), 0), None);
    }

    #[test]
    fn refusals_have_a_kind() {
        use ModelErrorKind::*;
        let body = |name: &str, message: &str| {
            serde_json::json!({"type": "error", "error": {"type": name, "message": message}}).to_string()
        };
        let cases = [
            (529, body("overloaded_error", "Overloaded"), Overloaded, true),
            (429, body("rate_limit_error", "slow down"), RateLimited, true),
            (402, body("billing_error", "pay"), Billing, false),
            (400, body("invalid_request_error", "Your credit balance is too low to access the API"), Billing, false),
            (429, r#"{"error":{"type":"rate_limit_error","message":"","details":{"error_code":"enforced_spend_limit_reached"}}}"#.into(), Billing, false),
            (400, body("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"), ContextTooLong, false),
            (413, body("request_too_large", "32 MB"), ContextTooLong, false),
            (400, body("invalid_request_error", "max_tokens: required"), InvalidRequest, false),
            (404, body("not_found_error", "model: x"), InvalidRequest, false),
            (401, body("authentication_error", "invalid x-api-key"), Authentication, false),
            (409, body("conflict_error", ""), RequestFailed, true),
            (418, String::new(), RequestFailed, false),
            (502, "<html>bad\ngateway</html>".into(), RequestFailed, true),
        ];
        for (status, body, kind, retryable) in cases {
            let error = refusal(Some(status), &HeaderMap::new(), body.as_bytes(), now());
            assert_eq!((error.kind, error.retryable), (kind, retryable), "{status} {body}");
            assert!(error.message.contains(&status.to_string()) && !error.message.contains('\n'), "{error}");
        }
        let headers = [("x-should-retry", "false"), ("request-id", "req_7")];
        let headers = headers.map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).into_iter().collect();
        let error = refusal(Some(500), &headers, b"", now());
        assert!(!error.retryable && error.message.ends_with("(request req_7)"), "{error}");
    }
}
