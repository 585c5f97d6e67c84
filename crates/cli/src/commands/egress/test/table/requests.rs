//! Requests: smuggled, to other paths, with other methods, too large, too many; and upstreams that are not whom they should be.

use crate::commands::egress::test::attempt::{Attempt, Harm, Layer, Shown, Talk};

const HOST: &str = "Host: allowed.test:{https}\r\n";
/// What is smuggled.
const HIDDEN: &str = "GET /admin/{token} HTTP/1.1\r\nHost: allowed.test:{https}\r\n\r\n";

pub(super) fn attempts() -> Vec<Attempt> {
    let mut all = smuggling();
    all.extend(paths());
    all.extend(limits());
    all.extend(upgrades());
    all.extend(upstreams());
    all
}

fn smuggling() -> Vec<Attempt> {
    let post = |name: &str, tries, rest: &str| {
        Attempt::new(format!("smuggling.{name}"), tries)
            .act(Talk::allowed(&[&format!("POST /v1/ HTTP/1.1\r\n{HOST}{rest}")]))
            .refused(Layer::Requests, &["malformed_request"])
    };
    let hidden = |headers: &str| format!("{headers}\r\n0\r\n\r\n{HIDDEN}");
    let chunked = "Transfer-Encoding: chunked\r\n";
    vec![
        post("length-and-chunks", "state a length and chunks, and hide a request behind the chunks", &hidden(&format!("Content-Length: 200\r\n{chunked}")))
            .shown(Layer::Requests, Shown::Said("HTTP/1.1 200 OK")),
        post("chunks-and-length", "the same the other way round", &hidden(&format!("{chunked}Content-Length: 200\r\n")))
            .shown(Layer::Requests, Shown::Said("HTTP/1.1 200 OK")),
        post("two-lengths", "state two lengths", &format!("Content-Length: 0\r\nContent-Length: 80\r\n\r\n{HIDDEN}")),
        post("length-list", "state two lengths in one header", &format!("Content-Length: 0, 80\r\n\r\n{HIDDEN}")),
        post("length-sign", "state a length with a sign", &format!("Content-Length: +0\r\n\r\n{HIDDEN}")),
        post("length-hex", "state a length in hexadecimal", &format!("Content-Length: 0x0\r\n\r\n{HIDDEN}")),
        post("xchunked", "name an encoding that is almost chunked", &hidden("Transfer-Encoding: xchunked\r\n")),
        post("chunked-identity", "name chunked before another encoding", &hidden("Transfer-Encoding: chunked, identity\r\n")),
        post("chunked-space", "put a space before the colon", &hidden("Transfer-Encoding : chunked\r\n")),
        post("chunked-folded", "fold the header", &hidden("Transfer-Encoding:\r\n chunked\r\n")),
        post("chunked-tab", "put a vertical tab before chunked", &hidden("Transfer-Encoding: \u{b}chunked\r\n")),
        post("chunked-nul", "put NUL before chunked", &hidden("Transfer-Encoding: \0chunked\r\n")),
        post("bare-cr", "hide a header behind a bare carriage return", &hidden("X: y\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n")),
        post("header-newline", "hide a header behind a NUL", &hidden("X: y\0Host: other.test\r\n")),
        post("chunk-size", "state a chunk's size beyond any number", &format!("{chunked}\r\nffffffffffffffff1\r\n{HIDDEN}"))
            .harm(Harm::Token)
            .refused(Layer::Requests, &["request_broken", "malformed_request", "cut_off", "upstream_reset", "request_cut"]),
        post("chunk-sign", "state a chunk's size with a sign", &format!("{chunked}\r\n+0\r\n\r\n{HIDDEN}"))
            .refused(Layer::Requests, &["request_broken", "malformed_request", "cut_off", "upstream_reset", "request_cut"]),
        post("chunk-end", "end a chunk where it does not end", &format!("{chunked}\r\n1\r\nxx0\r\n\r\n{HIDDEN}"))
            .refused(Layer::Requests, &["request_broken", "malformed_request", "cut_off", "upstream_reset", "request_cut"]),
        Attempt::new("smuggling.old-chunks", "send chunks in HTTP/1.0")
            .act(Talk::allowed(&[&format!("POST /v1/ HTTP/1.0\r\n{HOST}{chunked}Connection: keep-alive\r\n\r\n0\r\n\r\n{HIDDEN}")]))
            .refused(Layer::Requests, &["malformed_request", "path_not_allowed"]),
        Attempt::new("smuggling.line-space", "put two spaces in the request line")
            .act(Talk::allowed(&[&format!("GET  /v1/{{token}} HTTP/1.1\r\n{HOST}\r\n")]))
            .refused(Layer::Requests, &["malformed_request"]),
        Attempt::new("smuggling.line-feed", "hide a request behind a line feed in the path")
            .act(Talk::allowed(&[&format!("GET /v1/x\nGET /admin/{{token}} HTTP/1.1\r\n{HOST}\r\n")]))
            .refused(Layer::Requests, &["malformed_request"]),
        Attempt::new("smuggling.encoded-newline", "hide a request line behind encoded line ends in the path")
            .act(Talk::allowed(&[&format!("GET /v1/%0d%0aGET%20/admin/{{token}} HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n")]))
            .refused(Layer::Policy, &["path_not_allowed"]),
        Attempt::new("smuggling.get-body", "hide a request in the body of a GET whose length is dropped as hop-by-hop")
            .harm(Harm::Head)
            .act(Talk::allowed(&[
                &format!("GET /v1/ HTTP/1.1\r\n{HOST}Connection: content-length\r\nContent-Length: 66\r\n\r\n{HIDDEN}"),
                &format!("GET /admin/x HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"),
            ]))
            .refused(Layer::Requests, &["path_not_allowed", "malformed_request"]),
        Attempt::new("smuggling.method-header", "name another method in a header that some servers obey")
            .act(Talk::allowed(&[&format!("POST /v1/{{token}} HTTP/1.1\r\n{HOST}X-HTTP-Method-Override: DELETE\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")]))
            .refused(Layer::Requests, &["malformed_request"]),
        Attempt::new("smuggling.path-header", "name another path in a header that some servers obey")
            .act(Talk::allowed(&[&format!("GET /v1/ HTTP/1.1\r\n{HOST}X-Original-URL: /admin/{{token}}\r\nConnection: close\r\n\r\n")]))
            .refused(Layer::Requests, &["malformed_request"]),
    ]
}

