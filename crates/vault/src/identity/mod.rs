//! Workload identity: short-lived signed tokens that say which session of which agent is asking.
//!
//! An [`Issuer`] keeps ES256 keys in a directory and changes them by age. Each live session holds an [`Identity`] and gets tokens
//! from it for an audience at a time; when the session ends, so do its tokens. Upstreams verify them with the key set and the
//! discovery document, which are values here: serving them is the worker's.

mod error;
mod keys;
mod token;
mod workload;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use palisade_api::{Secret, Timestamp};
use reqwest::Url;
use ring::rand::SystemRandom;
use serde_json::{Value, json};

pub use error::{IdentityError, VerifyError};
pub use token::{Claims, Expected, verify};
pub use workload::Workload;

use keys::{KeyRing, Schedule};

/// No token is valid for longer.
pub const MAX_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// How far a verifier's clock may be behind: a key is shown for so long after the last of its tokens has expired.
pub const SKEW: Duration = Duration::from_secs(5 * 60);

/// The longest audience, in bytes.
const MAX_AUDIENCE: usize = 512;

/// How an issuer signs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its URL, as verifiers are told it: `https`, no query, no slash at the end. Below it the discovery document is served.
    pub issuer: String,
    /// The trust domain of SPIFFE IDs: lower-case letters, digits, `.`, `-`, `_`.
    pub trust_domain: String,
    /// How long a token is valid: 1 s to [`MAX_LIFETIME`].
    pub lifetime: Duration,
    /// How long a key signs before the next one does.
    pub rotate_after: Duration,
    /// How long a key is shown before it signs. Verifiers may keep the key set for so long.
    pub publish_ahead: Duration,
}

impl Options {
    /// Tokens of 5 minutes; a new key each day, shown an hour before.
    pub fn new(issuer: impl Into<String>, trust_domain: impl Into<String>) -> Options {
        Options {
            issuer: issuer.into(),
            trust_domain: trust_domain.into(),
            lifetime: Duration::from_secs(5 * 60),
            rotate_after: Duration::from_secs(24 * 60 * 60),
            publish_ahead: Duration::from_secs(60 * 60),
        }
    }

    fn check(&self) -> Result<(), IdentityError> {
        let refuse = |option, must| Err(IdentityError::Option { option, must });
        let loopback = |url: &Url| matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
        let sound = Url::parse(&self.issuer).is_ok_and(|url| {
            (url.scheme() == "https" || url.scheme() == "http" && loopback(&url))
                && url.host_str().is_some()
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
                && !self.issuer.ends_with('/')
                // Verifiers compare it byte by byte.
                && (url.as_str() == self.issuer || url.as_str().strip_suffix('/') == Some(self.issuer.as_str()))
        });
        if !sound {
            return refuse(
                "issuer",
                "an https URL in normal form, without user, query, fragment or a slash at its end",
            );
        }
        workload::check_trust_domain(&self.trust_domain)?;
        if self.lifetime < Duration::from_secs(1) || self.lifetime > MAX_LIFETIME {
            return refuse("lifetime", "between 1 second and 15 minutes");
        }
        if self.rotate_after < Duration::from_secs(60) || self.rotate_after > Duration::from_secs(366 * 24 * 60 * 60) {
            return refuse("time between rotations", "between 1 minute and 366 days");
        }
        if self.publish_ahead >= self.rotate_after {
            return refuse("time that a key is shown before it signs", "shorter than the time between rotations");
        }
        Ok(())
    }
}

