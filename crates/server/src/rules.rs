//! The rules that agents and sessions share: what their fields may hold.

use std::collections::BTreeSet;
use std::fmt::Display;

use palisade_api::{BUILTIN_TOOLS, BuiltinConfigParam, McpServer, Skill, SkillParam, Tool, ToolParam};
use serde_json::Value;

use crate::domains;
use crate::error::{Answer, Fault};

/// Tools over all toolsets of an agent.
const MAX_TOOLS: usize = 256;
const MAX_SERVERS: usize = 20;
/// Skills of one session, over all agents; there is one agent here.
const MAX_SKILLS: usize = 500;

/// Checks the length of a text, in characters.
pub(crate) fn text(field: impl Display, value: &str, least: usize, most: usize) -> Answer<()> {
    let length = value.chars().count();
    if length < least {
        return Err(Fault::field(field, format!("must have at least {least} characters")));
    }
    if length > most {
        return Err(Fault::field(field, format!("may have at most {most} characters, not {length}")));
    }
    Ok(())
}

/// An entry of `allowed_hosts`: a bare host, or `*.` and one.
pub(crate) fn host(text: &str) -> Result<(), &'static str> {
    let bare = text.strip_prefix("*.").unwrap_or(text);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if bare.len() <= 253 && bare.split('.').all(label) {
        Ok(())
    } else {
        Err("must be a bare host name, or \"*.\" and one, without scheme, port and path")
    }
}

/// The servers of an agent.
pub(crate) fn servers(servers: &[McpServer]) -> Answer<()> {
    if servers.len() > MAX_SERVERS {
        return Err(Fault::field("mcp_servers", format!("may hold at most {MAX_SERVERS} servers")));
    }
    let mut names = BTreeSet::new();
    for (index, server) in servers.iter().enumerate() {
        let at = |field: &str| format!("mcp_servers.{index}.{field}");
        if server.kind != "url" {
            return Err(Fault::field(at("type"), "must be url"));
        }
        text(at("name"), &server.name, 1, 255)?;
        if !names.insert(&server.name) {
            return Err(Fault::field(at("name"), format!("{:?} is used twice", server.name)));
        }
        let parsed = server.url.parse::<http::Uri>().ok();
        let good = parsed.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
        });
        if !good {
            return Err(Fault::field(at("url"), "must be an absolute http or https URL"));
        }
    }
    Ok(())
}

/// Checks tools as they are asked for, and resolves them.
pub(crate) fn tools(params: Vec<ToolParam>) -> Answer<Vec<Tool>> {
    let mut custom = BTreeSet::new();
    let mut toolsets = BTreeSet::new();
    let mut count = 0;
    for (index, param) in params.iter().enumerate() {
        let at = |field: &str| format!("tools.{index}.{field}");
        match param {
            ToolParam::AgentToolset { configs, .. } => {
                count += BUILTIN_TOOLS.len();
                if !toolsets.insert("") {
                    return Err(Fault::field(at("type"), "agent_toolset_20260401 may be given only once"));
                }
                builtin(index, configs.as_deref().unwrap_or_default())?;
            }
            ToolParam::McpToolset { mcp_server_name, configs, .. } => {
                text(at("mcp_server_name"), mcp_server_name, 1, 255)?;
                if !toolsets.insert(mcp_server_name.as_str()) {
                    return Err(Fault::field(at("mcp_server_name"), "has two toolsets: one is allowed"));
                }
                let configs = configs.as_deref().unwrap_or_default();
                count += configs.len().max(1);
                let mut names = BTreeSet::new();
                for (entry, config) in configs.iter().enumerate() {
                    let field = at(&format!("configs.{entry}.name"));
                    text(&field, &config.name, 1, 128)?;
                    if !names.insert(&config.name) {
                        return Err(Fault::field(field, format!("{:?} is configured twice", config.name)));
                    }
                }
            }
            ToolParam::Custom { name, description, input_schema } => {
                count += 1;
                custom_name(name).map_err(|why| Fault::field(at("name"), why))?;
                if !custom.insert(name.clone()) {
                    return Err(Fault::field(at("name"), format!("{name:?} is used twice")));
                }
                text(at("description"), description, 1, 100_000)?;
                schema(input_schema).map_err(|(path, why)| Fault::field(at(&format!("input_schema{path}")), why))?;
            }
        }
    }
    if count > MAX_TOOLS {
        return Err(Fault::field(
            "tools",
            format!("may hold at most {MAX_TOOLS} tools over all toolsets, not {count}"),
        ));
    }
    for (index, param) in params.iter().enumerate() {
        if let ToolParam::AgentToolset { configs: Some(configs), .. } = param {
            for (entry, config) in configs.iter().enumerate() {
                if let Some(sources) = &config.url_sources {
                    let field = format!("tools.{index}.configs.{entry}.url_sources");
                    domains::url_sources(sources, &custom).map_err(|why| Fault::field(field, why))?;
                }
            }
        }
    }
    Ok(params.into_iter().map(resolved).collect())
}

