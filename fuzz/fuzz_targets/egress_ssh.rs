//! What a sandbox asks its SSH agent, and what a host says when a connection is opened; the first byte says which, and how it is cut.
//! Asserts: no panic; the same in any pieces; nothing is longer than what it came from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_egress::ssh::fuzzed;

fuzz_target!(init: palisade_fuzz::plant(&seeds()), |data: &[u8]| {
    let Some((how, rest)) = data.split_first() else { return };
    match how & 1 {
        0 => fuzzed::asked(rest),
        _ => fuzzed::opening(rest, usize::from(how >> 1)),
    }
});

fn string(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).expect("it is short").to_be_bytes()[..], text].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let login = [
        string(b"session"),
        vec![50],
        string(b"git"),
        string(b"ssh-connection"),
        string(b"publickey-hostbound-v00@openssh.com"),
        vec![1],
        string(b"ssh-ed25519"),
        string(b"key"),
        string(b"host"),
    ];
    let sign = [&[0, 13][..], &string(b"key"), &string(&login.concat()), &[0; 4]].concat();
    let key = [string(b"ssh-ed25519"), string(&[9; 32])].concat();
    let signature = [string(b"ssh-ed25519"), string(&[7; 64])].concat();
    let rsa = [string(b"rsa-sha2-256"), string(&[7; 256])].concat();
    let modulus = [&[0, 0xc3][..], &[5; 255]].concat();
    let rsa_key = [string(b"ssh-rsa"), string(&[1, 0, 1]), string(&modulus)].concat();
    let bind = |key: &[u8], signature: &[u8]| {
        let extension = [string(b"session-bind@openssh.com"), string(key), string(b"session"), string(signature)];
        [&[0, 27][..], &extension.concat(), &[0]].concat()
    };
    let packet = |payload: &[u8]| {
        let length = u32::try_from(payload.len() + 1 + 4).expect("it is short").to_be_bytes();
        [&length[..], &[4], payload, &[0; 4]].concat()
    };
    let reply = [&[31][..], &string(&key), &string(&[3; 32]), &string(&signature)].concat();
    let opening = [&[0x21][..], b"SSH-2.0-x\r\n", &packet(&[20; 40]), &packet(&reply), &packet(&[21])].concat();
    vec![vec![0, 11], sign, bind(&key, &signature), bind(&rsa_key, &rsa), opening]
}
