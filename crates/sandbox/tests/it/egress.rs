//! A network that leads to the worker and nowhere else.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use palisade_sandbox::{Given, PROXY, Sockets};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use crate::rig::Rig;

fn listener(socket: &OwnedFd) -> TcpListener {
    let listener = TcpListener::from(socket.try_clone().unwrap());
    listener.set_nonblocking(false).unwrap();
    listener
}

/// Answers what comes to this socket with where it was meant to go.
fn answer(socket: &OwnedFd) {
    let listener = listener(socket);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let to = sockopt::ip_original_dst(&stream).unwrap();
            let mut asked = [0; 3];
            let _ = stream.read_exact(&mut asked);
            let _ = write!(stream, "{} was meant for {to}", String::from_utf8_lossy(&asked));
        }
    });
}

fn answer_names(socket: &OwnedFd) {
    let socket = UdpSocket::from(socket.try_clone().unwrap());
    socket.set_nonblocking(false).unwrap();
    std::thread::spawn(move || {
        let mut asked = [0; 512];
        while let Ok((read, from)) = socket.recv_from(&mut asked) {
            // The question again, as an answer: it has one address for whoever asks for that.
            let mut reply = asked[..read].to_vec();
            let is_a = reply[read - 4..] == [0, 1, 0, 1];
            (reply[2], reply[3]) = (0x81, 0x80);
            (reply[7], reply[9], reply[11]) = (u8::from(is_a), 0, 0);
            if is_a {
                reply.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04\xc6\x12\0\x07");
            }
            let _ = socket.send_to(&reply, from);
        }
    });
}

async fn rig() -> (Rig, Sockets) {
    let rig = Rig::with(|spec| spec.egress = true).await;
    let sockets = rig.sandbox.network().unwrap();
    assert!(rig.sandbox.network().is_none());
    (rig, sockets)
}

#[tokio::test]
async fn every_connection_leads_to_the_worker() {
    let (rig, sockets) = rig().await;
    for socket in [&sockets.proxy, &sockets.caught] {
        answer(socket);
    }
    answer_names(&sockets.resolver_udp);
    let ask = |to: &str, port: u16| format!("exec 3<>/dev/tcp/{to}/{port} && printf hi! >&3 && cat <&3");
    // Whether or not a program knows of the proxy, and whatever variables it is started without.
    for (to, port) in [("93.184.216.34", 443), ("169.254.169.254", 80), ("10.1.2.3", 22), ("198.18.0.7", 8443)] {
        assert_eq!(rig.bash(&ask(to, port)).await, format!("hi! was meant for {to}:{port}"));
        let bare = format!("env -i bash -c '{}'", ask(to, port));
        assert_eq!(rig.bash(&bare).await, format!("hi! was meant for {to}:{port}"));
    }
    assert_eq!(rig.bash(&ask("127.0.0.1", PROXY.port())).await, format!("hi! was meant for {PROXY}"));
    assert_eq!(rig.bash(&ask("some.example.com", 443)).await, "hi! was meant for 198.18.0.7:443");
    // What listens here is reached as ever.
    let own = "use IO::Socket::INET; my $l = IO::Socket::INET->new(Listen => 1, LocalAddr => '0.0.0.0') or die $!; \
               my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $l->sockport) or die $!; print 'connected'";
    assert_eq!(rig.perl(own).await, "connected");
}

