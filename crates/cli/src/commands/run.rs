//! `palisade run`: one prompt, followed to the end of its turn.

use std::collections::HashSet;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Connection;
use crate::client::Client;
use crate::commands::agents::sandbox_tools;
use crate::commands::sessions::message;
use crate::commands::{text, up};
use crate::follow::{Follow, Screen};
use crate::output::{BOLD, Context as _, Failure, Outcome, Output, YELLOW, note, plain};

/// Give an agent one prompt and follow it to the end of its turn.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the agent ended its turn; 1 an error; 2 the model refused; 3 the session gave up or was \
                        ended; 4 calls wait for somebody else's answer; 5 the budget is used up.\n\
                        Confirmations are asked for on the terminal, and denied where there is none."
)]
pub(crate) struct RunArgs {
    /// What the agent is to do.
    prompt: String,
    /// The agent's id; without it an agent is made of --model and --system, and archived afterwards.
    #[arg(long, value_name = "AGENT_ID", conflicts_with_all = ["model", "system", "always_ask"])]
    agent: Option<String>,
    /// The model of the agent that is made.
    #[arg(long, required_unless_present = "agent")]
    model: Option<String>,
    /// The system prompt of the agent that is made.
    #[arg(long)]
    system: Option<String>,
    /// Ask before every call of a tool.
    #[arg(long)]
    always_ask: bool,
    /// The environment's id; without it the environment "local", which is made when it is not there.
    #[arg(long, value_name = "ENVIRONMENT_ID")]
    environment: Option<String>,
    /// The session's title.
    #[arg(long)]
    title: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The agent has done what it wanted to do.
    EndTurn,
    /// The model refused.
    Refusal,
    /// The session gave up, or was ended.
    GaveUp,
    /// Calls wait for an answer that only somebody else can give.
    Unanswered,
    /// The budget is used up.
    Budget,
}

impl Ending {
    fn code(self) -> u8 {
        match self {
            Ending::EndTurn => 0,
            Ending::Refusal => 2,
            Ending::GaveUp => 3,
            Ending::Unanswered => 4,
            Ending::Budget => 5,
        }
    }
}

pub(crate) async fn run(args: &RunArgs, out: Output) -> Outcome {
    let client = args.connection.client()?;
    let environment = match &args.environment {
        Some(id) => id.clone(),
        None => up::local_environment(&client).await?,
    };
    let (agent, made) = match &args.agent {
        Some(id) => (id.clone(), false),
        None => (create_agent(args, &client).await?, true),
    };
    let session = json!({"agent": agent, "environment_id": environment, "title": args.title});
    let session = client.post("create the session", "/v1/sessions", &session).await?;
    let id = text(&session, "id");
    out.object(&session);
    if !out.is_json() {
        note(format!("session {id}"));
    }
    let ending = follow(&client, &id, &args.prompt, &mut Screen::new(out), out).await;
    if made {
        // A session keeps the agent it was made with. That a clean-up failed is worth a word and no more.
        if let Err(failure) = client.post("archive the agent", &format!("/v1/agents/{agent}/archive"), &json!({})).await
        {
            failure.report_as_warning();
        }
    }
    Ok(ExitCode::from(ending?.code()))
}

async fn create_agent(args: &RunArgs, client: &Client) -> Outcome<String> {
    let policy = if args.always_ask { "always_ask" } else { "always_allow" };
    let body = json!({
        "name": "run", "model": args.model, "system": args.system, "tools": sandbox_tools(policy),
        "metadata": {"made_by": "palisade run"},
    });
    Ok(text(&client.post("create the agent", "/v1/agents", &body).await?, "id"))
}

/// Sends the prompt and follows the session until the turn that it starts has ended.
pub(crate) async fn follow(
    client: &Client,
    session: &str,
    prompt: &str,
    screen: &mut Screen,
    out: Output,
) -> Outcome<Ending> {
    // Programs get what the log will hold; previews are for people.
    let mut events = Follow::open(client, session, !out.is_json()).await?;
    let path = format!("/v1/sessions/{session}/events");
    let sent = client.post("send the prompt", &path, &json!({"events": [message(prompt)]})).await?;
    let prompt_id = text(&sent["data"][0], "id");
    let mut turn = Turn::new(prompt_id);
    let mut interrupted = false;
    // One for all rounds: an interrupt between two of them counts too.
    let mut interrupts = signal(SignalKind::interrupt()).context("interrupts cannot be waited for")?;
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            () = tokio::time::sleep(Duration::from_secs(15)), if turn.waits_for_worker => {
                note("still waiting for a worker of the environment; `palisade up` or `palisade worker` starts one");
                continue;
            }
            _ = interrupts.recv() => {
                if interrupted {
                    return Err(Failure::new("stopped following").why("interrupted twice")
                        .fix(format!("the session goes on: palisade sessions events {session} --follow")));
                }
                interrupted = true;
                client.post("interrupt the session", &path, &json!({"events": [{"type": "user.interrupt"}]})).await?;
                continue;
            }
        };
        let Some(event) = event else { return Ok(Ending::GaveUp) };
        screen.show(&event);
        match turn.take(&event) {
            Verdict::Goes => {}
            Verdict::Ended(ending) => return Ok(ending),
            Verdict::Asks(calls) => {
                let answers = confirmations(&calls, out).await;
                client.post("answer the agent", &path, &json!({"events": answers})).await?;
            }
        }
    }
}

