//! Names of hosts have one form, and what has two readings has none.

use std::collections::HashSet;

use palisade_egress::{Authority, Host, NameError};
use proptest::prelude::*;

fn host(text: &str) -> Result<String, NameError> {
    text.parse::<Host>().map(|host| host.to_string())
}

#[test]
fn different_spellings_of_one_host_are_one() {
    for (written, form) in [
        ("example.com", "example.com"),
        ("EXAMPLE.Com.", "example.com"),
        ("a_b.example", "a_b.example"),
        ("r3---sn-x.example", "r3---sn-x.example"),
        // Full-width letters, ideographic dots, a soft hyphen, a sharp s that stays, a final sigma that stays.
        ("ｅｘａｍｐｌｅ。com", "example.com"),
        ("example。com。", "example.com"),
        ("exa\u{ad}mple.com", "example.com"),
        ("faß.example", "xn--fa-hia.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--BCHER-kva.example.", "xn--bcher-kva.example"),
        // Composed and decomposed.
        ("bu\u{308}cher.example", "xn--bcher-kva.example"),
        ("ⓔxample.com", "example.com"),
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("[::FFFF:7f00:1]", "127.0.0.1"),
        ("[2001:DB8:0:0:0:0:0:1]", "[2001:db8::1]"),
        ("::1", "[::1]"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("0x7f.example", "0x7f.example"),
        ("1e3.example1", "1e3.example1"),
    ] {
        assert_eq!(host(written).as_deref(), Ok(form), "{written:?}");
    }
}

#[test]
fn homographs_are_other_names() {
    let real: Host = "github.com".parse().unwrap();
    // Cyrillic, Greek, Latin with a hook, small capitals, a dotless i.
    for alike in ["gіthub.com", "githυb.com", "ɠithub.com", "gɪthub.com", "gıthub.com", "githubᐧcom.example"] {
        assert_ne!(alike.parse::<Host>().as_ref(), Ok(&real), "{alike}");
    }
}

#[test]
fn what_has_two_readings_is_refused() {
    let long = "a".repeat(64);
    let name = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(62));
    for (text, why) in [
        ("", NameError::Empty),
        (".", NameError::Empty),
        ("。", NameError::Empty),
        ("a..b", NameError::EmptyLabel),
        (".a", NameError::EmptyLabel),
        ("a..", NameError::EmptyLabel),
        ("a.。", NameError::EmptyLabel),
        (long.as_str(), NameError::LongLabel),
        (name.as_str(), NameError::TooLong),
        ("-a.example", NameError::Hyphen),
        ("a-.example", NameError::Hyphen),
        ("a\0.example", NameError::Character('\0')),
        ("allowed.example\0.evil.example", NameError::Character('\0')),
        ("a\r\nHost: b", NameError::Character('\r')),
        ("a b", NameError::Character(' ')),
        ("a\t", NameError::Character('\t')),
        ("a%2eb", NameError::Character('%')),
        ("a/b", NameError::Character('/')),
        ("a\\b", NameError::Character('\\')),
        ("a?b", NameError::Character('?')),
        ("a#b", NameError::Character('#')),
        ("a:80", NameError::Character(':')),
        ("*.a", NameError::Character('*')),
        ("a,b", NameError::Character(',')),
        ("allowed.example@evil.example", NameError::Userinfo),
        ("user:pw@allowed.example", NameError::Userinfo),
        // Full-width: mapped to what is refused as it is.
        ("a／b.example", NameError::International),
        ("a：80", NameError::International),
        ("xn--.example", NameError::International),
        ("xn--example-.com", NameError::International),
        // Punycode of what is ASCII or would be mapped.
        ("xn--abc-.com", NameError::International),
        ("a\u{200d}b.example", NameError::International),
        ("\u{202e}moc.elpmaxe", NameError::International),
        // Addresses as only resolvers read them.
        ("2130706433", NameError::Numeric),
        ("0x7f000001", NameError::Numeric),
        ("0X7F.1", NameError::Numeric),
        ("0177.0.0.1", NameError::Numeric),
        ("127.1", NameError::Numeric),
        ("127.0.1", NameError::Numeric),
        ("127.0.0.01", NameError::Numeric),
        ("127.0.0.1.", NameError::Numeric),
        ("1.2.3.4.5", NameError::Numeric),
        ("256.0.0.1", NameError::Numeric),
        ("0x", NameError::Numeric),
        ("example.0x1f", NameError::Numeric),
        ("example.8", NameError::Numeric),
        ("１２７．０．０．１", NameError::Numeric),
        ("①②⑦.0.0.1", NameError::Numeric),
        ("[::1", NameError::Ipv6),
        ("[::1%lo]", NameError::Ipv6),
        ("[fe80::1%25eth0]", NameError::Ipv6),
        ("[127.0.0.1]", NameError::Ipv6),
        ("[example.com]", NameError::Ipv6),
        ("[]", NameError::Ipv6),
    ] {
        assert_eq!(host(text), Err(why), "{text:?}");
    }
    assert!("fe80::1%eth0".parse::<Host>().is_err());
    assert!("a".repeat(100_000).parse::<Host>().is_err());
    assert!("ü".repeat(100_000).parse::<Host>().is_err());
}

