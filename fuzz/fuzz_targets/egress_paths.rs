//! The first line is a pattern, the second the path of a request, and the whole a policy. Asserts: no panic; a path has one form,
//! which is its own; decoded again, it has no segments that the rules did not see.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_egress::git;
use palisade_egress::policy::{NormalPath, Pattern, Policies, Policy};

fuzz_target!(init: palisade_fuzz::plant(&seeds()), |data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = (Policy::parse(text), Policies::parse(text));
    let (pattern, raw) = text.split_once('\n').unwrap_or(("/**", text));
    let _ = git::service(raw);
    let Ok(path) = NormalPath::parse(raw) else { return };
    assert_eq!(NormalPath::parse(path.as_str()), Ok(path.clone()));
    assert!(path.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
    let twice = decode(&decode(path.as_str().as_bytes()));
    assert!(!twice.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| matches!(segment, b"." | b"..")));
    assert!("/**".parse::<Pattern>().is_ok_and(|everything| everything.allows(&path)));
    if let Ok(pattern) = pattern.parse::<Pattern>() {
        let _ = pattern.allows(&path);
    }
    // A path without stars is a pattern of itself, unless it ends in a slash, which means all below.
    if !path.as_str().contains('*') && !path.as_str().ends_with('/') && path.as_str().len() < 500 {
        assert!(path.as_str().parse::<Pattern>().is_ok_and(|itself| itself.allows(&path)));
    }
});

fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                rest = &after[2..];
            }
            None => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    decoded
}

fn seeds() -> Vec<Vec<u8>> {
    [
        "/v1/**\n/v1/%6dessages?x=y",
        "/a/*.git/\n/a/b.git/info/refs?service=git-receive-pack",
        "/**/x/*\n/a/..;/x",
        "/p\n/%252e%2e/%2F/%5c",
        "mode: observe\npresets: [pypi]\nrules: [{name: a, host: '*.example', ports: [1-9], paths: [/a/], git: {push: refs/heads/*}}]",
        "default: {}\nagents: {a: {rules: [{name: a, address: 10.0.0.0/8, protocol: tcp, ports: 1, max_session_bytes: 1 GiB}]}}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
