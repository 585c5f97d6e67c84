//! Environments.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use palisade_api::{
    Deleted, Environment, EnvironmentConfig, EnvironmentConfigParam, EnvironmentCreate, EnvironmentId,
    EnvironmentUpdate, Extra, Metadata, Networking,
};
use palisade_core::batch::{Batch, Key, Kind, Mutation, Precondition, Record};
use palisade_store::{ListQuery, Order};

use super::{RawBody, Shared, ok};
use crate::auth::Caller;
use crate::error::{Answer, Fault};
use crate::query::Query;
use crate::service::Service;
use crate::{body, page, rules};

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/v1/environments", get(list).post(create))
        .route("/v1/environments/{environment}", get(retrieve).post(update).delete(delete))
        .route("/v1/environments/{environment}/archive", post(archive))
}

pub(super) fn record(environment: &Environment) -> Answer<Record> {
    let mut record = Record::new(Kind::Environment, environment.id.as_str(), environment.created_at, environment)?;
    record.archived = environment.archived_at.is_some();
    Ok(record)
}

/// An environment and its record.
pub(super) async fn load(service: &Service, id: &str) -> Answer<(Record, Environment)> {
    let missing = || Fault::missing("environment", id);
    EnvironmentId::parse(id).map_err(|_| missing())?;
    let key = Key::new(Kind::Environment, id);
    let record = service.engine.store().get(&key).await?.ok_or_else(missing)?;
    let environment = record.decode()?;
    Ok((record, environment))
}

fn check(environment: &Environment) -> Answer<()> {
    rules::text("name", &environment.name, 1, 256)?;
    if let Some(description) = &environment.description {
        rules::text("description", description, 0, 2048)?;
    }
    environment.metadata.validate().map_err(|why| Fault::field("metadata", why).code("invalid_metadata"))?;
    if let EnvironmentConfig::Cloud { networking, packages } = &environment.config
        && let Networking::Limited { allowed_hosts, allow_package_managers, .. } = networking
    {
        for (index, host) in allowed_hosts.iter().enumerate() {
            rules::host(host).map_err(|why| Fault::field(format!("config.networking.allowed_hosts.{index}"), why))?;
        }
        let lists = [&packages.apt, &packages.cargo, &packages.gem, &packages.go, &packages.npm, &packages.pip];
        if !allow_package_managers && lists.iter().any(|list| !list.is_empty()) {
            return Err(Fault::field(
                "config.packages",
                "need networking.allow_package_managers to be true when networking is limited",
            ));
        }
    }
    Ok(())
}

fn check_scope(scope: Option<&str>) -> Answer<()> {
    match scope {
        None | Some("organization") => Ok(()),
        Some("account") => Err(Fault::field("scope", "account is not available to API keys: use organization")),
        Some(_) => Err(Fault::field("scope", "must be organization")),
    }
}

async fn create(State(service): Shared, caller: Caller, RawBody(body): RawBody) -> Answer {
    caller.api_only()?;
    let body: EnvironmentCreate = body::json(&body)?;
    check_scope(body.scope.as_deref())?;
    let config = body.config.unwrap_or(EnvironmentConfigParam::Cloud { networking: None, packages: None });
    let now = service.now();
    let environment = Environment {
        id: EnvironmentId::from_bytes(&palisade_engine::random_bytes()),
        kind: "environment".to_owned(),
        name: body.name,
        description: body.description,
        config: config.resolve(None),
        metadata: body.metadata.unwrap_or_default(),
        scope: Some("organization".to_owned()),
        created_at: now,
        updated_at: now,
        archived_at: None,
        extra: Extra::new(),
    };
    check(&environment)?;
    let record = record(&environment)?;
    let batch = Batch::new().when(Precondition::Absent(record.key())).with(Mutation::Put(record));
    service.engine.store().commit(batch).await?;
    ok(&environment)
}

async fn retrieve(State(service): Shared, caller: Caller, Path(id): Path<String>) -> Answer {
    caller.api_only()?;
    ok(&load(&service, &id).await?.1)
}

async fn list(State(service): Shared, caller: Caller, query: Query) -> Answer {
    caller.api_only()?;
    let list = ListQuery {
        include_archived: query.flag("include_archived")?,
        order: Order::Descending,
        limit: query.limit(20, 100)?,
        ..ListQuery::new(Kind::Environment)
    };
    ok(&page::objects::<Environment>(&**service.engine.store(), &query, list).await?)
}

