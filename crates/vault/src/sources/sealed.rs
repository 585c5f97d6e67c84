//! The local sealed file.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use super::file::stamp;
use crate::error::FetchError;
use crate::sealed::{Key, SealedError, SealedFile};
use crate::source::{Content, Document, Source, Stamp};
use crate::surroundings::{Origin, Surroundings};

/// `sealed:`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedConfig {
    /// The file, as `palisade vault init` makes it.
    pub file: PathBuf,
    /// Where its key is: `file:/PATH`, `credential:NAME` or `program:/PATH`.
    pub key: Origin,
}

#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    config: SealedConfig,
    surroundings: Surroundings,
}

impl Sealed {
    pub(crate) fn new(config: SealedConfig, surroundings: Surroundings) -> Self {
        Self { config, surroundings }
    }

    fn read(&self, name: &str) -> Result<Document, FetchError> {
        let place = self.description();
        // The key is read each time rather than kept: what is not in memory cannot be found there.
        let read = Key::read(&self.config.key, &self.surroundings)
            .and_then(|key| SealedFile::at(&self.config.file).value(&key, name));
        match read {
            Ok((value, facts)) => Ok(Document { stamp: stamp(&facts), ..Document::plain(Content::single(value)) }),
            Err(error @ SealedError::NoSecret { .. }) => Err(FetchError::not_found(&place, error.to_string())),
            Err(error) => Err(FetchError::local(&place, error.to_string())),
        }
    }
}

#[async_trait]
impl Source for Sealed {
    fn description(&self) -> String {
        format!("the sealed file `{}`", self.config.file.display())
    }

    fn keep(&self) -> Duration {
        Duration::MAX
    }

    fn unchanged(&self, _path: &str, before: &Stamp) -> bool {
        std::fs::symlink_metadata(&self.config.file).is_ok_and(|facts| stamp(&facts) == *before)
    }

    async fn fetch(&self, path: &str) -> Result<Document, FetchError> {
        let (source, name) = (self.clone(), path.to_owned());
        match tokio::task::spawn_blocking(move || source.read(&name)).await {
            Ok(read) => read,
            Err(_) => Err(FetchError::unavailable(&self.description(), "the runtime is stopping")),
        }
    }
}
