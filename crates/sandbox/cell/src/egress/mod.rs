//! A network that leads to whoever holds its sockets and nowhere else.
//!
//! In a network namespace with a loopback device, every TCP connection to an address that is not the loopback's is turned to
//! one listening socket, which keeps where it was meant to go (`SO_ORIGINAL_DST`); questions to any resolver are turned to
//! another; all else is refused at once, and the first bytes of what was refused are heard on a third. The sockets belong to
//! the namespace for ever, whoever has them: the worker accepts on them, and the sandbox has no other way out.
//!
//! There is no virtual device, no bridge and no rule outside of the namespace. Only `CAP_NET_ADMIN` over it is needed, which
//! without root whoever made the user namespace has.

mod netlink;
mod nft;
mod route;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

pub use nft::TOLD;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

/// Where programs that know of proxies find theirs, inside.
pub const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15080);
/// Where connections end up that were meant for elsewhere, inside.
pub const CAUGHT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15081);
/// Where questions for names end up, inside.
pub const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15053);

/// The most connections that wait to be accepted, on each socket.
const BACKLOG: i32 = 1024;

/// The sockets of a namespace that leads nowhere else.
#[derive(Debug)]
pub struct Sockets {
    /// Listens at [`PROXY`].
    pub proxy: OwnedFd,
    /// Listens at [`CAUGHT`].
    pub caught: OwnedFd,
    /// Listens at [`RESOLVER`].
    pub resolver_tcp: OwnedFd,
    /// Bound to [`RESOLVER`].
    pub resolver_udp: OwnedFd,
    /// A netlink socket on which the kernel tells the beginnings of packets that were refused, in the format of
    /// `nfnetlink_log`; as many in a second as [`TOLD`] says.
    pub refused: OwnedFd,
}

impl Sockets {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// In the order in which [`Sockets::from_array`] takes them.
    pub fn into_array(self) -> [OwnedFd; Sockets::COUNT] {
        [self.proxy, self.caught, self.resolver_tcp, self.resolver_udp, self.refused]
    }

    /// The other way round.
    pub fn from_array([proxy, caught, resolver_tcp, resolver_udp, refused]: [OwnedFd; Sockets::COUNT]) -> Sockets {
        Sockets { proxy, caught, resolver_tcp, resolver_udp, refused }
    }
}

/// A step that failed.
#[derive(Debug)]
pub struct Failed {
    /// What was being done.
    pub step: &'static str,
    /// What the system said.
    pub cause: io::Error,
}

/// Brings up the loopback device of the caller's network namespace.
///
/// # Errors
/// When the caller has no power over it.
pub fn up() -> io::Result<()> {
    route::up()
}

/// Turns the caller's network namespace, whose loopback device is up, into one that leads to the sockets that are returned.
/// The steps are small and there is nothing to take back: a namespace in which one fails is not to be used.
///
/// # Errors
/// When the kernel lacks one of the means (`nf_tables` with NAT and logging), or the caller the power over the namespace.
pub fn lead() -> Result<Sockets, Failed> {
    let step = |step| move |cause: io::Error| Failed { step, cause };
    route::everywhere().map_err(step("routes"))?;
    // The sockets first: a rule never leads to a port on which somebody else could listen.
    let sockets = Sockets {
        proxy: tcp(PROXY).map_err(step("the proxy's socket"))?,
        caught: tcp(CAUGHT).map_err(step("the socket of caught connections"))?,
        resolver_tcp: tcp(RESOLVER).map_err(step("the resolver's stream socket"))?,
        resolver_udp: udp(RESOLVER).map_err(step("the resolver's datagram socket"))?,
        refused: nft::listen().map_err(step("listening to what is refused (nfnetlink_log)"))?,
    };
    nft::redirect(CAUGHT.port(), RESOLVER.port()).map_err(step("redirecting (nf_tables)"))?;
    Ok(sockets)
}

fn tcp(at: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags(), None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &at)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn udp(at: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags(), None)?;
    bind(&socket, &at)?;
    Ok(socket)
}

fn flags() -> SocketFlags {
    SocketFlags::CLOEXEC | SocketFlags::NONBLOCK
}
