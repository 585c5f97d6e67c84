//! Resources of a session.

use serde::{Deserialize, Serialize};

use crate::{Extra, FileId, MemoryStoreId, ResourceId, Timestamp};

/// A resource of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SessionResource {
    /// A copy of a file.
    File(FileResource),
    /// A repository.
    GithubRepository(RepositoryResource),
    /// A memory store; it has neither an id of its own nor timestamps.
    MemoryStore(MemoryStoreResource),
    /// Anything else.
    #[serde(untagged)]
    Unknown(Extra),
}

/// A copy of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileResource {
    /// Its id.
    pub id: ResourceId,
    /// The copy's file id.
    pub file_id: FileId,
    /// Where it is mounted.
    pub mount_path: String,
    /// When it was attached.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A repository. Its token is never returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepositoryResource {
    /// Its id.
    pub id: ResourceId,
    /// Where it is.
    pub url: String,
    /// Where it is checked out.
    pub mount_path: String,
    /// When it was attached.
    pub created_at: Timestamp,
    /// When it was changed.
    pub updated_at: Timestamp,
    /// `checkout` and unknown fields, as they came.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A memory store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryStoreResource {
    /// The store.
    pub memory_store_id: MemoryStoreId,
    /// `access`, `instructions`, `name`, `description`, `mount_path` and unknown fields, as they came.
    #[serde(flatten)]
    pub extra: Extra,
}

impl MemoryStoreResource {
    /// Where the store is mounted.
    pub fn mount_path(&self) -> Option<&str> {
        self.extra.get("mount_path").and_then(serde_json::Value::as_str)
    }
}

/// A resource as it is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[expect(missing_docs, reason = "as in the resources")]
pub enum ResourceParam {
    File {
        file_id: FileId,
        #[serde(default)]
        mount_path: Option<String>,
    },
    GithubRepository {
        url: String,
        #[serde(default)]
        authorization_token: Option<String>,
        #[serde(default)]
        checkout: Option<serde_json::Value>,
        #[serde(default)]
        mount_path: Option<String>,
    },
    MemoryStore {
        memory_store_id: MemoryStoreId,
        #[serde(default)]
        access: Option<String>,
        #[serde(default)]
        instructions: Option<String>,
    },
}
