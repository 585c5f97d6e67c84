//! Serving one session: events in, tool calls run, results out.
//!
//! One loop decides; tools and posts are tasks that it owns, so the stream is read while they run. Between a call's
//! arrival and its start, and between its end and its post, nothing is waited for.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use palisade_sandbox::ToolUsage;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer;
use crate::client::{CallError, Client, Credential};
use crate::hands::Hands;
use crate::journal::{Journal, Opened, Trace};
use crate::lease::Lease;
use crate::ledger::{Call, Ledger, SessionEnd};
use crate::link::{Link, News};
use crate::observe::Observation;
use crate::pace::{Backoff, Pace, unit};
use crate::wire::Event;
use crate::worker::Slot;

/// How much longer than its own limit a tool is waited for, so that the sandbox's own message about it comes first.
const OVERRUN: Duration = Duration::from_secs(20);

/// A record survives the worker's end from the moment it is written. It is forced to the disk, to survive the machine's,
/// only when what it is about lasts longer than this: most calls and posts are over before the disk has answered.
const MOMENT: Duration = Duration::from_millis(3);

/// Why the worker is done with the session.
#[derive(Debug)]
pub(crate) enum End {
    Idle,
    Session(SessionEnd),
    Lease(Lease),
    /// Asked to end: by the control plane (`stopping`) or by this process's shutdown.
    Asked,
    Refused(CallError),
}

/// What serving a session needs.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Arc<Client>,
    pub(crate) credential: Arc<Credential>,
    pub(crate) session: Arc<str>,
    pub(crate) hands: Arc<Hands>,
    pub(crate) journal: Journal,
    pub(crate) pace: Pace,
    pub(crate) tool_timeout: Duration,
    pub(crate) max_idle: Duration,
    pub(crate) grace: Duration,
    pub(crate) observe: Arc<dyn Fn(Observation) + Send + Sync>,
}

struct Finished {
    event: String,
    is_error: bool,
    took: Duration,
    usage: Option<ToolUsage>,
    /// The call has effects: its result is recorded before it is posted.
    record: bool,
}

enum Posted {
    Accepted,
    /// Refused for good, and so was the replacement.
    Refused(CallError),
    /// Not delivered within its time; tried again when the connection is new.
    Undelivered,
}

struct Running {
    abort: AbortHandle,
    call: String,
    tool: String,
    read: bool,
}

struct Service {
    context: Context,
    ledger: Ledger,
    traces: HashMap<String, Trace>,
    damaged: bool,
    /// Calls that have a record which is to be settled when the control plane has their answer.
    recorded: HashSet<String>,
    /// Results that the control plane has not taken yet.
    unsent: HashMap<String, Arc<str>>,
    tools: JoinSet<Finished>,
    running: HashMap<Id, Running>,
    posts: JoinSet<(String, Posted)>,
    posting: HashSet<String>,
}

/// Serves the session until there is a reason to end. Cancelling it kills what runs.
pub(crate) async fn serve(
    context: Context,
    ledger: Ledger,
    opened: (HashMap<String, Trace>, bool),
    mut lease: watch::Receiver<Lease>,
    slot: &mut Slot,
    shutdown: CancellationToken,
) -> End {
    let (traces, damaged) = opened;
    let mut link =
        Link::new(context.client.clone(), context.credential.clone(), context.session.clone(), &context.pace);
    let (max_idle, grace) = (context.max_idle, context.grace);
    let mut service = Service {
        context,
        ledger,
        recorded: traces.keys().cloned().collect(),
        traces,
        damaged,
        unsent: HashMap::new(),
        tools: JoinSet::new(),
        running: HashMap::new(),
        posts: JoinSet::new(),
        posting: HashSet::new(),
    };
    let mut idle_since: Option<Instant> = None;
    let mut listening = true;
    // Once set no call is started any more: what runs is brought to its end.
    let mut draining = false;
    let mut kill_at: Option<Instant> = None;
    let mut killed = false;
    let mut leave_at: Option<Instant> = None;
    loop {
        service.cancel();
        let held = *lease.borrow_and_update();
        match held {
            Lease::Lost | Lease::Over => return End::Lease(held),
            Lease::Stopping => draining = true,
            Lease::Held if !draining && !shutdown.is_cancelled() => service.start(),
            Lease::Held | Lease::Claiming => {}
        }
        if let Some(end) = service.ledger.end() {
            return End::Session(end);
        }
        if draining && service.tools.is_empty() && service.posts.is_empty() {
            return End::Asked;
        }
        if service.ledger.may_leave() && !max_idle.is_zero() {
            idle_since.get_or_insert_with(Instant::now);
            slot.give_up();
        } else {
            idle_since = None;
            slot.regain();
        }
        tokio::select! {
            biased;
            Some(done) = service.tools.join_next_with_id() => service.tool_done(done),
            Some(posted) = service.posts.join_next() => service.posted(posted),
            news = link.next(), if listening => match news {
                Ok(News::Live(event)) => service.live(*event),
                Ok(News::History(events)) => service.history(events),
                Err(error) if draining || service.busy() => {
                    // What runs may still be answered, whatever the stream says.
                    tracing::warn!(session = &*service.context.session, %error, "event stream refused; finishing what runs");
                    (listening, draining) = (false, true);
                }
                Err(error) => return End::Refused(error),
            },
            changed = lease.changed() => if changed.is_err() {
                return End::Lease(Lease::Lost);
            },
            () = shutdown.cancelled(), if kill_at.is_none() => {
                draining = true;
                let now = Instant::now();
                // Part of the grace is kept for telling the control plane.
                kill_at = Some(now + grace.mul_f64(0.8));
                leave_at = Some(now + grace);
            }
            () = at(kill_at), if !killed => {
                killed = true;
                service.kill();
            }
            () = at(leave_at) => return End::Asked,
            () = at(idle_since.map(|since| since + max_idle)) => {
                if !service.context.hands.is_frozen() {
                    return End::Idle;
                }
                // An end would be one of what was paused. It is looked at again.
                idle_since = Some(Instant::now());
            }
        }
    }
}

