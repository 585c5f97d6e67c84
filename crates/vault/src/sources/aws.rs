//! AWS Secrets Manager.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use palisade_api::Secret;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::error::FetchError;
use crate::http::{Answer, Call, Client, body, secret_header};
use crate::source::{Content, Document, Source};
use crate::sources::bearer::Bearer;
use crate::surroundings::{Origin, Surroundings};

mod keys;
mod sigv4;

use keys::{Keyring, Keys};

pub(crate) use keys::is_arn;

/// One account and region under `aws:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsConfig {
    /// Such as `eu-central-1`.
    pub region: String,
    /// Instead of the region's own, for a private endpoint.
    pub endpoint: Option<String>,
    /// Certificates in PEM that are trusted besides the machine's own.
    pub ca_file: Option<PathBuf>,
    /// What requests are signed with.
    pub auth: AwsAuth,
    /// Which version; `AWSCURRENT` by default.
    pub stage: Option<String>,
    /// Seconds that a value is used before it is asked for again; 60 by default.
    pub keep: Option<u64>,
}

/// What requests are signed with.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum AwsAuth {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, and `AWS_SESSION_TOKEN` if it is set, of the worker's environment.
    Environment {},
    /// A profile of a file in the format that AWS's own tools share. Read for each request, so that it may be replaced.
    File {
        /// The file.
        path: PathBuf,
        /// `default` by default.
        profile: Option<String>,
    },
    /// Each part by itself.
    Keys {
        /// Not a secret.
        access_key_id: String,
        /// Where the key is.
        secret_access_key: Origin,
        /// Where the session's token is, for keys that end.
        session_token: Option<Origin>,
    },
    /// The role of the virtual machine that this runs on, by version 2 of its metadata service.
    Instance {
        /// `http://169.254.169.254` by default.
        endpoint: Option<String>,
    },
    /// The role of the task (ECS) or of the pod (EKS Pod Identity) that this runs in, as their variables say.
    Container {},
    /// A role, for a token of somebody that AWS trusts, such as a cluster.
    WebIdentity {
        /// The role's ARN; of `AWS_ROLE_ARN` by default.
        role: Option<String>,
        /// Where the token is, read for each login, since it is replaced; the file of `AWS_WEB_IDENTITY_TOKEN_FILE` by default.
        token: Option<Origin>,
        /// What AWS's own log calls the worker; `AWS_ROLE_SESSION_NAME` or `palisade` by default.
        session: Option<String>,
        /// Instead of the region's own token service, for a private endpoint.
        endpoint: Option<String>,
    },
}

#[derive(Debug)]
pub(crate) struct Aws {
    name: String,
    config: AwsConfig,
    endpoint: String,
    client: Client,
    clock: Arc<dyn Clock>,
    keyring: Keyring,
    kept: Bearer<Keys>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Value {
    secret_string: Option<Secret>,
    secret_binary: Option<Secret>,
}

#[derive(Deserialize)]
struct Trouble {
    #[serde(rename = "__type", default)]
    kind: String,
}

impl Aws {
    pub(crate) fn new(
        name: &str,
        config: AwsConfig,
        endpoint: String,
        client: Client,
        surroundings: Surroundings,
        clock: Arc<dyn Clock>,
        lender: Option<Client>,
    ) -> Self {
        let lender = lender.unwrap_or_else(|| client.clone());
        let keyring = Keyring::new(config.auth.clone(), &config.region, lender, surroundings, clock.clone());
        Self { name: name.to_owned(), config, endpoint, client, clock, keyring, kept: Bearer::default() }
    }

    /// How errors call whoever lends keys; `None` for keys that are configured.
    pub(crate) fn lender(name: &str, config: &AwsConfig) -> Option<String> {
        Keyring::lender(&config.auth, &config.region, name)
    }

    /// Where the region's own endpoint is.
    pub(crate) fn endpoint(region: &str) -> String {
        format!("https://secretsmanager.{region}.{}", suffix(region))
    }

