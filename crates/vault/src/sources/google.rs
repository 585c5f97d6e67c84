//! Google Secret Manager.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use palisade_api::Secret;
use reqwest::header::HeaderValue;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::bearer::{Bearer, Granted};
use crate::clock::{Clock, unix_seconds};
use crate::error::FetchError;
use crate::http::{Call, Client, address, encode, form};
use crate::source::{Content, Document, Source};
use crate::surroundings::{Origin, Surroundings};

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// The type of grant, from RFC 7523.
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// One project under `google:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoogleConfig {
    /// The project's id or number.
    pub project: String,
    /// `https://secretmanager.googleapis.com` by default; a regional one where secrets are regional.
    pub address: Option<String>,
    /// Certificates in PEM that are trusted besides the machine's own.
    pub ca_file: Option<PathBuf>,
    /// How to log in.
    pub auth: GoogleAuth,
    /// Seconds that a value is used before it is asked for again; 60 by default.
    pub keep: Option<u64>,
}

/// How to log in.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum GoogleAuth {
    /// A service account's key.
    ServiceAccount {
        /// Where the key's JSON is.
        key: Origin,
    },
    /// The service account of the machine that this runs on.
    Metadata {
        /// `default` by default.
        account: Option<String>,
        /// `http://metadata.google.internal` by default.
        endpoint: Option<String>,
    },
}

#[derive(Debug)]
pub(crate) struct Google {
    name: String,
    config: GoogleConfig,
    client: Client,
    surroundings: Surroundings,
    clock: Arc<dyn Clock>,
    bearer: Bearer,
}

#[derive(Deserialize)]
struct Account {
    client_email: String,
    private_key: Secret,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    access_token: Secret,
    expires_in: u64,
}

#[derive(Deserialize)]
struct Version {
    payload: Payload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    data: Secret,
    data_crc32c: Option<String>,
}

impl Google {
    pub(crate) fn new(
        name: &str,
        config: GoogleConfig,
        client: Client,
        surroundings: Surroundings,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { name: name.to_owned(), config, client, surroundings, clock, bearer: Bearer::default() }
    }

    async fn log_in(&self) -> Result<Granted, FetchError> {
        let place = self.client.place();
        let (call, what) = match &self.config.auth {
            GoogleAuth::ServiceAccount { key } => {
                let text = key.load(&self.surroundings).await.map_err(|why| FetchError::local(place, why))?;
                let bad =
                    |why: &str| FetchError::local(place, format!("`{key}` holds no key of a service account: {why}"));
                // The parser's own text may quote what it reads.
                let account: Account = serde_json::from_str(text.expose())
                    .map_err(|_| bad("it is no JSON with `client_email` and `private_key`"))?;
                let token_uri = account.token_uri.as_deref().unwrap_or("https://oauth2.googleapis.com/token");
                address(token_uri).map_err(|why| bad(&format!("its `token_uri` cannot be used: {why}")))?;
                let assertion = assertion(&account, token_uri, unix_seconds(self.clock.now())).map_err(bad)?;
                let fields = form(&[("grant_type", GRANT), ("assertion", &assertion)]);
                let call = Call::post(token_uri.to_owned(), "application/x-www-form-urlencoded", fields);
                (call, format!("the service account's key in `{key}`"))
            }
            GoogleAuth::Metadata { account, endpoint } => {
                let endpoint = endpoint.as_deref().unwrap_or("http://metadata.google.internal").trim_end_matches('/');
                let account = encode(account.as_deref().unwrap_or("default"));
                let mut call =
                    Call::get(format!("{endpoint}/computeMetadata/v1/instance/service-accounts/{account}/token"));
                call.headers.insert("metadata-flavor", HeaderValue::from_static("Google"));
                (call, "the service account of this machine".to_owned())
            }
        };
        let asked = self.clock.elapsed();
        let answer = self.client.call(call).await?;
        match answer.status {
            200 => {
                let token: Token = self.client.parse(&answer.body)?;
                Ok(Granted { token: token.access_token, ends: asked.saturating_add(Duration::from_secs(token.expires_in)) })
            }
            400 | 401 | 403 | 404 => Err(self.client.skew(&answer, &*self.clock).unwrap_or_else(|| {
                let status = answer.status;
                FetchError::denied(
                    place,
                    format!("the login with {what} is not taken (status {status}); check that it is neither disabled nor deleted"),
                )
            })),
            status => Err(self.client.status(status)),
        }
    }
}

