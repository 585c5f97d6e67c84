//! Bodies on their way: counted, limited, and looked through, one piece at a time.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::evidence::Open;
use super::fault::Fault;
use super::pool::{Key, Line};
use super::session::Shared;
use crate::broker::{Replacer, Scan};
use crate::policy::{Meter, Reason, Refusal, RuleName};

/// A body that is not carried to its end.
type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What the two directions of one exchange know of each other.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Bytes of the request's body that went out.
    pub(super) sent: AtomicU64,
    /// Whether the request went out to its end.
    pub(super) ended: AtomicBool,
    /// Why the request was not carried to its end.
    pub(super) fault: OnceLock<Fault>,
}

/// Gives up on what does not move.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    /// Made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Patience {
    fn new(limit: Duration) -> Patience {
        Patience { limit, timer: None, waiting: false }
    }

    fn moved(&mut self) {
        self.waiting = false;
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.limit)));
        if !self.waiting {
            timer.as_mut().reset(Instant::now() + self.limit);
            self.waiting = true;
        }
        timer.as_mut().poll(cx)
    }
}

/// The body of a request on its way out.
#[derive(Debug)]
pub(super) struct Upload(Source);

#[derive(Debug)]
enum Source {
    Empty,
    Whole(Option<Bytes>),
    Stream(Box<Uploading>),
}

#[derive(Debug)]
pub(super) struct Uploading {
    /// What was already read, to decide.
    pub(super) first: Option<Bytes>,
    pub(super) inner: Incoming,
    pub(super) replacer: Option<Replacer>,
    /// The most bytes that it may have, and the rule that says so.
    pub(super) most: Option<(u64, RuleName)>,
    pub(super) meter: Meter,
    pub(super) flow: Arc<Flow>,
    read: u64,
    last: Option<HeaderMap>,
    over: bool,
    patience: Patience,
}

impl Uploading {
    pub(super) fn new(inner: Incoming, flow: Arc<Flow>, meter: Meter, patience: Duration) -> Uploading {
        Uploading {
            first: None,
            inner,
            replacer: None,
            most: None,
            meter,
            flow,
            read: 0,
            last: None,
            over: false,
            patience: Patience::new(patience),
        }
    }

    fn stop(&mut self, fault: Fault) -> BodyError {
        self.over = true;
        let _ = self.flow.fault.set(fault.clone());
        fault.into()
    }

    /// The next piece as it came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.patience.moved();
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                ready!(self.patience.poll_expired(cx));
                let seconds = self.patience.limit.as_secs();
                let message =
                    format!("nothing more of the request came for {seconds} s. Send it again, without pausing");
                let fault = Fault::failed(http::StatusCode::REQUEST_TIMEOUT, "request_timeout", message);
                Poll::Ready(Some(Err(self.stop(fault))))
            }
        }
    }

    fn take(&mut self, bytes: Bytes) -> Result<Bytes, Fault> {
        self.read += bytes.len() as u64;
        if let Some((most, rule)) = &self.most
            && self.read > *most
        {
            return Err(too_large(*most, rule).into());
        }
        let bytes = match &mut self.replacer {
            Some(replacer) => replacer.push(bytes)?,
            None => bytes,
        };
        self.pass(&bytes)?;
        Ok(bytes)
    }

    fn pass(&mut self, bytes: &Bytes) -> Result<(), Fault> {
        self.meter.bytes(bytes.len() as u64)?;
        self.flow.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if let Some(trailers) = self.last.take() {
                self.end();
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if self.over {
                return Poll::Ready(None);
            }
            let trailers = match ready!(self.poll_read(cx)) {
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => match self.take(bytes) {
                        Ok(bytes) if bytes.is_empty() => continue,
                        Ok(bytes) => {
                            if self.replacer.is_none() && self.first.is_none() && self.inner.is_end_stream() {
                                self.end();
                            }
                            return Poll::Ready(Some(Ok(Frame::data(bytes))));
                        }
                        Err(fault) => return Poll::Ready(Some(Err(self.stop(fault)))),
                    },
                    Err(frame) => frame.into_trailers().ok(),
                },
                None => None,
            };
            // Its end, and perhaps bytes that were held back.
            if let Some(mut replacer) = self.replacer.take() {
                let checked = match &trailers {
                    Some(trailers) => replacer.trailers(trailers),
                    None => Ok(()),
                };
                let rest = checked.and_then(|()| replacer.finish()).map_err(Fault::from);
                match rest.and_then(|rest| self.pass(&rest).map(|()| rest)) {
                    Ok(rest) if rest.is_empty() => {}
                    Ok(rest) => {
                        self.last = trailers;
                        if self.last.is_none() {
                            self.end();
                        }
                        return Poll::Ready(Some(Ok(Frame::data(rest))));
                    }
                    Err(fault) => return Poll::Ready(Some(Err(self.stop(fault)))),
                }
            }
            if trailers.is_some() {
                self.last = trailers;
                continue;
            }
            self.end();
        }
    }

    fn end(&mut self) {
        self.over = true;
        self.flow.ended.store(true, Ordering::Relaxed);
    }
}