fn paths() -> Vec<Attempt> {
    let mut all: Vec<Attempt> = [
        ("other", "ask for a path that no rule allows", "/admin/{token}"),
        ("dots", "climb out of an allowed path", "/v1/../admin/{token}"),
        ("encoded-dots", "the same with encoded dots", "/v1/%2e%2e/admin/{token}"),
        ("half-encoded-dots", "the same with one encoded dot", "/v1/.%2E/admin/{token}"),
        ("encoded-slash", "the same with an encoded slash", "/v1/..%2fadmin/{token}"),
        ("double-encoding", "the same encoded twice", "/v1/%252e%252e/admin/{token}"),
        ("backslash", "the same with backslashes", "/v1\\..\\admin/{token}"),
        ("encoded-backslash", "the same with encoded backslashes", "/v1/..%5cadmin/{token}"),
        ("long-utf8", "the same with a dot in a longer form of UTF-8", "/v1/%c0%ae%c0%ae/admin/{token}"),
        ("parameters", "the same with parameters, which some servers drop", "/v1/..;/admin/{token}"),
        ("double-slash", "begin with two slashes", "//v1/{token}"),
        ("case", "write an allowed path in capitals", "/V1/{token}"),
        ("nul", "put an encoded NUL behind an allowed path", "/v1/%00/{token}"),
        ("no-slash", "leave out the slash that ends an allowed path", "/v1{token}"),
        ("bad-escape", "write an escape that is none", "/v1/%zz/{token}"),
    ]
    .into_iter()
    .map(|(name, tries, path)| {
        Attempt::new(format!("path.{name}"), tries)
            .act(Talk::allowed(&[&format!("GET {path} HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n")]))
            .refused(Layer::Policy, &["path_not_allowed", "malformed_request"])
    })
    .collect();
    for (name, tries, method) in [
        ("delete", "use a method that no rule allows", "DELETE"),
        ("trace", "use a method that gives the request back", "TRACE"),
        ("case", "write an allowed method in another case", "pOST"),
        ("own", "use a method of one's own", "POSTPONE"),
    ] {
        all.push(
            Attempt::new(format!("method.{name}"), tries)
                .act(Talk::allowed(&[&format!("{method} /v1/{{token}} HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n")]))
                .refused(Layer::Policy, &["method_not_allowed"]),
        );
    }
    all
}

