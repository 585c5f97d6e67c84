//! Variables of the worker's own environment, those that the configuration names and no others.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use crate::error::FetchError;
use crate::source::{Content, Document, Source};
use crate::surroundings::Surroundings;

/// `env:`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvConfig {
    /// The variables that references may name. The worker's own keys are in its environment too, so none is open by default.
    pub variables: BTreeSet<String>,
}

#[derive(Debug)]
pub(crate) struct Env {
    variables: BTreeSet<String>,
    surroundings: Surroundings,
}

impl Env {
    pub(crate) fn new(config: EnvConfig, surroundings: Surroundings) -> Self {
        Self { variables: config.variables, surroundings }
    }
}

#[async_trait]
impl Source for Env {
    fn description(&self) -> String {
        "the worker's environment".to_owned()
    }

    // A process's environment does not change from outside; asking again costs nothing.
    fn keep(&self) -> Duration {
        Duration::ZERO
    }

    async fn fetch(&self, path: &str) -> Result<Document, FetchError> {
        if !self.variables.contains(path) {
            let why =
                format!("the variable `{path}` is not open to references; add it to `env.variables` if it may be");
            return Err(FetchError::denied(&self.description(), why));
        }
        let value = self.surroundings.secret(path).map_err(|why| FetchError::not_found(&self.description(), why))?;
        Ok(Document::plain(Content::single(value)))
    }
}
