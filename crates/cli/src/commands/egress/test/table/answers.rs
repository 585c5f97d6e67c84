//! Answers: an upstream that says the credential again, in all ways of writing it.

use crate::commands::egress::test::attempt::Shown;
use crate::commands::egress::test::attempt::{Attempt, Harm, Layer, Talk, Two};

fn echo(way: &str, tries: &'static str) -> Attempt {
    let get = format!(
        "GET /echo/{way} HTTP/1.1\r\nHost: allowed.test:{{https}}\r\nConnection: close\r\nTE: trailers\r\n\
         Accept-Encoding: gzip, deflate, br\r\nAuthorization: Bearer {{placeholder}}\r\n\r\n"
    );
    Attempt::new(format!("echo.{way}"), tries)
        .harm(Harm::Common)
        .act(Talk::allowed(&[&get]))
        .shown(Layer::Answers, Shown::Redacted)
}

pub(super) fn attempts() -> Vec<Attempt> {
    let mut all: Vec<Attempt> = [
        ("plain", "read the value in an answer that repeats it"),
        ("base64-0", "the same in base64"),
        ("base64-1", "the same in base64 that begins a byte later"),
        ("base64-2", "the same in base64 that begins two bytes later"),
        ("base64-url", "the same in the base64 of URLs"),
        ("basic", "the same as Basic writes it"),
        ("percent", "the same with what must be encoded in percent"),
        ("percent-all", "the same with all of it in percent"),
        ("percent-lower", "the same with all of it in percent, in small letters"),
        ("hex", "the same in hexadecimal"),
        ("hex-upper", "the same in hexadecimal, in capitals"),
        ("json", "the same in escapes of JSON"),
        ("json-upper", "the same in escapes of JSON, in capitals"),
        ("json-slash", "the same with escaped slashes"),
        ("gzip", "the same in gzip"),
        ("gzip-members", "the same in two members of gzip, cut within the value"),
        ("deflate", "the same in deflate without a header"),
        ("zlib", "the same in deflate with a header"),
        ("chunks", "the same in chunks of one byte"),
        ("halves", "the same in two chunks, cut within the value"),
        ("events", "the same in an event of a stream"),
        ("grown", "the same behind 200,000 other bytes"),
        ("again", "the same fifty times in a row"),
        ("header", "the same in a header"),
        ("header-base64", "the same in a header, in base64"),
        ("cookie", "the same in a cookie that is set"),
        ("location", "the same in a redirection to another host"),
        ("error", "the same in an error"),
        ("binary", "the same between bytes that are no text"),
        ("range", "the same in a part of a document"),
    ]
    .into_iter()
    .map(|(way, tries)| echo(way, tries))
    .collect();
    all.push(
        echo("reason", "the same in the reason of the status line")
            .shown(Layer::Answers, Shown::Said("HTTP/1.1 200 OK")),
    );
    all.push(
        echo("brotli", "the same in an encoding that cannot be looked into")
            .refused(Layer::Answers, &["unscannable_answer"]),
    );
    all.push(echo("gzip-twice", "the same in gzip within gzip").refused(Layer::Answers, &["unscannable_answer"]));
    all.push(
        echo("bomb", "the same behind 16 MiB of zeros that take 16 KiB")
            .refused(Layer::Answers, &["unscannable_answer"]),
    );
    for (name, tries, way) in
        [("http2", "the same over HTTP/2", "plain"), ("trailer", "the same in a trailer", "trailer")]
    {
        let headers = vec![("authorization", "Bearer {placeholder}".to_owned()), ("te", "trailers".to_owned())];
        let url = format!("https://allowed.test:{{https}}/echo/{way}");
        all.push(
            Attempt::new(format!("echo.{name}"), tries)
                .harm(Harm::Common)
                .act(Two { to: "allowed.test:{https}".to_owned(), plain: false, requests: vec![("GET", url, headers)] })
                .shown(Layer::Answers, Shown::Redacted),
        );
    }
    all
}
