//! The server: the Managed Agents API over HTTP.
//!
//! Architecture invariant: nothing here decides about a session or a work item. A request is checked for its form and for its
//! caller's scope, and then handed to the engine, or answered from the store.

mod auth;
mod body;
mod domains;
mod error;
pub mod keys;
mod limit;
mod metrics;
mod page;
mod query;
mod routes;
mod rules;
mod service;
mod stream;
mod tls;
mod token;

pub use error::Error;
pub use limit::RateLimit;
pub use tls::Tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use palisade_engine::Engine;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::limit::Limiter;
use crate::metrics::HttpMetrics;
use crate::service::Service;
use crate::tls::Patient;
use crate::token::Signer;

/// How long a client may take for a TLS handshake or for the head of a request.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// How long requests under way may take once the server is to stop.
const GRACE: Duration = Duration::from_secs(10);
/// The largest head of a request, and the largest buffer of a connection.
const BUFFER: usize = 16 * 1024;

/// How a server listens and what it allows.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The server's identity; plain text without.
    pub tls: Option<Tls>,
    /// Listen on an address other than loopback although TLS is off.
    pub allow_plaintext: bool,
    /// Where the key that signs sessions tokens is kept.
    pub state_dir: PathBuf,
    /// How often one credential may call.
    pub rate_limit: RateLimit,
    /// The largest body of a request, in bytes.
    pub max_body: usize,
    /// Between two signs of life on a stream.
    pub ping: Duration,
    /// Workers' streams are closed after this time, so that they list again and find what they missed.
    pub rotate_streams: Option<Duration>,
}

impl Options {
    /// The defaults: no TLS, bodies of up to 32 MiB, a ping every 10 s, workers' streams rotated every 240 s.
    pub fn new(listen: SocketAddr, state_dir: PathBuf) -> Options {
        Options {
            listen,
            tls: None,
            allow_plaintext: false,
            state_dir,
            rate_limit: RateLimit::default(),
            max_body: 32 * 1024 * 1024,
            ping: Duration::from_secs(10),
            rotate_streams: Some(Duration::from_secs(240)),
        }
    }
}

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    service: Arc<Service>,
    router: Router,
}

impl Server {
    /// Listens, so that a client can connect from the moment this returns.
    ///
    /// # Errors
    /// When the address is refused or in use, the certificate cannot be used, or the state directory cannot be written.
    pub async fn bind(options: Options, engine: Arc<Engine>) -> Result<Server, Error> {
        let loopback = options.listen.ip().to_canonical().is_loopback();
        if options.tls.is_none() && !loopback && !options.allow_plaintext {
            return Err(Error::Plaintext(options.listen));
        }
        let acceptor = options.tls.as_ref().map(tls::acceptor).transpose()?;
        let signer = Signer::open(&options.state_dir)?;
        let fail = |cause| Error::Bind { address: options.listen, cause };
        let listener = TcpListener::bind(options.listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let service = Arc::new(Service {
            engine,
            signer,
            limiter: Limiter::new(options.rate_limit),
            metrics: HttpMetrics::new(),
            max_body: options.max_body,
            // A stream that never paused would be nothing but pings.
            ping: options.ping.max(Duration::from_millis(1)),
            rotate: options.rotate_streams,
            shutdown: CancellationToken::new(),
            catalog: RwLock::new(()),
        });
        let router = routes::router(service.clone());
        Ok(Server { listener, address, acceptor, service, router })
    }

    /// Where the server listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then ends streams cleanly and gives requests under way ten seconds.
    ///
    /// # Errors
    /// None at present; failures of single connections are logged.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Server { listener, acceptor, service, router, .. } = self;
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE).max_buf_size(BUFFER);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .max_concurrent_streams(256)
            .max_header_list_size(16 * 1024)
            .max_send_buf_size(64 * 1024);
        let http = Arc::new(http);
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(why) => {
                    // Usually too many open files: others will close theirs.
                    warn!(error = %why, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let connection = Connection {
                http: http.clone(),
                service: service.clone(),
                router: router.clone(),
                acceptor: acceptor.clone(),
            };
            connections.spawn(connection.serve(stream));
        }
        drop(listener);
        service.shutdown.cancel();
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all).await.is_err() {
            warn!(open = connections.len(), "some requests did not end in time and are cut off");
            connections.shutdown().await;
        }
        Ok(())
    }
}

struct Connection {
    http: Arc<auto::Builder<TokioExecutor>>,
    service: Arc<Service>,
    router: Router,
    acceptor: Option<TlsAcceptor>,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        // Results of tools and events are small and somebody waits for each.
        let _ = stream.set_nodelay(true);
        // Finds peers that vanished without a word.
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
        let _ = rustix::net::sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60));
        self.service.metrics.connections.inc();
        let stream = Patient::new(stream);
        match &self.acceptor {
            None => self.speak(stream).await,
            Some(acceptor) => match tokio::time::timeout(HEAD_PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => self.speak(stream).await,
                Ok(Err(why)) => debug!(error = %why, "a TLS handshake failed"),
                Err(_) => debug!("a TLS handshake took too long"),
            },
        }
        self.service.metrics.connections.dec();
    }

    async fn speak(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = TowerToHyperService::new(self.router.clone());
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.service.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(why) = ended {
            debug!(error = %why, "a connection failed");
        }
    }
}
