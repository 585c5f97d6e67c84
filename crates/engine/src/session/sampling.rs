//! A model request under way: previews as they come, then the whole reply.

use std::sync::Arc;

use futures::StreamExt;
use palisade_api::{EventId, Session};
use palisade_core::session::{Ended, Failure, FailureKind, Part, PartContent, Purpose, Reply, TokenUse};
use palisade_store::{EventQuery, Order, StoreError};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::clock::random_bytes;
use crate::feed::{Frame, FrameKind};
use crate::model::{BlockKind, ModelError, ModelErrorKind, ModelEvent, StopReason};
use crate::{Shared, context};

/// What comes out of a request.
pub(crate) enum Step {
    Preview(Frame),
    Completed(EventId, Reply),
    Failed(EventId, Failure),
}

/// A running request; dropping it without [`Sampling::stop`] aborts it too.
pub(crate) struct Sampling {
    steps: mpsc::Receiver<Step>,
    task: JoinHandle<()>,
    request: EventId,
}

impl Drop for Sampling {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sampling {
    pub(crate) fn start(shared: &Arc<Shared>, session: &Session, request: EventId, purpose: Purpose) -> Sampling {
        let (sender, steps) = mpsc::channel(64);
        let task = {
            let (shared, session, request) = (shared.clone(), session.clone(), request.clone());
            tokio::spawn(async move {
                let step = match sample(&shared, &session, purpose, &sender).await {
                    Ok(reply) => Step::Completed(request, reply),
                    Err(failure) => Step::Failed(request, failure),
                };
                // The actor has gone on without this request when nobody listens.
                let _ = sender.send(step).await;
            })
        };
        Sampling { steps, task, request }
    }

    /// The next step of the request under way; never, when there is none.
    pub(crate) async fn next(sampling: &mut Option<Sampling>) -> Step {
        let Some(running) = sampling else { return std::future::pending().await };
        match running.steps.recv().await {
            Some(step) => step,
            // The task ended without a result: it panicked.
            None => Step::Failed(
                running.request.clone(),
                Failure {
                    kind: FailureKind::Request,
                    message: "the model client stopped unexpectedly".to_owned(),
                    retry: true,
                    after: None,
                    usage: None,
                },
            ),
        }
    }

    /// Gives the request up and waits until it is gone.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        self.steps.close();
        let _ = (&mut self.task).await;
    }
}

