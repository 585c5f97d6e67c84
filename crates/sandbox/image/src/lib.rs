//! OCI images as directories that an overlay can be mounted on.
//!
//! A [`Reference`] names an image; [`Store::pull`] gets it from a registry, a layout or an archive, checks every byte
//! against the digests that lead to it, and unpacks each layer once; [`Store::resolve`] finds it again for a run, by digest
//! only unless the [`Policy`] says otherwise; a [`Lease`] keeps it while it is used, and [`Store::prune`] removes what
//! nobody uses. A start from an image that is there copies nothing: [`Lease::layers`] are directories.
//!
//! Overlays must be mounted with `userxattr`: directories that hide others carry `user.overlay.opaque`.

mod archive;
mod auth;
mod challenge;
mod digest;
mod error;
mod image;
mod inflate;
mod layout;
mod lease;
mod manifest;
mod pins;
mod policy;
mod prune;
mod pull;
mod reference;
mod registry;
mod signature;
mod source;
mod store;
mod tree;
mod unpack;

pub mod fuzz;

pub use auth::{AuthError, CredentialSources};
pub use digest::{Digest, DigestError};
pub use error::Error;
pub use image::Image;
pub use inflate::Excess;
pub use layout::LayoutError;
pub use lease::Lease;
pub use manifest::{ImageConfig, ManifestError};
pub use policy::{Limits, Platform, Policy, PolicyError, Registries, RegistryPattern};
pub use prune::{Keep, Pruned};
pub use pull::Pulled;
pub use reference::{LocalFormat, LocalReference, Reference, ReferenceError, RegistryReference};
pub use registry::RegistryError;
pub use signature::{KeyError, PublicKey, SignatureError};
pub use store::Store;
pub use unpack::{Ownership, UnpackError};
