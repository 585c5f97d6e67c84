//! What a policy allows, what it refuses, and what it says about it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use palisade_egress::policy::{
    Block, Budgets, Grant, Mode, NormalPath, OVERRIDING_HEADERS, PathError, Pattern, Policies, Policy, Protocol, Range,
    Reason, Refusal, Request, RuleName, Scheme, Subject, Treatment, Verdict,
};
use palisade_egress::{Authority, Host};
use proptest::prelude::*;

const POLICY: &str = r#"
presets: [pypi, github]
rules:
  - name: model
    host: api.model.example
    methods: [POST]
    paths: [/v1/messages, /v1/files/*]
    max_request_bytes: 1 KiB
    requests_per_minute: 3
  - name: model-read
    host: api.model.example
    methods: [GET]
    paths: ["/v1/models/", "/a/**/z"]
  - name: pinned
    host: ["*.pinned.example", other.example]
    ports: [443, "8000-8100"]
  - name: plain
    host: plain.example
    tls: optional
    websocket: true
  - name: tls
    host: tls.example
    protocol: tls
  - name: database
    host: db.internal.example
    address: [10.1.2.0/24, "fd12::/16"]
    protocol: tcp
    ports: 5432
  - name: here
    host: here.example
    address: 127.0.0.1
  - name: intranet
    host: "*.corp.example"
    private: true
    max_session_bytes: 1000
  - name: code
    host: git.example
    paths: ["/team/*.git/**"]
    git:
      push: [refs/heads/agent/*]
      protected: refs/heads/agent/keep
"#;

fn policy(yaml: &str) -> Policy {
    Policy::parse(yaml).unwrap_or_else(|error| panic!("{error}"))
}

fn at(text: &str) -> Authority {
    Authority::parse(text, Some(443)).unwrap()
}

fn ask(policy: &Policy, method: &str, url: &str, change: impl FnOnce(&mut Request<'_>)) -> Verdict<Grant> {
    let (scheme, rest) = url.split_once("://").unwrap();
    let scheme = if scheme == "http" { Scheme::Http } else { Scheme::Https };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let authority = Authority::parse(host, Some(scheme.default_port())).unwrap();
    let mut request = Request { scheme, authority: &authority, method, path, upgrade: None, body_bytes: None };
    change(&mut request);
    policy.request(&request)
}

fn reason<T>(verdict: &Verdict<T>) -> Option<Reason> {
    verdict.refusal().map(|refusal| refusal.reason)
}

fn rule<T>(verdict: &Verdict<T>) -> String {
    match verdict {
        Verdict::Allowed { rule, .. } => rule.to_string(),
        Verdict::Refused(refusal) => panic!("{refusal}"),
    }
}

#[test]
fn nothing_is_the_default() {
    for none in [
        Policy::none(),
        policy(""),
        policy("# nothing\n"),
        policy("rules: []"),
        Policies::default().for_session(&Subject::default()),
    ] {
        assert!(none.is_none() && none.mode() == Mode::Enforce && !none.observes());
        assert!(!none.knows(&at("a.example").host));
        assert_eq!(reason(&none.connection(&at("a.example"), Protocol::Tls)), Some(Reason::NotAllowed));
        assert_eq!(reason(&ask(&none, "GET", "https://a.example/", |_| ())), Some(Reason::NotAllowed));
        assert!(none.address(&RuleName::new("x"), [1, 1, 1, 1].into()).is_err());
    }
}

#[test]
fn connections_are_allowed_by_host_port_and_what_is_spoken() {
    use Protocol::{Http, Tcp, Tls};
    let policy = policy(POLICY);
    for (to, protocol, expected) in [
        ("api.model.example", Tls, Ok(("model", Treatment::Intercept))),
        ("other.example", Tls, Ok(("pinned", Treatment::PassThrough))),
        ("a.pinned.example:8050", Tls, Ok(("pinned", Treatment::PassThrough))),
        ("a.b.pinned.example", Tls, Ok(("pinned", Treatment::PassThrough))),
        ("tls.example", Tls, Ok(("tls", Treatment::PassThrough))),
        ("plain.example:80", Http, Ok(("plain", Treatment::Intercept))),
        ("plain.example", Tls, Ok(("plain", Treatment::PassThrough))),
        ("db.internal.example:5432", Tcp, Ok(("database", Treatment::PassThrough))),
        ("db.internal.example:5432", Tls, Ok(("database", Treatment::PassThrough))),
        ("10.1.2.3:5432", Tcp, Ok(("database", Treatment::PassThrough))),
        ("[fd12::5]:5432", Tcp, Ok(("database", Treatment::PassThrough))),
        ("pypi.org", Tls, Ok(("preset:pypi", Treatment::Intercept))),
        ("git.example", Tls, Ok(("code", Treatment::Intercept))),
        ("pinned.example", Tls, Err(Reason::NotAllowed)),
        ("xpinned.example", Tls, Err(Reason::NotAllowed)),
        ("a.pinned.example.evil.example", Tls, Err(Reason::NotAllowed)),
        ("model.example", Tls, Err(Reason::NotAllowed)),
        ("api.model.example:8443", Tls, Err(Reason::PortNotAllowed)),
        ("a.pinned.example:8101", Tls, Err(Reason::PortNotAllowed)),
        ("api.model.example", Http, Err(Reason::TlsRequired)),
        ("tls.example", Http, Err(Reason::TlsRequired)),
        ("api.model.example", Tcp, Err(Reason::ProtocolNotAllowed)),
        ("10.1.3.3:5432", Tcp, Err(Reason::DirectAddress)),
        ("1.1.1.1", Tls, Err(Reason::DirectAddress)),
        ("[2001:db8::1]", Tls, Err(Reason::DirectAddress)),
        ("169.254.169.254:80", Http, Err(Reason::DirectAddress)),
    ] {
        match (policy.connection(&at(to), protocol), expected) {
            (Verdict::Allowed { rule, grant, observed: None }, Ok((name, treatment))) => {
                assert_eq!((rule.to_string().as_str(), grant), (name, treatment), "{to}");
            }
            (Verdict::Refused(refusal), Err(reason)) => assert_eq!(refusal.reason, reason, "{to}: {refusal}"),
            (verdict, expected) => panic!("{to} {protocol}: {verdict:?}, not {expected:?}"),
        }
    }
    assert!(policy.is_opaque(&at("db.internal.example:5432")) && !policy.is_opaque(&at("tls.example")));
    assert!(policy.knows(&at("x.corp.example").host) && !policy.knows(&at("corp.example").host));
}

#[test]
fn requests_are_allowed_by_the_first_rule_that_fits() {
    let policy = policy(POLICY);
    for (method, url, expected) in [
        ("POST", "https://api.model.example/v1/messages", Ok("model")),
        ("POST", "https://api.model.example/v1/messages?beta=true", Ok("model")),
        ("POST", "https://api.model.example/%76%31/messages", Ok("model")),
        ("POST", "https://api.model.example/v1/files/x", Ok("model")),
        ("GET", "https://api.model.example/v1/models/a/b", Ok("model-read")),
        ("HEAD", "https://api.model.example/v1/models/", Ok("model-read")),
        ("GET", "https://api.model.example/a/z", Ok("model-read")),
        ("GET", "https://api.model.example/a/b/c/z", Ok("model-read")),
        ("GET", "https://pypi.org/simple/x/", Ok("preset:pypi")),
        ("POST", "https://github.com/a/b.git/git-upload-pack", Ok("preset:github:post")),
        ("DELETE", "https://other.example/anything//at/../all", Ok("pinned")),
        ("GET", "http://plain.example/", Ok("plain")),
        ("POST", "https://api.model.example/V1/messages", Err(Reason::PathNotAllowed)),
        ("POST", "https://api.model.example/v1/messages/", Err(Reason::PathNotAllowed)),
        ("POST", "https://api.model.example/v1/files/x/y", Err(Reason::PathNotAllowed)),
        ("POST", "https://api.model.example/v1/files/x%2fy", Err(Reason::PathNotAllowed)),
        ("POST", "https://api.model.example/v1/x/../messages", Err(Reason::PathNotAllowed)),
        ("POST", "https://api.model.example//v1/messages", Err(Reason::PathNotAllowed)),
        ("GET", "https://api.model.example/v1/models", Err(Reason::PathNotAllowed)),
        ("GET", "https://api.model.example/v1/models/..;/keys", Err(Reason::PathNotAllowed)),
        ("PUT", "https://api.model.example/v1/messages", Err(Reason::MethodNotAllowed)),
        ("post", "https://api.model.example/v1/messages", Err(Reason::MethodNotAllowed)),
        ("PUT", "https://pypi.org/x", Err(Reason::MethodNotAllowed)),
        ("CONNECT", "https://other.example/", Err(Reason::MethodNotAllowed)),
        ("POST", "http://api.model.example:443/v1/messages", Err(Reason::TlsRequired)),
        ("GET", "https://api.model.example:444/", Err(Reason::PortNotAllowed)),
        ("GET", "https://evil.example/", Err(Reason::NotAllowed)),
        ("POST", "https://github.com/a/b.git/git-receive-pack", Err(Reason::PathNotAllowed)),
        ("GET", "https://github.com/a/b.git/info/refs?service=git-receive-pack", Err(Reason::PushRefused)),
    ] {
        match (ask(&policy, method, url, |_| ()), expected) {
            (Verdict::Allowed { rule, .. }, Ok(name)) => assert_eq!(rule.to_string(), name, "{method} {url}"),
            (Verdict::Refused(refusal), Err(reason)) => assert_eq!(refusal.reason, reason, "{method} {url}: {refusal}"),
            (verdict, expected) => panic!("{method} {url}: {verdict:?}, not {expected:?}"),
        }
    }
    let sized = |bytes| {
        ask(&policy, "POST", "https://api.model.example/v1/messages", |request| request.body_bytes = Some(bytes))
    };
    assert_eq!(sized(1024).granted().unwrap().max_request_bytes, Some(1024));
    assert_eq!(reason(&sized(1025)), Some(Reason::TooLarge));
    // Headers that would say something else than what was compared.
    assert!(sized(1).granted().unwrap().compared && OVERRIDING_HEADERS.contains(&"x-http-method-override"));
    assert!(!ask(&policy, "GET", "https://other.example/", |_| ()).granted().unwrap().compared);
    // WebSockets, in HTTP/1.1 and HTTP/2, and what else a connection may become.
    let upgrade =
        |url: &str, method: &str, to: &'static str| ask(&policy, method, url, |request| request.upgrade = Some(to));
    assert_eq!(rule(&upgrade("https://plain.example/", "GET", "WebSocket")), "plain");
    assert_eq!(rule(&upgrade("https://plain.example/", "CONNECT", "websocket")), "plain");
    assert_eq!(reason(&upgrade("https://other.example/", "GET", "websocket")), Some(Reason::UpgradeNotAllowed));
    assert_eq!(reason(&upgrade("https://plain.example/", "GET", "h2c")), Some(Reason::UpgradeNotAllowed));
    assert_eq!(reason(&upgrade("https://plain.example/", "GET", "websocket, h2c")), Some(Reason::UpgradeNotAllowed));
    assert_eq!(reason(&upgrade("https://plain.example/", "CONNECT", "connect-udp")), Some(Reason::MethodNotAllowed));
}

#[test]
fn pushes_come_with_what_they_are_checked_against() {
    let policy = policy(POLICY);
    let push = ask(&policy, "POST", "https://git.example/team/a.git/git-receive-pack", |_| ());
    let rules = push.granted().unwrap().git.clone().unwrap();
    assert!(rules.allowed().contains("refs/heads/agent/*"));
    let fetch = ask(&policy, "POST", "https://git.example/team/a.git/git-upload-pack", |_| ());
    assert_eq!(fetch.granted().unwrap().git, None);
    assert_eq!(
        rule(&ask(&policy, "GET", "https://git.example/team/a.git/info/refs?service=git-receive-pack", |_| ())),
        "code"
    );
    // A rule that says nothing about pushes allows none, when they are seen.
    let push = ask(&policy, "POST", "https://other.example/a.git/git-receive-pack", |_| ());
    assert_eq!(reason(&push), Some(Reason::PushRefused));
}

#[test]
fn refusals_say_what_why_and_what_would_help() {
    let policy = policy(POLICY);
    let words = |method: &str, url: &str| ask(&policy, method, url, |_| ()).refusal().unwrap().message.clone();
    assert_eq!(
        words("GET", "https://evil.example/a?secret=1"),
        "GET https://evil.example/a was refused by the egress policy: no rule names evil.example. Trying again does not help; what \
         would: a rule for this host, added by whoever runs this sandbox"
    );
    assert_eq!(
        words("PUT", "https://api.model.example/v1/messages"),
        "PUT https://api.model.example/v1/messages was refused by the egress policy: rule `model` allows only POST here. Trying \
         again does not help unless the rule is changed"
    );
    let long = format!("https://api.model.example/{}", "\u{1b}[31mx".repeat(9000));
    let message = words("POST", &long);
    assert!(message.len() < 700 && message.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{message}");
}

#[test]
fn dialled_addresses_are_checked_under_their_rule() {
    let policy = policy(POLICY);
    let check = |rule: &str, address: &str| {
        let address: IpAddr = address.parse().unwrap();
        policy.address(&RuleName::new(rule), address).map_err(|refusal: Refusal| {
            assert!(refusal.message.contains("Trying again does not help"), "{refusal}");
            refusal.reason
        })
    };
    for address in
        ["1.1.1.1", "2606:4700::1111", "64:ff9b::1.1.1.1", "::ffff:1.1.1.1", "172.32.0.1", "100.128.0.1", "169.253.1.1"]
    {
        assert_eq!(check("model", address), Ok(()), "{address}");
    }
    let special = [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.8.8.8",
        "168.63.129.16",
        "169.254.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:10.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:2::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:101:101::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "4000::1",
    ];
    for address in special {
        assert_eq!(check("model", address), Err(Reason::PrivateAddress), "{address}");
        let range = Range::of(address.parse().unwrap());
        assert_eq!(check("intranet", address).is_ok(), range.is_private(), "{address} is {range}");
    }
    for address in ["10.0.0.1", "192.168.1.1", "100.64.0.1", "fc00::1", "::ffff:10.0.0.1"] {
        assert_eq!(check("intranet", address), Ok(()), "{address}");
    }
    // Addresses of a rule are the only ones that its names may lead to.
    assert_eq!(check("database", "10.1.2.200"), Ok(()));
    assert_eq!(check("database", "fd12:1::1"), Ok(()));
    assert_eq!(check("database", "10.1.3.1"), Err(Reason::PrivateAddress));
    assert_eq!(check("database", "1.1.1.1"), Err(Reason::AddressNotAllowed));
    assert_eq!(check("here", "127.0.0.1"), Ok(()));
    assert_eq!(check("here", "127.0.0.2"), Err(Reason::PrivateAddress));
    assert_eq!(check("no such rule", "1.1.1.1"), Err(Reason::PrivateAddress));
}

#[test]
fn a_block_opens_a_special_range_only_from_within() {
    let names = |block: &str, address: &str| block.parse::<Block>().unwrap().names(address.parse().unwrap());
    for (block, address, expected) in [
        ("10.0.0.0/8", "10.9.9.9", true),
        ("10.0.0.0/8", "::ffff:10.9.9.9", true),
        ("::ffff:10.0.0.0/104", "10.9.9.9", true),
        ("127.0.0.0/8", "127.0.0.1", true),
        ("169.254.169.254", "169.254.169.254", true),
        ("169.254.0.0/16", "169.254.1.1", true),
        ("1.0.0.0/8", "1.1.1.1", true),
        ("fd00::/8", "fd12::1", true),
        ("169.254.0.0/16", "169.254.169.254", false),
        ("fd00::/8", "fd00:ec2::254", false),
        ("0.0.0.0/0", "1.1.1.1", true),
        ("0.0.0.0/0", "10.0.0.1", false),
        ("0.0.0.0/0", "127.0.0.1", false),
        ("8.0.0.0/5", "10.0.0.1", false),
        ("::/0", "::1", false),
        ("::/0", "2606::1", true),
        ("::/0", "1.1.1.1", false),
        ("10.0.0.0/8", "11.0.0.0", false),
        ("10.0.0.0/8", "64:ff9b::10.0.0.1", false),
    ] {
        assert_eq!(names(block, address), expected, "{block} {address}");
    }
    for wrong in [
        "",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/+8",
        "10.0.0.1/8",
        "10.0.0/8",
        "::/129",
        "a",
        "224.0.0.0/4",
        "0.0.0.0",
        "198.18.0.0/15",
        "fe80::1%eth0",
    ] {
        assert!(wrong.parse::<Block>().is_err(), "{wrong}");
    }
}

#[test]
fn paths_have_one_form_or_none() {
    for (raw, form) in [
        ("/", "/"),
        ("/a/b/", "/a/b/"),
        ("/%41%7e%2D", "/A~-"),
        ("/a%3a%2a", "/a%3A%2A"),
        ("/a:*", "/a:*"),
        ("/ü{|}", "/%C3%BC%7B%7C%7D"),
        ("/a?b=../..//", "/a"),
        ("/...", "/..."),
        ("/.a/a.", "/.a/a."),
        ("/100%25", "/100%25"),
        ("/a%2Fb", "/a%2Fb"),
    ] {
        assert_eq!(NormalPath::parse(raw).map(|path| path.as_str().to_owned()).as_deref(), Ok(form), "{raw}");
    }
    for (raw, why) in [
        ("", PathError::Relative),
        ("*", PathError::Relative),
        ("a/b", PathError::Relative),
        ("https://h/", PathError::Relative),
        ("//a", PathError::Slashes),
        ("/a//b", PathError::Slashes),
        ("/a//", PathError::Slashes),
        ("/a/%2Fb", PathError::Slashes),
        ("/a%2f%2fb", PathError::Slashes),
        ("/.", PathError::Dots),
        ("/..", PathError::Dots),
        ("/a/./b", PathError::Dots),
        ("/a/../b", PathError::Dots),
        ("/a/%2e%2E/b", PathError::Dots),
        ("/a/.%2e", PathError::Dots),
        ("/a%2f..%2fb", PathError::Dots),
        ("/a/..;x/b", PathError::Dots),
        ("/a/..%3bx/b", PathError::Dots),
        ("/a\\b", PathError::Backslash),
        ("/a/..\\b", PathError::Backslash),
        ("/a%5cb", PathError::Backslash),
        ("/a%00", PathError::Control),
        ("/a%0d%0a", PathError::Control),
        ("/a b", PathError::Character),
        ("/a\tb", PathError::Character),
        ("/a#b", PathError::Character),
        ("/%", PathError::Percent),
        ("/%2", PathError::Percent),
        ("/%zz", PathError::Percent),
        ("/%+1", PathError::Percent),
        ("/%252e%252e/", PathError::Twice),
        ("/%25%32%65/", PathError::Twice),
    ] {
        assert_eq!(NormalPath::parse(raw), Err(why), "{raw}");
    }
    for (pattern, path, expected) in [
        ("/", "/any/thing", true),
        ("/**", "/", true),
        ("/a/**", "/a", false),
        ("/a/**", "/a/", true),
        ("/a/*", "/a/", true),
        ("/a/*", "/a/b/c", false),
        ("/*.git/x", "/a.git/x", true),
        ("/*.git/x", "/a/b.git/x", false),
        ("/**/x/*/y", "/x/a/x/b/y", true),
        ("/**/x/*/y", "/x/x/y", true),
        ("/a*b*c", "/abbc", true),
        ("/a*b*c", "/acb", false),
        ("/aa*aa", "/aaa", false),
        ("/**/a/**/b/", "/1/a/2/3/b/4", true),
        ("/%41", "/A", true),
        ("/a%2Fb", "/a%2fb", true),
    ] {
        let pattern: Pattern = pattern.parse().unwrap();
        assert_eq!(pattern.allows(&NormalPath::parse(path).unwrap()), expected, "{pattern} {path}");
    }
    for wrong in ["a", "/a**", "/a?b", "/a/../b", "//"] {
        assert!(wrong.parse::<Pattern>().is_err(), "{wrong}");
    }
}

