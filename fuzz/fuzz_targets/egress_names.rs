//! Hosts and authorities. Asserts: no panic; what is written is read as the same; no name that a resolver takes for an address.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_egress::{Authority, Host};

fuzz_target!(init: palisade_fuzz::plant(&seeds()), |data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(host) = text.parse::<Host>() {
        let form = host.to_string();
        assert_eq!(form.parse::<Host>(), Ok(host.clone()));
        if let Some(name) = host.name() {
            assert!(name.len() <= 253);
            assert!(name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.')));
            assert!(name.split('.').all(|label| !label.is_empty() && label.len() <= 63));
            let last = name.rsplit('.').next().unwrap_or_default();
            assert!(!last.bytes().all(|byte| byte.is_ascii_digit()));
        }
    }
    if let Ok(authority) = Authority::parse(text, Some(443)) {
        assert_ne!(authority.port, 0);
        assert_eq!(Authority::parse(&authority.to_string(), None), Ok(authority));
    }
});

fn seeds() -> Vec<Vec<u8>> {
    [
        "example.com:8443",
        "BÜCHER.example.",
        "xn--bcher-kva.example",
        "ｅｘａｍｐｌｅ。com",
        "127.0.0.1:80",
        "0x7f.1",
        "2130706433",
        "[::ffff:127.0.0.1]:443",
        "[fe80::1%25eth0]",
        "user:pw@host:80",
        "a\0.b",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
