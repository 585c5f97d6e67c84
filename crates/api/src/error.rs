//! The error envelope.

use serde::{Deserialize, Serialize};

use crate::Extra;

/// An error as it is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorEnvelope {
    /// Always `error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What went wrong.
    pub error: ErrorBody,
    /// The same as in the `request-id` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The family.
    #[serde(rename = "type")]
    pub kind: String,
    /// For people.
    pub message: String,
    /// For programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<ErrorDetails>,
    /// Anything else.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The machine-readable part of an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorDetails {
    /// A code that clients match on.
    pub error_code: String,
    /// Whatever belongs to the code.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The families of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the wire's own")]
pub enum ErrorType {
    InvalidRequest,
    Authentication,
    Billing,
    Permission,
    NotFound,
    RateLimit,
    Timeout,
    Api,
    Overloaded,
    MemoryPreconditionFailed,
    MemoryPathConflict,
    Conflict,
    RequestTooLarge,
}

impl ErrorType {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorType::InvalidRequest => "invalid_request_error",
            ErrorType::Authentication => "authentication_error",
            ErrorType::Billing => "billing_error",
            ErrorType::Permission => "permission_error",
            ErrorType::NotFound => "not_found_error",
            ErrorType::RateLimit => "rate_limit_error",
            ErrorType::Timeout => "timeout_error",
            ErrorType::Api => "api_error",
            ErrorType::Overloaded => "overloaded_error",
            ErrorType::MemoryPreconditionFailed => "memory_precondition_failed_error",
            ErrorType::MemoryPathConflict => "memory_path_conflict_error",
            ErrorType::Conflict => "conflict_error",
            ErrorType::RequestTooLarge => "request_too_large",
        }
    }

    /// The HTTP status that goes with it, unless an operation says otherwise.
    pub fn status(self) -> u16 {
        match self {
            ErrorType::InvalidRequest => 400,
            ErrorType::Authentication => 401,
            ErrorType::Billing => 402,
            ErrorType::Permission => 403,
            ErrorType::NotFound => 404,
            ErrorType::Conflict | ErrorType::MemoryPreconditionFailed | ErrorType::MemoryPathConflict => 409,
            ErrorType::RequestTooLarge => 413,
            ErrorType::RateLimit => 429,
            ErrorType::Api => 500,
            ErrorType::Timeout => 504,
            ErrorType::Overloaded => 529,
        }
    }
}
