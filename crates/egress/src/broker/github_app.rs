//! GitHub Apps: an app's key signs a short-lived JWT, GitHub gives a token of an installation for it.
//!
//! As documented by GitHub under "Generating an installation access token for a GitHub App".

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, USER_AGENT};
use palisade_api::Secret;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::Mutex;

use crate::{Supply, SupplyError};

/// Does a request for the broker, by the proxy's own way out.
#[async_trait]
pub trait Fetch: fmt::Debug + Send + Sync {
    /// The whole answer, of bounded size.
    async fn fetch(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, FetchError>;
}

/// The request came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(pub String);

/// A token is not used in the last of its seconds.
const MARGIN: u64 = 120;

/// The tokens of an installation of a GitHub App, as values of a credential. The app's key stays here.
pub struct GitHubApp {
    app: String,
    installation: String,
    /// `https://api.github.com`, or that of a GitHub Enterprise Server (`https://HOST/api/v3`).
    api: String,
    key: Arc<dyn Supply>,
    fetch: Arc<dyn Fetch>,
    clock: fn() -> u64,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    token: Arc<Secret>,
    /// Unix seconds.
    expires: u64,
    /// The key that it was got with: another one means another token.
    key: Arc<Secret>,
}

#[derive(serde::Deserialize)]
struct Answer {
    token: Secret,
    /// RFC 3339.
    expires_at: String,
}

impl fmt::Debug for GitHubApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitHubApp")
            .field("app", &self.app)
            .field("installation", &self.installation)
            .finish_non_exhaustive()
    }
}

impl GitHubApp {
    /// `app` is its id or client id; `key` supplies its private key in PEM; `clock` gives Unix seconds.
    pub fn new(
        app: impl Into<String>,
        installation: impl Into<String>,
        api: impl Into<String>,
        key: Arc<dyn Supply>,
        fetch: Arc<dyn Fetch>,
        clock: fn() -> u64,
    ) -> GitHubApp {
        let api = api.into().trim_end_matches('/').to_owned();
        let (app, installation) = (app.into(), installation.into());
        GitHubApp { app, installation, api, key, fetch, clock, kept: Mutex::new(None) }
    }

    fn assertion(&self, key: &Secret) -> Result<String, SupplyError> {
        let wrong = |what: &str| SupplyError::Unavailable(format!("the private key of GitHub App {} {what}", self.app));
        let der = PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).map_err(|_| wrong("is not PEM"))?;
        let pair = match &der {
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            _ => return Err(wrong("is not an RSA key")),
        };
        let pair = pair.map_err(|_| wrong("is not an RSA key of at least 2048 bits"))?;
        let now = (self.clock)();
        // GitHub advises a minute in the past against clocks that differ, and takes ten minutes at most.
        let claims = serde_json::json!({ "iat": now.saturating_sub(60), "exp": now + 540, "iss": self.app });
        let text = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(br#"{"alg":"RS256","typ":"JWT"}"#),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .map_err(|_| wrong("cannot sign"))?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    async fn exchange(&self, key: Arc<Secret>) -> Result<Kept, SupplyError> {
        let failed = |why: String| {
            SupplyError::Unavailable(format!("GitHub gave no token of installation {}: {why}", self.installation))
        };
        let assertion = self.assertion(&key)?;
        let mut bearer =
            HeaderValue::try_from(format!("Bearer {assertion}")).map_err(|_| failed("no header value".into()))?;
        bearer.set_sensitive(true);
        let request =
            http::Request::post(format!("{}/app/installations/{}/access_tokens", self.api, self.installation))
                .header(AUTHORIZATION, bearer)
                .header(ACCEPT, "application/vnd.github+json")
                .header("x-github-api-version", "2022-11-28")
                .header(USER_AGENT, "palisade")
                .body(Bytes::new())
                .map_err(|error| failed(error.to_string()))?;
        let answer = self.fetch.fetch(request).await.map_err(|error| failed(error.to_string()))?;
        match answer.status() {
            http::StatusCode::CREATED => {}
            // The installation was removed or suspended.
            http::StatusCode::NOT_FOUND | http::StatusCode::FORBIDDEN => return Err(SupplyError::Revoked),
            status => return Err(failed(format!("it answered {status}"))),
        }
        let answer: Answer = serde_json::from_slice(answer.body())
            .map_err(|_| failed("its answer has no token and expires_at".into()))?;
        let expires: jiff::Timestamp =
            answer.expires_at.parse().map_err(|_| failed("its expires_at is no time of RFC 3339".into()))?;
        let expires = u64::try_from(expires.as_second()).unwrap_or_default();
        Ok(Kept { token: Arc::new(answer.token), expires, key })
    }
}

#[async_trait]
impl Supply for GitHubApp {
    async fn value(&self) -> Result<Arc<Secret>, SupplyError> {
        // The key is asked for each time, so that its revocation bites although a token is kept.
        let key = self.key.value().await?;
        // Held during the exchange: who comes meanwhile waits for the one token.
        let mut kept = self.kept.lock().await;
        if let Some(kept) = kept.as_ref()
            && kept.key == key
            && (self.clock)() + MARGIN < kept.expires
        {
            return Ok(Arc::clone(&kept.token));
        }
        let new = self.exchange(key).await?;
        let token = Arc::clone(&new.token);
        *kept = Some(new);
        Ok(token)
    }
}
