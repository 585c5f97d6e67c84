//! `use` of a credential: what the API's credentials do not say, read field by field so that each error names its own.
//!
//! No error repeats what was given: somebody may have put a secret at the wrong place.

use palisade_egress::broker::{Exchange, Hosts, Places};
use palisade_egress::ssh::HostKey;
use serde_json::{Map, Value as Json};

/// What is wrong, at which field.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) field: String,
    pub(super) why: String,
}

fn wrong<T>(field: impl Into<String>, why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { field: field.into(), why: why.into() })
}

/// What the API's credentials do not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// What the value is.
    pub(super) kind: As,
    /// Whether it may stand in the query of a URL.
    pub(super) query: bool,
    /// Whether it may stand in the path of a URL.
    pub(super) path: bool,
    /// Whether it may go to a host without TLS.
    pub(super) cleartext: bool,
    /// A token endpoint, whose answers are sealed.
    pub(super) exchange: Option<Exchange>,
}

/// What a value is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum As {
    /// One value, such as a token or a password.
    #[default]
    Token,
    /// AWS keys as JSON, with which requests are signed again.
    AwsKeys,
    /// A certificate and its key (PEM), for TLS with upstreams.
    ClientCertificate,
    /// The private key (PEM) of a GitHub App; what is put in are tokens of one of its installations.
    GitHubApp {
        /// The app's id or client id.
        app: String,
        /// The installation's id.
        installation: String,
        /// GitHub's API.
        api: String,
    },
    /// A private key (OpenSSH's format), which the session's SSH agent signs with.
    SshKey {
        /// Who logs in.
        users: Vec<String>,
        /// The keys by which the hosts are known.
        host_keys: Vec<HostKey>,
    },
}

impl As {
    /// As it is written.
    pub(super) fn word(&self) -> &'static str {
        match self {
            As::Token => "token",
            As::AwsKeys => "aws_keys",
            As::ClientCertificate => "client_certificate",
            As::GitHubApp { .. } => "github_app",
            As::SshKey { .. } => "ssh_key",
        }
    }
}

/// An object whose members are taken one by one.
struct Object<'a> {
    members: &'a Map<String, Json>,
    at: &'static str,
}

