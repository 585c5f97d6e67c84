//! List envelopes.

use serde::{Deserialize, Serialize};

/// A page that is followed by an opaque cursor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The objects.
    pub data: Vec<T>,
    /// Where the next page starts; null at the end.
    #[serde(default)]
    pub next_page: Option<String>,
}

/// A page that can be left in both directions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BidirectionalPage<T> {
    /// The objects.
    pub data: Vec<T>,
    /// Where the next page starts; null at the end.
    #[serde(default)]
    pub next_page: Option<String>,
    /// Where the page before starts; null at the beginning.
    #[serde(default)]
    pub prev_page: Option<String>,
}
