//! The broker on answers: no value comes back in any of the ways it may be written, and nothing is held back without need.

use std::io::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::HeaderMap;
use http::response;
use palisade_egress::broker::{
    AnswerPlan, BodyPlan, Broker, Credential, Exchange, Expected, Hosts, Injection, Misuse, Places, Wire,
};
use proptest::prelude::*;

use super::broker::{EVERYWHERE, Source, authority, credential, mint, placeholder, request};

/// A broker whose credentials have all been put in once, as the answers of upstreams can only hold what they were sent.
async fn used(values: &[&str]) -> Broker {
    let credentials =
        values.iter().enumerate().map(|(at, value)| credential(&format!("V{at}"), &["api.test"], Source::new(value)));
    let broker = Broker::new(&mint(), "s", credentials.collect()).unwrap();
    for (_, token) in broker.environment() {
        ask(&broker, "/", &token).await;
    }
    broker
}

async fn ask(broker: &Broker, path: &str, token: &str) -> Injection {
    let body = format!("t={token}");
    let headers = [
        ("content-type", "application/x-www-form-urlencoded".to_owned()),
        ("content-length", body.len().to_string()),
        ("accept-encoding", "br;q=1.0, gzip;q=0.8, *;q=0.1".to_owned()),
    ];
    let mut parts = request("POST", path, &headers);
    let mut injection = broker.inject(&mut parts, Wire::Https, &authority("api.test")).await.unwrap();
    assert_eq!(parts.headers["accept-encoding"], "gzip;q=0.8");
    let guard = broker.inject(&mut request("GET", "/", &[]), Wire::Https, &authority("api.test")).await.unwrap().body;
    let BodyPlan::Whole(whole) = std::mem::replace(&mut injection.body, guard) else { panic!() };
    whole.finish(&mut parts, body.into()).await.unwrap();
    injection
}

fn answer(headers: &[(&str, &str)]) -> response::Parts {
    let mut answer = http::Response::builder().status(200);
    for (name, value) in headers {
        answer = answer.header(*name, *value);
    }
    answer.body(()).unwrap().into_parts().0
}

fn scan(broker: &Broker, expected: &Expected, headers: &[(&str, &str)], pieces: &[&[u8]]) -> Result<Vec<u8>, Misuse> {
    let mut parts = answer(headers);
    let (AnswerPlan::Scan(mut scan), _) = broker.answer(expected, &mut parts)? else { panic!("not searched") };
    assert!(!parts.headers.contains_key("content-encoding") && !parts.headers.contains_key("content-length"));
    let mut out = Vec::new();
    for piece in pieces {
        scan.feed(Bytes::copy_from_slice(piece));
        while let Some(piece) = scan.next()? {
            assert!(piece.len() <= 1024 * 1024);
            out.extend_from_slice(&piece);
        }
    }
    out.extend_from_slice(&scan.finish()?);
    Ok(out)
}

fn redact(broker: &Broker, pieces: &[&[u8]]) -> (Vec<u8>, u64) {
    let mut redactor = broker.redactor();
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(&redactor.push(Bytes::copy_from_slice(piece)));
    }
    out.extend_from_slice(&redactor.finish());
    (out, redactor.found())
}

const SECRET: &str = "tok/En+w1th=odd\"chars&é~%41\\";

