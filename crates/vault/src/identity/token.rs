//! Tokens: JWTs (RFC 7519) signed with ES256.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use palisade_api::{Secret, Timestamp};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED, EcdsaKeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::identity::{IdentityError, MAX_LIFETIME, Options, VerifyError, Workload};

/// The longest token that is looked at.
const MAX_TOKEN: usize = 8 * 1024;

/// The names of all claims, for the discovery document.
pub(super) const CLAIMS: [&str; 12] = [
    "iss",
    "sub",
    "aud",
    "iat",
    "nbf",
    "exp",
    "jti",
    "palisade_workspace",
    "palisade_environment",
    "palisade_agent",
    "palisade_agent_version",
    "palisade_session",
];

/// What a token says. Times are seconds since 1970. Claims of ours are flat, since cloud federation maps and compares those only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The issuer's URL.
    pub iss: String,
    /// The SPIFFE ID.
    pub sub: String,
    /// Who it is for.
    pub aud: String,
    /// When it was signed.
    pub iat: i64,
    /// From when it is valid.
    pub nbf: i64,
    /// When it ends.
    pub exp: i64,
    /// Its own id: 128 random bits.
    pub jti: String,
    /// The workspace.
    pub palisade_workspace: String,
    /// The environment's id.
    pub palisade_environment: String,
    /// The agent's id.
    pub palisade_agent: String,
    /// The agent's version.
    pub palisade_agent_version: String,
    /// The session's id.
    pub palisade_session: String,
}

impl Claims {
    pub(super) fn new(
        options: &Options,
        workload: &Workload,
        subject: &str,
        audience: &str,
        iat: i64,
        exp: i64,
        random: &SystemRandom,
    ) -> Result<Claims, IdentityError> {
        let mut id = [0; 16];
        random.fill(&mut id).map_err(|_| IdentityError::Random)?;
        Ok(Claims {
            iss: options.issuer.clone(),
            sub: subject.to_owned(),
            aud: audience.to_owned(),
            iat,
            nbf: iat,
            exp,
            jti: BASE64.encode(id),
            palisade_workspace: workload.workspace.clone(),
            palisade_environment: workload.environment.clone(),
            palisade_agent: workload.agent.clone(),
            palisade_agent_version: workload.version.clone(),
            palisade_session: workload.session.clone(),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// Signs claims.
pub(super) fn sign(
    claims: &Claims,
    key: &str,
    pair: &EcdsaKeyPair,
    random: &SystemRandom,
) -> Result<Secret, IdentityError> {
    let header = Header { alg: "ES256".into(), typ: "JWT".into(), kid: key.to_owned() };
    // Strings and numbers always make JSON.
    let (Ok(header), Ok(claims)) = (serde_json::to_vec(&header), serde_json::to_vec(claims)) else {
        return Err(IdentityError::Random);
    };
    let mut token = BASE64.encode(header);
    token.push('.');
    BASE64.encode_string(claims, &mut token);
    let signature = pair.sign(random, token.as_bytes()).map_err(|_| IdentityError::Random)?;
    token.push('.');
    BASE64.encode_string(signature, &mut token);
    Ok(Secret::new(token))
}

/// What a token must be to be accepted.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Who signed it.
    pub issuer: &'a str,
    /// Who it is for.
    pub audience: &'a str,
    /// The time.
    pub now: Timestamp,
    /// How far the clock that `now` is from may differ from the issuer's.
    pub leeway: Duration,
}

/// Verifies a token with a key set: form, key, signature, issuer, audience, times.
///
/// # Errors
///
/// The first of these that does not hold.
pub fn verify(token: &str, jwks: &Value, expected: &Expected<'_>) -> Result<Claims, VerifyError> {
    if token.len() > MAX_TOKEN {
        return Err(VerifyError::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(VerifyError::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(VerifyError::Malformed)?;
    if claims.contains('.') {
        return Err(VerifyError::Malformed);
    }
    let decode = |part: &str| BASE64.decode(part).map_err(|_| VerifyError::Malformed);
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| VerifyError::Malformed)?;
    if header.alg != "ES256" || header.typ != "JWT" {
        return Err(VerifyError::Algorithm);
    }
    let point = point(jwks, &header.kid).ok_or(VerifyError::UnknownKey)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &decode(signature)?)
        .map_err(|_| VerifyError::Signature)?;
    let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| VerifyError::Malformed)?;
    if claims.iss != expected.issuer {
        return Err(VerifyError::Issuer);
    }
    if claims.aud != expected.audience {
        return Err(VerifyError::Audience);
    }
    let now = expected.now.as_micros().div_euclid(1_000_000);
    let leeway = i64::try_from(expected.leeway.as_secs()).unwrap_or(i64::MAX);
    if claims.nbf.max(claims.iat) > now.saturating_add(leeway) {
        return Err(VerifyError::Early);
    }
    if claims.exp <= now.saturating_sub(leeway) {
        return Err(VerifyError::Expired);
    }
    if claims.exp.saturating_sub(claims.iat) > MAX_LIFETIME.as_secs().cast_signed() {
        return Err(VerifyError::Lifetime);
    }
    Ok(claims)
}

/// A key of a key set, as an uncompressed point.
fn point(jwks: &Value, kid: &str) -> Option<Vec<u8>> {
    let key = jwks.get("keys")?.as_array()?.iter().find(|key| key["kid"] == kid)?;
    if key["kty"] != "EC" || key["crv"] != "P-256" || key["alg"] != "ES256" {
        return None;
    }
    let coordinate = |name: &str| BASE64.decode(key[name].as_str()?).ok().filter(|bytes| bytes.len() == 32);
    Some([vec![4], coordinate("x")?, coordinate("y")?].concat())
}
