//! What the tests of the proxy stand on: upstreams, a resolver, a trail, and a session with its clients.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use palisade_api::Secret;
use palisade_egress::broker::{Broker, Credential, Hosts, Mint};
use palisade_egress::policy::Policy;
use palisade_egress::proxy::{Limits, Listeners, Options, Resolver, Service, Session, SessionSpec};
use palisade_egress::{Entry, Outcome, Supply, SupplyError, Trail, TrailError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The longest that anything here may take. Nothing waits so long unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.expect("it takes too long")
}

/// Waits until something holds.
pub(crate) async fn until(what: impl Fn() -> bool) {
    in_time(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

static AUTHORITIES: AtomicU64 = AtomicU64::new(0);

/// An authority of upstream certificates.
pub(crate) struct TestCa {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) der: CertificateDer<'static>,
}

impl TestCa {
    pub(crate) fn new() -> TestCa {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Each its own, so that none is taken for another.
        let number = AUTHORITIES.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("Test authority {number}"));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let der = params.self_signed(&key).unwrap().der().clone();
        TestCa { issuer: Issuer::new(params, key), der }
    }

    /// A server's configuration with a certificate for `names`, valid for so many days from now.
    pub(crate) fn serve(&self, names: &[&str], days: i64, alpn: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        let day = Duration::from_secs(24 * 3600);
        #[expect(clippy::disallowed_methods, reason = "a test's certificates are valid now")]
        let now = SystemTime::now();
        params.not_before = (now - day * 30).into();
        params.not_after = if days < 0 {
            (now - day * u32::try_from(-days).unwrap()).into()
        } else {
            (now + day * u32::try_from(days).unwrap()).into()
        };
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

pub(crate) type TestBody = BoxBody<Bytes, io::Error>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> TestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// What an upstream has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: Mutex<Vec<(String, HeaderMap, Bytes)>>,
    pub(crate) go_on: Notify,
}

/// A server that answers by path.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
}

impl Upstream {
    pub(crate) async fn start(tls: Option<Arc<ServerConfig>>) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let (tls, seen) = (tls.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    match tls {
                        Some(config) => {
                            let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
                            serve(stream, seen).await;
                        }
                        None => serve(stream, seen).await,
                    }
                });
            }
        });
        Upstream { address, seen }
    }

    pub(crate) fn requests(&self) -> Vec<(String, HeaderMap, Bytes)> {
        self.seen.requests.lock().unwrap().clone()
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, seen: Arc<Seen>) {
    let service = hyper::service::service_fn(move |request| respond(request, Arc::clone(&seen)));
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().half_close(true);
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

async fn respond(mut request: Request<Incoming>, seen: Arc<Seen>) -> Result<Response<TestBody>, io::Error> {
    let path = request.uri().path().to_owned();
    let target = format!("{} {}", request.method(), request.uri());
    let headers = request.headers().clone();
    let keep = |body: Bytes| seen.requests.lock().unwrap().push((target.clone(), headers.clone(), body));
    let broken = || io::Error::other("the upstream breaks off");
    match path.as_str() {
        "/events" => {
            keep(Bytes::new());
            let (send, receive) = mpsc::channel(4);
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                for number in 0..3 {
                    let event = Bytes::from(format!("data: {number}\n\n"));
                    if send.send(Ok(Frame::data(event))).await.is_err() {
                        return;
                    }
                    seen.go_on.notified().await;
                }
            });
            let body = StreamBody::new(receiver(receive));
            let response = Response::builder().header("content-type", "text/event-stream");
            Ok(response.body(BodyExt::boxed(body)).unwrap())
        }
        "/trailers" => {
            let read = request.body_mut().collect().await.map_err(io::Error::other)?;
            let sent = read.trailers().and_then(|trailers| trailers.get("x-sent")).cloned();
            keep(read.to_bytes());
            let (send, receive) = mpsc::channel(4);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.extend(sent.map(|sent| ("x-sent".parse::<http::HeaderName>().unwrap(), sent)));
            send.send(Ok(Frame::data(Bytes::from_static(b"message")))).await.unwrap();
            send.send(Ok(Frame::trailers(trailers))).await.unwrap();
            Ok(Response::new(BodyExt::boxed(StreamBody::new(receiver(receive)))))
        }
        "/socket" => {
            keep(Bytes::new());
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut bytes = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    stream.write_all(&bytes[..length]).await.unwrap();
                }
                stream.shutdown().await
            });
            let response =
                Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
            Ok(response.body(full("")).unwrap())
        }
        "/nothing" => {
            keep(Bytes::new());
            Ok(Response::builder().status(StatusCode::NO_CONTENT).body(full("")).unwrap())
        }
        "/unmodified" => {
            keep(Bytes::new());
            Ok(Response::builder().status(StatusCode::NOT_MODIFIED).header("etag", "\"x\"").body(full("")).unwrap())
        }
        "/cut" => {
            keep(Bytes::new());
            let (send, receive) = mpsc::channel(4);
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                send.send(Ok(Frame::data(Bytes::from_static(b"half")))).await.unwrap();
                seen.go_on.notified().await;
                send.send(Err(broken())).await.unwrap();
            });
            Ok(Response::new(BodyExt::boxed(StreamBody::new(receiver(receive)))))
        }
        "/reset" => {
            keep(Bytes::new());
            Err(broken())
        }
        "/alternative" => {
            keep(Bytes::new());
            let response =
                Response::builder().header("alt-svc", "h3=\":443\"").header("connection", "x-hop").header("x-hop", "1");
            Ok(response.body(full("ok")).unwrap())
        }
        _ => {
            let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
            keep(body.clone());
            let mut response = Response::new(full(body));
            for (name, value) in &headers {
                if let Some(name) = name.as_str().strip_prefix("x-give-") {
                    response.headers_mut().insert(name.parse::<http::HeaderName>().unwrap(), value.clone());
                }
            }
            Ok(response)
        }
    }
}