/// One way of writing a text, chosen by `way` for the whole and by `dice` for each character.
fn written(text: &str, way: usize, dice: &[u8]) -> String {
    let die = |at: usize| dice[at % dice.len()];
    let hex = |upper: bool| {
        text.bytes().map(|byte| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect::<String>()
    };
    match way {
        0 => text.to_owned(),
        1 => STANDARD.encode(text),
        2 => STANDARD.encode(format!("a{text}b")),
        3 => STANDARD.encode(format!("ab{text}bcd")),
        4 => URL_SAFE_NO_PAD.encode(format!("{text}?")),
        5 => URL_SAFE_NO_PAD.encode(format!("~{text}")),
        6 => hex(false),
        7 => hex(true),
        8 => serde_json::to_string(text).unwrap(),
        // Lines as in mail and PEM.
        9 | 10 => {
            let all = STANDARD_NO_PAD.encode(format!("{}{text}", &"user:name"[..usize::from(die(0)) % 9]));
            let width = 4 * (1 + usize::from(die(1)) % 19);
            let lines: Vec<String> =
                all.as_bytes().chunks(width).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
            lines.join(if way == 9 { "\n" } else { "\r\n" })
        }
        // Base64 in a URL.
        11 => STANDARD.encode(text).replace('+', "%2B").replace('/', "%2f").replace('=', "%3D"),
        // Percent or JSON escapes for some characters, in either case.
        _ => {
            let mut out = String::new();
            for (at, character) in text.chars().enumerate() {
                let mut buffer = [0; 2];
                let upper = die(at) & 8 != 0;
                match (way % 2, die(at) & 3) {
                    (_, 0 | 1) if !"%\\\"".contains(character) => out.push(character),
                    (0, _) => {
                        for byte in character.to_string().bytes() {
                            out += &if upper { format!("%{byte:02X}") } else { format!("%{byte:02x}") };
                        }
                    }
                    _ => {
                        for unit in character.encode_utf16(&mut buffer) {
                            out += &if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") };
                        }
                    }
                }
            }
            out
        }
    }
}

/// What somebody who looks for the secret would try.
fn readable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text).into_owned();
    let mut all = text.clone();
    let percent = percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned();
    all += &format!("\n{percent}\n");
    let mut rest = text.as_str();
    while let Some(at) = rest.find("\\u") {
        all += &rest[..at];
        match rest.get(at + 2..at + 6).and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32)
        {
            Some(character) => {
                all.push(character);
                rest = &rest[at + 6..];
            }
            None => {
                all += "\\u";
                rest = &rest[at + 2..];
            }
        }
    }
    all += rest;
    let base64: String = percent
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| {
            if c == '-' {
                '+'
            } else if c == '_' {
                '/'
            } else {
                c
            }
        })
        .collect();
    for run in base64.split(|c: char| !c.is_ascii_alphanumeric() && c != '+' && c != '/') {
        for skip in 0..4 {
            let run = run.get(skip..).unwrap_or_default();
            let run = &run[..run.len() / 4 * 4];
            all += &format!("\n{}", String::from_utf8_lossy(&STANDARD.decode(run).unwrap_or_default()));
        }
    }
    for skip in 0..2 {
        for run in text.split(|c: char| !c.is_ascii_hexdigit()) {
            let run = run.as_bytes().get(skip..).unwrap_or_default();
            let bytes: Vec<u8> = run
                .chunks_exact(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect();
            all += &format!("\n{}", String::from_utf8_lossy(&bytes));
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// A secret in any writing, in any surroundings, in any pieces, does not come through; what is around it does.
    #[test]
    fn no_writing_of_a_secret_comes_through(
        secret in prop_oneof![Just(SECRET.to_owned()), "[ -~]{8,40}", "[a-zA-Z0-9]{16,64}"],
        way in 0_usize..20,
        dice in prop::collection::vec(any::<u8>(), 1..40),
        around in prop_oneof![Just(""), Just(": "), Just("\n"), Just("data: {\"a\":\"")],
        cuts in prop::collection::vec(0.0..1.0_f64, 0..10),
    ) {
        let secret = secret.trim();
        prop_assume!(secret.len() >= 8);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let broker = runtime.block_on(used(&[secret]));
        let text = format!("before{around}{}\n after", written(secret, way, &dice));
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| (cut * text.len() as f64) as usize).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
        let (out, found) = redact(&broker, &pieces);
        prop_assert_eq!(&out, &redact(&broker, &[text.as_bytes()]).0, "pieces do not matter");
        prop_assert!(found >= 1, "{} {:?} in {:?}", way, secret, text);
        prop_assert!(!readable(&out).contains(secret), "{} {:?} in {:?}", way, secret, String::from_utf8_lossy(&out));
        prop_assert!(out.starts_with(b"before") && out.ends_with(b" after"));
        // What has frames keeps its length.
        let mut keeping = broker.redactor().keeping_length();
        let kept = [keeping.push(text.clone().into()), keeping.finish()].concat();
        prop_assert_eq!(kept.len(), text.len());
        prop_assert!(!readable(&kept).contains(secret));
    }

    /// What holds no secret is let through unchanged.
    #[test]
    fn other_text_is_left_alone(text in "[ -~\n]{0,400}", cut in 0.0..1.0_f64) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let broker = runtime.block_on(used(&["a-secret-that-is-not-in-there"]));
        let (a, b) = text.as_bytes().split_at((cut * text.len() as f64) as usize);
        prop_assert_eq!(redact(&broker, &[a, b]), (text.into_bytes(), 0));
    }
}

