//! One authority: what CONNECT, TLS, Host and requests name is the same, and allowed.

use crate::commands::egress::test::attempt::{Attempt, Harm, Layer, Talk, Two};

const GET: &str = "GET /v1/{token} HTTP/1.1\r\nHost: allowed.test:{https}\r\nConnection: close\r\n\r\n";

fn tunnel(name: &str, tries: &'static str, target: &str) -> Attempt {
    Attempt::new(format!("name.{name}"), tries).act(Talk::tunnel(target, &[GET]).tls("allowed.test"))
}

fn inside(name: &str, tries: &'static str, says: &str) -> Attempt {
    Attempt::new(format!("authority.{name}"), tries).act(Talk::allowed(&[says]))
}

pub(super) fn attempts() -> Vec<Attempt> {
    let mut all = names();
    all.extend(connections());
    all.extend(streams());
    all
}

fn names() -> Vec<Attempt> {
    let (unknown, malformed): (&'static [&str], &'static [&str]) =
        (&["not_allowed"], &["malformed_name", "malformed_request"]);
    vec![
        tunnel("other", "ask for a tunnel to a host that no rule names", "other.test:{other}")
            .refused(Layer::Policy, unknown),
        tunnel("below", "the same to a name below an allowed one", "deep.allowed.test:{https}")
            .refused(Layer::Policy, unknown),
        tunnel("suffix", "the same to a name that an allowed one begins", "allowed.test.other.test:{https}")
            .refused(Layer::Policy, unknown),
        tunnel("prefix", "the same to a name that ends like an allowed one", "notallowed.test:{https}")
            .refused(Layer::Policy, unknown),
        tunnel("port", "the same to another port of an allowed host", "allowed.test:{other}")
            .refused(Layer::Policy, &["port_not_allowed"]),
        tunnel("userinfo", "the same with an allowed name as the user", "allowed.test@other.test:{other}")
            .refused(Layer::Names, malformed),
        tunnel("userinfo-port", "the same with a port that is a password", "allowed.test:443@other.test:{other}")
            .refused(Layer::Names, malformed),
        tunnel("nul", "the same with NUL in the name", "allowed.test\0.other.test:{other}")
            .refused(Layer::Requests, malformed),
        tunnel("percent-nul", "the same with an encoded NUL", "allowed.test%00.other.test:{other}")
            .refused(Layer::Names, malformed),
        tunnel("two-dots", "the same with two dots at the end", "allowed.test..:{https}")
            .refused(Layer::Names, malformed),
        tunnel("space", "the same with a space in the name", "allowed.test other.test:{other}")
            .refused(Layer::Requests, malformed),
        tunnel("homograph", "the same with a Cyrillic letter, in its ASCII form", "xn--llowed-2fg.test:{https}")
            .refused(Layer::Names, &["not_allowed", "malformed_name"]),
        tunnel("raw-utf8", "the same with the letter as it is", "\u{430}llowed.test:{https}")
            .refused(Layer::Names, malformed),
        tunnel("fragment", "the same with what a URL would end with", "other.test:{other}#allowed.test")
            .refused(Layer::Names, malformed),
        tunnel("path", "the same with a path", "other.test:{other}/allowed.test").refused(Layer::Names, malformed),
        tunnel("no-port", "the same without a port", "allowed.test").refused(Layer::Names, malformed),
        tunnel(
            "long",
            "the same with a name of more than 253 characters",
            &format!("{}allowed.test:{{https}}", "a.".repeat(130)),
        )
        .refused(Layer::Names, malformed),
    ]
}

