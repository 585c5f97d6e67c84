//! What can go wrong with an image, by step.

use std::io;
use std::path::{Path, PathBuf};

use crate::auth::AuthError;
use crate::digest::Digest;
use crate::layout::LayoutError;
use crate::manifest::ManifestError;
use crate::policy::PolicyError;
use crate::registry::RegistryError;
use crate::signature::SignatureError;
use crate::unpack::UnpackError;

/// Why an image is not there to be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy refuses it.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The credentials for its registry cannot be used.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// Its registry does not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Its layout or archive cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// What describes it cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It is not signed as required.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A layer cannot be unpacked.
    #[error("layer {layer}: {cause}")]
    Layer {
        /// The layer's digest, as the manifest names it.
        layer: Digest,
        /// Why.
        cause: UnpackError,
    },
    /// All layers together are too large.
    #[error("the image unpacks to more than {limit} bytes: raise the limit if it is meant to be so large")]
    Size {
        /// The limit.
        limit: u64,
    },
    /// It is not in the store.
    #[error("{reference} is not in the store: `palisade image pull` gets an image from a registry or an archive")]
    Absent {
        /// What was asked for.
        reference: String,
    },
    /// Something of it is gone from the store.
    #[error("the image {image} is damaged: {what} is missing from the store; pull it again")]
    Damaged {
        /// The image.
        image: Digest,
        /// What is missing.
        what: String,
    },
    /// The store itself cannot be used.
    #[error("{step} in the image store failed: {path}: {cause}", path = path.display())]
    Store {
        /// The step.
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The store could be changed by others.
    #[error("the image store {path} {why}: give it a directory of its own", path = path.display())]
    Shared {
        /// The directory.
        path: PathBuf,
        /// Why it is not safe.
        why: &'static str,
    },
    /// The process ends.
    #[error("the work was interrupted: {0}")]
    Interrupted(String),
}

impl Error {
    pub(crate) fn store(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |cause| Error::Store { step, path, cause }
    }

    #[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
    pub(crate) fn interrupted(error: tokio::task::JoinError) -> Error {
        Error::Interrupted(error.to_string())
    }
}
