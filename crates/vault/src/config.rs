//! Which sources there are, as the operator writes them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::clock::Clock;
use crate::http::{AddressError, Client, ClientError, address};
use crate::reference::Kind;
use crate::source::Source;
use crate::sources::aws::{Aws, AwsAuth, AwsConfig, is_arn};
use crate::sources::azure::{Azure, AzureAuth, AzureConfig};
use crate::sources::env::{Env, EnvConfig};
use crate::sources::exec::{Exec, ExecConfig};
use crate::sources::file::{FileConfig, Files};
use crate::sources::google::{Google, GoogleAuth, GoogleConfig};
use crate::sources::hashicorp::{Hashicorp, HashicorpConfig};
use crate::sources::onepassword::{OnePassword, OnePasswordConfig};
use crate::sources::sealed::{Sealed, SealedConfig};
use crate::surroundings::Surroundings;
use crate::vault::{Limits, Sources, Vault};

/// The sources of secrets, by kind and name. It holds no secret itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaultConfig {
    /// The local sealed file.
    pub sealed: Option<SealedConfig>,
    /// Variables of the worker's environment.
    pub env: Option<EnvConfig>,
    /// Directories with one secret to a file.
    pub file: BTreeMap<String, FileConfig>,
    /// HashiCorp Vault and OpenBao.
    pub vault: BTreeMap<String, HashicorpConfig>,
    /// AWS Secrets Manager.
    pub aws: BTreeMap<String, AwsConfig>,
    /// Azure Key Vault.
    pub azure: BTreeMap<String, AzureConfig>,
    /// Google Secret Manager.
    pub google: BTreeMap<String, GoogleConfig>,
    /// 1Password Connect.
    pub onepassword: BTreeMap<String, OnePasswordConfig>,
    /// Commands.
    pub exec: BTreeMap<String, ExecConfig>,
    /// What is kept in memory, and how long.
    pub cache: CacheConfig,
}

/// What is kept in memory.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Seconds that any value is used without asking its source again, at most; 300 by default.
    pub keep: Option<u64>,
    /// The most secrets that are kept; 1,024 by default.
    pub entries: Option<usize>,
    /// The most leases of one session; 64 by default.
    pub leases_per_session: Option<usize>,
}

/// What is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the vault's configuration cannot be used: {}{why}", at(.field))]
pub struct ConfigError {
    /// Which field, with dots; empty for the whole.
    pub field: String,
    /// What is wrong with it, and the fix. Holds no text that was given as a value: it may be a secret at the wrong place.
    pub why: String,
}

fn at(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("`{field}`: ") }
}

fn wrong(field: impl Into<String>, why: impl std::fmt::Display) -> ConfigError {
    ConfigError { field: field.into(), why: why.to_string() }
}

