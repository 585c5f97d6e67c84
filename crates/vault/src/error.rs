//! Why there is no value.

use std::time::Duration;

/// A source could not give what it was asked for. Nothing that a source answered is repeated here but codes that are known
/// beforehand: an answer may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// There is nothing of that name.
    #[error("{place} holds no such secret: {why}")]
    NotFound {
        /// The source.
        place: String,
        /// What is missing, and the fix.
        why: String,
    },
    /// The source does not let us have it, or does not know us.
    #[error("{place} refused: {why}")]
    Denied {
        /// The source.
        place: String,
        /// Which step, and the fix.
        why: String,
    },
    /// The source does not answer, or cannot serve now. Trying again can help.
    #[error("{place} does not answer: {why}")]
    Unavailable {
        /// The source.
        place: String,
        /// What happened.
        why: String,
    },
    /// The source answered something that cannot be used.
    #[error("{place} answered what cannot be used: {why}")]
    Malformed {
        /// The source.
        place: String,
        /// What is wrong with it, and the fix.
        why: String,
    },
    /// More than a secret may be long.
    #[error("{place} answered more than {limit} bytes; a secret is shorter. Check what the reference names")]
    TooLarge {
        /// The source.
        place: String,
        /// The most that is taken.
        limit: usize,
    },
    /// The clocks are too far apart for signatures to hold.
    #[error(
        "{place} refused: this machine's clock says {ours} and the source's says {theirs}. Set the machine's clock (an NTP \
         service keeps it right)"
    )]
    ClockSkew {
        /// The source.
        place: String,
        /// RFC 3339.
        ours: String,
        /// RFC 3339.
        theirs: String,
    },
    /// Something on this machine is not as it must be.
    #[error("{place} cannot be read: {why}")]
    Local {
        /// The source.
        place: String,
        /// What is wrong, and the fix.
        why: String,
    },
}

impl FetchError {
    pub(crate) fn not_found(place: &str, why: impl Into<String>) -> Self {
        Self::NotFound { place: place.to_owned(), why: why.into() }
    }

    pub(crate) fn denied(place: &str, why: impl Into<String>) -> Self {
        Self::Denied { place: place.to_owned(), why: why.into() }
    }

    pub(crate) fn unavailable(place: &str, why: impl Into<String>) -> Self {
        Self::Unavailable { place: place.to_owned(), why: why.into() }
    }

    pub(crate) fn malformed(place: &str, why: impl Into<String>) -> Self {
        Self::Malformed { place: place.to_owned(), why: why.into() }
    }

    pub(crate) fn local(place: &str, why: impl Into<String>) -> Self {
        Self::Local { place: place.to_owned(), why: why.into() }
    }

    /// Whether the source as a whole does not serve, so that asking it for something else is in vain too.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Why a session gets no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// No source of that kind and name is configured.
    #[error("`{reference}` names no configured source: add {} to the vault's configuration", missing(.kind, .source_name))]
    NoSource {
        /// What was asked for.
        reference: String,
        /// The kind.
        kind: &'static str,
        /// The name; empty where there is one of the kind.
        source_name: String,
    },
    /// It was revoked here.
    #[error("`{reference}` was revoked; it stays so until it is allowed again or the worker starts anew")]
    Revoked {
        /// What was asked for.
        reference: String,
    },
    /// The session has ended.
    #[error("the session has ended, so it gets no more secrets")]
    SessionEnded,
    /// The record has several fields, and the reference names none, or not one of them.
    #[error("`{reference}` {why}")]
    Field {
        /// What was asked for.
        reference: String,
        /// What is wrong with the field.
        why: String,
    },
    /// The source failed.
    #[error("`{reference}` is not available: {error}{}", again(.retry_in))]
    Source {
        /// What was asked for.
        reference: String,
        /// What the source said.
        error: FetchError,
        /// When the source is asked next.
        retry_in: Option<Duration>,
    },
    /// The session holds as many leases as one may.
    #[error("`{reference}` is not fetched: the session already holds {limit} leases")]
    TooManyLeases {
        /// What was asked for.
        reference: String,
        /// The most.
        limit: usize,
    },
    /// The vault is closing.
    #[error("the worker is stopping, so it gives out no more secrets")]
    Closed,
}

impl VaultError {
    /// Whether asking again later can help, with nobody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Source { error, .. } if error.is_unavailable())
    }

    /// Whether it was taken away on purpose.
    pub fn is_revoked(&self) -> bool {
        matches!(self, Self::Revoked { .. } | Self::SessionEnded | Self::Closed)
    }
}

fn missing(kind: &str, name: &str) -> String {
    if name.is_empty() { format!("`{kind}:`") } else { format!("`{name}` under `{kind}:`") }
}

fn again(retry_in: &Option<Duration>) -> String {
    match retry_in {
        Some(wait) => format!(" (asked again in {} s)", wait.as_secs_f64().ceil()),
        None => String::new(),
    }
}
