//! What runs inside the sandbox: one attempt, by a program that does whatever the kernel lets it.
//!
//! It tells in a line for each act what it heard and which error it met. Nothing of that is believed but what harms the attempt.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use palisade_sandbox::{PROXY, RESOLVER};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, netlink};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::attempt::{Act, Kind, Look, Query, Talk, Two};

/// Where the program is inside.
pub(super) const PROGRAM: &str = "/run/palisade/attempt";
/// The variable that holds the facts of an attempt.
pub(super) const FACTS: &str = "PALISADE_ATTEMPT";
/// Without a byte for so long, nothing more is waited for.
const QUIET: Duration = Duration::from_secs(5);
/// What is kept of the beginning of an answer, and of its end.
const MOST: usize = 512 << 10;

/// What became of an act.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Heard {
    /// What came, in base64.
    pub(super) said: String,
    /// What went wrong.
    pub(super) error: Option<String>,
    /// The number of the system's error, if it was one.
    pub(super) errno: Option<i32>,
}

impl Heard {
    /// Whether the connection ended where more was waited for.
    pub(super) fn is_end(&self) -> bool {
        self.errno.is_none() && self.error.as_deref().is_some_and(|error| error.contains("eof"))
    }

    /// What came.
    pub(super) fn bytes(&self) -> Vec<u8> {
        STANDARD.decode(&self.said).unwrap_or_default()
    }
}

/// Puts facts into a pattern. Escapes are for bytes that no text holds.
fn fill(pattern: &str, facts: &BTreeMap<String, String>) -> String {
    let mut text = pattern.to_owned();
    // Facts are made of others at most once.
    for (name, value) in facts {
        let name = format!("{{{name}}}");
        if text.contains(&name) {
            text = text.replace(&name, value);
        }
    }
    text
}

/// Makes one attempt.
pub(super) async fn attempt(acts: &[Act], facts: &BTreeMap<String, String>, mut tell: impl FnMut(&Heard)) {
    let mut known = HashMap::new();
    for act in acts {
        let mut heard = Vec::new();
        let ended = one(act, facts, &mut known, &mut heard).await;
        let error = ended.err();
        tell(&Heard {
            said: STANDARD.encode(&heard),
            errno: error.as_ref().and_then(io::Error::raw_os_error),
            error: error.map(|error| error.to_string()),
        });
    }
}

async fn one(
    act: &Act,
    facts: &BTreeMap<String, String>,
    known: &mut HashMap<String, SocketAddr>,
    heard: &mut Vec<u8>,
) -> io::Result<()> {
    match act {
        Act::Talk(talk) => converse(talk, facts, known, heard).await,
        Act::Two(two) => streams(two, facts, known, heard).await,
        Act::Query(query) => ask(query, facts, heard).await,
        Act::Datagram(to) => datagram(&fill(to, facts), facts),
        Act::Socket(kind) => socket(*kind, facts, heard),
        Act::Look(look) => self::look(*look, heard),
    }
}

/// Looks a name up as every program does, once.
async fn resolve(to: &str, known: &mut HashMap<String, SocketAddr>) -> io::Result<SocketAddr> {
    if to == "proxy" {
        return Ok(PROXY);
    }
    if let Some(address) = known.get(to) {
        return Ok(*address);
    }
    let text = to.to_owned();
    let found = tokio::task::spawn_blocking(move || text.to_socket_addrs()).await.map_err(io::Error::other)??;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    let address = found.first().copied().ok_or_else(|| io::Error::other("it has no address"))?;
    known.insert(to.to_owned(), address);
    Ok(address)
}

async fn converse(
    talk: &Talk,
    facts: &BTreeMap<String, String>,
    known: &mut HashMap<String, SocketAddr>,
    heard: &mut Vec<u8>,
) -> io::Result<()> {
    let address = resolve(&fill(&talk.to, facts), known).await?;
    let mut stream = tokio::time::timeout(QUIET, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    if let Some(head) = &talk.connect {
        stream.write_all(fill(head, facts).as_bytes()).await?;
        while !heard.ends_with(b"\r\n\r\n") {
            let byte = tokio::time::timeout(QUIET, stream.read_u8()).await??;
            heard.push(byte);
        }
        if !heard.starts_with(b"HTTP/1.1 200") {
            return listen(&mut stream, heard).await;
        }
    }
    let says: Vec<String> = talk.says.iter().map(|piece| fill(piece, facts)).collect();
    match &talk.tls {
        None => exchange(&mut stream, &says, heard).await,
        Some(name) => {
            let name = name.as_ref().map(|name| fill(name, facts));
            let mut stream = handshake(stream, name.as_deref(), "http/1.1").await?;
            exchange(&mut stream, &says, heard).await
        }
    }
}

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    says: &[String],
    heard: &mut Vec<u8>,
) -> io::Result<()> {
    let mut refused = Ok(());
    for piece in says {
        refused = stream.write_all(piece.as_bytes()).await;
        if refused.is_ok() {
            refused = stream.flush().await;
        }
        // Whoever refuses may have closed: what it said is still to be read.
        if refused.is_err() {
            break;
        }
        // Each piece is to be in a packet of its own.
        tokio::task::yield_now().await;
    }
    // The system tells of a reset once, to whichever call comes first.
    listen(stream, heard).await.and(refused)
}