/// The refusal of a body that is longer than its rule allows.
pub(super) fn too_large(most: u64, rule: &RuleName) -> Refusal {
    let message = format!(
        "refused by the egress policy: rule `{rule}` allows requests of at most {most} bytes. Send less; what would help otherwise: \
         a higher max_request_bytes"
    );
    Refusal::new(Reason::TooLarge, Some(rule.clone()), message)
}

impl Upload {
    pub(super) fn empty() -> Upload {
        Upload(Source::Empty)
    }

    pub(super) fn whole(bytes: Bytes) -> Upload {
        Upload(Source::Whole(Some(bytes)))
    }

    pub(super) fn stream(uploading: Uploading) -> Upload {
        Upload(Source::Stream(Box::new(uploading)))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Source::Empty => Poll::Ready(None),
            Source::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Stream(uploading) => uploading.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Empty => true,
            Source::Whole(bytes) => bytes.is_none(),
            Source::Stream(uploading) => uploading.over && uploading.last.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Empty => SizeHint::with_exact(0),
            Source::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            // What is replaced may be longer or shorter.
            Source::Stream(uploading) if uploading.replacer.as_ref().is_some_and(Replacer::changes_length) => {
                SizeHint::new()
            }
            Source::Stream(uploading) => {
                let first = uploading.first.as_ref().map_or(0, Bytes::len) as u64;
                uploading
                    .inner
                    .size_hint()
                    .exact()
                    .map_or_else(SizeHint::new, |rest| SizeHint::with_exact(rest + first))
            }
        }
    }
}

/// A connection to the outside that goes back among the idle ones when the exchange on it has ended well.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) shared: Arc<Shared>,
    pub(super) key: Key,
    pub(super) line: Line,
}

/// The body of an answer on its way in.
#[derive(Debug)]
pub(super) struct Answer(Content);

#[derive(Debug)]
enum Content {
    Empty,
    Whole(Option<Bytes>),
    Upstream(Box<Passing>),
}

/// An answer that comes from an upstream.
#[derive(Debug)]
pub(super) struct Passing {
    pub(super) inner: Incoming,
    pub(super) scan: Option<Scan>,
    pub(super) meter: Meter,
    pub(super) flow: Arc<Flow>,
    pub(super) open: Open,
    pub(super) lease: Option<Lease>,
    last: Option<HeaderMap>,
    over: bool,
    patience: Patience,
}

impl Passing {
    pub(super) fn new(
        inner: Incoming,
        (open, flow, meter): (Open, Arc<Flow>, Meter),
        scan: Option<Scan>,
        lease: Option<Lease>,
        patience: Duration,
    ) -> Passing {
        Passing { inner, scan, meter, flow, open, lease, last: None, over: false, patience: Patience::new(patience) }
    }