fn resolved(param: ToolParam) -> Tool {
    let mut tool = param.resolve();
    if let Tool::AgentToolset(toolset) = &mut tool {
        for config in &mut toolset.configs {
            if let Some(sources) = config.extra.get_mut("url_sources").filter(|sources| !sources.is_null()) {
                *sources = domains::resolved_sources(sources);
            }
        }
    }
    tool
}

fn builtin(index: usize, configs: &[BuiltinConfigParam]) -> Answer<()> {
    let mut names = BTreeSet::new();
    for (entry, config) in configs.iter().enumerate() {
        let at = |field: &str| format!("tools.{index}.configs.{entry}.{field}");
        let name = config.name.as_str();
        if !BUILTIN_TOOLS.contains(&name) {
            return Err(Fault::field(at("name"), format!("must be one of {}", BUILTIN_TOOLS.join(", "))));
        }
        if config.kind.as_deref().is_some_and(|kind| kind != name) {
            return Err(Fault::field(at("type"), "must be the same as the name"));
        }
        if !names.insert(name) {
            return Err(Fault::field(at("name"), format!("{name:?} is configured twice")));
        }
        let only = |field: &str, given: bool, tools: &[&str]| {
            if given && !tools.contains(&name) {
                Err(Fault::field(at(field), format!("is a field of {} only", tools.join(" and "))))
            } else {
                Ok(())
            }
        };
        only("allowed_domains", config.allowed_domains.is_some(), &["web_search", "web_fetch"])?;
        only("blocked_domains", config.blocked_domains.is_some(), &["web_search", "web_fetch"])?;
        only("user_location", config.user_location.is_some(), &["web_search"])?;
        only("max_content_tokens", config.max_content_tokens.is_some(), &["web_fetch"])?;
        only("url_sources", config.url_sources.is_some(), &["web_fetch"])?;
        if config.allowed_domains.is_some() && config.blocked_domains.is_some() {
            return Err(Fault::field(at("blocked_domains"), "cannot be given together with allowed_domains"));
        }
        for (field, list) in
            [("allowed_domains", &config.allowed_domains), ("blocked_domains", &config.blocked_domains)]
        {
            if let Some(list) = list {
                domains::list(list, name == "web_search").map_err(|why| Fault::field(at(field), why))?;
            }
        }
        if config.max_content_tokens == Some(0) {
            return Err(Fault::field(at("max_content_tokens"), "must be positive"));
        }
        if let Some(location) = &config.user_location {
            domains::location(location).map_err(|why| Fault::field(at("user_location"), why))?;
        }
    }
    Ok(())
}

fn custom_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if name.is_empty() || name.len() > 128 || !plain {
        return Err("must have 1 to 128 letters, digits, '_' or '-'".to_owned());
    }
    if BUILTIN_TOOLS.contains(&name) {
        return Err(format!("{name:?} is the name of a built-in tool"));
    }
    match ["mcp__", "ant__"].into_iter().find(|prefix| name.starts_with(prefix)) {
        Some(prefix) => Err(format!("must not start with {prefix:?}")),
        None => Ok(()),
    }
}

