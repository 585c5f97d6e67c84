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
use crate::surroundings::{Origin, Surroundings};

mod sigv4;

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
}

#[derive(Debug)]
pub(crate) struct Aws {
    name: String,
    config: AwsConfig,
    endpoint: String,
    client: Client,
    surroundings: Surroundings,
    clock: Arc<dyn Clock>,
}

struct Keys {
    id: String,
    secret: Secret,
    session: Option<Secret>,
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
    ) -> Self {
        Self { name: name.to_owned(), config, endpoint, client, surroundings, clock }
    }

    /// Where the region's own endpoint is.
    pub(crate) fn endpoint(region: &str) -> String {
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        format!("https://secretsmanager.{region}.{suffix}")
    }

    async fn keys(&self) -> Result<Keys, String> {
        let all = &self.surroundings;
        match &self.config.auth {
            AwsAuth::Environment {} => {
                let id = all.secret("AWS_ACCESS_KEY_ID")?.expose().trim().to_owned();
                let secret = all.secret("AWS_SECRET_ACCESS_KEY")?;
                let session = all.variable("AWS_SESSION_TOKEN").filter(|value| !value.is_empty());
                let session = if session.is_some() { Some(all.secret("AWS_SESSION_TOKEN")?) } else { None };
                Ok(Keys { id, secret, session })
            }
            AwsAuth::File { path, profile } => {
                let text = Origin::File(path.clone()).load(all).await?;
                let profile = profile.as_deref().unwrap_or("default");
                read_profile(text.expose(), profile).ok_or_else(|| {
                    format!(
                        "`{}` has no profile `{profile}` with `aws_access_key_id` and `aws_secret_access_key`",
                        path.display()
                    )
                })
            }
            AwsAuth::Keys { access_key_id, secret_access_key, session_token } => {
                let secret = secret_access_key.load(all).await?;
                let session = match session_token {
                    Some(origin) => Some(origin.load(all).await?),
                    None => None,
                };
                Ok(Keys { id: access_key_id.clone(), secret, session })
            }
        }
    }

    fn refused(&self, answer: &Answer, secret: &str) -> FetchError {
        let place = self.client.place();
        // The type comes as `ns#Name` too. Only known ones are repeated.
        let kind = serde_json::from_slice::<Trouble>(&answer.body).map(|trouble| trouble.kind).unwrap_or_default();
        let denied = |why: String| FetchError::denied(place, why);
        match kind.rsplit('#').next().unwrap_or_default() {
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

/// The keys of one profile in a shared credentials file.
fn read_profile(text: &str, wanted: &str) -> Option<Keys> {
    let (mut within, mut id, mut secret, mut session) = (false, None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            within = name.trim() == wanted;
        } else if within
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            let value = value.trim();
            match key.trim() {
                "aws_access_key_id" => id = Some(value.to_owned()),
                "aws_secret_access_key" => secret = Some(Secret::new(value)),
                "aws_session_token" => session = Some(Secret::new(value)),
                _ => {}
            }
        }
    }
    Some(Keys { id: id?, secret: secret?, session })
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
        let keys = self.keys().await.map_err(|why| FetchError::local(place, why))?;
        let stage = self.config.stage.as_deref().unwrap_or("AWSCURRENT");
        let content = serde_json::json!({"SecretId": path, "VersionStage": stage}).to_string();
        let mut call = Call::post(
            format!("{}/", self.endpoint.trim_end_matches('/')),
            "application/x-amz-json-1.1",
            body(Zeroizing::new(content.clone())),
        );
        call.headers.insert("x-amz-target", reqwest::header::HeaderValue::from_static("secretsmanager.GetSecretValue"));
        let unusable =
            || FetchError::local(place, "the keys that requests are signed with hold characters that none has");
        if let Some(session) = &keys.session {
            call.headers.insert("x-amz-security-token", secret_header("", session).ok_or_else(unusable)?);
        }
        let signer = sigv4::Signer {
            id: &keys.id,
            secret: &keys.secret,
            region: &self.config.region,
            service: "secretsmanager",
        };
        signer.sign(&mut call, content.as_bytes(), self.clock.now()).ok_or_else(unusable)?;
        let answer = self.client.call(call).await?;
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
