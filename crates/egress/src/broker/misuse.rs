//! Why the broker lets nothing pass.

use crate::SupplyError;

/// Why a request, a part of its body, or an answer must not go on. Holds references of credentials, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// A placeholder of this session goes to a host that its credential does not name.
    #[error(
        "the placeholder of credential {reference} was sent to {host}, which the credential does not name. \
         Nothing was forwarded; add the host to the credential if it belongs there"
    )]
    Host {
        /// The credential.
        reference: String,
        /// Where it was going.
        host: String,
    },
    /// A placeholder of this session stands where its credential is not enabled.
    #[error(
        "the placeholder of credential {reference} stands in the {place} of a request, where the credential is not enabled. \
         Nothing more was forwarded; send it where it is enabled, or enable this place"
    )]
    Place {
        /// The credential.
        reference: String,
        /// `header`, `query`, `path`, `body`, `trailer`.
        place: &'static str,
    },
    /// A placeholder that was made for another session, or for one that has ended.
    #[error(
        "the request holds a placeholder of another session or of one that has ended. Nothing more was forwarded; \
         use the placeholder in this session's environment"
    )]
    Replay,
    /// The host is named, but the connection to it would not be encrypted.
    #[error("credential {reference} is only sent over TLS, and {host} is asked without. Use https")]
    Cleartext {
        /// The credential.
        reference: String,
        /// Where it was going.
        host: String,
    },
    /// The credential was revoked, or the session's lease of it has ended.
    #[error("credential {reference} was revoked. Trying again does not help")]
    Revoked {
        /// The credential.
        reference: String,
    },
    /// The source of the value does not answer.
    #[error("the value of credential {reference} cannot be had: {why}. Trying again later can help")]
    Unavailable {
        /// The credential.
        reference: String,
        /// What the source said.
        why: String,
    },
    /// The value is there but cannot be used for this.
    #[error("the value of credential {reference} cannot be put in: {why}")]
    Unusable {
        /// The credential.
        reference: String,
        /// What is wrong, without the value.
        why: &'static str,
    },
    /// A signature that cannot be made again with the real keys.
    #[error(
        "the request is signed with the placeholder of credential {reference} in a way that cannot be signed again: {why}"
    )]
    Signature {
        /// The credential.
        reference: String,
        /// What is not supported, and what to use.
        why: &'static str,
    },
    /// A body that must be read as a whole is too large for that.
    #[error("the body is larger than the {limit} bytes that can be read as a whole: {why}")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
        /// Why it must be read as a whole.
        why: &'static str,
    },
    /// An answer in which values cannot be looked for.
    #[error("the answer cannot be searched for values of credentials: {why}. It was not passed on")]
    Unscannable {
        /// What stands in the way.
        why: &'static str,
    },
}

impl Misuse {
    /// The stable code of the reason.
    pub fn code(&self) -> &'static str {
        match self {
            Misuse::Host { .. } | Misuse::Place { .. } | Misuse::Replay => "credential_misused",
            Misuse::Cleartext { .. } => "tls_required",
            Misuse::Revoked { .. } | Misuse::Unavailable { .. } | Misuse::Unusable { .. } => "credential_unavailable",
            Misuse::Signature { .. } => "signature_unsupported",
            Misuse::TooLarge { .. } => "too_large",
            Misuse::Unscannable { .. } => "unscannable_answer",
        }
    }

    /// Whether somebody should be told at once: a placeholder was sent where it does not belong.
    pub fn alert(&self) -> bool {
        matches!(self, Misuse::Host { .. } | Misuse::Place { .. } | Misuse::Replay)
    }

    /// The credential that it is about, when it is known which.
    pub fn reference(&self) -> Option<&str> {
        match self {
            Misuse::Host { reference, .. }
            | Misuse::Place { reference, .. }
            | Misuse::Cleartext { reference, .. }
            | Misuse::Revoked { reference }
            | Misuse::Unavailable { reference, .. }
            | Misuse::Unusable { reference, .. }
            | Misuse::Signature { reference, .. } => Some(reference),
            Misuse::Replay | Misuse::TooLarge { .. } | Misuse::Unscannable { .. } => None,
        }
    }

    pub(crate) fn supply(reference: &str, error: SupplyError) -> Misuse {
        match error {
            SupplyError::Revoked => Misuse::Revoked { reference: reference.to_owned() },
            SupplyError::Unavailable(why) => Misuse::Unavailable { reference: reference.to_owned(), why },
        }
    }
}

/// Why there is no broker for a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// Two credentials want the same variable.
    #[error("two credentials, {first} and {second}, are for the variable {variable}. Keep one, or rename one")]
    Variable {
        /// The variable.
        variable: String,
        /// One reference.
        first: String,
        /// The other.
        second: String,
    },
    /// A variable that the environment cannot hold.
    #[error("the variable {variable:?} of credential {reference} is not a name: use letters, digits and underscores")]
    NotAVariable {
        /// The variable.
        variable: String,
        /// The credential.
        reference: String,
    },
    /// A host pattern that is not one.
    #[error(
        "the host {host:?} of a credential is no host: use a bare name, an IPv4 address or *.name, without scheme, port and path"
    )]
    NotAHost {
        /// What was said.
        host: String,
    },
    /// The credential is enabled nowhere.
    #[error("credential {reference} is enabled in no place: enable at least one of header, query, path, body")]
    NoPlace {
        /// The credential.
        reference: String,
    },
    /// The system gives no randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
}
