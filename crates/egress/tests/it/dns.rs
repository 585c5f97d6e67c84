//! The resolver gives addresses that mean something only here, and asks nobody.

use std::cell::Cell;
use std::collections::HashSet;
use std::net::Ipv4Addr;

use palisade_egress::Host;
use palisade_egress::dns::{Answer, Names, answer, tcp};
use proptest::prelude::*;

const A: u16 = 1;
const OPT: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];

fn query(labels: &[&[u8]], kind: u16) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in labels {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label);
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message
}

fn extended(mut message: Vec<u8>) -> Vec<u8> {
    message[11] = 1;
    message.extend_from_slice(OPT);
    message
}

fn ask(names: &Names, message: &[u8]) -> Answer {
    answer(message, names, &|host| host.to_string().ends_with("allowed.example"))
}

fn code(answer: &Answer) -> u8 {
    answer.reply.as_ref().unwrap()[3] & 15
}

#[test]
fn an_allowed_name_has_an_address_that_gives_it_back() {
    let names = Names::new();
    let message = query(&[b"Api", b"ALLOWED", b"example"], A);
    let answered = ask(&names, &message);
    assert!(answered.allowed);
    assert_eq!(answered.asked.as_deref(), Some("api.allowed.example"));
    let reply = answered.reply.unwrap();
    // One question, as it was written, and one answer: A, IN, four bytes.
    assert_eq!(&reply[..12], &[0xab, 0xcd, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    assert_eq!(&reply[12..message.len()], &message[12..]);
    assert_eq!(&reply[message.len()..message.len() + 6], &[0xc0, 12, 0, 1, 0, 1]);
    let [.., a, b, c, d] = reply[..] else { panic!() };
    let address = Ipv4Addr::new(a, b, c, d);
    assert!(Names::is_synthetic(address));
    assert_eq!(names.host(address), Some("api.allowed.example".parse().unwrap()));
    // The same again, in this session and in the next.
    assert_eq!(ask(&names, &message).reply.as_ref(), Some(&reply));
    assert_eq!(ask(&Names::new(), &message).reply, Some(reply));
}

#[test]
fn no_other_type_carries_anything() {
    let names = Names::new();
    // NS, CNAME, SOA, NULL, PTR, MX, TXT, AAAA, SRV, NAPTR, SVCB, HTTPS, ANY, and one that nobody knows.
    for kind in [2, 5, 6, 10, 12, 15, 16, 28, 33, 35, 64, 65, 255, 65280] {
        let message = query(&[b"allowed", b"example"], kind);
        let answered = ask(&names, &message);
        assert!(answered.allowed);
        let reply = answered.reply.unwrap();
        assert_eq!(&reply[2..12], &[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0], "{kind}");
        assert_eq!(reply[12..], message[12..], "{kind}");
    }
}

#[test]
fn what_is_not_allowed_is_no_name_and_says_why() {
    let names = Names::new();
    let data = b"aGVsbG8gd29ybGQ".repeat(4);
    for labels in [
        &[&b"evil"[..], b"example"][..],
        &[&data[..60], b"tunnel", b"example"],
        &[b"allowed.example"],
        &[b"x\0", b"allowed", b"example"],
        &[b"x@y", b"allowed", b"example"],
        &[b"127", b"0", b"0", b"1"],
        &[b"2130706433"],
        &[b"1", b"0", b"18", b"198", b"in-addr", b"arpa"],
        &[b"\xff\xfe", b"allowed", b"example"],
        &[b"*", b"allowed", b"example"],
        &[],
    ] {
        let answered = ask(&names, &query(labels, A));
        assert!(!answered.allowed, "{labels:?}");
        assert_eq!(code(&answered), 3, "{labels:?}");
        assert!(answered.asked.unwrap().bytes().all(|byte| byte.is_ascii_graphic()));
        let answered = ask(&names, &extended(query(labels, A))).reply.unwrap();
        assert!(answered.len() <= 512);
        // Extended error 17.
        assert!(answered.windows(6).any(|part| part[..2] == [0, 15] && part[4..] == [0, 17]), "{labels:?}");
    }
    assert_eq!(names.host(Ipv4Addr::new(198, 18, 1, 0)), None);
}

#[test]
fn what_is_no_query_is_refused_or_ignored() {
    let names = Names::new();
    let good = query(&[b"allowed", b"example"], A);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = good.clone();
        change(&mut message);
        ask(&names, &message)
    };
    // Answers are not answered, nor is what has no header.
    assert_eq!(with(&|m| m[2] |= 0x80).reply, None);
    assert_eq!(with(&|m| m.truncate(11)).reply, None);
    assert_eq!(with(&|m| m.resize(70_000, 0)).reply, None);
    // NOTIFY, UPDATE; another class; two questions, none, or answers in a query.
    assert_eq!(code(&with(&|m| m[2] |= 4 << 3)), 4);
    assert_eq!(code(&with(&|m| m[2] |= 5 << 3)), 4);
    assert_eq!(code(&with(&|m| *m.last_mut().unwrap() = 3)), 5);
    for (at, value) in [(5, 2), (5, 0), (7, 1), (9, 1), (10, 1)] {
        assert_eq!(code(&with(&|m| m[at] = value)), 1, "{at}");
    }
    // A pointer to itself, to what is ahead, an undefined label, a name that does not end, a name too long.
    for name in [&[0xc0, 12][..], &[0xc0, 200], &[0x40, 1], &[63, 1], &[1, b'a', 0xc0, 12]] {
        let answered = with(&|m| {
            m.truncate(12);
            m.extend_from_slice(name);
            m.extend_from_slice(&[0, 1, 0, 1]);
        });
        assert_eq!(code(&answered), 1, "{name:?}");
    }
    let label = [b'a'; 63];
    assert_eq!(code(&ask(&names, &query(&[&label[..]; 4], A))), 1);
    // An option whose length is a lie, two of them, one of another version.
    let mut lie = extended(good.clone());
    *lie.last_mut().unwrap() = 9;
    assert_eq!(code(&ask(&names, &lie)), 1);
    let mut two = extended(good.clone());
    two[11] = 2;
    two.extend_from_slice(OPT);
    assert_eq!(code(&ask(&names, &two)), 1);
    let mut version = extended(good.clone());
    let at = version.len() - 5;
    version[at] = 1;
    let reply = ask(&names, &version).reply.unwrap();
    assert_eq!(reply[reply.len() - 6], 1, "BADVERS");
}

#[test]
fn no_address_ever_stands_for_two_names() {
    let names = Names::new();
    let mut seen = HashSet::new();
    let host = |number: usize| format!("n{number}.allowed.example").parse::<Host>().unwrap();
    let mut count = 0;
    while let Some(address) = names.address(&host(count)) {
        assert!(seen.insert(address) && Names::is_synthetic(address));
        assert!(
            ![0, 255].contains(&address.octets()[2])
                || address.octets()[1] != if address.octets()[2] == 0 { 18 } else { 19 }
        );
        count += 1;
    }
    assert_eq!(count, 32_768);
    // Those that are there stay; the resolver says that it is full.
    assert_eq!(names.host(names.address(&host(7)).unwrap()), Some(host(7)));
    let full = ask(&names, &query(&[b"one-more", b"allowed", b"example"], A));
    assert_eq!((code(&full), full.allowed), (2, true));
    assert_eq!(names.address(&Host::from(Ipv4Addr::LOCALHOST)), None);
}

#[test]
fn messages_over_tcp_have_a_length() {
    let message = query(&[b"allowed", b"example"], A);
    let framed = tcp::frame(&message);
    let two = [framed.as_slice(), &framed].concat();
    assert_eq!(tcp::next(&two), tcp::Next::Message(&message, framed.len()));
    for end in 0..framed.len() {
        assert_eq!(tcp::next(&framed[..end]), tcp::Next::More);
    }
    assert_eq!(tcp::next(&[0xff, 0xff, 0]), tcp::Next::TooLong);
}

proptest! {
    #[test]
    fn anything_is_answered_in_bounds(message in proptest::collection::vec(any::<u8>(), 0..600), mend in any::<bool>()) {
        let mut message = message;
        if mend && message.len() > 12 {
            let records = message[11] & 3;
            message[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, records]);
        }
        let names = Names::new();
        let asked = Cell::new(false);
        let answered = answer(&message, &names, &|_| { asked.set(true); true });
        if let Some(reply) = answered.reply {
            prop_assert!(reply.len() <= 512);
            prop_assert_eq!(&reply[..2], &message[..2]);
        }
        prop_assert_eq!(answered.allowed, asked.get());
    }
}