#[test]
fn authorities_have_one_port() {
    for (text, form) in [
        ("Example.com:8443", "example.com:8443"),
        ("example.com.", "example.com:443"),
        ("[::1]:80", "[::1]:80"),
        ("[::ffff:10.0.0.1]", "10.0.0.1:443"),
        ("10.0.0.1:65535", "10.0.0.1:65535"),
    ] {
        assert_eq!(Authority::parse(text, Some(443)).map(|a| a.to_string()).as_deref(), Ok(form), "{text}");
    }
    for (text, why) in [
        ("a:0", NameError::Port),
        ("a:65536", NameError::Port),
        ("a:99999999999", NameError::Port),
        ("a:", NameError::Port),
        ("a:+80", NameError::Port),
        ("a:-1", NameError::Port),
        ("a:080", NameError::Port),
        ("a: 80", NameError::Port),
        ("a:80:90", NameError::Port),
        ("a:８０", NameError::Port),
        ("::1", NameError::Empty),
        ("2001:db8::1", NameError::Numeric),
        ("[::1]80", NameError::Ipv6),
        ("[::1]:", NameError::Port),
        ("u@a:80", NameError::Userinfo),
        ("u:p@a", NameError::Userinfo),
        ("a:80@b", NameError::Userinfo),
        ("http://a", NameError::Port),
        (":80", NameError::Empty),
    ] {
        assert_eq!(Authority::parse(text, Some(443)), Err(why), "{text:?}");
    }
    assert_eq!(Authority::parse("a", None), Err(NameError::NoPort));
    assert_eq!(Authority::parse("a", Some(0)), Err(NameError::NoPort));
}

proptest! {
    #[test]
    fn a_form_is_its_own_form(text in "\\PC{0,40}|[a-zA-Z0-9._-]{1,80}|[0-9a-fx.]{1,20}|(xn--)?[a-z0-9-]{1,20}(\\.|。)[a-zü]{1,9}|\\[?[0-9a-f:.]{2,40}\\]?") {
        if let Ok(host) = text.parse::<Host>() {
            let form = host.to_string();
            prop_assert_eq!(form.parse::<Host>(), Ok(host.clone()));
            prop_assert!(form.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b':' | b'[' | b']')));
            // Whatever a resolver would take for an address is one, or nothing.
            if let Some(name) = host.name() {
                prop_assert!(name.len() <= 253 && !name.ends_with('.') && !name.contains(':'));
                prop_assert!(!name.rsplit('.').next().unwrap().bytes().all(|b| b.is_ascii_digit()));
            }
            let authority = Authority::parse(&format!("{form}:77"), None).unwrap();
            prop_assert_eq!(&authority.host, &host);
            prop_assert_eq!(Authority::parse(&authority.to_string(), None), Ok(authority));
            // Neither case nor one dot at the end makes another host.
            if text.is_ascii() && host.name().is_some() {
                prop_assert_eq!(text.to_uppercase().parse::<Host>(), Ok(host.clone()));
                let dotted = format!("{}.", text.trim_end_matches('.'));
                prop_assert_eq!(dotted.parse::<Host>(), Ok(host.clone()));
            }
        }
    }

    #[test]
    fn anything_is_read_or_refused(text in any::<String>(), port in any::<Option<u16>>()) {
        let _ = Authority::parse(&text, port);
    }
}

#[test]
fn errors_name_no_more_than_a_character() {
    // What the sandbox says is not repeated into logs at length.
    let errors: HashSet<String> = ["a".repeat(64), "a b".to_owned(), "u:secret@h".to_owned()]
        .iter()
        .map(|t| host(t).unwrap_err().to_string())
        .collect();
    assert_eq!(errors.len(), 3);
    assert!(errors.iter().all(|error| error.len() < 150 && !error.contains("secret")));
}