#[tokio::test]
async fn an_echo_comes_back_as_its_placeholder() {
    let broker = used(&["plain-secret-value", SECRET]).await;
    let (one, two) = (placeholder(&broker, "V0"), placeholder(&broker, "V1"));
    let text = format!("{{\"a\":\"plain-secret-value\",\"b\":{}}}", serde_json::to_string(SECRET).unwrap());
    let (out, found) = redact(&broker, &[text.as_bytes()]);
    assert_eq!((String::from_utf8(out).unwrap(), found), (format!("{{\"a\":\"{one}\",\"b\":\"{two}\"}}"), 2));

    // Basic credentials still decode after it.
    let (out, _) = redact(&broker, &[STANDARD.encode("user:plain-secret-value").as_bytes()]);
    let decoded = String::from_utf8(STANDARD.decode(out).unwrap()).unwrap();
    assert!(decoded.starts_with(&format!("user:{}", &one[..17])), "{decoded}");

    let injection = ask(&broker, "/", &one).await;
    let mut parts =
        answer(&[("location", "/?t=plain%2Dsecret-value"), ("set-cookie", "s=plain-secret-value; Path=/"), ("x", "y")]);
    let (_, found) = broker.answer(&injection.answer, &mut parts).unwrap();
    assert_eq!(found, 2);
    assert_eq!(parts.headers["location"], format!("/?t={one}"));
    assert_eq!(parts.headers["set-cookie"], format!("s={one}; Path=/"));
    let (AnswerPlan::Scan(mut scan), _) = broker.answer(&injection.answer, &mut answer(&[])).unwrap() else { panic!() };
    let mut trailers = HeaderMap::new();
    trailers.insert("x-echo", "plain-secret-value".parse().unwrap());
    scan.trailers(&mut trailers);
    assert_eq!((trailers["x-echo"].to_str().unwrap(), scan.found()), (one.as_str(), 1));
}

/// Events must not wait for the next one.
#[tokio::test]
async fn nothing_is_held_back_that_cannot_begin_a_secret() {
    let secret = "sk-ant-api03-abcdefghijklmnop";
    let broker = used(&[secret, "eyJhbGciOiJIUzI1NiJ9.payload.signature"]).await;
    let mut redactor = broker.redactor();
    for event in [
        "data: hello\n\n",
        "data: {\"x\": 1}\n\n",
        ": ping\n\n",
        "data: sk-ant-api02\n\n",
        "data: eyJhbGciOiJSUzI1NiJ9.\n\n",
    ] {
        assert_eq!(redactor.push(event.into()), event);
    }
    // Byte by byte: only what may still become a secret waits, and it goes on as soon as it cannot.
    let mut waiting = 0;
    for (at, byte) in secret.bytes().enumerate().take(20) {
        waiting += 1;
        assert_eq!(redactor.push(vec![byte].into()), "", "{at}");
    }
    assert_eq!(redactor.push("!".into()).len(), waiting + 1);
    assert_eq!(redactor.push("sk-ant-api0".into()), "");
    assert_eq!(redactor.finish(), "sk-ant-api0");
}

#[tokio::test]
async fn a_value_that_is_put_in_later_is_known_to_streams_that_run() {
    let broker = Broker::new(&mint(), "s", vec![credential("T", &["api.test"], Source::new("later-value"))]).unwrap();
    let mut redactor = broker.redactor();
    assert_eq!(redactor.push("later-value".into()), "later-value");
    let token = placeholder(&broker, "T");
    ask(&broker, "/", &token).await;
    assert_eq!(redactor.push("later-value ".into()), format!("{token} "));
}

