//! HashiCorp Vault and OpenBao: secrets of the KV engine, version 2, and dynamic secrets with their leases.
//!
//! Paths and shapes are those of the documented HTTP API, which both servers share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use palisade_api::Secret;
use reqwest::Method;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::error::FetchError;
use crate::http::{Answer, Call, Client, body, encode_path, secret_header};
use crate::source::{Content, Document, Lease, Renewed, Source, Stamp, parse_record};
use crate::surroundings::{Origin, Surroundings};

/// Where Kubernetes puts a pod's own token.
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// How long one that cannot log in is not tried again, so that a wrong secret does not lock its role.
const LOGIN_PAUSE: Duration = Duration::from_secs(5);

/// One server under `vault:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashicorpConfig {
    /// Such as `https://vault.internal:8200`.
    pub address: String,
    /// The namespace, where the server has them.
    pub namespace: Option<String>,
    /// Certificates in PEM that are trusted besides the machine's own.
    pub ca_file: Option<PathBuf>,
    /// How to log in.
    pub auth: HashicorpAuth,
    /// What kind of engine is at which mount; `secret: kv` by default.
    pub mounts: Option<BTreeMap<String, Engine>>,
    /// Seconds that a KV secret is used before it is asked for again; 60 by default.
    pub keep: Option<u64>,
}

/// What kind of engine a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The KV engine, version 2.
    Kv,
    /// One whose secrets are made for whoever asks, with a lease: databases, clouds, …
    Dynamic,
}

/// How to log in.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum HashicorpAuth {
    /// With a token that somebody else keeps fresh; read again when it is refused.
    Token {
        /// Where it is.
        token: Origin,
    },
    /// With a role and its secret.
    Approle {
        /// `approle` by default.
        mount: Option<String>,
        /// Not a secret.
        role_id: String,
        /// Where the role's secret is.
        secret_id: Origin,
    },
    /// With the pod's service account.
    Kubernetes {
        /// `kubernetes` by default.
        mount: Option<String>,
        /// The role.
        role: String,
        /// Where the token is; the pod's own by default.
        token: Option<Origin>,
    },
    /// With a JWT.
    Jwt {
        /// `jwt` by default.
        mount: Option<String>,
        /// The role.
        role: String,
        /// Where the JWT is.
        token: Origin,
    },
}

#[derive(Debug)]
pub(crate) struct Hashicorp {
    name: String,
    config: HashicorpConfig,
    mounts: BTreeMap<String, Engine>,
    client: Client,
    namespace: Option<HeaderValue>,
    surroundings: Surroundings,
    clock: Arc<dyn Clock>,
    login: Mutex<Login>,
}

#[derive(Debug, Default)]
struct Login {
    token: Option<Token>,
    refused: Option<(Duration, FetchError)>,
}

#[derive(Debug, Clone)]
struct Token {
    header: HeaderValue,
    number: u64,
    since: Duration,
    /// Zero if it does not end.
    lasts: Duration,
    renewable: bool,
    /// Made by our own login, so ours to revoke.
    own: bool,
}

impl Token {
    fn ends(&self) -> Option<Duration> {
        (!self.lasts.is_zero()).then(|| self.since.saturating_add(self.lasts))
    }
}

#[derive(Deserialize)]
struct LoginAnswer {
    auth: AuthPart,
}

