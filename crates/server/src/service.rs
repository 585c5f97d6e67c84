//! What the routes share.

use std::sync::Arc;
use std::time::Duration;

use palisade_api::Timestamp;
use palisade_engine::Engine;
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;

use crate::limit::Limiter;
use crate::metrics::HttpMetrics;
use crate::token::Signer;

/// What the routes share.
pub(crate) struct Service {
    pub(crate) engine: Arc<Engine>,
    pub(crate) signer: Signer,
    pub(crate) limiter: Limiter,
    pub(crate) metrics: HttpMetrics,
    pub(crate) max_body: usize,
    pub(crate) ping: Duration,
    pub(crate) rotate: Option<Duration>,
    pub(crate) shutdown: CancellationToken,
    /// Held for reading while a session is made from an agent and an environment, for writing while either is archived or
    /// deleted, so that no session refers to one that is gone.
    pub(crate) catalog: RwLock<()>,
}

impl Service {
    pub(crate) fn now(&self) -> Timestamp {
        self.engine.clock().now()
    }
}
