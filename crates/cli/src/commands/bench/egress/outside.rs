//! The upstream, and the client that asks it: both do as little as they can, for what they use is not there for others.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::service::{CREDENTIAL, PASS, READ};
use crate::output::{Context as _, Failure, Outcome};

/// Bytes of a usual answer.
const SMALL: usize = 1024;
/// Bytes of a large one.
const LARGE: u64 = 512 * 1024 * 1024;
const PIECE: usize = 256 * 1024;
const NO_ANSWER: &str = "an answer of the bench's upstream does not arrive";
const NO_UPSTREAM: &str = "the bench's upstream cannot be set up";

/// Where a connection to the upstream begins, and how it is made.
pub(super) struct Way {
    address: SocketAddr,
    /// What to ask a proxy for.
    through: Option<String>,
    host: &'static str,
    port: u16,
    roots: RootCertStore,
    config: Option<Arc<ClientConfig>>,
}

/// An upstream of this process: 1 KiB for each request, or a lot.
pub(super) struct Outside {
    address: SocketAddr,
    root: CertificateDer<'static>,
    /// What others that speak for it need: the authority's certificate, the upstream's, and its key.
    pub(super) root_pem: String,
    pub(super) leaf_pem: String,
    pub(super) key_pem: String,
    serving: JoinHandle<()>,
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Outside {
    pub(super) async fn start() -> Outcome<Outside> {
        let key = KeyPair::generate().context(NO_UPSTREAM)?;
        let mut params = CertificateParams::default();
        // Who is told apart by a name must have one of its own.
        params.distinguished_name.push(DnType::CommonName, "palisade bench authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).context(NO_UPSTREAM)?;
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().context(NO_UPSTREAM)?;
        let names = [READ, CREDENTIAL, PASS].map(str::to_owned);
        let mut leaf = CertificateParams::new(names).context(NO_UPSTREAM)?;
        leaf.distinguished_name.push(DnType::CommonName, "palisade bench");
        let leaf = leaf.signed_by(&key, &issuer).context(NO_UPSTREAM)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .context(NO_UPSTREAM)?
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .context(NO_UPSTREAM)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context(NO_UPSTREAM)?;
        let address = listener.local_addr().context(NO_UPSTREAM)?;
        let serving = tokio::spawn(serve(listener, Arc::new(config)));
        let (root_pem, leaf_pem, key_pem) =
            (pem("CERTIFICATE", root.der()), pem("CERTIFICATE", leaf.der()), pem("PRIVATE KEY", &key.serialize_der()));
        Ok(Outside { address, root: root.der().clone(), root_pem, leaf_pem, key_pem, serving })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The way without anything between.
    pub(super) fn direct(&self) -> Outcome<Way> {
        Way::new(self.address, READ, self.address.port()).trusting(self.root.clone())
    }
}

/// As RFC 7468 has it.
fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for (number, letter) in STANDARD.encode(der).chars().enumerate() {
        if number > 0 && number.is_multiple_of(64) {
            text.push('\n');
        }
        text.push(letter);
    }
    text + &format!("\n-----END {label}-----\n")
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

async fn serve(listener: TcpListener, config: Arc<ServerConfig>) {
    // Its connections end with their clients.
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = TlsAcceptor::from(Arc::clone(&config));
        tokio::spawn(async move {
            if stream.set_nodelay(true).is_ok()
                && let Ok(stream) = acceptor.accept(stream).await
            {
                // A client that leaves in the middle of an answer is none of ours to report.
                let _ = respond(stream).await;
            }
        });
    }
}

async fn respond(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let small =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {SMALL}\r\n\r\n{}", "x".repeat(SMALL));
    let mut read = vec![0; 8192];
    let mut length = 0;
    loop {
        let more = stream.read(&mut read[length..]).await?;
        if more == 0 {
            return Ok(());
        }
        length += more;
        if !read[..length].ends_with(b"\r\n\r\n") {
            continue;
        }
        if read.starts_with(b"GET /v1/large ") {
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes()).await?;
            let piece = vec![b'x'; PIECE];
            for _ in 0..LARGE / PIECE as u64 {
                stream.write_all(&piece).await?;
            }
        } else {
            stream.write_all(small.as_bytes()).await?;
        }
        stream.flush().await?;
        length = 0;
    }
}

impl Way {
    pub(super) fn new(address: SocketAddr, host: &'static str, port: u16) -> Way {
        Way { address, through: None, host, port, roots: RootCertStore::empty(), config: None }
    }

