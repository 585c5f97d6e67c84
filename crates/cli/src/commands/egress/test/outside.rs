//! The outside of the suite: upstreams on loopback that keep all that comes, names that lead where attempts want, a trail.

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener as StdUnixListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use palisade_egress::broker::Mint;
use palisade_egress::proxy::{self, Resolver, Service};
use palisade_egress::{Entry, Outcome, Trail, TrailError};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UdpSocket, UnixListener};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::echo;
use crate::output::{Context as _, Failure, Outcome as Result};

/// Something that came to somebody outside.
#[derive(Debug)]
pub(super) struct Record {
    /// Whom it came to.
    pub(super) at: &'static str,
    /// Whether it is the head of what was taken for a request; else it is bytes as they came.
    pub(super) head: bool,
    pub(super) bytes: Vec<u8>,
}

/// All that came.
#[derive(Debug, Clone, Default)]
pub(super) struct Records(Arc<Mutex<Vec<Record>>>);

impl Records {
    pub(super) fn keep(&self, at: &'static str, head: bool, bytes: impl Into<Vec<u8>>) {
        let record = Record { at, head, bytes: bytes.into() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }

    /// Who has what was looked for, if anybody; `which` says what counts.
    pub(super) fn find(&self, needle: &str, which: impl Fn(&Record) -> bool) -> Option<&'static str> {
        let records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = records.iter().filter(|record| which(record));
        found.find(|record| memchr::memmem::find(&record.bytes, needle.as_bytes()).is_some()).map(|record| record.at)
    }
}

/// A stream of which all that is read is kept, as one record for each connection.
struct Kept<S> {
    stream: S,
    at: &'static str,
    read: Vec<u8>,
    records: Records,
}

impl<S> Drop for Kept<S> {
    fn drop(&mut self) {
        self.records.keep(self.at, false, std::mem::take(&mut self.read));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Kept<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let new = buf.filled()[before..].to_vec();
        if !new.is_empty() {
            self.read.extend_from_slice(&new);
            // At once as well, since a connection that is kept open ends after the attempt was judged.
            let so_far = self.read.clone();
            self.records.keep(self.at, false, so_far);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Kept<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Where names lead, and which were asked for.
#[derive(Debug)]
struct Names {
    records: Records,
    asked: Mutex<BTreeMap<String, u32>>,
}

/// `*.inside.test` leads to these addresses, by its first label.
pub(super) const INSIDE: &[(&str, &str)] = &[
    ("loopback", "127.0.0.1"),
    ("private10", "10.0.0.1"),
    ("private172", "172.16.0.1"),
    ("private192", "192.168.0.1"),
    ("metadata", "169.254.169.254"),
    ("linklocal", "169.254.1.1"),
    ("carrier", "100.64.0.1"),
    ("unspecified", "0.0.0.0"),
    ("broadcast", "255.255.255.255"),
    ("multicast", "224.0.0.251"),
    ("synthetic", "198.18.0.1"),
    ("mapped", "::ffff:127.0.0.1"),
    ("loopback6", "::1"),
    ("linklocal6", "fe80::1"),
    ("unique6", "fd00::1"),
    ("metadata6", "fd00:ec2::254"),
    ("nat64", "64:ff9b::7f00:1"),
    ("sixtofour", "2002:7f00:1::1"),
    ("compatible", "::7f00:1"),
];

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.records.keep("name server", false, name);
        let times = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let times = asked.entry(name.to_owned()).or_default();
            *times += 1;
            *times
        };
        if let Some(label) = name.strip_suffix(".inside.test") {
            let address = INSIDE.iter().find(|(known, _)| *known == label).map(|(_, address)| address.parse());
            return match address {
                Some(Ok(address)) => Ok(vec![address]),
                _ => Err(io::Error::other("there is no such name")),
            };
        }
        Ok(match name {
            // The first answer is an address that the rule names; whoever asks again gets another.
            _ if name.ends_with(".rebind.test") && times == 1 => vec![Ipv4Addr::new(127, 0, 0, 2).into()],
            _ if name.ends_with(".rebind.test") => vec![Ipv4Addr::LOCALHOST.into()],
            "mixed.test" => vec![Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(169, 254, 169, 254).into()],
            _ => vec![Ipv4Addr::LOCALHOST.into()],
        })
    }
}

/// A trail in memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    entries: Mutex<Vec<(Entry, Option<Outcome>)>>,
    broken: Mutex<HashSet<String>>,
}

impl Memory {
    /// Keeps nothing of this session from now on.
    pub(super) fn break_for(&self, session: &str) {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).insert(session.to_owned());
    }

    /// What was kept of a session.
    pub(super) fn of(&self, session: &str) -> Vec<(Entry, Option<Outcome>)> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().filter(|(entry, _)| entry.session == session).cloned().collect()
    }
}

