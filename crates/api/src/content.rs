//! Content blocks of messages and tool results.

use serde::{Deserialize, Serialize};

use crate::Extra;

/// A block of content. A type that this version does not know is kept whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentBlock {
    /// Text.
    Text(TextBlock),
    /// An image.
    Image(ImageBlock),
    /// A document.
    Document(DocumentBlock),
    /// A search result.
    SearchResult(SearchResultBlock),
    /// Content that the server has removed.
    Redacted(RedactedBlock),
    /// Anything else.
    #[serde(untagged)]
    Unknown(Extra),
}

impl ContentBlock {
    /// A block of text.
    pub fn text(text: impl Into<String>) -> ContentBlock {
        ContentBlock::Text(TextBlock { text: text.into(), extra: Extra::new() })
    }

    /// The block's `type`.
    pub fn type_name(&self) -> &str {
        match self {
            ContentBlock::Text(_) => "text",
            ContentBlock::Image(_) => "image",
            ContentBlock::Document(_) => "document",
            ContentBlock::SearchResult(_) => "search_result",
            ContentBlock::Redacted(_) => "redacted",
            ContentBlock::Unknown(map) => {
                map.get("type").and_then(serde_json::Value::as_str).unwrap_or("a block without a type")
            }
        }
    }
}

/// Text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextBlock {
    /// The text.
    pub text: String,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageBlock {
    /// Where it is.
    pub source: Source,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentBlock {
    /// Where it is.
    pub source: Source,
    /// `title`, `context` and unknown fields, as they came.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where an image or a document is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Source {
    /// Here, encoded.
    Base64 {
        /// Its media type.
        media_type: String,
        /// Its bytes in base64.
        data: String,
    },
    /// Here, as plain text.
    Text {
        /// Its media type.
        media_type: String,
        /// The text.
        data: String,
    },
    /// Behind a URL.
    Url {
        /// The URL.
        url: String,
    },
    /// An uploaded file.
    File {
        /// The file's id.
        file_id: String,
    },
    /// Anything else.
    #[serde(untagged)]
    Unknown(Extra),
}

/// A search result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchResultBlock {
    /// Where it was found.
    pub source: String,
    /// Its title.
    pub title: String,
    /// Its text.
    pub content: Vec<ContentBlock>,
    /// `citations` and unknown fields, as they came.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Content that the server has removed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RedactedBlock {
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}