enum Verdict {
    Goes,
    Ended(Ending),
    Asks(Vec<Value>),
}

/// What is known of the turn that is followed.
struct Turn {
    prompt: String,
    /// Whether the prompt was taken up: an idle before it belongs to nothing of ours.
    begun: bool,
    calls: Vec<Value>,
    answered: HashSet<String>,
    waits_for_worker: bool,
}

impl Turn {
    fn new(prompt: String) -> Turn {
        Turn { prompt, begun: false, calls: Vec::new(), answered: HashSet::new(), waits_for_worker: false }
    }

    fn take(&mut self, event: &Value) -> Verdict {
        let kind = event["type"].as_str().unwrap_or_default();
        match kind {
            "user.message" if event["id"] == json!(self.prompt) && !event["processed_at"].is_null() => {
                self.begun = true
            }
            "agent.tool_use" | "agent.mcp_tool_use" | "agent.custom_tool_use" => self.calls.push(event.clone()),
            "session.status_terminated" | "session.deleted" => return Verdict::Ended(Ending::GaveUp),
            "session.status_idle" if self.begun => return self.idle(&event["stop_reason"]),
            _ => self.waits_for_worker &= kind == "session.usage" || kind.starts_with("session.thread"),
        }
        Verdict::Goes
    }

    fn idle(&mut self, reason: &Value) -> Verdict {
        self.waits_for_worker = false;
        match reason["type"].as_str().unwrap_or_default() {
            "end_turn" => Verdict::Ended(Ending::EndTurn),
            "refusal" => Verdict::Ended(Ending::Refusal),
            "budget_reached" => Verdict::Ended(Ending::Budget),
            "requires_action" => {
                let ids: Vec<&str> =
                    reason["event_ids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let blocking =
                    || self.calls.iter().filter(|call| call["id"].as_str().is_some_and(|id| ids.contains(&id)));
                let asks: Vec<Value> = blocking()
                    .filter(|call| call["evaluated_permission"] == json!("ask"))
                    .filter(|call| !self.answered.contains(call["id"].as_str().unwrap_or_default()))
                    .cloned()
                    .collect();
                if !asks.is_empty() {
                    self.answered.extend(asks.iter().map(|call| text(call, "id")));
                    return Verdict::Asks(asks);
                }
                if blocking().any(|call| call["type"] == json!("agent.custom_tool_use")) {
                    return Verdict::Ended(Ending::Unanswered);
                }
                // What is left runs in a sandbox, and its worker answers.
                self.waits_for_worker = true;
                Verdict::Goes
            }
            _ => Verdict::Ended(Ending::GaveUp),
        }
    }
}

/// Asks about each call, on the terminal; denies where there is none to ask on.
async fn confirmations(calls: &[Value], out: Output) -> Vec<Value> {
    let interactive = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let mut answers = Vec::new();
    for call in calls {
        let (id, name) = (text(call, "id"), text(call, "name"));
        let deny = |why: &str| json!({"type": "user.tool_confirmation", "tool_use_id": id, "result": "deny", "deny_message": why});
        answers.push(if interactive {
            // JSON escapes control characters by itself, and the rest is made harmless.
            let input = call["input"].to_string();
            let question = format!("{} {}\n{}", out.paint(YELLOW, "allow"), out.paint(BOLD, name), plain(&input));
            match ask(question).await.as_deref() {
                Some("y" | "yes") => {
                    json!({"type": "user.tool_confirmation", "tool_use_id": id, "result": "allow"})
                }
                _ => deny("the user refused this call"),
            }
        } else {
            note(format!("denied {name}: there is no terminal to ask on"));
            deny("nobody is there to confirm this call")
        });
    }
    answers
}

async fn ask(question: String) -> Option<String> {
    let answer = tokio::task::spawn_blocking(move || {
        let mut err = std::io::stderr().lock();
        write!(err, "{question}\n[y/N] ").and_then(|()| err.flush()).ok()?;
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).ok()?;
        Some(line.trim().to_lowercase())
    });
    answer.await.ok().flatten()
}
