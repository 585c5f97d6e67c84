//! Spans: model requests and evaluations of outcomes.

use serde::{Deserialize, Serialize};

use crate::{EventId, Extra, OutcomeId, Timestamp};

/// Tokens of one model request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelUsage {
    /// Read, and not from the cache.
    pub input_tokens: u64,
    /// Written.
    pub output_tokens: u64,
    /// Read from the cache.
    pub cache_read_input_tokens: u64,
    /// Written to the cache.
    pub cache_creation_input_tokens: u64,
    /// `speed` and unknown fields, as they came.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `span.model_request_end`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpanModelRequestEndEvent {
    /// The event's id.
    pub id: EventId,
    /// The `span.model_request_start`.
    pub model_request_start_id: EventId,
    /// Whether it failed.
    pub is_error: Option<bool>,
    /// What it used.
    pub model_usage: ModelUsage,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `span.outcome_evaluation_start` and `…_ongoing`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpanOutcomeEvaluationEvent {
    /// The event's id.
    pub id: EventId,
    /// The outcome.
    pub outcome_id: OutcomeId,
    /// Which try, from 0.
    pub iteration: u32,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `span.outcome_evaluation_end`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpanOutcomeEvaluationEndEvent {
    /// The event's id.
    pub id: EventId,
    /// The start, or empty.
    pub outcome_evaluation_start_id: String,
    /// The outcome.
    pub outcome_id: OutcomeId,
    /// Which try, from 0.
    pub iteration: u32,
    /// The verdict.
    pub result: String,
    /// Why.
    pub explanation: String,
    /// What the evaluation used.
    pub usage: ModelUsage,
    /// When it was processed.
    pub processed_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}
