//! Tools of an agent: as asked for, as resolved, and the rules that guard them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Extra;

/// The built-in tools of `agent_toolset_20260401`.
pub const BUILTIN_TOOLS: [&str; 8] = ["bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search"];

/// When a call may run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum PermissionPolicy {
    /// Always.
    AlwaysAllow {},
    /// When a person has allowed it.
    AlwaysAsk {},
    /// The server judges each call.
    Auto {},
}

/// A tool of an agent, with everything resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Tool {
    /// The built-in tools.
    #[serde(rename = "agent_toolset_20260401")]
    AgentToolset(AgentToolset),
    /// The tools of an MCP server.
    #[serde(rename = "mcp_toolset")]
    McpToolset(McpToolset),
    /// A tool that the API client runs.
    #[serde(rename = "custom")]
    Custom(CustomTool),
    /// Anything else.
    #[serde(untagged)]
    Unknown(Extra),
}

/// The built-in tools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentToolset {
    /// What holds for tools without an entry.
    pub default_config: ToolDefault,
    /// The tools that differ.
    pub configs: Vec<BuiltinConfig>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The tools of an MCP server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct McpToolset {
    /// The server's name in the agent.
    pub mcp_server_name: String,
    /// What holds for tools without an entry.
    pub default_config: ToolDefault,
    /// The tools that differ.
    pub configs: Vec<McpConfig>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What holds for tools without an entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolDefault {
    /// Whether they may be used.
    pub enabled: bool,
    /// When.
    pub permission_policy: PermissionPolicy,
}

/// One built-in tool's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuiltinConfig {
    /// The same as the name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The tool.
    pub name: String,
    /// Whether it may be used.
    pub enabled: bool,
    /// When.
    pub permission_policy: PermissionPolicy,
    /// Fields of the web tools, and unknown ones.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One MCP tool's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct McpConfig {
    /// The tool.
    pub name: String,
    /// Whether it may be used.
    pub enabled: bool,
    /// When.
    pub permission_policy: PermissionPolicy,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A tool that the API client runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CustomTool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its input.
    pub input_schema: Value,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What holds for one tool.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedTool {
    /// Whether it may be used.
    pub enabled: bool,
    /// When.
    pub policy: PermissionPolicy,
}

impl AgentToolset {
    /// What holds for this built-in tool: its own entry, else the default. None for a name that is not built in.
    pub fn tool(&self, name: &str) -> Option<ResolvedTool> {
        if !BUILTIN_TOOLS.contains(&name) {
            return None;
        }
        let own = self.configs.iter().find(|config| config.name == name);
        Some(own.map_or_else(
            || ResolvedTool {
                enabled: self.default_config.enabled,
                policy: self.default_config.permission_policy.clone(),
            },
            |config| ResolvedTool { enabled: config.enabled, policy: config.permission_policy.clone() },
        ))
    }
}

/// A tool as it is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum ToolParam {
    /// The built-in tools.
    #[serde(rename = "agent_toolset_20260401")]
    AgentToolset {
        /// What holds for tools without an entry.
        #[serde(default)]
        default_config: Option<ToolDefaultParam>,
        /// The tools that differ.
        #[serde(default)]
        configs: Option<Vec<BuiltinConfigParam>>,
    },
    /// The tools of an MCP server.
    #[serde(rename = "mcp_toolset")]
    McpToolset {
        /// The server's name in the agent.
        mcp_server_name: String,
        /// What holds for tools without an entry.
        #[serde(default)]
        default_config: Option<ToolDefaultParam>,
        /// The tools that differ.
        #[serde(default)]
        configs: Option<Vec<McpConfigParam>>,
    },
    /// A tool that the API client runs.
    #[serde(rename = "custom")]
    Custom {
        /// Its name.
        name: String,
        /// What it does.
        description: String,
        /// JSON Schema of its input.
        input_schema: Value,
    },
}

/// Defaults as they are asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolDefaultParam {
    /// Whether tools may be used.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// When.
    #[serde(default)]
    pub permission_policy: Option<PermissionPolicy>,
}

/// A built-in tool's entry as it is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as in BuiltinConfig; the last six are fields of the web tools")]
pub struct BuiltinConfigParam {
    pub name: String,
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    #[serde(default)]
    pub enabled: Option<bool>,
    #[serde(default)]
    pub permission_policy: Option<PermissionPolicy>,
    #[serde(default)]
    pub allowed_domains: Option<Vec<String>>,
    #[serde(default)]
    pub blocked_domains: Option<Vec<String>>,
    #[serde(default)]
    pub user_location: Option<Value>,
    #[serde(default)]
    pub max_content_tokens: Option<u64>,
    #[serde(default)]
    pub url_sources: Option<Value>,
}

/// An MCP tool's entry as it is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as in McpConfig")]
pub struct McpConfigParam {
    pub name: String,
    #[serde(default)]
    pub enabled: Option<bool>,
    #[serde(default)]
    pub permission_policy: Option<PermissionPolicy>,
}

fn resolve_default(param: Option<ToolDefaultParam>, policy: PermissionPolicy) -> ToolDefault {
    let param = param.unwrap_or_default();
    ToolDefault { enabled: param.enabled.unwrap_or(true), permission_policy: param.permission_policy.unwrap_or(policy) }
}

impl ToolParam {
    /// The resolved form, with the documented defaults filled in: `always_allow` for built-in tools, `always_ask` for
    /// those of MCP servers.
    pub fn resolve(self) -> Tool {
        match self {
            ToolParam::AgentToolset { default_config, configs } => {
                let default_config = resolve_default(default_config, PermissionPolicy::AlwaysAllow {});
                let configs = configs
                    .unwrap_or_default()
                    .into_iter()
                    .map(|config| {
                        let mut extra = Extra::new();
                        let mut keep = |name: &str, value: Option<Value>| {
                            if let Some(value) = value {
                                extra.insert(name.to_owned(), value);
                            }
                        };
                        keep("allowed_domains", config.allowed_domains.map(Value::from));
                        keep("blocked_domains", config.blocked_domains.map(Value::from));
                        keep("user_location", config.user_location);
                        keep("max_content_tokens", config.max_content_tokens.map(Value::from));
                        if config.name == "web_fetch" {
                            extra.insert("url_sources".to_owned(), config.url_sources.unwrap_or(Value::Null));
                        }
                        BuiltinConfig {
                            kind: config.name.clone(),
                            name: config.name,
                            enabled: config.enabled.unwrap_or(default_config.enabled),
                            permission_policy: config
                                .permission_policy
                                .unwrap_or_else(|| default_config.permission_policy.clone()),
                            extra,
                        }
                    })
                    .collect();
                Tool::AgentToolset(AgentToolset { default_config, configs, extra: Extra::new() })
            }
            ToolParam::McpToolset { mcp_server_name, default_config, configs } => {
                let default_config = resolve_default(default_config, PermissionPolicy::AlwaysAsk {});
                let configs = configs
                    .unwrap_or_default()
                    .into_iter()
                    .map(|config| McpConfig {
                        name: config.name,
                        enabled: config.enabled.unwrap_or(default_config.enabled),
                        permission_policy: config
                            .permission_policy
                            .unwrap_or_else(|| default_config.permission_policy.clone()),
                        extra: Extra::new(),
                    })
                    .collect();
                Tool::McpToolset(McpToolset { mcp_server_name, default_config, configs, extra: Extra::new() })
            }
            ToolParam::Custom { name, description, input_schema } => {
                Tool::Custom(CustomTool { name, description, input_schema, extra: Extra::new() })
            }
        }
    }
}