impl<'a> Object<'a> {
    fn new(json: &'a Json, at: &'static str, known: &[&str]) -> Result<Object<'a>, Wrong> {
        let Some(members) = json.as_object() else { return wrong(at, "must be a mapping") };
        if let Some(name) = members.keys().find(|name| !known.contains(&name.as_str())) {
            let plain = name.len() <= 24 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            let shown = if plain { format!("the unknown field `{name}`") } else { "an unknown field".to_owned() };
            let known = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return wrong(at, format!("has {shown}; known are {known}"));
        }
        Ok(Object { members, at })
    }

    fn at(&self, name: &str) -> String {
        format!("{}.{name}", self.at)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, Wrong> {
        match self.members.get(name) {
            None => Ok(None),
            Some(Json::Bool(value)) => Ok(Some(*value)),
            Some(_) => wrong(self.at(name), "must be true or false"),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, Wrong> {
        match self.members.get(name) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(_) => wrong(self.at(name), "must be a string"),
        }
    }

    /// A list with one text or more, each of which `read` takes.
    fn texts<T>(&self, name: &str, what: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Wrong> {
        let list = match self.members.get(name) {
            None => return wrong(self.at(name), format!("is missing: {what}")),
            Some(Json::Array(list)) if (1..=16).contains(&list.len()) => list,
            Some(_) => return wrong(self.at(name), format!("must be a list of one to sixteen: {what}")),
        };
        let one = |(index, text): (usize, &Json)| {
            let at = format!("{}[{index}]", self.at(name));
            let Some(text) = text.as_str() else { return wrong(at, "must be a string") };
            read(text).map_err(|why| Wrong { field: at, why })
        };
        list.iter().enumerate().map(one).collect()
    }

    /// An id, which YAML takes for a number where it has digits only.
    fn id(&self, name: &str, what: &str) -> Result<String, Wrong> {
        let id = match self.members.get(name) {
            Some(Json::String(text)) => text.clone(),
            Some(Json::Number(number)) => number.to_string(),
            Some(_) => return wrong(self.at(name), format!("must be {what}")),
            None => return wrong(self.at(name), format!("is missing: {what}")),
        };
        let simple = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if id.is_empty() || id.len() > 64 || !id.bytes().all(simple) {
            return wrong(self.at(name), format!("must be {what}"));
        }
        Ok(id)
    }
}

impl Usage {
    pub(super) fn read(json: &Json) -> Result<Usage, Wrong> {
        let known =
            ["as", "query", "path", "cleartext", "exchange", "app", "installation", "api", "users", "host_keys"];
        let object = Object::new(json, "use", &known)?;
        let kind = match object.text("as")? {
            None | Some("token") => As::Token,
            Some("aws_keys") => As::AwsKeys,
            Some("client_certificate") => As::ClientCertificate,
            Some("github_app") => As::GitHubApp {
                app: object.id("app", "the app's id or client id")?,
                installation: object.id("installation", "the id of one of the app's installations")?,
                api: api(object.text("api")?.unwrap_or("https://api.github.com"))?,
            },
            Some("ssh_key") => {
                let users = object.texts("users", "the users that log in, such as [git]", |user| {
                    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
                    let name = !user.is_empty() && user.len() <= 64 && user.bytes().all(plain);
                    name.then(|| user.to_owned()).ok_or_else(|| "must be the name of a user".to_owned())
                })?;
                let host_keys = object.texts(
                    "host_keys",
                    "the public keys of the hosts, as `ssh-keyscan HOST` prints them behind the host's name",
                    |key| HostKey::parse(key).map_err(|why| why.to_string()),
                )?;
                As::SshKey { users, host_keys }
            }
            Some(_) => {
                let why = "must be `token`, `aws_keys`, `client_certificate`, `github_app` or `ssh_key`";
                return wrong("use.as", why);
            }
        };
        if !matches!(kind, As::SshKey { .. })
            && let Some(name) = ["users", "host_keys"].into_iter().find(|name| object.members.contains_key(*name))
        {
            return wrong(object.at(name), "is for SSH keys; write `as: ssh_key` with it, or leave it out");
        }
        if !matches!(kind, As::GitHubApp { .. })
            && let Some(name) =
                ["app", "installation", "api"].into_iter().find(|name| object.members.contains_key(*name))
        {
            return wrong(object.at(name), "is for GitHub Apps; write `as: github_app` with it, or leave it out");
        }
        let exchange = object.members.get("exchange").map(exchange).transpose()?;
        if exchange.is_some() && kind != As::Token {
            return wrong("use.exchange", "is for tokens; leave it out, or write `as: token`");
        }
        let flag = |name| object.flag(name).map(Option::unwrap_or_default);
        Ok(Usage { kind, query: flag("query")?, path: flag("path")?, cleartext: flag("cleartext")?, exchange })
    }
}

fn exchange(json: &Json) -> Result<Exchange, Wrong> {
    let object = Object::new(json, "use.exchange", &["path", "allowed_hosts", "injection_location"])?;
    let Some(path) = object.text("path")? else {
        return wrong("use.exchange.path", "is missing: the path of the token endpoint, such as `/oauth/token`");
    };
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#')) {
        return wrong("use.exchange.path", "must be a path without a query, such as `/oauth/token`");
    }
    let hosts = match object.members.get("allowed_hosts") {
        None => None,
        Some(Json::Array(hosts)) if !hosts.is_empty() => {
            let mut names = Vec::new();
            for (index, host) in hosts.iter().enumerate() {
                let parsed = host.as_str().map(|host| Hosts::limited(&[host]));
                match (host.as_str(), parsed) {
                    (Some(host), Some(Ok(_))) => names.push(host),
                    _ => {
                        let at = format!("use.exchange.allowed_hosts[{index}]");
                        return wrong(at, "must be a bare host, an IPv4 address, or `*.example.com`");
                    }
                }
            }
            Hosts::limited(&names).ok()
        }
        Some(_) => return wrong("use.exchange.allowed_hosts", "must be a list of one host or more, or be left out"),
    };
    let places = match object.members.get("injection_location") {
        None => Places::default(),
        Some(json) => {
            let at = "use.exchange.injection_location";
            let object = Object::new(json, at, &["header", "query", "path", "body"])?;
            let flag = |name| object.flag(name).map(Option::unwrap_or_default);
            let places =
                Places { header: flag("header")?, query: flag("query")?, path: flag("path")?, body: flag("body")? };
            if !(places.header || places.query || places.path || places.body) {
                return wrong(at, "allows no location; set one to true, or leave it out for headers only");
            }
            places
        }
    };
    Ok(Exchange { path: path.to_owned(), hosts, places })
}

/// GitHub's API, to which the app's key speaks: over TLS, or on this machine.
fn api(text: &str) -> Result<String, Wrong> {
    let url = reqwest::Url::parse(text).ok().filter(|url| url.has_host() && url.username().is_empty());
    let url = url.filter(|url| url.password().is_none() && url.query().is_none() && url.fragment().is_none());
    match url {
        Some(url) if url.scheme() == "https" || (url.scheme() == "http" && crate::client::is_loopback(&url)) => {
            Ok(text.to_owned())
        }
        _ => wrong("use.api", "must be an https URL, such as `https://github.example.com/api/v3`"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_names_its_field_and_repeats_nothing() {
        let app = json!({"as": "github_app", "app": 1234, "installation": "99"});
        let As::GitHubApp { app, installation, api } = Usage::read(&app).unwrap().kind else { panic!() };
        assert_eq!((&*app, &*installation, &*api), ("1234", "99", "https://api.github.com"));
        let exchange = json!({"exchange": {"path": "/token", "allowed_hosts": ["api.example.com"]}});
        let exchange = Usage::read(&exchange).unwrap().exchange.unwrap();
        assert_eq!((&*exchange.path, exchange.places), ("/token", Places::default()));
        for (field, json) in [
            ("use", json!("CANARY")),
            ("use", json!({"CANARY": 1})),
            ("use.as", json!({"as": "CANARY"})),
            ("use.as", json!({"as": 7})),
            ("use.query", json!({"query": "CANARY"})),
            ("use.app", json!({"as": "github_app", "installation": 1})),
            ("use.app", json!({"as": "token", "app": "CANARY"})),
            ("use.installation", json!({"as": "github_app", "app": 1, "installation": "../CANARY"})),
            ("use.api", json!({"as": "github_app", "app": 1, "installation": 1, "api": "http://CANARY"})),
            ("use.api", json!({"as": "github_app", "app": 1, "installation": 1, "api": "https://u:CANARY@h"})),
            ("use.users", json!({"users": ["CANARY"]})),
            ("use.users", json!({"as": "ssh_key"})),
            ("use.users", json!({"as": "ssh_key", "users": []})),
            ("use.users[1]", json!({"as": "ssh_key", "users": ["git", "CANARY x"]})),
            ("use.host_keys", json!({"as": "ssh_key", "users": ["git"], "host_keys": "CANARY"})),
            ("use.host_keys[0]", json!({"as": "ssh_key", "users": ["git"], "host_keys": ["CANARY"]})),
            ("use.exchange", json!({"exchange": "CANARY"})),
            ("use.exchange", json!({"as": "aws_keys", "exchange": {"path": "/t"}})),
            ("use.exchange.path", json!({"exchange": {}})),
            ("use.exchange.path", json!({"exchange": {"path": "/t?x=CANARY"}})),
            ("use.exchange.allowed_hosts", json!({"exchange": {"path": "/t", "allowed_hosts": []}})),
            ("use.exchange.allowed_hosts[1]", json!({"exchange": {"path": "/t", "allowed_hosts": ["a", "b/CANARY"]}})),
            ("use.exchange.injection_location", json!({"exchange": {"path": "/t", "injection_location": {}}})),
        ] {
            let wrong = Usage::read(&json).expect_err("a refusal");
            assert_eq!(wrong.field, field, "{json}");
            assert!(!format!("{wrong:?}").contains("CANARY"), "{wrong:?}");
        }
    }
}
