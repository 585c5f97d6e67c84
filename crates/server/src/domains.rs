//! Rules of the web tools' fields (D8).

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// Suffixes that never name a public host.
const PRIVATE: [&str; 5] = ["localhost", "local", "internal", "localdomain", "invalid"];
/// Public suffixes of two labels under which anyone can register; single labels are refused anyway. Not the whole list: it
/// changes weekly, and these are the ones that people write by mistake.
const SUFFIXES: [&str; 12] = [
    "co.uk",
    "org.uk",
    "ac.uk",
    "gov.uk",
    "com.au",
    "net.au",
    "org.au",
    "co.jp",
    "co.nz",
    "com.br",
    "co.in",
    "github.io",
];

/// A list of domains.
pub(crate) fn list(domains: &[String], paths: bool) -> Result<(), String> {
    if domains.is_empty() || domains.len() > 64 {
        return Err("must hold 1 to 64 domains; leave it out for no rule".to_owned());
    }
    let mut seen = BTreeSet::new();
    for domain in domains {
        check(domain, paths).map_err(|why| format!("{domain:?} {why}"))?;
        if !seen.insert(domain.to_ascii_lowercase()) {
            return Err(format!("{domain:?} is given twice"));
        }
    }
    Ok(())
}

fn check(domain: &str, paths: bool) -> Result<(), &'static str> {
    if domain.is_empty() || domain.len() > 255 {
        return Err("must have 1 to 255 characters");
    }
    if !domain.is_ascii() {
        return Err("must be ASCII: write an international name in its xn-- form");
    }
    if domain.contains("://") {
        return Err("must not have a scheme");
    }
    let (host, path) = domain.split_once('/').map_or((domain, None), |(host, path)| (host, Some(path)));
    if path.is_some() && !paths {
        return Err("must not have a path");
    }
    if path.is_some_and(|path| path.bytes().any(|b| b.is_ascii_whitespace() || b == b'*' || b == b'?' || b == b'#')) {
        return Err("may have a plain path only");
    }
    if host.contains(':') {
        return Err("must not have a port");
    }
    if host.contains('*') {
        return Err("must not have a wildcard: a domain covers its subdomains");
    }
    let host = host.to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !host.split('.').all(label) {
        return Err("is not a host name");
    }
    let last = host.rsplit('.').next().unwrap_or_default();
    if PRIVATE.contains(&last) {
        return Err("is not a public host name");
    }
    if !host.contains('.') || SUFFIXES.contains(&host.as_str()) {
        return Err("names no single site: give at least a name below a public suffix");
    }
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err("must be a name, not an address");
    }
    Ok(())
}

/// `user_location` of `web_search`.
pub(crate) fn location(value: &Value) -> Result<(), String> {
    let Some(object) = value.as_object() else { return Err("must be an object".to_owned()) };
    if object.get("type").and_then(Value::as_str) != Some("approximate") {
        return Err("type: must be approximate".to_owned());
    }
    for (key, value) in object {
        if !matches!(key.as_str(), "type" | "city" | "country" | "region" | "timezone") {
            return Err(format!("unknown field `{key}`"));
        }
        let text = match value {
            Value::Null => continue,
            Value::String(text) if !text.is_empty() && text.chars().count() <= 255 => text,
            _ => return Err(format!("{key}: must be a text of 1 to 255 characters")),
        };
        if key == "country" && !(text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase())) {
            return Err("country: must be a code of two capital letters".to_owned());
        }
        // The form of an IANA name; whether it is in this year's list is for the provider that is asked.
        let zone = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'))
        };
        if key == "timezone" && !text.split('/').all(zone) {
            return Err("timezone: must be an IANA name such as Europe/Berlin".to_owned());
        }
    }
    Ok(())
}

const SOURCES: [&str; 3] = ["client_tool_results", "server_tool_results", "user_input"];

/// `url_sources` of `web_fetch`. `custom` are the custom tools of the same array.
pub(crate) fn url_sources(value: &Value, custom: &BTreeSet<String>) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let Some(object) = value.as_object() else { return Err("must be an object".to_owned()) };
    if let Some(key) = object.keys().find(|key| !SOURCES.contains(&key.as_str())) {
        return Err(format!("unknown field `{key}`, expected one of {}", SOURCES.join(", ")));
    }
    for name in SOURCES {
        let source = object.get(name).filter(|source| !source.is_null());
        let Some(source) = source else { continue };
        one_source(name, source, custom).map_err(|why| format!("{name}: {why}"))?;
    }
    let none = |name: &&str| {
        let source = object.get(*name);
        let kind = source.and_then(|source| source.as_str().or_else(|| source.get("type")?.as_str()));
        kind == Some("none")
    };
    if SOURCES.iter().all(none) {
        return Err("cannot all be none: disable web_fetch instead".to_owned());
    }
    Ok(())
}

fn one_source(name: &str, source: &Value, custom: &BTreeSet<String>) -> Result<(), String> {
    let kind = source.as_str().or_else(|| source.get("type").and_then(Value::as_str));
    match kind {
        Some("all" | "none") => Ok(()),
        Some("only" | "except") if name != "user_input" && source.is_object() => {
            let tools = source.get("tools").and_then(Value::as_array).filter(|tools| (1..=128).contains(&tools.len()));
            let tools = tools.ok_or("tools: must hold 1 to 128 tools")?;
            let mut seen = BTreeSet::new();
            for tool in tools {
                let reference = tool.get("type").and_then(Value::as_str) == Some("tool_reference");
                let tool = tool.get("name").and_then(Value::as_str).filter(|_| reference);
                let tool = tool.ok_or("tools: each must be an object of type tool_reference with a name")?;
                let known = match name {
                    "client_tool_results" => custom.contains(tool),
                    _ => matches!(tool, "web_search" | "web_fetch"),
                };
                if !known {
                    return Err(format!("tools: {tool:?} is not a tool that can be named here"));
                }
                if !seen.insert(tool) {
                    return Err(format!("tools: {tool:?} is given twice"));
                }
            }
            Ok(())
        }
        _ if name == "user_input" => Err("must be all or none".to_owned()),
        _ => Err("must be all, none, or an object of type only or except with tools".to_owned()),
    }
}

/// The form in answers: every key present, objects instead of bare words.
pub(crate) fn resolved_sources(value: &Value) -> Value {
    let one = |name: &str| match value.get(name) {
        None | Some(Value::Null) => Value::Null,
        Some(Value::String(kind)) => json!({"type": kind}),
        Some(other) => other.clone(),
    };
    Value::Object(SOURCES.into_iter().map(|name| (name.to_owned(), one(name))).collect())
}