/// Waits until then; for ever without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Service {
    fn busy(&self) -> bool {
        !self.tools.is_empty() || !self.posts.is_empty()
    }

    fn observe(&self, observation: Observation) {
        (self.context.observe)(observation);
    }

    fn live(&mut self, event: Event) {
        let answered = event.tool_use_id.clone();
        if self.ledger.apply(event)
            && let Some(call) = answered
            && self.ledger.is_answered(&call)
        {
            self.settled(&call);
        }
    }

    fn history(&mut self, events: Vec<Event>) {
        for event in events {
            self.ledger.apply(event);
        }
        let known: Vec<String> = self.recorded.iter().chain(self.unsent.keys()).cloned().collect();
        for call in known {
            if self.ledger.is_answered(&call) {
                self.settled(&call);
            }
        }
        // A result that could not be delivered is delivered now, not computed again.
        let waiting = self.unsent.iter().filter(|(call, _)| !self.posting.contains(*call));
        let again: Vec<_> = waiting.map(|(call, event)| (call.clone(), event.clone())).collect();
        for (call, event) in again {
            self.post(call, event, false);
        }
    }

    /// The control plane has an answer to the call, ours or another's.
    fn settled(&mut self, call: &str) {
        if !self.posting.contains(call) {
            self.unsent.remove(call);
            self.ledger.settle(call);
        }
        self.traces.remove(call);
        if self.recorded.remove(call)
            && let Err(error) = self.context.journal.settled(call)
        {
            tracing::warn!(session = &*self.context.session, call, %error, "could not note that a result was accepted");
        }
    }

    fn cancel(&mut self) {
        for call in self.ledger.take_cancelled() {
            if let Some(running) = self.running.values().find(|running| running.call == call) {
                running.abort.abort();
                tracing::info!(session = &*self.context.session, call, "running call cancelled");
                self.observe(Observation::CallCancelled { session: self.context.session.to_string(), call });
            }
        }
    }

    /// Ends what still runs when the grace is over, and says so: the effects are there, in part, and a call that began
    /// must not be begun again by the next worker.
    fn kill(&mut self) {
        let running: Vec<_> = self.running.values().filter(|running| !running.abort.is_finished()).collect();
        let mut killed = Vec::new();
        for running in running {
            running.abort.abort();
            killed.push((running.call.clone(), running.tool.clone(), running.read));
        }
        for (call, tool, read) in killed {
            tracing::warn!(session = &*self.context.session, call, tool, "call stopped: it outlasted the grace");
            // A read has no effects; it is left to the next worker.
            if !read && self.ledger.tool_done(&call) {
                let effect = if self.context.hands.would_be_undone(&call) {
                    "The workspace is returned to its state before the call.".to_owned()
                } else {
                    format!("{tool} may have had part of its effects.")
                };
                let text =
                    format!("The call was stopped before it finished because the worker is shutting down. {effect}");
                let event = answer::error_event(&call, &text);
                note(&self.context, &call, &event);
                self.finish(call, event, true);
            }
        }
    }

    fn start(&mut self) {
        for (call, tool) in self.ledger.take_held() {
            tracing::info!(session = &*self.context.session, call, tool, "call held until it is confirmed");
            self.observe(Observation::CallHeld { session: self.context.session.to_string(), call, tool });
        }
        // A call that is answered from memory makes room for the next at once.
        loop {
            let calls = self.ledger.startable();
            if calls.is_empty() {
                return;
            }
            for call in calls {
                self.begin(call);
            }
        }
    }

    fn begin(&mut self, call: Call) {
        let unknown = self.damaged && !call.is_read();
        match self.traces.remove(&call.id) {
            Some(Trace::Finished(event)) => {
                tracing::info!(
                    session = &*self.context.session,
                    call = call.id,
                    "posting the recorded result of an earlier run"
                );
                self.ledger.tool_done(&call.id);
                self.unsent.insert(call.id.clone(), event.into());
                let event = self.unsent[&call.id].clone();
                self.post(call.id, event, false);
                return;
            }
            Some(Trace::Started) => return self.unknown_end(call),
            None if unknown => return self.unknown_end(call),
            None => {}
        }
        tracing::info!(session = &*self.context.session, call = call.id, tool = call.name, "executing tool");
        self.observe(Observation::CallStarted {
            session: self.context.session.to_string(),
            call: call.id.clone(),
            tool: call.name.clone(),
        });
        let (id, tool, read) = (call.id.clone(), call.name.clone(), call.is_read());
        if !read {
            self.recorded.insert(id.clone());
        }
        let abort = self.tools.spawn(run(self.context.clone(), call));
        self.running.insert(abort.id(), Running { abort, call: id, tool, read });
    }

    /// At most once: a call that began in an earlier life of the worker and left no result is answered, not repeated.
    fn unknown_end(&mut self, call: Call) {
        tracing::warn!(
            session = &*self.context.session,
            call = call.id,
            tool = call.name,
            "call was begun before the worker restarted; not run again"
        );
        let effect = if self.context.hands.was_undone(&call.id) {
            "The workspace was returned to its state before the call, and it was not run again."
        } else {
            "Whether and how far it took effect is unknown; it was not run again. Check the state before repeating it."
        };
        let text = format!("The worker was restarted while this {} call ran. {effect}", call.name);
        let event = answer::error_event(&call.id, &text);
        note(&self.context, &call.id, &event);
        self.ledger.tool_done(&call.id);
        self.recorded.insert(call.id.clone());
        self.finish(call.id, event, true);
    }

    fn tool_done(&mut self, done: Result<(Id, Finished), JoinError>) {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(Running { call, tool, read, .. }) = self.running.remove(&id) else { return };
        let finished = match done {
            Ok((_, finished)) => finished,
            Err(error) if error.is_cancelled() => return,
            Err(error) => {
                tracing::error!(session = &*self.context.session, call, tool, %error, "a tool call broke the worker's code");
                let event =
                    answer::error_event(&call, "The worker failed while it ran the call; its effects are unknown.");
                if !read {
                    note(&self.context, &call, &event);
                }
                Finished { event, is_error: true, took: Duration::ZERO, usage: None, record: !read }
            }
        };
        if !self.ledger.tool_done(&call) {
            return;
        }
        self.observe(Observation::CallFinished {
            session: self.context.session.to_string(),
            call: call.clone(),
            tool,
            took: finished.took,
            is_error: finished.is_error,
            usage: finished.usage,
        });
        self.finish(call, finished.event, finished.record);
    }

    fn finish(&mut self, call: String, event: String, record: bool) {
        let event: Arc<str> = event.into();
        self.unsent.insert(call.clone(), event.clone());
        self.post(call, event, record);
    }

    fn post(&mut self, call: String, event: Arc<str>, record: bool) {
        self.posting.insert(call.clone());
        self.posts.spawn(post(self.context.clone(), call, event, record));
    }

    fn posted(&mut self, posted: Result<(String, Posted), JoinError>) {
        let (call, posted) = match posted {
            Ok(posted) => posted,
            Err(error) => {
                tracing::error!(session = &*self.context.session, %error, "posting a result broke the worker's code");
                return;
            }
        };
        self.posting.remove(&call);
        match posted {
            Posted::Accepted => {
                self.settled(&call);
                self.observe(Observation::ResultPosted { session: self.context.session.to_string(), call });
            }
            Posted::Undelivered if !self.ledger.is_answered(&call) => {}
            Posted::Undelivered => self.settled(&call),
            Posted::Refused(_) if self.ledger.is_answered(&call) => self.settled(&call),
            Posted::Refused(error) => {
                tracing::error!(session = &*self.context.session, call, %error, "result refused for good; the call stays unanswered");
                self.unsent.remove(&call);
                self.ledger.settle(&call);
                let reason = error.to_string();
                self.observe(Observation::ResultRefused { session: self.context.session.to_string(), call, reason });
            }
        }
    }
}

