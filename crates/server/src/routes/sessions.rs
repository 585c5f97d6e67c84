//! Sessions, and the resources that they have.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use palisade_api::{
    AgentRef, AgentRefObject, BidirectionalPage, Budget, ClientEvent, Deleted, Environment, EnvironmentConfig, Extra,
    Patch, ResourceParam, Session, SessionAgent, SessionCreate, SessionId, SessionResource, SessionStats,
    SessionStatus, SessionUpdate, ThreadId, Usage, VaultId,
};
use palisade_core::batch::{Key, Kind, Record};
use palisade_core::session::{Change, Place, State as Machine, session_from_records};
use palisade_engine::EngineError;
use palisade_store::{ListQuery, Order};
use serde_json::Value;

use super::events::order;
use super::{RawBody, Shared, agents, environments, not_served, ok};
use crate::auth::Caller;
use crate::error::{Answer, Fault};
use crate::query::Query;
use crate::service::Service;
use crate::{body, page, rules};

/// Events that a session may be created with.
const MAX_INITIAL: usize = 50;

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/v1/sessions", get(list).post(create))
        .route("/v1/sessions/{session}", get(retrieve).post(update).delete(delete))
        .route("/v1/sessions/{session}/archive", post(archive))
        .route("/v1/sessions/{session}/resources", get(resources).post(not_served))
        .route("/v1/sessions/{session}/resources/{resource}", get(resource).post(not_served).delete(not_served))
}

async fn create(State(service): Shared, caller: Caller, RawBody(body): RawBody) -> Answer {
    caller.api_only()?;
    let body: SessionCreate = body::json_with::<_, AgentRefObject>(&body, "agent")?;
    if let Some(title) = &body.title {
        rules::text("title", title, 0, 256)?;
    }
    let metadata = body.metadata.unwrap_or_default();
    metadata.validate().map_err(|why| Fault::field("metadata", why).code("invalid_metadata"))?;
    check_vaults(body.vault_ids.as_deref().unwrap_or_default())?;
    let initial = body.initial_events.unwrap_or_default();
    check_initial(&initial)?;

    let _catalog = service.catalog.read().await;
    let (_, environment) = environments::load(&service, body.environment_id.as_str()).await?;
    let place = check_environment(&environment, body.resources.as_deref().unwrap_or_default())?;
    let agent = pinned(&service, body.agent).await?;
    if let Some(budget) = &body.budget {
        check_budget(&service, budget, &agent)?;
    }
    let exists = vec![Key::new(Kind::Environment, environment.id.as_str()), Key::new(Kind::Agent, agent.id.as_str())];
    let state = state(&service, environment, agent, place, (body.title, metadata, body.budget));
    let session = service.engine.create_session(state, initial, exists).await.map_err(|why| match why {
        EngineError::Refused(mut refusal) => {
            if let Some(rest) = refusal.message.strip_prefix("events") {
                refusal.message = format!("initial_events{rest}");
            }
            Fault::from(refusal)
        }
        other => other.into(),
    })?;
    ok(&session)
}

fn state(
    service: &Service,
    environment: Environment,
    agent: SessionAgent,
    place: Place,
    (title, metadata, budget): (Option<String>, palisade_api::Metadata, Option<Budget>),
) -> Machine {
    let now = service.now();
    let random = palisade_engine::random_bytes;
    let session = Session {
        id: SessionId::from_bytes(&random()),
        kind: "session".to_owned(),
        status: SessionStatus::Idle,
        title,
        agent,
        environment_id: environment.id,
        vault_ids: Vec::new(),
        resources: Vec::new(),
        metadata,
        budget,
        usage: Usage::default(),
        stats: SessionStats::default(),
        outcome_evaluations: Vec::new(),
        deployment_id: None,
        created_at: now,
        updated_at: now,
        archived_at: None,
        extra: Extra::new(),
    };
    Machine::new(session, place, ThreadId::from_bytes(&random()))
}

fn check_vaults(vaults: &[VaultId]) -> Answer<()> {
    match vaults.first() {
        None => Ok(()),
        Some(vault) => Err(Fault::field(
            "vault_ids",
            format!("{vault} was not found: vaults are not served by this server version"),
        )),
    }
}

fn check_initial(events: &[ClientEvent]) -> Answer<()> {
    if events.len() > MAX_INITIAL {
        return Err(Fault::field("initial_events", format!("may hold at most {MAX_INITIAL} events")));
    }
    for (index, event) in events.iter().enumerate() {
        let why = match event {
            ClientEvent::UserMessage(_) => continue,
            ClientEvent::UserDefineOutcome(_) => "outcomes are not supported by this server version",
            _ => "must be user.message",
        };
        return Err(Fault::field(format!("initial_events.{index}.type"), why));
    }
    Ok(())
}

