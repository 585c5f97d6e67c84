//! What sessions may use: which credentials there are, for whom, and how their values come from the vault.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use palisade_api::Secret;
use palisade_egress::broker::{Credential, Hosts, Kind, Places};
use palisade_egress::{Supply, SupplyError};
use palisade_vault::{
    Auth, Clock, ConfigError, Credential as Stored, CredentialError, InjectionLocation, Networking, Provenance,
    Reference, Session, Surroundings, Value, Vault, VaultConfig, VaultError,
};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::Whose;

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
    places: Places,
    usage: Usage,
    value: Reference,
}

/// What the API's credentials do not say.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Usage {
    /// What the value is.
    #[serde(rename = "as")]
    kind: As,
    /// Whether it may stand in the query of a URL.
    query: bool,
    /// Whether it may stand in the path of a URL.
    path: bool,
    /// Whether it may go to a host without TLS.
    cleartext: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum As {
    /// One value, such as a token or a password.
    #[default]
    Token,
    /// AWS keys as JSON, with which requests are signed again.
    AwsKeys,
    /// A certificate and its key (PEM), for TLS with upstreams.
    ClientCertificate,
}

/// What the file says, before each credential is read.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    sources: Option<Json>,
    credentials: Vec<Map<String, Json>>,
}

/// What is wrong with the file of credentials. Holds nothing of a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// It is no such file.
    #[error("the file of credentials cannot be read: {0}")]
    File(String),
    /// The sources.
    #[error("`sources`: {0}")]
    Sources(#[from] ConfigError),
    /// One credential.
    #[error("`credentials[{index}]`: {error}")]
    Credential {
        /// Which, from zero.
        index: usize,
        /// What is wrong.
        error: CredentialError,
    },
    /// What a sandbox cannot use.
    #[error("`credentials[{index}]`: {why}")]
    Usage {
        /// Which, from zero.
        index: usize,
        /// What is wrong, and the fix.
        why: String,
    },
}

impl Credentials {
    /// No credential.
    pub fn none(surroundings: &Surroundings, clock: Arc<dyn Clock>) -> Result<Credentials, CredentialsError> {
        Ok(Credentials { vault: VaultConfig::default().open(surroundings, clock)?, entries: Vec::new() })
    }

    /// Reads a file: `sources`, as [`VaultConfig`] has them, and `credentials`, each as the API has it, with the secret's
    /// place instead of the secret, and with `vaults` and `use` besides.
    ///
    /// # Errors
    /// What is wrong, with its field. Nothing that stands at the place of a value is repeated.
    pub fn parse(
        text: &str,
        surroundings: &Surroundings,
        clock: Arc<dyn Clock>,
    ) -> Result<Credentials, CredentialsError> {
        let file: File = serde_yaml_ng::from_str(text).map_err(|why| {
            let line = why.location().map_or_else(String::new, |at| format!(" (line {})", at.line()));
            // The parser's own words may quote what is there.
            CredentialsError::File(format!("it must have `sources` and `credentials`, a list, and no more{line}"))
        })?;
        let sources = file.sources.map_or_else(|| Ok(String::new()), |sources| serde_yaml_ng::to_string(&sources));
        let sources = sources.map_err(|_| CredentialsError::File("`sources` is no mapping".to_owned()))?;
        let config = VaultConfig::parse(&sources)?;
        let mut entries = Vec::new();
        for (index, credential) in file.credentials.into_iter().enumerate() {
            entries.push(entry(index, credential)?);
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

    /// What a session may use: of two for the same variable the one that is named first, by the session's vaults.
    pub(super) fn of(&self, vault: &Vault, whose: &Whose) -> Result<Vec<Credential>, String> {
        let own = vault.session(&whose.session);
        let named = whose.vaults.iter().flat_map(|id| self.entries.iter().filter(move |it| it.vaults.contains(id)));
        let common = self.entries.iter().filter(|entry| entry.vaults.is_empty());
        let mut variables = BTreeSet::new();
        let mut credentials = Vec::new();
        for entry in named.chain(common) {
            if entry.usage.kind != As::ClientCertificate && !variables.insert(&entry.variable) {
                continue;
            }
            let value = Arc::new(FromVault { session: own.clone(), reference: entry.value.clone() });
            let mut credential =
                Credential::new(&entry.reference, &entry.variable, entry.hosts.clone(), value);
            credential.places = entry.places;
            credential.cleartext = entry.usage.cleartext;
            match entry.usage.kind {
                As::Token => {}
                As::AwsKeys => credential.kind = Kind::AwsKeys,
                As::ClientCertificate => credential.kind = Kind::ClientCertificate,
            }
            credentials.push(credential);
        }
        Ok(credentials)
    }
}

fn entry(index: usize, mut json: Map<String, Json>) -> Result<Entry, CredentialsError> {
    let usage = |why: &str| CredentialsError::Usage { index, why: why.to_owned() };
    let vaults = match json.remove("vaults") {
        None => Vec::new(),
        Some(ids) => serde_json::from_value(ids).map_err(|_| usage("`vaults` must be a list of ids of vaults"))?,
    };
    let given: Usage = match json.remove("use") {
        None => Usage::default(),
        Some(given) => serde_json::from_value(given).map_err(|_| {
            usage("`use` may have `as` (token, aws_keys or client_certificate), `query`, `path` and `cleartext`")
        })?,
    };
    let text = Json::Object(json).to_string();
    let stored = Stored::from_json(&text, Provenance::File)
        .map_err(|error| CredentialsError::Credential { index, error })?;
    let Auth::EnvironmentVariable { secret_name, secret_value, networking, injection_location } = stored.auth else {
        return Err(usage("sandboxes use credentials of the type environment_variable; leave those for MCP servers out"));
    };
    let Value::From(value) = secret_value else {
        return Err(usage("`auth.secret_value` must say where the secret is, such as {\"from\": \"file:keys/github\"}"));
    };
    let hosts = match networking {
        Networking::Unrestricted => Hosts::Unrestricted,
        Networking::Limited { allowed_hosts } => {
            let hosts: Vec<String> = allowed_hosts.iter().map(ToString::to_string).collect();
            Hosts::limited(&hosts).map_err(|why| usage(&why.to_string()))?
        }
    };
    let InjectionLocation { header, body } = injection_location;
    let places = Places { header, body, query: given.query, path: given.path };
    let reference = stored.display_name.unwrap_or_else(|| secret_name.clone());
    Ok(Entry { vaults, reference, variable: secret_name, hosts, places, usage: given, value })
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
