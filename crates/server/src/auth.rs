//! Who calls, and what that kind of caller may do.
//!
//! A caller that may not use an operation at all gets 403. A caller that may, but asks for an object outside its scope, gets
//! the same 404 as for an object that does not exist, so that nothing leaks across environments.

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::request::Parts;
use palisade_api::{EnvironmentId, KeyId, SessionId, WorkId};
use palisade_core::batch::{Key, Kind, Record};

use crate::error::{Answer, Fault};
use crate::keys::{self, KeyKind};
use crate::service::Service;
use crate::token::{self, Bad, Claims};

/// Who calls.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// An API key.
    Api(KeyId),
    /// An environment key.
    Environment(KeyId, EnvironmentId),
    /// A sessions token.
    Session(Claims),
}

/// The credential as it was sent: bearer, or `x-api-key` from older SDKs and by hand.
fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| {
        let (scheme, rest) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
    });
    let key = || headers.get("x-api-key").and_then(|value| value.to_str().ok());
    bearer.filter(|text| !text.is_empty()).or_else(key)
}

impl Caller {
    /// Finds out who calls. Every request asks the store, so that a revoked key is refused at once.
    pub(crate) async fn identify(service: &Service, headers: &HeaderMap) -> Answer<Caller> {
        let Some(secret) = credential(headers) else {
            return Err(Fault::unauthenticated(
                "no credential: send an API key as \"Authorization: Bearer …\" or in x-api-key",
            ));
        };
        if secret.starts_with(token::PREFIX) {
            return match service.signer.verify(secret, service.now()) {
                Ok(claims) => Ok(Caller::Session(claims)),
                Err(Bad::Expired) => Err(Fault::unauthenticated(
                    "the sessions token has expired: poll for the work item again to get a new one",
                )),
                Err(Bad::Forged) => Err(Fault::unauthenticated("the sessions token is not valid")),
            };
        }
        match keys::find(&**service.engine.store(), secret).await? {
            Some(key) => Ok(match key.kind {
                KeyKind::Api => Caller::Api(key.id),
                KeyKind::Environment { environment_id } => Caller::Environment(key.id, environment_id),
            }),
            None => Err(Fault::unauthenticated("the key is not valid: it is unknown or was revoked")),
        }
    }

    /// What rates are counted by.
    pub(crate) fn account(&self) -> &str {
        match self {
            Caller::Api(key) | Caller::Environment(key, _) => key.as_str(),
            Caller::Session(claims) => claims.session.as_str(),
        }
    }

    /// Whether the caller is a worker, whose streams are rotated.
    pub(crate) fn is_worker(&self) -> bool {
        !matches!(self, Caller::Api(_))
    }

    /// For operations of API keys only.
    pub(crate) fn api_only(&self) -> Answer<()> {
        match self {
            Caller::Api(_) => Ok(()),
            Caller::Environment(..) => Err(Fault::forbidden(
                "an environment key may not do this: it serves the work queue and the sessions of its environment; use an API key",
            )),
            Caller::Session(_) => Err(Fault::forbidden(
                "a sessions token may not do this: it serves one work item and its session; use an API key",
            )),
        }
    }

    /// For operations of environment keys only.
    pub(crate) fn environment_only(&self, environment: &str) -> Answer<()> {
        match self {
            Caller::Environment(_, own) if own.as_str() == environment => Ok(()),
            Caller::Environment(..) => Err(Fault::missing("environment", environment)),
            _ => Err(Fault::forbidden(
                "only an environment key may do this: make one with `palisade keys create --environment ID`",
            )),
        }
    }

    /// For operations of API keys and environment keys.
    pub(crate) fn no_token(&self, environment: &str) -> Answer<()> {
        match self {
            Caller::Api(_) => Ok(()),
            Caller::Environment(..) => self.environment_only(environment),
            Caller::Session(_) => self.api_only(),
        }
    }

    /// For operations on a held item: environment keys, and the token of that very item.
    pub(crate) fn holds(&self, environment: &str, work: &WorkId) -> Answer<()> {
        match self {
            Caller::Session(claims) if claims.environment.as_str() != environment => {
                Err(Fault::missing("environment", environment))
            }
            Caller::Session(claims) if claims.work != *work => Err(Fault::missing("work item", work.as_str())),
            Caller::Session(_) => Ok(()),
            _ => self.environment_only(environment),
        }
    }

    /// The record of a session that the caller may know of.
    pub(crate) async fn session(&self, service: &Service, id: &str) -> Answer<(SessionId, Record)> {
        let missing = || Fault::missing("session", id);
        if let Caller::Session(claims) = self
            && claims.session.as_str() != id
        {
            return Err(missing());
        }
        let session = SessionId::parse(id).map_err(|_| missing())?;
        let record = service.engine.store().get(&Key::new(Kind::Session, id)).await?.ok_or_else(missing)?;
        match self {
            Caller::Environment(_, own) if record.parent.as_deref() != Some(own.as_str()) => Err(missing()),
            _ => Ok((session, record)),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Fault> {
        // The outermost layer puts it there for every path that is not open.
        parts.extensions.get::<Caller>().cloned().ok_or_else(|| Fault::unauthenticated("no credential"))
    }
}
