//! Agents and their versions.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use palisade_api::{Agent, AgentCreate, AgentId, AgentUpdate, Extra, ModelConfigParam, ModelParam, Patch};
use palisade_core::batch::{Batch, Key, Kind, Mutation, Precondition, Record};
use palisade_store::{CommitError, ListQuery, Order};
use serde_json::{Value, json};

use super::{RawBody, Shared, ok};
use crate::auth::Caller;
use crate::error::{Answer, Fault};
use crate::query::Query;
use crate::service::Service;
use crate::{body, page, rules};

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/v1/agents", get(list).post(create))
        .route("/v1/agents/{agent}", get(retrieve).post(update))
        .route("/v1/agents/{agent}/archive", post(archive))
        .route("/v1/agents/{agent}/versions", get(versions))
}

fn record(agent: &Agent) -> Answer<Record> {
    let mut record = Record::new(Kind::Agent, agent.id.as_str(), agent.created_at, agent)?;
    record.archived = agent.archived_at.is_some();
    Ok(record)
}

/// The record of a version. Versions are listed by when they were made.
fn version_record(agent: &Agent) -> Answer<Record> {
    let mut record = Record::new(Kind::AgentVersion, version_id(&agent.id, agent.version), agent.updated_at, agent)?;
    record.parent = Some(agent.id.as_str().to_owned());
    Ok(record)
}

fn version_id(agent: &AgentId, version: u64) -> String {
    format!("{agent}/{version}")
}

/// The newest version of an agent, and its record.
pub(super) async fn load(service: &Service, id: &str) -> Answer<(Record, Agent)> {
    let missing = || Fault::missing("agent", id);
    AgentId::parse(id).map_err(|_| missing())?;
    let record = service.engine.store().get(&Key::new(Kind::Agent, id)).await?.ok_or_else(missing)?;
    let agent = record.decode()?;
    Ok((record, agent))
}

/// A version of an agent, the newest unless told; it says whether the agent is archived now.
pub(crate) async fn load_version(service: &Service, id: &str, version: Option<u64>) -> Answer<Agent> {
    let (_, newest) = load(service, id).await?;
    match version {
        Some(version) if version != newest.version => {
            let missing = || Fault::missing("agent", id).message(format!("agent {id} has no version {version}"));
            let key = Key::new(Kind::AgentVersion, version_id(&newest.id, version));
            let record = service.engine.store().get(&key).await?.ok_or_else(missing)?;
            Ok(Agent { archived_at: newest.archived_at, ..record.decode()? })
        }
        _ => Ok(newest),
    }
}

/// The parts of an agent that this version cannot serve yet.
fn check_unserved(multiagent: Option<&Value>, identity: Option<&Value>) -> Answer<()> {
    if multiagent.is_some_and(|value| !value.is_null()) {
        return Err(Fault::field("multiagent", "is not served by this server version: leave it out"));
    }
    match identity.filter(|value| !value.is_null()) {
        None => Ok(()),
        Some(value) if *value == service_account() => Ok(()),
        Some(value) if value.get("type").and_then(Value::as_str) == Some("aws_role") => {
            Err(Fault::field("execution_identity", "aws_role is not served by this server version"))
        }
        Some(_) => Err(Fault::field("execution_identity", "must be null or {\"type\": \"service_account\"}")),
    }
}

fn service_account() -> Value {
    json!({"type": "service_account"})
}

/// The rules that an agent must keep, whatever part of it was changed.
fn check(agent: &Agent) -> Answer<()> {
    rules::text("name", &agent.name, 1, 256)?;
    if let Some(description) = &agent.description {
        rules::text("description", description, 0, 2048)?;
    }
    if let Some(system) = &agent.system {
        rules::text("system", system, 0, 100_000)?;
    }
    rules::servers(&agent.mcp_servers)?;
    rules::fit(&agent.tools, &agent.mcp_servers, &agent.skills)?;
    agent.metadata.validate().map_err(|why| Fault::field("metadata", why).code("invalid_metadata"))
}

pub(super) fn model(
    param: ModelParam,
    stored: Option<&palisade_api::ModelConfig>,
) -> Answer<palisade_api::ModelConfig> {
    let model = param.resolve(stored).map_err(|why| Fault::invalid(format!("model.{why}")))?;
    rules::text("model.id", &model.id, 1, 256)?;
    if let Some(geo) = &model.inference_geo {
        rules::text("model.inference_geo", geo, 1, 64)?;
    }
    Ok(model)
}

async fn create(State(service): Shared, caller: Caller, RawBody(body): RawBody) -> Answer {
    caller.api_only()?;
    let body: AgentCreate = body::json_with::<_, ModelConfigParam>(&body, "model")?;
    check_unserved(body.multiagent.as_ref(), body.execution_identity.as_ref())?;
    let now = service.now();
    let agent = Agent {
        id: AgentId::from_bytes(&palisade_engine::random_bytes()),
        kind: "agent".to_owned(),
        version: 1,
        name: body.name,
        description: body.description,
        model: model(body.model, None)?,
        system: body.system,
        tools: rules::tools(body.tools.unwrap_or_default())?,
        mcp_servers: body.mcp_servers.unwrap_or_default(),
        skills: rules::skills(body.skills.unwrap_or_default())?,
        multiagent: None,
        execution_identity: service_account(),
        metadata: body.metadata.unwrap_or_default(),
        created_at: now,
        updated_at: now,
        archived_at: None,
        extra: Extra::new(),
    };
    check(&agent)?;
    let record = record(&agent)?;
    let batch = Batch::new()
        .when(Precondition::Absent(record.key()))
        .with(Mutation::Put(record))
        .with(Mutation::Put(version_record(&agent)?));
    service.engine.store().commit(batch).await?;
    ok(&agent)
}

