//! Wire types of the Managed Agents API.
//!
//! Shapes and limits only: no I/O and no state. Objects that the server sends keep fields they do not know, so that an
//! older reader passes on what a newer writer said; bodies that a client sends refuse them by name.

mod agent;
mod content;
mod environment;
mod error;
pub mod event;
mod id;
mod metadata;
mod page;
mod patch;
mod resource;
mod secret;
mod session;
mod time;
mod tool;
mod work;

pub use agent::*;
pub use content::*;
pub use environment::*;
pub use error::*;
pub use event::*;
pub use id::*;
pub use metadata::*;
pub use page::*;
pub use patch::Patch;
pub use resource::*;
pub use secret::Secret;
pub use session::*;
pub use time::{Timestamp, TimestampError};
pub use tool::*;
pub use work::*;

/// Fields that this version does not know, kept as they came.
pub type Extra = serde_json::Map<String, serde_json::Value>;
