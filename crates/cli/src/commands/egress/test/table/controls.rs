//! Controls: the same ways, where the policy leads out. If one fails, an attempt may have been refused for want of a way.

use crate::commands::egress::test::attempt::{Act, Attempt, Harm, Layer, Query, Shown, Talk, Two};

pub(super) fn attempts() -> Vec<Attempt> {
    let control = |name: &str, tries, act: Act, shown| {
        Attempt::new(format!("control.{name}"), tries).act(act).harm(Harm::Common).shown(Layer::None, shown)
    };
    let get = "GET /v1/{token} HTTP/1.1\r\nHost: allowed.test:{https}\r\nConnection: close\r\n\r\n";
    let plain = "GET /{token} HTTP/1.1\r\nHost: plain.test:{http}\r\nConnection: close\r\n\r\n";
    let absolute =
        "GET http://plain.test:{http}/{token} HTTP/1.1\r\nHost: plain.test:{http}\r\nConnection: close\r\n\r\n";
    let with = |place: &str| {
        format!("GET /v1/x HTTP/1.1\r\nHost: allowed.test:{{https}}\r\nConnection: close\r\n{place}\r\n\r\n")
    };
    let body = "POST /v1/ HTTP/1.1\r\nHost: allowed.test:{https}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n {token}\r\n0\r\n\r\n";
    let two = |url: &str, headers| {
        Act::Two(Two {
            to: "allowed.test:{https}".to_owned(),
            plain: false,
            requests: vec![("GET", url.to_owned(), headers)],
        })
    };
    vec![
        control(
            "tunnel",
            "reach an allowed host through the proxy",
            Talk::allowed(&[get]).into(),
            Shown::Arrived("https"),
        ),
        control(
            "transparent",
            "reach it without the proxy",
            Talk::with("allowed.test:{https}", &[get]).tls("allowed.test").into(),
            Shown::Arrived("https"),
        ),
        control(
            "through",
            "reach a host whose connections are carried as they are",
            Talk::with(
                "through.test:{https}",
                &["GET /{token} HTTP/1.1\r\nHost: through.test:{https}\r\nConnection: close\r\n\r\n"],
            )
            .tls("through.test")
            .into(),
            Shown::Arrived("https"),
        ),
        control(
            "plain",
            "reach a host that is allowed without TLS",
            Talk::with("plain.test:{http}", &[plain]).into(),
            Shown::Arrived("http"),
        ),
        control("plain-proxy", "the same through the proxy", Talk::proxy(&[absolute]).into(), Shown::Arrived("http")),
        control(
            "plain-http2",
            "the same with HTTP/2",
            Act::Two(Two {
                to: "plain.test:{http}".to_owned(),
                plain: true,
                requests: vec![("GET", "http://plain.test:{http}/{token}".to_owned(), vec![])],
            }),
            Shown::Arrived("http"),
        ),
        control(
            "tcp",
            "reach a host that is allowed for plain TCP",
            Talk::with("tcp.test:{tcp}", &["{token}"]).into(),
            Shown::Arrived("tcp"),
        ),
        control(
            "http2",
            "reach an allowed host with HTTP/2",
            two("https://allowed.test:{https}/v1/{token}", vec![]),
            Shown::Arrived("https"),
        ),
        control("body", "send a body in chunks", Talk::allowed(&[body]).into(), Shown::Arrived("https")),
        control(
            "rebinding",
            "reach a name before it leads elsewhere",
            Talk::with(
                "once-{fresh}.rebind.test:{rebind}",
                &["GET /{token} HTTP/1.1\r\nHost: once-{fresh}.rebind.test:{rebind}\r\nConnection: close\r\n\r\n"],
            )
            .into(),
            Shown::Arrived("before"),
        ),
        control(
            "dot",
            "write an allowed name with a dot at the end and in capitals",
            Talk::tunnel("ALLOWED.test.:{https}", &[get]).tls("allowed.test").into(),
            Shown::Arrived("https"),
        ),
        control(
            "dns",
            "look up an allowed name",
            Act::Query(Query {
                to: "resolver".to_owned(),
                tcp: false,
                name: "allowed.test".to_owned(),
                kind: 1,
                padding: 0,
            }),
            Shown::Heard("code 0, 1 answers"),
        ),
        control(
            "dns-tcp",
            "the same over TCP",
            Act::Query(Query {
                to: "8.8.8.8:53".to_owned(),
                tcp: true,
                name: "allowed.test".to_owned(),
                kind: 1,
                padding: 0,
            }),
            Shown::Heard("code 0, 1 answers"),
        ),
        control(
            "header",
            "have a credential put into a header",
            Talk::allowed(&[&with("Authorization: Bearer {placeholder}")]).into(),
            Shown::Injected,
        ),
        control(
            "basic",
            "the same within Basic",
            Talk::allowed(&[&with("Authorization: Basic {basic}")]).into(),
            Shown::Injected,
        ),
        control(
            "http2-header",
            "the same with HTTP/2",
            two("https://allowed.test:{https}/v1/x", vec![("authorization", "Bearer {placeholder}".to_owned())]),
            Shown::Injected,
        ),
        control(
            "query",
            "the same in a query, where it is enabled",
            Talk::allowed(&[
                "GET /v1/?key={anywhere} HTTP/1.1\r\nHost: allowed.test:{https}\r\nConnection: close\r\n\r\n",
            ])
            .into(),
            Shown::Injected,
        ),
    ]
}