/// Reads until the end, or until nothing comes any more.
async fn listen(stream: &mut (impl AsyncRead + Unpin), heard: &mut Vec<u8>) -> io::Result<()> {
    loop {
        match tokio::time::timeout(QUIET, stream.read_buf(heard)).await {
            Ok(Ok(0)) => return Ok(()),
            Err(_) => return Err(io::Error::other("nothing more is said")),
            Ok(Ok(_)) if heard.len() > 4 * MOST => drop(heard.drain(MOST..heard.len() - MOST)),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}

/// Takes every certificate: whoever attacks does not mind.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn handshake(
    stream: TcpStream,
    name: Option<&str>,
    alpn: &str,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config.enable_sni = name.is_some();
    let name = ServerName::try_from(name.unwrap_or("nobody.test").to_owned()).map_err(io::Error::other)?;
    tokio::time::timeout(QUIET, TlsConnector::from(Arc::new(config)).connect(name, stream)).await?
}

async fn streams(
    two: &Two,
    facts: &BTreeMap<String, String>,
    known: &mut HashMap<String, SocketAddr>,
    heard: &mut Vec<u8>,
) -> io::Result<()> {
    let to = fill(&two.to, facts);
    let stream = TcpStream::connect(resolve(&to, known).await?).await?;
    if two.plain {
        return requests(stream, two, facts, heard).await;
    }
    let name = to.split(':').next().unwrap_or_default();
    let stream = handshake(stream, Some(name), "h2").await?;
    requests(stream, two, facts, heard).await
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    two: &Two,
    facts: &BTreeMap<String, String>,
    heard: &mut Vec<u8>,
) -> io::Result<()> {
    let hands = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = hands.await.map_err(io::Error::other)?;
    let driven = tokio::spawn(connection);
    let mut ended = Ok(());
    for (method, url, headers) in &two.requests {
        let mut request = Request::builder().method(*method).uri(fill(url, facts));
        for (name, value) in headers {
            request = request.header(*name, fill(value, facts));
        }
        let request = request.body(Full::new(Bytes::new())).map_err(io::Error::other)?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(io::Error::other)?;
            heard.extend_from_slice(format!("{} {:?}\n", answer.status().as_u16(), answer.headers()).as_bytes());
            let body = answer.into_body().collect().await.map_err(io::Error::other)?;
            let trailers = body.trailers().cloned();
            heard.extend_from_slice(&body.to_bytes());
            heard.extend_from_slice(format!("\n{trailers:?}").as_bytes());
            Ok(())
        };
        ended = tokio::time::timeout(QUIET, answer).await?;
    }
    driven.abort();
    ended
}

async fn ask(query: &Query, facts: &BTreeMap<String, String>, heard: &mut Vec<u8>) -> io::Result<()> {
    let mut message = vec![0x13, 0x37, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in fill(&query.name, facts).split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).map_err(io::Error::other)?);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend(query.kind.to_be_bytes());
    message.extend([0, 1]);
    message.extend(std::iter::repeat_n(b'x', query.padding));
    let to = match query.to.as_str() {
        "resolver" => RESOLVER,
        other => fill(other, facts).parse().map_err(io::Error::other)?,
    };
    let mut reply = vec![0; 8192];
    let length = if query.tcp {
        let mut stream = tokio::time::timeout(QUIET, TcpStream::connect(to)).await??;
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &message].concat()).await?;
        let length = usize::from(tokio::time::timeout(QUIET, stream.read_u16()).await??);
        let reply = reply.get_mut(..length).ok_or_else(|| io::Error::other("the reply is too long"))?;
        tokio::time::timeout(QUIET, stream.read_exact(reply)).await??
    } else {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
        socket.send_to(&message, to).await?;
        tokio::time::timeout(QUIET, socket.recv_from(&mut reply)).await??.0
    };
    let reply = &reply[..length];
    let count = |at: usize| reply.get(at..at + 2).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let code = reply.get(3).map_or(0, |byte| byte & 15);
    heard.extend_from_slice(format!("code {code}, {} answers\n", count(6)).as_bytes());
    heard.extend_from_slice(reply);
    Ok(())
}

