//! What open streams see: frames, encoded once, handed to every reader of a session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use palisade_api::SessionId;
use serde::Serialize;
use tokio::sync::broadcast;

/// Frames that a slow reader may be behind before it must go back to the log. Small, because a server holds many feeds.
const RING: usize = 64;

/// What a frame is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameKind {
    /// An event of the log, with its sequence number.
    Logged(u64),
    /// A client event that has arrived and is not processed yet.
    Queued,
    /// The start of a preview of the event with this id and type; may be lost.
    PreviewStart(Arc<str>, &'static str),
    /// More of a preview; may be lost.
    PreviewDelta(Arc<str>, &'static str),
    /// The session is gone; the last frame.
    Deleted,
}

/// One server-sent event, ready to be written.
#[derive(Debug, Clone)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// `event: …`, `data: …` and the blank line.
    pub bytes: Bytes,
}

impl Frame {
    /// Encodes a frame whose data is this JSON text.
    pub fn new(kind: FrameKind, name: &str, json: &str) -> Frame {
        let mut text = String::with_capacity(name.len() + json.len() + 16);
        text.push_str("event: ");
        text.push_str(name);
        text.push_str("\ndata: ");
        // JSON text of ours has no line break, so that one data line holds it.
        text.push_str(json);
        text.push_str("\n\n");
        Frame { kind, bytes: Bytes::from(text) }
    }

    /// Encodes a preview.
    pub(crate) fn preview(kind: FrameKind, name: &str, value: &impl Serialize) -> Option<Frame> {
        serde_json::to_string(value).ok().map(|json| Frame::new(kind, name, &json))
    }
}

/// The feeds of all sessions that someone listens to.
#[derive(Debug, Default)]
pub struct Feeds {
    open: Mutex<HashMap<SessionId, broadcast::Sender<Arc<Frame>>>>,
}

impl Feeds {
    /// Listens to a session from now on.
    pub fn subscribe(&self, session: &SessionId) -> broadcast::Receiver<Arc<Frame>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry(session.clone()).or_insert_with(|| broadcast::channel(RING).0).subscribe()
    }

    /// Hands frames to whoever listens.
    pub fn publish(&self, session: &SessionId, frames: impl IntoIterator<Item = Frame>) {
        let sender = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            match open.get(session) {
                Some(sender) if sender.receiver_count() == 0 => {
                    open.remove(session);
                    return;
                }
                Some(sender) => sender.clone(),
                None => return,
            }
        };
        for frame in frames {
            // An error means that the last reader has just left.
            if sender.send(Arc::new(frame)).is_err() {
                return;
            }
        }
    }

    /// Whether anyone listens to the session.
    pub fn is_watched(&self, session: &SessionId) -> bool {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(session)
            .is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// Forgets the sessions that nobody listens to any more.
    pub(crate) fn prune(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, sender| sender.receiver_count() > 0);
    }

    /// Forgets a session; its readers see the end of the feed.
    pub fn close(&self, session: &SessionId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
    }

    /// Ends every feed.
    pub fn close_all(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many readers there are.
    pub fn readers(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).values().map(broadcast::Sender::receiver_count).sum()
    }
}