/// The text of a parser's error without the value that it quotes.
pub(crate) fn without_value(text: &str) -> String {
    // `invalid type: string "…", expected …`, also of numbers and single characters.
    for (kind, shown) in [("invalid type: ", "a value of another kind"), ("invalid value: ", "a value out of range")] {
        if text.contains(kind) {
            let expected = text.rfind(", expected ").map_or("", |from| &text[from..]);
            // Rust's names of numbers say nothing to others.
            let whole = [", expected u64", ", expected usize"].contains(&expected);
            return format!("{shown}{}", if whole { ", expected a whole number" } else { expected });
        }
    }
    // `unknown field `…`, expected …`: shown if it looks like a mistyped word.
    for kind in ["unknown field", "unknown variant"] {
        let name = text.strip_prefix(kind).and_then(|rest| rest.split('`').nth(1));
        let word = |name: &str| {
            name.len() <= 24
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        if name.is_some_and(|name| !word(name)) {
            return format!("{kind}{}", text.rfind(", expected ").map_or("", |from| &text[from..]));
        }
    }
    text.to_owned()
}

impl VaultConfig {
    /// Reads it from YAML.
    pub fn parse(yaml: &str) -> Result<Self, ConfigError> {
        // An empty document is a configuration without sources.
        if yaml.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let reader = serde_yaml_ng::Deserializer::from_str(yaml);
        let config: Self = serde_path_to_error::deserialize(reader).map_err(|error| {
            let path = error.path().to_string();
            let mut path = if path == "." { String::new() } else { path };
            let inner = error.into_inner();
            let place = inner.location().map(|at| format!(" (line {})", at.line())).unwrap_or_default();
            let text = inner.to_string();
            let text = text.split(" at line ").next().unwrap_or(&text);
            // The parser puts its own idea of the path before what is wrong.
            let said = [
                "unknown field `",
                "unknown variant `",
                "missing field `",
                "invalid type: ",
                "invalid value: ",
                "write where it is kept",
            ];
            let text = said.iter().find_map(|kind| text.find(kind)).map_or(text, |from| &text[from..]);
            let text = text.strip_prefix(&format!("{path}: ")).unwrap_or(text);
            if let Some(name) = text.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next())
                && let Some(parent) = path.strip_suffix(name)
            {
                path = parent.trim_end_matches('.').to_owned();
            }
            wrong(path, format!("{}{place}", without_value(text)))
        })?;
        config.check()?;
        Ok(config)
    }

    /// What the types cannot say.
    pub fn check(&self) -> Result<(), ConfigError> {
        let names = |kind: Kind, names: Vec<&String>| {
            let simple = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            match names.iter().find(|name| name.is_empty() || !name.bytes().all(simple)) {
                Some(name) => Err(wrong(
                    format!("{kind}.{}", name.escape_debug()),
                    "a source's name has letters, digits, `-`, `_` and `.`; name it otherwise",
                )),
                None => Ok(()),
            }
        };
        names(Kind::File, self.file.keys().collect())?;
        names(Kind::Vault, self.vault.keys().collect())?;
        names(Kind::Aws, self.aws.keys().collect())?;
        names(Kind::Azure, self.azure.keys().collect())?;
        names(Kind::Google, self.google.keys().collect())?;
        names(Kind::OnePassword, self.onepassword.keys().collect())?;
        names(Kind::Exec, self.exec.keys().collect())?;

        let absolute = |field: String, path: &Path| {
            if path.is_absolute() {
                return Ok(());
            }
            Err(wrong(field, "must be an absolute path, so that it means the same wherever the worker is started"))
        };
        if let Some(sealed) = &self.sealed {
            absolute("sealed.file".to_owned(), &sealed.file)?;
        }
        for (name, file) in &self.file {
            absolute(format!("file.{name}.directory"), &file.directory)?;
        }
        for (name, command) in &self.exec {
            let program = command.command.first().ok_or_else(|| {
                wrong(format!("exec.{name}.command"), "is empty; write the program and its arguments as a list")
            })?;
            absolute(format!("exec.{name}.command"), Path::new(program))?;
            if let Some(directory) = &command.directory {
                absolute(format!("exec.{name}.directory"), directory)?;
            }
            if command.timeout.is_some_and(|seconds| seconds == 0 || seconds > 30) {
                return Err(wrong(format!("exec.{name}.timeout"), "must be from 1 to 30 seconds"));
            }
        }
        let server = |field: String, text: &str| address(text).map(|_| ()).map_err(|why| wrong(field, why));
        for (name, vault) in &self.vault {
            server(format!("vault.{name}.address"), &vault.address)?;
            for mount in vault.mounts.iter().flat_map(BTreeMap::keys) {
                if mount.split('/').any(|part| matches!(part, "" | "." | "..")) {
                    let why = "a mount is written without slashes around it, such as `secret` or `team/database`";
                    return Err(wrong(format!("vault.{name}.mounts"), why));
                }
            }
        }
        for (name, aws) in &self.aws {
            if let Some(endpoint) = &aws.endpoint {
                server(format!("aws.{name}.endpoint"), endpoint)?;
            }
            let simple = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if aws.region.is_empty() || !aws.region.bytes().all(simple) {
                return Err(wrong(format!("aws.{name}.region"), "must be a region such as `eu-central-1`"));
            }
            match &aws.auth {
                AwsAuth::Instance { endpoint } => {
                    metadata(format!("aws.{name}.auth.endpoint"), endpoint.as_deref())?;
                }
                AwsAuth::WebIdentity { role, session, endpoint, .. } => {
                    if role.as_ref().is_some_and(|role| !is_arn(role)) {
                        let why = "must be the ARN of a role, such as `arn:aws:iam::123456789012:role/worker`";
                        return Err(wrong(format!("aws.{name}.auth.role"), why));
                    }
                    if let Some(endpoint) = endpoint {
                        server(format!("aws.{name}.auth.endpoint"), endpoint)?;
                    }
                    // As AWS's reference of `AssumeRoleWithWebIdentity` has it.
                    let taken = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
                    if session.as_ref().is_some_and(|name| !(2..=64).contains(&name.len()) || !name.bytes().all(taken))
                    {
                        let why = "must have 2 to 64 letters, digits and `_+=,.@-`";
                        return Err(wrong(format!("aws.{name}.auth.session"), why));
                    }
                }
                AwsAuth::Environment {} | AwsAuth::File { .. } | AwsAuth::Keys { .. } | AwsAuth::Container {} => {}
            }
        }
        for (name, azure) in &self.azure {
            server(format!("azure.{name}.address"), &azure.address)?;
            match &azure.auth {
                AzureAuth::ClientSecret { authority, .. } | AzureAuth::FederatedToken { authority, .. } => {
                    if let Some(authority) = authority {
                        server(format!("azure.{name}.auth.authority"), authority)?;
                    }
                }
                AzureAuth::ManagedIdentity { endpoint, .. } => {
                    metadata(format!("azure.{name}.auth.endpoint"), endpoint.as_deref())?;
                }
            }
        }
        for (name, google) in &self.google {
            if let Some(address) = &google.address {
                server(format!("google.{name}.address"), address)?;
            }
            if let GoogleAuth::Metadata { endpoint, .. } = &google.auth {
                metadata(format!("google.{name}.auth.endpoint"), endpoint.as_deref())?;
            }
        }
        for (name, connect) in &self.onepassword {
            server(format!("onepassword.{name}.address"), &connect.address)?;
        }
        Ok(())
    }

    /// The vault over these sources. Reads certificates, but asks no source.
    pub fn open(self, surroundings: &Surroundings, clock: Arc<dyn Clock>) -> Result<Vault, ConfigError> {
        self.check()?;
        let mut limits = Limits::default();
        limits.keep = self.cache.keep.map_or(limits.keep, Duration::from_secs);
        limits.entries = self.cache.entries.unwrap_or(limits.entries);
        limits.leases_per_session = self.cache.leases_per_session.unwrap_or(limits.leases_per_session);
        let mut all = Sources::new();
        let mut put = |kind: Kind, name: &str, source: Arc<dyn Source>| {
            all.insert((kind, name.to_owned()), source);
        };
        let client = |kind: Kind, name: &str, what: String, ca: &Option<std::path::PathBuf>| {
            Client::new(&what, ca.as_deref()).map_err(|error| match error {
                error @ (ClientError::CaRead(..) | ClientError::CaParse(_)) => {
                    wrong(format!("{kind}.{name}.ca_file"), error)
                }
                error @ ClientError::Build(_) => wrong(format!("{kind}.{name}"), error),
            })
        };
        if let Some(sealed) = self.sealed {
            put(Kind::Sealed, "", Arc::new(Sealed::new(sealed, surroundings.clone())));
        }
        if let Some(env) = self.env {
            put(Kind::Env, "", Arc::new(Env::new(env, surroundings.clone())));
        }
        for (name, file) in self.file {
            put(Kind::File, &name, Arc::new(Files::new(&name, file)));
        }
        for (name, config) in self.exec {
            put(Kind::Exec, &name, Arc::new(Exec::new(&name, config)));
        }
        for (name, config) in self.vault {
            let what = format!("the Vault server at {} (vault:{name})", config.address);
            let client = client(Kind::Vault, &name, what, &config.ca_file)?;
            let source = Hashicorp::new(&name, config, client, surroundings.clone(), clock.clone())
                .map_err(|field| wrong(format!("vault.{name}.{field}"), "holds what no header may"))?;
            put(Kind::Vault, &name, Arc::new(source));
        }
        for (name, config) in self.aws {
            let what = format!("AWS Secrets Manager in {} (aws:{name})", config.region);
            let lender = Aws::lender(&name, &config);
            let lender = lender.map(|lender| client(Kind::Aws, &name, lender, &config.ca_file)).transpose()?;
            let client = client(Kind::Aws, &name, what, &config.ca_file)?;
            let endpoint = config.endpoint.clone().unwrap_or_else(|| Aws::endpoint(&config.region));
            let source = Aws::new(&name, config, endpoint, client, surroundings.clone(), clock.clone(), lender);
            put(Kind::Aws, &name, Arc::new(source));
        }
        for (name, config) in self.azure {
            let what = format!("the Azure Key Vault at {} (azure:{name})", config.address);
            let client = client(Kind::Azure, &name, what, &config.ca_file)?;
            let source = Azure::new(&name, config, client, surroundings.clone(), clock.clone());
            put(Kind::Azure, &name, Arc::new(source));
        }
        for (name, config) in self.google {
            let what = format!("Google Secret Manager, project {} (google:{name})", config.project);
            let client = client(Kind::Google, &name, what, &config.ca_file)?;
            let source = Google::new(&name, config, client, surroundings.clone(), clock.clone());
            put(Kind::Google, &name, Arc::new(source));
        }
        for (name, config) in self.onepassword {
            let what = format!("the 1Password Connect server at {} (onepassword:{name})", config.address);
            let client = client(Kind::OnePassword, &name, what, &config.ca_file)?;
            put(Kind::OnePassword, &name, Arc::new(OnePassword::new(&name, config, client, surroundings.clone())));
        }
        Ok(Vault::new(all, limits, clock))
    }
}

/// A machine's own metadata endpoint speaks plain HTTP, on an address that leads nowhere else.
fn metadata(field: String, endpoint: Option<&str>) -> Result<(), ConfigError> {
    const KNOWN: [&str; 3] = ["http://169.254.169.254", "http://metadata.google.internal", "http://[fd00:ec2::254]"];
    let Some(endpoint) = endpoint else { return Ok(()) };
    match address(endpoint) {
        Err(AddressError::Plain) if KNOWN.contains(&endpoint.trim_end_matches('/')) => Ok(()),
        other => other.map(|_| ()).map_err(|why| wrong(field, why)),
    }
}
