//! `palisade keys`: API keys and environment keys, through the server when it runs and in its database when it does not.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use palisade_api::{EnvironmentId, KeyId};
use palisade_engine::{Clock as _, SystemClock};
use palisade_server::keys::{self, KeyInfo, KeyKind};
use palisade_store::{Sqlite, StoreError};
use serde_json::{Value, json};

use crate::cli::Connection;
use crate::commands::{text, time};
use crate::local;
use crate::output::{Context as _, Failure, Outcome, Output};

/// Where the server's own routes for keys are.
const PATH: &str = "/palisade/v1/keys";

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Create a key. It is printed once and cannot be shown again.
    Create(CreateArgs),
    /// List keys; the keys themselves are not known to the server.
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Revoke a key: the next request with it is refused.
    Revoke {
        /// The key's id, as `keys list` shows it.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// What the key is for.
    #[arg(value_parser = ["api"], required_unless_present = "environment", value_name = "api")]
    kind: Option<String>,
    /// Make a key for the workers of this environment instead of an API key.
    #[arg(long, value_name = "ENVIRONMENT_ID", conflicts_with = "kind")]
    environment: Option<String>,
    /// What people call it.
    #[arg(long, default_value = "")]
    name: String,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(command: &KeysCommand, out: Output) -> Outcome {
    match command {
        KeysCommand::Create(args) => {
            let created = create(args).await?;
            out.either(&created, text(&created, "key"));
        }
        KeysCommand::List { connection } => {
            let keys = list(connection).await?;
            keys.iter().for_each(|key| out.object(key));
            let row = |key: &Value| {
                let state = if key["revoked_at"].is_null() { "" } else { "revoked" };
                let name = text(key, "name");
                vec![text(key, "id"), kind(key), time(key, "created_at"), state.to_owned(), name]
            };
            let rows: Vec<_> = keys.iter().map(row).collect();
            out.table(&["id", "kind", "created", "", "name"], &rows);
        }
        KeysCommand::Revoke { id, connection } => {
            let revoked = revoke(connection, id).await?;
            out.either(&revoked, format!("revoked {id}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn kind(key: &Value) -> String {
    match key["environment_id"].as_str() {
        Some(environment) => format!("environment {environment}"),
        None => text(key, "kind"),
    }
}

async fn create(args: &CreateArgs) -> Outcome<Value> {
    let Some(store) = offline(&args.connection).await? else {
        let mut body = json!({"kind": "api", "name": args.name});
        if let Some(environment) = &args.environment {
            body["kind"] = json!("environment");
            body["environment_id"] = json!(environment);
        }
        return args.connection.client()?.post("create the key", PATH, &body).await;
    };
    let kind = match &args.environment {
        None => KeyKind::Api,
        Some(id) => KeyKind::Environment { environment_id: EnvironmentId::from(id.as_str()) },
    };
    let now = SystemClock::default().now();
    let (id, key) = keys::create(&store, kind, &args.name, now).await.context("cannot create the key")?;
    store.close().await;
    Ok(json!({"id": id, "key": key.expose()}))
}

async fn list(connection: &Connection) -> Outcome<Vec<Value>> {
    let Some(store) = offline(connection).await? else {
        return connection.client()?.list("list keys", PATH, &[], usize::MAX).await;
    };
    let keys = keys::list(&store).await.context("cannot list keys")?;
    store.close().await;
    Ok(keys.iter().map(flat).collect())
}

/// A key in the form in which the server lists it.
fn flat(key: &KeyInfo) -> Value {
    let (kind, environment) = match &key.kind {
        KeyKind::Api => ("api", None),
        KeyKind::Environment { environment_id } => ("environment", Some(environment_id)),
    };
    json!({
        "id": key.id, "kind": kind, "environment_id": environment, "name": key.name,
        "created_at": key.created_at, "revoked_at": key.revoked_at,
    })
}

async fn revoke(connection: &Connection, id: &str) -> Outcome<Value> {
    let Some(store) = offline(connection).await? else {
        return connection.client()?.delete("revoke the key", &format!("{PATH}/{id}")).await;
    };
    let now = SystemClock::default().now();
    let revoked = keys::revoke(&store, &KeyId::from(id), now).await.context("cannot revoke the key")?;
    store.close().await;
    if !revoked {
        return Err(Failure::new("cannot revoke the key")
            .why(format!("there is no key {id} that is not revoked already"))
            .fix("`palisade keys list` shows the ids"));
    }
    Ok(json!({"id": id, "type": "key_revoked"}))
}

/// The database itself, when no server has it open and none was named.
async fn offline(connection: &Connection) -> Outcome<Option<Sqlite>> {
    if connection.is_explicit() {
        return Ok(None);
    }
    let database = local::database(&connection.state.path()?);
    if !database.is_file() {
        return Err(Failure::new("no server is known")
            .why(format!("there is no database at {}", database.display()))
            .fix("name the server's state directory with --state-dir, or the server with --base-url"));
    }
    match Sqlite::open(&database) {
        Ok(store) => Ok(Some(store)),
        Err(StoreError::InUse { .. }) => Ok(None),
        Err(why) => Err(local::unopened(&database, &why)),
    }
}
