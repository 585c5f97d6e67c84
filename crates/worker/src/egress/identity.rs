//! Workload identities: tokens that say which session calls, signed here, for upstreams that know the issuer.
//!
//! A sandbox holds a placeholder of a token, like that of any credential; the token itself is made for the request that it
//! goes out with, lives for minutes, and names one audience.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use axum::Json;
use axum::Router;
use axum::http::header::CACHE_CONTROL;
use axum::routing::get;
use palisade_api::{Secret, Timestamp};
use palisade_egress::broker::{BrokerError, Credential, Hosts, Kind, Places, Shape};
use palisade_egress::{Supply, SupplyError};
use palisade_vault::identity::{Identity, IdentityError, Issuer, Options, Workload};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::Whose;

/// Who signs identities, and which tokens sessions have placeholders of. Read from a file of the operator's.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// The issuer's URL, at which verifiers find its keys.
    pub issuer: String,
    /// The trust domain of subjects: `spiffe://TRUST_DOMAIN/workspace/…/session/…`.
    pub trust_domain: String,
    /// How long a token is valid, in seconds; 300 by default, 900 at most.
    #[serde(default)]
    pub lifetime_seconds: Option<u64>,
    /// Where `/.well-known/openid-configuration` and the keys are served, as plain HTTP; public TLS belongs in front of it.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// The tokens.
    pub tokens: Vec<TokenConfig>,
}

/// One token of a session.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// The variable that holds its placeholder.
    pub secret_name: String,
    /// Whom it is for.
    pub audience: String,
    /// Where it may be sent.
    pub allowed_hosts: Vec<String>,
    /// Whether it may stand in the body of a request, as token exchanges want it, besides its headers.
    #[serde(default)]
    pub body: bool,
}

/// Why there are no identities.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentitiesError {
    /// The issuer.
    #[error(transparent)]
    Issuer(#[from] IdentityError),
    /// A token.
    #[error("`tokens[{index}].allowed_hosts`: {error}")]
    Token {
        /// Which, from zero.
        index: usize,
        /// What is wrong.
        error: BrokerError,
    },
    /// The keys cannot be served.
    #[error("the identity's keys cannot be served at {address}: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
}

/// What signs.
#[derive(Debug)]
pub(super) struct Identities {
    issuer: Issuer,
    tokens: Vec<(TokenConfig, Hosts)>,
    listen: Option<SocketAddr>,
    now: fn() -> SystemTime,
}

impl Identities {
    pub(super) fn open(
        config: IdentityConfig,
        directory: &Path,
        now: fn() -> SystemTime,
    ) -> Result<Identities, IdentitiesError> {
        let mut options = Options::new(config.issuer, config.trust_domain);
        options.lifetime = config.lifetime_seconds.map_or(options.lifetime, Duration::from_secs);
        let issuer = Issuer::open(directory, options, Timestamp::from(now()))?;
        let mut tokens = Vec::new();
        for (index, token) in config.tokens.into_iter().enumerate() {
            let hosts = Hosts::limited(&token.allowed_hosts);
            let hosts = hosts.map_err(|error| IdentitiesError::Token { index, error })?;
            tokens.push((token, hosts));
        }
        Ok(Identities { issuer, tokens, listen: config.listen, now })
    }

    /// A session's identity, and the credentials by which its sandbox uses it.
    pub(super) fn of(&self, whose: &Whose) -> Result<(Identity, Vec<Credential>), IdentityError> {
        let identity = self.issuer.begin(Workload {
            workspace: "default".to_owned(),
            environment: whose.environment.clone(),
            agent: whose.agent.clone().unwrap_or_else(|| "unknown".to_owned()),
            version: whose.agent_version.clone().unwrap_or_else(|| "unknown".to_owned()),
            session: whose.session.clone(),
        })?;
        let credentials = self.tokens.iter().map(|(token, hosts)| {
            let value = Token { identity: identity.clone(), audience: token.audience.clone(), now: self.now };
            let reference = format!("identity:{}", token.audience);
            let mut credential = Credential::new(reference, &token.secret_name, hosts.clone(), Arc::new(value));
            credential.kind = Kind::Token(Shape::Jwt);
            credential.places = Places { header: true, body: token.body, ..Places::default() };
            credential
        });
        let credentials = credentials.collect();
        Ok((identity, credentials))
    }

    /// Serves the keys until it is told to stop, where that was asked for. What is returned says where.
    pub(super) async fn serve(
        self: &Arc<Identities>,
        stop: CancellationToken,
    ) -> Result<Option<(SocketAddr, impl Future<Output = ()> + Send + use<>)>, IdentitiesError> {
        let Some(address) = self.listen else { return Ok(None) };
        let wrong = |cause| IdentitiesError::Listen { address, cause };
        let listener = tokio::net::TcpListener::bind(address).await.map_err(wrong)?;
        let at = listener.local_addr().map_err(wrong)?;
        let (keys, discovery) = (self.clone(), self.clone());
        let jwks = move || async move {
            let age = format!("public, max-age={}", keys.issuer.jwks_max_age().as_secs());
            ([(CACHE_CONTROL, age)], Json(keys.issuer.jwks(Timestamp::from((keys.now)()))))
        };
        let router = Router::new()
            .route("/.well-known/jwks.json", get(jwks))
            .route("/.well-known/openid-configuration", get(move || async move { Json(discovery.issuer.discovery()) }));
        let serving = async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "the identity's keys are not served any more");
            }
        };
        Ok(Some((at, serving)))
    }
}

/// A token for one audience, made when it is asked for.
#[derive(Debug)]
struct Token {
    identity: Identity,
    audience: String,
    now: fn() -> SystemTime,
}

#[async_trait]
impl Supply for Token {
    async fn value(&self) -> Result<Arc<Secret>, SupplyError> {
        match self.identity.token(&self.audience, Timestamp::from((self.now)())) {
            Ok(token) => Ok(Arc::new(token.token)),
            Err(IdentityError::Ended { .. }) => Err(SupplyError::Revoked),
            Err(why) => Err(SupplyError::Unavailable(why.to_string())),
        }
    }
}