fn receiver<T>(mut receive: mpsc::Receiver<T>) -> impl futures::Stream<Item = T> {
    futures::stream::poll_fn(move |cx| receive.poll_recv(cx))
}

/// Keeps entries, and can be broken.
#[derive(Debug, Default)]
pub(crate) struct TestTrail {
    pub(crate) entries: Mutex<Vec<(Entry, Option<Outcome>)>>,
    pub(crate) broken: AtomicBool,
}

#[async_trait]
impl Trail for TestTrail {
    async fn begin(&self, entry: &Entry) -> Result<u64, TrailError> {
        tokio::task::yield_now().await;
        if self.broken.load(Ordering::Relaxed) {
            return Err(TrailError("the disk is full".to_owned()));
        }
        let mut entries = self.entries.lock().unwrap();
        entries.push((entry.clone(), None));
        Ok(entries.len() as u64 - 1)
    }

    async fn end(&self, _: &str, number: u64, outcome: &Outcome) -> Result<(), TrailError> {
        tokio::task::yield_now().await;
        let mut entries = self.entries.lock().unwrap();
        let (_, slot) = &mut entries[usize::try_from(number).unwrap()];
        assert!(slot.replace(outcome.clone()).is_none(), "it has ended twice");
        Ok(())
    }
}

impl TestTrail {
    pub(crate) fn all(&self) -> Vec<(Entry, Option<Outcome>)> {
        self.entries.lock().unwrap().clone()
    }

    /// The entry so far, once all have ended.
    pub(crate) async fn only(&self) -> (Entry, Outcome) {
        until(|| self.all().first().is_some_and(|(_, outcome)| outcome.is_some())).await;
        let all = self.all();
        assert_eq!(all.len(), 1, "{all:#?}");
        let (entry, outcome) = all.into_iter().next().unwrap();
        (entry, outcome.unwrap())
    }

    /// Reasons of refusals so far.
    pub(crate) fn reasons(&self) -> Vec<&'static str> {
        self.all().into_iter().filter(|(entry, _)| !entry.allowed).filter_map(|(entry, _)| entry.reason).collect()
    }
}

/// Knows what it is told; everything else is on this machine.
#[derive(Debug, Default)]
pub(crate) struct TestResolver(pub(crate) Mutex<HashMap<String, Vec<IpAddr>>>);

#[async_trait]
impl Resolver for TestResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let known = self.0.lock().unwrap();
        Ok(known.get(name).cloned().unwrap_or_else(|| vec![Ipv4Addr::LOCALHOST.into()]))
    }
}

/// A value that does not change.
#[derive(Debug)]
struct Fixed(Arc<Secret>);

#[async_trait]
impl Supply for Fixed {
    async fn value(&self) -> Result<Arc<Secret>, SupplyError> {
        Ok(Arc::clone(&self.0))
    }
}

