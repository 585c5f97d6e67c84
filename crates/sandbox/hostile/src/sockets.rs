//! The network: families and protocols that escapes are made of, and ways to the host and the world.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::said::{denied, denied_or, steps};
use crate::sys::{self, Errno, call};
use crate::{Attempt, Facts, Said};

/// How long a connection may take to be refused.
const PATIENCE: Duration = Duration::from_millis(700);

/// Tunnels of layer 2, in datagrams of IP.
const IPPROTO_L2TP: i32 = 115;

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("network.packet", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0x300)),
    ("network.packet-datagram", |_| socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0x300)),
    ("network.raw", |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("network.raw-6", |_| socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)),
    ("network.raw-any", |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)),
    ("network.netlink-route", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)),
    ("network.netlink-filter", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)),
    ("network.netlink-transform", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_XFRM)),
    ("network.netlink-events", |_| socket(libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_KOBJECT_UEVENT)),
    ("network.netlink-audit", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT)),
    ("network.netlink-pair", |_| {
        denied(call!(libc::SYS_socketpair, libc::AF_NETLINK, libc::SOCK_RAW, 0, &mut [0i32; 2]))
    }),
    ("network.virtual-machine", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("network.crypto", |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ("network.keys", |_| socket(libc::AF_KEY, libc::SOCK_RAW, 2)),
    ("network.express-data", |_| socket(libc::AF_XDP, libc::SOCK_RAW, 0)),
    ("network.bluetooth", |_| socket(libc::AF_BLUETOOTH, libc::SOCK_RAW, 1)),
    ("network.can", |_| socket(libc::AF_CAN, libc::SOCK_RAW, 1)),
    ("network.cluster", |_| socket(libc::AF_TIPC, libc::SOCK_SEQPACKET, 0)),
    ("network.reliable", |_| socket(libc::AF_RDS, libc::SOCK_SEQPACKET, 0)),
    ("network.stream-control", |_| socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)),
    ("network.stream-control-packets", |_| socket(libc::AF_INET6, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP)),
    ("network.any-packets", |_| socket(libc::AF_INET, libc::SOCK_SEQPACKET, 0)),
    ("network.congestion", |_| socket(libc::AF_INET, libc::SOCK_DCCP, libc::IPPROTO_DCCP)),
    ("network.multipath", |_| socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)),
    ("network.partial-checksum", |_| socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)),
    ("network.tunnel", |_| socket(libc::AF_INET6, libc::SOCK_DGRAM, IPPROTO_L2TP)),
    ("network.high-bits", |_| {
        // The kernel looks at 32 bits of the family, and a careless filter at 64.
        denied(call!(libc::SYS_socket, 1u64 << 32 | libc::AF_NETLINK as u64, libc::SOCK_RAW, 0))
    }),
    ("network.filter-rules", |_| {
        steps(|| {
            // CVE-2021-22555: rules of the packet filter, through the option of an ordinary socket.
            let fd = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0)
                .map_err(|why| Said::from_error("socket", why))?;
            let rules = [0u64; 16];
            Ok(denied_or(call!(libc::SYS_setsockopt, fd, 0, 64, &rules, 128), &[libc::EINVAL]))
        })
    }),
    ("network.interface-up", |_| interface(libc::SIOCSIFFLAGS)),
    ("network.interface-address", |_| interface(libc::SIOCSIFADDR)),
    ("network.interface-rename", |_| interface(libc::SIOCSIFNAME)),
    ("network.interfaces", |_| {
        let text = sys::read("/proc/net/dev").unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let names: Vec<&str> = text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
        match names.as_slice() {
            [] | ["lo"] => Said::Refused("a loopback device of its own".to_owned()),
            more => Said::Through(more.join(", ")),
        }
    }),
    ("network.host-loopback", |facts| connect(&format!("127.0.0.1:{}", facts.text("tcp")))),
    ("network.host-loopback-6", |facts| connect(&format!("[::1]:{}", facts.text("tcp")))),
    ("network.host-mapped", |facts| connect(&format!("[::ffff:127.0.0.1]:{}", facts.text("tcp")))),
    ("network.host-any", |facts| connect(&format!("0.0.0.0:{}", facts.text("tcp")))),
    ("network.host-bridge", |facts| reach(&format!("172.17.0.1:{}", facts.text("tcp")))),
    ("network.host-own-address", |facts| match facts.text("address") {
        "" => Said::Refused("the host has no address of its own".to_owned()),
        address => reach(&format!("{address}:{}", facts.text("tcp"))),
    }),
    ("network.host-datagram", |facts| datagram("127.0.0.1", facts)),
    ("network.host-datagram-own-address", |facts| datagram(facts.text("address"), facts)),
    ("network.metadata", |_| reach("169.254.169.254:80")),
    ("network.world", |_| reach("1.1.1.1:443")),
    ("network.world-names", |_| {
        // A question for a name server, as a datagram; an answer would be through.
        let ask = || -> std::io::Result<usize> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
            socket.send_to(question, "1.1.1.1:53")?;
            socket.recv(&mut [0; 512])
        };
        match ask() {
            Ok(_) => Said::Through("a name server answered".to_owned()),
            Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => Said::Refused("no answer".to_owned()),
            Err(why) => Said::from_error("", Errno::of(&why)),
        }
    }),
    ("network.host-abstract-socket", |facts| {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(facts.text("abstract"));
        match address.and_then(|address| UnixStream::connect_addr(&address)) {
            Ok(_) => Said::Through("connected".to_owned()),
            Err(why) => Said::from_error("", Errno::of(&why)),
        }
    }),
    ("network.host-socket-file", |facts| match UnixStream::connect(facts.text("socket")) {
        Ok(_) => Said::Through("connected".to_owned()),
        Err(why) => Said::from_error("", Errno::of(&why)),
    }),
    ("network.host-sockets-list", |facts| {
        // Abstract sockets of others must not even be listed.
        let text = sys::read("/proc/net/unix").unwrap_or_default();
        if String::from_utf8_lossy(&text).contains(facts.text("abstract")) {
            Said::Through("listed".to_owned())
        } else {
            Said::Refused("not listed".to_owned())
        }
    }),
];