async fn sample(
    shared: &Shared,
    session: &Session,
    purpose: Purpose,
    steps: &mpsc::Sender<Step>,
) -> Result<Reply, Failure> {
    let model = &session.agent.model.id;
    let Some(client) = shared.models.resolve(model) else {
        return Err(Failure {
            kind: FailureKind::Request,
            message: format!("no model provider serves {model}: configure one for it, or change the agent's model"),
            retry: false,
            after: None,
            usage: None,
        });
    };
    let log = conversation(shared, session).await.map_err(|why| Failure {
        kind: FailureKind::Request,
        message: format!("reading the session's log: {why}"),
        retry: true,
        after: None,
        usage: None,
    })?;
    let request = context::request(&session.agent, &log, purpose, session.id.as_str(), shared.max_tokens);
    drop(log);
    let mut stream = client.stream(request);
    let mut ids: Vec<Option<EventId>> = Vec::new();
    let mut parts: Vec<(usize, Part)> = Vec::new();
    while let Some(event) = stream.next().await {
        match event.map_err(failure)? {
            ModelEvent::Start => {}
            ModelEvent::BlockStart { index, kind } => {
                let id = id_of(&mut ids, index);
                let name = match kind {
                    BlockKind::Text => "agent.message",
                    BlockKind::Thinking => "agent.thinking",
                    _ => continue,
                };
                if purpose == Purpose::Reply {
                    let start = json!({"type": "event_start", "event": {"type": name, "id": id}});
                    let kind = FrameKind::PreviewStart(Arc::from(id.as_str()), name);
                    if let Some(frame) = Frame::preview(kind, "event_start", &start) {
                        let _ = steps.send(Step::Preview(frame)).await;
                    }
                }
            }
            ModelEvent::TextDelta { index, text } => {
                let id = id_of(&mut ids, index);
                if purpose == Purpose::Reply {
                    let delta = json!({"type": "event_delta", "event_id": id, "delta": {
                        "type": "content_delta", "index": 0, "content": {"type": "text", "text": text}}});
                    let kind = FrameKind::PreviewDelta(Arc::from(id.as_str()), "agent.message");
                    if let Some(frame) = Frame::preview(kind, "event_delta", &delta) {
                        let _ = steps.send(Step::Preview(frame)).await;
                    }
                }
            }
            ModelEvent::Block { index, block } => {
                let id = id_of(&mut ids, index);
                let content = match block["type"].as_str() {
                    Some("text") => PartContent::Text { text: block["text"].as_str().unwrap_or_default().to_owned() },
                    Some("thinking" | "redacted_thinking") => PartContent::Thinking(block),
                    Some("tool_use") => PartContent::ToolUse {
                        id: block["id"].as_str().unwrap_or_default().to_owned(),
                        name: block["name"].as_str().unwrap_or_default().to_owned(),
                        input: block["input"].as_object().cloned().unwrap_or_default(),
                    },
                    _ => continue,
                };
                parts.push((index, Part { id, content }));
            }
            ModelEvent::Done(completion) => {
                parts.sort_by_key(|(index, _)| *index);
                let ended = match completion.stop_reason {
                    StopReason::ToolUse => Ended::ToolUse,
                    StopReason::PauseTurn => Ended::Pause,
                    StopReason::MaxTokens => Ended::MaxTokens,
                    StopReason::Refusal => {
                        Ended::Refusal(completion.stop_details.and_then(|details| serde_json::from_value(details).ok()))
                    }
                    StopReason::ContextWindowExceeded => Ended::WindowExceeded,
                    StopReason::EndTurn | StopReason::StopSequence | StopReason::Other(_) => Ended::EndTurn,
                };
                let usage = TokenUse {
                    input: completion.usage.input_tokens,
                    output: completion.usage.output_tokens,
                    cache_read: completion.usage.cache_read_input_tokens,
                    cache_write: completion.usage.cache_creation_input_tokens,
                    cache_write_5m: completion.usage.ephemeral_5m,
                    cache_write_1h: completion.usage.ephemeral_1h,
                };
                return Ok(Reply { parts: parts.into_iter().map(|(_, part)| part).collect(), ended, usage });
            }
        }
    }
    Err(Failure {
        kind: FailureKind::Request,
        message: "the model's stream ended before its reply was complete".to_owned(),
        retry: true,
        after: None,
        usage: None,
    })
}

/// The id that the block's event will have; reserved when its preview starts.
fn id_of(ids: &mut Vec<Option<EventId>>, index: usize) -> EventId {
    // A provider numbers its blocks from zero; a wild index must not make this grow.
    let index = index.min(4096);
    if ids.len() <= index {
        ids.resize(index + 1, None);
    }
    ids[index].get_or_insert_with(|| EventId::from_bytes(&random_bytes())).clone()
}

fn failure(error: ModelError) -> Failure {
    let kind = match error.kind {
        ModelErrorKind::Overloaded => FailureKind::Overloaded,
        ModelErrorKind::RateLimited => FailureKind::RateLimited,
        ModelErrorKind::Billing => FailureKind::Billing,
        ModelErrorKind::ContextTooLong => FailureKind::ContextTooLong,
        _ => FailureKind::Request,
    };
    Failure {
        kind,
        message: error.message,
        retry: error.retryable,
        after: error.retry_after.map(|after| i64::try_from(after.as_micros()).unwrap_or(i64::MAX)),
        usage: None,
    }
}

/// The events that the conversation is made of, from the last compaction on.
async fn conversation(shared: &Shared, session: &Session) -> Result<Vec<palisade_core::batch::LogEntry>, StoreError> {
    let compaction = EventQuery {
        types: vec!["agent.thread_context_compacted".to_owned()],
        order: Order::Descending,
        ..EventQuery::all(session.id.clone(), 1)
    };
    let after = shared.store.events(&compaction).await?.first().map_or(0, |entry| entry.seq - 1);
    let mut query = EventQuery {
        types: context::TYPES.iter().map(|&name| name.to_owned()).collect(),
        after: Some(after),
        ..EventQuery::all(session.id.clone(), 1000)
    };
    let mut log = Vec::new();
    loop {
        let page = shared.store.events(&query).await?;
        let full = page.len() == query.limit;
        query.after = page.last().map(|entry| entry.seq).or(query.after);
        log.extend(page);
        if !full {
            return Ok(log);
        }
    }
}