#[test]
fn encoded_slashes_can_be_allowed() {
    let policy =
        policy("rules: [{name: lab, host: lab.example, paths: [/api/v4/projects/*/issues], encoded_slashes: true}]");
    assert_eq!(rule(&ask(&policy, "GET", "https://lab.example/api/v4/projects/group%2Fproject/issues", |_| ())), "lab");
    let sneaky = ask(&policy, "GET", "https://lab.example/api/v4/projects/..%2F..%2Fx/issues", |_| ());
    assert_eq!(reason(&sneaky), Some(Reason::PathNotAllowed));
}

#[test]
fn errors_name_the_field_and_the_fix() {
    for (yaml, parts) in [
        ("rules: [{name: a, hots: x}]", &["rules[0]", "unknown field `hots`", "egress-policy.md"][..]),
        ("rule: []", &["unknown field `rule`"]),
        ("mode: watch", &["mode", "unknown variant `watch`"]),
        ("rules: [{host: a.example}]", &["rules[0]", "missing field `name`"]),
        ("rules: [{name: a, name: b}]", &["duplicate field `name`"]),
        ("rules: [{name: a b, host: x.example}]", &["rules[0].name", "letters, digits"]),
        ("rules: [{name: a, host: x.example}, {name: a, host: y.example}]", &["rules[1].name", "another rule"]),
        ("rules: [{name: a}]", &["rules[0].host", "names nothing to reach"]),
        ("rules: [{name: a, host: 'https://x.example/'}]", &["rules[0].host", "URL", "host alone"]),
        ("rules: [{name: a, host: [x.example, 'x.example:80']}]", &["rules[0].host[1]", "port", "`ports`"]),
        ("rules: [{name: a, host: 10.0.0.1}]", &["rules[0].host", "address: 10.0.0.1"]),
        ("rules: [{name: a, host: '*'}]", &["rules[0].host", "*.example.com"]),
        ("rules: [{name: a, host: 'a.*.example'}]", &["rules[0].host", "only at the beginning"]),
        ("rules: [{name: a, host: gіthub.com}]", &["rules[0].host", "look alike", "xn--"]),
        ("rules: [{name: a, address: 10.0.0.1/8}]", &["rules[0].address", "10.0.0.0/8"]),
        ("rules: [{name: a, address: 224.0.0.1}]", &["rules[0].address", "multicast"]),
        ("rules: [{name: a, host: x.example, ports: [70000]}]", &["rules[0].ports[0]", "65535"]),
        ("rules: [{name: a, host: x.example, ports: 9-8}]", &["rules[0].ports", "range"]),
        ("rules: [{name: a, host: x.example, ports: []}]", &["rules[0].ports", "empty"]),
        ("rules: [{name: a, host: x.example, protocol: tcp}]", &["rules[0].ports", "5432"]),
        ("rules: [{name: a, host: x.example, protocol: tls, paths: [/a]}]", &["rules[0].paths", "protocol: https"]),
        ("rules: [{name: a, host: x.example, intercept: false}]", &["rules[0].intercept", "protocol: tls"]),
        ("rules: [{name: a, host: x.example, methods: [get]}]", &["rules[0].methods", "capitals"]),
        ("rules: [{name: a, host: x.example, methods: [CONNECT]}]", &["rules[0].methods", "websocket: true"]),
        ("rules: [{name: a, host: x.example, paths: [a]}]", &["rules[0].paths", "slash"]),
        ("rules: [{name: a, host: x.example, max_request_bytes: 1 MB}]", &["rules[0].max_request_bytes", "MiB"]),
        (
            "rules: [{name: a, host: x.example, requests_per_minute: 0}]",
            &["rules[0].requests_per_minute", "at least 1"],
        ),
        ("rules: [{name: a, host: x.example, git: {push: main}}]", &["rules[0].git.push", "refs/heads/main"]),
        ("presets: [pipy]", &["presets[0]", "`pipy`", "pypi"]),
        ("rules: [", &["line 2"]),
    ] {
        let error = Policy::parse(yaml).expect_err(yaml).to_string();
        for part in parts {
            assert!(error.contains(part), "{yaml}: {error} lacks {part}");
        }
    }
    let error = Policies::parse("environments:\n  env_1: {rules: [{name: a, host: 'x y'}]}").unwrap_err().to_string();
    assert!(error.contains("environments.env_1.rules[0].host"), "{error}");
    let error = Policies::parse("agents:\n  a: {}\n  a: {}").unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
    assert!(Policy::parse(&" ".repeat(2 << 20)).is_err());
}

