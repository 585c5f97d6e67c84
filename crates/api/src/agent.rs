//! Agents: versioned configurations that sessions pin.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AgentId, Extra, Metadata, MetadataPatch, Patch, Timestamp, Tool, ToolParam};

/// One version of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Its id, the same for all versions.
    pub id: AgentId,
    /// Always `agent`.
    #[serde(rename = "type")]
    pub kind: String,
    /// 1 for the first version.
    pub version: u64,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// The model and how it is asked.
    pub model: ModelConfig,
    /// The system prompt.
    pub system: Option<String>,
    /// Its tools, resolved.
    pub tools: Vec<Tool>,
    /// Its MCP servers.
    pub mcp_servers: Vec<McpServer>,
    /// Its skills.
    pub skills: Vec<Skill>,
    /// Other agents that it may use.
    pub multiagent: Option<Value>,
    /// As whom it acts.
    pub execution_identity: Value,
    /// Free pairs.
    pub metadata: Metadata,
    /// When the agent was made.
    pub created_at: Timestamp,
    /// When this version was made.
    pub updated_at: Timestamp,
    /// When the agent was archived.
    pub archived_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An agent as a session has pinned it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionAgent {
    /// The agent.
    pub id: AgentId,
    /// Always `agent`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The version that was pinned.
    pub version: u64,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// The model and how it is asked.
    pub model: ModelConfig,
    /// The system prompt.
    pub system: Option<String>,
    /// Its tools, resolved.
    pub tools: Vec<Tool>,
    /// Its MCP servers.
    pub mcp_servers: Vec<McpServer>,
    /// Its skills.
    pub skills: Vec<Skill>,
    /// Other agents that it may use.
    #[serde(default)]
    pub multiagent: Option<Value>,
    /// As whom it acts.
    pub execution_identity: Value,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

impl From<&Agent> for SessionAgent {
    fn from(agent: &Agent) -> SessionAgent {
        SessionAgent {
            id: agent.id.clone(),
            kind: "agent".to_owned(),
            version: agent.version,
            name: agent.name.clone(),
            description: agent.description.clone(),
            model: agent.model.clone(),
            system: agent.system.clone(),
            tools: agent.tools.clone(),
            mcp_servers: agent.mcp_servers.clone(),
            skills: agent.skills.clone(),
            multiagent: agent.multiagent.clone(),
            execution_identity: agent.execution_identity.clone(),
            extra: Extra::new(),
        }
    }
}

/// The model and how it is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The model's id.
    pub id: String,
    /// How hard it tries: `{"type": level}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Value>,
    /// `standard` or `fast`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<String>,
    /// Where inference runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_geo: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

impl ModelConfig {
    /// The effort's level.
    pub fn effort_name(&self) -> Option<&str> {
        self.effort.as_ref()?.get("type")?.as_str()
    }

    /// The speed, when it is not the standard one.
    pub fn speed_name(&self) -> Option<&str> {
        self.speed.as_deref().filter(|speed| *speed != "standard")
    }
}

/// A model as it is asked for: an id, or an object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "must be a model id or an object with id, effort, speed and inference_geo")]
pub enum ModelParam {
    /// An id.
    Id(String),
    /// An object.
    Config(ModelConfigParam),
}

/// A model as it is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as in ModelConfig; the effort may be a bare level")]
pub struct ModelConfigParam {
    pub id: String,
    #[serde(default)]
    pub effort: Option<Value>,
    #[serde(default)]
    pub speed: Option<String>,
    #[serde(default)]
    pub inference_geo: Option<String>,
}

/// The levels of effort.
pub const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];

impl ModelParam {
    /// The resolved form: effort `high` and speed `standard` unless told, the effort of `stored` when that is the same
    /// model.
    ///
    /// # Errors
    /// What is wrong, naming the field below `model`.
    pub fn resolve(self, stored: Option<&ModelConfig>) -> Result<ModelConfig, String> {
        let param = match self {
            ModelParam::Id(id) => ModelConfigParam { id, effort: None, speed: None, inference_geo: None },
            ModelParam::Config(config) => config,
        };
        if param.id.is_empty() {
            return Err("id: must not be empty".to_owned());
        }
        let effort = match param.effort {
            None => match stored {
                Some(stored) if stored.id == param.id && stored.effort.is_some() => stored.effort.clone(),
                _ => Some(serde_json::json!({"type": "high"})),
            },
            Some(effort) => {
                let level = effort.as_str().or_else(|| effort.get("type").and_then(Value::as_str));
                let level = level.filter(|level| EFFORTS.contains(level)).ok_or_else(|| {
                    format!("effort: must be one of {} or an object of that type", EFFORTS.join(", "))
                })?;
                Some(serde_json::json!({"type": level}))
            }
        };
        let speed = param.speed.unwrap_or_else(|| "standard".to_owned());
        if speed != "standard" && speed != "fast" {
            return Err("speed: must be standard or fast".to_owned());
        }
        Ok(ModelConfig {
            id: param.id,
            effort,
            speed: Some(speed),
            inference_geo: param.inference_geo,
            extra: Extra::new(),
        })
    }
}

/// A remote MCP server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct McpServer {
    /// Always `url`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name, unique within the agent.
    pub name: String,
    /// Where it is.
    pub url: String,
}

/// A skill of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Skill {
    /// `anthropic` or `custom`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The skill.
    pub skill_id: String,
    /// Its version, or `latest`.
    pub version: String,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A skill as it is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkillParam {
    /// `anthropic` or `custom`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The skill.
    pub skill_id: String,
    /// Its version; `latest` when left out.
    #[serde(default)]
    pub version: Option<String>,
}

impl SkillParam {
    /// The resolved form.
    pub fn resolve(self) -> Skill {
        Skill {
            kind: self.kind,
            skill_id: self.skill_id,
            version: self.version.unwrap_or_else(|| "latest".to_owned()),
            extra: Extra::new(),
        }
    }
}

/// The body that creates an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as in Agent")]
pub struct AgentCreate {
    pub model: ModelParam,
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub system: Option<String>,
    #[serde(default)]
    pub tools: Option<Vec<ToolParam>>,
    #[serde(default)]
    pub mcp_servers: Option<Vec<McpServer>>,
    #[serde(default)]
    pub skills: Option<Vec<SkillParam>>,
    #[serde(default)]
    pub multiagent: Option<Value>,
    #[serde(default)]
    pub execution_identity: Option<Value>,
    #[serde(default)]
    pub metadata: Option<Metadata>,
}

/// The body that changes an agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "as in Agent")]
pub struct AgentUpdate {
    /// The version that the change was made for; another one is a conflict.
    pub version: Option<u64>,
    pub model: Option<ModelParam>,
    pub name: Option<String>,
    pub description: Patch<String>,
    pub system: Patch<String>,
    pub tools: Patch<Vec<ToolParam>>,
    pub mcp_servers: Patch<Vec<McpServer>>,
    pub skills: Patch<Vec<SkillParam>>,
    pub multiagent: Patch<Value>,
    pub execution_identity: Patch<Value>,
    pub metadata: Option<MetadataPatch>,
}
