//! What sessions may use: which credentials there are, for whom, and how their values come from the vault.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use palisade_api::Secret;
use palisade_egress::broker::{Credential, Fetch, GitHubApp, Hosts, Kind, Places};
use palisade_egress::ssh::SshKey;
use palisade_egress::{Supply, SupplyError};
use palisade_vault::{
    Auth, Clock, ConfigError, Credential as Stored, InjectionLocation, Networking, Provenance, Reference, Session,
    Surroundings, Value, Vault, VaultConfig, VaultError,
};
use serde_json::{Map, Value as Json};
use serde_yaml_ng::Value as Yaml;

use super::Whose;
use super::usage::{As, Usage};
use crate::pace::unix_now;

/// The credentials of a worker, and the vault that their values come from.
#[derive(Debug)]
pub struct Credentials {
    vault: Vault,
    entries: Vec<Entry>,
}

/// One credential.
#[derive(Debug, Clone)]
struct Entry {
    /// The vaults of the API through which a session gets it; without any, every session does.
    vaults: Vec<String>,
    /// How records name it.
    reference: String,
    variable: String,
    hosts: Hosts,
    /// The same as they are written; none where it may go anywhere.
    written: Option<Vec<String>>,
    places: Places,
    usage: Usage,
    value: Reference,
}

/// A credential without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described<'a> {
    /// How records name it.
    pub name: &'a str,
    /// The variable that holds its placeholder; none for kinds that the sandbox does not see, or that have variables of their own.
    pub variable: Option<&'a str>,
    /// What the value is: `token`, `aws_keys`, `client_certificate`, `github_app`, `ssh_key`.
    pub kind: &'static str,
    /// Where it may go; anywhere that the policy allows when there is none.
    pub hosts: Option<&'a [String]>,
    /// The API's vaults through which a session gets it; every session does when there is none.
    pub vaults: &'a [String],
    /// Where its value comes from.
    pub from: &'a Reference,
}

/// What is wrong with the file of credentials. Holds nothing of a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// It is no such file.
    #[error("{0}")]
    File(String),
    /// The sources.
    #[error("{}: {why}", Field("sources", None, .field))]
    Sources {
        /// Which field of them, with dots; empty for the whole.
        field: String,
        /// What is wrong, and the fix.
        why: String,
    },
    /// One credential.
    #[error("{}: {why}", Field("credentials", Some(*.index), .field))]
    Credential {
        /// Which, from zero.
        index: usize,
        /// Which field of it, with dots; empty for the whole.
        field: String,
        /// What is wrong, and the fix.
        why: String,
    },
    /// A credential's value comes from nowhere.
    #[error("credential `{name}`: {error}")]
    NoSource {
        /// How records name it.
        name: String,
        /// Which source is missing.
        error: Box<VaultError>,
    },
}

/// A field as it is shown.
struct Field<'a>(&'static str, Option<usize>, &'a str);

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}", self.0)?;
        if let Some(index) = self.1 {
            write!(f, "[{index}]")?;
        }
        f.write_str(if self.2.is_empty() { "" } else { "." })?;
        write!(f, "{}`", self.2)
    }
}

impl From<ConfigError> for CredentialsError {
    fn from(error: ConfigError) -> CredentialsError {
        // The line is that of a part of the file, which would lead astray.
        let why = error.why.rfind(" (line ").map_or(&*error.why, |at| &error.why[..at]).to_owned();
        CredentialsError::Sources { field: error.field, why }
    }
}

impl Credentials {
    /// No credential.
    pub fn none(surroundings: &Surroundings, clock: Arc<dyn Clock>) -> Result<Credentials, CredentialsError> {
        Ok(Credentials { vault: VaultConfig::default().open(surroundings, clock)?, entries: Vec::new() })
    }

