//! What is answered when something is wrong, and why a server does not start.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use palisade_api::{ErrorBody, ErrorDetails, ErrorEnvelope, ErrorType, Extra};
use palisade_core::session::Refusal;
use palisade_engine::EngineError;
use palisade_store::{CommitError, StoreError};

/// Why a server does not start, or a key cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Anyone on the network could read the credentials.
    #[error(
        "{0} is not a loopback address and TLS is off, so credentials would cross the network in the clear: give a certificate and a key, listen on 127.0.0.1, or allow plain text explicitly"
    )]
    Plaintext(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("{path}: {cause}: give a certificate chain and its private key as PEM files")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A file of the state directory cannot be read or written.
    #[error("{step} {path}: {cause}")]
    State {
        /// What was being done.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The key that signs sessions tokens is damaged.
    #[error(
        "{0} must hold 32 bytes: remove it to have a new one made; every worker's running item then needs a new token"
    )]
    TokenKey(PathBuf),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A stored key cannot be read.
    #[error("a stored key cannot be read: {0}")]
    Corrupt(#[from] serde_json::Error),
    /// There is no such environment.
    #[error("there is no environment {0}")]
    NoEnvironment(String),
}

/// An answer that says what is wrong with a request, or with this server.
#[derive(Debug, Clone)]
pub(crate) struct Fault(Box<Facts>);

#[derive(Debug, Clone)]
struct Facts {
    kind: ErrorType,
    status: StatusCode,
    message: String,
    details: Option<ErrorDetails>,
    /// Whether the SDKs should try again, when their own rule would be wrong.
    retry: Option<bool>,
    /// Seconds.
    retry_after: Option<u64>,
    allow: Option<HeaderValue>,
}

/// The result of an operation.
pub(crate) type Answer<T = Response> = Result<T, Fault>;

impl Fault {
    pub(crate) fn new(kind: ErrorType, message: impl Into<String>) -> Fault {
        let status = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let message = message.into();
        Fault(Box::new(Facts { kind, status, message, details: None, retry: None, retry_after: None, allow: None }))
    }

