//! The rules of the API for credentials, checked field by field so that each error names its own.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use palisade_api::Secret;
use reqwest::Url;
use serde_json::{Map, Value as Json};

use super::{
    AllowedHost, Auth, Credential, CredentialError, InjectionLocation, MAX_CREDENTIALS, MAX_HOSTS, Networking,
    Provenance, Refresh, TokenEndpointAuth, Value,
};

type Read<T> = Result<T, CredentialError>;

pub(super) struct Reader {
    pub(super) provenance: Provenance,
}

/// The members of an object, and where it is.
struct Object<'a> {
    members: &'a Map<String, Json>,
    at: String,
}

fn error<T>(field: impl Into<String>, why: impl Into<String>) -> Read<T> {
    Err(CredentialError { field: field.into(), why: why.into() })
}

fn below(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

impl<'a> Object<'a> {
    fn new(json: &'a Json, at: &str) -> Read<Self> {
        match json.as_object() {
            Some(members) => Ok(Self { members, at: at.to_owned() }),
            None => error(at, format!("must be an object, not {}", kind(json))),
        }
    }

    fn at(&self, name: &str) -> String {
        below(&self.at, name)
    }

    /// Refuses members of other names. A name is shown only if it looks like one: somebody may have put a secret there.
    fn only(&self, known: &[&str]) -> Read<()> {
        let Some(name) = self.members.keys().find(|name| !known.contains(&name.as_str())) else { return Ok(()) };
        let plain = name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let shown = if plain { format!("the unknown field `{name}`") } else { "an unknown field".to_owned() };
        let known = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        error(&self.at, format!("has {shown}; known are {known}"))
    }

    fn needed(&self, name: &str) -> Read<&'a Json> {
        match self.members.get(name) {
            Some(Json::Null) => error(self.at(name), "must not be null"),
            Some(json) => Ok(json),
            None => error(self.at(name), "is missing"),
        }
    }

    /// A member that may be left out or null.
    fn maybe(&self, name: &str) -> Option<&'a Json> {
        self.members.get(name).filter(|json| !json.is_null())
    }

    fn text(&self, name: &str) -> Read<&'a str> {
        text(self.needed(name)?, &self.at(name))
    }

    fn maybe_text(&self, name: &str) -> Read<Option<&'a str>> {
        self.maybe(name).map(|json| text(json, &self.at(name))).transpose()
    }
}

fn text<'a>(json: &'a Json, at: &str) -> Read<&'a str> {
    match json.as_str() {
        Some("") => error(at, "must not be empty"),
        Some(text) => Ok(text),
        None => error(at, format!("must be a string, not {}", kind(json))),
    }
}

impl Reader {
    pub(super) fn file(&self, json: &Json) -> Read<Vec<Credential>> {
        let file = Object::new(json, "")?;
        file.only(&["credentials"])?;
        let all = file.needed("credentials")?;
        let Some(all) = all.as_array() else {
            return error("credentials", format!("must be an array, not {}", kind(all)));
        };
        if all.len() > MAX_CREDENTIALS {
            return error("credentials", format!("has {}, and at most {MAX_CREDENTIALS} are possible", all.len()));
        }
        all.iter().enumerate().map(|(index, json)| self.credential(json, &format!("credentials[{index}]"))).collect()
    }

    pub(super) fn credential(&self, json: &Json, at: &str) -> Read<Credential> {
        let credential = Object::new(json, at)?;
        credential.only(&["auth", "display_name", "metadata"])?;
        let display_name = credential.maybe_text("display_name")?;
        if display_name.is_some_and(|name| name.chars().count() > 255) {
            return error(credential.at("display_name"), "has more than 255 characters");
        }
        let mut metadata = BTreeMap::new();
        if let Some(json) = credential.members.get("metadata") {
            let labels = Object::new(json, &credential.at("metadata"))?;
            for (name, value) in labels.members {
                let Some(value) = value.as_str() else {
                    return error(&labels.at, format!("must have strings only, not {}", kind(value)));
                };
                metadata.insert(name.clone(), value.to_owned());
            }
        }
        let auth = self.auth(credential.needed("auth")?, &credential.at("auth"))?;
        Ok(Credential { display_name: display_name.map(str::to_owned), metadata, auth })
    }

