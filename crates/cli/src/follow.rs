//! A session as it happens: history and stream joined without a gap, and shown.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Client, Stream};
use crate::output::{BOLD, CYAN, DIM, GREEN, Outcome, Output, RED, YELLOW, note, plain};

/// The longest pause before the stream is opened once more; about twice this in all.
const PATIENCE: Duration = Duration::from_secs(15);

/// A session's events from its beginning, each once, with previews of those that are being written where wanted.
pub(crate) struct Follow {
    client: Client,
    session: String,
    deltas: bool,
    stream: Stream,
    history: VecDeque<Value>,
    /// Ids of events that were given out, and whether they were processed: a queued event comes again when it is.
    seen: HashSet<(String, bool)>,
    /// Whether the session is over: then an ended stream is not opened again.
    over: bool,
}

impl Follow {
    /// Listens first and then reads the log, so that nothing falls in between (wire reference: events §3).
    pub(crate) async fn open(client: &Client, session: &str, deltas: bool) -> Outcome<Follow> {
        let stream = client.stream(session, deltas).await?;
        let history = history(client, session).await?;
        Ok(Follow {
            client: client.clone(),
            session: session.to_owned(),
            deltas,
            stream,
            history: history.into(),
            seen: HashSet::new(),
            over: false,
        })
    }

    /// The next event or preview; `None` when the session is over.
    pub(crate) async fn next(&mut self) -> Outcome<Option<Value>> {
        loop {
            let event = match self.history.pop_front() {
                Some(event) => event,
                None if self.over => return Ok(None),
                None => match self.stream.next().await {
                    Ok(Some(event)) => event,
                    // The server ends streams when it shuts down, and a network may break; the log has what came meanwhile.
                    Ok(None) | Err(_) => {
                        self.reopen().await?;
                        continue;
                    }
                },
            };
            if matches!(event["type"].as_str(), Some("session.deleted" | "session.status_terminated")) {
                self.over = true;
            }
            // A preview of what the history has shown already comes too late.
            if let Some(id) = event["event_id"].as_str().or_else(|| event["event"]["id"].as_str())
                && self.seen.contains(&(id.to_owned(), true))
            {
                continue;
            }
            if let Some(id) = event["id"].as_str() {
                let processed = !event["processed_at"].is_null();
                if !self.seen.insert((id.to_owned(), processed)) {
                    continue;
                }
            }
            return Ok(Some(event));
        }
    }
}

