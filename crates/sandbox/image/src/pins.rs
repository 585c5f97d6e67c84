//! Pins: what a reference meant when it was pulled. A tag is asked for by a pull and by nothing else.

use std::fs;
use std::path::PathBuf;

use palisade_api::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::image::{FORM, FormOne};
use crate::reference::Reference;
use crate::store::{self, Scratch, Store};

/// What a reference meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    form: FormOne,
    /// The reference, as it is written.
    pub(crate) reference: String,
    /// The digest that it led to.
    pub(crate) digest: Digest,
    /// When.
    pub(crate) at: Timestamp,
}

/// The form in which a reference is remembered.
fn key(reference: &Reference) -> String {
    match reference {
        Reference::Local(local) => local.absolute().to_string(),
        other => other.to_string(),
    }
}

impl Store {
    fn pin_path(&self, reference: &str) -> PathBuf {
        self.path("pins").join(format!("{}.json", Digest::of(reference.as_bytes()).hex()))
    }

    /// What a reference meant when it was pulled last.
    pub(crate) fn pin(&self, reference: &Reference) -> Result<Option<Pin>, Error> {
        store::read_json(&self.pin_path(&key(reference)))
    }

    /// Remembers what a reference means.
    pub(crate) fn set_pin(
        &self,
        scratch: &Scratch,
        reference: &Reference,
        digest: Digest,
        at: Timestamp,
    ) -> Result<(), Error> {
        let reference = key(reference);
        let path = self.pin_path(&reference);
        self.write_json(scratch, &path, &Pin { form: FORM, reference, digest, at })
    }

    /// All pins.
    pub(crate) fn pins(&self) -> Result<Vec<Pin>, Error> {
        let directory = self.path("pins");
        let mut pins = Vec::new();
        for name in store::names(&directory)? {
            pins.extend(store::read_json::<Pin>(&directory.join(format!("{}.json", name.hex())))?);
        }
        Ok(pins)
    }

    /// The references that mean this image, sorted.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn references(&self, image: Digest) -> Result<Vec<String>, Error> {
        let mut names: Vec<String> =
            self.pins()?.into_iter().filter(|pin| pin.digest == image).map(|pin| pin.reference).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Forgets what a reference meant.
    pub(crate) fn remove_pin(&self, pin: &Pin) -> Result<(), Error> {
        let path = self.pin_path(&pin.reference);
        fs::remove_file(&path).map_err(Error::store("removing a pin", &path))
    }
}
