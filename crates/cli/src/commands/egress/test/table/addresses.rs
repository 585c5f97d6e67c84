//! Addresses: dialled directly, in all spellings, and behind names that are allowed.

use rustix::io::Errno;

use crate::commands::egress::test::attempt::{Attempt, Layer, Shown, Talk};
use crate::commands::egress::test::outside::INSIDE;

/// A request that says the address that it goes to.
fn get(to: &str) -> String {
    format!("GET /{{token}} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")
}

const GET: &str = "GET /{token} HTTP/1.1\r\nHost: allowed.test:{https}\r\nConnection: close\r\n\r\n";

pub(super) fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    for (name, tries, to) in [
        ("public", "connect to a public address by its number, with HTTP", "93.184.216.34:80"),
        ("private", "connect to a private address", "10.0.0.1:80"),
        ("metadata", "connect to the cloud's metadata service", "169.254.169.254:80"),
        ("broadcast", "connect to the broadcast address", "255.255.255.255:80"),
        ("unassigned", "connect to an address of the resolver's range that is no name's", "198.18.200.200:80"),
        ("carrier", "connect to an address behind a carrier's NAT", "100.64.0.1:80"),
        ("class-e", "connect to a reserved address", "240.0.0.1:80"),
        ("mapped", "connect to a public address, written as IPv6", "[::ffff:93.184.216.34]:80"),
    ] {
        let attempt = Attempt::new(format!("direct.{name}"), tries).act(Talk::with(to, &[&get(to)]));
        all.push(match name {
            // The kernel has no such destination for a stream.
            "broadcast" => attempt.shown(
                Layer::Namespace,
                Shown::Errno(&[Errno::NETUNREACH, Errno::ACCESS, Errno::CONNREFUSED, Errno::PERM]),
            ),
            _ => attempt.refused(Layer::Policy, &["direct_address"]),
        });
    }
    let refused = |name: &str, tries, to: &str, errors| {
        Attempt::new(format!("direct.{name}"), tries)
            .act(Talk::with(to, &[GET]))
            .shown(Layer::Namespace, Shown::Errno(errors))
    };
    all.push(refused(
        "loopback",
        "connect to an upstream of the host's loopback device",
        "127.0.0.1:{https}",
        &[Errno::CONNREFUSED],
    ));
    all.push(refused(
        "unspecified",
        "connect to 0.0.0.0, which is this machine",
        "0.0.0.0:{https}",
        &[Errno::CONNREFUSED],
    ));
    all.push(refused(
        "loopback6",
        "connect to ::1",
        "[::1]:{https}",
        &[Errno::CONNREFUSED, Errno::ADDRNOTAVAIL, Errno::NETUNREACH],
    ));
    all.push(refused(
        "ipv6",
        "connect to a public IPv6 address",
        "[2606:4700:4700::1111]:443",
        &[Errno::CONNREFUSED, Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ACCESS, Errno::ADDRNOTAVAIL],
    ));
    all.push(
        Attempt::new("direct.tls", "connect to a public address by its number, with TLS that asks for no name")
            .act(Talk::with("93.184.216.34:443", &[GET]).nameless())
            .refused(Layer::Policy, &["direct_address"]),
    );
    all.push(
        Attempt::new("direct.tls-name", "connect to a public address, with TLS that asks for an allowed name")
            .act(Talk::with("93.184.216.34:{https}", &[GET]).tls("allowed.test"))
            .refused(Layer::Authority, &["name_mismatch"]),
    );
    all.push(
        Attempt::new("direct.ssh", "connect to a public address, and speak something that is neither TLS nor HTTP")
            .act(Talk::with("93.184.216.34:22", &["SSH-2.0-{token}\r\n"]))
            .refused(Layer::Policy, &["direct_address"]),
    );
    all.push(
        Attempt::new("direct.caught-port", "connect to the port to which connections are turned")
            .act(Talk::with("127.0.0.1:15081", &[GET]))
            .refused(Layer::Policy, &["direct_address"]),
    );
    all.push(
        Attempt::new("direct.host-header", "connect to a private address, with an allowed Host header")
            .act(Talk::with("10.0.0.1:{http}", &["GET /{token} HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n"]))
            .refused(Layer::Authority, &["name_mismatch"]),
    );
    for (name, tries, target) in [
        ("ipv4", "ask for a tunnel to an address", "127.0.0.9:{https}"),
        ("private", "ask for a tunnel to a private address", "10.0.0.1:443"),
        ("metadata", "ask for a tunnel to the metadata service", "169.254.169.254:80"),
        ("ipv6", "ask for a tunnel to ::1", "[::1]:{https}"),
        ("mapped", "ask for a tunnel to an IPv4 address, written as IPv6", "[::ffff:127.0.0.9]:{https}"),
        ("mapped-hex", "ask for the same in hexadecimal", "[::ffff:7f00:9]:{https}"),
        ("nat64", "ask for a tunnel to an address that a translator leads to loopback", "[64:ff9b::7f00:1]:{https}"),
        ("self", "ask the proxy for a tunnel to itself", "127.0.0.1:15080"),
        ("caught", "ask the proxy for a tunnel to the port to which connections are turned", "127.0.0.1:15081"),
        ("unspecified", "ask for a tunnel to 0.0.0.0", "0.0.0.0:{https}"),
    ] {
        // This address is one that rules name, at other ports.
        let is_named = target.starts_with("127.0.0.1:");
        all.push(
            Attempt::new(format!("address.{name}"), tries)
                .act(Talk::tunnel(target, &[GET]).tls("allowed.test"))
                .refused(Layer::Policy, if is_named { &["port_not_allowed"] } else { &["direct_address"] }),
        );
    }
    all.push(
        Attempt::new("address.of-a-name", "ask for a tunnel to the address of an allowed name, and for the name in it")
            .act(Talk::tunnel("127.0.0.1:{https}", &[GET]).tls("allowed.test"))
            .refused(Layer::Authority, &["name_mismatch"]),
    );
    let nameless = "GET /v1/{token} HTTP/1.1\r\nHost: 127.0.0.1:{https}\r\nConnection: close\r\n\r\n";
    all.push(
        Attempt::new("address.nameless", "the same with TLS that asks for no name")
            .act(Talk::tunnel("127.0.0.1:{https}", &[nameless]).nameless())
            .refused(Layer::Certificate, &["upstream_certificate_name"]),
    );
    for (name, tries, target) in [
        ("decimal", "ask for a tunnel to 127.0.0.1, as one decimal number", "2130706433:{https}"),
        ("hex", "the same as one hexadecimal number", "0x7f000001:{https}"),
        ("octal", "the same with octal parts", "0177.0.0.01:{https}"),
        ("short", "the same with parts left out", "127.1:{https}"),
        ("mixed", "the same with parts in hexadecimal and left out", "0x7f.1:{https}"),
        ("dot", "the same with a dot at the end", "127.0.0.1.:{https}"),
        ("full-width", "the same in full-width digits", "%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1:{https}"),
        ("zone", "ask for a tunnel to a link-local address with a zone", "[fe80::1%25lo]:{https}"),
    ] {
        let attempt =
            Attempt::new(format!("address.{name}"), tries).act(Talk::tunnel(target, &[GET]).tls("allowed.test"));
        all.push(match name {
            "dot" => attempt.refused(Layer::Names, &["malformed_name", "direct_address"]),
            _ => attempt.refused(Layer::Names, &["malformed_name", "malformed_request"]),
        });
    }
    for (label, _) in INSIDE {
        let host = format!("{label}.inside.test");
        let get = format!("GET /{{token}} HTTP/1.1\r\nHost: {host}:{{https}}\r\nConnection: close\r\n\r\n");
        all.push(
            Attempt::new(format!("rebinding.{label}"), "reach an address that is not public by way of an allowed name")
                .act(Talk::with(&format!("{host}:{{https}}"), &[&get]))
                .refused(Layer::Dial, &["private_address"]),
        );
    }
    let twice = |path: &str| {
        let head = format!(
            "GET /{path} HTTP/1.1\r\nHost: twice-{{fresh}}.rebind.test:{{rebind}}\r\nConnection: close\r\n\r\n"
        );
        Talk::with("twice-{fresh}.rebind.test:{rebind}", &[&head])
    };
    all.push(
        Attempt::new("rebinding.second-answer", "have a name lead elsewhere when it is asked for again")
            .act(twice("last"))
            .act(twice("{token}"))
            .refused(Layer::Dial, &["private_address", "address_not_allowed"]),
    );
    all.push(
        Attempt::new(
            "rebinding.mixed",
            "have a name lead to loopback and to the metadata service, where private networks are allowed",
        )
        .act(Talk::inside(
            "mixed.test",
            &["GET /{token} HTTP/1.1\r\nHost: mixed.test:{https}\r\nConnection: close\r\n\r\n"],
        ))
        .refused(Layer::Dial, &["private_address"]),
    );
    all
}