/// A signed statement of who we are, for one hour.
fn assertion(account: &Account, audience: &str, now: u64) -> Result<Zeroizing<String>, &'static str> {
    let der = pkcs8(account.private_key.expose()).ok_or("its `private_key` is no PKCS #8 key in PEM")?;
    let key = RsaKeyPair::from_pkcs8(&der).map_err(|_| "its `private_key` is no RSA key of 2048 bits or more")?;
    let header = serde_json::json!({"alg": "RS256", "typ": "JWT", "kid": account.private_key_id});
    let claims = serde_json::json!({
        "iss": account.client_email, "scope": SCOPE, "aud": audience, "iat": now, "exp": now + 3600,
    });
    let mut text = Zeroizing::new(String::with_capacity(2048));
    URL_SAFE_NO_PAD.encode_string(header.to_string(), &mut text);
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut text);
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
        .map_err(|_| "its `private_key` cannot sign")?;
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut text);
    Ok(text)
}

/// What is between the lines of a PEM file.
fn pkcs8(pem: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (_, rest) = pem.split_once("-----BEGIN PRIVATE KEY-----")?;
    let (middle, _) = rest.split_once("-----END PRIVATE KEY-----")?;
    let mut text = Zeroizing::new(String::with_capacity(middle.len()));
    text.extend(middle.split_ascii_whitespace());
    STANDARD.decode(text.as_bytes()).ok().map(Zeroizing::new)
}

/// CRC-32C (Castagnoli), as RFC 3720 has it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 })
    })
}

#[async_trait]
impl Source for Google {
    fn description(&self) -> String {
        format!("Google Secret Manager, project {} (google:{})", self.config.project, self.name)
    }

    fn keep(&self) -> Duration {
        Duration::from_secs(self.config.keep.unwrap_or(60))
    }

    async fn fetch(&self, path: &str) -> Result<Document, FetchError> {
        let place = self.client.place();
        let (secret, version) = path.split_once('/').unwrap_or((path, "latest"));
        if version.contains('/') {
            let why = "a reference is `google:PROJECT/SECRET` or `google:PROJECT/SECRET/VERSION`";
            return Err(FetchError::not_found(place, why));
        }
        let base =
            self.config.address.as_deref().unwrap_or("https://secretmanager.googleapis.com").trim_end_matches('/');
        let (project, id, number) = (encode(&self.config.project), encode(secret), encode(version));
        let url = format!("{base}/v1/projects/{project}/secrets/{id}/versions/{number}:access");
        let answer = self.bearer.get(&self.client, &*self.clock, || self.log_in(), &url).await?;
        match answer.status {
            200 => {}
            400 => {
                let why = format!(
                    "the version `{version}` of `{secret}` is disabled or destroyed; enable it or name another"
                );
                return Err(FetchError::not_found(place, why));
            }
            401 => return Err(FetchError::denied(place, "it does not take the token of this login")),
            403 => {
                let why = format!(
                    "the identity may not read `{secret}`; give it the role `roles/secretmanager.secretAccessor`"
                );
                return Err(FetchError::denied(place, why));
            }
            404 => {
                return Err(FetchError::not_found(
                    place,
                    format!("there is no `{secret}` with the version `{version}`"),
                ));
            }
            status => return Err(self.client.status(status)),
        }
        let Version { payload } = self.client.parse(&answer.body)?;
        let bytes = STANDARD
            .decode(payload.data.expose())
            .map(Zeroizing::new)
            .map_err(|_| FetchError::malformed(place, "the secret is no base64"))?;
        if let Some(sum) = payload.data_crc32c
            && sum.parse() != Ok(crc32c(&bytes))
        {
            return Err(FetchError::unavailable(place, "the secret was damaged on the way: its checksum differs"));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| {
            FetchError::malformed(place, "the secret is not valid UTF-8; store text, or binary as base64")
        })?;
        Ok(Document::plain(Content::single(Secret::new(text))))
    }
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    /// The check value that every catalogue of checksums gives.
    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }
}