pub(crate) fn credential(reference: &str, variable: &str, hosts: &[&str], value: &str) -> Credential {
    let supply = Arc::new(Fixed(Arc::new(Secret::new(value))));
    Credential::new(reference, variable, Hosts::limited(hosts).unwrap(), supply)
}

/// A session that is served, and what is around it.
pub(crate) struct World {
    pub(crate) ca: TestCa,
    pub(crate) trail: Arc<TestTrail>,
    pub(crate) resolver: Arc<TestResolver>,
    pub(crate) session: Option<Session>,
    pub(crate) environment: HashMap<String, String>,
    destinations: Arc<Mutex<HashMap<SocketAddr, SocketAddr>>>,
    proxy: SocketAddr,
    transparent: SocketAddr,
    dns: SocketAddr,
    dns_tcp: SocketAddr,
    pub(crate) ca_pem: String,
}

pub(crate) struct Setup {
    pub(crate) ca: TestCa,
    pub(crate) policy: String,
    pub(crate) credentials: Vec<Credential>,
    pub(crate) limits: Limits,
}

impl Setup {
    pub(crate) fn new(ca: TestCa, policy: impl Into<String>) -> Setup {
        Setup { ca, policy: policy.into(), credentials: Vec::new(), limits: Limits::default() }
    }

    pub(crate) fn serve(self) -> World {
        let Setup { ca, policy, credentials, limits } = self;
        let policy = Policy::parse(&policy).unwrap();
        let broker = Broker::new(&Mint::from_key(&[7; 32]), "sesn_1", credentials).unwrap();
        let environment = broker.environment().into_iter().collect();
        let trail = Arc::new(TestTrail::default());
        let resolver = Arc::new(TestResolver::default());
        let mut roots = RootCertStore::empty();
        roots.add(ca.der.clone()).unwrap();
        let destinations = Arc::new(Mutex::new(HashMap::new()));
        let mut options = Options::new(Arc::clone(&trail) as Arc<dyn Trail>, Arc::new(roots));
        options.resolver = Arc::clone(&resolver) as Arc<dyn Resolver>;
        options.limits = limits;
        let known = Arc::clone(&destinations);
        options.destination = Arc::new(move |stream: &TcpStream| {
            let peer = stream.peer_addr()?;
            known.lock().unwrap().get(&peer).copied().ok_or_else(|| io::Error::other("it was not redirected"))
        });
        let service = Service::new(options).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test's certificates are valid now")]
        let now = SystemTime::now();
        let spec = SessionSpec {
            session: "sesn_1".to_owned(),
            policy: Arc::new(policy),
            broker: Arc::new(broker),
            ssh_keys: Vec::new(),
            now,
        };
        let prepared = service.prepare(spec).unwrap();
        let tcp = || StdTcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = Listeners {
            proxy: tcp(),
            transparent: tcp(),
            dns_tcp: tcp(),
            dns_udp: StdUdpSocket::bind("127.0.0.1:0").unwrap(),
            ssh_agent: None,
        };
        let (proxy, transparent) = (listeners.proxy.local_addr().unwrap(), listeners.transparent.local_addr().unwrap());
        let (dns, dns_tcp) = (listeners.dns_udp.local_addr().unwrap(), listeners.dns_tcp.local_addr().unwrap());
        let ca_pem = prepared.ca_pem().to_owned();
        let session = Some(prepared.serve(listeners).unwrap());
        World { ca, trail, resolver, session, environment, destinations, proxy, transparent, dns, dns_tcp, ca_pem }
    }
}

