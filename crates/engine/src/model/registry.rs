//! Which provider serves which model.

use std::sync::Arc;

use super::ModelClient;

/// The window assumed of a model that no provider serves.
const DEFAULT_WINDOW: u32 = 200_000;

/// Providers by model id, by prefix, and one for the rest.
#[derive(Clone, Default)]
pub struct Models {
    exact: Vec<(String, Arc<dyn ModelClient>)>,
    prefixes: Vec<(String, Arc<dyn ModelClient>)>,
    rest: Option<Arc<dyn ModelClient>>,
}

impl Models {
    /// No providers.
    pub fn new() -> Models {
        Models::default()
    }

    /// Serves this model.
    #[must_use]
    pub fn with_model(mut self, id: impl Into<String>, client: Arc<dyn ModelClient>) -> Models {
        self.exact.push((id.into(), client));
        self
    }

    /// Serves models whose id starts so; the longest prefix wins.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>, client: Arc<dyn ModelClient>) -> Models {
        self.prefixes.push((prefix.into(), client));
        self.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        self
    }

    /// Serves every other model.
    #[must_use]
    pub fn with_default(mut self, client: Arc<dyn ModelClient>) -> Models {
        self.rest = Some(client);
        self
    }

    /// The provider of this model.
    pub fn resolve(&self, id: &str) -> Option<Arc<dyn ModelClient>> {
        let exact = self.exact.iter().find(|(name, _)| name == id);
        let prefix = || self.prefixes.iter().find(|(prefix, _)| id.starts_with(prefix.as_str()));
        exact.or_else(prefix).map(|(_, client)| client.clone()).or_else(|| self.rest.clone())
    }

    /// How many tokens this model can hold.
    pub fn context_window(&self, id: &str) -> u32 {
        self.resolve(id).map_or(DEFAULT_WINDOW, |client| client.context_window(id))
    }
}
