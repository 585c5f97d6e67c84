//! Azure Key Vault.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use palisade_api::Secret;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::bearer::{Bearer, Granted};
use crate::clock::{Clock, rfc3339};
use crate::error::FetchError;
use crate::http::{Call, Client, encode, form};
use crate::source::{Content, Document, Source};
use crate::surroundings::{Origin, Surroundings};

/// What a token is asked for.
const SCOPE: &str = "https://vault.azure.net/.default";
/// The same for managed identities.
const RESOURCE: &str = "https://vault.azure.net";
/// The version of the interface that is spoken.
const VERSION: &str = "7.4";
/// The type of an assertion, from RFC 7523.
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// One key vault under `azure:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureConfig {
    /// Such as `https://NAME.vault.azure.net`.
    pub address: String,
    /// Certificates in PEM that are trusted besides the machine's own.
    pub ca_file: Option<PathBuf>,
    /// How to log in.
    pub auth: AzureAuth,
    /// Seconds that a value is used before it is asked for again; 60 by default.
    pub keep: Option<u64>,
}

/// How to log in.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum AzureAuth {
    /// An application and its secret.
    ClientSecret {
        /// The directory's id.
        tenant: String,
        /// The application's id.
        client_id: String,
        /// Where its secret is.
        secret: Origin,
        /// `https://login.microsoftonline.com` by default.
        authority: Option<String>,
    },
    /// An application and a token of somebody it trusts, such as a cluster.
    FederatedToken {
        /// The directory's id.
        tenant: String,
        /// The application's id.
        client_id: String,
        /// Where the token is; read for each login, since it is replaced.
        token: Origin,
        /// `https://login.microsoftonline.com` by default.
        authority: Option<String>,
    },
    /// The identity of the machine that this runs on.
    ManagedIdentity {
        /// Which one, if the machine has several.
        client_id: Option<String>,
        /// `http://169.254.169.254` by default.
        endpoint: Option<String>,
    },
}

#[derive(Debug)]
pub(crate) struct Azure {
    name: String,
    config: AzureConfig,
    client: Client,
    surroundings: Surroundings,
    clock: Arc<dyn Clock>,
    bearer: Bearer,
}

#[derive(Deserialize)]
struct Token {
    access_token: Secret,
    /// A number from the login service, text from a machine's own endpoint.
    expires_in: serde_json::Value,
}

#[derive(Deserialize)]
struct Value {
    value: Option<Secret>,
    #[serde(default)]
    attributes: Attributes,
}

#[derive(Default, Deserialize)]
struct Attributes {
    exp: Option<u64>,
}

#[derive(Deserialize)]
struct Trouble {
    error: TroubleError,
}

#[derive(Deserialize)]
struct TroubleError {
    #[serde(default)]
    innererror: Option<Inner>,
}

#[derive(Deserialize)]
struct Inner {
    #[serde(default)]
    code: String,
}

impl Azure {
    pub(crate) fn new(
        name: &str,
        config: AzureConfig,
        client: Client,
        surroundings: Surroundings,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { name: name.to_owned(), config, client, surroundings, clock, bearer: Bearer::default() }
    }

