//! The broker on requests: where placeholders become values, and where they stop everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::request::Parts;
use palisade_api::Secret;
use palisade_egress::broker::{
    BodyPlan, Broker, BrokerError, Credential, Hosts, Kind, Mint, Misuse, Places, Shape, Wire,
};
use palisade_egress::{Authority, Supply, SupplyError};
use proptest::prelude::*;

/// A source whose value can be changed and revoked, and that counts how often it was asked.
#[derive(Debug)]
pub(crate) struct Source {
    value: std::sync::Mutex<Result<Arc<Secret>, SupplyError>>,
    asked: AtomicU32,
}

impl Source {
    pub(crate) fn new(value: &str) -> Arc<Source> {
        let value = std::sync::Mutex::new(Ok(Arc::new(Secret::new(value))));
        Arc::new(Source { value, asked: AtomicU32::new(0) })
    }

    pub(crate) fn set(&self, value: Result<&str, SupplyError>) {
        *self.value.lock().unwrap() = value.map(|value| Arc::new(Secret::new(value)));
    }
}

#[async_trait]
impl Supply for Source {
    async fn value(&self) -> Result<Arc<Secret>, SupplyError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.value.lock().unwrap().clone()
    }
}

pub(crate) fn authority(text: &str) -> Authority {
    Authority::parse(text, Some(443)).unwrap()
}

pub(crate) const EVERYWHERE: Places = Places { header: true, query: true, path: true, body: true };

pub(crate) fn credential(variable: &str, hosts: &[&str], source: Arc<dyn Supply>) -> Credential {
    let hosts = Hosts::limited(hosts).unwrap();
    let mut credential = Credential::new(format!("test/{variable}"), variable, hosts, source);
    credential.places = EVERYWHERE;
    credential
}

pub(crate) fn mint() -> Mint {
    Mint::from_key(&[7; 32])
}

pub(crate) fn placeholder(broker: &Broker, variable: &str) -> String {
    broker.environment().into_iter().find(|(name, _)| name == variable).unwrap().1
}

pub(crate) fn request(method: &str, uri: &str, headers: &[(&str, String)]) -> Parts {
    let mut request = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    request.body(()).unwrap().into_parts().0
}

/// Sends a request as the proxy does: what the upstream would get, head and body.
async fn send(broker: &Broker, to: &str, mut parts: Parts, body: &[&[u8]]) -> Result<(Parts, Vec<u8>), Misuse> {
    let injection = broker.inject(&mut parts, Wire::Https, &authority(to)).await?;
    let mut out = Vec::new();
    match injection.body {
        BodyPlan::Replace(mut replacer) => {
            for piece in body {
                out.extend_from_slice(&replacer.push(Bytes::copy_from_slice(piece))?);
            }
            out.extend_from_slice(&replacer.finish()?);
        }
        BodyPlan::Whole(whole) => {
            out.extend_from_slice(&whole.finish(&mut parts, body.concat().into()).await?.0);
        }
    }
    Ok((parts, out))
}

const VALUE: &str = "s3cr=t/\"v+l&e%";

