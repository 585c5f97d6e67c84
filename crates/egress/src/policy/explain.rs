//! Refusals in words, for the agent: what was refused, why, what would help, and that trying again does not.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::address::Range;
use super::path::{PathError, without_query};
use super::rule::{Layer, Rule};
use super::{Protocol, Reason, Refusal, Request, RuleName};
use crate::{Authority, Host};

const AGAIN: &str = "Trying again does not help";

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) enum Asked<'a> {
    Connection(&'a Authority, Protocol),
    Request(&'a Request<'a>),
}

impl Asked<'_> {
    pub(super) fn authority(&self) -> &Authority {
        match self {
            Asked::Connection(authority, _) => authority,
            Asked::Request(request) => request.authority,
        }
    }

    fn what(&self) -> String {
        match self {
            Asked::Connection(authority, protocol) => format!("{protocol} to {authority}"),
            Asked::Request(request) => {
                let Request { scheme, authority, method, path, .. } = request;
                let default = authority.port == scheme.default_port();
                let to = if default { authority.host.to_string() } else { authority.to_string() };
                format!("{} {scheme}://{to}{}", shown(method, 20), shown(without_query(path), 200))
            }
        }
    }
}

/// For one line of a message: of what the caller wrote, only what is printable, and not all of something long.
pub(super) fn shown(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect();
    if text.chars().nth(most).is_some() {
        shown.push_str("...");
    }
    shown
}

/// What keeps a rule from allowing something; in the order of how near it came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failed {
    Port,
    Tls,
    Protocol,
    Upgrade,
    Method,
    Path(Why),
    Push,
    Size(u64),
}

/// What is wrong with a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    NotListed,
    EncodedSlash,
    Ambiguous(&'static str),
}

impl From<PathError> for Why {
    fn from(why: PathError) -> Why {
        Why::Ambiguous(match why {
            PathError::Relative => "it does not begin with a slash",
            PathError::Character => "it has a character that no path has",
            PathError::Backslash => "it has a backslash, which some servers take for a slash",
            PathError::Percent => "it has a % without two hexadecimal digits behind it",
            PathError::Control => "it has an encoded control character",
            PathError::Overlong => "it has an encoded character in a longer form than it has",
            PathError::Twice => "it is encoded twice",
            PathError::Dots => "it has a . or .. segment: send the path that is meant",
            PathError::Slashes => "it has two slashes in a row, which some servers take for one",
        })
    }
}

/// No rule names the host.
pub(super) fn unknown(asked: Asked<'_>) -> Refusal {
    let what = asked.what();
    let host = &asked.authority().host;
    let (reason, why, help) = match host {
        Host::Name(_) => (Reason::NotAllowed, format!("no rule names {host}"), "a rule for this host"),
        Host::Address(_) => (
            Reason::DirectAddress,
            format!("no rule names the address {host}"),
            "the name of the host instead of its address, if a rule allows the name, or a rule with this address",
        ),
    };
    Refusal::new(
        reason,
        None,
        format!(
            "{what} was refused by the egress policy: {why}. {AGAIN}; what would: {help}, added by whoever runs this sandbox"
        ),
    )
}

/// Rules name the host, and none allows this: told of the one that came nearest.
pub(super) fn nearest(asked: Asked<'_>, rule: &Rule, failed: Failed) -> Refusal {
    let name = RuleName::new(rule.name.clone());
    let mut message = format!("{} was refused by the egress policy: rule `{name}` ", asked.what());
    let (reason, rest) = match failed {
        Failed::Port => {
            let ports = rule.ports.text();
            (Reason::PortNotAllowed, format!("allows this host only at port {ports}"))
        }
        Failed::Tls => (Reason::TlsRequired, "allows this host only with TLS: use https".to_owned()),
        Failed::Protocol => (Reason::ProtocolNotAllowed, "allows only TLS here".to_owned()),
        Failed::Upgrade => (Reason::UpgradeNotAllowed, "does not allow to change to this protocol".to_owned()),
        Failed::Method => {
            let methods = rule.methods.as_deref().unwrap_or_default().join(", ");
            let methods = if methods.is_empty() { "no tunnels".to_owned() } else { methods };
            (Reason::MethodNotAllowed, format!("allows only {methods} here"))
        }
        Failed::Path(Why::NotListed) => {
            let paths = rule.paths.as_deref().unwrap_or_default();
            let mut list: Vec<String> = paths.iter().take(8).map(|path| shown(&path.to_string(), 100)).collect();
            if paths.len() > 8 {
                list.push(format!("{} more", paths.len() - 8));
            }
            (Reason::PathNotAllowed, format!("allows only these paths: {}", list.join(", ")))
        }
        Failed::Path(Why::EncodedSlash) => {
            let why = "compares paths, and this one has an encoded slash (%2F), which some servers take for a slash";
            (Reason::PathNotAllowed, why.to_owned())
        }
        Failed::Path(Why::Ambiguous(why)) => {
            (Reason::PathNotAllowed, format!("compares paths, and this one has no single reading: {why}"))
        }
        Failed::Push => {
            (Reason::PushRefused, "allows no push; what would help: `git: {push: [...]}` in the rule".to_owned())
        }
        Failed::Size(most) => (Reason::TooLarge, format!("allows bodies of at most {most} bytes")),
    };
    let _ = write!(message, "{rest}. {AGAIN} unless the rule is changed");
    Refusal::new(reason, Some(name), message)
}

/// The rule does not allow the address that its host leads to.
pub(super) fn address(layer: &Layer, rule: Option<&Rule>, address: IpAddr, range: Range) -> Refusal {
    let name = rule.map(|rule| RuleName::new(rule.name.clone()));
    let pinned = rule.is_some_and(|rule| !rule.addresses.is_empty());
    let (reason, why, help) = if range.is_never() {
        (Reason::PrivateAddress, format!("{range}, to which nothing is allowed to connect"), String::new())
    } else if pinned && range == Range::Public {
        let why = "not among the addresses of the rule".to_owned();
        (Reason::AddressNotAllowed, why, format!("; what would: `{address}` in the rule's `address`"))
    } else if range.is_private() && !pinned {
        let why = format!("{range}, which names may lead to only where the rule says so");
        (
            Reason::PrivateAddress,
            why,
            "; what would: `private: true` in the rule, if this is a host of yours".to_owned(),
        )
    } else {
        let why = format!("{range}, which must be named to be reached");
        (Reason::PrivateAddress, why, format!("; what would: `{address}` in the rule's `address`, if this is meant"))
    };
    let rule = name.as_ref().map(|name| format!(" (rule `{name}`)")).unwrap_or_default();
    let observe =
        if layer.mode == super::Mode::Observe { ". This holds also while the policy only observes" } else { "" };
    let message = format!(
        "the connection to {address} was refused by the egress policy{rule}: it is {why}{observe}. {AGAIN}{help}"
    );
    Refusal::new(reason, name, message)
}