/// Stores a changed environment. False when somebody else was faster.
async fn save(service: &Service, before: &Record, environment: &Environment) -> Answer<bool> {
    let batch = Batch::new()
        .when(Precondition::Revision(before.key(), before.revision))
        .with(Mutation::Put(record(environment)?));
    match service.engine.store().commit(batch).await {
        Ok(()) => Ok(true),
        Err(palisade_store::CommitError::Conflict(_)) => Ok(false),
        Err(why) => Err(why.into()),
    }
}

async fn update(State(service): Shared, caller: Caller, Path(id): Path<String>, RawBody(bytes): RawBody) -> Answer {
    caller.api_only()?;
    let body: EnvironmentUpdate = body::json(&bytes)?;
    body::not_null(&bytes, &["name"])?;
    check_scope(body.scope.as_deref())?;
    loop {
        let (record, before) = load(&service, &id).await?;
        let environment = changed(before.clone(), body.clone())?;
        if environment == before {
            return ok(&before);
        }
        let environment = Environment { updated_at: service.now(), ..environment };
        if save(&service, &record, &environment).await? {
            return ok(&environment);
        }
    }
}

fn changed(mut environment: Environment, body: EnvironmentUpdate) -> Answer<Environment> {
    if environment.archived_at.is_some() {
        return Err(Fault::invalid("the environment is archived and cannot be changed").code("environment_archived"));
    }
    if let Some(name) = body.name {
        environment.name = name;
    }
    body.description.apply(&mut environment.description);
    if let Some(config) = body.config {
        let same = matches!(
            (&config, &environment.config),
            (EnvironmentConfigParam::Cloud { .. }, EnvironmentConfig::Cloud { .. })
                | (EnvironmentConfigParam::SelfHosted {}, EnvironmentConfig::SelfHosted {})
        );
        if !same {
            return Err(Fault::field("config.type", "cannot change: make another environment")
                .code("invalid_config_type_change"));
        }
        environment.config = config.resolve(Some(&environment.config));
    }
    if let Some(patch) = body.metadata {
        let mut metadata: Metadata = std::mem::take(&mut environment.metadata);
        patch.apply_with_empty_as_null(&mut metadata);
        environment.metadata = metadata;
    }
    check(&environment)?;
    Ok(environment)
}

async fn archive(State(service): Shared, caller: Caller, Path(id): Path<String>) -> Answer {
    caller.api_only()?;
    let _catalog = service.catalog.write().await;
    loop {
        let (record, mut environment) = load(&service, &id).await?;
        if environment.archived_at.is_some() {
            return ok(&environment);
        }
        let now = service.now();
        environment.archived_at = Some(now);
        environment.updated_at = now;
        if save(&service, &record, &environment).await? {
            return ok(&environment);
        }
    }
}

async fn delete(State(service): Shared, caller: Caller, Path(id): Path<String>) -> Answer {
    caller.api_only()?;
    let _catalog = service.catalog.write().await;
    let (record, environment) = load(&service, &id).await?;
    let store = service.engine.store();
    let of = |kind| ListQuery { parent: Some(id.clone()), include_archived: true, limit: 500, ..ListQuery::new(kind) };
    let sessions = store.count(&of(Kind::Session)).await?;
    if sessions > 0 {
        return Err(Fault::conflict(format!(
            "{sessions} sessions refer to the environment: delete them first, or archive the environment"
        )));
    }
    // What belongs to it goes with it: its keys must not outlive it, and its ended items serve nobody.
    let mut batch = Batch::new().when(Precondition::Exists(record.key()));
    for kind in [Kind::Key, Kind::Work] {
        loop {
            let found = store.list(&of(kind)).await?;
            let last = found.len() < 500;
            batch = found.iter().fold(batch, |batch, record| batch.with(Mutation::Delete(record.key())));
            if last {
                break;
            }
            store.commit(std::mem::take(&mut batch)).await?;
        }
    }
    store.commit(batch.with(Mutation::Delete(record.key()))).await?;
    ok(&Deleted { id: environment.id.as_str().to_owned(), kind: "environment_deleted".to_owned() })
}