#[async_trait]
impl Trail for Memory {
    async fn begin(&self, entry: &Entry) -> std::result::Result<u64, TrailError> {
        if self.broken.lock().unwrap_or_else(PoisonError::into_inner).contains(&entry.session) {
            return Err(TrailError("the suite wants it so".to_owned()));
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push((entry.clone(), None));
        Ok(entries.len() as u64 - 1)
    }

    async fn end(&self, _: &str, number: u64, outcome: &Outcome) -> std::result::Result<(), TrailError> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = usize::try_from(number).ok().and_then(|number| entries.get_mut(number));
        let (_, slot) = slot.ok_or_else(|| TrailError(format!("there is no entry {number}")))?;
        *slot = Some(outcome.clone());
        Ok(())
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Outside {
    pub(super) records: Records,
    pub(super) trail: Arc<Memory>,
    pub(super) service: Service,
    pub(super) mint: Mint,
    pub(super) policy: String,
    /// What patterns say of it: ports, places.
    pub(super) facts: BTreeMap<String, String>,
    _servers: JoinSet<()>,
    _directory: tempfile::TempDir,
}

/// An authority of upstream certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: RootCertStore,
}

impl Authority {
    fn new(name: &str) -> Result<Authority> {
        let what = "a certificate authority for the upstreams cannot be made";
        let key = KeyPair::generate().context(what)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let mut roots = RootCertStore::empty();
        roots.add(params.self_signed(&key).context(what)?.der().clone()).context(what)?;
        Ok(Authority { issuer: Issuer::new(params, key), roots })
    }