fn check_environment(environment: &Environment, resources: &[ResourceParam]) -> Answer<Place> {
    if environment.archived_at.is_some() {
        return Err(
            Fault::field("environment_id", "the environment is archived: use another one").code("environment_archived")
        );
    }
    let place = match environment.config {
        EnvironmentConfig::SelfHosted {} => Place::SelfHosted,
        EnvironmentConfig::Cloud { .. } => Place::Cloud,
    };
    if let Some((index, resource)) = resources.iter().enumerate().next() {
        let why = match (resource, place) {
            (ResourceParam::File { .. }, Place::SelfHosted) => {
                "file resources are not available in self_hosted environments"
            }
            (ResourceParam::GithubRepository { .. }, Place::SelfHosted) => {
                "github_repository resources are not available in self_hosted environments"
            }
            (ResourceParam::MemoryStore { .. }, _) => "memory stores are not served by this server version",
            _ => "resources of cloud environments are not served by this server version",
        };
        return Err(Fault::field(format!("resources.{index}"), why));
    }
    Ok(place)
}

fn check_budget(service: &Service, budget: &Budget, agent: &SessionAgent) -> Answer<()> {
    if budget.kind != "limit" {
        return Err(Fault::field("budget.type", "must be limit"));
    }
    budget.cents().map_err(|why| Fault::field("budget.max_list_cost", why))?;
    let model = &agent.model.id;
    if !service.engine.rules().prices.contains_key(model) {
        return Err(Fault::field(
            "budget",
            format!("the model {model} has no list price on this server, so that its cost cannot be limited (model_not_budgetable)"),
        )
        .code("model_not_budgetable"));
    }
    Ok(())
}

/// The agent that a session pins.
async fn pinned(service: &Service, reference: AgentRef) -> Answer<SessionAgent> {
    let (id, version, overrides) = match reference {
        AgentRef::Id(id) => (id, None, None),
        AgentRef::Object(object) => match *object {
            AgentRefObject::Agent { id, version } => (id, version, None),
            AgentRefObject::AgentWithOverrides { id, version, model, system, tools, mcp_servers, skills } => {
                (id, version, Some((model, system, tools, mcp_servers, skills)))
            }
        },
    };
    if version == Some(0) {
        return Err(Fault::field("agent.version", "must be at least 1"));
    }
    let agent = agents::load_version(service, id.as_str(), version).await?;
    if agent.archived_at.is_some() {
        return Err(Fault::field("agent", "the agent is archived: new sessions cannot use it"));
    }
    let mut pinned = SessionAgent::from(&agent);
    let Some((model, system, tools, servers, skills)) = overrides else { return Ok(pinned) };
    match model {
        Patch::Absent => {}
        Patch::Null => {
            return Err(Fault::field(
                "agent.model",
                "cannot be cleared: an agent needs a model (agent_model_required)",
            )
            .code("agent_model_required"));
        }
        Patch::Value(mut param) => {
            // Documented: an overriding model takes its own default effort, whatever is asked for.
            if let palisade_api::ModelParam::Config(config) = &mut param {
                config.effort = None;
            }
            pinned.model = agents::model(param, None)?;
        }
    }
    match system {
        Patch::Value(text) if text.is_empty() => pinned.system = None,
        other => other.apply(&mut pinned.system),
    }
    if let Some(system) = &pinned.system {
        rules::text("agent.system", system, 0, 100_000)?;
    }
    if !tools.is_absent() {
        pinned.tools = rules::tools(tools.value().unwrap_or_default())?;
    }
    if !servers.is_absent() {
        pinned.mcp_servers = servers.value().unwrap_or_default();
        rules::servers(&pinned.mcp_servers)?;
    }
    if !skills.is_absent() {
        pinned.skills = rules::skills(skills.value().unwrap_or_default())?;
    }
    rules::fit(&pinned.tools, &pinned.mcp_servers, &pinned.skills)?;
    Ok(pinned)
}

/// The session of a record, with its agent.
async fn whole(service: &Service, record: &Record) -> Answer<Option<Session>> {
    let key = Key::new(Kind::SessionAgent, record.id.as_str());
    let Some(agent) = service.engine.store().get(&key).await? else { return Ok(None) };
    Ok(Some(at_now(session_from_records(record, &agent)?, service)))
}

/// A session that is not over gets older while nobody writes to it.
fn at_now(mut session: Session, service: &Service) -> Session {
    if session.status != SessionStatus::Terminated {
        let seconds = service.now().seconds_since(session.created_at);
        session.stats.duration_seconds = serde_json::Number::from_f64(seconds);
    }
    session
}

async fn retrieve(State(service): Shared, caller: Caller, Path(id): Path<String>) -> Answer {
    let (_, record) = caller.session(&service, &id).await?;
    ok(&whole(&service, &record).await?.ok_or_else(|| Fault::missing("session", &id))?)
}

