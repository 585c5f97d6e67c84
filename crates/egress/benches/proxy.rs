//! What the way out costs: `cargo bench -p palisade-egress --bench proxy`.
//!
//! The proxy runs in a process of its own, the client and the upstream in this one; all are on this machine's loopback and share
//! its cores, so that what is measured includes the work of all three. The trail is one that keeps nothing: what keeping costs
//! is measured with the trail itself. Arguments choose measurements by name: `latency throughput fresh transfer sessions`.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::io::{self, BufRead as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use base64::Engine as _;
use palisade_egress::broker::{Broker, Mint};
use palisade_egress::policy::Policy;
use palisade_egress::proxy::{Listeners, Options, Resolver, Service, SessionSpec};
use palisade_egress::{Entry, Outcome, Trail, TrailError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const SMALL: usize = 1024;
const LARGE: u64 = 1 << 30;
const SESSIONS: usize = 1000;
const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;

fn main() {
    descriptors();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match arguments.first().map(String::as_str) {
        Some("child") => runtime.block_on(child(&arguments[1..])),
        _ => runtime.block_on(measure(&arguments)),
    }
}

/// A thousand sessions have a few thousand sockets.
fn descriptors() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
}

/// Keeps nothing.
#[derive(Debug, Default)]
struct Nowhere(AtomicU64);

#[async_trait]
impl Trail for Nowhere {
    async fn begin(&self, _: &Entry) -> Result<u64, TrailError> {
        Ok(self.0.fetch_add(1, Relaxed))
    }

    async fn end(&self, _: u64, _: &Outcome) -> Result<(), TrailError> {
        Ok(())
    }
}

/// Every name is this machine.
#[derive(Debug)]
struct Here;

#[async_trait]
impl Resolver for Here {
    async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }
}

/// The proxy: so many sessions, to an upstream at a port, with a root. Prints one line for each session, then answers each line
/// on its input with the memory that it uses.
async fn child(arguments: &[String]) {
    let (sessions, port) = (arguments[0].parse::<usize>().unwrap(), &arguments[1]);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(BASE64.decode(&arguments[2]).unwrap())).unwrap();
    let mut options = Options::new(Arc::new(Nowhere::default()), Arc::new(roots));
    options.resolver = Arc::new(Here);
    let service = Service::new(options).unwrap();
    let policy = format!(
        "rules:\n- {{name: read, host: read.test, address: 127.0.0.1, ports: {port}, methods: [GET, POST], paths: [/v1/]}}\n- \
         {{name: pass, host: pass.test, address: 127.0.0.1, ports: {port}}}\n"
    );
    let policy = Arc::new(Policy::parse(&policy).unwrap());
    #[expect(clippy::disallowed_methods, reason = "the certificates of a benchmark are valid now")]
    let now = SystemTime::now();
    let mint = Mint::from_key(&[7; 32]);
    let mut kept = Vec::new();
    println!("memory {}", resident());
    for number in 0..sessions {
        let session = format!("sesn_{number}");
        let broker = Arc::new(Broker::new(&mint, &session, Vec::new()).unwrap());
        let spec = SessionSpec { session, policy: Arc::clone(&policy), broker, now };
        let prepared = service.prepare(spec).unwrap();
        let tcp = || StdTcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = Listeners {
            proxy: tcp(),
            transparent: tcp(),
            dns_tcp: tcp(),
            dns_udp: StdUdpSocket::bind("127.0.0.1:0").unwrap(),
        };
        println!("{} {}", listeners.proxy.local_addr().unwrap(), BASE64.encode(prepared.ca_pem()));
        kept.push(prepared.serve(listeners).unwrap());
    }
    tokio::task::spawn_blocking(|| {
        for _ in io::stdin().lines() {
            println!("{} {}", resident(), processor());
            io::stdout().flush().unwrap();
        }
    })
    .await
    .unwrap();
}

/// KiB of memory that this process uses.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Hundredths of seconds of processor time that this process has used.
fn processor() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The proxy, as this process sees it.
struct Proxy {
    process: Child,
    input: ChildStdin,
    output: io::Lines<io::BufReader<std::process::ChildStdout>>,
    base: u64,
    sessions: Vec<(SocketAddr, Arc<ClientConfig>)>,
}

