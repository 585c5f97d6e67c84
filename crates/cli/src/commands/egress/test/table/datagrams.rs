//! Names as a way out, and whatever is no stream to an IPv4 address.

use rustix::io::Errno;

use crate::commands::egress::test::attempt::{Act, Attempt, Kind, Layer, Query, Shown, Talk};

const A: u16 = 1;
const NULL: u16 = 10;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const HTTPS: u16 = 65;
const AXFR: u16 = 252;
const ANY: u16 = 255;

/// What the kernel says of a datagram that it refuses.
const REFUSED: &[Errno] = &[Errno::PERM, Errno::ACCESS, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::CONNREFUSED];

fn query(to: &str, name: &str, kind: u16) -> Query {
    Query { to: to.to_owned(), tcp: false, name: name.to_owned(), kind, padding: 0 }
}

pub(super) fn attempts() -> Vec<Attempt> {
    let dns = |name: &str, tries, query: Query| {
        Attempt::new(format!("dns.{name}"), tries).act(query).refused(Layer::Resolver, &["not_allowed"])
    };
    let empty = |name: &str, tries, kind| {
        Attempt::new(format!("dns.{name}"), tries)
            .act(query("resolver", "{token}.wild.test", kind))
            .shown(Layer::Resolver, Shown::Said("code 0, 0 answers"))
    };
    let mut all = vec![
        dns("label", "carry data out in a label of a name", query("resolver", "{token}.other.test", A)),
        dns("labels", "the same in many labels", query("resolver", "{token}.aaaa.bbbb.cccc.dddd.eeee.other.test", A)),
        dns("txt", "ask for text of a name", query("resolver", "{token}.other.test", TXT)),
        dns("null", "ask for a record without a form", query("resolver", "{token}.other.test", NULL)),
        dns("any", "ask for all that there is", query("resolver", "{token}.other.test", ANY)),
        dns(
            "https",
            "ask for a name's HTTPS record, which holds keys and addresses",
            query("resolver", "{token}.other.test", HTTPS),
        ),
        dns("axfr", "ask for a whole zone", Query { tcp: true, ..query("resolver", "{token}.other.test", AXFR) }),
        dns(
            "tcp",
            "carry data out in a name over TCP",
            Query { tcp: true, ..query("resolver", "{token}.other.test", A) },
        ),
        dns("other-resolver", "ask a resolver on the internet", query("8.8.8.8:53", "{token}.other.test", A)),
        dns(
            "other-resolver-tcp",
            "the same over TCP",
            Query { tcp: true, ..query("9.9.9.9:53", "{token}.other.test", A) },
        ),
        dns("private-resolver", "ask a resolver of the host's network", query("10.0.0.2:53", "{token}.other.test", A)),
        dns("rebinding", "ask for a name that holds an address", query("resolver", "{token}.127.0.0.1.nip.io", A)),
        dns("underscore", "ask for a name that is no host's", query("resolver", "_{token}._tcp.other.test", TXT)),
        dns("reverse", "ask for an address's name", query("resolver", "{token}.1.0.10.in-addr.arpa", 12)),
        empty("allowed-label", "carry data out below an allowed suffix: nobody is asked", AAAA),
        empty("allowed-txt", "the same by asking for text", TXT),
        empty("allowed-any", "the same by asking for all", ANY),
        Attempt::new("dns.allowed-name", "the same for an address, which is made up on the spot")
            .act(query("resolver", "{token}.wild.test", A))
            .shown(Layer::Resolver, Shown::Said("code 0, 1 answers")),
        Attempt::new("dns.oversized", "send a query of 6,000 bytes")
            .act(Query { tcp: true, padding: 6000, ..query("resolver", "{token}.allowed.test", A) })
            .shown(Layer::Resolver, Shown::Silence),
        Attempt::new("dns.over-tls", "ask a resolver on the internet over TLS")
            .act(Talk::with("1.1.1.1:853", &["{token}"]).tls("one.one.one.one"))
            .refused(Layer::Authority, &["name_mismatch", "direct_address"]),
        Attempt::new("dns.over-https", "ask a resolver on the internet over HTTPS")
            .act(
                Talk::tunnel(
                    "dns.google:443",
                    &["GET /resolve?name={token}.other.test HTTP/1.1\r\nHost: dns.google\r\n\r\n"],
                )
                .tls("dns.google"),
            )
            .refused(Layer::Policy, &["not_allowed"]),
        Attempt::new("dns.port-53-stream", "speak HTTP to port 53 of an address")
            .act(Talk::with("8.8.8.8:53", &["GET /{token} HTTP/1.1\r\nHost: allowed.test\r\n\r\n"]))
            .shown(Layer::Resolver, Shown::Silence),
    ];
    for (name, tries, to) in [
        ("quic", "send a datagram to port 443 of a public address", "93.184.216.34:443"),
        ("ntp", "send a datagram to a time server", "162.159.200.1:123"),
        ("private", "send a datagram to a private address", "10.0.0.1:9"),
        ("metadata", "send a datagram to the metadata service", "169.254.169.254:80"),
        ("broadcast", "send a datagram to all", "255.255.255.255:67"),
        ("multicast", "send a datagram to a group", "224.0.0.251:5353"),
        ("synthetic", "send a datagram to an address of the resolver's range", "198.18.0.1:443"),
        ("ipv6", "send a datagram to a public IPv6 address", "[2606:4700:4700::1111]:443"),
        ("multicast6", "send a datagram to a group of IPv6", "[ff0e::fb]:5353"),
        ("dns-over-quic", "send a datagram to a resolver's QUIC port", "94.140.14.14:853"),
    ] {
        all.push(
            Attempt::new(format!("udp.{name}"), tries)
                .act(Act::Datagram(to.to_owned()))
                .shown(Layer::Filter, Shown::Told(REFUSED)),
        );
    }
    all.push(
        Attempt::new("udp.host", "send a datagram to a socket of the host's loopback device")
            .act(Act::Datagram("127.0.0.1:{udp}".to_owned()))
            .shown(Layer::Namespace, Shown::Errno(&[Errno::CONNREFUSED])),
    );
    let socket = |name: &str, tries, kind: Kind, layer, shown| {
        Attempt::new(format!("socket.{name}"), tries).act(kind).shown(layer, shown)
    };
    const NO: &[Errno] = &[
        Errno::PERM,
        Errno::ACCESS,
        Errno::AFNOSUPPORT,
        Errno::PROTONOSUPPORT,
        Errno::NOSYS,
        Errno::INVAL,
        Errno::SOCKTNOSUPPORT,
    ];
    all.extend([
        socket("icmp", "send ICMP in a raw socket", Kind::RawIcmp, Layer::Calls, Shown::Errno(NO)),
        socket("ping", "send ICMP in a datagram socket", Kind::Ping, Layer::Calls, Shown::Errno(NO)),
        socket("ip", "send packets with headers of one's own", Kind::RawTcp, Layer::Calls, Shown::Errno(NO)),
        socket("packet", "send frames (AF_PACKET)", Kind::Packet, Layer::Calls, Shown::Errno(NO)),
        socket("vsock", "reach the hypervisor (AF_VSOCK)", Kind::Vsock, Layer::Calls, Shown::Errno(NO)),
        socket("sctp", "speak SCTP", Kind::Sctp, Layer::Calls, Shown::Errno(NO)),
        socket("udplite", "speak UDP-Lite", Kind::UdpLite, Layer::Calls, Shown::Errno(NO)),
        socket("route", "give the namespace another address", Kind::Route, Layer::Calls, Shown::Errno(NO)),
        socket("filter", "take the packet filter's rules away", Kind::Filter, Layer::Calls, Shown::Errno(NO)),
    ]);
    all
}