#[tokio::test]
async fn nothing_else_leads_anywhere() {
    let world = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.set_nonblocking(true).unwrap();
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    host.set_nonblocking(true).unwrap();
    let [udp, tcp] = [world.local_addr().unwrap(), host.local_addr().unwrap()].map(|at: SocketAddr| at.port());
    let (rig, sockets) = rig().await;
    let said = rig
        .bash(&format!(
            "for to in 8.8.8.8/443 127.0.0.1/{udp} 255.255.255.255/67 224.0.0.251/5353 ::1/{udp} 2001:db8::1/443; do \
             timeout 5 bash -c \"echo hi > /dev/udp/$to\" 2>/dev/null; done; \
             timeout 5 bash -c 'echo hi > /dev/tcp/127.0.0.1/{tcp}' || timeout 5 bash -c 'echo hi > /dev/tcp/2001:db8::1/80' || \
             echo refused"
        ))
        .await;
    assert!(said.ends_with("refused"), "{said}");
    assert_eq!(world.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(host.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // It was told.
    let mut watched = [PollFd::new(&sockets.refused, PollFlags::IN)];
    assert_eq!(poll(&mut watched, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })), Ok(1));
    // Nobody inside can change where the network leads, or take the place of what it leads to.
    for attempt in [
        "unshare -n true",
        "unshare -Urn true",
        "ip route add default via 127.0.0.1",
        "nft flush ruleset",
        "iptables -F",
        "perl -e 'use Socket; socket(S, 16, 3, 12) or die'",
        "perl -e 'use Socket; socket(S, 16, 3, 0) or die'",
        "perl -e 'use Socket; socket(S, AF_INET, SOCK_RAW, 1) or die'",
        "perl -e 'use Socket; socket(S, 17, SOCK_RAW, 0) or die'",
        "perl -e 'use IO::Socket::INET; IO::Socket::INET->new(Listen => 1, ReuseAddr => 1, LocalAddr => q(127.0.0.1), LocalPort => 15081) or die'",
        "perl -e 'use IO::Socket::INET; IO::Socket::INET->new(Listen => 1, ReusePort => 1, LocalAddr => q(127.0.0.1), LocalPort => 15080) or die'",
        "perl -e 'use IO::Socket::INET; IO::Socket::INET->new(Proto => q(udp), LocalAddr => q(127.0.0.1), LocalPort => 15053) or die'",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    ] {
        let said = rig.bash(&format!("({attempt}) >/dev/null 2>&1 && echo through; true")).await;
        assert!(!said.contains("through"), "{attempt}: {said}");
    }
}

#[tokio::test]
async fn two_networks_are_not_one() {
    let (one, first) = rig().await;
    let (other, second) = rig().await;
    answer(&first.caught);
    let listener = listener(&second.caught);
    listener.set_nonblocking(true).unwrap();
    let said = one.bash("exec 3<>/dev/tcp/10.0.0.1/80 && printf one >&3 && cat <&3").await;
    assert_eq!(said, "one was meant for 10.0.0.1:80");
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // The end of a sandbox leaves its sockets without anybody who could reach them.
    other.sandbox.destroy().await.unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, PROXY.port())).is_err());
}

#[tokio::test]
async fn what_is_given_is_read_and_no_more() {
    let given = tempfile::tempdir().unwrap();
    std::fs::write(given.path().join("ca.pem"), "a certificate").unwrap();
    std::fs::create_dir(given.path().join("more")).unwrap();
    std::fs::write(given.path().join("more/one"), "one").unwrap();
    std::fs::set_permissions(given.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let show =
        |name: &str, target: &str, over| Given { host: given.path().join(name), target: target.to_owned(), over };
    let rig = Rig::with(|spec| {
        spec.given = vec![
            show("ca.pem", "/run/palisade/ca.pem", false),
            show("more", "/run/palisade/more", false),
            show("ca.pem", "/etc/ld.so.conf", true),
            show("ca.pem", "/etc/there/is/no/such", true),
        ];
    })
    .await;
    assert_eq!(rig.bash("cat /run/palisade/ca.pem /run/palisade/more/one").await, "a certificateone");
    assert_eq!(
        rig.bash("cat /etc/ld.so.conf; ls -d /etc/there 2>&1 | tail -c 26").await,
        "a certificateNo such file or directory"
    );
    let said = rig
        .bash("echo x > /run/palisade/ca.pem; rm -f /run/palisade/ca.pem; echo x > /run/palisade/more/new; true")
        .await;
    assert!(said.contains("ead-only") || said.contains("ermission"), "{said}");
    assert_eq!(std::fs::read(given.path().join("ca.pem")).unwrap(), b"a certificate");
    assert_eq!(std::fs::read_dir(given.path().join("more")).unwrap().count(), 1);
    assert_eq!(std::fs::metadata(given.path()).unwrap().uid(), rustix::process::geteuid().as_raw());
}