async fn list(State(service): Shared, caller: Caller, query: Query) -> Answer {
    caller.api_only()?;
    let range = query.created()?;
    let mut statuses = Vec::new();
    for name in query.many("statuses") {
        let status = SessionStatus::from_name(name).ok_or_else(|| {
            Fault::field("statuses", format!("{name:?} is not one of idle, running, rescheduling, terminated"))
        })?;
        statuses.push(status.as_str().to_owned());
    }
    statuses.sort();
    statuses.dedup();
    let mut labels = Vec::new();
    let agent = query.one("agent_id")?;
    if let Some(agent) = agent {
        labels.push(("agent_id".to_owned(), agent.to_owned()));
    }
    if let Some(version) = query.number("agent_version", 1, i64::MAX)? {
        if agent.is_none() {
            return Err(Fault::field("agent_version", "needs agent_id"));
        }
        labels.push(("agent_version".to_owned(), version.to_string()));
    }
    // Sessions of this version have neither, so that a filter by one matches none.
    for name in ["deployment_id", "memory_store_id"] {
        if let Some(value) = query.one(name)? {
            labels.push((name.to_owned(), value.to_owned()));
        }
    }
    let list = ListQuery {
        statuses,
        labels,
        include_archived: query.flag("include_archived")?,
        created_from: range.from,
        created_before: range.before,
        order: order(&query, Order::Descending)?,
        limit: query.limit(20, 100)?,
        ..ListQuery::new(Kind::Session)
    };
    let page = page::records(&**service.engine.store(), &query, list).await?;
    let mut data = Vec::with_capacity(page.records.len());
    for record in &page.records {
        // A session that was deleted meanwhile is left out.
        data.extend(whole(&service, record).await?);
    }
    ok(&BidirectionalPage { data, next_page: page.next, prev_page: page.prev })
}

async fn update(State(service): Shared, caller: Caller, Path(id): Path<String>, RawBody(body): RawBody) -> Answer {
    caller.api_only()?;
    let (session, record) = caller.session(&service, &id).await?;
    let body: SessionUpdate = body::json(&body)?;
    if body.vault_ids.is_some() {
        return Err(Fault::field("vault_ids", "cannot be changed"));
    }
    let mut change = Change { title: body.title, metadata: body.metadata, ..Change::default() };
    if let Patch::Value(title) = &change.title {
        rules::text("title", title, 0, 256)?;
    }
    if let Patch::Value(budget) = &body.budget {
        if budget.kind != "limit" {
            return Err(Fault::field("budget.type", "must be limit"));
        }
        budget.cents().map_err(|why| Fault::field("budget.max_list_cost", why))?;
    }
    change.budget = body.budget;
    if let Some(agent) = body.agent {
        let stored = whole(&service, &record).await?.ok_or_else(|| Fault::missing("session", &id))?.agent;
        change.tools = agent.tools.map(rules::tools).transpose()?;
        change.mcp_servers = agent.mcp_servers;
        let servers = change.mcp_servers.as_ref().unwrap_or(&stored.mcp_servers);
        rules::servers(servers)?;
        rules::fit(change.tools.as_ref().unwrap_or(&stored.tools), servers, &stored.skills)?;
    }
    ok(&at_now(service.engine.update(&session, change).await?, &service))
}

async fn archive(State(service): Shared, caller: Caller, Path(id): Path<String>) -> Answer {
    caller.api_only()?;
    let (session, _) = caller.session(&service, &id).await?;
    ok(&service.engine.archive(&session).await?)
}

async fn delete(State(service): Shared, caller: Caller, Path(id): Path<String>) -> Answer {
    caller.api_only()?;
    let (session, _) = caller.session(&service, &id).await?;
    service.engine.delete(&session).await?;
    ok(&Deleted { id, kind: "session_deleted".to_owned() })
}

/// The most that a list of resources may ask for; all of them when it does not say.
const MAX_RESOURCES: usize = 1000;

async fn resources(State(service): Shared, caller: Caller, Path(id): Path<String>, query: Query) -> Answer {
    let (session, record) = caller.session(&service, &id).await?;
    let limit = query.limit(MAX_RESOURCES, MAX_RESOURCES)?;
    let name = page::fingerprint(&[&"resources", &session]);
    let from = page::decode::<usize>(&query, &name)?.unwrap_or(0);
    let all = whole(&service, &record).await?.ok_or_else(|| Fault::missing("session", &id))?.resources;
    let more = all.len() > from.saturating_add(limit);
    let data: Vec<SessionResource> = all.into_iter().skip(from).take(limit).collect();
    let next_page = if more { Some(page::encode(&name, from + limit)?) } else { None };
    ok(&palisade_api::Page { data, next_page })
}

async fn resource(State(service): Shared, caller: Caller, Path((id, resource)): Path<(String, String)>) -> Answer {
    let (_, record) = caller.session(&service, &id).await?;
    let all = whole(&service, &record).await?.ok_or_else(|| Fault::missing("session", &id))?.resources;
    let found = all.into_iter().find(|candidate| {
        serde_json::to_value(candidate).is_ok_and(|value| value.get("id").and_then(Value::as_str) == Some(&resource))
    });
    ok(&found.ok_or_else(|| Fault::missing("resource", &resource))?)
}