impl Follow {
    /// Opens the stream again, with patience: a server that is replaced is away for a moment.
    async fn reopen(&mut self) -> Outcome<()> {
        let mut pause = Duration::from_millis(50);
        let mut said = false;
        loop {
            let opened = async {
                let stream = self.client.stream(&self.session, self.deltas).await?;
                Outcome::Ok((stream, history(&self.client, &self.session).await?))
            };
            match opened.await {
                Ok((stream, history)) => {
                    (self.stream, self.history) = (stream, history.into());
                    return Ok(());
                }
                // Either the server has answered, and will not answer otherwise, or it has been away too long.
                Err(failure) if failure.is_answer() || pause > PATIENCE => return Err(failure),
                Err(_) => {
                    if !said {
                        note("the server is away; waiting for it");
                        said = true;
                    }
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
    }
}

async fn history(client: &Client, session: &str) -> Outcome<Vec<Value>> {
    let path = format!("/v1/sessions/{session}/events");
    let query = [("limit", "1000".to_owned())];
    client.list("read the session's events", &path, &query, usize::MAX).await
}

/// The text blocks of an event's content.
pub(crate) fn content_text(content: &Value) -> String {
    let blocks = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let texts: Vec<&str> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
    texts.join("\n")
}

/// Shows events to people as they come, and hands them to programs as they are.
pub(crate) struct Screen {
    out: Output,
    /// The event whose text is being shown piece by piece, and how many bytes of it are on the screen.
    partial: Option<(String, usize)>,
    /// How many lines of a tool's result are shown.
    result_lines: usize,
}

impl Screen {
    pub(crate) fn new(out: Output) -> Screen {
        Screen { out, partial: None, result_lines: 4 }
    }

    /// Shows an event or a preview.
    pub(crate) fn show(&mut self, event: &Value) {
        self.out.object(event);
        if self.out.is_json() {
            return;
        }
        let kind = event["type"].as_str().unwrap_or_default();
        match kind {
            "event_delta" => self.delta(event),
            "agent.message" => self.message(event),
            _ => {
                let Some(line) = self.line(kind, event) else { return };
                self.end_partial();
                self.out.line(line);
            }
        }
    }

    fn end_partial(&mut self) {
        if self.partial.take().is_some() {
            self.out.line("");
        }
    }

    fn delta(&mut self, event: &Value) {
        let id = event["event_id"].as_str().unwrap_or_default();
        let Some(text) = event["delta"]["content"]["text"].as_str() else { return };
        let shown_as = plain(text);
        let same = self.partial.as_ref().is_some_and(|(shown, _)| shown == id);
        if !same {
            self.end_partial();
            self.partial = Some((id.to_owned(), 0));
        }
        if let Some((_, shown)) = &mut self.partial {
            *shown += text.len();
        }
        self.out.piece(shown_as);
    }

    /// What the deltas have not shown of a finished message: they may be dropped from the end under load.
    fn message(&mut self, event: &Value) {
        let text = content_text(&event["content"]);
        let shown = match &self.partial {
            Some((id, shown)) if event["id"] == json!(id) => Some(*shown),
            _ => None,
        };
        match shown {
            Some(shown) => {
                self.out.piece(plain(text.get(shown..).unwrap_or_default()));
                self.end_partial();
            }
            None => {
                self.end_partial();
                self.out.line(plain(&text));
            }
        }
    }

    fn line(&self, kind: &str, event: &Value) -> Option<String> {
        let out = &self.out;
        Some(match kind {
            "user.message" if !event["processed_at"].is_null() => {
                format!("{} {}", out.paint(BOLD, ">"), plain(&content_text(&event["content"])))
            }
            "agent.tool_use" | "agent.mcp_tool_use" | "agent.custom_tool_use" => {
                let name = event["name"].as_str().unwrap_or_default();
                let ask = match event["evaluated_permission"].as_str() {
                    Some("ask") => out.paint(YELLOW, "  (needs a confirmation)"),
                    Some("deny") => out.paint(RED, "  (denied)"),
                    _ => String::new(),
                };
                format!("{} {}{ask}", out.paint(CYAN, format!("● {}", plain(name))), summary(&event["input"]))
            }
            "user.tool_result" | "agent.tool_result" | "user.custom_tool_result" | "agent.mcp_tool_result" => {
                let failed = event["is_error"] == json!(true);
                let (mark, style) = if failed { ("✗", RED) } else { ("↳", DIM) };
                let text = content_text(&event["content"]);
                let text = plain(&text);
                let total = text.lines().count();
                let mut shown: Vec<String> = text.lines().take(self.result_lines).map(|line| clip(line, 160)).collect();
                if total > self.result_lines {
                    shown.push(format!("… {} more lines", total - self.result_lines));
                }
                let text = if shown.is_empty() { "(no output)".to_owned() } else { shown.join("\n    ") };
                out.paint(style, format!("  {mark} {text}"))
            }
            "user.tool_confirmation" if !event["processed_at"].is_null() => {
                out.paint(YELLOW, format!("  {}", event["result"].as_str().unwrap_or_default()))
            }
            "session.error" => {
                let error = &event["error"];
                let retry = error["retry_status"]["type"].as_str().unwrap_or_default();
                let message = error["message"].as_str().unwrap_or_default();
                out.paint(RED, format!("! {} ({retry})", plain(message)))
            }
            "session.status_idle" => {
                let reason = event["stop_reason"]["type"].as_str().unwrap_or_default();
                // Calls that a worker is about to answer make a session idle for a moment too.
                if reason == "requires_action" {
                    return None;
                }
                let style = if reason == "end_turn" { GREEN } else { YELLOW };
                out.paint(style, format!("■ idle: {reason}"))
            }
            "session.status_terminated" => out.paint(RED, "■ terminated"),
            "session.deleted" => out.paint(RED, "■ deleted"),
            "session.status_rescheduled" => out.paint(YELLOW, "… tried again shortly"),
            "agent.thread_context_compacted" => out.paint(DIM, "… the conversation was summarised"),
            _ => return None,
        })
    }
}

/// A tool's input in one line.
fn summary(input: &Value) -> String {
    let fields = ["command", "file_path", "path", "pattern"];
    let main = fields.iter().find_map(|field| input[*field].as_str());
    let text = main.map_or_else(|| input.to_string(), str::to_owned);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = plain(lines.next().unwrap_or_default().trim()).into_owned();
    let more = lines.count();
    let first = clip(&first, 110);
    if more > 0 { format!("{first} … (+{more} lines)") } else { first }
}

/// Text cut to so many characters.
fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
