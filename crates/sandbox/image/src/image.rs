//! An image of the store.

use std::path::{Path, PathBuf};

use palisade_api::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::manifest::ImageConfig;
use crate::policy::Policy;
use crate::unpack::{Ownership, Summary};

/// The form of a record; another one is not read.
pub(crate) const FORM: FormOne = FormOne;

/// Reads and writes the number 1, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FormOne;

impl Serialize for FormOne {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(1)
    }
}

impl<'de> Deserialize<'de> for FormOne {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<FormOne, D::Error> {
        match u64::deserialize(deserializer)? {
            1 => Ok(FormOne),
            other => {
                Err(serde::de::Error::custom(format!("the record is of form {other}, and this program reads form 1")))
            }
        }
    }
}

/// What the store remembers of a layer, beside the layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) form: FormOne,
    pub(crate) ownership: Ownership,
    #[serde(flatten)]
    pub(crate) summary: Summary,
}

/// What the store remembers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) form: FormOne,
    /// The digest that names it: of the index, if it came from one.
    pub(crate) digest: Digest,
    /// The digest of the manifest for this machine.
    pub(crate) manifest: Digest,
    /// The digest of the configuration.
    pub(crate) config_digest: Digest,
    /// What it was first pulled as.
    pub(crate) reference: String,
    pub(crate) pulled_at: Timestamp,
    pub(crate) platform: String,
    pub(crate) ownership: Ownership,
    /// Keys that signed it, by their digests.
    pub(crate) signed_by: Vec<Digest>,
    /// Layers by the digests of their archives, lowest first.
    pub(crate) layers: Vec<Digest>,
    /// The layers that a mount needs, top first: without what is hidden by others as a whole.
    pub(crate) stack: Vec<Digest>,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) notes: Vec<String>,
    pub(crate) config: ImageConfig,
}

/// An image that is unpacked in the store. Take a [`crate::Lease`] to keep it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    record: ImageRecord,
    layers: PathBuf,
}

impl Image {
    pub(crate) fn new(record: ImageRecord, layers: PathBuf) -> Image {
        Image { record, layers }
    }

    pub(crate) fn record(&self) -> &ImageRecord {
        &self.record
    }

    /// The digest that names it: of the index, if it was pulled from one, or else of the manifest.
    pub fn digest(&self) -> Digest {
        self.record.digest
    }

    /// The digest of the manifest for this machine.
    pub fn manifest(&self) -> Digest {
        self.record.manifest
    }

    /// What it was pulled as, with its defaults filled in.
    pub fn reference(&self) -> &str {
        &self.record.reference
    }

    /// When it was pulled last.
    pub fn pulled_at(&self) -> Timestamp {
        self.record.pulled_at
    }

    /// The machine it is for, as in `linux/amd64`.
    pub fn platform(&self) -> &str {
        &self.record.platform
    }

    /// Who owns its files on this machine.
    pub fn ownership(&self) -> Ownership {
        self.record.ownership
    }

    /// The digests of the keys that signed it, among those that were required when it was pulled.
    pub fn signed_by(&self) -> &[Digest] {
        &self.record.signed_by
    }

    /// The bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.record.bytes
    }

    /// The number of its files, directories and links, in all layers.
    pub fn entries(&self) -> u64 {
        self.record.entries
    }

    /// What of it was left out, and why.
    pub fn notes(&self) -> &[String] {
        &self.record.notes
    }

    /// How its author meant it to be run.
    pub fn config(&self) -> &ImageConfig {
        &self.record.config
    }

    /// The directories for an overlay mount with `userxattr`, top first. They must not be written to.
    pub fn layers(&self) -> Vec<PathBuf> {
        self.record.stack.iter().map(|layer| root(&self.layers.join(layer.hex()))).collect()
    }

    /// Whether a key that the policy requires has signed it.
    pub(crate) fn is_signed_as(&self, policy: &Policy) -> bool {
        let keys = &policy.require_signature;
        keys.is_empty() || keys.iter().any(|key| self.record.signed_by.contains(&key.name()))
    }
}

/// The file system in a layer's directory.
pub(crate) fn root(layer: &Path) -> PathBuf {
    layer.join("root")
}

/// What a mount needs of layers that are given lowest first: of the same layer only the highest, and nothing below one that
/// hides everything. The same directory twice is refused by the kernel.
pub(crate) fn stack(layers: &[(Digest, bool)]) -> Vec<Digest> {
    let mut stack = Vec::new();
    for (layer, opaque) in layers.iter().rev() {
        if !stack.contains(layer) {
            stack.push(*layer);
        }
        if *opaque {
            break;
        }
    }
    stack
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_layers_are_not_mounted() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        assert_eq!(stack(&[(a, false), (b, false), (a, false)]), [a, b]);
        assert_eq!(stack(&[(a, false), (b, true), (c, false)]), [c, b]);
        assert_eq!(stack(&[(a, true), (b, false), (a, true)]), [a]);
    }
}
