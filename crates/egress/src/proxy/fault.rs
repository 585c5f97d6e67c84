//! What is told when something does not go out, or does not come back.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde::Serialize;

use super::body::Answer;
use super::dial::DialError;
use super::tls::TlsError;
use crate::broker::Misuse;
use crate::policy::{Reason, Refusal};
use crate::seam::TrailError;

/// The header that holds the reason's code, for clients that show no bodies.
pub(super) const REASON: HeaderName = HeaderName::from_static("x-palisade-reason");

/// Why a request or connection has no ordinary end.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(super) struct Fault {
    pub(super) status: StatusCode,
    /// Stable: for the trail, metrics and the agent.
    pub(super) code: &'static str,
    pub(super) rule: Option<String>,
    pub(super) message: String,
    pub(super) retry_after: Option<u64>,
    pub(super) alert: bool,
    /// Whether it was refused here, rather than gone wrong outside.
    pub(super) refused: bool,
}

/// What is answered in place of an upstream.
#[derive(Serialize)]
struct Document<'a> {
    error: Error<'a>,
}

#[derive(Serialize)]
struct Error<'a> {
    r#type: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    message: &'a str,
}

impl Fault {
    /// Refused for a reason that no rule is behind.
    pub(super) fn refused(reason: Reason, message: impl Into<String>) -> Fault {
        Fault::from(Refusal::new(reason, None, message))
    }

    /// Failed outside.
    pub(super) fn failed(status: StatusCode, code: &'static str, message: impl Into<String>) -> Fault {
        let message = message.into();
        Fault { status, code, rule: None, message, retry_after: None, alert: false, refused: false }
    }

    /// The answer to the request.
    pub(super) fn answer(&self) -> Response<Answer> {
        let document = Document {
            error: Error {
                r#type: if self.refused { "egress_refused" } else { "egress_failed" },
                reason: self.code,
                rule: self.rule.as_deref(),
                message: &self.message,
            },
        };
        // Text and options of text: it cannot fail, and an answer without its text is still one.
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = Response::new(Answer::whole(Bytes::from(body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(REASON, HeaderValue::from_static(self.code));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        Fault {
            status: StatusCode::from_u16(refusal.reason.status()).unwrap_or(StatusCode::FORBIDDEN),
            code: refusal.reason.code(),
            rule: refusal.rule.map(|rule| rule.to_string()),
            message: refusal.message,
            retry_after: refusal.retry_after.map(|after| after.as_secs().max(1)),
            alert: refusal.reason == Reason::CredentialMisused,
            refused: true,
        }
    }
}

impl From<Misuse> for Fault {
    fn from(misuse: Misuse) -> Fault {
        let status = match &misuse {
            Misuse::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Misuse::Revoked { .. } | Misuse::Unavailable { .. } | Misuse::Unusable { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Misuse::Unscannable { .. } => StatusCode::BAD_GATEWAY,
            _ => StatusCode::FORBIDDEN,
        };
        Fault {
            status,
            code: misuse.code(),
            rule: None,
            alert: misuse.alert(),
            message: misuse.to_string(),
            retry_after: None,
            refused: true,
        }
    }
}

impl From<TrailError> for Fault {
    fn from(error: TrailError) -> Fault {
        tracing::error!(%error, "nothing goes out: the audit trail does not answer");
        Fault::refused(
            Reason::AuditUnavailable,
            "the audit trail does not answer, so nothing goes out. Trying again helps once whoever runs this worker has mended it",
        )
    }
}

impl From<DialError> for Fault {
    fn from(error: DialError) -> Fault {
        let message = error.to_string();
        match error {
            DialError::Refused(refusal) => refusal.into(),
            DialError::Unresolved { .. } => Fault::failed(StatusCode::BAD_GATEWAY, Reason::Unresolved.code(), message),
            DialError::Unreachable { .. } => {
                Fault::failed(StatusCode::BAD_GATEWAY, Reason::UpstreamUnavailable.code(), message)
            }
            DialError::TimedOut { .. } => Fault::failed(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message),
        }
    }
}

impl From<TlsError> for Fault {
    fn from(error: TlsError) -> Fault {
        let status = match error {
            TlsError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        Fault::failed(status, error.code(), error.to_string())
    }
}
