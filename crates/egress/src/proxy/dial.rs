//! Connections to the outside: names are resolved here, and the very address that was checked is dialled.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

use super::lookup::Resolver;
use crate::name::{Authority, Host};
use crate::policy::Refusal;

/// Addresses that are tried for one name.
const MAX_ADDRESSES: usize = 16;

/// Why there is no connection to the outside.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum DialError {
    /// The policy does not allow any of its addresses.
    #[error("{0}")]
    Refused(Refusal),
    /// The name has no address.
    #[error("{host} has no address: {why}")]
    Unresolved { host: Host, why: String },
    /// Nobody answers at any of its addresses.
    #[error("{to} cannot be reached: {why}")]
    Unreachable { to: Authority, why: String },
    /// Nobody answered in time.
    #[error("{to} did not answer within {seconds} s")]
    TimedOut { to: Authority, seconds: u64 },
}

/// Dials `to`. Each address is given to `check` before anything is sent to it, and what is connected in the end is compared with
/// what was checked: a name whose addresses change in between (DNS rebinding) gains nothing.
pub(super) async fn dial(
    to: &Authority,
    resolver: &dyn Resolver,
    limit: Duration,
    check: impl Fn(IpAddr) -> Result<(), Refusal>,
) -> Result<(TcpStream, SocketAddr), DialError> {
    let addresses = match &to.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => match tokio::time::timeout(limit, resolver.resolve(name)).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(DialError::Unresolved { host: to.host.clone(), why: error.to_string() }),
            Err(_) => {
                let why = format!("its name server did not answer within {} s", limit.as_secs());
                return Err(DialError::Unresolved { host: to.host.clone(), why });
            }
        },
    };
    let mut failure = DialError::Unresolved { host: to.host.clone(), why: "its name server knows none".to_owned() };
    for address in addresses.into_iter().take(MAX_ADDRESSES) {
        if let Err(refusal) = check(address) {
            // What another address says is told first only if there is one that could be dialled.
            if matches!(failure, DialError::Unresolved { .. }) {
                failure = DialError::Refused(refusal);
            }
            continue;
        }
        let address = SocketAddr::new(address, to.port);
        failure = match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => match (stream.peer_addr(), stream.set_nodelay(true)) {
                (Ok(peer), Ok(())) if peer == address => return Ok((stream, address)),
                (Err(error), _) | (_, Err(error)) => DialError::Unreachable { to: to.clone(), why: error.to_string() },
                (Ok(peer), Ok(())) => {
                    DialError::Unreachable { to: to.clone(), why: format!("{peer} answered for {address}") }
                }
            },
            Ok(Err(error)) => DialError::Unreachable { to: to.clone(), why: error.to_string() },
            Err(_) => DialError::TimedOut { to: to.clone(), seconds: limit.as_secs() },
        };
    }
    Err(failure)
}