fn socket(family: i32, kind: i32, protocol: i32) -> Said {
    denied(call!(libc::SYS_socket, family, kind, protocol))
}

fn interface(request: u64) -> Said {
    steps(|| {
        let fd = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0)
            .map_err(|why| Said::from_error("socket", why))?;
        // "lo" for each, as it is: up and running, 127.0.0.1, its own name.
        let mut request_bytes = [0u8; 40];
        request_bytes[..2].copy_from_slice(b"lo");
        match request {
            libc::SIOCSIFFLAGS => request_bytes[16] = 0x49,
            libc::SIOCSIFADDR => request_bytes[16..24].copy_from_slice(&[2, 0, 0, 0, 127, 0, 0, 1]),
            _ => request_bytes[16..18].copy_from_slice(b"lo"),
        }
        Ok(denied(call!(libc::SYS_ioctl, fd, request, &request_bytes)))
    })
}

fn connect(to: &str) -> Said {
    let Ok(address) = to.parse::<SocketAddr>() else { return Said::Unclear(format!("{to:?} is no address")) };
    match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(mut stream) => {
            let _ = stream.write_all(b"hostile\n");
            let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
            let _ = stream.read(&mut [0; 16]);
            Said::Through(format!("connected to {to}"))
        }
        Err(why) if why.kind() == std::io::ErrorKind::TimedOut => Said::Refused("nobody answers".to_owned()),
        Err(why) => Said::from_error("", Errno::of(&why)),
    }
}

/// The same for an address that is not the sandbox's own: to be turned away there is to have been there.
fn reach(to: &str) -> Said {
    match connect(to) {
        Said::Refused(how) if how == "ECONNREFUSED" => Said::Through(format!("{to} was reached")),
        said => said,
    }
}

fn datagram(to: &str, facts: &Facts) -> Said {
    if to.is_empty() {
        return Said::Refused("the host has no address of its own".to_owned());
    }
    let own = to.starts_with("127.");
    let ask = || -> std::io::Result<usize> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.connect(format!("{to}:{}", facts.text("udp")))?;
        socket.send(b"hostile")?;
        socket.recv(&mut [0; 64])
    };
    match ask() {
        Ok(_) => Said::Through("answered".to_owned()),
        // Whether it arrived is for the host to see.
        Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => Said::Unclear("sent".to_owned()),
        Err(why) if why.raw_os_error() == Some(libc::ECONNREFUSED) && !own => {
            Said::Through(format!("{to} was reached"))
        }
        Err(why) => Said::from_error("", Errno::of(&why)),
    }
}
