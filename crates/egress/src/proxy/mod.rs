//! The proxy: connections in, connections out.
//!
//! Each session has four sockets in its own network namespace, and one in its file system where it has keys for SSH. What arrives on them is looked at just far enough to know what it
//! is and for whom ([`hello`]), the policy decides, and then it is either carried as it is ([`copy`]) or opened with a certificate
//! of the session's own authority ([`ca`]) and carried request by request ([`requests`]).
//!
//! **One authority per connection.** The name that was resolved or given to CONNECT, the server name of TLS, the `Host` or
//! `:authority` of each request, the name in the upstream's certificate and the rule for the dialled address are the same
//! [`Authority`](crate::Authority), or the connection is refused.
//!
//! **Kept before done.** An entry is durable in the trail before anything goes out for it ([`evidence`]); if the trail does not
//! answer, nothing does.
//!
//! **Refusals are told** as far as what is spoken allows: an HTTP answer with a reason that programs can match, to CONNECT too; a
//! TLS alert `access_denied` for a name that the policy does not allow, since the session's authority cannot speak for such a
//! name; a reset for plain TCP.
//!
//! **SSH** is carried unread. A client that logs in asks the session's agent ([`agent`]), which knows the host from what was seen
//! of it on the way.

mod agent;
mod body;
mod ca;
mod connection;
mod copy;
mod dial;
mod evidence;
mod explicit;
mod fault;
mod hello;
mod lookup;
mod outside;
mod pool;
mod push;
mod requests;
mod resolver;
mod session;
mod stream;
mod tls;
mod upgrade;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use tokio::net::TcpStream;

pub use ca::{CaError, certificate_pem};

pub use evidence::{Counters, Record};
pub use lookup::{Resolver, SystemResolver};
pub use session::{Listeners, PrepareError, Prepared, Session, SessionSpec};

use crate::seam::Trail;

/// Where a connection that was redirected was going.
pub type Destination = Arc<dyn Fn(&TcpStream) -> io::Result<SocketAddr> + Send + Sync>;

/// What the service is built from.
#[derive(Clone)]
pub struct Options {
    /// Keeps what happens.
    pub trail: Arc<dyn Trail>,
    /// Authorities of upstream certificates.
    pub roots: Arc<RootCertStore>,
    /// Finds addresses outside.
    pub resolver: Arc<dyn Resolver>,
    /// Where a redirected connection was going: [`original_destination`], unless it is a test.
    pub destination: Destination,
    /// Bounds.
    pub limits: Limits,
}

impl Options {
    /// With the machine's resolver, the kernel's notion of destinations, and the usual bounds.
    pub fn new(trail: Arc<dyn Trail>, roots: Arc<RootCertStore>) -> Options {
        Options {
            trail,
            roots,
            resolver: Arc::new(SystemResolver::default()),
            destination: Arc::new(original_destination),
            limits: Limits::default(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { trail, resolver, limits, .. } = self;
        f.debug_struct("Options")
            .field("trail", trail)
            .field("resolver", resolver)
            .field("limits", limits)
            .finish_non_exhaustive()
    }
}

/// Bounds of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections that are open at a time.
    pub connections: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub streams: u32,
    /// Header fields of a request.
    pub headers: usize,
    /// Bytes of the head of a request.
    pub header_bytes: usize,
    /// From the opening of a connection to its first bytes, and for a TLS handshake.
    pub opening: Duration,
    /// For the head of a request, from the end of the one before: also how long a connection may wait for its next request.
    pub head: Duration,
    /// Without a byte of the body of a request.
    pub body_idle: Duration,
    /// From the end of a request to the head of its answer. Models think long.
    pub answer: Duration,
    /// For each step of reaching an upstream: its name, each of its addresses, its TLS handshake.
    pub dial: Duration,
    /// Without a byte of an answer once it has begun, and on a connection that is carried unread.
    pub tunnel_idle: Duration,
    /// How long an upstream connection is kept for the next request.
    pub upstream_idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 512,
            streams: 128,
            headers: 128,
            header_bytes: 64 * 1024,
            opening: Duration::from_secs(10),
            head: Duration::from_secs(90),
            body_idle: Duration::from_secs(600),
            answer: Duration::from_secs(900),
            dial: Duration::from_secs(10),
            tunnel_idle: Duration::from_secs(3600),
            upstream_idle: Duration::from_secs(60),
        }
    }
}

/// What all sessions share.
pub(crate) struct Common {
    trail: Arc<dyn Trail>,
    verifier: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
    resolver: Arc<dyn Resolver>,
    destination: Destination,
    limits: Limits,
    buffers: copy::Buffers,
    seen: tls::Seen,
}

impl fmt::Debug for Common {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Common").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The service could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// There is nobody whose certificates would be taken.
    #[error("upstream certificates cannot be checked: {0}. Give the worker the certificate authorities of the machine")]
    Roots(#[from] VerifierBuilderError),
}

/// The egress service of a worker.
#[derive(Debug, Clone)]
pub struct Service {
    common: Arc<Common>,
}

impl Service {
    /// Sets the service up. It does nothing until a session is served.
    pub fn new(options: Options) -> Result<Service, ServiceError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let common = Common {
            verifier: tls::verifier(options.roots, &provider)?,
            provider,
            trail: options.trail,
            resolver: options.resolver,
            destination: options.destination,
            limits: options.limits,
            buffers: copy::Buffers::default(),
            seen: tls::Seen::default(),
        };
        Ok(Service { common: Arc::new(common) })
    }

    /// Makes a session's certificate authority.
    pub fn prepare(&self, spec: SessionSpec) -> Result<Prepared, PrepareError> {
        Prepared::new(Arc::clone(&self.common), spec)
    }
}

/// Where a connection was going before the kernel redirected it here.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    match stream.local_addr()? {
        SocketAddr::V4(_) => Ok(rustix::net::sockopt::ip_original_dst(stream)?.into()),
        SocketAddr::V6(_) => Ok(rustix::net::sockopt::ipv6_original_dst(stream)?.into()),
    }
}