/// The input of a custom tool (D10): a plain object schema.
fn schema(schema: &Value) -> Result<(), (String, String)> {
    let top = |path: &str, why: &str| Err((path.to_owned(), why.to_owned()));
    let Some(object) = schema.as_object() else { return top("", "must be a JSON Schema object") };
    if object.get("type").and_then(Value::as_str) != Some("object") {
        return top(".type", "must be object");
    }
    for word in ["oneOf", "anyOf", "allOf"] {
        if object.contains_key(word) {
            return top(&format!(".{word}"), "is not allowed at the top of a tool's schema");
        }
    }
    match object.get("properties") {
        None | Some(Value::Null | Value::Object(_)) => {}
        Some(_) => return top(".properties", "must be an object"),
    }
    match object.get("required") {
        None | Some(Value::Null) => {}
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => {}
        Some(_) => return top(".required", "must be an array of names"),
    }
    walk(schema, "", 0)
}

fn walk(schema: &Value, path: &str, depth: usize) -> Result<(), (String, String)> {
    if depth > 64 {
        return Err((path.to_owned(), "is nested too deeply".to_owned()));
    }
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                let below = format!("{path}.{key}");
                if key == "$ref" {
                    return Err((below, "references are not allowed: write the schema out".to_owned()));
                }
                if key == "properties"
                    && let Some(properties) = value.as_object()
                {
                    for (name, property) in properties {
                        if name.is_empty() || name.chars().count() > 64 {
                            return Err((below, format!("the property name {name:?} must have 1 to 64 characters")));
                        }
                        walk(property, &format!("{below}.{name}"), depth + 1)?;
                    }
                    continue;
                }
                // Examples and constants are data, not schemas.
                if !matches!(key.as_str(), "const" | "enum" | "default" | "examples") {
                    walk(value, &below, depth + 1)?;
                }
            }
            Ok(())
        }
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(at, item)| walk(item, &format!("{path}.{at}"), depth + 1))
        }
        _ => Ok(()),
    }
}

/// Skills as they are asked for, resolved.
pub(crate) fn skills(params: Vec<SkillParam>) -> Answer<Vec<Skill>> {
    if params.len() > MAX_SKILLS {
        return Err(Fault::field("skills", format!("may hold at most {MAX_SKILLS} skills")));
    }
    let mut ids = BTreeSet::new();
    for (index, skill) in params.iter().enumerate() {
        let at = |field: &str| format!("skills.{index}.{field}");
        if !matches!(skill.kind.as_str(), "anthropic" | "custom") {
            return Err(Fault::field(at("type"), "must be anthropic or custom"));
        }
        text(at("skill_id"), &skill.skill_id, 1, 255)?;
        if !ids.insert(&skill.skill_id) {
            return Err(Fault::field(at("skill_id"), format!("{:?} is given twice", skill.skill_id)));
        }
    }
    Ok(params.into_iter().map(SkillParam::resolve).collect())
}

/// Whether tools, servers and skills fit together.
pub(crate) fn fit(tools: &[Tool], servers: &[McpServer], skills: &[Skill]) -> Answer<()> {
    let mut used = BTreeSet::new();
    for (index, tool) in tools.iter().enumerate() {
        if let Tool::McpToolset(toolset) = tool {
            let name = toolset.mcp_server_name.as_str();
            if !servers.iter().any(|server| server.name == name) {
                let field = format!("tools.{index}.mcp_server_name");
                return Err(Fault::field(field, format!("{name:?} is not one of mcp_servers")));
            }
            used.insert(name);
        }
    }
    if let Some(index) = servers.iter().position(|server| !used.contains(server.name.as_str())) {
        return Err(Fault::field(
            format!("mcp_servers.{index}"),
            "is not used: each server needs a tool of type mcp_toolset with its name",
        ));
    }
    let reads = tools.iter().any(|tool| match tool {
        Tool::AgentToolset(toolset) => toolset.tool("read").is_some_and(|read| read.enabled),
        _ => false,
    });
    if !skills.is_empty() && !reads {
        return Err(Fault::field("skills", "need the read tool of agent_toolset_20260401 to be enabled"));
    }
    Ok(())
}