/// Runs one call in the sandbox. Never fails: what goes wrong becomes the result.
async fn run(context: Context, call: Call) -> Finished {
    let record = !call.is_read();
    if record && let Err(error) = context.journal.started(&call.id) {
        tracing::error!(session = &*context.session, call = call.id, %error, "call not run: it could not be recorded");
        let text = "The call was not run: the worker could not record it (its state directory cannot be written).";
        let event = answer::error_event(&call.id, text);
        return Finished { event, is_error: true, took: Duration::ZERO, usage: None, record: false };
    }
    let began = Instant::now();
    let limit = context.tool_timeout + OVERRUN;
    let tool = context.hands.within(limit, context.hands.run(&call, context.tool_timeout));
    let outcome = if record { alongside(tool, force(&context)).await } else { tool.await };
    let mut usage = None;
    let (event, is_error) = match outcome {
        Some(Ok(output)) => {
            usage = Some(output.usage);
            (answer::result_event(&call.id, output.content, output.is_error), output.is_error)
        }
        Some(Err(text)) => (answer::error_event(&call.id, &text), true),
        None => (answer::error_event(&call.id, &format!("tool '{}' timed out", call.name)), true),
    };
    let took = began.elapsed();
    tracing::info!(
        session = &*context.session,
        call = call.id,
        tool = call.name,
        is_error,
        took_us = took.as_micros() as u64,
        cpu_us = usage.and_then(|usage| usage.cpu).map(|cpu| cpu.as_micros() as u64),
        "tool finished"
    );
    if record {
        note(&context, &call.id, &event);
        // The call runs until this is done: the next one would take what is not kept yet for what was cut off.
        context.hands.keep(&call.id).await;
    }
    Finished { event, is_error, took, usage, record }
}