    /// Reads a file: `sources`, as [`VaultConfig`] has them, and `credentials`, each as the API has it, with the secret's
    /// place instead of the secret, and with `vaults` and `use` besides. No source is asked.
    ///
    /// # Errors
    /// What is wrong, with its field. Nothing that stands at the place of a value is repeated.
    pub fn parse(
        text: &str,
        surroundings: &Surroundings,
        clock: Arc<dyn Clock>,
    ) -> Result<Credentials, CredentialsError> {
        let (sources, list) = parts(text)?;
        let sources = match sources {
            Yaml::Null => String::new(),
            sources => serde_yaml_ng::to_string(&sources).map_err(|_| CredentialsError::Sources {
                field: String::new(),
                why: "must be a mapping of kinds of sources".to_owned(),
            })?,
        };
        let config = VaultConfig::parse(&sources)?;
        let mut entries: Vec<Entry> = Vec::new();
        for (index, credential) in list.into_iter().enumerate() {
            let wrong = |why: &str| CredentialsError::Credential { index, field: String::new(), why: why.to_owned() };
            let Ok(Json::Object(members)) = serde_json::to_value(credential) else {
                return Err(wrong("must be a mapping with `auth`"));
            };
            let entry = entry(index, members)?;
            if let Some(before) = entries.iter().position(|before| before.collides(&entry)) {
                return Err(CredentialsError::Credential {
                    index,
                    field: "auth.secret_name".to_owned(),
                    why: format!(
                        "`credentials[{before}]` sets the same variable for the same sessions; name another variable, or \
                         other `vaults`"
                    ),
                });
            }
            entries.push(entry);
        }
        Ok(Credentials { vault: config.open(surroundings, clock)?, entries })
    }

    /// The vault behind them.
    pub fn vault(&self) -> Vault {
        self.vault.clone()
    }

    /// Each with how records name it, and where its value comes from.
    pub fn references(&self) -> impl Iterator<Item = (&str, &Reference)> {
        self.entries.iter().map(|entry| (entry.reference.as_str(), &entry.value))
    }

    /// Each without its value, in the order of the file.
    pub fn described(&self) -> impl Iterator<Item = Described<'_>> {
        self.entries.iter().map(|entry| Described {
            name: &entry.reference,
            variable: matches!(entry.usage.kind, As::Token | As::GitHubApp { .. }).then_some(&*entry.variable),
            kind: entry.usage.kind.word(),
            hosts: entry.written.as_deref(),
            vaults: &entry.vaults,
            from: &entry.value,
        })
    }

    /// Whether each value's source is configured.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), CredentialsError> {
        self.entries.iter().try_for_each(|entry| {
            let checked = self.vault.check(&entry.value);
            checked
                .map_err(|error| CredentialsError::NoSource { name: entry.reference.clone(), error: Box::new(error) })
        })
    }

    /// What somebody means who names a secret: a reference, with or without a field, or a credential as records name it.
    /// Empty when no credential here is meant.
    pub(crate) fn meant(&self, text: &str) -> Vec<Reference> {
        let mut found = BTreeSet::new();
        for entry in &self.entries {
            if entry.reference == text {
                found.insert(entry.value.clone());
            }
        }
        if let Ok(reference) = text.parse::<Reference>()
            && self.entries.iter().any(|entry| reference.covers(&entry.value))
        {
            found.insert(reference);
        }
        found.into_iter().collect()
    }

    /// Whether the broker has to make requests of its own for them.
    pub(super) fn fetches(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.usage.kind, As::GitHubApp { .. }))
    }

    /// What a session may use: of two for the same variable the one that is named first, by the session's vaults. And the keys
    /// that its SSH agent signs with.
    pub(super) fn of(
        &self,
        vault: &Vault,
        whose: &Whose,
        fetch: Option<&Arc<dyn Fetch>>,
    ) -> Result<(Vec<Credential>, Vec<SshKey>), String> {
        let own = vault.session(&whose.session);
        let named = whose.vaults.iter().flat_map(|id| self.entries.iter().filter(move |it| it.vaults.contains(id)));
        let common = self.entries.iter().filter(|entry| entry.vaults.is_empty());
        let mut variables = BTreeSet::new();
        let (mut credentials, mut ssh_keys) = (Vec::new(), Vec::new());
        for entry in named.chain(common) {
            if entry.slot().is_some_and(|slot| !variables.insert(slot)) {
                continue;
            }
            let stored = Arc::new(FromVault { session: own.clone(), reference: entry.value.clone() });
            let value: Arc<dyn Supply> = match &entry.usage.kind {
                As::SshKey { users, host_keys } => {
                    let (users, host_keys) = (users.clone(), host_keys.clone());
                    let (reference, hosts) = (entry.reference.clone(), entry.hosts.clone());
                    ssh_keys.push(SshKey { reference, hosts, host_keys, users, value: stored });
                    continue;
                }
                As::GitHubApp { app, installation, api } => {
                    let fetch = fetch.ok_or("there is nothing to reach GitHub by")?.clone();
                    Arc::new(GitHubApp::new(app, installation, api, stored, fetch, unix_now))
                }
                _ => stored,
            };
            let mut credential = Credential::new(&entry.reference, &entry.variable, entry.hosts.clone(), value);
            credential.places = entry.places;
            credential.cleartext = entry.usage.cleartext;
            credential.exchange.clone_from(&entry.usage.exchange);
            match entry.usage.kind {
                As::Token | As::GitHubApp { .. } | As::SshKey { .. } => {}
                As::AwsKeys => credential.kind = Kind::AwsKeys,
                As::ClientCertificate => credential.kind = Kind::ClientCertificate,
            }
            credentials.push(credential);
        }
        Ok((credentials, ssh_keys))
    }
}