    fn auth(&self, json: &Json, at: &str) -> Read<Auth> {
        let auth = Object::new(json, at)?;
        match auth.text("type")? {
            "environment_variable" => {
                auth.only(&["type", "secret_name", "secret_value", "networking", "injection_location"])?;
                let injection_location = match auth.members.get("injection_location") {
                    None => InjectionLocation { header: true, body: true },
                    Some(json) => injection_location(json, &auth.at("injection_location"))?,
                };
                Ok(Auth::EnvironmentVariable {
                    secret_name: variable(auth.text("secret_name")?, &auth.at("secret_name"))?,
                    secret_value: self.value(&auth, "secret_value")?,
                    networking: networking(auth.needed("networking")?, &auth.at("networking"))?,
                    injection_location,
                })
            }
            "static_bearer" => {
                auth.only(&["type", "mcp_server_url", "token"])?;
                Ok(Auth::StaticBearer {
                    mcp_server_url: server(auth.text("mcp_server_url")?, &auth.at("mcp_server_url"))?,
                    token: self.value(&auth, "token")?,
                })
            }
            "mcp_oauth" => {
                auth.only(&["type", "mcp_server_url", "access_token", "expires_at", "refresh"])?;
                let expires_at = match auth.maybe_text("expires_at")? {
                    None => None,
                    Some(text) => match text.parse() {
                        Ok(time) => Some(time),
                        Err(_) => {
                            return error(
                                auth.at("expires_at"),
                                "must be an RFC 3339 timestamp such as 2026-11-01T08:00:00Z",
                            );
                        }
                    },
                };
                let refresh = match auth.maybe("refresh") {
                    None => None,
                    Some(json) => Some(Box::new(self.refresh(json, &auth.at("refresh"))?)),
                };
                Ok(Auth::McpOauth {
                    mcp_server_url: server(auth.text("mcp_server_url")?, &auth.at("mcp_server_url"))?,
                    access_token: self.value(&auth, "access_token")?,
                    expires_at,
                    refresh,
                })
            }
            _ => error(auth.at("type"), "must be `environment_variable`, `static_bearer` or `mcp_oauth`"),
        }
    }

    fn refresh(&self, json: &Json, at: &str) -> Read<Refresh> {
        let refresh = Object::new(json, at)?;
        refresh.only(&["client_id", "refresh_token", "token_endpoint", "token_endpoint_auth", "resource", "scope"])?;
        let at = refresh.at("token_endpoint_auth");
        let auth = Object::new(refresh.needed("token_endpoint_auth")?, &at)?;
        let token_endpoint_auth = match auth.text("type")? {
            "none" => {
                auth.only(&["type"])?;
                TokenEndpointAuth::None
            }
            "client_secret_basic" => {
                auth.only(&["type", "client_secret"])?;
                TokenEndpointAuth::ClientSecretBasic { client_secret: self.value(&auth, "client_secret")? }
            }
            "client_secret_post" => {
                auth.only(&["type", "client_secret"])?;
                TokenEndpointAuth::ClientSecretPost { client_secret: self.value(&auth, "client_secret")? }
            }
            _ => return error(auth.at("type"), "must be `none`, `client_secret_basic` or `client_secret_post`"),
        };
        let token_endpoint = refresh.text("token_endpoint")?;
        url(token_endpoint, &refresh.at("token_endpoint"))?;
        Ok(Refresh {
            client_id: refresh.text("client_id")?.to_owned(),
            refresh_token: self.value(&refresh, "refresh_token")?,
            token_endpoint: token_endpoint.to_owned(),
            token_endpoint_auth,
            resource: refresh.maybe_text("resource")?.map(str::to_owned),
            scope: refresh.maybe_text("scope")?.map(str::to_owned),
        })
    }

    /// A secret member.
    fn value(&self, object: &Object<'_>, name: &str) -> Read<Value> {
        let (json, at) = (object.needed(name)?, object.at(name));
        match (self.provenance, json) {
            (Provenance::Api, json) => Ok(Value::Given(Secret::new(text(json, &at)?))),
            (Provenance::File, Json::Object(_)) => {
                let source = Object::new(json, &at)?;
                source.only(&["from"])?;
                match source.text("from")?.parse() {
                    Ok(reference) => Ok(Value::From(reference)),
                    Err(why) => error(source.at("from"), format!("{why}")),
                }
            }
            (Provenance::File, _) => error(
                at,
                "must say where the secret is, such as `{\"from\": \"sealed:NAME\"}`: a file holds no secrets. \
                 `palisade vault add` keeps them; if one was written here, replace it where it is used",
            ),
        }
    }
}

