//! Metadata: at most 16 pairs of text, merged key by key.

use std::collections::BTreeMap;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// The pairs of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Metadata(pub BTreeMap<String, String>);

impl Metadata {
    /// Checks the limits: 16 pairs, keys of 1 to 64 characters, values of at most 512.
    ///
    /// # Errors
    /// What is wrong, naming the key.
    pub fn validate(&self) -> Result<(), String> {
        if self.0.len() > 16 {
            return Err(format!("may hold at most 16 pairs, not {}", self.0.len()));
        }
        for (key, value) in &self.0 {
            if key.is_empty() || key.chars().count() > 64 {
                return Err(format!("key {key:?} must have 1 to 64 characters"));
            }
            if value.chars().count() > 512 {
                return Err(format!("the value of {key:?} may have at most 512 characters"));
            }
        }
        Ok(())
    }
}

impl Deref for Metadata {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

/// A change of metadata: a value sets a key, null removes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MetadataPatch(pub BTreeMap<String, Option<String>>);

impl MetadataPatch {
    /// Merges the change; check the result's limits afterwards.
    pub fn apply(&self, metadata: &mut Metadata) {
        for (key, value) in &self.0 {
            match value {
                Some(value) => metadata.0.insert(key.clone(), value.clone()),
                None => metadata.0.remove(key),
            };
        }
    }

    /// Environments also take an empty value as a removal.
    pub fn apply_with_empty_as_null(&self, metadata: &mut Metadata) {
        for (key, value) in &self.0 {
            match value.as_deref() {
                None | Some("") => metadata.0.remove(key),
                Some(value) => metadata.0.insert(key.clone(), value.to_owned()),
            };
        }
    }
}