impl Entry {
    /// Of what a session has only one.
    fn slot(&self) -> Option<&str> {
        match self.usage.kind {
            As::Token | As::GitHubApp { .. } => Some(&self.variable),
            // The variables of AWS's own tools, whatever the credential says.
            As::AwsKeys => Some("AWS_ACCESS_KEY_ID"),
            As::ClientCertificate | As::SshKey { .. } => None,
        }
    }

    /// Whether a session could get both through the same vault, so that one of them would never be used.
    fn collides(&self, other: &Entry) -> bool {
        let together = self.vaults.is_empty() && other.vaults.is_empty()
            || self.vaults.iter().any(|vault| other.vaults.contains(vault));
        together && self.slot().is_some() && self.slot() == other.slot()
    }
}

/// What the file says, before each part is read. No error repeats any of it.
fn parts(text: &str) -> Result<(Yaml, Vec<Yaml>), CredentialsError> {
    let wrong = |why: String| CredentialsError::File(why);
    // A mapping in which a key is written twice is refused here too.
    let file: Yaml = serde_yaml_ng::from_str(text).map_err(|why| {
        let line = why.location().map_or_else(String::new, |at| format!(" (line {})", at.line()));
        wrong(if why.to_string().contains("duplicate entry") {
            "a key is written twice in one mapping; keep one of them".to_owned()
        } else {
            format!("it is no YAML{line}")
        })
    })?;
    let members = match file {
        Yaml::Null => return Ok((Yaml::Null, Vec::new())),
        Yaml::Mapping(members) => members,
        _ => return Err(wrong("it must be a mapping with `sources` and `credentials`".to_owned())),
    };
    let (mut sources, mut credentials) = (Yaml::Null, Vec::new());
    for (key, value) in members {
        match (key.as_str(), value) {
            (Some("sources"), value) => sources = value,
            (Some("credentials"), Yaml::Sequence(list)) => credentials = list,
            (Some("credentials"), Yaml::Null) => {}
            (Some("credentials"), _) => return Err(wrong("`credentials` must be a list".to_owned())),
            _ => return Err(wrong("it has an unknown key; known are `sources` and `credentials`".to_owned())),
        }
    }
    Ok((sources, credentials))
}