fn variable(name: &str, at: &str) -> Read<String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.len() > 255 || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(good) {
        return error(at, "must be the name of a variable: letters, digits and `_`, not first a digit");
    }
    Ok(name.to_owned())
}

fn injection_location(json: &Json, at: &str) -> Read<InjectionLocation> {
    if json.is_null() {
        return error(at, "must not be null; leave it out for both locations");
    }
    let location = Object::new(json, at)?;
    location.only(&["header", "body"])?;
    let member = |name: &str| match location.members.get(name) {
        None => Ok(false),
        Some(Json::Bool(value)) => Ok(*value),
        Some(other) => error(location.at(name), format!("must be true or false, not {}", kind(other))),
    };
    let chosen = InjectionLocation { header: member("header")?, body: member("body")? };
    if !chosen.header && !chosen.body {
        return error(at, "allows no location; set `header` or `body` to true, or leave it out for both");
    }
    Ok(chosen)
}

fn networking(json: &Json, at: &str) -> Read<Networking> {
    let networking = Object::new(json, at)?;
    match networking.text("type")? {
        "unrestricted" => {
            networking.only(&["type"])?;
            Ok(Networking::Unrestricted)
        }
        "limited" => {
            networking.only(&["type", "allowed_hosts"])?;
            let at = networking.at("allowed_hosts");
            let json = networking.needed("allowed_hosts")?;
            let Some(all) = json.as_array() else {
                return error(at, format!("must be an array, not {}", kind(json)));
            };
            if all.is_empty() {
                return error(at, "is empty, so the value could be sent nowhere; name at least one host");
            }
            if all.len() > MAX_HOSTS {
                return error(at, format!("has {} hosts, and at most {MAX_HOSTS} are possible", all.len()));
            }
            let mut hosts = Vec::with_capacity(all.len());
            for (index, json) in all.iter().enumerate() {
                let at = format!("{at}[{index}]");
                let host = host(text(json, &at)?, &at)?;
                if !hosts.contains(&host) {
                    hosts.push(host);
                }
            }
            Ok(Networking::Limited { allowed_hosts: hosts })
        }
        _ => error(networking.at("type"), "must be `unrestricted` or `limited`"),
    }
}

fn host(text: &str, at: &str) -> Read<AllowedHost> {
    if text.contains("://") {
        return error(at, "must be a bare host, not a URL");
    }
    if text.trim_matches(['[', ']']).parse::<Ipv6Addr>().is_ok() {
        return error(at, "must be a name or an IPv4 address; IPv6 addresses are not possible");
    }
    if text.contains(['/', '?', '#', '@']) {
        return error(at, "must be a bare host, without a path or a user name");
    }
    if text.contains(':') {
        return error(at, "must be a bare host, without a port");
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(AllowedHost::Address(address));
    }
    let (wild, name) = match text.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if name.contains('*') {
        return error(at, "can have a wildcard only as its whole first label, such as `*.example.com`");
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > 253 || !name.split('.').all(label) {
        return error(at, "must be a host name of letters, digits and `-`; write others in their `xn--` form");
    }
    // Resolvers take such names for addresses.
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x")) {
        return error(at, "looks like an address in an unusual form; write it as four numbers, such as 192.0.2.1");
    }
    let name = name.to_ascii_lowercase();
    Ok(if wild { AllowedHost::Below(name) } else { AllowedHost::Name(name) })
}

fn url(text: &str, at: &str) -> Read<Url> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
            if !url.username().is_empty() || url.password().is_some() {
                return error(at, "must not hold a user name or a password");
            }
            Ok(url)
        }
        _ => error(at, "must be an http or https URL"),
    }
}

/// A server's URL in the form in which two are compared: scheme and host in lower case, no default port, no slash at the end.
fn server(text: &str, at: &str) -> Read<String> {
    let url = url(text, at)?;
    if url.fragment().is_some() {
        return error(at, "must not have a fragment");
    }
    let text = url.as_str();
    // The slash of a query's value is not the path's.
    Ok(if url.query().is_none() { text.trim_end_matches('/').to_owned() } else { text.to_owned() })
}