impl Proxy {
    fn start(sessions: usize, upstream: SocketAddr, root: &CertificateDer<'_>) -> Proxy {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child", &sessions.to_string(), &upstream.port().to_string(), &BASE64.encode(root)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let mut output = io::BufReader::new(process.stdout.take().unwrap()).lines();
        let base = output.next().unwrap().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let sessions = (0..sessions)
            .map(|_| {
                let line = output.next().unwrap().unwrap();
                let (address, pem) = line.split_once(' ').unwrap();
                let root = CertificateDer::from_pem_slice(&BASE64.decode(pem).unwrap()).unwrap();
                (address.parse().unwrap(), client(root))
            })
            .collect();
        Proxy { process, input, output, base, sessions }
    }

    /// KiB of memory, and hundredths of seconds of processor time.
    fn usage(&mut self) -> (u64, u64) {
        writeln!(self.input).unwrap();
        let line = self.output.next().unwrap().unwrap();
        let (memory, time) = line.split_once(' ').unwrap();
        (memory.parse().unwrap(), time.parse().unwrap())
    }

    /// A tunnel of a session.
    async fn tunnel(&self, session: usize, host: &str, port: u16) -> TcpStream {
        let mut stream = TcpStream::connect(self.sessions[session].0).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .write_all(format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut head = [0; 256];
        let mut length = 0;
        while !head[..length].ends_with(b"\r\n\r\n") {
            let read = stream.read(&mut head[length..]).await.unwrap();
            assert!(read > 0);
            length += read;
        }
        assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
        stream
    }

    async fn intercepted(&self, session: usize, port: u16) -> TlsStream<TcpStream> {
        secure(self.tunnel(session, "read.test", port).await, "read.test", &self.sessions[session].1).await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client(root: CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

async fn secure(stream: TcpStream, host: &str, config: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await.unwrap()
}

/// An upstream: 1 KiB for each request, or a lot for `/v1/large`.
async fn upstream() -> (SocketAddr, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["read.test".to_owned(), "pass.test".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap().der().clone();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let acceptor = TlsAcceptor::from(Arc::clone(&config));
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = respond(stream).await;
                }
            });
        }
    });
    (address, root)
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
        if read.starts_with(b"GET /v1/large") {
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes()).await?;
            let piece = vec![b'x'; 256 * 1024];
            for _ in 0..LARGE / piece.len() as u64 {
                stream.write_all(&piece).await?;
            }
        } else {
            stream.write_all(small.as_bytes()).await?;
        }
        stream.flush().await?;
        length = 0;
    }
}

/// Sends a request and reads its answer.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8], buffer: &mut [u8]) {
    stream.write_all(request).await.unwrap();
    stream.flush().await.unwrap();
    let mut length = 0;
    loop {
        let read = stream.read(&mut buffer[length..]).await.unwrap();
        assert!(read > 0, "the answer breaks off");
        length += read;
        if let Some(head) = buffer[..length].windows(4).position(|four| four == b"\r\n\r\n")
            && length >= head + 4 + SMALL
        {
            assert!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buffer[..length]));
            return;
        }
    }
}

/// Reads a large answer; the bits of it per second, in 10^9.
async fn transfer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> f64 {
    stream.write_all(request).await.unwrap();
    stream.flush().await.unwrap();
    let mut buffer = vec![0; 256 * 1024];
    let began = Instant::now();
    let mut left = LARGE;
    while left > 0 {
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "the answer breaks off");
        left = left.saturating_sub(read as u64);
    }
    LARGE as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9
}

