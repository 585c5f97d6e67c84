//! Credentials as the API's vaults have them, in a file of the operator's or from the API.
//!
//! In a file a secret member says where the secret is, as `{"from": "vault:prod/secret/github#token"}`; the secret itself is
//! refused there. What came from the API holds the secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use palisade_api::{Secret, Timestamp};
use serde::Deserialize;
use serde_json::{Map, Value as Json};
use zeroize::Zeroize as _;

use crate::reference::Reference;

mod parse;

/// The most credentials of one vault, and so of one file.
pub const MAX_CREDENTIALS: usize = 20;
/// The most hosts of one credential.
pub const MAX_HOSTS: usize = 16;

/// Where a text with credentials came from, and so what a secret in it looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// A file of the operator's: secrets are references.
    File,
    /// The API: secrets are values.
    Api,
}

/// A secret, or where to get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// To be fetched when it is needed.
    From(Reference),
    /// As it came from the API.
    Given(Secret),
}

/// Credentials, no two with the same key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CredentialFile {
    /// In the order of the file.
    pub credentials: Vec<Credential>,
}

/// One credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// What people call it.
    pub display_name: Option<String>,
    /// Labels of the operator's.
    pub metadata: BTreeMap<String, String>,
    /// What it is.
    pub auth: Auth,
}

/// The kinds of credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// A value that the sandbox has a placeholder of in a variable.
    EnvironmentVariable {
        /// The variable.
        secret_name: String,
        /// The value.
        secret_value: Value,
        /// Where it may be sent.
        networking: Networking,
        /// Where in a request it may be.
        injection_location: InjectionLocation,
    },
    /// A bearer token for one MCP server.
    StaticBearer {
        /// The server, in its normal form.
        mcp_server_url: String,
        /// The token.
        token: Value,
    },
    /// OAuth tokens for one MCP server.
    McpOauth {
        /// The server, in its normal form.
        mcp_server_url: String,
        /// The token.
        access_token: Value,
        /// When it ends.
        expires_at: Option<Timestamp>,
        /// How to get a new one.
        refresh: Option<Box<Refresh>>,
    },
}

/// How an OAuth token is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// The client.
    pub client_id: String,
    /// What is exchanged.
    pub refresh_token: Value,
    /// Where.
    pub token_endpoint: String,
    /// How the client shows who it is there.
    pub token_endpoint_auth: TokenEndpointAuth,
    /// RFC 8707.
    pub resource: Option<String>,
    /// Asked for.
    pub scope: Option<String>,
}

/// How a client shows who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenEndpointAuth {
    /// Not at all.
    None,
    /// In the `Authorization` header.
    ClientSecretBasic {
        /// The client's secret.
        client_secret: Value,
    },
    /// In the body.
    ClientSecretPost {
        /// The client's secret.
        client_secret: Value,
    },
}

/// Where a value may be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Networking {
    /// Wherever the environment's own policy lets a request go.
    Unrestricted,
    /// To these hosts.
    Limited {
        /// One to sixteen.
        allowed_hosts: Vec<AllowedHost>,
    },
}

/// One entry of `allowed_hosts`, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AllowedHost {
    /// One name.
    Name(String),
    /// All names below this one, not itself.
    Below(String),
    /// One IPv4 address.
    Address(Ipv4Addr),
}

impl AllowedHost {
    /// Whether a host, in lower case and without a dot at its end, is meant.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Name(name) => name == host,
            Self::Below(name) => host
                .strip_suffix(name.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| !rest.is_empty()),
            Self::Address(address) => host.parse() == Ok(*address),
        }
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// Where in a request a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InjectionLocation {
    /// In headers.
    pub header: bool,
    /// In the body.
    pub body: bool,
}

/// What is wrong with a credential. Holds no value that was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the credentials cannot be used: {}{why}", at(.field))]
pub struct CredentialError {
    /// Which field, such as `credentials[2].auth.networking.allowed_hosts[0]`; empty for the whole.
    pub field: String,
    /// What is wrong with it, and the fix.
    pub why: String,
}

fn at(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("`{field}`: ") }
}

impl Credential {
    /// What no other credential of a vault may share: the variable, or the server.
    pub fn key(&self) -> (&'static str, &str) {
        match &self.auth {
            Auth::EnvironmentVariable { secret_name, .. } => ("secret_name", secret_name),
            Auth::StaticBearer { mcp_server_url, .. } | Auth::McpOauth { mcp_server_url, .. } => {
                ("mcp_server_url", mcp_server_url)
            }
        }
    }

