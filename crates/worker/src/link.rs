//! The worker's ear: the event stream, its reconnections, and the history that closes every gap.
//!
//! Always in this order: open the stream, then list the history. Whatever happens in between is in both and is dropped
//! by id later; nothing can be in neither. A list that fails is tried again until it works.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::Instant;

use crate::client::{CallError, Client, Credential, EventStream};
use crate::pace::{Backoff, Pace, unit};
use crate::wire::Event;

/// Events per page of history, the most the protocol's clients ask for.
const PAGE: u32 = 1000;
/// Refusals of the history that look permanent, before they are believed.
const REFUSALS: u32 = 8;

type Pending<T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send>>;

/// What the link brings.
pub(crate) enum News {
    /// The whole history up to now, after the stream was opened (again).
    History(Vec<Event>),
    /// An event as it happens.
    Live(Box<Event>),
}

enum State {
    Pause(Instant),
    Opening(Pending<EventStream>),
    Listing(Option<EventStream>, Pending<Vec<Event>>),
    Live(EventStream),
}

/// A session's stream of events that never loses one.
pub(crate) struct Link {
    client: Arc<Client>,
    credential: Arc<Credential>,
    session: Arc<str>,
    pace: Pace,
    backoff: Backoff,
    state: State,
}

impl Link {
    pub(crate) fn new(client: Arc<Client>, credential: Arc<Credential>, session: Arc<str>, pace: &Pace) -> Self {
        let backoff = Backoff::new(pace.reconnect);
        Self { client, credential, session, pace: pace.clone(), backoff, state: State::Pause(Instant::now()) }
    }

    /// The next news. An error means that the control plane refuses the session for good.
    ///
    /// Cancel-safe: whatever is under way is kept in the state and goes on at the next call.
    pub(crate) async fn next(&mut self) -> Result<News, CallError> {
        loop {
            match &mut self.state {
                State::Pause(until) => {
                    tokio::time::sleep_until(*until).await;
                    let (client, credential, session) =
                        (self.client.clone(), self.credential.clone(), self.session.clone());
                    self.state = State::Opening(Box::pin(async move { client.stream(&credential, &session).await }));
                }
                State::Opening(opening) => match opening.await {
                    Ok(stream) => {
                        let history = history(
                            self.client.clone(),
                            self.credential.clone(),
                            self.session.clone(),
                            self.pace.clone(),
                        );
                        self.state = State::Listing(Some(stream), Box::pin(history));
                    }
                    Err(error) if error.is_transient() => self.pause(&error),
                    Err(error) => return Err(error),
                },
                State::Listing(stream, listing) => {
                    let events = listing.await;
                    // Taken before the error is looked at, so that the finished future is never polled again.
                    let stream = stream.take();
                    match (events, stream) {
                        (Ok(events), Some(stream)) => {
                            self.state = State::Live(stream);
                            return Ok(News::History(events));
                        }
                        (Ok(_), None) => self.state = State::Pause(Instant::now()),
                        (Err(error), _) => {
                            self.pause(&error);
                            return Err(error);
                        }
                    }
                }
                State::Live(stream) => match stream.next().await {
                    Ok(event) => {
                        self.backoff.reset();
                        return Ok(News::Live(Box::new(event)));
                    }
                    Err(error) => self.pause(&error),
                },
            }
        }
    }

    fn pause(&mut self, error: &CallError) {
        let delay = self.backoff.delay_after(unit(), error.retry_after());
        tracing::info!(session = &*self.session, %error, retry_ms = delay.as_millis() as u64, "event stream interrupted");
        self.state = State::Pause(Instant::now() + delay);
    }
}

async fn history(
    client: Arc<Client>,
    credential: Arc<Credential>,
    session: Arc<str>,
    pace: Pace,
) -> Result<Vec<Event>, CallError> {
    let mut backoff = Backoff::new(pace.retry);
    let mut refusals = 0;
    let mut limit = PAGE;
    let mut events = Vec::new();
    let mut page: Option<String> = None;
    loop {
        match client.events(&credential, &session, limit, page.as_deref()).await {
            Ok((some, next)) => {
                events.extend(some);
                backoff.reset();
                match next {
                    // A cursor that does not move would be followed for ever.
                    Some(next) if page.as_deref() == Some(next.as_str()) => {
                        return Err(CallError::Shape("the events list repeats a page cursor".into()));
                    }
                    Some(next) => page = Some(next),
                    None => return Ok(events),
                }
            }
            Err(CallError::TooLarge(_)) if limit > 1 => limit = (limit / 4).max(1),
            Err(error) => {
                refusals += u32::from(!error.is_transient());
                let gone = matches!(error.status(), Some(401 | 404 | 410));
                if gone || refusals > REFUSALS {
                    return Err(error);
                }
                let delay = backoff.delay_after(unit(), error.retry_after());
                tracing::warn!(session = &*session, %error, retry_ms = delay.as_millis() as u64, "events list failed; no call is run before it works");
                tokio::time::sleep(delay).await;
            }
        }
    }
}