impl World {
    /// A client's configuration that trusts the session's authority.
    pub(crate) fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        client(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap(), alpn)
    }

    /// A client's configuration that trusts the upstreams' authority only.
    pub(crate) fn stranger(&self) -> Arc<ClientConfig> {
        client(self.ca.der.clone(), &["http/1.1"])
    }

    /// A connection to the explicit proxy.
    pub(crate) async fn dial_proxy(&self) -> TcpStream {
        in_time(TcpStream::connect(self.proxy)).await.unwrap()
    }

    /// A connection that was redirected on its way to `to`.
    pub(crate) async fn redirected(&self, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        self.destinations.lock().unwrap().insert(socket.local_addr().unwrap(), to);
        in_time(socket.connect(self.transparent)).await.unwrap()
    }

    /// A connection to a name, as a program makes one that knows of no proxy.
    pub(crate) async fn dial(&self, name: &str, port: u16) -> TcpStream {
        let address = self.lookup(name).await.expect("the name is known");
        self.redirected(SocketAddr::new(address, port)).await
    }

    /// What the session's resolver says of a name.
    pub(crate) async fn lookup(&self, name: &str) -> Option<IpAddr> {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&query(name), self.dns).await.unwrap();
        let mut reply = [0; 600];
        let (length, _) = in_time(socket.recv_from(&mut reply)).await.unwrap();
        address(&reply[..length])
    }

    /// The same over TCP.
    pub(crate) async fn lookup_tcp(&self, name: &str) -> Option<IpAddr> {
        let mut stream = TcpStream::connect(self.dns_tcp).await.unwrap();
        stream.write_all(&palisade_egress::dns::tcp::frame(&query(name))).await.unwrap();
        let length = in_time(stream.read_u16()).await.unwrap();
        let mut reply = vec![0; length.into()];
        in_time(stream.read_exact(&mut reply)).await.unwrap();
        address(&reply)
    }

    /// Asks the proxy for a tunnel. The head of its answer, when it is no tunnel.
    pub(crate) async fn tunnel(&self, to: &str) -> Result<TcpStream, String> {
        let mut stream = self.dial_proxy().await;
        stream
            .write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let head = head(&mut stream).await;
        if head.starts_with("HTTP/1.1 200 ") { Ok(stream) } else { Err(head + &rest(&mut stream).await) }
    }

    /// A tunnel with TLS that trusts the session's authority.
    pub(crate) async fn secure(&self, host: &str, port: u16, alpn: &[&str]) -> Tls {
        let stream = self.tunnel(&format!("{host}:{port}")).await.unwrap();
        handshake(stream, host, self.client(alpn)).await.unwrap()
    }

    /// Ends the session. All that began has ended then.
    pub(crate) async fn close(mut self) -> Arc<TestTrail> {
        in_time(self.session.take().unwrap().close()).await;
        for (entry, outcome) in self.trail.all() {
            assert!(outcome.is_some(), "it has no end: {entry:?}");
        }
        Arc::clone(&self.trail)
    }

    pub(crate) fn counters(&self) -> palisade_egress::proxy::Counters {
        self.session.as_ref().unwrap().counters()
    }
}

pub(crate) type Tls = tokio_rustls::client::TlsStream<TcpStream>;

fn client(root: CertificateDer<'static>, alpn: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

pub(crate) async fn handshake(stream: TcpStream, host: &str, config: Arc<ClientConfig>) -> io::Result<Tls> {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    in_time(TlsConnector::from(config).connect(name, stream)).await
}

/// The head of an HTTP message.
pub(crate) async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match in_time(stream.read_u8()).await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Whatever comes until the end.
pub(crate) async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut rest = Vec::new();
    let _ = in_time(stream.read_to_end(&mut rest)).await;
    String::from_utf8_lossy(&rest).into_owned()
}

/// Sends bytes and reads all that comes back.
pub(crate) async fn say(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> String {
    // Whoever refuses may close before all is read.
    let _ = in_time(stream.write_all(bytes)).await;
    let _ = in_time(stream.flush()).await;
    rest(stream).await
}

pub(crate) async fn one(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> http1::SendRequest<TestBody> {
    let (sender, connection) = in_time(http1::handshake(TokioIo::new(stream))).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

pub(crate) async fn two(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> http2::SendRequest<TestBody> {
    let (sender, connection) = in_time(http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends a request over HTTP/1.1 and reads the answer to its end.
pub(crate) async fn ask(
    sender: &mut http1::SendRequest<TestBody>,
    request: http::request::Builder,
    body: TestBody,
) -> (http::response::Parts, Bytes) {
    in_time(sender.ready()).await.unwrap();
    let response = in_time(sender.send_request(request.body(body).unwrap())).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts, in_time(body.collect()).await.unwrap().to_bytes())
}

/// The reason that an answer of the proxy states, in its header and in its body alike.
pub(crate) fn reason(parts: &http::response::Parts, body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap();
    let reason = document["error"]["reason"].as_str().unwrap().to_owned();
    assert_eq!(parts.headers["x-palisade-reason"], reason.as_str());
    assert!(document["error"]["message"].as_str().is_some_and(|message| message.len() > 20));
    reason
}

fn query(name: &str) -> Vec<u8> {
    let mut message = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

fn address(reply: &[u8]) -> Option<IpAddr> {
    let found = reply[7] == 1;
    found.then(|| IpAddr::from(<[u8; 4]>::try_from(&reply[reply.len() - 4..]).unwrap()))
}