    /// Reads one credential, in the form of a create request.
    pub fn from_json(text: &str, provenance: Provenance) -> Result<Self, CredentialError> {
        let mut json = json(text)?;
        let credential = parse::Reader { provenance }.credential(&json, "");
        wipe(&mut json);
        credential
    }

    /// The references it holds.
    pub fn references(&self) -> Vec<&Reference> {
        let mut values = Vec::new();
        match &self.auth {
            Auth::EnvironmentVariable { secret_value, .. } => values.push(secret_value),
            Auth::StaticBearer { token, .. } => values.push(token),
            Auth::McpOauth { access_token, refresh, .. } => {
                values.push(access_token);
                if let Some(refresh) = refresh {
                    values.push(&refresh.refresh_token);
                    match &refresh.token_endpoint_auth {
                        TokenEndpointAuth::None => {}
                        TokenEndpointAuth::ClientSecretBasic { client_secret }
                        | TokenEndpointAuth::ClientSecretPost { client_secret } => values.push(client_secret),
                    }
                }
            }
        }
        let mut references = Vec::new();
        for value in values {
            if let Value::From(reference) = value {
                references.push(reference);
            }
        }
        references
    }
}

impl CredentialFile {
    /// Reads a file in JSON or YAML: `{"credentials": [CREDENTIAL, …]}`, each as in a create request.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        // JSON is YAML, but its own parser names a syntax error better.
        let mut json = if text.trim_start().starts_with('{') { json(text)? } else { yaml(text)? };
        let file = Self::from_value(&json, Provenance::File);
        // Somebody may have written a secret into it all the same.
        wipe(&mut json);
        file
    }

    /// Reads a parsed one.
    pub fn from_value(json: &Json, provenance: Provenance) -> Result<Self, CredentialError> {
        let reader = parse::Reader { provenance };
        let credentials = reader.file(json)?;
        let mut keys = BTreeSet::new();
        for (index, credential) in credentials.iter().enumerate() {
            let (field, key) = credential.key();
            if !keys.insert((field, key.to_owned())) {
                return Err(CredentialError {
                    field: format!("credentials[{index}].auth.{field}"),
                    why: "another credential of this file has the same; each needs its own".to_owned(),
                });
            }
        }
        Ok(Self { credentials })
    }
}

/// Zeroes all text in it.
fn wipe(json: &mut Json) {
    match json {
        Json::String(text) => text.zeroize(),
        Json::Array(all) => all.iter_mut().for_each(wipe),
        Json::Object(all) => all.values_mut().for_each(wipe),
        _ => {}
    }
}

fn json(text: &str) -> Result<Json, CredentialError> {
    serde_json::from_str::<Unique>(text).map(|unique| unique.0).map_err(|error| CredentialError {
        field: String::new(),
        why: match error.classify() {
            serde_json::error::Category::Data => format!("{TWICE}; keep one of them"),
            _ => format!("it is no JSON (line {}, column {})", error.line(), error.column()),
        },
    })
}

fn yaml(text: &str) -> Result<Json, CredentialError> {
    serde_yaml_ng::from_str::<Unique>(text).map(|unique| unique.0).map_err(|error| CredentialError {
        field: String::new(),
        why: match error.location() {
            _ if error.to_string().contains(TWICE) => format!("{TWICE}; keep one of them"),
            Some(at) => format!("it is neither JSON nor YAML (line {}, column {})", at.line(), at.column()),
            None => "it is neither JSON nor YAML".to_owned(),
        },
    })
}

const TWICE: &str = "a member is written twice in one object";

/// JSON in which no object names a member twice: of two values one would be used and the other be read by people.
struct Unique(Json);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_unit<E>(self) -> Result<Unique, E> {
                Ok(Unique(Json::Null))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Unique, A::Error> {
                let mut all = Vec::new();
                while let Some(Unique(item)) = items.next_element()? {
                    all.push(item);
                }
                Ok(Unique(Json::Array(all)))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut members: A) -> Result<Unique, A::Error> {
                let mut all = Map::new();
                while let Some((name, Unique(value))) = members.next_entry::<String, Unique>()? {
                    if all.insert(name, value).is_some() {
                        return Err(serde::de::Error::custom(TWICE));
                    }
                }
                Ok(Unique(Json::Object(all)))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
