//! `palisade agents`: agents of the server.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::Connection;
use crate::commands::{describe, text, time};
use crate::output::{Context as _, Failure, Outcome, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum AgentsCommand {
    /// List agents, the newest first.
    List {
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Archived ones too.
        #[arg(long)]
        include_archived: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show one agent.
    Get {
        /// The agent's id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Create an agent with the built-in tools.
    Create(CreateArgs),
    /// Archive an agent: no new sessions can use it.
    Archive {
        /// The agent's id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name.
    #[arg(long, required_unless_present = "file")]
    name: Option<String>,
    /// Its model's id.
    #[arg(long, required_unless_present = "file")]
    model: Option<String>,
    /// Its system prompt.
    #[arg(long)]
    system: Option<String>,
    /// Ask a person before every call of a tool.
    #[arg(long)]
    always_ask: bool,
    /// The whole request as a JSON or YAML file instead, as the API takes it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "model", "system", "always_ask"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

/// The body of a request from a JSON or YAML file.
pub(crate) fn body_from(path: &std::path::Path) -> Outcome<Value> {
    let what = || format!("{} cannot be used", path.display());
    let file = std::fs::read_to_string(path).context(what())?;
    serde_yaml_ng::from_str(&file).map_err(|why| Failure::new(what()).why(why).fix("write JSON or YAML"))
}

/// The tools of an agent that works in a sandbox: the six that a worker runs.
pub(crate) fn sandbox_tools(policy: &str) -> Value {
    json!([{
        "type": "agent_toolset_20260401",
        "default_config": {"enabled": true, "permission_policy": {"type": policy}},
        "configs": [{"name": "web_fetch", "enabled": false}, {"name": "web_search", "enabled": false}],
    }])
}

pub(crate) async fn run(command: &AgentsCommand, out: Output) -> Outcome {
    match command {
        AgentsCommand::List { limit, include_archived, connection } => {
            let query = [("include_archived", include_archived.to_string())];
            let agents = connection.client()?.list("list agents", "/v1/agents", &query, *limit).await?;
            let row = |agent: &Value| {
                let archived = if agent["archived_at"].is_null() { "" } else { "archived" };
                vec![
                    text(agent, "id"),
                    text(agent, "name"),
                    text(&agent["model"], "id"),
                    agent["version"].to_string(),
                    time(agent, "created_at"),
                    archived.to_owned(),
                ]
            };
            agents.iter().for_each(|agent| out.object(agent));
            let rows: Vec<_> = agents.iter().map(row).collect();
            out.table(&["id", "name", "model", "version", "created", ""], &rows);
        }
        AgentsCommand::Get { id, connection } => {
            let agent = connection.client()?.get("show the agent", &format!("/v1/agents/{id}")).await?;
            out.either(&agent, describe(&agent));
        }
        AgentsCommand::Create(args) => {
            let body = match &args.file {
                Some(path) => body_from(path)?,
                None => {
                    let policy = if args.always_ask { "always_ask" } else { "always_allow" };
                    json!({
                        "name": args.name, "model": args.model, "system": args.system, "tools": sandbox_tools(policy),
                    })
                }
            };
            let agent = args.connection.client()?.post("create the agent", "/v1/agents", &body).await?;
            out.either(&agent, text(&agent, "id"));
        }
        AgentsCommand::Archive { id, connection } => {
            let path = format!("/v1/agents/{id}/archive");
            let agent = connection.client()?.post("archive the agent", &path, &json!({})).await?;
            out.either(&agent, format!("archived {id}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