#[tokio::test]
async fn compressed_answers_are_searched_or_refused() {
    let broker = used(&["plain-secret-value"]).await;
    let token = placeholder(&broker, "V0");
    let expected = ask(&broker, "/", &token).await.answer;
    let text = "x".repeat(5000) + "plain-secret-value";
    let gzip = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let zlib = {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let raw = {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let two_members = [gzip(&text.as_bytes()[..2000]), gzip(&text.as_bytes()[2000..])].concat();
    let zstd = zstd::encode_all(text.as_bytes(), 3).unwrap();
    let clean = text.replace("plain-secret-value", &token);
    for (coding, body) in [
        ("gzip", gzip(text.as_bytes())),
        ("x-gzip", two_members),
        ("deflate", zlib),
        ("deflate", raw),
        ("zstd", zstd.clone()),
        ("identity", text.clone().into()),
    ] {
        for size in [1, 100, usize::MAX] {
            let pieces: Vec<&[u8]> = body.chunks(size.min(body.len())).collect();
            let out =
                scan(&broker, &expected, &[("content-encoding", coding), ("content-length", "1")], &pieces).unwrap();
            assert!(out == clean.as_bytes(), "{coding} {size}");
        }
        if coding != "identity" {
            let cut =
                scan(&broker, &expected, &[("content-encoding", coding)], &[&body[..body.len() - 5]]).unwrap_err();
            assert_eq!(cut.code(), "unscannable_answer", "{coding} cut off");
            scan(&broker, &expected, &[("content-encoding", coding)], &[b"this is none"]).unwrap_err();
        }
    }
    for headers in [
        vec![("content-encoding", "br")],
        vec![("content-encoding", "gzip, gzip")],
        vec![("content-encoding", "gzip"), ("content-encoding", "br")],
    ] {
        let refused = broker.answer(&expected, &mut answer(&headers)).map(drop).unwrap_err();
        assert_eq!(refused.code(), "unscannable_answer", "{headers:?}");
    }
    // Bombs stop early, and no step gives much.
    let zeros = vec![0; 64 * 1024 * 1024];
    for (coding, bomb) in [("gzip", gzip(&zeros)), ("zstd", zstd::encode_all(&zeros[..], 3).unwrap())] {
        let refused = scan(&broker, &expected, &[("content-encoding", coding)], &[&bomb]).unwrap_err();
        assert_eq!(refused, Misuse::Unscannable { why: "it expands more than 200 times" }, "{coding}");
    }
}

fn oauth(exchange: Places) -> Credential {
    let mut credential = credential("CLIENT_SECRET", &["api.test"], Source::new("client-secret-value"));
    credential.places = EVERYWHERE;
    let hosts = Some(Hosts::limited(&["resource.test"]).unwrap());
    credential.exchange = Some(Exchange { path: "/oauth/token".into(), hosts, places: exchange });
    credential
}

async fn exchanged(broker: &Broker, kind: &str, body: &str) -> Result<(response::Parts, String), Misuse> {
    let injection = ask(broker, "/oauth/token", &placeholder(broker, "CLIENT_SECRET")).await;
    let mut parts = answer(&[("content-type", kind)]);
    let (AnswerPlan::Seal(mut seal), _) = broker.answer(&injection.answer, &mut parts)? else { panic!() };
    let (a, b) = body.as_bytes().split_at(body.len() / 2);
    seal.feed(Bytes::copy_from_slice(a))?;
    seal.feed(Bytes::copy_from_slice(b))?;
    let (out, _) = seal.finish(&mut parts)?;
    Ok((parts, String::from_utf8(out.to_vec()).unwrap()))
}

#[tokio::test]
async fn tokens_of_an_exchange_become_placeholders_for_the_same_hosts() {
    let broker = Broker::new(&mint(), "s", vec![oauth(Places::default())]).unwrap();
    let body = r#"{"access_token":"ghp_realaccesstoken0000000000000000000000","refresh_token":"real-refresh","id_token":"eyJh.eyJz.sig1234","expires_in":3600,"authed_user":{"access_token":"xoxp-real-user-token"},"echo":"client-secret-value"}"#;
    let (parts, out) = exchanged(&broker, "application/json; charset=utf-8", body).await.unwrap();
    assert_eq!(parts.headers["content-length"], out.len().to_string());
    for real in ["realaccess", "real-refresh", "sig1234", "real-user", "client-secret-value"] {
        assert!(!out.contains(real), "{out}");
    }
    let tokens: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(tokens["expires_in"], 3600);
    let access = tokens["access_token"].as_str().unwrap();
    assert!(access.starts_with("ghp_") && access.len() == 40);
    // The same token again has the same placeholder.
    let again = exchanged(&broker, "application/json", body).await.unwrap().1;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&again).unwrap(), tokens);

    let bearer = |token: &str| request("GET", "/", &[("authorization", format!("Bearer {token}"))]);
    let mut parts = bearer(access);
    let injection = broker.inject(&mut parts, Wire::Https, &authority("resource.test")).await.unwrap();
    assert_eq!(parts.headers["authorization"], "Bearer ghp_realaccesstoken0000000000000000000000");
    assert_eq!(injection.references, ["test/CLIENT_SECRET"]);
    broker.inject(&mut bearer(access), Wire::Https, &authority("evil.test")).await.unwrap_err();
    // A refresh token goes back to the endpoint, in the body, and nowhere else.
    let refresh = tokens["refresh_token"].as_str().unwrap();
    broker.inject(&mut bearer(refresh), Wire::Https, &authority("resource.test")).await.unwrap_err();
    ask(&broker, "/oauth/token", refresh).await;
    // Answers are searched for them, too.
    let (out, found) = redact(&broker, &[b"echo ghp_realaccesstoken0000000000000000000000"]);
    assert_eq!((String::from_utf8(out).unwrap(), found), (format!("echo {access}"), 1));

    let (_, out) =
        exchanged(&broker, "application/x-www-form-urlencoded", "access_token=real%2Dtoken1&scope=a").await.unwrap();
    assert!(!out.contains("real") && out.ends_with("&scope=a"), "{out}");
    for (kind, body) in [("text/html", "<b>access_token=abc</b>"), ("application/json", "{\"access_token\":\"x")] {
        assert_eq!(exchanged(&broker, kind, body).await.map(drop).unwrap_err().code(), "unscannable_answer");
    }
    let large = format!("{{\"access_token\":\"{}\"}}", "x".repeat(300_000));
    assert_eq!(
        exchanged(&broker, "application/json", &large).await.map(drop).unwrap_err().code(),
        "unscannable_answer"
    );
}

