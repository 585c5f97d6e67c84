//! Names of hosts, in one form.
//!
//! Every name that the sandbox says, in a CONNECT line, a `Host` header, a ClientHello or a DNS query, and every name in a policy
//! becomes a [`Host`] before it is compared with anything. What has two readings is refused here, so that no two parts of the way
//! out can read it differently.

use std::borrow::Borrow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};

/// The longest name, and the longest label, in its ASCII form (RFC 1035, section 2.3.4).
const NAME: usize = 253;
const LABEL: usize = 63;
/// What is longer is not worth the work of mapping it.
const TEXT: usize = 1024;

/// A host in the one form in which it is compared: lower case, ASCII (IDNA), no trailing dot; or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name.
    Name(Name),
    /// An address that was written as such. Made by [`Host::from`], it is never an IPv4 address in IPv6 clothes.
    Address(IpAddr),
}

/// A DNS name in its one form. Only parsing makes one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port; never 0 when parsed.
    pub port: u16,
}

/// Why something is not the name of a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// There is nothing.
    #[error("the host is empty")]
    Empty,
    /// Longer than DNS allows.
    #[error("the host is longer than {NAME} characters, the most that DNS allows")]
    TooLong,
    /// A part between dots that is longer than DNS allows.
    #[error("the host has a part longer than {LABEL} characters, the most that DNS allows between two dots")]
    LongLabel,
    /// Two dots in a row, or a dot at the beginning.
    #[error("the host has an empty part: two dots in a row, or one at the beginning")]
    EmptyLabel,
    /// A part that begins or ends with a hyphen.
    #[error("the host has a part that begins or ends with a hyphen, which names of hosts may not")]
    Hyphen,
    /// A character that no host has: a control character, a space, `%`, a slash.
    #[error("the host contains {0:?}, which no name of a host has")]
    Character(char),
    /// `user@host`.
    #[error("the host has something before an @: write the host alone, and send credentials in a header")]
    Userinfo,
    /// Letters outside ASCII, or `xn--`, that IDNA does not take.
    #[error("the host is not valid as an international name (UTS #46)")]
    International,
    /// What resolvers take for an address, though it is not written as one: `2130706433`, `0x7f.1`, `0177.0.0.1`, `127.1`.
    #[error("the host ends in a number but is no IPv4 address of four decimal parts: write it as such, or as a name")]
    Numeric,
    /// Brackets without an IPv6 address in them.
    #[error("the host is not a valid IPv6 address: write it as [2001:db8::1], without a zone")]
    Ipv6,
    /// A port that is none.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// No port, and none to assume.
    #[error("the port is missing: write host:port")]
    NoPort,
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

// Hash, Eq and Ord of Name are those of its text.
impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Host {
    /// The name, if it is one.
    pub fn name(&self) -> Option<&Name> {
        match self {
            Host::Name(name) => Some(name),
            Host::Address(_) => None,
        }
    }

    /// The address, if it is one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Host::Name(_) => None,
            Host::Address(address) => Some(*address),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Host {
        Host::Address(address.to_canonical())
    }
}

impl From<Ipv4Addr> for Host {
    fn from(address: Ipv4Addr) -> Host {
        Host::Address(address.into())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Host::Address(address) => address.fmt(f),
        }
    }
}

impl FromStr for Host {
    type Err = NameError;

    /// Reads a name, an IPv4 address of four decimal parts, or an IPv6 address with or without brackets.
    fn from_str(text: &str) -> Result<Host, NameError> {
        if let Some(rest) = text.strip_prefix('[') {
            let inner = rest.strip_suffix(']').ok_or(NameError::Ipv6)?;
            return inner
                .parse::<Ipv6Addr>()
                .map(|address| Host::from(IpAddr::V6(address)))
                .map_err(|_| NameError::Ipv6);
        }
        if text.len() <= TEXT
            && text.contains(':')
            && let Ok(address) = text.parse::<Ipv6Addr>()
        {
            return Ok(Host::from(IpAddr::V6(address)));
        }
        name(text)
    }
}

impl Authority {
    /// Reads `host:port`, `host`, `[v6]:port` or `[v6]`. Without a port and without one to assume, it is refused.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Authority, NameError> {
        let (host, port) = if text.starts_with('[') {
            let end = text.find(']').ok_or(NameError::Ipv6)?;
            let (host, rest) = text.split_at(end + 1);
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(NameError::Ipv6),
            }
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        // Said first, since what comes before the @ would else be taken for a host with a bad port.
        if text.contains('@') {
            return Err(NameError::Userinfo);
        }
        let host = if host.starts_with('[') { host.parse()? } else { name(host)? };
        let port = match port {
            Some(port) => self::port(port)?,
            None => default_port.filter(|port| *port != 0).ok_or(NameError::NoPort)?,
        };
        Ok(Authority { host, port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for Authority {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Authority, NameError> {
        Authority::parse(text, None)
    }
}

/// A port in its one spelling: digits without a sign and without zeros before them.
fn port(text: &str) -> Result<u16, NameError> {
    if text.starts_with('0') || text.len() > 5 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NameError::Port);
    }
    text.parse().map_err(|_| NameError::Port)
}

/// A name or an IPv4 address.
fn name(text: &str) -> Result<Host, NameError> {
    if text.is_empty() || text == "." {
        return Err(NameError::Empty);
    }
    if text.len() > TEXT {
        return Err(NameError::TooLong);
    }
    if text.contains('@') {
        return Err(NameError::Userinfo);
    }
    if let Some(strange) =
        text.chars().find(|c| c.is_ascii() && !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.'))
    {
        return Err(NameError::Character(strange));
    }
    let mapped;
    let lower = if text.is_ascii() && !international(text) {
        mapped = text.to_ascii_lowercase();
        mapped.as_str()
    } else {
        mapped = Uts46::new()
            .to_ascii(text.as_bytes(), AsciiDenyList::URL, Hyphens::Allow, DnsLength::Ignore)
            .map_err(|_| NameError::International)?
            .into_owned();
        // Mapping makes ASCII of what looks like it: full-width letters, for one.
        if let Some(strange) = mapped.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.')) {
            return Err(NameError::Character(strange));
        }
        mapped.as_str()
    };
    let dotless = lower.strip_suffix('.').unwrap_or(lower);
    if dotless.is_empty() {
        return Err(NameError::Empty);
    }
    if dotless.len() > NAME {
        return Err(NameError::TooLong);
    }
    for label in dotless.split('.') {
        match label.as_bytes() {
            [] => return Err(NameError::EmptyLabel),
            label if label.len() > LABEL => return Err(NameError::LongLabel),
            [b'-', ..] | [.., b'-'] => return Err(NameError::Hyphen),
            _ => {}
        }
    }
    // Resolvers take these for addresses (inet_aton(3)); so does the URL standard ("ends in a number").
    let last = dotless.rsplit('.').next().unwrap_or(dotless);
    let hexadecimal = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if hexadecimal || last.bytes().all(|byte| byte.is_ascii_digit()) {
        // The one spelling: as it was said, not as it was mapped.
        return text.parse::<Ipv4Addr>().map(Host::from).map_err(|_| NameError::Numeric);
    }
    Ok(Host::Name(Name(dotless.into())))
}

/// Whether a label claims to be the ASCII form of something else, which is then checked.
fn international(text: &str) -> bool {
    text.split('.').any(|label| label.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("xn--")))
}