    /// Asks what is at its beginning for a tunnel to there.
    pub(super) fn through(mut self, target: String) -> Way {
        self.through = Some(target);
        self
    }

    /// Takes certificates of this authority.
    pub(super) fn trusting(mut self, root: CertificateDer<'static>) -> Outcome<Way> {
        let what = "the bench's client cannot be set up";
        self.roots.add(root).context(what)?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .context(what)?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Each connection is as the first one.
        config.resumption = rustls::client::Resumption::disabled();
        self.config = Some(Arc::new(config));
        Ok(self)
    }

    pub(super) fn trusting_pem(self, root: &str) -> Outcome<Way> {
        let root = CertificateDer::from_pem_slice(root.as_bytes());
        self.trusting(root.context("a certificate for the bench's client cannot be read")?)
    }

    /// A request for a usual answer, with one field more if there is one.
    pub(super) fn request(&self, more: &str) -> Vec<u8> {
        let (host, port) = (self.host, self.port);
        format!("GET /v1/x HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: bench\r\nAccept: */*\r\n{more}\r\n")
            .into_bytes()
    }

    /// A connection.
    pub(super) async fn open(&self) -> Outcome<Stream> {
        let what = || format!("{} cannot be reached", self.host);
        let mut stream = TcpStream::connect(self.address).await.context(what())?;
        stream.set_nodelay(true).context(what())?;
        if let Some(target) = &self.through {
            tunnel(&mut stream, target).await.map_err(|why| Failure::new(what()).why(why))?;
        }
        let config = self.config.clone().ok_or_else(|| Failure::new(what()).why("it trusts nobody"))?;
        let name = ServerName::try_from(self.host).context(what())?;
        let stream = TlsConnector::from(config).connect(name, stream).await.context(what())?;
        Ok(Stream { stream, buffer: vec![0; PIECE] })
    }
}

/// Asks for a tunnel.
async fn tunnel(stream: &mut TcpStream, target: &str) -> io::Result<()> {
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
    let mut head = [0; 1024];
    let mut length = 0;
    while !head[..length].ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut head[length..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length += read;
    }
    if head.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    let line = String::from_utf8_lossy(&head[..length]);
    Err(io::Error::other(line.lines().next().unwrap_or_default().to_owned()))
}

/// A connection to the upstream.
pub(super) struct Stream {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Stream {
    /// Sends a request and reads its usual answer.
    pub(super) async fn ask(&mut self, request: &[u8]) -> Outcome<Duration> {
        let began = Instant::now();
        self.stream.write_all(request).await.context(NO_ANSWER)?;
        self.stream.flush().await.context(NO_ANSWER)?;
        let mut length = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[length..]).await.context(NO_ANSWER)?;
            if read == 0 {
                return Err(Failure::new(NO_ANSWER).why("it breaks off"));
            }
            length += read;
            let answer = &self.buffer[..length];
            if !answer.starts_with(b"HTTP/1.1 200 ") && length >= 13 {
                let line = String::from_utf8_lossy(answer);
                return Err(Failure::new(NO_ANSWER).why(line.lines().next().unwrap_or_default()));
            }
            let head = memchr::memmem::find(answer, b"\r\n\r\n");
            if head.is_some_and(|head| length >= head + 4 + SMALL) {
                return Ok(began.elapsed());
            }
        }
    }

    /// Reads a large answer; as many bits of it as came in a second, in 10^9.
    pub(super) async fn transfer(&mut self, way: &Way) -> Outcome<f64> {
        let request = format!("GET /v1/large HTTP/1.1\r\nHost: {}:{}\r\n\r\n", way.host, way.port);
        let began = Instant::now();
        self.stream.write_all(request.as_bytes()).await.context(NO_ANSWER)?;
        self.stream.flush().await.context(NO_ANSWER)?;
        let mut left = LARGE;
        while left > 0 {
            let read = self.stream.read(&mut self.buffer).await.context(NO_ANSWER)?;
            if read == 0 {
                return Err(Failure::new(NO_ANSWER).why("it breaks off"));
            }
            left = left.saturating_sub(read as u64);
        }
        Ok(LARGE as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9)
    }
}
