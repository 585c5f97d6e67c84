//! Checkpoints of a sandbox's workspace.
//!
//! A workspace is an overlay: an immutable base, and over it the session's own layer of changes. A checkpoint is that layer, in
//! a content-addressed store: [`Store::capture`] takes it, [`Store::materialise`] gives it back as a directory that any number
//! of sandboxes share as a lower layer. Restoring and forking are therefore new empty layers over the same directory.
//!
//! A checkpoint's name is the hash of its content: a Merkle root over files' chunks and directories' nodes. Every read is
//! checked against the name of what was read.

mod archive;
mod capture;
mod descent;
mod diff;
mod error;
mod id;
mod ingest;
mod layer;
#[cfg(feature = "remote")]
mod remote;
mod seal;
mod store;
mod transaction;
mod tree;

pub use archive::{Format, ImportLimits, ImportOptions};
pub use capture::{CaptureOptions, Captured, Ownership};
pub use diff::{Change, ChangeKind, EntryKind, Version};
pub use error::{Error, Result};
pub use id::{Id, InvalidId, LayerPath};
pub use layer::Layer;
#[cfg(feature = "remote")]
pub use object_store;
#[cfg(feature = "remote")]
pub use remote::{Moved, Remote, open_objects};
pub use store::{Checkpoint, Counts, Durable, Fault, Pruned, Retention, Store, Verified, write_whole};
pub use transaction::{Action, Facts, State, Transaction, recover};
