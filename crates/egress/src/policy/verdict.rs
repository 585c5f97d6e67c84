//! What a decision says.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Authority;
use crate::git::PushRules;

/// The rule that decided. For a session that has a section of its own and one of its environment, both rules.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleName {
    first: Arc<str>,
    second: Option<Arc<str>>,
}

impl RuleName {
    /// One rule.
    pub fn new(name: impl Into<Arc<str>>) -> RuleName {
        RuleName { first: name.into(), second: None }
    }

    /// Two rules that hold together.
    pub(super) fn and(self, other: RuleName) -> RuleName {
        RuleName { first: self.first, second: Some(other.first) }
    }

    /// The names of the rules: one or two.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Arc<str>> {
        std::iter::once(&self.first).chain(&self.second)
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first)?;
        self.second.as_ref().map_or(Ok(()), |second| write!(f, " & {second}"))
    }
}

/// Whether what is not allowed is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It is.
    #[default]
    Enforce,
    /// What rules would refuse is let through and recorded: for writing a first policy, never for production. Special addresses,
    /// malformed names and pushes are still refused.
    Observe,
}

/// What was seen on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Neither TLS nor HTTP.
    Tcp,
    /// A ClientHello.
    Tls,
    /// The request line of plain HTTP.
    Http,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "plain TCP",
            Protocol::Tls => "TLS",
            Protocol::Http => "plain HTTP",
        })
    }
}

/// What is done with a connection that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Treatment {
    /// Its bytes are carried as they are. For TLS, the name in the ClientHello was checked.
    PassThrough,
    /// Its requests are read, since a rule decides by request.
    Intercept,
}

/// The scheme of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// In TLS.
    Https,
}

impl Scheme {
    /// As it is written in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The port when none is written.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request that was read.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// With or without TLS.
    pub scheme: Scheme,
    /// The host and port that it goes to.
    pub authority: &'a Authority,
    /// As it was written.
    pub method: &'a str,
    /// The path as it was written, with its query if it has one.
    pub path: &'a str,
    /// What the connection is to become: the `Upgrade` header, or `:protocol` of an extended CONNECT.
    pub upgrade: Option<&'a str>,
    /// The length of its body, when it is said beforehand.
    pub body_bytes: Option<u64>,
}

/// Headers by which some servers take another method or path than those of the request, which were compared.
pub const OVERRIDING_HEADERS: [&str; 6] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// What an allowed request may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Grant {
    /// The most bytes that its body may have.
    pub max_request_bytes: Option<u64>,
    /// Whether the rule allows private addresses. What is dialled is checked by [`Policy::address`](super::Policy::address).
    pub private: bool,
    /// Whether the rule compares the method or the path: then none of [`OVERRIDING_HEADERS`] may be sent on.
    pub compared: bool,
    /// Present if this request is a push (`POST …/git-receive-pack`): what its commands are checked against before any byte of
    /// it goes out.
    pub git: Option<Arc<PushRules>>,
}

/// Allowed, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<T> {
    /// It may go on.
    Allowed {
        /// The rule that allows it.
        rule: RuleName,
        /// On these terms.
        grant: T,
        /// Why it would have been refused, if it is allowed only because the policy observes.
        observed: Option<Refusal>,
    },
    /// It may not.
    Refused(Refusal),
}

impl<T> Verdict<T> {
    /// The refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Verdict::Allowed { .. } => None,
            Verdict::Refused(refusal) => Some(refusal),
        }
    }

    /// The terms, if it is allowed.
    pub fn granted(&self) -> Option<&T> {
        match self {
            Verdict::Allowed { grant, .. } => Some(grant),
            Verdict::Refused(_) => None,
        }
    }
}

/// Why something is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The kind of reason.
    pub reason: Reason,
    /// The rule that came nearest to allowing it, if one did.
    pub rule: Option<RuleName>,
    /// For the agent: what was refused, why, and what would help. One line.
    pub message: String,
    /// When trying again can help. In all other cases it cannot.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal that trying again does not change.
    pub fn new(reason: Reason, rule: Option<RuleName>, message: impl Into<String>) -> Refusal {
        Refusal { reason, rule, message: message.into(), retry_after: None }
    }
}