    fn stop(&mut self, fault: Fault) -> BodyError {
        self.over = true;
        self.lease = None;
        self.open.fail(&fault);
        fault.into()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if self.over {
                return Poll::Ready(self.last.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            // What was fed is given out before more is read.
            match self.scan.as_mut().map(Scan::next) {
                Some(Ok(Some(bytes))) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Err(misuse)) => return Poll::Ready(Some(Err(self.stop(misuse.into())))),
                Some(Ok(None)) | None => {}
            }
            let trailers = match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Pending => {
                    ready!(self.patience.poll_expired(cx));
                    let seconds = self.patience.limit.as_secs();
                    let message = format!("nothing more of the answer came for {seconds} s");
                    let fault = Fault::failed(http::StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message);
                    return Poll::Ready(Some(Err(self.stop(fault))));
                }
                Poll::Ready(Some(Err(error))) => {
                    let fault = self.flow.fault.get().cloned().unwrap_or_else(|| {
                        let message = format!("the upstream broke its answer off: {error}");
                        Fault::failed(http::StatusCode::BAD_GATEWAY, "upstream_reset", message)
                    });
                    return Poll::Ready(Some(Err(self.stop(fault))));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    self.patience.moved();
                    match frame.into_data() {
                        Ok(bytes) => {
                            self.open.outcome.received += bytes.len() as u64;
                            if let Err(refusal) = self.meter.bytes(bytes.len() as u64) {
                                return Poll::Ready(Some(Err(self.stop(refusal.into()))));
                            }
                            match &mut self.scan {
                                Some(scan) => scan.feed(bytes),
                                None => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                            }
                            continue;
                        }
                        Err(frame) => frame.into_trailers().ok(),
                    }
                }
                Poll::Ready(None) => None,
            };
            self.last = trailers;
            let rest = match &mut self.scan {
                None => Bytes::new(),
                Some(scan) => match scan.finish() {
                    Err(misuse) => return Poll::Ready(Some(Err(self.stop(misuse.into())))),
                    Ok(rest) => {
                        if let Some(trailers) = &mut self.last {
                            scan.trailers(trailers);
                        }
                        rest
                    }
                },
            };
            self.end();
            if !rest.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(rest))));
            }
        }
    }

    fn end(&mut self) {
        self.over = true;
        self.open.outcome.error = None;
        self.give_back();
    }

    fn give_back(&mut self) {
        if let Some(Lease { shared, key, line }) = self.lease.take()
            && self.flow.ended.load(Ordering::Relaxed)
        {
            shared.pool.give(key, line);
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // A server that knows the length does not ask for the end.
        if !self.over && self.scan.is_none() && self.inner.is_end_stream() {
            self.end();
        }
        if self.open.outcome.error.is_none()
            && let Some(fault) = self.flow.fault.get()
        {
            // The upstream had answered before it was found.
            self.open.fail(fault);
        }
        self.open.outcome.redacted += self.scan.as_ref().map_or(0, Scan::found);
        self.open.outcome.sent = self.flow.sent.load(Ordering::Relaxed);
    }
}

impl Answer {
    pub(super) fn empty() -> Answer {
        Answer(Content::Empty)
    }

    pub(super) fn whole(bytes: Bytes) -> Answer {
        Answer(Content::Whole(Some(bytes)))
    }

    pub(super) fn passing(passing: Passing) -> Answer {
        Answer(Content::Upstream(Box::new(passing)))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Content::Empty => Poll::Ready(None),
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Upstream(passing) => passing.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Empty => true,
            Content::Whole(bytes) => bytes.is_none(),
            Content::Upstream(passing) => {
                passing.last.is_none() && (passing.over || (passing.scan.is_none() && passing.inner.is_end_stream()))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Empty => SizeHint::with_exact(0),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Content::Upstream(passing) if passing.scan.is_some() => SizeHint::new(),
            Content::Upstream(passing) => passing.inner.size_hint(),
        }
    }
}