fn entry(index: usize, mut json: Map<String, Json>) -> Result<Entry, CredentialsError> {
    let wrong =
        |field: &str, why: &str| CredentialsError::Credential { index, field: field.to_owned(), why: why.to_owned() };
    let vaults: Vec<String> = match json.remove("vaults") {
        None => Vec::new(),
        Some(ids) => serde_json::from_value(ids)
            .map_err(|_| wrong("vaults", "must be a list of ids of the API's vaults, such as [vlt_…]"))?,
    };
    let usage = json.remove("use").map_or_else(|| Ok(Usage::default()), |given| Usage::read(&given));
    let usage = usage.map_err(|error| wrong(&error.field, &error.why))?;
    if let Some(name) = json.keys().find(|name| !["auth", "display_name", "metadata"].contains(&name.as_str())) {
        let plain = name.len() <= 24 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let shown = if plain { format!("the unknown field `{name}`") } else { "an unknown field".to_owned() };
        let known = "known are `auth`, `display_name`, `metadata`, `vaults` and `use`";
        return Err(wrong("", &format!("has {shown}; {known}")));
    }
    let text = Json::Object(json).to_string();
    let stored = Stored::from_json(&text, Provenance::File).map_err(|error| wrong(&error.field, &error.why))?;
    let Auth::EnvironmentVariable { secret_name, secret_value, networking, injection_location } = stored.auth else {
        let why = "must be `environment_variable`, which is what sandboxes use; leave credentials for MCP servers out";
        return Err(wrong("auth.type", why));
    };
    let Value::From(value) = secret_value else {
        return Err(wrong("auth.secret_value", "must say where the secret is, such as {\"from\": \"sealed:github\"}"));
    };
    let (hosts, written) = match networking {
        Networking::Unrestricted => (Hosts::Unrestricted, None),
        Networking::Limited { allowed_hosts } => {
            let names: Vec<String> = allowed_hosts.iter().map(ToString::to_string).collect();
            let hosts = Hosts::limited(&names);
            let hosts = hosts.map_err(|why| wrong("auth.networking.allowed_hosts", &why.to_string()))?;
            (hosts, Some(names))
        }
    };
    if hosts == Hosts::Unrestricted && matches!(usage.kind, As::SshKey { .. }) {
        return Err(wrong("auth.networking", "must be `limited`: a key for SSH is for the hosts that are named"));
    }
    let InjectionLocation { header, body } = injection_location;
    let places = Places { header, body, query: usage.query, path: usage.path };
    let reference = stored.display_name.unwrap_or_else(|| secret_name.clone());
    Ok(Entry { vaults, reference, variable: secret_name, hosts, written, places, usage, value })
}

/// A value of the vault, for one session.
#[derive(Debug)]
struct FromVault {
    session: Session,
    reference: Reference,
}

