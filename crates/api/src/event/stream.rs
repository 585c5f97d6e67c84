//! What only streams carry: previews of events that are still being made.

use serde::{Deserialize, Serialize};

use crate::{ContentBlock, EventId, Extra};

/// A preview.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamEvent {
    /// An event has begun.
    EventStart {
        /// Its id and type.
        event: EventHead,
    },
    /// More of an event that has begun.
    EventDelta {
        /// The event.
        event_id: EventId,
        /// What is new.
        delta: EventDelta,
    },
}

/// Names an event that has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventHead {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its id, which the finished event will have.
    pub id: EventId,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// More of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventDelta {
    /// More content.
    ContentDelta {
        /// The block that it belongs to; counted without gaps.
        #[serde(default)]
        index: u64,
        /// A fragment.
        content: ContentBlock,
    },
}