#[derive(Deserialize)]
struct AuthPart {
    client_token: Secret,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct RenewSelf {
    auth: RenewPart,
}

#[derive(Deserialize)]
struct RenewPart {
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct LookupSelf {
    data: LookupPart,
}

#[derive(Deserialize)]
struct LookupPart {
    #[serde(default)]
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct KvAnswer<'a> {
    #[serde(borrow)]
    data: KvData<'a>,
}

#[derive(Deserialize)]
struct KvData<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    metadata: Option<KvMetadata>,
}

#[derive(Deserialize)]
struct KvMetadata {
    #[serde(default)]
    version: u64,
    #[serde(default)]
    destroyed: bool,
    #[serde(default)]
    deletion_time: String,
}

#[derive(Deserialize)]
struct DynamicAnswer<'a> {
    #[serde(default)]
    lease_id: Option<Secret>,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RenewAnswer {
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

impl Hashicorp {
    pub(crate) fn new(
        name: &str,
        config: HashicorpConfig,
        client: Client,
        surroundings: Surroundings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, &'static str> {
        let namespace = match &config.namespace {
            Some(namespace) => Some(HeaderValue::from_str(namespace).map_err(|_| "namespace")?),
            None => None,
        };
        let mounts = config.mounts.clone().unwrap_or_else(|| BTreeMap::from([("secret".to_owned(), Engine::Kv)]));
        let name = name.to_owned();
        Ok(Self { name, config, mounts, client, namespace, surroundings, clock, login: Mutex::default() })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/v1/{path}", self.config.address.trim_end_matches('/'))
    }

    fn call(&self, method: Method, path: &str, content: Option<Bytes>) -> Call {
        let mut call = match content {
            Some(content) => Call::post(self.url(path), "application/json", content),
            None => Call::get(self.url(path)),
        };
        call.method = method;
        // Without it an agent in front of the server refuses, which protects it against being called by a web page.
        call.headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if let Some(namespace) = &self.namespace {
            call.headers.insert("x-vault-namespace", namespace.clone());
        }
        call
    }

    /// The mount that a path is in, and what is there.
    fn mount<'a>(&self, path: &'a str) -> Option<(&'a str, &'a str, Engine)> {
        // Of several the longest is the nearest.
        let within = self.mounts.iter().filter_map(|(mount, engine)| {
            let rest = path.strip_prefix(mount.as_str())?.strip_prefix('/')?;
            Some((&path[..mount.len()], rest, *engine))
        });
        within.max_by_key(|(mount, _, _)| mount.len())
    }

    /// A token that should still hold.
    async fn token(&self, not: Option<u64>) -> Result<Token, FetchError> {
        let mut login = self.login.lock().await;
        let now = self.clock.elapsed();
        if let Some(token) = &login.token
            && not != Some(token.number)
            && token.ends().is_none_or(|ends| now < ends)
        {
            return Ok(token.clone());
        }
        if let Some((until, error)) = &login.refused
            && now < *until
        {
            return Err(error.clone());
        }
        let number = login.token.as_ref().map_or(0, |token| token.number) + 1;
        login.token = None;
        match self.log_in(number).await {
            Ok(token) => {
                *login = Login { token: Some(token.clone()), refused: None };
                Ok(token)
            }
            Err(error) => {
                login.refused = Some((now + LOGIN_PAUSE, error.clone()));
                Err(error)
            }
        }
    }

    async fn log_in(&self, number: u64) -> Result<Token, FetchError> {
        let place = self.client.place();
        let since = self.clock.elapsed();
        let load = |origin: Origin| async move {
            origin.load(&self.surroundings).await.map_err(|why| FetchError::local(place, why))
        };
        let json = |text: &str| serde_json::to_string(text).map(Zeroizing::new).unwrap_or_default();
        let (mount, content) = match &self.config.auth {
            HashicorpAuth::Token { token } => {
                let value = load(token.clone()).await?;
                return self.adopt(number, since, &value, token).await;
            }
            HashicorpAuth::Approle { mount, role_id, secret_id } => {
                let secret = json(load(secret_id.clone()).await?.expose());
                let content = format!(r#"{{"role_id":{},"secret_id":{}}}"#, *json(role_id), *secret);
                (mount.as_deref().unwrap_or("approle"), content)
            }
            HashicorpAuth::Kubernetes { mount, role, token } => {
                let origin = token.clone().unwrap_or_else(|| Origin::Mounted(PathBuf::from(POD_TOKEN)));
                let secret = json(load(origin).await?.expose());
                (mount.as_deref().unwrap_or("kubernetes"), format!(r#"{{"role":{},"jwt":{}}}"#, *json(role), *secret))
            }
            HashicorpAuth::Jwt { mount, role, token } => {
                let secret = json(load(token.clone()).await?.expose());
                (mount.as_deref().unwrap_or("jwt"), format!(r#"{{"role":{},"jwt":{}}}"#, *json(role), *secret))
            }
        };
        let path = format!("auth/{}/login", encode_path(mount));
        let answer = self.client.call(self.call(Method::POST, &path, Some(body(Zeroizing::new(content))))).await?;
        match answer.status {
            200 => {
                let LoginAnswer { auth } = self.client.parse(&answer.body)?;
                let header = secret_header("", &auth.client_token)
                    .ok_or_else(|| FetchError::malformed(place, "its token holds what no header may"))?;
                let lasts = Duration::from_secs(auth.lease_duration);
                Ok(Token { header, number, since, lasts, renewable: auth.renewable, own: true })
            }
            400 | 401 | 403 => Err(self.client.skew(&answer, &*self.clock).unwrap_or_else(|| {
                let why = format!(
                    "it does not take the login at `auth/{mount}` (status {}); check the role, and what the role's \
                     credential is read from",
                    answer.status
                );
                FetchError::denied(place, why)
            })),
            404 => Err(FetchError::denied(place, format!("it has no login at `auth/{mount}`; check `auth.mount`"))),
            _ => Err(self.trouble(&answer)),
        }
    }

    /// Takes a token that somebody else has made.
    async fn adopt(&self, number: u64, since: Duration, value: &Secret, origin: &Origin) -> Result<Token, FetchError> {
        let place = self.client.place();
        let header = secret_header("", value).ok_or_else(|| {
            FetchError::local(place, format!("`{origin}` holds no token: it has characters that none has"))
        })?;
        let mut call = self.call(Method::GET, "auth/token/lookup-self", None);
        call.headers.insert("x-vault-token", header.clone());
        let answer = self.client.call(call).await?;
        match answer.status {
            200 => {
                let LookupSelf { data } = self.client.parse(&answer.body)?;
                let lasts = Duration::from_secs(data.ttl);
                Ok(Token { header, number, since, lasts, renewable: data.renewable, own: false })
            }
            403 => {
                let why =
                    format!("it does not know the token in `{origin}`, or the token has ended; put a new one there");
                Err(FetchError::denied(place, why))
            }
            _ => Err(self.trouble(&answer)),
        }
    }

    /// Calls with the token; once more with a new one if the server no longer knows it.
    async fn authorized(&self, method: Method, path: &str, content: Option<Bytes>) -> Result<Answer, FetchError> {
        let mut refused = None;
        loop {
            let token = self.token(refused).await?;
            let mut call = self.call(method.clone(), path, content.clone());
            call.headers.insert("x-vault-token", token.header.clone());
            let answer = self.client.call(call).await?;
            // What a policy forbids and what a token has lost look alike; a fresh token tells them apart.
            if answer.status != 403 || refused.is_some() {
                return Ok(answer);
            }
            refused = Some(token.number);
        }
    }

    fn trouble(&self, answer: &Answer) -> FetchError {
        let place = self.client.place();
        match answer.status {
            // A standby that cannot forward, a server in recovery, one that has not caught up.
            412 | 472 | 473 => {
                FetchError::unavailable(place, format!("it cannot serve now (status {})", answer.status))
            }
            503 if self.says(answer, "sealed") => {
                FetchError::unavailable(place, "it is sealed; its operators must unseal it")
            }
            status => self.client.status(status),
        }
    }

    /// Whether one of the errors in an answer says this.
    fn says(&self, answer: &Answer, what: &str) -> bool {
        serde_json::from_slice::<Errors>(&answer.body)
            .is_ok_and(|all| all.errors.iter().any(|text| text.contains(what)))
    }

    async fn kv(&self, mount: &str, rest: &str) -> Result<Document, FetchError> {
        let place = self.client.place();
        let path = format!("{}/data/{}", encode_path(mount), encode_path(rest));
        let answer = self.authorized(Method::GET, &path, None).await?;
        match answer.status {
            200 | 404 => {}
            403 => {
                let why = format!("the policy of this login does not let it read `{mount}/data/{rest}`");
                return Err(FetchError::denied(place, why));
            }
            _ => return Err(self.trouble(&answer)),
        }
        let found: Option<KvAnswer<'_>> = match answer.status {
            200 => Some(self.client.parse_borrowed(&answer.body)?),
            // A deleted version answers 404 too, with its dates.
            _ => serde_json::from_slice(&answer.body).ok(),
        };
        let Some(KvAnswer { data: KvData { data, metadata } }) = found else {
            let why = format!("there is nothing at `{rest}` in the KV engine `{mount}`");
            return Err(FetchError::not_found(place, why));
        };
        let gone = metadata.as_ref().is_some_and(|facts| facts.destroyed || !facts.deletion_time.is_empty());
        let record = match data {
            Some(data) if answer.status == 200 => parse_record(data.get().as_bytes()),
            _ if gone => {
                let why =
                    format!("the newest version of `{rest}` in `{mount}` was deleted; undelete it, or write a new one");
                return Err(FetchError::not_found(place, why));
            }
            _ => None,
        };
        let record = record.ok_or_else(|| FetchError::malformed(place, "the KV secret is no JSON object"))?;
        let stamp = Stamp(vec![metadata.map_or(0, |facts| facts.version)]);
        Ok(Document { stamp, ..Document::plain(Content::Record(record)) })
    }

    async fn dynamic(&self, mount: &str, rest: &str) -> Result<Document, FetchError> {
        let place = self.client.place();
        let path = format!("{}/{}", encode_path(mount), encode_path(rest));
        let answer = self.authorized(Method::GET, &path, None).await?;
        match answer.status {
            200 => {}
            403 => {
                let why = format!("the policy of this login does not let it read `{mount}/{rest}`");
                return Err(FetchError::denied(place, why));
            }
            400 | 404 => {
                let why = format!("the engine `{mount}` makes nothing at `{rest}`; check the role's name");
                return Err(FetchError::not_found(place, why));
            }
            _ => return Err(self.trouble(&answer)),
        }
        let DynamicAnswer { lease_id, lease_duration, renewable, data } = self.client.parse_borrowed(&answer.body)?;
        let record = data
            .and_then(|data| parse_record(data.get().as_bytes()))
            .ok_or_else(|| FetchError::malformed(place, "the dynamic secret is no JSON object"))?;
        let lease = lease_id.filter(|id| !id.is_blank() && lease_duration > 0).map(|id| Lease {
            id: Arc::new(id),
            lasts: Duration::from_secs(lease_duration),
            renewable,
        });
        if lease.is_none() {
            let why = format!(
                "what it makes at `{mount}/{rest}` has no lease, so it could not be taken back; use another role, or \
                 `kv` if the mount is a KV engine"
            );
            return Err(FetchError::malformed(place, why));
        }
        Ok(Document { lease, ..Document::plain(Content::Record(record)) })
    }

    fn lease_body(lease: &Lease) -> Bytes {
        let id = serde_json::to_string(lease.id.expose()).map(Zeroizing::new).unwrap_or_default();
        body(Zeroizing::new(format!(r#"{{"lease_id":{},"increment":{}}}"#, *id, lease.lasts.as_secs())))
    }
}

#[async_trait]
impl Source for Hashicorp {
    fn description(&self) -> String {
        format!("the Vault server at {} (vault:{})", self.config.address, self.name)
    }

    fn per_session(&self, path: &str) -> bool {
        matches!(self.mount(path), Some((_, _, Engine::Dynamic)))
    }

    fn keep(&self) -> Duration {
        Duration::from_secs(self.config.keep.unwrap_or(60))
    }

    async fn fetch(&self, path: &str) -> Result<Document, FetchError> {
        match self.mount(path) {
            Some((mount, rest, Engine::Kv)) => self.kv(mount, rest).await,
            Some((mount, rest, Engine::Dynamic)) => self.dynamic(mount, rest).await,
            None => {
                let why = format!(
                    "`{path}` is in none of the configured mounts ({}); add its mount to `mounts` as `kv` or `dynamic`",
                    self.mounts.keys().cloned().collect::<Vec<_>>().join(", ")
                );
                Err(FetchError::not_found(self.client.place(), why))
            }
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<Renewed, FetchError> {
        let answer = self.authorized(Method::PUT, "sys/leases/renew", Some(Self::lease_body(lease))).await?;
        match answer.status {
            200 => {
                let RenewAnswer { lease_duration, renewable } = self.client.parse(&answer.body)?;
                Ok(Renewed { lasts: Duration::from_secs(lease_duration), renewable })
            }
            400 | 404 => {
                let why = format!("a lease of `{}` was revoked there, or has ended", lease.shown());
                Err(FetchError::not_found(self.client.place(), why))
            }
            403 => {
                Err(FetchError::denied(self.client.place(), "the policy of this login does not let it renew leases"))
            }
            _ => Err(self.trouble(&answer)),
        }
    }

    async fn revoke(&self, lease: &Lease) -> Result<(), FetchError> {
        let answer = self.authorized(Method::PUT, "sys/leases/revoke", Some(Self::lease_body(lease))).await?;
        match answer.status {
            200 | 204 => Ok(()),
            400 | 404 => Err(FetchError::not_found(self.client.place(), "the lease has ended")),
            403 => Err(FetchError::denied(
                self.client.place(),
                "the policy of this login does not let it revoke leases; allow `update` on `sys/leases/revoke`",
            )),
            _ => Err(self.trouble(&answer)),
        }
    }

    async fn tend(&self) -> Result<(), FetchError> {
        let now = self.clock.elapsed();
        let due = {
            let login = self.login.lock().await;
            let token = login.token.clone();
            token.filter(|token| {
                token.renewable && !token.lasts.is_zero() && token.since.saturating_add(token.lasts / 2) <= now
            })
        };
        let Some(mut token) = due else { return Ok(()) };
        // A lease ends with the token that it was asked for with, so the token is kept rather than replaced.
        let mut call = self.call(Method::PUT, "auth/token/renew-self", Some(Bytes::from_static(b"{}")));
        call.headers.insert("x-vault-token", token.header.clone());
        let answer = self.client.call(call).await?;
        let number = token.number;
        match answer.status {
            200 => {
                let RenewSelf { auth } = self.client.parse(&answer.body)?;
                token.since = now;
                token.lasts = Duration::from_secs(auth.lease_duration);
                // Near its maximum less and less is granted: then the rest is used, and a new login follows.
                token.renewable = auth.renewable && auth.lease_duration > 2;
            }
            // It cannot be renewed any more; the next use logs in anew when it has ended.
            400 | 403 => token.renewable = false,
            _ => return Err(self.trouble(&answer)),
        }
        let mut login = self.login.lock().await;
        if login.token.as_ref().is_some_and(|current| current.number == number) {
            login.token = Some(token);
        }
        Ok(())
    }

    async fn close(&self) -> Result<(), FetchError> {
        let token = self.login.lock().await.token.take();
        let Some(token) = token.filter(|token| token.own) else { return Ok(()) };
        let mut call = self.call(Method::PUT, "auth/token/revoke-self", Some(Bytes::from_static(b"{}")));
        call.headers.insert("x-vault-token", token.header);
        let answer = self.client.call(call).await?;
        match answer.status {
            200 | 204 | 403 => Ok(()),
            _ => Err(self.trouble(&answer)),
        }
    }
}
