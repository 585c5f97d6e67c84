//! `palisade sessions`: sessions of the server.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Connection;
use crate::commands::agents::body_from;
use crate::commands::{describe, text, time};
use crate::follow::{Follow, Screen};
use crate::output::{Context as _, Outcome, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// List sessions, the newest first.
    List {
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Only those of this agent.
        #[arg(long, value_name = "AGENT_ID")]
        agent: Option<String>,
        /// Only those in this state; may be given again.
        #[arg(long, value_parser = ["idle", "running", "rescheduling", "terminated"])]
        status: Vec<String>,
        /// Archived ones too.
        #[arg(long)]
        include_archived: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show one session.
    Get {
        /// The session's id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Create a session, and start it when it is given a prompt.
    Create(CreateArgs),
    /// Print a session's events from the first on.
    Events {
        /// The session's id.
        id: String,
        /// Go on with what happens, until the session is over.
        #[arg(long, short)]
        follow: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Send a message to a session.
    Send {
        /// The session's id.
        id: String,
        /// The message.
        message: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Interrupt what a session is doing.
    Interrupt {
        /// The session's id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// End a session for good; its log stays readable.
    Archive {
        /// The session's id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Delete a session and its log.
    Delete {
        /// The session's id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The agent's id.
    #[arg(long, value_name = "AGENT_ID", required_unless_present = "file")]
    agent: Option<String>,
    /// The environment's id.
    #[arg(long, value_name = "ENVIRONMENT_ID", required_unless_present = "file")]
    environment: Option<String>,
    /// Its title.
    #[arg(long)]
    title: Option<String>,
    /// The first message, which starts it.
    #[arg(long)]
    prompt: Option<String>,
    /// The whole request as a JSON or YAML file instead, as the API takes it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["agent", "environment", "title", "prompt"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

/// A message as it is sent.
pub(crate) fn message(text: &str) -> Value {
    json!({"type": "user.message", "content": [{"type": "text", "text": text}]})
}

pub(crate) async fn run(command: &SessionsCommand, out: Output) -> Outcome {
    match command {
        SessionsCommand::List { limit, agent, status, include_archived, connection } => {
            let mut query = vec![("include_archived", include_archived.to_string())];
            query.extend(agent.iter().map(|id| ("agent_id", id.clone())));
            query.extend(status.iter().map(|name| ("statuses[]", name.clone())));
            let sessions = connection.client()?.list("list sessions", "/v1/sessions", &query, *limit).await?;
            let row = |session: &Value| {
                vec![
                    text(session, "id"),
                    text(session, "status"),
                    text(&session["agent"], "name"),
                    time(session, "created_at"),
                    text(session, "title"),
                ]
            };
            sessions.iter().for_each(|session| out.object(session));
            let rows: Vec<_> = sessions.iter().map(row).collect();
            out.table(&["id", "status", "agent", "created", "title"], &rows);
        }
        SessionsCommand::Get { id, connection } => {
            let session = connection.client()?.get("show the session", &format!("/v1/sessions/{id}")).await?;
            out.either(&session, describe(&session));
        }
        SessionsCommand::Create(args) => {
            let body = match &args.file {
                Some(path) => body_from(path)?,
                None => {
                    let initial: Vec<Value> = args.prompt.iter().map(|prompt| message(prompt)).collect();
                    json!({
                        "agent": args.agent, "environment_id": args.environment, "title": args.title,
                        "initial_events": initial,
                    })
                }
            };
            let session = args.connection.client()?.post("create the session", "/v1/sessions", &body).await?;
            out.either(&session, text(&session, "id"));
        }
        SessionsCommand::Events { id, follow, connection } => events(id, *follow, connection, out).await?,
        SessionsCommand::Send { id, message: words, connection } => {
            let client = connection.client()?;
            let path = format!("/v1/sessions/{id}/events");
            let sent = client.post("send the message", &path, &json!({"events": [message(words)]})).await?;
            out.either(&sent["data"][0], format!("sent {}", text(&sent["data"][0], "id")));
        }
        SessionsCommand::Interrupt { id, connection } => {
            let client = connection.client()?;
            let path = format!("/v1/sessions/{id}/events");
            let body = json!({"events": [{"type": "user.interrupt"}]});
            let sent = client.post("interrupt the session", &path, &body).await?;
            out.either(&sent["data"][0], format!("interrupted {id}"));
        }
        SessionsCommand::Archive { id, connection } => {
            let path = format!("/v1/sessions/{id}/archive");
            let session = connection.client()?.post("archive the session", &path, &json!({})).await?;
            out.either(&session, format!("archived {id}"));
        }
        SessionsCommand::Delete { id, connection } => {
            let deleted = connection.client()?.delete("delete the session", &format!("/v1/sessions/{id}")).await?;
            out.either(&deleted, format!("deleted {id}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn events(id: &str, follow: bool, connection: &Connection, out: Output) -> Outcome<()> {
    let client = connection.client()?;
    let mut screen = Screen::new(out);
    if !follow {
        let path = format!("/v1/sessions/{id}/events");
        let query = [("limit", "1000".to_owned())];
        let events = client.list("read the session's events", &path, &query, usize::MAX).await?;
        events.iter().for_each(|event| screen.show(event));
        return Ok(());
    }
    // Programs get what the log will hold; previews are for people.
    let mut events = Follow::open(&client, id, !out.is_json()).await?;
    // One for all rounds: an interrupt between two of them counts too.
    let mut interrupted = signal(SignalKind::interrupt()).context("interrupts cannot be waited for")?;
    loop {
        tokio::select! {
            event = events.next() => match event? {
                Some(event) => screen.show(&event),
                None => return Ok(()),
            },
            _ = interrupted.recv() => return Ok(()),
        }
    }
}
