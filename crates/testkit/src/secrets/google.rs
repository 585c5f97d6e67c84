//! Google: the token service, which verifies the signed statement, a machine's metadata, and Secret Manager, at one address.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};

use super::{Answer, Asked, Service, lock, unix};

/// A key that exists for tests only and opens nothing.
pub const SERVICE_ACCOUNT_KEY: &str = include_str!("service_account.pem");

/// One project and one service account.
#[derive(Debug)]
pub struct FakeGoogle {
    project: String,
    email: String,
    secrets: Mutex<BTreeMap<String, (String, String)>>,
    tokens: Mutex<BTreeSet<String>>,
    made: Mutex<u64>,
}

impl FakeGoogle {
    /// With [`SERVICE_ACCOUNT_KEY`] as the account's key.
    pub fn new(project: &str, email: &str) -> Self {
        Self {
            project: project.to_owned(),
            email: email.to_owned(),
            secrets: Mutex::default(),
            tokens: Mutex::default(),
            made: Mutex::default(),
        }
    }

    /// Keeps a secret; `name` is `NAME/VERSION`, `crc32c` its checksum as a decimal number.
    pub fn put(&self, name: &str, value: &str, crc32c: &str) {
        lock(&self.secrets).insert(name.to_owned(), (value.to_owned(), crc32c.to_owned()));
    }

    fn token(&self) -> Answer {
        let mut made = lock(&self.made);
        *made += 1;
        let token = format!("CANARY-google-token-{made}");
        lock(&self.tokens).insert(token.clone());
        Answer::json(200, &json!({"access_token": token, "expires_in": 3599, "token_type": "Bearer"}))
    }

    /// Verifies a statement as RFC 7523 has it.
    fn verify(&self, assertion: &str, audience: &str, now: SystemTime) -> Option<()> {
        let (signed, signature) = assertion.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let json = |text: &str| -> Option<Value> { serde_json::from_slice(&decode(text)?).ok() };
        let (header, claims) = (json(header)?, json(claims)?);
        let pem: String = SERVICE_ACCOUNT_KEY.lines().filter(|line| !line.starts_with('-')).collect();
        let key = RsaKeyPair::from_pkcs8(&STANDARD.decode(pem).ok()?).ok()?;
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public());
        public.verify(signed.as_bytes(), &decode(signature)?).ok()?;
        let (issued, ends, now) = (claims["iat"].as_u64()?, claims["exp"].as_u64()?, unix(now));
        let good = header["alg"] == "RS256"
            && claims["iss"] == self.email.as_str()
            && claims["aud"] == audience
            && claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"
            && ends <= issued + 3600
            && issued <= now + 60
            && now < ends;
        good.then_some(())
    }
}

impl Service for FakeGoogle {
    fn answer(&self, asked: &Asked, now: SystemTime) -> Answer {
        if asked.path == "/token" {
            let body = String::from_utf8_lossy(&asked.body).into_owned();
            let audience = format!("http://{}/token", asked.header("host"));
            let grant = Asked::field(&body, "grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer";
            let verified = self.verify(&Asked::field(&body, "assertion"), &audience, now);
            return if grant && verified.is_some() {
                self.token()
            } else {
                Answer::json(400, &json!({"error": "invalid_grant", "error_description": body}))
            };
        }
        if asked.path == "/computeMetadata/v1/instance/service-accounts/default/token" {
            return if asked.header("metadata-flavor") == "Google" { self.token() } else { Answer::new(403, "") };
        }
        let error = |code: u16, status: &str| {
            Answer::json(code, &json!({"error": {"code": code, "message": "m", "status": status}}))
        };
        if !lock(&self.tokens).contains(asked.bearer()) {
            return error(401, "UNAUTHENTICATED");
        }
        let rest = asked.path.strip_prefix(&format!("/v1/projects/{}/secrets/", self.project));
        let name = rest.and_then(|rest| rest.strip_suffix(":access")).map(|name| name.replace("/versions/", "/"));
        let secrets = lock(&self.secrets);
        match name.and_then(|name| secrets.get(&name)) {
            Some((value, sum)) => {
                let payload = json!({"data": STANDARD.encode(value), "dataCrc32c": sum});
                Answer::json(200, &json!({"name": asked.path, "payload": payload}))
            }
            None => error(404, "NOT_FOUND"),
        }
    }
}
