//! Keys: no part of the Managed Agents API, which leaves them to its console, so they live under a prefix of their own.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{delete, get};
use palisade_api::{Deleted, EnvironmentId, ErrorType, KeyId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{RawBody, Shared, ok};
use crate::auth::Caller;
use crate::error::{Answer, Fault};
use crate::keys::{self, KeyInfo, KeyKind};
use crate::service::Service;
use crate::{Error, body};

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new().route("/palisade/v1/keys", get(list).post(create)).route("/palisade/v1/keys/{key}", delete(revoke))
}

/// What makes a key.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Wanted {
    Api {
        #[serde(default)]
        name: String,
    },
    Environment {
        environment_id: EnvironmentId,
        #[serde(default)]
        name: String,
    },
}

async fn create(State(service): Shared, caller: Caller, body: RawBody) -> Answer {
    caller.api_only()?;
    let (kind, name) = match body::json::<Wanted>(&body.0)? {
        Wanted::Api { name } => (KeyKind::Api, name),
        Wanted::Environment { environment_id, name } => (KeyKind::Environment { environment_id }, name),
    };
    if name.chars().count() > 256 {
        return Err(Fault::invalid("name: may have at most 256 characters"));
    }
    // An environment that is being deleted takes all of its keys with it, this one too or not at all.
    let _catalog = service.catalog.read().await;
    let made = keys::create(&**service.engine.store(), kind, &name, service.now()).await;
    let (id, secret) = made.map_err(fault)?;
    ok(&json!({"id": id, "key": secret.expose()}))
}

async fn list(State(service): Shared, caller: Caller) -> Answer {
    caller.api_only()?;
    let keys = keys::list(&**service.engine.store()).await.map_err(fault)?;
    let data: Vec<Value> = keys.iter().map(flat).collect();
    ok(&json!({"data": data, "next_page": null}))
}

fn fault(why: Error) -> Fault {
    match why {
        Error::NoEnvironment(id) => Fault::missing("environment", &id),
        Error::Store(why) => why.into(),
        Error::Commit(why) => why.into(),
        other => {
            tracing::error!(error = %other, "a key could not be read or written");
            Fault::new(ErrorType::Api, "the key could not be read or written; the server's log says why")
        }
    }
}

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

async fn revoke(State(service): Shared, caller: Caller, Path(id): Path<String>) -> Answer {
    caller.api_only()?;
    let key = KeyId::from(id.as_str());
    let revoked = keys::revoke(&**service.engine.store(), &key, service.now()).await;
    if !revoked.map_err(fault)? {
        return Err(Fault::missing("key", &id));
    }
    ok(&Deleted { id, kind: "key_revoked".to_owned() })
}