/// Sends one, and hears what the kernel says of it.
fn datagram(to: &str, facts: &BTreeMap<String, String>) -> io::Result<()> {
    let to: SocketAddr = to.parse().map_err(io::Error::other)?;
    let socket = std::net::UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_broadcast(true)?;
    socket.connect(to)?;
    let token = facts.get("token").map(String::as_str).unwrap_or_default();
    socket.send(token.as_bytes())?;
    // What is refused on its way is told to the next call.
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.recv(&mut [0; 64]).map(|_| ())
}

fn socket(kind: Kind, facts: &BTreeMap<String, String>, heard: &mut Vec<u8>) -> io::Result<()> {
    let open = |family, kind, protocol: Option<Protocol>| -> io::Result<OwnedFd> {
        Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?)
    };
    let fact = |name: &str| facts.get(name).cloned().unwrap_or_default();
    let away = SocketAddr::from(([10, 0, 0, 1], 9));
    let send = |socket: OwnedFd, to: SocketAddr| -> io::Result<()> {
        rustix::net::connect(&socket, &to)?;
        rustix::net::send(&socket, fact("token").as_bytes(), SendFlags::NOSIGNAL)?;
        heard_of(&socket)
    };
    match kind {
        Kind::RawIcmp => send(open(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::ICMP))?, away),
        Kind::Ping => send(open(AddressFamily::INET, SocketType::DGRAM, Some(rustix::net::ipproto::ICMP))?, away),
        Kind::RawTcp => send(open(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::RAW))?, away),
        Kind::UdpLite => send(open(AddressFamily::INET, SocketType::DGRAM, Some(rustix::net::ipproto::UDPLITE))?, away),
        Kind::Sctp => send(open(AddressFamily::INET, SocketType::SEQPACKET, Some(rustix::net::ipproto::SCTP))?, away),
        Kind::Packet => open(AddressFamily::PACKET, SocketType::RAW, None).map(|_| ()),
        Kind::Vsock => open(AddressFamily::VSOCK, SocketType::STREAM, None).map(|_| ()),
        Kind::Route => open(AddressFamily::NETLINK, SocketType::RAW, None).and_then(|socket| {
            // RTM_NEWADDR: 203.0.113.7/24 for the loopback device, which only a ruler of the namespace may add.
            let mut message = 40u32.to_ne_bytes().to_vec();
            message.extend([20u16, 0x605].iter().flat_map(|word| word.to_ne_bytes()));
            message.extend([1u32, 0].iter().flat_map(|word| word.to_ne_bytes()));
            message.extend([2, 24, 0, 0, 1, 0, 0, 0, 8, 0, 2, 0, 203, 0, 113, 7, 8, 0, 1, 0, 203, 0, 113, 7]);
            let length = u32::try_from(message.len()).map_err(io::Error::other)?;
            message[..4].copy_from_slice(&length.to_ne_bytes());
            told(&socket, &message)
        }),
        Kind::Filter => open(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER)).and_then(|socket| {
            // NFT_MSG_DELTABLE without a name: all tables of all families, in a batch.
            let part = |kind: u16, flags: u16, family: [u8; 4]| {
                let mut message = 20u32.to_ne_bytes().to_vec();
                message.extend([kind, flags].iter().flat_map(|word| word.to_ne_bytes()));
                message.extend([7u32, 0].iter().flat_map(|word| word.to_ne_bytes()));
                message.extend(family);
                message
            };
            let subsystem = 10;
            let message = [
                part(0x10, 1, [0, 0, 0, subsystem]),
                part(0xa02, 5, [0, 0, 0, 0]),
                part(0x11, 1, [0, 0, 0, subsystem]),
            ];
            told(&socket, &message.concat())
        }),
        Kind::Abstract => {
            let address = UnixAddr::from_abstract_name(fact("abstract"))?;
            let mut stream = UnixStream::connect_addr(&address)?;
            io::Write::write_all(&mut stream, fact("token").as_bytes())
        }
        Kind::Path => {
            let mut stream = UnixStream::connect(fact("unix"))?;
            io::Write::write_all(&mut stream, fact("token").as_bytes())
        }
        Kind::TakeProxy => {
            let socket = open(AddressFamily::INET, SocketType::STREAM, None)?;
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::sockopt::set_socket_reuseport(&socket, true)?;
            rustix::net::bind(&socket, &PROXY)?;
            rustix::net::listen(&socket, 1)?;
            heard.extend_from_slice(b"listening in the proxy's place");
            Ok(())
        }
    }
}

