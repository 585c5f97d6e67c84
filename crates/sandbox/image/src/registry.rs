//! Registries: a client of the part of the OCI distribution API that pulls. What a registry sends is believed only as far
//! as its digest.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt as _;
use palisade_api::Secret;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, RANGE, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::io::AsyncWriteExt as _;

use crate::auth::Credential;
use crate::challenge::{self, Challenge};
use crate::digest::{Digest, Hasher};
use crate::manifest::{self, Descriptor};
use crate::policy::{self, Limits, Policy};
use crate::reference::RegistryReference;

/// An answer of a token service, in bytes.
const LONGEST_TOKEN: u64 = 256 * 1024;
/// Registries send blobs from elsewhere; this many steps are followed.
const REDIRECTS: usize = 5;
/// Connections over which one blob may come.
const MOST_CONNECTIONS: u32 = 100;
/// No wait between two attempts is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// Why a registry does not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The HTTP client cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
    /// The certificates to trust cannot be read.
    #[error("the certificates in {path} cannot be used: {why}")]
    Certificates {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// It cannot be reached.
    #[error("{registry} does not answer: {why}; check the network and the registry's name")]
    Unreachable {
        /// The registry.
        registry: String,
        /// The innermost cause.
        why: String,
    },
    /// It refuses.
    #[error("{registry} refuses {what} ({status}): log in to it, or check that the account may read the image")]
    Denied {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
    },
    /// It does not have it.
    #[error("{registry} has no {what}: check the name, and whether the image is private")]
    Missing {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// It answers something else.
    #[error("{registry} answered {status} to {what}: try again later, or ask who runs the registry")]
    Status {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
    },
    /// It asks for credentials in a way that is not supported or not safe.
    #[error("{registry} asks for credentials in a way that is refused: {why}")]
    Challenge {
        /// The registry.
        registry: String,
        /// Why.
        why: String,
    },
    /// What came is not what the digest says.
    #[error(
        "{registry} sent something else as {what}: its digest is {found}, not {expected}; do not trust this registry"
    )]
    Digest {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// What came is longer than announced or allowed.
    #[error("{registry} sent more than {limit} bytes as {what}: do not trust this registry")]
    Size {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// It could not be written down.
    #[error("writing {what} to the store: {cause}; check the space of the store")]
    Write {
        /// What was downloaded.
        what: String,
        /// What the system said.
        cause: io::Error,
    },
}

/// One repository of one registry.
pub(crate) struct Registry {
    http: Client,
    base: Url,
    reference: RegistryReference,
    credential: Option<Credential>,
    /// What is sent as `Authorization`, once the registry has said what it wants.
    authorization: Mutex<Option<Secret>>,
    limits: Limits,
}

impl Registry {
    pub(crate) fn new(
        reference: &RegistryReference,
        credential: Option<Credential>,
        policy: &Policy,
    ) -> Result<Registry, RegistryError> {
        // An error says that it was installed before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let insecure = policy.is_insecure(&reference.registry);
        let host = if reference.registry == "docker.io" { "registry-1.docker.io" } else { &reference.registry };
        let scheme = if insecure { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/v2/{}/", reference.repository))
            .map_err(|why| RegistryError::Client(why.to_string()))?;
        let redirects = reqwest::redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > REDIRECTS {
                return attempt.error("too many redirections");
            }
            match attempt.url().scheme() {
                "https" => attempt.follow(),
                "http" if insecure => attempt.follow(),
                _ => attempt.error("a redirection away from TLS"),
            }
        });
        let mut builder = Client::builder()
            .user_agent(concat!("palisade/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(policy.limits.silence)
            .redirect(redirects);
        if policy::is_loopback(&reference.registry) {
            builder = builder.no_proxy();
        }
        if let Some(path) = &policy.ca_file {
            let failed = |why: String| RegistryError::Certificates { path: path.display().to_string(), why };
            let pem = std::fs::read(path).map_err(|why| failed(why.to_string()))?;
            for certificate in reqwest::Certificate::from_pem_bundle(&pem).map_err(|why| failed(why.to_string()))? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let http = builder.build().map_err(|why| RegistryError::Client(innermost(&why)))?;
        let authorization = match &credential {
            Some(Credential::Bearer(token)) => Some(Secret::new(format!("Bearer {}", token.expose()))),
            _ => None,
        };
        let (reference, limits) = (reference.clone(), policy.limits.clone());
        Ok(Registry { http, base, reference, credential, authorization: Mutex::new(authorization), limits })
    }

    /// Downloads a manifest or an index by tag or digest, with its digest. None when there is none.
    pub(crate) async fn manifest(&self, selector: &str) -> Result<Option<(Digest, Vec<u8>)>, RegistryError> {
        let what = format!("{}:{selector}", self.reference.repository);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, manifest::ACCEPT.join(", ").parse().expect("media types are plain text"));
        let limit = self.limits.document_bytes;
        let path = format!("manifests/{selector}");
        let bytes = match self.document(&path, &what, &headers, limit).await {
            Ok(bytes) => bytes,
            Err(RegistryError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = Digest::of(&bytes);
        match selector.parse::<Digest>() {
            Ok(expected) if expected != found => Err(self.differs(what, expected, found)),
            _ => Ok(Some((found, bytes))),
        }
    }

    /// Downloads something small into memory.
    pub(crate) async fn small(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let what = format!("blob {}", descriptor.digest);
        let limit = limit.min(descriptor.size);
        let path = format!("blobs/{}", descriptor.digest);
        let bytes = self.document(&path, &what, &HeaderMap::new(), limit).await?;
        match Digest::of(&bytes) {
            found if found == descriptor.digest => Ok(bytes),
            found => Err(self.differs(what, descriptor.digest, found)),
        }
    }

    /// Downloads a blob into a file; what was there already when a connection broke is not asked for again.
    pub(crate) async fn blob(&self, descriptor: &Descriptor, file: std::fs::File) -> Result<(), RegistryError> {
        let what = format!("blob {}", descriptor.digest);
        let failed = |cause| RegistryError::Write { what: what.clone(), cause };
        let mut file = tokio::fs::File::from_std(file);
        let mut hasher = Hasher::new();
        let mut done = 0_u64;
        let (mut attempt, mut connections) = (0, 0_u32);
        while done < descriptor.size {
            let mut headers = HeaderMap::new();
            if done > 0 {
                headers.insert(RANGE, format!("bytes={done}-").parse().expect("a number is plain text"));
            }
            let mut response = self.send(&format!("blobs/{}", descriptor.digest), &what, &headers).await?;
            // A registry that does not resume sends all of it again.
            let resumed = response.status() == StatusCode::PARTIAL_CONTENT
                && response
                    .headers()
                    .get(CONTENT_RANGE)
                    .and_then(|range| range.to_str().ok())
                    .is_some_and(|range| range.starts_with(&format!("bytes {done}-")));
            let mut skip = if resumed { 0 } else { done };
            let before = done;
            let why = loop {
                let chunk = match response.chunk().await {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => break "the connection ended early".to_owned(),
                    Err(why) => break innermost(&why),
                };
                let skipped = skip.min(chunk.len() as u64);
                skip -= skipped;
                let chunk = &chunk[usize::try_from(skipped).expect("no more than a chunk's length")..];
                done += chunk.len() as u64;
                if done > descriptor.size {
                    let registry = self.reference.registry.clone();
                    return Err(RegistryError::Size { registry, what, limit: descriptor.size });
                }
                hasher.update(chunk);
                file.write_all(chunk).await.map_err(failed)?;
                if done == descriptor.size {
                    break String::new();
                }
            };
            if done < descriptor.size {
                // Attempts that bring nothing count; of the others there may be many, but not one for every byte.
                attempt = if done > before { 1 } else { attempt + 1 };
                connections += 1;
                if attempt >= self.limits.attempts || connections >= MOST_CONNECTIONS {
                    return Err(RegistryError::Unreachable { registry: self.reference.registry.clone(), why });
                }
                self.pause(attempt).await;
            }
        }
        file.flush().await.map_err(failed)?;
        match hasher.finish() {
            found if found == descriptor.digest => Ok(()),
            found => Err(self.differs(what, descriptor.digest, found)),
        }
    }

    fn differs(&self, what: String, expected: Digest, found: Digest) -> RegistryError {
        RegistryError::Digest { registry: self.reference.registry.clone(), what, expected, found }
    }

    async fn document(
        &self,
        path: &str,
        what: &str,
        headers: &HeaderMap,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut attempt = 0;
        loop {
            let response = self.send(path, what, headers).await?;
            match read(response, limit).await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => {
                    let registry = self.reference.registry.clone();
                    return Err(RegistryError::Size { registry, what: what.to_owned(), limit });
                }
                Err(why) => {
                    attempt += 1;
                    if attempt >= self.limits.attempts {
                        let registry = self.reference.registry.clone();
                        return Err(RegistryError::Unreachable { registry, why: innermost(&why) });
                    }
                    self.pause(attempt).await;
                }
            }
        }
    }

    /// Sends a request until it is answered with success, within the limits of what may be tried.
    async fn send(&self, path: &str, what: &str, headers: &HeaderMap) -> Result<Response, RegistryError> {
        let registry = || self.reference.registry.clone();
        let url = self.base.join(path).map_err(|why| RegistryError::Client(why.to_string()))?;
        let mut attempt = 0;
        let mut asked = false;
        loop {
            let mut request = self.http.get(url.clone()).headers(headers.clone());
            if let Some(authorization) = self.authorization() {
                request = request.header(AUTHORIZATION, authorization);
            }
            attempt += 1;
            let response = match request.send().await {
                Ok(response) => response,
                Err(_) if attempt < self.limits.attempts => {
                    self.pause(attempt).await;
                    continue;
                }
                Err(why) => return Err(RegistryError::Unreachable { registry: registry(), why: innermost(&why) }),
            };
            let status = response.status();
            match status {
                _ if status.is_success() => return Ok(response),
                // Once for every request: tokens end.
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    attempt -= 1;
                    self.authorize(response.headers()).await?;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    let (what, status) = (what.to_owned(), status.as_u16());
                    return Err(RegistryError::Denied { registry: registry(), what, status });
                }
                StatusCode::NOT_FOUND => {
                    return Err(RegistryError::Missing { registry: registry(), what: what.to_owned() });
                }
                _ if (status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS)
                    && attempt < self.limits.attempts =>
                {
                    self.pause(attempt).await;
                }
                _ => {
                    let (what, status) = (what.to_owned(), status.as_u16());
                    return Err(RegistryError::Status { registry: registry(), what, status });
                }
            }
        }
    }

    async fn pause(&self, attempt: u32) {
        let factor = 2_u32.saturating_pow(attempt.saturating_sub(1));
        tokio::time::sleep(self.limits.pause.saturating_mul(factor).min(LONGEST_PAUSE)).await;
    }

    /// A header that is not shown in logs.
    fn authorization(&self) -> Option<reqwest::header::HeaderValue> {
        let held = self.authorization.lock().expect("nothing panics while it is held");
        let mut value = reqwest::header::HeaderValue::from_str(held.as_ref()?.expose()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Does what the registry asks for before it answers.
    async fn authorize(&self, headers: &HeaderMap) -> Result<(), RegistryError> {
        let refuse =
            |why: &str| RegistryError::Challenge { registry: self.reference.registry.clone(), why: why.to_owned() };
        let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let authorization = match challenge::choose(texts) {
            Some(Challenge::Bearer { realm, service }) => {
                let token = self.token(&realm, service.as_deref()).await?;
                Secret::new(format!("Bearer {}", token.expose()))
            }
            Some(Challenge::Basic) => match &self.credential {
                Some(Credential::Basic { user, password }) => challenge::basic(user, password),
                _ => {
                    let (registry, what) = (self.reference.registry.clone(), self.reference.repository.clone());
                    return Err(RegistryError::Denied { registry, what, status: 401 });
                }
            },
            None => return Err(refuse("it names neither Bearer nor Basic")),
        };
        *self.authorization.lock().expect("nothing panics while it is held") = Some(authorization);
        Ok(())
    }

    /// Asks a token service for a token that may read this repository and nothing else, whatever the registry asked for.
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<Secret, RegistryError> {
        let registry = || self.reference.registry.clone();
        let refuse = |why: String| RegistryError::Challenge { registry: registry(), why };
        let mut url = Url::parse(realm).map_err(|_| refuse("its token service has no valid address".to_owned()))?;
        if url.scheme() != "https" && !(url.scheme() == "http" && self.base.scheme() == "http") {
            return Err(refuse("its token service is not spoken to with TLS".to_owned()));
        }
        // Whoever controls the registry's answer must not learn a password by naming a token service of its own.
        let host = url.host_str().unwrap_or_default();
        if self.credential.is_some() && !challenge::is_near(self.base.host_str().unwrap_or_default(), host) {
            return Err(refuse(format!("its token service {host} is in another domain, so no password is sent there")));
        }
        let scope = format!("repository:{}:pull", self.reference.repository);
        let request = match &self.credential {
            Some(Credential::Refresh(token)) => {
                let mut form = Url::parse("form:/").expect("a valid address");
                form.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("service", service.unwrap_or_default())
                    .append_pair("scope", &scope)
                    .append_pair("client_id", "palisade")
                    .append_pair("refresh_token", token.expose());
                let form = form.query().unwrap_or_default().to_owned();
                self.http.post(url).header("content-type", "application/x-www-form-urlencoded").body(form)
            }
            credential => {
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                url.query_pairs_mut().append_pair("scope", &scope);
                let request = self.http.get(url);
                match credential {
                    Some(Credential::Basic { user, password }) => request.basic_auth(user, Some(password.expose())),
                    _ => request,
                }
            }
        };
        let unreachable =
            |why: reqwest::Error| RegistryError::Unreachable { registry: registry(), why: innermost(&why) };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if !status.is_success() {
            let what = format!("a token for {}", self.reference.repository);
            return Err(RegistryError::Denied { registry: registry(), what, status: status.as_u16() });
        }
        let bytes = read(response, LONGEST_TOKEN).await.map_err(unreachable)?.unwrap_or_default();
        challenge::token(&bytes).ok_or_else(|| refuse("its token service gives no token".to_owned()))
    }
}

/// Reads an answer; None when it is longer than the limit.
async fn read(response: Response, limit: u64) -> reqwest::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// What a chain of errors ends in: the links before repeat addresses, which may hold tokens of a redirection.
fn innermost(error: &reqwest::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    if last.downcast_ref::<reqwest::Error>().is_none() {
        return last.to_string();
    }
    let what = match error {
        error if error.is_timeout() => "it took too long",
        error if error.is_connect() => "no connection",
        error if error.is_redirect() => "a redirection that is not followed",
        _ => "the connection broke",
    };
    what.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Reference;

    #[test]
    fn only_loopback_and_named_registries_are_spoken_to_without_tls() {
        let policy = Policy { insecure: vec!["registry.example:5000".to_owned()], ..Policy::default() };
        for (text, base) in [
            ("debian", "https://registry-1.docker.io/v2/library/debian/"),
            ("ghcr.io/a/b", "https://ghcr.io/v2/a/b/"),
            ("registry.example/a", "https://registry.example/v2/a/"),
            ("registry.example:5000/a", "http://registry.example:5000/v2/a/"),
            ("127.0.0.1:5000/a", "http://127.0.0.1:5000/v2/a/"),
        ] {
            let Ok(Reference::Registry(reference)) = text.parse() else { panic!("{text} is of no registry") };
            let registry = Registry::new(&reference, None, &policy).unwrap();
            assert_eq!(registry.base.as_str(), base, "{text}");
        }
    }
}
