//! `palisade environments`: environments of the server.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::Connection;
use crate::commands::{describe, text, time};
use crate::output::{Outcome, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum EnvironmentsCommand {
    /// List environments, the newest first.
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
    /// Show one environment.
    Get {
        /// The environment's id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Create a self-hosted environment: its sessions run on your own workers.
    #[command(after_help = "Then make a key for its workers: palisade keys create --environment ID")]
    Create {
        /// Its name.
        #[arg(long)]
        name: String,
        /// What it is for.
        #[arg(long)]
        description: Option<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Archive an environment: no new sessions can use it.
    Archive {
        /// The environment's id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

pub(crate) async fn run(command: &EnvironmentsCommand, out: Output) -> Outcome {
    match command {
        EnvironmentsCommand::List { limit, include_archived, connection } => {
            let query = [("include_archived", include_archived.to_string())];
            let client = connection.client()?;
            let environments = client.list("list environments", "/v1/environments", &query, *limit).await?;
            let row = |environment: &Value| {
                let archived = if environment["archived_at"].is_null() { "" } else { "archived" };
                vec![
                    text(environment, "id"),
                    text(environment, "name"),
                    text(&environment["config"], "type"),
                    time(environment, "created_at"),
                    archived.to_owned(),
                ]
            };
            environments.iter().for_each(|environment| out.object(environment));
            let rows: Vec<_> = environments.iter().map(row).collect();
            out.table(&["id", "name", "type", "created", ""], &rows);
        }
        EnvironmentsCommand::Get { id, connection } => {
            let path = format!("/v1/environments/{id}");
            let environment = connection.client()?.get("show the environment", &path).await?;
            out.either(&environment, describe(&environment));
        }
        EnvironmentsCommand::Create { name, description, connection } => {
            let body = json!({"name": name, "description": description, "config": {"type": "self_hosted"}});
            let client = connection.client()?;
            let environment = client.post("create the environment", "/v1/environments", &body).await?;
            out.either(&environment, text(&environment, "id"));
        }
        EnvironmentsCommand::Archive { id, connection } => {
            let path = format!("/v1/environments/{id}/archive");
            let environment = connection.client()?.post("archive the environment", &path, &json!({})).await?;
            out.either(&environment, format!("archived {id}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
