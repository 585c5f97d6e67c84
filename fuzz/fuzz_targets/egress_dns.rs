//! What a sandbox sends to the resolver. Asserts: no panic; replies fit a datagram and belong to their query; the address of an
//! answer gives back the name that was asked for.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use palisade_egress::Host;
use palisade_egress::dns::{Names, answer, tcp};

fuzz_target!(init: palisade_fuzz::plant(&seeds()), |data: &[u8]| {
    if let tcp::Next::Message(message, length) = tcp::next(data) {
        assert_eq!(tcp::frame(message), data[..length]);
    }
    let names = Names::new();
    let answered = answer(data, &names, &|host| host.to_string().len() % 2 == 0);
    let asked = answered.asked.as_deref();
    assert!(asked.is_none_or(|asked| asked.bytes().all(|byte| byte.is_ascii_graphic())));
    let Some(reply) = answered.reply else { return };
    assert!(reply.len() <= 512);
    assert_eq!(reply[..2], data[..2]);
    // One answer: it ends with an address, before an option if there is one.
    if reply[7] == 1 {
        let end = reply.len() - if reply[11] == 1 { 11 } else { 0 };
        let address: [u8; 4] = reply[end - 4..end].try_into().expect("four bytes are four bytes");
        let host = names.host(Ipv4Addr::from(address)).expect("an answer has an address of a name");
        assert_eq!(Some(host), asked.and_then(|asked| asked.parse::<Host>().ok()));
        assert!(answered.allowed);
    }
});

fn seeds() -> Vec<Vec<u8>> {
    let question =
        |kind: u8| [b"\0\x01\x01\0\0\x01\0\0\0\0\0\x01\x03api\x07exampl1\0\0" as &[u8], &[kind, 0, 1]].concat();
    let option = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";
    let mut plain = question(1);
    plain[11] = 0;
    vec![
        [&question(1)[..], option].concat(),
        [&question(28)[..], option].concat(),
        [&question(65)[..], &[0xc0, 12], &option[1..]].concat(),
        [&[0, u8::try_from(plain.len()).unwrap_or_default()], &plain[..]].concat(),
        plain,
    ]
}