#[tokio::test]
async fn answers_that_nobody_asked_with_a_credential_flow_freely() {
    let broker =
        Arc::new(Broker::new(&mint(), "s", vec![credential("T", &["api.test"], Source::new("value-of-t"))]).unwrap());
    let mut parts = request("GET", "/", &[("accept-encoding", "br".to_owned())]);
    let injection = broker.inject(&mut parts, Wire::Https, &authority("other.test")).await.unwrap();
    assert_eq!(parts.headers["accept-encoding"], "br");
    let mut parts = answer(&[("content-encoding", "br"), ("content-length", "7")]);
    assert!(matches!(broker.answer(&injection.answer, &mut parts).unwrap(), (AnswerPlan::Stream, 0)));
    assert_eq!(parts.headers["content-length"], "7");
}

/// Downloads keep their length, parts of them their place, and frames their shape.
#[tokio::test]
async fn what_is_no_text_keeps_its_length() {
    let broker = used(&["plain-secret-value"]).await;
    let expected = ask(&broker, "/", &placeholder(&broker, "V0")).await.answer;
    let body = b"\0\x01\x02plain-secret-value\xff";
    for (status, kind, keeps) in [
        (200, "application/octet-stream", true),
        (200, "application/grpc+proto", true),
        (206, "text/plain", true),
        (200, "text/plain", false),
    ] {
        let mut parts = answer(&[("content-type", kind), ("content-length", "22")]);
        parts.status = http::StatusCode::from_u16(status).unwrap();
        let (AnswerPlan::Scan(mut scan), _) = broker.answer(&expected, &mut parts).unwrap() else { panic!() };
        assert_eq!(parts.headers.contains_key("content-length"), keeps, "{kind}");
        scan.feed(Bytes::from_static(body));
        let mut out = scan.next().unwrap().unwrap_or_default().to_vec();
        out.extend_from_slice(&scan.finish().unwrap());
        assert_eq!((out.len() == body.len(), scan.found()), (keeps, 1), "{kind}");
        assert!(!String::from_utf8_lossy(&out).contains("plain-secret"));
    }
}

#[tokio::test]
async fn a_token_that_was_given_goes_with_the_credential_that_it_was_given_for() {
    let source = Source::new("client-secret-value");
    let mut client = oauth(EVERYWHERE);
    client.value = source.clone();
    let broker = Broker::new(&mint(), "s", vec![client]).unwrap();
    // Many of them: the oldest are given up, the rest stay.
    let mut tokens = Vec::new();
    for at in 0..70 {
        let body = format!("{{\"access_token\":\"real-access-token-{at}\"}}");
        let (_, out) = exchanged(&broker, "application/json", &body).await.unwrap();
        let out: serde_json::Value = serde_json::from_str(&out).unwrap();
        tokens.push(out["access_token"].as_str().unwrap().to_owned());
    }
    let use_it = async |at: usize| {
        let mut parts = request("GET", "/", &[("x", tokens[at].clone())]);
        broker.inject(&mut parts, Wire::Https, &authority("resource.test")).await.map(|_| parts.headers["x"].clone())
    };
    assert_eq!(use_it(0).await.unwrap_err(), Misuse::Replay);
    assert_eq!(use_it(69).await.unwrap(), "real-access-token-69");
    source.set(Err(palisade_egress::SupplyError::Revoked));
    assert!(matches!(use_it(69).await.unwrap_err(), Misuse::Revoked { .. }));
}