#[async_trait]
impl Supply for FromVault {
    async fn value(&self) -> Result<Arc<Secret>, SupplyError> {
        self.session.value(&self.reference).await.map_err(|why: VaultError| {
            if why.is_revoked() { SupplyError::Revoked } else { SupplyError::Unavailable(why.to_string()) }
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, Response};
    use bytes::Bytes;
    use palisade_egress::broker::FetchError;
    use palisade_vault::SystemClock;

    use super::*;

    const ENVIRONMENT: &[(&str, &str)] = &[("ONE", "value-one"), ("TWO", "value-two"), ("APP", "not a key")];

    fn parse(credentials: &str) -> Result<Credentials, CredentialsError> {
        let text = format!("sources: {{env: {{variables: [ONE, TWO, APP]}}}}\ncredentials:\n{credentials}");
        let surroundings = Surroundings::new(|name| {
            ENVIRONMENT.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into())
        });
        Credentials::parse(&text, &surroundings, Arc::new(SystemClock::new()))
    }

    fn one(variable: &str, from: &str, more: &str) -> String {
        format!(
            "- {{auth: {{type: environment_variable, secret_name: {variable}, secret_value: {{from: 'env:{from}'}}, \
             networking: {{type: limited, allowed_hosts: [api.example.com]}}}}{more}}}\n"
        )
    }

    fn whose(vaults: &[&str]) -> Whose {
        let vaults = vaults.iter().map(|&id| id.to_owned()).collect();
        Whose { session: "session".to_owned(), vaults, ..Whose::default() }
    }

    #[tokio::test]
    async fn a_session_has_what_its_vaults_give_before_what_all_have_and_loses_it_when_it_is_revoked() {
        let all = one("TOKEN", "ONE", "") + &one("TOKEN", "TWO", ", vaults: [vlt_a], display_name: second");
        let credentials = parse(&all).unwrap();
        let vault = credentials.vault();
        let value = async |vaults: &[&str]| {
            let all = credentials.of(&vault, &whose(vaults), None).unwrap().0;
            assert_eq!(all.len(), 1);
            all[0].value.value().await.map(|value| value.expose().to_owned())
        };
        assert_eq!(value(&[]).await.unwrap(), "value-one");
        assert_eq!(value(&["vlt_b", "vlt_a"]).await.unwrap(), "value-two");
        let meant = credentials.meant("second");
        assert_eq!(meant, ["env:TWO".parse().unwrap()]);
        assert_eq!(credentials.meant("env:TWO"), meant);
        assert!(credentials.meant("env:THREE").is_empty() && credentials.meant("third").is_empty());
        vault.revoke(&meant[0]).await;
        assert!(matches!(value(&["vlt_a"]).await, Err(SupplyError::Revoked)));
        assert_eq!(value(&[]).await.unwrap(), "value-one");
        assert!(vault.allow(&meant[0]));
        assert_eq!(value(&["vlt_a"]).await.unwrap(), "value-two");
    }

    #[test]
    fn of_two_for_the_same_sessions_one_would_never_be_used() {
        let wrong = |all: String| parse(&all).unwrap_err().to_string();
        assert!(wrong(one("A", "ONE", "") + &one("A", "TWO", "")).starts_with("`credentials[1].auth.secret_name`: "));
        let vaults = ", vaults: [vlt_a, vlt_b]";
        assert!(wrong(one("A", "ONE", vaults) + &one("A", "TWO", ", vaults: [vlt_b]")).contains("same variable"));
        let keys = ", use: {as: aws_keys}";
        assert!(wrong(one("A", "ONE", keys) + &one("B", "TWO", keys)).contains("same variable"));
        let certificate = ", use: {as: client_certificate}";
        assert!(parse(&(one("A", "ONE", certificate) + &one("A", "TWO", certificate))).is_ok());
    }

    #[derive(Debug)]
    struct Nothing;

    #[async_trait]
    impl Fetch for Nothing {
        async fn fetch(&self, _: Request<Bytes>) -> Result<Response<Bytes>, FetchError> {
            Err(FetchError("nothing is there".to_owned()))
        }
    }

    #[tokio::test]
    async fn an_app_s_key_is_not_what_is_put_in() {
        let credentials = parse(&one("GH", "APP", ", use: {as: github_app, app: 1, installation: 2}")).unwrap();
        assert!(credentials.fetches() && credentials.of(&credentials.vault(), &whose(&[]), None).is_err());
        let fetch: Arc<dyn Fetch> = Arc::new(Nothing);
        let all = credentials.of(&credentials.vault(), &whose(&[]), Some(&fetch)).unwrap().0;
        let Err(SupplyError::Unavailable(why)) = all[0].value.value().await else { panic!("a key that is none") };
        assert!(why.contains("private key of GitHub App 1") && !why.contains("not a key"), "{why}");
    }
}
