//! Sessions tokens: signed, short-lived credentials for one work item and its session.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use palisade_api::{EnvironmentId, SessionId, Timestamp, WorkId};
use ring::hmac;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Error;
use crate::keys::write_private;

/// What every sessions token starts with.
pub(crate) const PREFIX: &str = "sk-ant-req-";
/// How long a token is good for, in microseconds.
const LIFE: i64 = 24 * 3600 * 1_000_000;

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    pub(crate) session: SessionId,
    pub(crate) work: WorkId,
    pub(crate) environment: EnvironmentId,
    /// Microseconds since the epoch.
    expires: i64,
}

/// Why a token is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    Forged,
    Expired,
}

/// Signs tokens with a key of this installation.
pub(crate) struct Signer {
    key: hmac::Key,
}

impl Signer {
    /// Reads the installation's key, which the first start makes.
    pub(crate) fn open(state_dir: &Path) -> Result<Signer, Error> {
        let path = state_dir.join("token.key");
        if !path.exists() {
            let mut fresh = Zeroizing::new([0_u8; 32]);
            fresh[..16].copy_from_slice(&palisade_engine::random_bytes());
            fresh[16..].copy_from_slice(&palisade_engine::random_bytes());
            write_private(&path, &*fresh, false)?;
        }
        let fail = |cause| Error::State { step: "cannot read", path: path.clone(), cause };
        // One byte more than a key has, so that a longer file is noticed.
        let mut bytes = Zeroizing::new(Vec::with_capacity(33));
        fs::File::open(&path).map_err(fail)?.take(33).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() != 32 {
            return Err(Error::TokenKey(path));
        }
        Ok(Signer { key: hmac::Key::new(hmac::HMAC_SHA256, &bytes) })
    }

    /// A token for this item and its session.
    pub(crate) fn issue(
        &self,
        session: SessionId,
        work: WorkId,
        environment: EnvironmentId,
        now: Timestamp,
    ) -> Result<String, serde_json::Error> {
        let claims = Claims { session, work, environment, expires: now.plus(LIFE).as_micros() };
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims)?);
        let tag = hmac::sign(&self.key, body.as_bytes());
        Ok(format!("{PREFIX}{body}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref())))
    }

    /// What a token allows now.
    pub(crate) fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, Bad> {
        let (body, tag) = token.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).ok_or(Bad::Forged)?;
        let tag = URL_SAFE_NO_PAD.decode(tag).map_err(|_| Bad::Forged)?;
        // Constant in time.
        hmac::verify(&self.key, body.as_bytes(), &tag).map_err(|_| Bad::Forged)?;
        let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| Bad::Forged)?;
        let claims: Claims = serde_json::from_slice(&body).map_err(|_| Bad::Forged)?;
        if claims.expires <= now.as_micros() {
            return Err(Bad::Expired);
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_bound_to_their_claims_and_expire() {
        let dir = tempfile::tempdir().expect("a directory");
        let signer = Signer::open(dir.path()).expect("a signer");
        let now = Timestamp::from_micros(1_000_000);
        let token = signer.issue("sesn_a".into(), "work_a".into(), "env_a".into(), now).expect("a token");
        assert_eq!(signer.verify(&token, now).expect("good").session.as_str(), "sesn_a");
        // Another process with the same state directory takes it too.
        assert!(Signer::open(dir.path()).expect("a signer").verify(&token, now).is_ok());
        assert_eq!(signer.verify(&token, now.plus(LIFE)), Err(Bad::Expired));

        let other = tempfile::tempdir().expect("a directory");
        assert_eq!(Signer::open(other.path()).expect("a signer").verify(&token, now), Err(Bad::Forged));
        let changed = token.replacen("req-e", "req-f", 1);
        assert_ne!(changed, token);
        assert_eq!(signer.verify(&changed, now), Err(Bad::Forged));
    }
}
