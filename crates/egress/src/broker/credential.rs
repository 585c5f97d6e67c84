//! What a session may use, and where.

use std::fmt;
use std::sync::Arc;

use palisade_api::Secret;

use super::{BrokerError, Shape};
use crate::{Authority, Host, Supply};

/// A credential as one session may use it.
#[derive(Debug, Clone)]
pub struct Credential {
    /// How records name it. Never the value.
    pub reference: String,
    /// The environment variable that holds its placeholder; empty for kinds that the sandbox does not see.
    pub variable: String,
    /// Where it may go.
    pub hosts: Hosts,
    /// Where in a request it may stand.
    pub places: Places,
    /// What it is.
    pub kind: Kind,
    /// Whether it may go to a host without TLS. False unless somebody decided otherwise.
    pub cleartext: bool,
    /// Answers of these endpoints give out tokens, which are sealed into placeholders.
    pub exchange: Option<Exchange>,
    /// The value.
    pub value: Arc<dyn Supply>,
}

impl Credential {
    /// A token for `hosts` with the default places, over TLS only.
    pub fn new(
        reference: impl Into<String>,
        variable: impl Into<String>,
        hosts: Hosts,
        value: Arc<dyn Supply>,
    ) -> Credential {
        Credential {
            reference: reference.into(),
            variable: variable.into(),
            hosts,
            places: Places::default(),
            kind: Kind::Token(Shape::AsValue),
            cleartext: false,
            exchange: None,
            value,
        }
    }

    /// The API's `environment_variable`: `allowed_hosts` is `None` for `unrestricted`; then where it is injected.
    pub fn environment_variable(
        reference: impl Into<String>,
        secret_name: impl Into<String>,
        allowed_hosts: Option<&[String]>,
        header: bool,
        body: bool,
        value: Arc<dyn Supply>,
    ) -> Result<Credential, BrokerError> {
        let hosts = match allowed_hosts {
            None => Hosts::Unrestricted,
            Some(hosts) => Hosts::limited(hosts)?,
        };
        let mut credential = Credential::new(reference, secret_name, hosts, value);
        credential.places = Places { header, query: false, path: false, body };
        Ok(credential)
    }
}

/// What a credential is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// One value: its placeholder is replaced by it.
    Token(Shape),
    /// AWS keys, with which requests are signed again. The value is JSON: `access_key_id`, `secret_access_key` and, if there is
    /// one, `session_token` (also in the spellings of AWS, `AccessKeyId`, and of Vault, `access_key`). The variables are
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`; the credential's own `variable` is not used.
    AwsKeys,
    /// A client certificate: the value is PEM, the chain and its private key. Nothing of it is in the sandbox.
    ClientCertificate,
}

/// The hosts to which a credential may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    /// Any host that the policy allows.
    Unrestricted,
    /// These.
    Limited(Vec<HostPattern>),
}

/// One host, or all below one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    /// The host itself, or the name below which the others are.
    host: Host,
    below: bool,
    /// Only this port; any, when there is none.
    port: Option<u16>,
}

impl HostPattern {
    /// A bare host, an IPv4 address, or `*.name`, which does not match `name` itself.
    pub fn parse(text: &str) -> Result<HostPattern, BrokerError> {
        let wrong = || BrokerError::NotAHost { host: text.chars().take(300).collect() };
        let (below, bare) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if bare.contains(['*', '/', ':', '@', '?', '#', '%']) {
            return Err(wrong());
        }
        let host: Host = bare.parse().map_err(|_| wrong())?;
        if below && matches!(host, Host::Address(_)) {
            return Err(wrong());
        }
        Ok(HostPattern { host, below, port: None })
    }

    /// Exactly this host at this port.
    pub fn authority(authority: &Authority) -> HostPattern {
        HostPattern { host: authority.host.clone(), below: false, port: Some(authority.port) }
    }

    /// The host itself, or the name below which the others are.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Whether `authority` is one of those.
    pub fn matches(&self, authority: &Authority) -> bool {
        if self.port.is_some_and(|port| port != authority.port) {
            return false;
        }
        if !self.below {
            return self.host == authority.host;
        }
        let (Host::Name(suffix), Host::Name(name)) = (&self.host, &authority.host) else { return false };
        name.as_str().strip_suffix(suffix.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (below, host) = (if self.below { "*." } else { "" }, &self.host);
        match self.port {
            Some(port) => write!(f, "{below}{host}:{port}"),
            None => write!(f, "{below}{host}"),
        }
    }
}

impl Hosts {
    /// These hosts, each as [`HostPattern::parse`] takes it.
    pub fn limited<S: AsRef<str>>(hosts: &[S]) -> Result<Hosts, BrokerError> {
        hosts.iter().map(|host| HostPattern::parse(host.as_ref())).collect::<Result<_, _>>().map(Hosts::Limited)
    }

    /// Whether the credential may go there.
    pub fn matches(&self, authority: &Authority) -> bool {
        match self {
            Hosts::Unrestricted => true,
            Hosts::Limited(patterns) => patterns.iter().any(|pattern| pattern.matches(authority)),
        }
    }
}

/// The places of a request in which a placeholder is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Any header, also within `Basic`.
    pub header: bool,
    /// The query of the URL.
    pub query: bool,
    /// A segment of the path.
    pub path: bool,
    /// Anywhere in the body.
    pub body: bool,
}

impl Default for Places {
    /// Headers only: what is least likely to be kept and given back by an upstream.
    fn default() -> Places {
        Places { header: true, query: false, path: false, body: false }
    }
}

/// Token endpoints: what they answer to a request with the credential in it holds new tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The path of the endpoint, exactly.
    pub path: String,
    /// Where the tokens may go; where the credential may, when there is nothing.
    pub hosts: Option<Hosts>,
    /// Where the tokens may stand. A refresh token may also stand in the body that is sent to the endpoint.
    pub places: Places,
}

/// AWS keys as a source keeps them.
#[derive(serde::Deserialize)]
pub(super) struct AwsKeys {
    #[serde(alias = "AccessKeyId", alias = "access_key", alias = "aws_access_key_id")]
    pub(super) access_key_id: Secret,
    #[serde(alias = "SecretAccessKey", alias = "secret_key", alias = "aws_secret_access_key")]
    pub(super) secret_access_key: Secret,
    #[serde(default, alias = "SessionToken", alias = "security_token", alias = "aws_session_token")]
    pub(super) session_token: Option<Secret>,
}
