//! The network that leads nowhere but to its sockets.

#![allow(unsafe_code, reason = "each test has a network namespace of its own, or runs in what has one")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use palisade_cell::egress::{self, CAUGHT, PROXY, RESOLVER, Sockets};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv, sockopt};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs the test of this name again, as somebody who has a user and a network namespace of their own and was not root before.
/// True in there.
fn inside(test: &str) -> bool {
    const INSIDE: &str = "PALISADE_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let mut run = Command::new("unshare");
    run.args(["--user", "--map-root-user", "--net"]).arg(this).args(["--exact", test, "--nocapture"]);
    let done = run.env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn up() -> Sockets {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    egress::lead().unwrap()
}

fn blocking(socket: OwnedFd) -> TcpListener {
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(false).unwrap();
    listener
}

/// What was refused: the headers, in what the kernel tells next.
fn told(sockets: &Sockets) -> Vec<u8> {
    let mut watched = [PollFd::new(&sockets.refused, PollFlags::IN)];
    assert_eq!(poll(&mut watched, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })), Ok(1));
    let mut told = vec![0; 4096];
    let (read, _) = recv(&sockets.refused, &mut told[..], RecvFlags::empty()).unwrap();
    told.truncate(read);
    told
}

fn holds(told: &[u8], part: &[u8]) -> bool {
    told.windows(part.len()).any(|window| window == part)
}

fn drive() {
    let sockets = up();
    // Anywhere, at any port: it ends here, and where it was meant to go is known.
    let caught = blocking(sockets.caught.try_clone().unwrap());
    for to in
        ["93.184.216.34:80", "169.254.169.254:80", "10.0.0.1:65535", "198.18.0.1:443", "255.1.1.1:22", "0.1.2.3:53000"]
    {
        let to: SocketAddr = to.parse().unwrap();
        let mut client = TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap();
        let (mut server, from) = caught.accept().unwrap();
        assert_eq!(from.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(SocketAddr::V4(sockopt::ip_original_dst(&server).unwrap()), to);
        client.write_all(b"there").unwrap();
        server.write_all(b"and back").unwrap();
        let mut heard = [[0; 5].to_vec(), [0; 8].to_vec()];
        server.read_exact(&mut heard[0]).unwrap();
        client.read_exact(&mut heard[1]).unwrap();
        assert_eq!(heard, [b"there".to_vec(), b"and back".to_vec()]);
    }
    // Any resolver is this one, and answers in the name of the one that was asked.
    let resolver = UdpSocket::from(sockets.resolver_udp.try_clone().unwrap());
    resolver.set_nonblocking(false).unwrap();
    let mut buffer = [0; 64];
    for of in ["8.8.8.8:53", "127.0.0.1:53", "127.0.0.53:53", "10.1.1.1:53"] {
        let asker = UdpSocket::bind("0.0.0.0:0").unwrap();
        asker.connect(of).unwrap();
        asker.send(b"who?").unwrap();
        let (read, from) = resolver.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..read], b"who?");
        resolver.send_to(b"nobody", from).unwrap();
        assert_eq!(asker.recv(&mut buffer).unwrap(), 6, "{of}");
    }
    let stream = TcpStream::connect("9.9.9.9:53").unwrap();
    let (_, from) = blocking(sockets.resolver_tcp.try_clone().unwrap()).accept().unwrap();
    assert_eq!(from, stream.local_addr().unwrap());
    // What is this namespace's own stays so.
    let own = TcpListener::bind("0.0.0.0:0").unwrap();
    let at = own.local_addr().unwrap().port();
    TcpStream::connect((Ipv4Addr::LOCALHOST, at)).unwrap();
    own.accept().unwrap();
    assert_eq!(TcpStream::connect("127.0.0.1:9").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let proxy = blocking(sockets.proxy.try_clone().unwrap());
    TcpStream::connect(PROXY).unwrap();
    proxy.accept().unwrap();
    // Their ports are taken for as long as anybody has the sockets.
    for at in [PROXY, CAUGHT, RESOLVER] {
        assert_eq!(TcpListener::bind(at).unwrap_err().kind(), ErrorKind::AddrInUse);
    }
}

fn refuse() {
    let sockets = up();
    // Whatever else leaves is refused at once and told.
    let datagram = |to: &str| -> io::Result<()> {
        let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
        socket.connect(to)?;
        socket.send(b"secret")?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.recv(&mut [0; 8]).map(drop)
    };
    for (to, address) in [("8.8.8.8:443", &[8, 8, 8, 8][..]), ("[2001:db8::7]:443", b"\x20\x01\x0d\xb8")] {
        let why = datagram(to).unwrap_err();
        assert!(matches!(why.kind(), ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied), "{to}: {why:?}");
        let told = told(&sockets);
        assert!(holds(&told, address) && holds(&told, &443u16.to_be_bytes()), "{to}: {told:02x?}");
    }
    let why = TcpStream::connect("[2001:db8::8]:80").unwrap_err();
    assert_eq!(why.kind(), ErrorKind::ConnectionRefused);
    assert!(holds(&told(&sockets), b"\x20\x01\x0d\xb8"));
    // Its own addresses are no way out either, but they work.
    let own = TcpListener::bind("[::1]:0").unwrap();
    TcpStream::connect(own.local_addr().unwrap()).unwrap();
}

#[test]
fn every_connection_ends_where_it_is_led() {
    // SAFETY: the thread shares nothing by this that others count on.
    let alone = || unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
    std::thread::spawn(move || {
        // With root; without it the same is tried below.
        if alone().is_ok() {
            drive();
        }
    })
    .join()
    .unwrap();
    if inside("egress::every_connection_ends_where_it_is_led") {
        drive();
    }
}

#[test]
fn what_is_no_stream_is_refused_and_told() {
    if inside("egress::what_is_no_stream_is_refused_and_told") {
        refuse();
    }
}
