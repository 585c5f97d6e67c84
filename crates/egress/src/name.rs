//! Names of hosts, in one form.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A host in the one form in which it is compared: lower case, ASCII (IDNA), no trailing dot; or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name.
    Name(Box<str>),
    /// An address that was written as such.
    Address(IpAddr),
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// Why something is not the name of a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// There is nothing.
    #[error("the host is empty")]
    Empty,
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

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Host, NameError> {
        if text.is_empty() { Err(NameError::Empty) } else { Ok(Host::Name(text.into())) }
    }
}