    fn with(mut self, change: impl FnOnce(&mut Facts)) -> Fault {
        change(&mut self.0);
        self
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Fault {
        Fault::new(ErrorType::InvalidRequest, message)
    }

    /// A request that is at fault in one field.
    pub(crate) fn field(field: impl std::fmt::Display, why: impl std::fmt::Display) -> Fault {
        Fault::invalid(format!("{field}: {why}"))
    }

    /// The same for a missing object and for one that the caller may not know of.
    pub(crate) fn missing(noun: &str, id: &str) -> Fault {
        // Only what could be an id is repeated.
        let plain = id.len() <= 160 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let message = if plain { format!("{noun} {id} was not found") } else { format!("{noun} was not found") };
        Fault::new(ErrorType::NotFound, message)
    }

    /// A conflict that the same request will meet again: SDKs repeat a 409 unless told not to.
    pub(crate) fn conflict(message: impl Into<String>) -> Fault {
        Fault::new(ErrorType::Conflict, message).retry(false)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Fault {
        Fault::new(ErrorType::Permission, message)
    }

    pub(crate) fn unauthenticated(message: impl Into<String>) -> Fault {
        Fault::new(ErrorType::Authentication, message)
    }

    /// This server cannot serve now; `after` is in seconds.
    pub(crate) fn unavailable(message: impl Into<String>, after: u64) -> Fault {
        Fault::new(ErrorType::Api, message).retry(true).retry_after(after).status(StatusCode::SERVICE_UNAVAILABLE)
    }

    #[must_use]
    pub(crate) fn status(self, status: StatusCode) -> Fault {
        self.with(|facts| facts.status = status)
    }

    #[must_use]
    pub(crate) fn message(self, message: impl Into<String>) -> Fault {
        self.with(|facts| facts.message = message.into())
    }

    #[must_use]
    pub(crate) fn code(self, code: &str) -> Fault {
        self.details(code, Extra::new())
    }

    #[must_use]
    pub(crate) fn details(self, code: &str, extra: Extra) -> Fault {
        self.with(|facts| facts.details = Some(ErrorDetails { error_code: code.to_owned(), extra }))
    }

    fn retry(self, retry: bool) -> Fault {
        self.with(|facts| facts.retry = Some(retry))
    }

    #[must_use]
    pub(crate) fn retry_after(self, seconds: u64) -> Fault {
        self.with(|facts| facts.retry_after = Some(seconds))
    }

    #[must_use]
    pub(crate) fn allow(self, methods: Option<HeaderValue>) -> Fault {
        self.with(|facts| facts.allow = methods)
    }

    /// The answer as it is sent.
    pub(crate) fn render(&self, request_id: &str) -> Response {
        let facts = &*self.0;
        let envelope = ErrorEnvelope {
            kind: "error".to_owned(),
            error: ErrorBody {
                kind: facts.kind.as_str().to_owned(),
                message: facts.message.clone(),
                details: facts.details.clone(),
                extra: Extra::new(),
            },
            request_id: Some(request_id.to_owned()),
        };
        let mut response = crate::routes::json(facts.status, &envelope);
        let headers = response.headers_mut();
        if let Some(retry) = facts.retry {
            let value = HeaderValue::from_static(if retry { "true" } else { "false" });
            headers.insert(HeaderName::from_static("x-should-retry"), value);
        }
        if let Some(seconds) = facts.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = &facts.allow {
            headers.insert(header::ALLOW, allow.clone());
        }
        if facts.kind == ErrorType::Authentication {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for Fault {
    /// Only carries the fault: the outermost layer knows the request's id and renders it.
    fn into_response(self) -> Response {
        let mut response = self.0.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        let fault = Fault::invalid(refusal.message);
        match refusal.code {
            Some(code) => fault.code(code),
            None => fault,
        }
    }
}

impl From<StoreError> for Fault {
    fn from(why: StoreError) -> Fault {
        match why {
            StoreError::Full => Fault::unavailable(why.to_string(), 30),
            StoreError::Closed => Fault::unavailable("the server is shutting down: retry in a moment", 1),
            StoreError::Unconfirmed { .. } => Fault::unavailable(why.to_string(), 5),
            StoreError::Storage { .. } | StoreError::TooNew { .. } | StoreError::InUse { .. } => {
                tracing::error!(error = %why, "the store failed");
                Fault::new(ErrorType::Api, "the server's store failed; its log says why")
            }
        }
    }
}

impl From<CommitError> for Fault {
    fn from(why: CommitError) -> Fault {
        match why {
            CommitError::Store(why) => why.into(),
            CommitError::Conflict(_) => EngineError::Conflict.into(),
            CommitError::Fenced { .. } | CommitError::Tail { .. } => EngineError::Lost.into(),
        }
    }
}

impl From<EngineError> for Fault {
    fn from(why: EngineError) -> Fault {
        match why {
            EngineError::NoSession => Fault::new(ErrorType::NotFound, "session was not found"),
            EngineError::Refused(refusal) => refusal.into(),
            // Not the client's version but a race: the next try will see the new state.
            EngineError::Conflict => Fault::new(ErrorType::Conflict, why.to_string()).retry(true),
            EngineError::Lost | EngineError::ShuttingDown => Fault::unavailable(why.to_string(), 1),
            EngineError::Store(why) => why.into(),
            EngineError::Corrupt(why) => Fault::from(why),
        }
    }
}

impl From<serde_json::Error> for Fault {
    /// For stored text and for answers; bodies of requests are read elsewhere.
    fn from(why: serde_json::Error) -> Fault {
        tracing::error!(error = %why, "a stored object could not be read");
        Fault::new(ErrorType::Api, "a stored object could not be read; the server's log says why")
    }
}