async fn retrieve(State(service): Shared, caller: Caller, Path(id): Path<String>, query: Query) -> Answer {
    caller.api_only()?;
    let version = query.number("version", 1, i64::MAX)?.map(i64::unsigned_abs);
    ok(&load_version(&service, &id, version).await?)
}

async fn list(State(service): Shared, caller: Caller, query: Query) -> Answer {
    caller.api_only()?;
    let range = query.created()?;
    let list = ListQuery {
        include_archived: query.flag("include_archived")?,
        created_from: range.from,
        created_before: range.before,
        order: Order::Descending,
        limit: query.limit(20, 100)?,
        ..ListQuery::new(Kind::Agent)
    };
    ok(&page::objects::<Agent>(&**service.engine.store(), &query, list).await?)
}

async fn versions(State(service): Shared, caller: Caller, Path(id): Path<String>, query: Query) -> Answer {
    caller.api_only()?;
    let (_, newest) = load(&service, &id).await?;
    let list = ListQuery {
        parent: Some(id),
        order: Order::Descending,
        limit: query.limit(20, 100)?,
        ..ListQuery::new(Kind::AgentVersion)
    };
    let mut page = page::objects::<Agent>(&**service.engine.store(), &query, list).await?;
    for agent in &mut page.data {
        agent.archived_at = newest.archived_at;
    }
    ok(&page)
}

async fn update(State(service): Shared, caller: Caller, Path(id): Path<String>, RawBody(bytes): RawBody) -> Answer {
    caller.api_only()?;
    let body: AgentUpdate = body::json_with::<_, ModelConfigParam>(&bytes, "model")?;
    body::not_null(&bytes, &["name", "model"])?;
    if body.version == Some(0) {
        return Err(Fault::field("version", "must be at least 1"));
    }
    check_unserved(body.multiagent.clone().value().as_ref(), body.execution_identity.clone().value().as_ref())?;
    loop {
        let (stored, before) = load(&service, &id).await?;
        if let Some(version) = body.version
            && version != before.version
        {
            // Also when the update would change nothing.
            return Err(Fault::conflict(format!(
                "version: the agent is at version {}, not {version}: read it again and repeat the change",
                before.version
            )));
        }
        if before.archived_at.is_some() {
            return Err(Fault::invalid("the agent is archived and cannot be changed"));
        }
        let mut agent = changed(&before, body.clone())?;
        if agent == before {
            return ok(&before);
        }
        agent.version += 1;
        // Versions are listed by time: no two have the same.
        agent.updated_at = service.now().max(before.updated_at.plus(1));
        check(&agent)?;
        let batch = Batch::new()
            .when(Precondition::Revision(stored.key(), stored.revision))
            .with(Mutation::Put(record(&agent)?))
            .with(Mutation::Put(version_record(&agent)?));
        match service.engine.store().commit(batch).await {
            Ok(()) => return ok(&agent),
            // Somebody was faster: look at what they made of it.
            Err(CommitError::Conflict(_)) => {}
            Err(why) => return Err(why.into()),
        }
    }
}

/// Text that null and the empty text clear.
fn clearable(patch: Patch<String>, field: &mut Option<String>) {
    match patch {
        Patch::Value(text) if text.is_empty() => *field = None,
        other => other.apply(field),
    }
}

fn changed(before: &Agent, body: AgentUpdate) -> Answer<Agent> {
    let mut agent = before.clone();
    if let Some(name) = body.name {
        agent.name = name;
    }
    clearable(body.description, &mut agent.description);
    clearable(body.system, &mut agent.system);
    if let Some(param) = body.model {
        agent.model = model(param, Some(&before.model))?;
    }
    if !body.tools.is_absent() {
        agent.tools = rules::tools(body.tools.value().unwrap_or_default())?;
    }
    if !body.mcp_servers.is_absent() {
        agent.mcp_servers = body.mcp_servers.value().unwrap_or_default();
    }
    if !body.skills.is_absent() {
        agent.skills = rules::skills(body.skills.value().unwrap_or_default())?;
    }
    if let Some(patch) = body.metadata {
        patch.apply(&mut agent.metadata);
    }
    Ok(agent)
}

async fn archive(State(service): Shared, caller: Caller, Path(id): Path<String>) -> Answer {
    caller.api_only()?;
    let _catalog = service.catalog.write().await;
    loop {
        let (stored, mut agent) = load(&service, &id).await?;
        if agent.archived_at.is_some() {
            return ok(&agent);
        }
        agent.archived_at = Some(service.now());
        let batch = Batch::new()
            .when(Precondition::Revision(stored.key(), stored.revision))
            .with(Mutation::Put(record(&agent)?));
        match service.engine.store().commit(batch).await {
            Ok(()) => return ok(&agent),
            Err(CommitError::Conflict(_)) => {}
            Err(why) => return Err(why.into()),
        }
    }
}