fn connections() -> Vec<Attempt> {
    let mismatch: &'static [&str] = &["name_mismatch"];
    let attempt = |name: &str, tries| Attempt::new(format!("authority.{name}"), tries);
    let get = |line: &str, headers: &str| format!("GET {line} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    let host = "Host: allowed.test:{https}\r\n";
    vec![
        attempt("connect-host", "ask for an allowed tunnel, with a Host header for another")
            .act(Talk::tunnel_by("CONNECT allowed.test:{https} HTTP/1.1\r\nHost: other.test:{other}\r\n\r\n", &[GET]).tls("allowed.test"))
            .refused(Layer::Authority, mismatch),
        attempt("connect-two-hosts", "the same with two Host headers")
            .act(
                Talk::tunnel_by(
                    "CONNECT allowed.test:{https} HTTP/1.1\r\nHost: allowed.test:{https}\r\nHost: other.test\r\n\r\n",
                    &[GET],
                )
                .tls("allowed.test"),
            )
            .refused(Layer::Authority, mismatch),
        attempt("sni", "ask TLS for another host than the tunnel is for")
            .act(Talk::tunnel("allowed.test:{https}", &[GET]).tls("other.test"))
            .refused(Layer::Authority, mismatch),
        attempt("sni-through", "the same where the connection is carried as it is")
            .act(Talk::with("through.test:{https}", &[GET]).tls("other.test"))
            .refused(Layer::Authority, mismatch),
        attempt("sni-fronting", "front: a tunnel to another host that asks TLS for an allowed one")
            .act(Talk::tunnel("friend.test:{https}", &[GET]).tls("allowed.test"))
            .refused(Layer::Authority, mismatch),
        attempt("no-sni", "ask TLS for no name, where it is opened")
            .act(Talk::with("allowed.test:{https}", &[GET]).nameless())
            .refused(Layer::Authority, mismatch),
        attempt("no-sni-through", "the same where the connection is carried as it is")
            .act(Talk::with("through.test:{https}", &[GET]).nameless())
            .refused(Layer::Authority, mismatch),
        inside("host", "send a request for another host in an allowed tunnel", &get("/v1/{token}", "Host: other.test:{other}\r\n"))
            .refused(Layer::Authority, mismatch),
        inside("host-allowed", "the same for a host that other rules allow", &get("/{token}", "Host: friend.test:{https}\r\n"))
            .refused(Layer::Authority, mismatch),
        inside("host-port", "the same for another port", &get("/v1/{token}", "Host: allowed.test:{other}\r\n"))
            .refused(Layer::Authority, mismatch),
        inside("two-hosts", "send two Host headers", &get("/v1/{token}", &format!("{host}Host: other.test\r\n")))
            .refused(Layer::Requests, &["malformed_request"]),
        inside("no-host", "send no Host header", &get("/v1/{token}", "")).refused(Layer::Requests, &["malformed_request"]),
        inside("host-list", "send a Host header with two hosts", &get("/v1/{token}", "Host: allowed.test:{https}, other.test\r\n"))
            .refused(Layer::Names, &["malformed_name"]),
        inside("host-userinfo", "send a Host header with a user", &get("/v1/{token}", "Host: allowed.test:{https}@other.test\r\n"))
            .refused(Layer::Names, &["malformed_name"]),
        inside("absolute", "send a whole URL for another host", &get("https://other.test:{other}/v1/{token}", host))
            .refused(Layer::Authority, mismatch),
        inside("absolute-both", "the same with a Host header that agrees", &get("https://other.test:{other}/v1/{token}", "Host: other.test:{other}\r\n"))
            .refused(Layer::Authority, mismatch),
        inside("absolute-host", "send an allowed URL with another Host header", &get("https://allowed.test:{https}/v1/{token}", "Host: other.test\r\n"))
            .refused(Layer::Authority, mismatch),
        inside("absolute-userinfo", "send a URL with an allowed name as the user", &get("https://allowed.test@other.test:{other}/v1/{token}", host))
            .refused(Layer::Names, &["malformed_name", "name_mismatch"]),
        inside("absolute-scheme", "send a URL with another scheme than the connection has", &get("http://allowed.test:{https}/v1/{token}", host))
            .refused(Layer::Requests, &["malformed_request"]),
        inside("tunnel-inside", "ask for a tunnel inside of a tunnel", "CONNECT other.test:{other} HTTP/1.1\r\nHost: other.test:{other}\r\n\r\nGET /{token} HTTP/1.1\r\nHost: other.test:{other}\r\n\r\n")
            .refused(Layer::Authority, mismatch),
        inside("tunnel-same", "the same to the host of the tunnel", "CONNECT allowed.test:{https} HTTP/1.1\r\nHost: allowed.test:{https}\r\n\r\nGET /admin/{token} HTTP/1.1\r\nHost: allowed.test:{https}\r\n\r\n")
            .refused(Layer::Policy, &["method_not_allowed"]),
        inside("pipelined", "send an allowed request, and one for another host behind it", "GET /v1/ HTTP/1.1\r\nHost: allowed.test:{https}\r\n\r\nGET /v1/{token} HTTP/1.1\r\nHost: other.test:{other}\r\nConnection: close\r\n\r\n")
            .refused(Layer::Authority, mismatch),
        attempt("proxy-absolute", "give the proxy a whole URL for another host")
            .act(Talk::proxy(&["GET http://other.test:{other}/{token} HTTP/1.1\r\nHost: other.test:{other}\r\nConnection: close\r\n\r\n"]))
            .refused(Layer::Policy, &["not_allowed"]),
        attempt("proxy-absolute-host", "the same with an allowed Host header")
            .act(Talk::proxy(&["GET http://other.test:{other}/{token} HTTP/1.1\r\nHost: plain.test:{http}\r\nConnection: close\r\n\r\n"]))
            .refused(Layer::Authority, mismatch),
        attempt("proxy-relative", "give the proxy a path and a Host header only")
            .act(Talk::proxy(&["GET /{token} HTTP/1.1\r\nHost: plain.test:{http}\r\nConnection: close\r\n\r\n"]))
            .refused(Layer::Requests, &["malformed_request"]),
        attempt("proxy-keep-alive", "give the proxy an allowed URL, and on the same connection one for another host")
            .act(Talk::proxy(&[
                "GET http://plain.test:{http}/first HTTP/1.1\r\nHost: plain.test:{http}\r\n\r\n",
                "GET http://other.test:{other}/{token} HTTP/1.1\r\nHost: other.test:{other}\r\nConnection: close\r\n\r\n",
            ]))
            .refused(Layer::Policy, &["not_allowed"]),
        attempt("proxy-ftp", "give the proxy a URL with another scheme")
            .act(Talk::proxy(&["GET ftp://allowed.test/{token} HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n"]))
            .refused(Layer::Requests, &["malformed_request"]),
        attempt("proxy-tls", "speak TLS to the proxy")
            .act(Talk::proxy(&[GET]).tls("allowed.test"))
            .refused(Layer::Requests, &["malformed_request"]),
        attempt("proxy-socks", "speak SOCKS to the proxy")
            .act(Talk::proxy(&["\u{5}\u{1}\0", "{token}"]))
            .refused(Layer::Requests, &["malformed_request"]),
        attempt("redirect", "follow a redirection to another host")
            .harm(Harm::Token)
            .act(Talk::allowed(&["GET /echo/location HTTP/1.1\r\nHost: allowed.test:{https}\r\nConnection: close\r\n\r\n"]))
            .act(Talk::tunnel("other.test:{other}", &["GET /{token} HTTP/1.1\r\nHost: other.test:{other}\r\n\r\n"]).tls("other.test"))
            .refused(Layer::Policy, &["not_allowed"]),
        attempt("redirect-metadata", "follow a redirection to the metadata service")
            .act(Talk::allowed(&["GET /echo/location HTTP/1.1\r\nHost: allowed.test:{https}\r\nConnection: close\r\n\r\n"]))
            .act(Talk::with("169.254.169.254:80", &["GET /{token} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"]))
            .refused(Layer::Policy, &["direct_address"]),
        attempt("metadata-host", "send the metadata service's Host header in plain HTTP to an allowed host")
            .act(Talk::with("plain.test:{http}", &["GET /{token} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n"]))
            .refused(Layer::Authority, mismatch),
    ]
}

fn streams() -> Vec<Attempt> {
    let two = |name: &str, tries, url: &str, headers: Vec<(&'static str, String)>| {
        let first = ("GET", "https://allowed.test:{https}/v1/".to_owned(), Vec::new());
        let requests = vec![first, ("GET", url.to_owned(), headers)];
        Attempt::new(format!("http2.{name}"), tries).act(Two {
            to: "allowed.test:{https}".to_owned(),
            plain: false,
            requests,
        })
    };
    let text = |text: &str| text.to_owned();
    let mismatch: &'static [&str] = &["name_mismatch"];
    vec![
        two(
            "coalescing",
            "send a request for another host that the certificate names, too",
            "https://other.test:{https}/v1/{token}",
            vec![],
        )
        .refused(Layer::Authority, mismatch),
        two(
            "coalescing-allowed",
            "the same for a host that another rule allows",
            "https://friend.test:{https}/{token}",
            vec![],
        )
        .refused(Layer::Authority, mismatch),
        two("authority-port", "the same for another port", "https://allowed.test:{other}/v1/{token}", vec![])
            .refused(Layer::Authority, mismatch),
        two(
            "host",
            "send a Host header beside another :authority",
            "https://allowed.test:{https}/v1/{token}",
            vec![("host", text("other.test"))],
        )
        .refused(Layer::Authority, mismatch),
        two("userinfo", "send a user in :authority", "https://user@allowed.test:{https}/v1/{token}", vec![])
            .refused(Layer::Names, &["malformed_name"]),
        two("scheme", "send another :scheme", "http://allowed.test:{https}/v1/{token}", vec![])
            .refused(Layer::Requests, &["malformed_request"]),
        two("path", "send a path that is not allowed", "https://allowed.test:{https}/admin/{token}", vec![])
            .refused(Layer::Policy, &["path_not_allowed"]),
        Attempt::new("http2.prior-knowledge", "speak HTTP/2 without TLS where TLS is required")
            .act(Two {
                to: text("strict.test:{http}"),
                plain: true,
                requests: vec![("GET", text("http://strict.test:{http}/{token}"), vec![])],
            })
            .refused(Layer::Policy, &["tls_required"]),
        Attempt::new("http2.plain-coalescing", "speak HTTP/2 without TLS, with a request for another host")
            .act(Two {
                to: text("plain.test:{http}"),
                plain: true,
                requests: vec![("GET", text("http://other.test:{http}/{token}"), vec![])],
            })
            .refused(Layer::Authority, mismatch),
        Attempt::new("http2.connect", "open a tunnel in an HTTP/2 stream")
            .act(Two {
                to: text("allowed.test:{https}"),
                plain: false,
                requests: vec![("CONNECT", text("other.test:{other}"), vec![("x-token", text("{token}"))])],
            })
            .refused(Layer::Authority, &["name_mismatch", "malformed_request", "method_not_allowed"]),
    ]
}