fn limits() -> Vec<Attempt> {
    let attempt = |name: &str, tries| Attempt::new(format!("limit.{name}"), tries);
    let rated = |path: &str| format!("GET /{path} HTTP/1.1\r\nHost: rated.test:{{https}}\r\n\r\n");
    vec![
        attempt("body", "send a longer body than the rule allows")
            .act(Talk::allowed(&[&format!("POST /v1/{{token}} HTTP/1.1\r\n{HOST}Connection: close\r\nContent-Length: 4000\r\n\r\n{{kilobytes}}")]))
            .refused(Layer::Policy, &["too_large"]),
        attempt("chunks", "the same in chunks, so that no length is stated; its end must not arrive")
            .act(Talk::allowed(&[
                &format!("POST /v1/ HTTP/1.1\r\n{HOST}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"),
                "fa0\r\n{kilobytes}\r\n",
                "12\r\n {token}\r\n0\r\n\r\n",
            ]))
            .refused(Layer::Policy, &["too_large"]),
        attempt("rate", "send more requests in a minute than the rule allows")
            .act(Talk::inside("rated.test", &[&rated("one"), &rated("two"), &rated("{token}")]))
            .refused(Layer::Policy, &["rate_exceeded"]),
        attempt("bytes", "send more bytes than the session may")
            .act(Talk::inside("budget.test", &[
                "POST / HTTP/1.1\r\nHost: budget.test:{https}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
                "fa0\r\n{kilobytes}\r\n",
                "12\r\n {token}\r\n0\r\n\r\n",
            ]))
            .refused(Layer::Policy, &["budget_exhausted"]),
        attempt("headers", "send 500 headers")
            .act(Talk::allowed(&[&format!("GET /v1/{{token}} HTTP/1.1\r\n{HOST}{{many}}\r\n")]))
            .refused(Layer::Requests, &["malformed_request"]),
        attempt("header-bytes", "send a header of 100,000 bytes")
            .act(Talk::allowed(&[&format!("GET /v1/{{token}} HTTP/1.1\r\n{HOST}X-Long: {{long}}\r\n\r\n")]))
            .refused(Layer::Requests, &["malformed_request"]),
    ]
}

fn upgrades() -> Vec<Attempt> {
    let upgrade = |name: &str, tries, to: &str, more: &str| {
        let head = format!("GET /v1/{{token}} HTTP/1.1\r\n{HOST}Connection: Upgrade{more}\r\nUpgrade: {to}\r\n");
        Attempt::new(format!("upgrade.{name}"), tries)
            .act(Talk::allowed(&[&format!("{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")]))
            .refused(Layer::Policy, &["upgrade_not_allowed"])
    };
    let mut all = vec![
        upgrade("websocket", "open a WebSocket where the rule does not say so", "websocket", ""),
        upgrade("h2c", "change to HTTP/2 in the clear", "h2c", ", HTTP2-Settings"),
        upgrade("both", "offer both", "websocket, h2c", ""),
        upgrade("own", "change to a protocol of one's own", "tunnel/1.0", ""),
    ];
    all.push(
        Attempt::new("tls.plain", "speak plain HTTP where TLS is required")
            .act(Talk::with(
                "strict.test:{http}",
                &["GET /{token} HTTP/1.1\r\nHost: strict.test:{http}\r\nConnection: close\r\n\r\n"],
            ))
            .refused(Layer::Policy, &["tls_required"]),
    );
    all.push(
        Attempt::new("tls.plain-proxy", "the same by way of the proxy")
            .act(Talk::proxy(&["GET http://strict.test:{http}/{token} HTTP/1.1\r\nHost: strict.test:{http}\r\nConnection: close\r\n\r\n"]))
            .refused(Layer::Policy, &["tls_required"]),
    );
    all.push(
        Attempt::new("tls.raw", "speak something else where TLS is required")
            .act(Talk::with("allowed.test:{https}", &["\0\u{1}\u{2} {token}\n"]))
            .refused(Layer::Policy, &["protocol_not_allowed"]),
    );
    all.push(
        Attempt::new("tls.raw-tunnel", "the same in a tunnel of the proxy")
            .act(Talk::tunnel("allowed.test:{https}", &["SSH-2.0-{token}\r\n"]))
            .refused(Layer::Policy, &["protocol_not_allowed"]),
    );
    all
}

fn upstreams() -> Vec<Attempt> {
    let bad = |name: &str, tries, host: &str, port: &str, codes| {
        let get = format!("GET /{{token}} HTTP/1.1\r\nHost: {host}:{{{port}}}\r\nConnection: close\r\n\r\n");
        Attempt::new(format!("certificate.{name}"), tries)
            .act(Talk::tunnel(&format!("{host}:{{{port}}}"), &[&get]).tls(host))
            .refused(Layer::Certificate, codes)
    };
    vec![
        bad(
            "expired",
            "reach an upstream whose certificate has expired",
            "expired.test",
            "expired",
            &["upstream_certificate_expired"],
        ),
        bad(
            "expired-through",
            "the same where the connection is carried as it is",
            "expired-through.test",
            "expired",
            &["upstream_certificate_expired"],
        ),
        bad(
            "name",
            "reach an upstream whose certificate is for another name",
            "wrong.test",
            "wrong",
            &["upstream_certificate_name"],
        ),
        bad(
            "authority",
            "reach an upstream whose certificate nobody vouches for",
            "unknown.test",
            "unknown",
            &["upstream_certificate_unknown"],
        ),
    ]
}
