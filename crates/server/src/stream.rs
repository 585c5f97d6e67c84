//! One open event stream: a body that is polled, without a task or a buffer of its own.
//!
//! A stream shows what is committed from the moment it was opened. A reader that falls behind the feed goes back to the log by
//! sequence number, so that it sees every logged event once and in order; previews may be lost.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame as BodyFrame;
use palisade_api::SessionId;
use palisade_core::batch::LogEntry;
use palisade_engine::{Frame, FrameKind, Subscription};
use palisade_store::{EventQuery, Store, StoreError};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream as _;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

const PING: &[u8] = b"event: ping\ndata: {\"type\": \"ping\"}\n\n";
/// Events read at once when a reader catches up. Small, because many may do so at the same time.
const CATCH_UP: usize = 64;
/// Previews of one connection that are remembered.
const PREVIEWS: usize = 32;

type Reading = Pin<Box<dyn Future<Output = Result<Vec<LogEntry>, StoreError>> + Send>>;

/// What previews a connection has asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Previews {
    pub(crate) message: bool,
    pub(crate) thinking: bool,
}

impl Previews {
    fn wants(self, kind: &str) -> bool {
        match kind {
            "agent.message" => self.message,
            "agent.thinking" => self.thinking,
            _ => false,
        }
    }
}

/// When a stream says something although nothing happens, and when it ends.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    pub(crate) ping: Duration,
    pub(crate) end: Option<Duration>,
    pub(crate) shutdown: CancellationToken,
}

/// The body of an event stream.
pub(crate) struct EventStream {
    store: Arc<dyn Store>,
    session: SessionId,
    /// None once the last frame has been given.
    feed: Option<BroadcastStream<Arc<Frame>>>,
    /// The last event that was written, or the log's tail when the stream was opened.
    seq: u64,
    previews: Previews,
    started: Vec<Arc<str>>,
    reading: Option<Reading>,
    ready: VecDeque<Bytes>,
    ping: Duration,
    timer: Pin<Box<Sleep>>,
    end: Option<Instant>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl EventStream {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        session: SessionId,
        subscription: Subscription,
        previews: Previews,
        pace: Pace,
    ) -> EventStream {
        EventStream {
            store,
            session,
            feed: Some(BroadcastStream::new(subscription.frames)),
            seq: subscription.tail,
            previews,
            started: Vec::new(),
            reading: None,
            ready: VecDeque::new(),
            ping: pace.ping,
            timer: Box::pin(tokio::time::sleep(pace.ping)),
            end: pace.end.map(|after| Instant::now() + after),
            shutdown: Box::pin(pace.shutdown.cancelled_owned()),
        }
    }

    /// What of a frame this connection is to see.
    fn take(&mut self, frame: &Frame) -> Option<Bytes> {
        match &frame.kind {
            FrameKind::Logged(seq) if *seq <= self.seq => None,
            FrameKind::Logged(seq) => {
                self.seq = *seq;
                Some(frame.bytes.clone())
            }
            FrameKind::Queued => Some(frame.bytes.clone()),
            FrameKind::PreviewStart(id, kind) => {
                if !self.previews.wants(kind) || self.started.contains(id) {
                    return None;
                }
                if self.started.len() == PREVIEWS {
                    self.started.remove(0);
                }
                self.started.push(id.clone());
                Some(frame.bytes.clone())
            }
            // Clients fail on a fragment whose start they have not seen.
            FrameKind::PreviewDelta(id, kind) => {
                (self.previews.wants(kind) && self.started.contains(id)).then(|| frame.bytes.clone())
            }
            FrameKind::Deleted => {
                self.feed = None;
                Some(frame.bytes.clone())
            }
        }
    }

    fn read_on(&mut self) {
        let store = self.store.clone();
        let mut query = EventQuery::all(self.session.clone(), CATCH_UP);
        query.after = Some(self.seq);
        self.reading = Some(Box::pin(async move { store.events(&query).await }));
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(bytes));
            }
            if let Some(reading) = &mut self.reading {
                let Poll::Ready(read) = reading.as_mut().poll(cx) else { break };
                self.reading = None;
                match read {
                    Ok(entries) => {
                        for entry in &entries {
                            self.seq = entry.seq;
                            let frame = Frame::new(FrameKind::Logged(entry.seq), &entry.kind, &entry.body);
                            self.ready.push_back(frame.bytes);
                        }
                        if entries.len() == CATCH_UP {
                            self.read_on();
                        }
                    }
                    // A clean end makes the client come back and list, which no half-told story would.
                    Err(why) => {
                        tracing::warn!(session = %self.session, error = %why, "a stream could not catch up and is ended");
                        self.feed = None;
                    }
                }
                continue;
            }
            let Some(feed) = &mut self.feed else { return Poll::Ready(None) };
            match Pin::new(feed).poll_next(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(bytes) = self.take(&frame) {
                        return Poll::Ready(Some(bytes));
                    }
                }
                Poll::Ready(Some(Err(BroadcastStreamRecvError::Lagged(_)))) => {
                    // What was missed may hold fragments: those that follow would not join up.
                    self.started.clear();
                    self.read_on();
                }
                Poll::Ready(None) => self.feed = None,
                Poll::Pending => break,
            }
        }
        if self.shutdown.as_mut().poll(cx).is_ready() {
            self.feed = None;
            self.reading = None;
            return Poll::Ready(None);
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.end.is_some_and(|end| end <= now) {
                self.feed = None;
                return Poll::Ready(None);
            }
            self.timer.as_mut().reset(now + self.ping);
            // Registers the timer's new deadline.
            let _ = self.timer.as_mut().poll(cx);
            return Poll::Ready(Some(Bytes::from_static(PING)));
        }
        Poll::Pending
    }
}

impl http_body::Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        self.get_mut().next(cx).map(|bytes| bytes.map(|bytes| Ok(BodyFrame::data(bytes))))
    }
}
