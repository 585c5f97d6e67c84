//! The audit trail as the egress service needs it.

use async_trait::async_trait;
use palisade_egress::{Entry, Outcome, TrailError};
use serde::Serialize;

/// Keeps entries in the worker's trail.
#[derive(Debug)]
pub(super) struct Kept(pub(super) palisade_audit::Trail);

/// How what began has ended.
#[derive(Serialize)]
struct End<'a> {
    /// The record with which it began.
    began: u64,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

#[async_trait]
impl palisade_egress::Trail for Kept {
    async fn begin(&self, entry: &Entry) -> Result<u64, TrailError> {
        let session = Some(entry.session.as_str());
        let kept = self.0.append("egress.begin", session, entry).await;
        if entry.alert {
            tracing::warn!(
                target: "alert",
                session = entry.session,
                to = entry.to,
                reason = entry.reason,
                "a credential's placeholder was sent where it does not belong"
            );
        }
        kept.map(Into::into).map_err(|why| TrailError(why.to_string()))
    }

    async fn end(&self, number: u64, outcome: &Outcome) -> Result<(), TrailError> {
        let noted = self.0.note("egress.end", None, End { began: number, outcome }).await;
        noted.map_err(|why| TrailError(why.to_string()))
    }
}
