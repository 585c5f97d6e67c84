//! Following a trail as it is written.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::read::Filter;
use crate::record::Record;

/// Records that may wait for a follower.
pub(crate) const WAITING: usize = 1024;

/// Follows a trail: durable records, in order, from when it was made on. One that is too slow misses records and is told how many;
/// they can be had by [`read`](crate::read).
#[derive(Debug)]
pub struct Follow {
    pub(crate) records: broadcast::Receiver<Arc<Record>>,
    pub(crate) filter: Filter,
}

/// What a follower sees.
#[derive(Debug, Clone)]
pub enum Seen {
    /// A record.
    Record(Arc<Record>),
    /// So many were missed, those that the filter passes over among them.
    Missed(u64),
}

impl Follow {
    /// What comes next; `None` when the trail is closed.
    pub async fn next(&mut self) -> Option<Seen> {
        loop {
            match self.records.recv().await {
                Ok(record) if self.filter.wants_record(&record) => return Some(Seen::Record(record)),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => return Some(Seen::Missed(missed)),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