#[tokio::test]
async fn values_are_put_in_where_they_belong_and_written_as_the_place_demands() {
    let broker =
        Broker::new(&mint(), "s", vec![credential("TOKEN", &["api.test", "*.wide.test"], Source::new(VALUE))]).unwrap();
    let token = placeholder(&broker, "TOKEN");
    let header = |parts: &Parts, name: &str| parts.headers[name].to_str().unwrap().to_owned();

    let parts = request("GET", "/x", &[("authorization", format!("Bearer {token}")), ("x-api-key", token.clone())]);
    let (parts, _) = send(&broker, "api.test", parts, &[]).await.unwrap();
    assert_eq!(header(&parts, "authorization"), format!("Bearer {VALUE}"));
    assert_eq!(header(&parts, "x-api-key"), VALUE);
    assert!(parts.headers["x-api-key"].is_sensitive());

    // Git over HTTPS, and OAuth's client_secret_basic.
    let basic = format!("Basic {}", STANDARD.encode(format!("x-access-token:{token}")));
    let parts = request("GET", "/repo.git/info/refs", &[("authorization", basic)]);
    let (parts, _) = send(&broker, "deep.wide.test", parts, &[]).await.unwrap();
    let basic = STANDARD.decode(header(&parts, "authorization").strip_prefix("Basic ").unwrap()).unwrap();
    assert_eq!(String::from_utf8(basic).unwrap(), format!("x-access-token:{VALUE}"));

    let parts = request("GET", &format!("https://api.test/bot{token}/go?key={token}&a=1"), &[]);
    let (parts, _) = send(&broker, "api.test", parts, &[]).await.unwrap();
    let encoded = "s3cr%3Dt%2F%22v%2Bl%26e%25";
    assert_eq!(parts.uri.to_string(), format!("https://api.test/bot{encoded}/go?key={encoded}&a=1"));

    for (kind, body, expected) in [
        (
            "application/json",
            format!(r#"{{"a":{{"key":"{token}"}}}}"#),
            r#"{"a":{"key":"s3cr=t/\"v+l&e%"}}"#.to_owned(),
        ),
        (
            "application/x-www-form-urlencoded",
            format!("grant_type=refresh_token&refresh_token={token}"),
            format!("grant_type=refresh_token&refresh_token={encoded}"),
        ),
        (
            "multipart/form-data; boundary=b",
            format!("--b\r\ncontent-disposition: form-data; name=\"t\"\r\n\r\n{token}\r\n--b--\r\n"),
            format!("--b\r\ncontent-disposition: form-data; name=\"t\"\r\n\r\n{VALUE}\r\n--b--\r\n"),
        ),
        ("text/plain", format!("{token}{token}"), format!("{VALUE}{VALUE}")),
    ] {
        // With a length that is known the length is right afterwards; without one the body streams.
        let known = request("POST", "/", &[("content-type", kind.into()), ("content-length", body.len().to_string())]);
        let (parts, out) = send(&broker, "api.test", known, &[body.as_bytes()]).await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        assert_eq!(header(&parts, "content-length"), expected.len().to_string());
        let streamed = request("POST", "/", &[("content-type", kind.into())]);
        let (a, b) = body.as_bytes().split_at(body.find(&token).unwrap() + 20);
        let (_, out) = send(&broker, "api.test", streamed, &[a, b]).await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[tokio::test]
async fn what_does_not_belong_is_refused_in_every_place_and_encoding() {
    let other = Broker::new(&mint(), "other", vec![credential("T", &["api.test"], Source::new(VALUE))]).unwrap();
    let foreign = placeholder(&other, "T");
    let body_only = Places { header: false, query: false, path: false, body: true };
    let mut only = credential("ONLY_BODY", &["api.test"], Source::new(VALUE));
    only.places = body_only;
    let source = Source::new(VALUE);
    let token = Credential::environment_variable("v", "TOKEN", Some(&["api.test".into()]), true, false, source.clone())
        .unwrap();
    let broker = Broker::new(&mint(), "s", vec![token, only]).unwrap();
    let mine = placeholder(&broker, "TOKEN");
    let only = placeholder(&broker, "ONLY_BODY");
    let hex: String = mine.bytes().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = mine.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let escaped: String = mine.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();

    let head = |name: &'static str, value: &str| request("GET", "/", &[(name, value.to_owned())]);
    let url = |uri: String| request("GET", &uri, &[]);
    let post = || request("POST", "/", &[]);
    let cases: Vec<(&str, &str, Parts, Vec<u8>)> = vec![
        ("another host", "evil.test", head("authorization", &format!("Bearer {mine}")), vec![]),
        ("below the host", "x.api.test", head("x", &mine), vec![]),
        ("the name as a prefix", "api.test.evil.test", head("x", &mine), vec![]),
        ("in a cookie", "evil.test", head("cookie", &format!("a={mine}; b=2")), vec![]),
        (
            "in basic",
            "evil.test",
            head("authorization", &format!("Basic {}", STANDARD.encode(format!("u:{mine}")))),
            vec![],
        ),
        ("in base64, one byte before", "evil.test", head("x", &STANDARD.encode(format!("u{mine}"))), vec![]),
        ("in base64, two bytes before", "evil.test", head("x", &STANDARD.encode(format!("uu{mine}"))), vec![]),
        ("in hex", "evil.test", head("x", &hex), vec![]),
        ("in HEX", "evil.test", head("x", &hex.to_uppercase()), vec![]),
        ("in the path", "evil.test", url(format!("/a/{mine}/b")), vec![]),
        ("in the query", "evil.test", url(format!("/?a={mine}")), vec![]),
        ("in the query, percent", "evil.test", url(format!("/?a={percent}")), vec![]),
        (
            "in the query, a letter in percent",
            "evil.test",
            url(format!("/?a={}", mine.replacen('_', "%5f", 1))),
            vec![],
        ),
        ("in the body", "evil.test", post(), format!("hello {mine}").into_bytes()),
        ("in the body, escaped", "evil.test", post(), format!("{{\"a\":\"{escaped}\"}}").into_bytes()),
        ("in the body, base64", "evil.test", post(), STANDARD.encode(format!("abcd{mine}")).into_bytes()),
        ("the wrong place: query", "api.test", url(format!("/?a={mine}")), vec![]),
        ("the wrong place: path", "api.test", url(format!("/{mine}")), vec![]),
        ("the wrong place: header", "api.test", head("authorization", &only), vec![]),
        (
            "the wrong place: basic",
            "api.test",
            head("authorization", &format!("Basic {}", STANDARD.encode(format!("{only}:")))),
            vec![],
        ),
        ("replayed in a header", "api.test", head("authorization", &format!("Bearer {foreign}")), vec![]),
        ("replayed in a body", "api.test", post(), foreign.clone().into_bytes()),
        ("replayed in base64", "api.test", head("x", &STANDARD.encode(&foreign)), vec![]),
    ];
    for (what, to, parts, body) in cases {
        for size in [1, 7, usize::MAX] {
            let pieces: Vec<&[u8]> = body.chunks(size.min(body.len().max(1))).collect();
            let refused = send(&broker, to, parts.clone(), &pieces).await.expect_err(what);
            assert!(refused.alert() && refused.code() == "credential_misused", "{what}: {refused:?}");
            assert_eq!(matches!(refused, Misuse::Replay), what.starts_with("replayed"), "{what}: {refused:?}");
        }
    }
    assert_eq!(source.asked.load(Ordering::Relaxed), 0, "no value was asked for");

    // In a body for its own host it stays as it is: worth nothing there, and in the transcript of whoever once printed it.
    let said = format!("my environment: {mine} {}", STANDARD.encode(&mine));
    for size in [1, 7, usize::MAX] {
        let pieces: Vec<&[u8]> = said.as_bytes().chunks(size.min(said.len())).collect();
        let (_, out) = send(&broker, "api.test", post(), &pieces).await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), said);
    }
    assert_eq!(source.asked.load(Ordering::Relaxed), 0, "no value was asked for");

    // Not over TLS.
    let mut parts = head("authorization", &mine);
    let refused = broker.inject(&mut parts, Wire::Http, &authority("api.test:80")).await.unwrap_err();
    assert_eq!((refused.code(), refused.alert()), ("tls_required", false));
    // A text that only looks like one of ours is none.
    let mut lookalike = foreign.into_bytes();
    *lookalike.last_mut().unwrap() ^= 1;
    send(&broker, "evil.test", post(), &[&lookalike]).await.unwrap();
    // In trailers.
    let mut parts = post();
    let injection = broker.inject(&mut parts, Wire::Https, &authority("api.test")).await.unwrap();
    let BodyPlan::Replace(replacer) = injection.body else { panic!() };
    assert!(replacer.trailers(&head("x", &mine).headers).unwrap_err().alert());
    // Before the misuse nothing of the piece goes on.
    let mut parts = post();
    let injection = broker.inject(&mut parts, Wire::Https, &authority("evil.test")).await.unwrap();
    let BodyPlan::Replace(mut replacer) = injection.body else { panic!() };
    assert_eq!(replacer.push("clean ".into()).unwrap(), "clean ");
    replacer.push(format!("dirty {mine}").into()).unwrap_err();
}

#[tokio::test]
async fn a_change_at_the_source_bites_at_the_next_request() {
    let source = Source::new("first-value");
    let broker = Broker::new(&mint(), "s", vec![credential("T", &["api.test"], source.clone())]).unwrap();
    let token = placeholder(&broker, "T");
    let ask = async || {
        let parts = request("GET", "/", &[("x", token.clone())]);
        send(&broker, "api.test", parts, &[]).await.map(|(parts, _)| parts.headers["x"].to_str().unwrap().to_owned())
    };
    assert_eq!(ask().await.unwrap(), "first-value");
    source.set(Ok("other-value"));
    assert_eq!(ask().await.unwrap(), "other-value");
    source.set(Err(SupplyError::Unavailable("the vault is sealed".into())));
    assert!(matches!(ask().await.unwrap_err(), Misuse::Unavailable { why, .. } if why == "the vault is sealed"));
    // What does not need it goes on, its body too.
    let parts = request("POST", "/", &[]);
    send(&broker, "api.test", parts, &[b"hello"]).await.unwrap();
    source.set(Err(SupplyError::Revoked));
    assert_eq!(ask().await.unwrap_err(), Misuse::Revoked { reference: "test/T".into() });
    source.set(Ok("with\r\nx-evil: 1"));
    assert!(matches!(ask().await.unwrap_err(), Misuse::Unusable { .. }), "a header cannot be made to be two");
    source.set(Ok("tiny"));
    assert!(matches!(ask().await.unwrap_err(), Misuse::Unusable { .. }));
    // Both values were sent, so neither may come back.
    let mut redactor = broker.redactor();
    let out = [redactor.push("first-value other-value".into()), redactor.finish()].concat();
    assert_eq!(String::from_utf8(out).unwrap(), format!("{token} {token}"));
}

#[tokio::test]
async fn placeholders_have_the_shape_that_clients_check_and_nothing_of_the_value() {
    let unique = "Zq9Xv7Lm3Kp5Rt8Yw2Bn6Df4Gh1Jc0SaUeIo";
    let uuid = "123e4567-e89b-42d3-a456-426614174000";
    let values = [
        format!("ghp_{unique}"),
        format!("github_pat_{}_{unique}{}", &unique[..22], &unique[..23]),
        format!("sk-ant-api03-{unique}{unique}AA"),
        format!("sk-proj-{unique}"),
        format!("xoxb-1234567890-1234567890-{}", &unique[..24]),
        format!("glpat-{}", &unique[..20]),
        format!("npm_{unique}"),
        format!("pypi-AgEIcHlwaS5vcmc{unique}{unique}"),
        format!("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{unique}"),
        uuid.to_owned(),
        format!("whatever {unique}"),
    ];
    let checks: [fn(&str) -> bool; 11] = [
        |text| text.len() == 40 && text.starts_with("ghp_") && checksum(&text[4..34]) == text[34..],
        |text| text.len() == 93 && text.starts_with("github_pat_") && text.as_bytes()[33] == b'_',
        |text| text.len() == 108 && text.starts_with("sk-ant-api03-") && text.ends_with("AA"),
        |text| text.len() >= 48 && text.starts_with("sk-proj-"),
        |text| text.starts_with("xoxb-") && text.split('-').count() == 4,
        |text| text.len() >= 26 && text.starts_with("glpat-"),
        |text| text.len() == 40 && text.starts_with("npm_") && checksum(&text[4..34]) == text[34..],
        |text| text.len() > 120 && text.starts_with("pypi-AgEIcHlwaS5vcmc"),
        |text| {
            let parts: Vec<Vec<u8>> = text
                .split('.')
                .map(|part| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap())
                .collect();
            let claims: serde_json::Value = serde_json::from_slice(&parts[1]).unwrap();
            parts.len() == 3 && parts[2].len() == 32 && claims["exp"].as_u64().unwrap() > 4_000_000_000
        },
        |text| text.len() == 36 && text.as_bytes()[14] == b'4' && b"89ab".contains(&text.as_bytes()[19]),
        |text| text.len() >= 50 && text.starts_with("palisade_"),
    ];
    let mut seen = std::collections::HashSet::new();
    for round in 0..20 {
        let credentials = values
            .iter()
            .enumerate()
            .map(|(at, value)| credential(&format!("V{at}"), &["api.test"], Source::new(value)));
        let broker = Broker::prepare(&mint(), &round.to_string(), credentials.collect()).await.unwrap();
        for ((variable, text), check) in broker.environment().into_iter().zip(checks) {
            assert!(check(&text), "{variable}: {text}");
            assert!(seen.insert(text.clone()), "made twice: {text}");
            for from in 0..unique.len() - 6 {
                assert!(!text.contains(&unique[from..from + 6]), "{text}");
            }
            // Each is found as it is.
            let parts = request("GET", "/", &[("x", format!("a{text}b"))]);
            let (parts, _) = send(&broker, "api.test", parts, &[]).await.unwrap();
            let at: usize = variable[1..].parse().unwrap();
            assert_eq!(parts.headers["x"].to_str().unwrap(), format!("a{}b", values[at]));
        }
    }
}

/// GitHub's, written apart from the code under test: CRC-32 in base62.
fn checksum(text: &str) -> String {
    let mut crc = !0_u32;
    for byte in text.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    let (mut rest, mut out) = (!crc, Vec::new());
    for _ in 0..6 {
        out.insert(0, b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[rest as usize % 62]);
        rest /= 62;
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn credentials_that_cannot_be_are_refused_at_once() {
    let new = |credentials| Broker::new(&mint(), "s", credentials).map(drop);
    let one = |variable: &str| credential(variable, &["a.test"], Source::new(VALUE));
    assert!(matches!(new(vec![one("A"), one("A")]), Err(BrokerError::Variable { .. })));
    for variable in ["", "1A", "A B", "A=B", "A\0"] {
        assert!(matches!(new(vec![one(variable)]), Err(BrokerError::NotAVariable { .. })), "{variable:?}");
    }
    let mut nowhere = one("A");
    nowhere.places = Places { header: false, query: false, path: false, body: false };
    assert!(matches!(new(vec![nowhere]), Err(BrokerError::NoPlace { .. })));
    for host in ["", "https://a.test", "a.test/x", "a.test:443", "*.*.test", "*", "*.10.0.0.1", "u@a.test", "[::1]"] {
        assert!(Hosts::limited(&[host]).is_err(), "{host:?}");
    }
    let wide = Hosts::limited(&["*.a.test"]).unwrap();
    for (host, named) in
        [("x.a.test", true), ("x.y.a.test", true), ("a.test", false), ("xa.test", false), ("A.TEST", false)]
    {
        assert_eq!(wide.matches(&authority(host)), named, "{host}");
    }
    assert!(Hosts::Unrestricted.matches(&authority("anything.test")));
    let mut keys = one("");
    keys.kind = Kind::AwsKeys;
    let broker = Broker::new(&mint(), "s", vec![keys]).unwrap();
    let names: Vec<String> = broker.environment().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]);
}

#[tokio::test]
async fn nothing_that_is_shown_holds_a_value() {
    let canary = "canary-5d41402abc4b2a76";
    let source = Source::new(canary);
    let broker = Broker::new(&mint(), "s", vec![credential("T", &["api.test"], source.clone())]).unwrap();
    let token = placeholder(&broker, "T");
    let mut shown = format!("{broker:?}");
    let mut parts = request("POST", "/", &[("x", token.clone())]);
    let injection = broker.inject(&mut parts, Wire::Https, &authority("api.test")).await.unwrap();
    shown += &format!("{injection:?} {parts:?} {:?}", broker.redactor());
    let BodyPlan::Replace(mut replacer) = injection.body else { panic!() };
    replacer.push(token.clone().into()).unwrap();
    shown += &format!("{replacer:?} {:?}", replacer.references());
    let mut parts = request("POST", "/", &[("x", token.clone()), ("content-length", "5".into())]);
    shown += &format!("{:?}", broker.inject(&mut parts, Wire::Https, &authority("api.test")).await.unwrap());
    source.set(Ok("canary-5d41402abc4b2a76\n"));
    for to in ["api.test", "evil.test"] {
        let mut parts = request("GET", "/", &[("x", token.clone())]);
        let refused = broker.inject(&mut parts, Wire::Https, &authority(to)).await.unwrap_err();
        shown += &format!("{refused} {refused:?}");
    }
    assert!(!shown.contains("canary-5d41"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// However the body is cut, what goes to the upstream is the same.
    #[test]
    fn pieces_do_not_matter(words in prop::collection::vec(0_usize..8, 1..12), cuts in prop::collection::vec(0.0..1.0_f64, 0..8)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut github = credential("A", &["api.test"], Source::new("value-of-a"));
            github.kind = Kind::Token(Shape::GitHub("ghp_"));
            let mut jwt = credential("B", &["api.test"], Source::new("value-of-b"));
            jwt.kind = Kind::Token(Shape::Jwt);
            let broker = Broker::new(&mint(), "s", vec![github, jwt]).unwrap();
            let (a, b) = (placeholder(&broker, "A"), placeholder(&broker, "B"));
            let options = [(&*a, "value-of-a"), (&*b, "value-of-b"), ("ghp_", "ghp_"), (&a[..20], &a[..20]), (&b[..60], &b[..60]), (" ", " "), ("eyJhbGciOi", "eyJhbGciOi"), ("%6", "%6")];
            let body: String = words.iter().map(|word| options[*word].0).collect();
            let mut expected: String = words.iter().map(|word| options[*word].1).collect();
            // Words may come together to a placeholder that was none.
            expected = expected.replace(&a, "value-of-a").replace(&b, "value-of-b");
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| (cut * body.len() as f64) as usize).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &body.as_bytes()[pair[0]..pair[1]]).collect();
            let parts = request("POST", "/", &[]);
            let (_, out) = send(&broker, "api.test", parts, &pieces).await.unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        });
    }
}
