//! Sessions: an agent at work.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    AgentId, DeploymentId, EnvironmentId, Extra, McpServer, Metadata, MetadataPatch, ModelParam, Patch, ResourceParam,
    SessionAgent, SessionId, SessionResource, SkillParam, Timestamp, ToolParam, VaultId,
};

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// Waiting for input.
    Idle,
    /// A thread is executing.
    Running,
    /// A transient failure; it will be tried again.
    Rescheduling,
    /// Over.
    Terminated,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl SessionStatus {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            SessionStatus::Idle => "idle",
            SessionStatus::Running => "running",
            SessionStatus::Rescheduling => "rescheduling",
            SessionStatus::Terminated => "terminated",
            SessionStatus::Unknown => "unknown",
        }
    }

    /// The status of this name, if it is one that sessions have.
    pub fn from_name(name: &str) -> Option<SessionStatus> {
        [SessionStatus::Idle, SessionStatus::Running, SessionStatus::Rescheduling, SessionStatus::Terminated]
            .into_iter()
            .find(|status| status.as_str() == name)
    }
}

/// A session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Always `session`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is doing.
    pub status: SessionStatus,
    /// Its title.
    pub title: Option<String>,
    /// The agent, as it was pinned.
    pub agent: SessionAgent,
    /// Where its tools run.
    pub environment_id: EnvironmentId,
    /// Its vaults.
    pub vault_ids: Vec<VaultId>,
    /// Its resources.
    pub resources: Vec<SessionResource>,
    /// Free pairs.
    pub metadata: Metadata,
    /// What it may cost.
    pub budget: Option<Budget>,
    /// What it has used.
    pub usage: Usage,
    /// How long it has run.
    pub stats: SessionStats,
    /// One per outcome that was asked for.
    pub outcome_evaluations: Vec<Value>,
    /// The deployment that made it.
    #[serde(default)]
    pub deployment_id: Option<DeploymentId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What has been used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    /// Tokens written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// Tokens read from the provider's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_read_input_tokens: Option<u64>,
    /// Tokens written to the provider's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_creation: Option<CacheCreation>,
    /// Seconds in which any thread ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_seconds: Option<serde_json::Number>,
    /// Use of the platform's own tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_tool_use: Option<Value>,
    /// Cost at list price, in whole cents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list_cost: Option<Money>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Tokens written to the provider's cache, by how long they stay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheCreation {
    /// For five minutes.
    #[serde(default)]
    pub ephemeral_5m_input_tokens: u64,
    /// For an hour.
    #[serde(default)]
    pub ephemeral_1h_input_tokens: u64,
}

/// How long a session has run, in seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionStats {
    /// Each thread's own running time, summed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_seconds: Option<serde_json::Number>,
    /// Since it was made; frozen once it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<serde_json::Number>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An amount in minor units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// A whole number of minor units, as text.
    pub amount: String,
    /// Always `USD`.
    pub currency: String,
}

impl Money {
    /// So many cents.
    pub fn cents(cents: u64) -> Money {
        Money { amount: cents.to_string(), currency: "USD".to_owned() }
    }
}

/// What a session may cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Always `limit`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The most that may be spent at list price.
    pub max_list_cost: Money,
}

impl Budget {
    /// The limit in cents.
    ///
    /// # Errors
    /// What is wrong with the amount or the currency.
    pub fn cents(&self) -> Result<u64, String> {
        let money = &self.max_list_cost;
        if money.currency != "USD" {
            return Err("currency must be USD".to_owned());
        }
        let plain = !money.amount.starts_with('0') && money.amount.bytes().all(|b| b.is_ascii_digit());
        money
            .amount
            .parse()
            .ok()
            .filter(|cents| plain && *cents > 0)
            .ok_or_else(|| "amount must be a positive whole number of cents, as text without leading zeros".to_owned())
    }
}

/// Why a session is idle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StopReason {
    /// The agent is done.
    EndTurn,
    /// Somebody must answer these events.
    RequiresAction {
        /// The calls that wait.
        event_ids: Vec<crate::EventId>,
    },
    /// The model could not be reached.
    RetriesExhausted,
    /// The budget is used up.
    BudgetReached,
    /// The model refused.
    Refusal,
    /// Anything else.
    #[serde(untagged)]
    Unknown(Extra),
}

/// More about a stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StopDetails {
    /// `refusal`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The category of a refusal.
    #[serde(default)]
    pub category: Option<String>,
    /// Its explanation.
    #[serde(default)]
    pub explanation: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Says that an object was deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deleted {
    /// What was deleted.
    pub id: String,
    /// `…_deleted`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// The agent of a new session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "must be an agent id or an object of type agent or agent_with_overrides")]
pub enum AgentRef {
    /// The newest version of this agent.
    Id(AgentId),
    /// An object.
    Object(Box<AgentRefObject>),
}

/// The agent of a new session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum AgentRefObject {
    /// A version of an agent.
    Agent {
        /// The agent.
        id: AgentId,
        /// The version; the newest when left out.
        #[serde(default)]
        version: Option<u64>,
    },
    /// A version of an agent, changed for this session.
    AgentWithOverrides {
        /// The agent.
        id: AgentId,
        /// The version; the newest when left out.
        #[serde(default)]
        version: Option<u64>,
        /// Another model.
        #[serde(default)]
        model: Patch<ModelParam>,
        /// Another system prompt.
        #[serde(default)]
        system: Patch<String>,
        /// Other tools.
        #[serde(default)]
        tools: Patch<Vec<ToolParam>>,
        /// Other MCP servers.
        #[serde(default)]
        mcp_servers: Patch<Vec<McpServer>>,
        /// Other skills.
        #[serde(default)]
        skills: Patch<Vec<SkillParam>>,
    },
}

/// The body that creates a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as in Session")]
pub struct SessionCreate {
    pub agent: AgentRef,
    pub environment_id: EnvironmentId,
    #[serde(default)]
    pub title: Option<String>,
    #[serde(default)]
    pub metadata: Option<Metadata>,
    #[serde(default)]
    pub resources: Option<Vec<ResourceParam>>,
    #[serde(default)]
    pub vault_ids: Option<Vec<VaultId>>,
    #[serde(default)]
    pub budget: Option<Budget>,
    #[serde(default)]
    pub initial_events: Option<Vec<crate::ClientEvent>>,
}

/// The body that changes a session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "as in Session")]
pub struct SessionUpdate {
    pub title: Patch<String>,
    pub metadata: Option<MetadataPatch>,
    pub agent: Option<SessionAgentUpdate>,
    pub budget: Patch<Budget>,
    pub vault_ids: Option<Value>,
}

/// The changes that a session's agent may take.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionAgentUpdate {
    /// Other tools, whole.
    pub tools: Option<Vec<ToolParam>>,
    /// Other MCP servers, whole.
    pub mcp_servers: Option<Vec<McpServer>>,
}
