//! No way out by network, and none into another sandbox.

use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use palisade_sandbox::Facility;

use crate::rig::Rig;

#[tokio::test]
async fn nothing_reaches_the_host_or_the_world() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let name = format!("palisade-test-{}", std::process::id());
    let abstract_socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let socket_file = tempfile::tempdir().unwrap();
    let path = socket_file.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    abstract_socket.set_nonblocking(true).unwrap();
    listener.set_nonblocking(true).unwrap();
    let rig = Rig::new().await;
    let (tcp_port, udp_port) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
    for address in
        ["127.0.0.1", "0.0.0.0", "localhost", "10.0.0.1", "169.254.169.254", "1.1.1.1", "::1", "::ffff:127.0.0.1"]
    {
        let connect = format!(
            "timeout 3 bash -c 'echo hi > /dev/tcp/{address}/{tcp_port}' && echo through; \
                               timeout 3 bash -c 'echo hi > /dev/udp/{address}/{udp_port}'; true"
        );
        let said = rig.bash(&connect).await;
        assert!(!said.contains("through"), "{address}: {said}");
    }
    let unix = format!(
        "use Socket; for my $p (\"\\0{name}\", '{}', \"\\0/tmp/.X11-unix/X0\", '/run/docker.sock', '/run/dbus/system_bus_socket') \
         {{ socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, pack_sockaddr_un($p)) and print 'through' }} print 'end'",
        path.display()
    );
    assert_eq!(rig.perl(&unix).await, "end");
    assert_eq!(rig.perl("print gethostbyname('example.com') ? 'resolved' : 'no'").await, "no");
    assert_eq!(tcp.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(abstract_socket.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // There is a loopback device of its own, and it works: servers can be tested in here.
    let devices = rig.bash("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '").await;
    assert_eq!(devices, "lo");
    let own = "use IO::Socket::INET; my $l = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die $!; \
               my $c = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $l->sockport) or die $!; print 'connected'";
    assert_eq!(rig.perl(own).await, "connected");
}

#[tokio::test]
async fn two_sandboxes_share_nothing() {
    let (one, other) = (Rig::new().await, Rig::new().await);
    let leave = "echo secret > /tmp/left; echo secret > /dev/shm/left; echo secret > /home/agent/left; echo secret > /run/left; \
                 perl -e 'my $id = shmget(4711, 4096, 01666); shmwrite($id, \"secret\", 0, 6); msgget(4712, 01666); semget(4713, 1, 01666); print \"made\" if defined $id'";
    assert_eq!(one.bash(leave).await, "made");
    one.bash("perl -e 'use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un(\"\\0between\")); listen(S, 1); sleep 100' >/dev/null 2>&1 &").await;
    for _ in 0..1000 {
        if one.bash("grep -c between /proc/net/unix").await == "1" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(one.bash("grep -c between /proc/net/unix").await, "1");
    let find = "cat /tmp/left /dev/shm/left /home/agent/left /run/left 2>/dev/null; grep between /proc/net/unix; \
                perl -e 'for (shmget(4711, 0, 0), msgget(4712, 0), semget(4713, 0, 0)) { print \"found\" if defined }; \
                use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, pack_sockaddr_un(\"\\0between\")) and print \"through\"'; ls -A /tmp";
    assert_eq!(other.bash(find).await, "(no output)");
    let files =
        [&one, &other].map(|rig| std::fs::metadata(format!("/proc/{}/environ", rig.sandbox.pid().unwrap())).unwrap());
    let users = [&one, &other].map(|rig| {
        std::fs::read_to_string(format!("/proc/{}/status", rig.sandbox.pid().unwrap()))
            .unwrap()
            .lines()
            .find_map(|line| line.strip_prefix("Uid:\t")?.split('\t').next()?.parse::<u32>().ok())
            .unwrap()
    });
    if rustix::process::geteuid().is_root() {
        assert_ne!(users[0], users[1]);
        assert!(users.iter().all(|uid| *uid > 65_536));
        assert!(one.sandbox.report().enforces(Facility::DistinctUser));
    }
    // What cannot be dumped belongs to a user that nobody is, also for those who look from outside.
    let theirs = files.iter().zip(users).any(|(meta, user)| meta.uid() == user);
    assert!(!theirs || !rustix::process::geteuid().is_root());
    // And neither has a name for the other.
    let theirs = other.sandbox.pid().unwrap();
    assert_eq!(
        one.bash(&format!("ls -d /proc/{theirs} 2>/dev/null; kill -0 {theirs} 2>/dev/null && echo seen; true")).await,
        "(no output)"
    );
    assert_eq!(std::fs::read_to_string(format!("/proc/{theirs}/environ")).unwrap_or_default(), "");
}