    /// A server with a certificate for these names, that is or is not valid any more.
    fn serve(&self, names: &[&str], valid: bool) -> Result<Arc<ServerConfig>> {
        let what = "a certificate for an upstream cannot be made";
        let key = KeyPair::generate().context(what)?;
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).context(what)?;
        let day = Duration::from_secs(24 * 3600);
        let now = super::super::now();
        params.not_before = (now - day * 30).into();
        params.not_after = if valid { now + day } else { now - day }.into();
        let leaf = params.signed_by(&key, &self.issuer).context(what)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context(what)?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .context(what)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Names that the good upstream has a certificate for.
const GOOD: &[&str] = &[
    "allowed.test",
    "api.allowed.test",
    "friend.test",
    "rated.test",
    "budget.test",
    "through.test",
    "mixed.test",
    "other.test",
    "*.inside.test",
    "*.rebind.test",
];

impl Outside {
    pub(super) async fn new() -> Result<Outside> {
        LazyLock::force(&echo::ZEROS);
        let records = Records::default();
        let what = "the suite's upstreams cannot be started";
        let authority = Authority::new("Authority of the suite's upstreams")?;
        let stranger = Authority::new("Authority that nobody trusts")?;
        let mut servers = JoinSet::new();
        let mut facts = BTreeMap::new();
        let good = authority.serve(GOOD, true)?;
        for (at, tls) in [
            ("https", Some(good)),
            ("other", Some(authority.serve(&["other.test"], true)?)),
            ("expired", Some(authority.serve(&["expired.test", "expired-through.test"], false)?)),
            ("wrong", Some(authority.serve(&["other.test"], true)?)),
            ("unknown", Some(stranger.serve(&["unknown.test"], true)?)),
            ("http", None),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.context(what)?;
            facts.insert(at.to_owned(), listener.local_addr().context(what)?.port().to_string());
            servers.spawn(serve(listener, at, tls, records.clone()));
        }
        let plain = TcpListener::bind("127.0.0.1:0").await.context(what)?;
        facts.insert("tcp".to_owned(), plain.local_addr().context(what)?.port().to_string());
        servers.spawn(sink(plain, records.clone()));
        // Before a name is rebound it leads to the first. A port that is free at one address may be taken at the other.
        let (first, second) = loop {
            let first = TcpListener::bind("127.0.0.2:0").await.context(what)?;
            let port = first.local_addr().context(what)?.port();
            match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                Ok(second) => break (first, second),
                Err(why) if why.kind() == io::ErrorKind::AddrInUse => {}
                Err(why) => return Err(Failure::new(what).why(why)),
            }
        };
        facts.insert("rebind".to_owned(), first.local_addr().context(what)?.port().to_string());
        servers.spawn(serve(first, "before", None, records.clone()));
        servers.spawn(serve(second, "rebound", None, records.clone()));
        let datagrams = UdpSocket::bind("127.0.0.1:0").await.context(what)?;
        facts.insert("udp".to_owned(), datagrams.local_addr().context(what)?.port().to_string());
        servers.spawn(receive(datagrams, records.clone()));
        let directory = tempfile::Builder::new().prefix("palisade-egress-").tempdir().context(what)?;
        let path: PathBuf = directory.path().join("socket");
        facts.insert("unix".to_owned(), path.display().to_string());
        servers.spawn(streams(UnixListener::bind(&path).context(what)?, "unix socket", records.clone()));
        let name = format!("palisade-egress-test-{}", std::process::id());
        let address = UnixAddr::from_abstract_name(&name).context(what)?;
        let listener = StdUnixListener::bind_addr(&address).context(what)?;
        listener.set_nonblocking(true).context(what)?;
        servers.spawn(streams(UnixListener::from_std(listener).context(what)?, "abstract socket", records.clone()));
        facts.insert("abstract".to_owned(), name);
        let trail = Arc::new(Memory::default());
        let mut options = proxy::Options::new(trail.clone(), Arc::new(authority.roots));
        options.resolver = Arc::new(Names { records: records.clone(), asked: Mutex::default() });
        // A machine may pause; nobody here is silent on purpose.
        options.limits.dial = Duration::from_secs(20);
        Ok(Outside {
            service: Service::new(options).context("the egress service cannot be set up")?,
            mint: Mint::new().context("placeholders cannot be made")?,
            policy: policy(&facts),
            records,
            trail,
            facts,
            _servers: servers,
            _directory: directory,
        })
    }
}

/// What all sessions of the suite may do.
fn policy(facts: &BTreeMap<String, String>) -> String {
    let mut text = POLICY.to_owned();
    for (name, value) in facts {
        text = text.replace(&format!("{{{name}}}"), value);
    }
    text
}

const POLICY: &str = r#"
rules:
  - {name: api, host: [allowed.test, api.allowed.test], address: 127.0.0.1, ports: "{https}", methods: [GET, POST],
     paths: [/v1/, /echo/], max_request_bytes: 2000}
  - {name: friend, host: friend.test, address: 127.0.0.1, ports: "{https}", intercept: true}
  - {name: rated, host: rated.test, address: 127.0.0.1, ports: "{https}", requests_per_minute: 2}
  - {name: budget, host: budget.test, address: 127.0.0.1, ports: "{https}", intercept: true, max_session_bytes: 3000}
  - {name: through, host: through.test, address: 127.0.0.1, ports: "{https}"}
  - {name: plain, host: plain.test, address: 127.0.0.1, ports: "{http}", tls: optional}
  - {name: tls, host: strict.test, address: 127.0.0.1, ports: "{http}"}
  - {name: tcp, host: tcp.test, address: 127.0.0.1, ports: "{tcp}", protocol: tcp}
  - {name: wild, host: "*.wild.test", address: 127.0.0.1, ports: "{https}", intercept: true}
  - {name: rebind, host: "*.rebind.test", address: 127.0.0.2, ports: "{rebind}", tls: optional}
  - {name: inside, host: "*.inside.test", ports: ["{https}", 80], tls: optional}
  - {name: mixed, host: mixed.test, private: true, ports: "{https}", intercept: true}
  - {name: bad, host: [expired.test, wrong.test, unknown.test], address: 127.0.0.1,
     ports: ["{expired}", "{wrong}", "{unknown}"], intercept: true}
  - {name: bad-through, host: expired-through.test, address: 127.0.0.1, ports: "{expired}"}
"#;

async fn serve(listener: TcpListener, at: &'static str, tls: Option<Arc<ServerConfig>>, records: Records) {
    let mut serving = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, records) = (tls.clone(), records.clone());
        serving.spawn(async move {
            match tls {
                None => requests(stream, at, records).await,
                Some(config) => {
                    if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                        requests(stream, at, records).await;
                    }
                }
            }
        });
        while serving.try_join_next().is_some() {}
    }
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, at: &'static str, records: Records) {
    let stream = Kept { stream, at, read: Vec::new(), records: records.clone() };
    let service = service_fn(move |request| {
        let records = records.clone();
        async move { Ok::<_, Infallible>(echo::answer(request, at, &records).await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().half_close(true);
    // Whoever breaks off has been recorded as far as it came.
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

/// Reads whatever comes on connections.
async fn sink(listener: TcpListener, records: Records) {
    let mut reading = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        reading.spawn(all(stream, "tcp", records.clone()));
        while reading.try_join_next().is_some() {}
    }
}

async fn streams(listener: UnixListener, at: &'static str, records: Records) {
    while let Ok((stream, _)) = listener.accept().await {
        all(stream, at, records.clone()).await;
    }
}

async fn all(stream: impl AsyncRead + Unpin, at: &'static str, records: Records) {
    let mut stream = Kept { stream, at, read: Vec::new(), records };
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}

async fn receive(socket: UdpSocket, records: Records) {
    let mut bytes = [0; 4096];
    while let Ok(read) = socket.recv(&mut bytes).await {
        records.keep("datagrams", false, &bytes[..read]);
    }
}

/// The time of sessions' certificates.
pub(super) fn now() -> SystemTime {
    super::super::now()
}