/// The kinds of reasons. Their codes are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// No rule names the host.
    NotAllowed,
    /// No rule for the host allows the method.
    MethodNotAllowed,
    /// No rule for the host allows the path, or the path has two readings.
    PathNotAllowed,
    /// No rule for the host allows the port.
    PortNotAllowed,
    /// No rule for the host allows what is spoken.
    ProtocolNotAllowed,
    /// No rule for the host allows this change of protocol.
    UpgradeNotAllowed,
    /// Plain HTTP where a rule wants TLS.
    TlsRequired,
    /// An address that no rule names was dialled directly.
    DirectAddress,
    /// The name leads to an address that is not on the public internet.
    PrivateAddress,
    /// The name leads to an address that is not among those of its rule.
    AddressNotAllowed,
    /// The body is longer than its rule allows.
    TooLarge,
    /// More requests in a minute than the rule allows.
    RateExceeded,
    /// The session has moved as many bytes as its rule allows.
    BudgetExhausted,
    /// CONNECT, SNI, `Host` and certificate do not name the same.
    NameMismatch,
    /// What should name a host does not.
    MalformedName,
    /// The request is malformed, or has two readings.
    MalformedRequest,
    /// A credential's placeholder where it does not belong.
    CredentialMisused,
    /// A push that the rule does not allow.
    PushRefused,
    /// A signature for SSH that nothing ties to an open connection.
    SshNotBound,
    /// A datagram.
    UdpRefused,
    /// The audit trail cannot keep what happens.
    AuditUnavailable,
    /// There is no policy to ask.
    PolicyUnavailable,
    /// A credential's source does not answer, or the credential was revoked.
    CredentialUnavailable,
    /// The name has no address.
    Unresolved,
    /// The upstream does not answer, or its certificate does not hold.
    UpstreamUnavailable,
    /// The session has too many connections.
    TooManyConnections,
}

impl Reason {
    /// The code: for records, metrics and clients.
    pub fn code(self) -> &'static str {
        match self {
            Reason::NotAllowed => "not_allowed",
            Reason::MethodNotAllowed => "method_not_allowed",
            Reason::PathNotAllowed => "path_not_allowed",
            Reason::PortNotAllowed => "port_not_allowed",
            Reason::ProtocolNotAllowed => "protocol_not_allowed",
            Reason::UpgradeNotAllowed => "upgrade_not_allowed",
            Reason::TlsRequired => "tls_required",
            Reason::DirectAddress => "direct_address",
            Reason::PrivateAddress => "private_address",
            Reason::AddressNotAllowed => "address_not_allowed",
            Reason::TooLarge => "too_large",
            Reason::RateExceeded => "rate_exceeded",
            Reason::BudgetExhausted => "budget_exhausted",
            Reason::NameMismatch => "name_mismatch",
            Reason::MalformedName => "malformed_name",
            Reason::MalformedRequest => "malformed_request",
            Reason::CredentialMisused => "credential_misused",
            Reason::PushRefused => "push_refused",
            Reason::SshNotBound => "ssh_not_bound",
            Reason::UdpRefused => "udp_refused",
            Reason::AuditUnavailable => "audit_unavailable",
            Reason::PolicyUnavailable => "policy_unavailable",
            Reason::CredentialUnavailable => "credential_unavailable",
            Reason::Unresolved => "unresolved",
            Reason::UpstreamUnavailable => "upstream_unavailable",
            Reason::TooManyConnections => "too_many_connections",
        }
    }

    /// The status of the answer to a request that is refused for it.
    pub fn status(self) -> u16 {
        match self {
            Reason::MalformedName | Reason::MalformedRequest => 400,
            Reason::TooLarge => 413,
            Reason::NameMismatch => 421,
            Reason::RateExceeded | Reason::TooManyConnections => 429,
            Reason::Unresolved | Reason::UpstreamUnavailable => 502,
            Reason::AuditUnavailable | Reason::PolicyUnavailable | Reason::CredentialUnavailable => 503,
            _ => 403,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
