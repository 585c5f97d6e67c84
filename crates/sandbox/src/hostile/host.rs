//! What the host keeps an eye on while the attempts run.

use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::VARIABLE;
use crate::Temporary;

/// The hostile program, built for this target by the build script.
static PROGRAM: &[u8] = include_bytes!(env!("PALISADE_HOSTILE"));

/// Settings of the machine that attempts go for, because a program of their choice would be started by the kernel.
const SETTINGS: &[&str] = &[
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/domainname",
    "/sys/kernel/uevent_helper",
    "/sys/fs/cgroup/memory/release_agent",
    "/sys/fs/cgroup/pids/release_agent",
    "/sys/fs/cgroup/rdma/release_agent",
];

/// The host's side of the suite.
pub(super) struct Host {
    home: Temporary,
    secret: String,
    tcp: TcpListener,
    udp: UdpSocket,
    abstract_name: String,
    abstract_socket: UnixListener,
    socket: UnixListener,
    victim: Mutex<Child>,
    settings: Vec<(&'static str, Vec<u8>)>,
    /// What a careless worker leaves open for everybody that it starts: a file, a directory, a socket.
    _leaks: Vec<OwnedFd>,
}

impl Host {
    pub(super) fn new() -> io::Result<Host> {
        let home = Temporary::new("palisade-hostile-", None)?;
        // As open as any directory of the host: what keeps a sandbox out are its walls.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(home.path().join("canary"), &secret)?;
        fs::set_permissions(home.path().join("canary"), fs::Permissions::from_mode(0o666))?;
        let program = home.path().join("program");
        fs::write(&program, PROGRAM)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let abstract_name = format!("palisade-hostile-{}", &secret[..8]);
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let udp = UdpSocket::bind("127.0.0.1:0")?;
        let abstract_socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&abstract_name)?)?;
        let socket = UnixListener::bind(home.path().join("socket"))?;
        fs::set_permissions(home.path().join("socket"), fs::Permissions::from_mode(0o666))?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        abstract_socket.set_nonblocking(true)?;
        socket.set_nonblocking(true)?;
        let victim = victim(&program)?;
        let settings = SETTINGS.iter().filter_map(|at| Some((*at, fs::read(at).ok()?))).collect();
        // A copy without the flag that closes it on execution.
        let leaks = vec![
            rustix::io::dup(File::open(home.path().join("canary"))?)?,
            rustix::io::dup(File::open(home.path())?)?,
            rustix::io::dup(File::open("/")?)?,
            rustix::io::dup(&tcp)?,
        ];
        Ok(Host {
            home,
            secret,
            tcp,
            udp,
            abstract_name,
            abstract_socket,
            socket,
            victim: Mutex::new(victim),
            settings,
            _leaks: leaks,
        })
    }

    /// The program, on the host.
    pub(super) fn program(&self) -> PathBuf {
        self.home.path().join("program")
    }

    /// The directory that holds the canary.
    pub(super) fn place(&self) -> &Path {
        self.home.path()
    }

    /// What must never be seen inside.
    pub(super) fn secret(&self) -> &str {
        &self.secret
    }

    /// Whether the caller has put its variable into this process's environment.
    pub(super) fn has_variable() -> bool {
        std::env::var_os(VARIABLE).is_some()
    }

    /// What the program is told.
    pub(super) fn facts(&self) -> Vec<String> {
        let at = |name: &str| self.home.path().join(name).display().to_string();
        let port = |address: io::Result<std::net::SocketAddr>| address.map_or(0, |address| address.port());
        vec![
            format!("canary={}", at("canary")),
            format!("marker={}", at("marker")),
            // Nobody has put a program there: should the kernel be told to start it, nothing starts.
            format!("program={}", at("not-there")),
            format!("tcp={}", port(self.tcp.local_addr())),
            format!("udp={}", port(self.udp.local_addr())),
            format!("address={}", own_address()),
            format!("abstract={}", self.abstract_name),
            format!("machine={}", machine()),
            format!("socket={}", at("socket")),
            format!("victim={}", self.victim.lock().unwrap_or_else(PoisonError::into_inner).id()),
            format!("worker={}", std::process::id()),
            format!("variable={}", if Host::has_variable() { VARIABLE } else { "" }),
        ]
    }

    /// What has happened to the host since it was last asked, if anything. Settings are put back.
    pub(super) fn harm(&self) -> Option<String> {
        let at = |name: &str| self.home.path().join(name);
        if fs::read(at("canary")).ok().as_deref() != Some(self.secret.as_bytes()) {
            let _ = fs::write(at("canary"), &self.secret);
            return Some("the canary of the host was changed".to_owned());
        }
        for name in ["marker", "not-there"] {
            if fs::symlink_metadata(at(name)).is_ok() {
                let _ = fs::remove_file(at(name));
                return Some("a file was made on the host".to_owned());
            }
        }
        for (at, before) in &self.settings {
            if fs::read(at).is_ok_and(|now| now != *before) {
                let _ = fs::write(at, before);
                return Some(format!("{at} was changed on the host"));
            }
        }
        if self.tcp.accept().is_ok() {
            return Some("a connection to the host".to_owned());
        }
        if self.udp.recv(&mut [0; 64]).is_ok() {
            return Some("a datagram to the host".to_owned());
        }
        if self.abstract_socket.accept().is_ok() || self.socket.accept().is_ok() {
            return Some("a connection to a local socket of the host".to_owned());
        }
        let mut victim = self.victim.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(victim.try_wait(), Ok(None)) {
            if let Ok(next) = self::victim(&self.program()) {
                *victim = next;
            }
            return Some("a process of the host was ended".to_owned());
        }
        None
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let victim = self.victim.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = victim.kill();
        let _ = victim.wait();
    }
}

/// A process of the host to aim at.
fn victim(program: &Path) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(["neighbours.victim", "victim"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn()
}

/// An address of the host other than loopback; empty when it has none. Nothing is sent.
fn own_address() -> String {
    let address = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    match address {
        Ok(address) if !address.ip().is_loopback() => address.ip().to_string(),
        _ => String::new(),
    }
}

/// The beginning of the machine's id; empty when it has none.
fn machine() -> String {
    fs::read_to_string("/etc/machine-id").unwrap_or_default().chars().take(12).collect()
}