    async fn log_in(&self) -> Result<Granted, FetchError> {
        let place = self.client.place();
        let load = |origin: Origin| async move {
            origin.load(&self.surroundings).await.map_err(|why| FetchError::local(place, why))
        };
        let with_form = |authority: &Option<String>, tenant: &str, fields: &[(&str, &str)]| {
            let authority = authority.as_deref().unwrap_or("https://login.microsoftonline.com").trim_end_matches('/');
            let url = format!("{authority}/{}/oauth2/v2.0/token", encode(tenant));
            Call::post(url, "application/x-www-form-urlencoded", form(fields))
        };
        let grant = ("grant_type", "client_credentials");
        let call = match &self.config.auth {
            AzureAuth::ClientSecret { tenant, client_id, secret, authority } => {
                let secret = load(secret.clone()).await?;
                let secret = ("client_secret", secret.expose());
                with_form(authority, tenant, &[grant, ("client_id", client_id), ("scope", SCOPE), secret])
            }
            AzureAuth::FederatedToken { tenant, client_id, token, authority } => {
                let token = load(token.clone()).await?;
                let kind = ("client_assertion_type", ASSERTION);
                let token = ("client_assertion", token.expose());
                with_form(authority, tenant, &[grant, ("client_id", client_id), ("scope", SCOPE), kind, token])
            }
            AzureAuth::ManagedIdentity { client_id, endpoint } => {
                let endpoint = endpoint.as_deref().unwrap_or("http://169.254.169.254").trim_end_matches('/');
                let resource = encode(RESOURCE);
                let mut url =
                    format!("{endpoint}/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}");
                if let Some(id) = client_id {
                    url.push_str("&client_id=");
                    url.push_str(&encode(id));
                }
                let mut call = Call::get(url);
                call.headers.insert("metadata", HeaderValue::from_static("true"));
                call
            }
        };
        let asked = self.clock.elapsed();
        let answer = self.client.call(call).await?;
        match answer.status {
            200 => {
                let token: Token = self.client.parse(&answer.body)?;
                let seconds = match &token.expires_in {
                    serde_json::Value::String(text) => text.parse().ok(),
                    other => other.as_u64(),
                };
                let seconds =
                    seconds.ok_or_else(|| FetchError::malformed(place, "the token's `expires_in` is no number"))?;
                Ok(Granted { token: token.access_token, ends: asked.saturating_add(Duration::from_secs(seconds)) })
            }
            400 | 401 | 403 => Err(self.client.skew(&answer, &*self.clock).unwrap_or_else(|| {
                let what = match &self.config.auth {
                    AzureAuth::ClientSecret { secret, .. } => format!("the application's secret in `{secret}`"),
                    AzureAuth::FederatedToken { token, .. } => format!("the federated token in `{token}`"),
                    AzureAuth::ManagedIdentity { .. } => "a managed identity of this machine".to_owned(),
                };
                let status = answer.status;
                FetchError::denied(
                    place,
                    format!(
                        "the login with {what} is not taken (status {status}); check it, the tenant and the client id"
                    ),
                )
            })),
            status => Err(self.client.status(status)),
        }
    }
}

#[async_trait]
impl Source for Azure {
    fn description(&self) -> String {
        format!("the Azure Key Vault at {} (azure:{})", self.config.address, self.name)
    }

    fn keep(&self) -> Duration {
        Duration::from_secs(self.config.keep.unwrap_or(60))
    }

    async fn fetch(&self, path: &str) -> Result<Document, FetchError> {
        let place = self.client.place();
        let (secret, version) = path.split_once('/').unwrap_or((path, ""));
        let simple = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !simple(secret) || !simple(version) {
            let why = "a reference is `azure:VAULT/SECRET` or `azure:VAULT/SECRET/VERSION`, of letters, digits and `-`";
            return Err(FetchError::not_found(place, why));
        }
        let mut url = format!("{}/secrets/{secret}", self.config.address.trim_end_matches('/'));
        if !version.is_empty() {
            url.push('/');
            url.push_str(version);
        }
        url.push_str("?api-version=");
        url.push_str(VERSION);
        let answer = self.bearer.get(&self.client, &*self.clock, || self.log_in(), &url).await?;
        match answer.status {
            200 => {
                let value: Value = self.client.parse(&answer.body)?;
                let text = value.value.ok_or_else(|| FetchError::malformed(place, "the secret has no value"))?;
                let expires =
                    value.attributes.exp.and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at)));
                if let Some(expires) = expires.filter(|at| *at <= self.clock.now()) {
                    let why = format!("`{secret}` ended at {}; put a new version in its place", rfc3339(expires));
                    return Err(FetchError::denied(place, why));
                }
                Ok(Document { expires, ..Document::plain(Content::single(text)) })
            }
            404 => {
                Err(FetchError::not_found(place, format!("there is no secret `{secret}`, or no such version of it")))
            }
            401 => Err(FetchError::denied(place, "it does not take the token; check the vault's tenant")),
            403 => {
                let inner = serde_json::from_slice::<Trouble>(&answer.body).ok().and_then(|all| all.error.innererror);
                Err(match inner.as_ref().map_or("", |inner| inner.code.as_str()) {
                    "SecretDisabled" => {
                        FetchError::denied(place, format!("`{secret}` is disabled; enable it or name another"))
                    }
                    "ForbiddenByFirewall" => {
                        FetchError::denied(place, "its firewall does not let this machine in; add its address there")
                    }
                    _ => FetchError::denied(
                        place,
                        format!("the identity may not read `{secret}`; give it the role `Key Vault Secrets User`"),
                    ),
                })
            }
            status => Err(self.client.status(status)),
        }
    }
}
