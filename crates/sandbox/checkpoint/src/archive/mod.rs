//! Checkpoints as tar archives: one of our own, which comes back as the same checkpoint, and an OCI image layer. They differ in
//! little: the own one says in a global header what it is of, and can hold names that look like whiteouts.

mod export;
mod header;
mod import;

pub use export::Format;
pub use import::{ImportLimits, ImportOptions};

/// What a name begins with to hide one of the layers below; in an OCI layer.
const WHITEOUT: &[u8] = b".wh.";
/// The name that hides everything the layers below have in its directory; in an OCI layer.
const OPAQUE: &[u8] = b".wh..wh..opq";

mod key {
    /// In the global header: the base's name.
    pub(super) const BASE: &str = "PALISADE.base";
    /// `1`: the entry's name means itself, though it begins like a whiteout's. `whiteout`: it hides one that begins so.
    pub(super) const LITERAL: &str = "PALISADE.literal";
    /// An extended attribute, as GNU tar, star and containers' tools write it.
    pub(super) const XATTR: &str = "SCHILY.xattr.";
    pub(super) const SPARSE_MAJOR: &str = "GNU.sparse.major";
    pub(super) const SPARSE_MINOR: &str = "GNU.sparse.minor";
    pub(super) const SPARSE_NAME: &str = "GNU.sparse.name";
    pub(super) const SPARSE_SIZE: &str = "GNU.sparse.realsize";
}
