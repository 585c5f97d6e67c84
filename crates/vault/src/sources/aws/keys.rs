//! What requests are signed with: keys that are configured, or that AWS lends for a while to a machine, to a container, or for a
//! token of somebody that it trusts.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use palisade_api::Secret;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::{AwsAuth, suffix};
use crate::clock::Clock;
use crate::error::FetchError;
use crate::http::{Answer, Call, Client, encode, form, secret_header};
use crate::sources::bearer::Granted;
use crate::surroundings::{Origin, Surroundings};

/// Where a virtual machine asks about itself.
const METADATA: &str = "http://169.254.169.254";
/// Where a container of ECS asks for its keys.
const CONTAINER: &str = "http://169.254.170.2";
/// The addresses that keys may come from without encryption: they lead no further than this machine. From AWS's reference of its
/// SDKs, "Container credential provider".
const ON_THIS_MACHINE: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
/// The version of the interface of AWS's token service.
const VERSION: &str = "2011-06-15";

#[derive(Debug)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: Secret,
    pub(super) session: Option<Secret>,
}

/// Where keys come from.
#[derive(Debug)]
pub(super) struct Keyring {
    auth: AwsAuth,
    region: String,
    client: Client,
    surroundings: Surroundings,
    clock: Arc<dyn Clock>,
}

/// What all who lend answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Lent {
    access_key_id: String,
    secret_access_key: Secret,
    #[serde(alias = "SessionToken")]
    token: Secret,
    expiration: String,
}

