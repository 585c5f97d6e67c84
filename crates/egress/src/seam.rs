//! What the egress service asks of others: values of credentials, and a trail that keeps what happened.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use palisade_api::Secret;
use serde::Serialize;

/// Supplies the value of one credential for one session, as fresh as its source promises.
#[async_trait]
pub trait Supply: fmt::Debug + Send + Sync {
    /// The value now. Asked on each use; whoever implements it keeps what may be kept.
    async fn value(&self) -> Result<Arc<Secret>, SupplyError>;
}

/// Why there is no value.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SupplyError {
    /// It was revoked, or its session has ended. Trying again does not help.
    #[error("the credential was revoked")]
    Revoked,
    /// Its source does not answer.
    #[error("the credential's source does not answer: {0}")]
    Unavailable(String),
}

/// Keeps what happened. When it cannot, nothing goes out.
#[async_trait]
pub trait Trail: fmt::Debug + Send + Sync {
    /// Makes an entry durable and returns its number. What it allows happens only afterwards.
    async fn begin(&self, entry: &Entry) -> Result<u64, TrailError>;

    /// Says how what began in a session has ended. Durable soon, and before anything that depends on it.
    async fn end(&self, session: &str, number: u64, outcome: &Outcome) -> Result<(), TrailError>;
}

/// The trail cannot keep anything.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the audit trail does not answer: {0}")]
pub struct TrailError(pub String);

/// A connection or request that was asked for, and what was decided. Holds no value of a credential, no query and no body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The session.
    pub session: String,
    /// `dns`, `connect`, `request`, `datagram`, `signature`.
    pub kind: &'static str,
    /// Where to, as `host:port`, with the user where somebody logs in; what was said, when it is no name.
    pub to: String,
    /// `tcp`, `tls`, `http`, `https`, `ssh`.
    pub protocol: &'static str,
    /// The method of a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The path of a request, without its query, with placeholders as they came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether it was allowed.
    pub allowed: bool,
    /// Whether it was allowed only because the policy observes.
    pub observed: bool,
    /// The rule that decided, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The stable code of the reason, when refused or observed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// References of the credentials whose values were put in, never the values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<String>,
    /// Whether somebody should be told at once: a credential was sent where it does not belong.
    pub alert: bool,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The address that was dialled, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The status of the answer to a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes that left, as the upstream was sent them.
    pub sent: u64,
    /// Bytes that came, as the upstream sent them.
    pub received: u64,
    /// From beginning to end.
    pub duration: Duration,
    /// Values of credentials that were found in the answer and replaced.
    pub redacted: u64,
    /// The stable code of what went wrong, if something did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'static str>,
}