fn quantile(samples: &mut [Duration], part: f64) -> f64 {
    samples.sort_unstable();
    samples[((samples.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6
}

async fn latencies(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> Vec<Duration> {
    let mut buffer = vec![0; 4096];
    for _ in 0..500 {
        ask(stream, request, &mut buffer).await;
    }
    let mut samples = Vec::with_capacity(5000);
    for _ in 0..5000 {
        let began = Instant::now();
        ask(stream, request, &mut buffer).await;
        samples.push(began.elapsed());
    }
    samples
}

async fn measure(chosen: &[String]) {
    let wants = |name: &str| chosen.is_empty() || chosen.iter().any(|one| one == name);
    let (address, root) = upstream().await;
    let port = address.port();
    let request: &'static [u8] =
        format!("GET /v1/x HTTP/1.1\r\nHost: read.test:{port}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
            .leak()
            .as_bytes();
    let large = format!("GET /v1/large HTTP/1.1\r\nHost: read.test:{port}\r\n\r\n");
    let direct = client(root.clone());
    let mut proxy = Proxy::start(1, address, &root);

    if wants("latency") {
        let mut stream = secure(TcpStream::connect(address).await.unwrap(), "read.test", &direct).await;
        let mut without = latencies(&mut stream, request).await;
        let mut stream = proxy.intercepted(0, port).await;
        let mut with = latencies(&mut stream, request).await;
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            let (without, with) = (quantile(&mut without, part), quantile(&mut with, part));
            println!(
                "egress.added_{name}_us {:.0}   ({with:.0} through the proxy, {without:.0} without)",
                with - without
            );
        }
    }
    if wants("throughput") {
        for connections in [1, 32, 128] {
            let mut tasks = Vec::new();
            let done = Arc::new(AtomicU64::new(0));
            for _ in 0..connections {
                let mut stream = proxy.intercepted(0, port).await;
                let done = Arc::clone(&done);
                tasks.push(tokio::spawn(async move {
                    let mut buffer = vec![0; 4096];
                    loop {
                        ask(&mut stream, request, &mut buffer).await;
                        done.fetch_add(1, Relaxed);
                    }
                }));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (before, began, used) = (done.load(Relaxed), Instant::now(), proxy.usage().1);
            tokio::time::sleep(Duration::from_secs(4)).await;
            let rate = (done.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
            let used = (proxy.usage().1 - used) as f64 / 100.0 / began.elapsed().as_secs_f64();
            println!(
                "egress.requests_per_s {rate:.0}   ({connections} connections, {used:.2} processors, {:.1} us of one per request)",
                used / rate * 1e6
            );
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
        }
    }
    if wants("fresh") {
        let mut buffer = vec![0; 4096];
        let mut samples = Vec::new();
        for number in 0..300 {
            let began = Instant::now();
            let mut stream = proxy.intercepted(0, port).await;
            ask(&mut stream, request, &mut buffer).await;
            if number >= 20 {
                samples.push(began.elapsed());
            }
        }
        println!("egress.fresh_connection_p50_ms {:.2}", quantile(&mut samples, 0.5) / 1e3);
    }
    if wants("transfer") {
        let mut stream = secure(TcpStream::connect(address).await.unwrap(), "read.test", &direct).await;
        println!("direct_gbit_s {:.1}", transfer(&mut stream, large.as_bytes()).await);
        let before = proxy.usage().0;
        let mut stream = secure(proxy.tunnel(0, "pass.test", port).await, "pass.test", &direct).await;
        println!("egress.pass_gbit_s {:.1}", transfer(&mut stream, large.as_bytes()).await);
        let mut stream = proxy.intercepted(0, port).await;
        println!("egress.intercept_gbit_s {:.1}", transfer(&mut stream, large.as_bytes()).await);
        println!("egress.transfer_memory_mib {:.1}", proxy.usage().0.saturating_sub(before) as f64 / 1024.0);
    }
    drop(proxy);
    if wants("sessions") {
        let began = Instant::now();
        let mut proxy = Proxy::start(SESSIONS, address, &root);
        println!("egress.prepare_ms {:.2}   (each)", began.elapsed().as_secs_f64() * 1e3 / SESSIONS as f64);
        let idle = proxy.usage().0;
        let mut open = Vec::new();
        let mut buffer = vec![0; 4096];
        for session in 0..SESSIONS {
            let mut stream = proxy.intercepted(session, port).await;
            ask(&mut stream, request, &mut buffer).await;
            open.push(stream);
        }
        let all = proxy.usage().0;
        println!(
            "egress.sessions_mib {:.0}   ({SESSIONS} with an open connection in and out; {:.0} without, {:.0} with none)",
            all as f64 / 1024.0,
            idle as f64 / 1024.0,
            proxy.base as f64 / 1024.0
        );
    }
}