/// Signs tokens for live sessions. Clones are the same issuer.
#[derive(Debug, Clone)]
pub struct Issuer {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    keys: Mutex<KeyRing>,
    /// Sessions that have begun and not ended, and what tells the holders of their identities that they have.
    live: Mutex<HashMap<String, Arc<AtomicBool>>>,
    random: SystemRandom,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, HashMap<String, Arc<AtomicBool>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token, and what a trail may say of it.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token itself.
    pub token: Secret,
    /// Its `jti`, by which a record names it.
    pub id: String,
    /// The key that signed it.
    pub key: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl Issuer {
    /// Opens the keys in a directory; makes the directory and a first key where there are none.
    ///
    /// # Errors
    ///
    /// An option makes no sense, another process has the keys, others can read or plant some, or one is damaged.
    pub fn open(dir: &Path, options: Options, now: Timestamp) -> Result<Issuer, IdentityError> {
        options.check()?;
        let random = SystemRandom::new();
        let schedule = Schedule { rotate_after: options.rotate_after, publish_ahead: options.publish_ahead };
        let mut keys = KeyRing::open(dir, schedule)?;
        keys.turn(now, &random)?;
        let (keys, live) = (Mutex::new(keys), Mutex::new(HashMap::new()));
        Ok(Issuer { inner: Arc::new(Inner { options, keys, live, random }) })
    }

    /// Begins a session's identity. It ends with [`Identity::end`], [`Issuer::end`], or when the last clone is dropped.
    ///
    /// # Errors
    ///
    /// The workload cannot be named in a SPIFFE ID, or the session has an identity already.
    pub fn begin(&self, workload: Workload) -> Result<Identity, IdentityError> {
        let subject = workload.spiffe_id(&self.inner.options.trust_domain)?;
        let ended = Arc::new(AtomicBool::new(false));
        match self.inner.live().entry(workload.session.clone()) {
            Entry::Occupied(_) => return Err(IdentityError::Begun { session: workload.session }),
            Entry::Vacant(place) => drop(place.insert(Arc::clone(&ended))),
        }
        Ok(Identity { live: Arc::new(Live { issuer: self.clone(), workload, subject, ended }) })
    }

    /// Ends a session's identity, whoever holds it: there are no more tokens. `false` when it has none.
    pub fn end(&self, session: &str) -> bool {
        let there = self.inner.live().remove(session);
        there.is_some_and(|ended| !ended.swap(true, Ordering::AcqRel))
    }

    /// The key set (RFC 7517), with the keys that are to come and those whose tokens may still be valid. It may be kept for
    /// [`Issuer::jwks_max_age`].
    pub fn jwks(&self, now: Timestamp) -> Value {
        json!({ "keys": self.keys(now).public() })
    }

    /// How long verifiers may keep the key set: no key signs before it was shown for so long.
    pub fn jwks_max_age(&self) -> Duration {
        self.inner.options.publish_ahead
    }

    /// The discovery document (OpenID Connect Discovery 1.0), for `ISSUER/.well-known/openid-configuration`. It names
    /// `ISSUER/.well-known/jwks.json` as the place of the key set.
    pub fn discovery(&self) -> Value {
        let issuer = &self.inner.options.issuer;
        json!({
            "issuer": issuer,
            "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "claims_supported": token::CLAIMS,
        })
    }

    /// Makes a new key that signs at once and forgets all others, for when one may have been stolen: their tokens are not valid any
    /// more, as soon as verifiers ask for the key set again.
    ///
    /// # Errors
    ///
    /// The directory cannot be written.
    pub fn replace_keys(&self, now: Timestamp) -> Result<(), IdentityError> {
        let mut keys = self.inner.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.replace(now, &self.inner.random)
    }

    /// The keys as they are at a time.
    fn keys(&self, now: Timestamp) -> MutexGuard<'_, KeyRing> {
        let mut keys = self.inner.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(why) = keys.turn(now, &self.inner.random) {
            // There is a key, and it signs on until another can be made.
            tracing::error!(error = %why, "the keys of workload identities could not be changed");
        }
        keys
    }

    fn issue(&self, live: &Live, audience: &str, now: Timestamp) -> Result<Token, IdentityError> {
        let sound = !audience.is_empty() && audience.len() <= MAX_AUDIENCE && !audience.chars().any(char::is_control);
        if !sound {
            return Err(IdentityError::Audience);
        }
        let options = &self.inner.options;
        let (key, pair) = self.keys(now).signing(now).ok_or(IdentityError::NoKey)?;
        let lifetime = options.lifetime.as_secs().min(MAX_LIFETIME.as_secs()).cast_signed();
        let issued_at = now.as_micros().div_euclid(1_000_000);
        let claims = Claims::new(
            options,
            &live.workload,
            &live.subject,
            audience,
            issued_at,
            issued_at + lifetime,
            &self.inner.random,
        )?;
        let token = token::sign(&claims, &key, &pair, &self.inner.random)?;
        // The last look: a session that ended meanwhile gets none.
        if live.ended.load(Ordering::Acquire) {
            return Err(IdentityError::Ended { session: live.workload.session.clone() });
        }
        Ok(Token {
            token,
            id: claims.jti,
            key,
            expires_at: Timestamp::from_micros(claims.exp.saturating_mul(1_000_000)),
        })
    }
}

/// The identity of one session. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Identity {
    live: Arc<Live>,
}

#[derive(Debug)]
struct Live {
    issuer: Issuer,
    workload: Workload,
    subject: String,
    ended: Arc<AtomicBool>,
}

impl Identity {
    /// The SPIFFE ID.
    pub fn subject(&self) -> &str {
        &self.live.subject
    }

    /// A new token for an audience. May write files: when a key is due to change, a few milliseconds.
    ///
    /// # Errors
    ///
    /// The session has ended, or the audience is none.
    pub fn token(&self, audience: &str, now: Timestamp) -> Result<Token, IdentityError> {
        if self.live.ended.load(Ordering::Acquire) {
            return Err(IdentityError::Ended { session: self.live.workload.session.clone() });
        }
        self.live.issuer.issue(&self.live, audience, now)
    }

    /// Ends it: there are no more tokens.
    pub fn end(&self) {
        self.live.ended.store(true, Ordering::Release);
        self.live.forget();
    }
}

impl Live {
    /// Takes it off the list, unless the session has begun anew.
    fn forget(&self) {
        let mut live = self.issuer.inner.live();
        if live.get(&self.workload.session).is_some_and(|there| Arc::ptr_eq(there, &self.ended)) {
            live.remove(&self.workload.session);
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.forget();
    }
}