    /// The request for one secret, signed.
    fn request(&self, keys: &Keys, path: &str) -> Option<Call> {
        let stage = self.config.stage.as_deref().unwrap_or("AWSCURRENT");
        let content = serde_json::json!({"SecretId": path, "VersionStage": stage}).to_string();
        let mut call = Call::post(
            format!("{}/", self.endpoint.trim_end_matches('/')),
            "application/x-amz-json-1.1",
            body(Zeroizing::new(content.clone())),
        );
        call.headers.insert("x-amz-target", reqwest::header::HeaderValue::from_static("secretsmanager.GetSecretValue"));
        if let Some(session) = &keys.session {
            call.headers.insert("x-amz-security-token", secret_header("", session)?);
        }
        let signer = sigv4::Signer {
            id: &keys.id,
            secret: &keys.secret,
            region: &self.config.region,
            service: "secretsmanager",
        };
        signer.sign(&mut call, content.as_bytes(), self.clock.now())?;
        Some(call)
    }

    fn refused(&self, answer: &Answer, secret: &str) -> FetchError {
        let place = self.client.place();
        let denied = |why: String| FetchError::denied(place, why);
        // Only known ones are repeated.
        match kind(answer).as_str() {
            "ResourceNotFoundException" => {
                let region = &self.config.region;
                FetchError::not_found(
                    place,
                    format!("there is no secret `{secret}` in {region}, or no such version of it"),
                )
            }
            "AccessDeniedException" => {
                denied(format!("the identity may not read `{secret}`; allow it `secretsmanager:GetSecretValue` there"))
            }
            "DecryptionFailure" => denied(format!(
                "the identity may not use the key that `{secret}` is encrypted with; allow it `kms:Decrypt`"
            )),
            "InvalidRequestException" => {
                FetchError::not_found(place, format!("`{secret}` is being deleted; restore it or name another"))
            }
            "ThrottlingException" | "InternalServiceError" | "ServiceUnavailableException" => {
                FetchError::unavailable(place, format!("it cannot serve now (status {})", answer.status))
            }
            kind @ ("InvalidSignatureException"
            | "SignatureDoesNotMatchException"
            | "RequestExpired"
            | "RequestTimeTooSkewed"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "ExpiredTokenException"
            | "IncompleteSignatureException"
            | "MissingAuthenticationTokenException") => self.client.skew(answer, &*self.clock).unwrap_or_else(|| {
                let fix = match kind {
                    "ExpiredTokenException" => "the session's token has ended; put fresh keys in place",
                    "UnrecognizedClientException" | "InvalidClientTokenId" => {
                        "it does not know the access key; check its id"
                    }
                    _ => "the signature does not hold; check the secret access key and the region",
                };
                denied(format!("{fix} ({kind})"))
            }),
            _ => self.client.status(answer.status),
        }
    }
}

/// The end of the names of a region's servers.
fn suffix(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}

/// Which error AWS answered. It comes as `ns#Name` too.
fn kind(answer: &Answer) -> String {
    let kind = serde_json::from_slice::<Trouble>(&answer.body).map(|trouble| trouble.kind).unwrap_or_default();
    kind.rsplit('#').next().unwrap_or_default().to_owned()
}

/// Whether keys that were lent have ended before their time, or were taken back.
fn spent(answer: &Answer) -> bool {
    matches!(kind(answer).as_str(), "ExpiredTokenException" | "UnrecognizedClientException" | "InvalidClientTokenId")
}

#[async_trait]
impl Source for Aws {
    fn description(&self) -> String {
        format!("AWS Secrets Manager in {} (aws:{})", self.config.region, self.name)
    }

    fn keep(&self) -> Duration {
        Duration::from_secs(self.config.keep.unwrap_or(60))
    }

    async fn fetch(&self, path: &str) -> Result<Document, FetchError> {
        let place = self.client.place();
        let unusable =
            || FetchError::local(place, "the keys that requests are signed with hold characters that none has");
        let request = |keys: &Keys| self.request(keys, path).ok_or_else(unusable);
        let answer = self.kept.call(&self.client, &*self.clock, || self.keyring.log_in(), request, spent).await?;
        if answer.status != 200 {
            return Err(self.refused(&answer, path));
        }
        let value: Value = self.client.parse(&answer.body)?;
        let value = match (value.secret_string, value.secret_binary) {
            (Some(text), _) => text,
            (None, Some(binary)) => {
                let bytes = STANDARD.decode(binary.expose()).map(Zeroizing::new);
                let text = bytes.ok().and_then(|bytes| std::str::from_utf8(&bytes).ok().map(Secret::new));
                text.ok_or_else(|| FetchError::malformed(place, "the binary secret is no UTF-8; store it as text"))?
            }
            (None, None) => return Err(FetchError::malformed(place, "the secret has neither text nor binary")),
        };
        Ok(Document::plain(Content::single(value)))
    }
}