/// A machine's own endpoint says in its body whether it could.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Said {
    code: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Assumed {
    assume_role_with_web_identity_result: AssumedResult,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssumedResult {
    credentials: Lent,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Trouble {
    error: TroubleError,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TroubleError {
    code: String,
}

impl Keyring {
    /// `client` speaks to whoever lends, if anybody does, so that errors name them and not the keeper of secrets.
    pub(super) fn new(
        auth: AwsAuth,
        region: &str,
        client: Client,
        surroundings: Surroundings,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { auth, region: region.to_owned(), client, surroundings, clock }
    }

    /// How errors call whoever lends; `None` for keys that are configured.
    pub(super) fn lender(auth: &AwsAuth, region: &str, name: &str) -> Option<String> {
        Some(match auth {
            AwsAuth::Instance { endpoint } => {
                let endpoint = endpoint.as_deref().unwrap_or(METADATA);
                format!("this machine's metadata service at {endpoint} (aws:{name})")
            }
            AwsAuth::Container {} => format!("the container's own endpoint for keys (aws:{name})"),
            AwsAuth::WebIdentity { .. } => format!("AWS's token service in {region} (aws:{name})"),
            AwsAuth::Environment {} | AwsAuth::File { .. } | AwsAuth::Keys { .. } => return None,
        })
    }

    /// Keys to sign with. Those that are configured are read for each use, as they may be replaced.
    pub(super) async fn log_in(&self) -> Result<Granted<Keys>, FetchError> {
        let all = &self.surroundings;
        let own = match &self.auth {
            AwsAuth::Instance { endpoint } => return self.instance(endpoint.as_deref().unwrap_or(METADATA)).await,
            AwsAuth::Container {} => return self.container().await,
            AwsAuth::WebIdentity { role, token, session, endpoint } => {
                return self.assume(role.as_deref(), token.as_ref(), session.as_deref(), endpoint.as_deref()).await;
            }
            AwsAuth::Environment {} => of_variables(all),
            AwsAuth::File { path, profile } => of_profile(path, profile.as_deref().unwrap_or("default"), all).await,
            AwsAuth::Keys { access_key_id, secret_access_key, session_token } => {
                of_parts(access_key_id, secret_access_key, session_token.as_ref(), all).await
            }
        };
        let keys = own.map_err(|why| self.local(&why))?;
        Ok(Granted { token: keys, ends: self.clock.elapsed() })
    }

    /// By version 2 of the metadata service: a token first, which forwarded requests do not get.
    async fn instance(&self, endpoint: &str) -> Result<Granted<Keys>, FetchError> {
        let place = self.client.place();
        let base = format!("{}/latest", endpoint.trim_end_matches('/'));
        let mut call = Call::get(format!("{base}/api/token"));
        call.method = Method::PUT;
        call.headers.insert("x-aws-ec2-metadata-token-ttl-seconds", HeaderValue::from_static("60"));
        let answer = self.client.call(call).await.map_err(|error| match error {
            FetchError::Unavailable { place, why } => FetchError::Unavailable {
                place,
                why: format!(
                    "{why}; a worker in a container needs a hop limit of 2 in the instance's metadata options"
                ),
            },
            other => other,
        })?;
        let token = match answer.status {
            200 => std::str::from_utf8(&answer.body)
                .map(Secret::new)
                .map_err(|_| FetchError::malformed(place, "its token is no text"))?,
            403 => return Err(FetchError::denied(place, "it is turned off; enable the instance's metadata endpoint")),
            404 | 405 => {
                return Err(FetchError::denied(
                    place,
                    "it gives no tokens of version 2; check that this is a machine of EC2",
                ));
            }
            status => return Err(self.client.status(status)),
        };
        let get = async |path: &str| {
            let mut call = Call::get(format!("{base}/meta-data/iam/security-credentials/{path}"));
            let header = secret_header("", &token)
                .ok_or_else(|| FetchError::malformed(place, "its token holds what no header may"))?;
            call.headers.insert("x-aws-ec2-metadata-token", header);
            self.client.call(call).await
        };
        let none = || FetchError::denied(place, "this machine has no role; attach an instance profile to it");
        let roles = get("").await?;
        let role = match roles.status {
            200 => String::from_utf8_lossy(&roles.body).lines().next().unwrap_or_default().trim().to_owned(),
            404 => return Err(none()),
            status => return Err(self.client.status(status)),
        };
        if role.is_empty() {
            return Err(none());
        }
        // As IAM has it. What else it may be is not asked for, and not repeated.
        let simple = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
        if role.len() > 64 || !role.bytes().all(simple) {
            return Err(FetchError::malformed(place, "its first line is no name of a role"));
        }
        let asked = self.clock.elapsed();
        let answer = get(&encode(&role)).await?;
        match answer.status {
            200 => {}
            404 => return Err(none()),
            status => return Err(self.client.status(status)),
        }
        let said: Said = self.client.parse(&answer.body)?;
        if said.code.is_some_and(|code| code != "Success") {
            let why = "it has no keys for this machine's role; check that the role exists and trusts EC2";
            return Err(FetchError::denied(place, why));
        }
        self.lent(self.client.parse(&answer.body)?, asked)
    }

    /// As ECS and EKS Pod Identity say in the environment.
    async fn container(&self) -> Result<Granted<Keys>, FetchError> {
        let text = |name: &str| {
            let value = self.surroundings.variable(name).filter(|value| !value.is_empty())?;
            Some(value.into_string().map_err(|_| self.local(&format!("`{name}` is not valid UTF-8"))))
        };
        let url = if let Some(path) = text("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").transpose()? {
            if !path.starts_with('/') {
                return Err(self.local("`AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` is no path that begins with `/`"));
            }
            format!("{CONTAINER}{path}")
        } else if let Some(url) = text("AWS_CONTAINER_CREDENTIALS_FULL_URI").transpose()? {
            if !stays_on_this_machine(&url) {
                return Err(self.local(
                    "`AWS_CONTAINER_CREDENTIALS_FULL_URI` is neither https nor an address of this machine, so the keys could \
                     be read or put there by others",
                ));
            }
            url
        } else {
            return Err(self.local(
                "neither `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` (ECS) nor `AWS_CONTAINER_CREDENTIALS_FULL_URI` (EKS Pod \
                 Identity) is set; give the task or the pod's service account a role",
            ));
        };
        let mut call = Call::get(url);
        let file = text("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").transpose()?;
        let token = match file {
            Some(path) => {
                let origin = self.mounted("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", path)?;
                Some(origin.load(&self.surroundings).await)
            }
            None if text("AWS_CONTAINER_AUTHORIZATION_TOKEN").is_some() => {
                Some(self.surroundings.secret("AWS_CONTAINER_AUTHORIZATION_TOKEN"))
            }
            None => None,
        };
        if let Some(token) = token.transpose().map_err(|why| self.local(&why))? {
            let header = secret_header("", &token)
                .ok_or_else(|| self.local("the token of the container holds what no header may"))?;
            call.headers.insert(AUTHORIZATION, header);
        }
        let asked = self.clock.elapsed();
        let answer = self.client.call(call).await?;
        match answer.status {
            200 => self.lent(self.client.parse(&answer.body)?, asked),
            status @ 400..=404 => Err(FetchError::denied(
                self.client.place(),
                format!(
                    "it gives no keys (status {status}); check the role of the task or of the pod's service account"
                ),
            )),
            status => Err(self.client.status(status)),
        }
    }

    /// `AssumeRoleWithWebIdentity`, which is not signed: the token speaks for itself.
    async fn assume(
        &self,
        role: Option<&str>,
        token: Option<&Origin>,
        session: Option<&str>,
        endpoint: Option<&str>,
    ) -> Result<Granted<Keys>, FetchError> {
        let variable = |name: &str| {
            let value = self.surroundings.variable(name).and_then(|value| value.into_string().ok());
            value.filter(|value| !value.is_empty())
        };
        let missing = |field: &str, name: &str| {
            self.local(&format!(
                "`auth` has no `{field}` and `{name}` is not set; EKS sets it where the service account has a role"
            ))
        };
        let role = role.map(str::to_owned).or_else(|| variable("AWS_ROLE_ARN"));
        let role = role.ok_or_else(|| missing("role", "AWS_ROLE_ARN"))?;
        if !is_arn(&role) {
            return Err(self.local("what `role` or `AWS_ROLE_ARN` says is no ARN of a role"));
        }
        const FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
        let origin = match (token, variable(FILE)) {
            (Some(token), _) => token.clone(),
            (None, Some(path)) => self.mounted(FILE, path)?,
            (None, None) => return Err(missing("token", FILE)),
        };
        let token = origin.load(&self.surroundings).await.map_err(|why| self.local(&why))?;
        let session = session.map(str::to_owned).or_else(|| variable("AWS_ROLE_SESSION_NAME"));
        let fields = form(&[
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", VERSION),
            ("RoleArn", &role),
            ("RoleSessionName", session.as_deref().unwrap_or("palisade")),
            ("WebIdentityToken", token.expose()),
        ]);
        let url = match endpoint {
            Some(endpoint) => format!("{}/", endpoint.trim_end_matches('/')),
            None => format!("https://sts.{}.{}/", self.region, suffix(&self.region)),
        };
        let asked = self.clock.elapsed();
        let answer = self.client.call(Call::post(url, "application/x-www-form-urlencoded", fields)).await?;
        if answer.status != 200 {
            return Err(self.not_assumed(&answer, &role, &origin));
        }
        let assumed: Assumed = xml(&answer.body).ok_or_else(|| {
            FetchError::malformed(self.client.place(), "it is no XML of the shape that is documented")
        })?;
        self.lent(assumed.assume_role_with_web_identity_result.credentials, asked)
    }

    fn not_assumed(&self, answer: &Answer, role: &str, token: &Origin) -> FetchError {
        let place = self.client.place();
        let code = xml::<Trouble>(&answer.body).map(|trouble| trouble.error.code).unwrap_or_default();
        match code.as_str() {
            "AccessDenied" => FetchError::denied(
                place,
                format!("the token in `{token}` may not take `{role}`; check whom the role trusts"),
            ),
            "ExpiredTokenException" | "ExpiredToken" => self.client.skew(answer, &*self.clock).unwrap_or_else(|| {
                FetchError::denied(place, format!("the token in `{token}` has ended; whoever writes it must renew it"))
            }),
            "InvalidIdentityToken" | "InvalidIdentityTokenException" | "IDPRejectedClaim" => FetchError::denied(
                place,
                format!(
                    "it does not take the token in `{token}`; check the identity provider and its audience ({code})"
                ),
            ),
            "IDPCommunicationError" => FetchError::unavailable(
                place,
                "it cannot reach the identity provider of the token (IDPCommunicationError)",
            ),
            "ValidationError" => {
                FetchError::denied(place, format!("`{role}` is no ARN of a role, or the session's name is not taken"))
            }
            "RegionDisabledException" => {
                FetchError::denied(place, format!("{} is not enabled for the account", self.region))
            }
            "Throttling" => FetchError::unavailable(place, "it is asked too often (Throttling)"),
            _ if answer.status == 404 => {
                FetchError::malformed(place, "it answered with status 404; check the `endpoint` of `auth`")
            }
            _ => self.client.status(answer.status),
        }
    }

    fn lent(&self, lent: Lent, asked: Duration) -> Result<Granted<Keys>, FetchError> {
        let ends: Option<jiff::Timestamp> = lent.expiration.parse().ok();
        let ends = ends.map(SystemTime::from).ok_or_else(|| {
            FetchError::malformed(self.client.place(), "the keys' `Expiration` is no time of RFC 3339")
        })?;
        let rest = ends.duration_since(self.clock.now()).unwrap_or_default();
        let keys = Keys { id: lent.access_key_id, secret: lent.secret_access_key, session: Some(lent.token) };
        Ok(Granted { token: keys, ends: asked.saturating_add(rest) })
    }

    /// The file that a variable names. What is no path may be the token itself, and is not repeated.
    fn mounted(&self, name: &str, path: String) -> Result<Origin, FetchError> {
        if !path.starts_with('/') {
            return Err(self.local(&format!("`{name}` is no absolute path; name the file that holds the token")));
        }
        Ok(Origin::Mounted(path.into()))
    }

    fn local(&self, why: &str) -> FetchError {
        FetchError::local(self.client.place(), why)
    }
}

fn of_variables(all: &Surroundings) -> Result<Keys, String> {
    let id = all.secret("AWS_ACCESS_KEY_ID")?.expose().trim().to_owned();
    let secret = all.secret("AWS_SECRET_ACCESS_KEY")?;
    let session = all.variable("AWS_SESSION_TOKEN").filter(|value| !value.is_empty());
    let session = if session.is_some() { Some(all.secret("AWS_SESSION_TOKEN")?) } else { None };
    Ok(Keys { id, secret, session })
}

async fn of_profile(path: &Path, profile: &str, all: &Surroundings) -> Result<Keys, String> {
    let text = Origin::File(path.to_owned()).load(all).await?;
    read_profile(text.expose(), profile).ok_or_else(|| {
        format!("`{}` has no profile `{profile}` with `aws_access_key_id` and `aws_secret_access_key`", path.display())
    })
}

async fn of_parts(id: &str, secret: &Origin, session: Option<&Origin>, all: &Surroundings) -> Result<Keys, String> {
    let secret = secret.load(all).await?;
    let session = match session {
        Some(origin) => Some(origin.load(all).await?),
        None => None,
    };
    Ok(Keys { id: id.to_owned(), secret, session })
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

fn xml<T: serde::de::DeserializeOwned>(body: &[u8]) -> Option<T> {
    quick_xml::de::from_str(std::str::from_utf8(body).ok()?).ok()
}

/// Whether this may be a role's ARN. What is none is not repeated: it may be a secret at the wrong place.
pub(crate) fn is_arn(text: &str) -> bool {
    text.starts_with("arn:") && text.len() <= 2048 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether keys from there were encrypted on the way, or never left the machine. A name says nothing about where it leads.
fn stays_on_this_machine(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let address = host.parse::<std::net::IpAddr>();
    match url.scheme() {
        "https" => true,
        "http" => address
            .is_ok_and(|address| address.is_loopback() || ON_THIS_MACHINE.contains(&address.to_string().as_str())),
        _ => false,
    }
}