#[test]
fn an_agents_section_narrows_its_environments() {
    let policies = Policies::parse(
        "
default: {rules: [{name: d, host: d.example}]}
environments:
  env_1:
    rules:
      - {name: all, host: ['*.example', a.example], private: true, max_request_bytes: 100}
      - {name: git, host: g.example, git: {push: [refs/heads/agent/*, refs/heads/main]}}
agents:
  agent_1: {rules: [{name: one, host: [a.example, b.other], methods: [GET], max_request_bytes: 10}]}
  coder: {rules: [{name: push, host: g.example, git: {push: ['refs/heads/*'], protected: refs/heads/main}}]}
  watched: {mode: observe}
",
    )
    .unwrap();
    let session = |environment, agent, agent_name| policies.for_session(&Subject { environment, agent, agent_name });
    let both = session("env_1", Some("agent_1"), Some("coder"));
    let get = ask(&both, "GET", "https://a.example/", |_| ());
    assert_eq!(rule(&get), "environment/all & agent/one");
    assert_eq!((get.granted().unwrap().private, get.granted().unwrap().max_request_bytes), (false, Some(10)));
    assert_eq!(reason(&ask(&both, "POST", "https://a.example/", |_| ())), Some(Reason::MethodNotAllowed));
    assert_eq!(reason(&ask(&both, "GET", "https://b.other/", |_| ())), Some(Reason::NotAllowed));
    assert_eq!(reason(&ask(&both, "GET", "https://c.example/", |_| ())), Some(Reason::NotAllowed));
    assert_eq!(both.connection(&at("a.example"), Protocol::Tls).granted(), Some(&Treatment::Intercept));
    assert!(
        both.knows(&at("a.example").host) && !both.knows(&at("b.other").host) && !both.knows(&at("c.example").host)
    );
    // What is dialled must be allowed by both rules.
    let Verdict::Allowed { rule: both_rules, .. } = get else { panic!() };
    assert!(both.address(&both_rules, [10, 0, 0, 1].into()).is_err());
    assert!(both.address(&both_rules, [1, 1, 1, 1].into()).is_ok());
    // By name, where no section has the id; the environment alone; the default; an agent where nothing else holds.
    let coder = session("env_1", Some("agent_9"), Some("coder"));
    let push = ask(&coder, "POST", "https://g.example/r/git-receive-pack", |_| ());
    let allowed = push.granted().unwrap().git.clone().unwrap().allowed();
    assert!(allowed.contains("refs/heads/main, and of that only refs/heads/* except refs/heads/main"), "{allowed}");
    assert_eq!(rule(&ask(&session("env_1", None, None), "PUT", "https://z.example/", |_| ())), "environment/all");
    assert_eq!(rule(&ask(&session("env_2", None, None), "PUT", "https://d.example/", |_| ())), "default/d");
    assert_eq!(
        reason(&ask(&session("env_2", Some("agent_1"), None), "GET", "https://d.example/", |_| ())),
        Some(Reason::NotAllowed)
    );
    // An agent that is observed is not let past what its environment enforces.
    let watched = session("env_1", None, Some("watched"));
    assert!(watched.mode() == Mode::Enforce && watched.observes() && policies.observes());
    assert_eq!(reason(&ask(&watched, "GET", "https://b.other/", |_| ())), Some(Reason::NotAllowed));
    let Verdict::Allowed { rule, observed, .. } = ask(&watched, "GET", "https://a.example/", |_| ()) else { panic!() };
    assert_eq!((rule.to_string().as_str(), observed.unwrap().reason), ("environment/all", Reason::NotAllowed));
}

#[test]
fn observing_lets_through_what_rules_refuse_and_nothing_else() {
    let policy = policy("{mode: observe, rules: [{name: a, host: a.example, methods: [GET]}]}");
    assert!(policy.mode() == Mode::Observe && policy.observes() && !policy.is_none());
    assert!(policy.knows(&at("any.example").host));
    for (verdict, expected) in [
        (ask(&policy, "POST", "https://a.example/", |_| ()), Reason::MethodNotAllowed),
        (ask(&policy, "GET", "https://b.example/", |_| ()), Reason::NotAllowed),
    ] {
        let Verdict::Allowed { rule, observed: Some(observed), grant } = verdict else { panic!("{verdict:?}") };
        assert_eq!((observed.reason, grant.private), (expected, false));
        assert!(policy.address(&rule, [1, 1, 1, 1].into()).is_ok());
        for address in [[10, 0, 0, 1], [127, 0, 0, 1], [169, 254, 169, 254]] {
            assert!(policy.address(&rule, address.into()).is_err());
        }
    }
    let push = ask(&policy, "POST", "https://b.example/x/git-receive-pack", |_| ());
    assert_eq!(push.refusal().map(|refusal| refusal.reason), Some(Reason::PushRefused));
    assert!(ask(&policy, "CONNECT", "https://a.example/", |_| ()).refusal().is_some());
}

#[test]
fn budgets_are_for_the_session() {
    let start = Instant::now();
    let policy = policy(POLICY);
    let budgets = Budgets::new(&policy, start);
    let model = RuleName::new("model");
    for _ in 0..3 {
        assert_eq!(budgets.request(&model, start), Ok(()));
    }
    let refused = budgets.request(&model, start).unwrap_err();
    assert_eq!((refused.reason, refused.retry_after), (Reason::RateExceeded, Some(Duration::from_secs(20))));
    assert!(refused.message.contains("Wait 20 s"), "{refused}");
    assert!(budgets.request(&model, start + Duration::from_millis(19_999)).is_err());
    assert!(budgets.request(&model, start + Duration::from_secs(20)).is_ok());
    assert!(budgets.request(&RuleName::new("tls"), start).is_ok());
    let intranet = RuleName::new("intranet");
    let meter = budgets.meter(&intranet);
    assert!(meter.bytes(999).is_ok() && budgets.bytes(&intranet, 1).is_ok() && meter.bytes(0).is_ok());
    assert_eq!(meter.bytes(1).map_err(|refusal| refusal.reason), Err(Reason::BudgetExhausted));
    assert!(budgets.bytes(&intranet, 0).is_err() && budgets.bytes(&model, u64::MAX).is_ok());
}

#[test]
fn sections_have_budgets_too() {
    let start = Instant::now();
    let policies = Policies::parse(
        "
default: {requests_per_minute: 2, max_session_bytes: 10, rules: [{name: a, host: a.example, requests_per_minute: 100}]}
agents: {x: {rules: [{name: b, host: a.example, requests_per_minute: 1}]}}
",
    )
    .unwrap();
    let policy = policies.for_session(&Subject { environment: "e", agent: Some("x"), agent_name: None });
    let name = match policy.connection(&at("a.example"), Protocol::Tls) {
        Verdict::Allowed { rule, .. } => rule,
        Verdict::Refused(refusal) => panic!("{refusal}"),
    };
    let budgets = Budgets::new(&policy, start);
    assert!(budgets.request(&name, start).is_ok());
    assert!(budgets.request(&name, start).is_err(), "the agent's rule allows one");
    // What was refused took nothing from the others.
    assert!(budgets.request(&RuleName::new("default/a"), start).is_ok());
    assert!(budgets.request(&RuleName::new("default/a"), start).is_err(), "the section allows two");
    assert!(budgets.bytes(&name, 10).is_ok() && budgets.bytes(&name, 1).is_err());
}

proptest! {
    #[test]
    fn a_rate_is_never_exceeded(per_minute in 1u32..200, steps in proptest::collection::vec(0u64..4_000, 1..300)) {
        let start = Instant::now();
        let policy = policy(&format!("rules: [{{name: a, host: a.example, requests_per_minute: {per_minute}}}]"));
        let budgets = Budgets::new(&policy, start);
        let name = RuleName::new("a");
        let mut now = start;
        let mut taken: u64 = 0;
        for step in steps {
            now += Duration::from_millis(step);
            match budgets.request(&name, now) {
                Ok(()) => taken += 1,
                Err(refusal) => {
                    // After the wait, and not before it, there is one.
                    let wait = refusal.retry_after.unwrap();
                    prop_assert!(budgets.request(&name, now + wait - Duration::from_nanos(1)).is_err());
                    now += wait;
                    prop_assert!(budgets.request(&name, now).is_ok());
                    taken += 1;
                }
            }
            let elapsed = (now - start).as_nanos();
            prop_assert!(u128::from(taken) * 60_000_000_000 <= u128::from(per_minute) * (60_000_000_000 + elapsed));
        }
    }

    #[test]
    fn bytes_are_never_exceeded(most in 0u64..10_000, parts in proptest::collection::vec(0u64..3_000, 1..50)) {
        let policy = policy(&format!("rules: [{{name: a, host: a.example, max_session_bytes: {most}}}]"));
        let budgets = Budgets::new(&policy, Instant::now());
        let name = RuleName::new("a");
        let passed: u64 = parts.into_iter().filter(|part| budgets.bytes(&name, *part).is_ok()).sum();
        prop_assert!(passed <= most);
    }

    #[test]
    fn a_form_of_a_path_is_its_own_form(raw in "/([a-zA-Z0-9._~;:@%/?\\\\ü -]|%2[0-9a-fA-F]|%[0-9a-f]{2}|\\.\\.|/){0,20}") {
        if let Ok(path) = NormalPath::parse(&raw) {
            let again = NormalPath::parse(path.as_str());
            prop_assert_eq!(again.as_ref(), Ok(&path));
            // However often a server decodes, it finds no other segments than a rule did.
            let mut text = path.as_str().to_owned();
            for _ in 0..3 {
                text = percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned();
                prop_assert!(!text.split(['/', '\\']).any(|segment| matches!(segment, "." | "..")), "{} {}", raw, text);
            }
            let everything: Pattern = "/**".parse().unwrap();
            prop_assert!(everything.allows(&path));
        }
    }

    #[test]
    fn a_policy_with_two_sections_is_never_wider_than_either(
        environment in sections(), agent in sections(), host in 0usize..4, method in 0usize..3, path in 0usize..4, port in 0usize..2
    ) {
        let yaml = format!("environments: {{e: {environment}}}\nagents: {{a: {agent}}}");
        let policies = Policies::parse(&yaml).unwrap();
        let session = |environment, agent| policies.for_session(&Subject { environment, agent, agent_name: None });
        let url = format!(
            "https://{}:{}{}",
            ["a.example", "x.a.example", "b.example", "10.0.0.1"][host],
            [443, 8443][port],
            ["/", "/p/q", "/p/%71", "/z"][path]
        );
        let ask = |policy: &Policy| ask(policy, ["GET", "POST", "HEAD"][method], &url, |_| ()).granted().is_some();
        let (both, one, other) = (ask(&session("e", Some("a"))), ask(&session("e", None)), ask(&session("none", Some("a"))));
        prop_assert_eq!(both, one && other, "{}", yaml);
    }

    #[test]
    fn anything_is_a_policy_or_an_error(text in any::<String>(), key in "(rules|mode|presets|default|agents): ?[\\[\\]{}a-z:, *&-]{0,40}") {
        let _ = (Policy::parse(&text), Policies::parse(&text), Policy::parse(&key), Policies::parse(&key));
    }
}

/// A section, as YAML in one line.
fn sections() -> impl Strategy<Value = String> {
    let rule = (
        prop::sample::select(vec![
            "host: a.example",
            "host: '*.a.example'",
            "host: [b.example, a.example]",
            "address: 10.0.0.0/8",
        ]),
        prop::sample::select(vec!["", ", methods: [GET]", ", methods: [POST, GET]"]),
        prop::sample::select(vec!["", ", paths: [/p/]", ", paths: [/, /z]", ", paths: [/p/q]"]),
        prop::sample::select(vec!["", ", ports: [8443]", ", ports: [443-9000]"]),
    );
    proptest::collection::vec(rule, 0..4).prop_map(|rules| {
        let rules: Vec<String> = rules
            .into_iter()
            .enumerate()
            .map(|(number, (host, methods, paths, ports))| {
                format!("{{name: r{number}, {host}{methods}{paths}{ports}}}")
            })
            .collect();
        format!("{{rules: [{}]}}", rules.join(", "))
    })
}

#[test]
fn hosts_are_found_among_many() {
    let rules: String =
        (0..500).map(|n| format!("  - {{name: r{n}, host: ['h{n}.example', '*.s{n}.example']}}\n")).collect();
    let policy = policy(&format!("rules:\n{rules}"));
    for n in [0, 7, 499] {
        for host in [format!("h{n}.example"), format!("a.b.s{n}.example")] {
            assert_eq!(rule(&policy.connection(&at(&host), Protocol::Tls)), format!("r{n}"));
        }
    }
    let deep = format!("{}s7.example", "a.".repeat(100)).parse::<Host>().unwrap();
    assert!(policy.knows(&deep));
}