/// Has the journal know a call's result.
fn note(context: &Context, call: &str, event: &str) {
    if let Err(error) = context.journal.result(call, event) {
        tracing::warn!(session = &*context.session, call, %error, "result could not be recorded; posting it all the same");
    }
}

/// Posts one result until it is accepted, refused for good, or out of time. A recorded result is in the journal before it
/// leaves; what the control plane accepts is in its history and needs no disk of ours.
async fn post(context: Context, call: String, event: Arc<str>, record: bool) -> (String, Posted) {
    if !record {
        let posted = deliver(&context, &call, &event).await;
        return (call, posted);
    }
    let posted = alongside(deliver(&context, &call, &event), force(&context)).await;
    (call, posted)
}

/// Forces the journal to the disk after a moment.
async fn force(context: &Context) {
    tokio::time::sleep(MOMENT).await;
    if let Err(error) = context.journal.sync().await {
        tracing::warn!(session = &*context.session, %error, "the journal could not be forced to the disk");
    }
}

/// Waits for the first, and drives the second until then.
async fn alongside<T>(first: impl Future<Output = T>, second: impl Future<Output = ()>) -> T {
    let (mut first, second) = (pin!(first), pin!(second));
    tokio::select! {
        biased;
        value = &mut first => value,
        () = second => first.await,
    }
}

async fn deliver(context: &Context, call: &str, event: &str) -> Posted {
    let mut body = Bytes::from(answer::request(event));
    let mut replaced = false;
    let mut backoff = Backoff::new(context.pace.retry);
    let until = Instant::now() + context.pace.send_for;
    loop {
        let error = match context.client.post_events(&context.credential, &context.session, body.clone()).await {
            Ok(()) => return Posted::Accepted,
            Err(error) => error,
        };
        if matches!(error, CallError::TooLarge(_)) {
            // The status was a success; what came with it does not matter here.
            return Posted::Accepted;
        }
        if !error.is_transient() {
            if replaced || error.status() == Some(401) {
                return Posted::Refused(error);
            }
            tracing::warn!(session = &*context.session, call, %error, "result refused; posting an error result in its place");
            let text = format!("The call ran, but its result could not be delivered. {error}");
            body = Bytes::from(answer::request(&answer::error_event(call, &text)));
            replaced = true;
            continue;
        }
        let delay = backoff.delay_after(unit(), error.retry_after());
        if Instant::now() + delay > until {
            tracing::error!(session = &*context.session, call, %error, "result not delivered in time; kept for the next connection");
            return Posted::Undelivered;
        }
        tracing::warn!(session = &*context.session, call, %error, retry_ms = delay.as_millis() as u64, "result not delivered; trying again");
        tokio::time::sleep(delay).await;
    }
}

/// The parts of an opened journal that serving needs.
pub(crate) fn split(opened: Opened) -> (Journal, (HashMap<String, Trace>, bool)) {
    (opened.journal, (opened.traces, opened.damaged))
}