/// What the kernel has to say of what was sent.
fn heard_of(socket: &OwnedFd) -> io::Result<()> {
    rustix::net::sockopt::set_socket_timeout(
        socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_millis(500)),
    )?;
    let (length, _) = rustix::net::recv(socket, &mut [0u8; 256][..], rustix::net::RecvFlags::empty())?;
    if length == 0 { Err(io::Error::other("nothing is answered")) } else { Ok(()) }
}

/// Sends a message of netlink, and hears what the kernel makes of it.
fn told(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
    rustix::net::send(socket, message, SendFlags::NOSIGNAL)?;
    rustix::net::sockopt::set_socket_timeout(
        socket.as_fd(),
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(2)),
    )?;
    let mut reply = [0u8; 4096];
    let (length, _) = rustix::net::recv(socket, &mut reply[..], rustix::net::RecvFlags::empty())?;
    // NLMSG_ERROR: a number, 0 for success.
    match reply[..length].get(16..20) {
        Some(&[a, b, c, d]) => match i32::from_ne_bytes([a, b, c, d]) {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number.saturating_neg())),
        },
        _ => Err(io::Error::other("the kernel says nothing of it")),
    }
}

fn look(look: Look, heard: &mut Vec<u8>) -> io::Result<()> {
    let mut say = |text: String| {
        heard.extend_from_slice(text.as_bytes());
        heard.push(b'\n');
    };
    match look {
        Look::Descriptors => {
            // Taken before this program opened any of its own.
            let found = INHERITED.get().cloned().unwrap_or_default();
            say(if found.is_empty() { "no descriptor but the usual three".to_owned() } else { found.join("\n") });
        }
        Look::Processes => {
            let (mut seen, mut workers) = (0, 0);
            for entry in fs::read_dir("/proc")?.flatten() {
                if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                    continue;
                }
                seen += 1;
                let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                if words.windows(12).any(|part| part == b"egress\0test\0" || part == b"egress\0test") {
                    workers += 1;
                }
            }
            say(format!("{workers} workers among the processes of the sandbox"));
            say(format!("{seen} in all"));
        }
        Look::Memory => drop(fs::OpenOptions::new().read(true).write(true).open("/proc/1/mem")?),
        Look::Environment => say(String::from_utf8_lossy(&fs::read("/proc/1/environ")?).into_owned()),
        Look::OwnEnvironment => {
            for (name, value) in std::env::vars().filter(|(name, _)| name != FACTS) {
                say(format!("{name}={value}"));
            }
        }
        Look::OthersDescriptors => {
            for entry in fs::read_dir("/proc/1/fd")? {
                let entry = entry?;
                say(format!("{:?}", fs::read_link(entry.path())));
            }
        }
        Look::Steal => {
            let first = rustix::process::Pid::INIT;
            let process = rustix::process::pidfd_open(first, rustix::process::PidfdFlags::empty())?;
            for number in 3..64 {
                match rustix::process::pidfd_getfd(&process, number, rustix::process::PidfdGetfdFlags::empty()) {
                    Ok(_) => say(format!("descriptor {number} of process 1")),
                    Err(rustix::io::Errno::BADF) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Look::Root => drop(fs::read_dir("/proc/1/root/")?),
        Look::Given => {
            let mut keys = 0;
            let mut places = vec!["/run/palisade".into(), "/workspace".into(), "/tmp".into()];
            while let Some(place) = places.pop() {
                let place: std::path::PathBuf = place;
                let Ok(entries) = fs::read_dir(&place) else { continue };
                for entry in entries.flatten() {
                    let Ok(about) = entry.metadata() else { continue };
                    if about.is_dir() {
                        places.push(entry.path());
                    } else if about.len() < 1 << 20 {
                        let content = fs::read(entry.path()).unwrap_or_default();
                        keys += usize::from(content.windows(11).any(|part| part == b"PRIVATE KEY"));
                        say(String::from_utf8_lossy(&content).into_owned());
                    }
                }
            }
            say(format!("{keys} private keys"));
        }
    }
    Ok(())
}

/// Descriptors that this program was started with.
static INHERITED: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();

/// Notes which descriptors there are. To be called before anything is opened.
pub(super) fn note_inherited() -> io::Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy().parse::<u32>().unwrap_or(0);
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        // The one by which the directory is read is its own.
        if number > 2 && !target.to_string_lossy().ends_with("/fd") {
            found.push(format!("{number}: {}", target.display()));
        }
    }
    // Nobody has noted it before.
    let _ = INHERITED.set(found);
    Ok(())
}
