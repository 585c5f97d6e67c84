//! Which synthetic address stands for which name.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use crate::Host;

/// 198.18.0.0/15 (RFC 2544: for benchmarks, so that no host of the internet has one).
const NETWORK: u32 = 0xc612_0000;
/// The first and the last 256 are left to the sandbox's own devices, and to habits about what ends in 0 and 255.
const FIRST: u32 = 256;
const COUNT: u32 = (1 << 17) - 512;
/// The most names of a session. With a quarter of the addresses in use, a free one is near.
const MOST: usize = 32_768;

/// The synthetic addresses of one session. Names stay for as long as it lives, and no address ever stands for two of them: a
/// program may keep an address for longer than it was told to.
#[derive(Debug, Default)]
pub struct Names {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    addresses: HashMap<Host, u32>,
    hosts: HashMap<u32, Host>,
}

impl Names {
    /// No names yet.
    pub fn new() -> Names {
        Names::default()
    }

    /// The address of a name, given to it the first time. The same name gets the same address in every session, unless another
    /// name was there first: so a program that kept it through a restore still reaches what it meant, or nothing. None if the
    /// session has too many names, and for what is an address already.
    pub fn address(&self, host: &Host) -> Option<Ipv4Addr> {
        let name = host.name()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = known.addresses.get(host) {
            return Some(at(*place));
        }
        if known.addresses.len() >= MOST {
            return None;
        }
        let wanted = hash(name) % COUNT;
        let place = (0..COUNT).map(|step| (wanted + step) % COUNT).find(|place| !known.hosts.contains_key(place))?;
        known.addresses.insert(host.clone(), place);
        known.hosts.insert(place, host.clone());
        Some(at(place))
    }

    /// The name for which an address stands.
    pub fn host(&self, address: Ipv4Addr) -> Option<Host> {
        let place = u32::from(address).checked_sub(NETWORK + FIRST)?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).hosts.get(&place).cloned()
    }

    /// Whether an address is one that could stand for a name.
    pub fn is_synthetic(address: Ipv4Addr) -> bool {
        u32::from(address) & 0xfffe_0000 == NETWORK
    }
}

fn at(place: u32) -> Ipv4Addr {
    Ipv4Addr::from(NETWORK + FIRST + place)
}

/// FNV-1a: the same in every process. Names that are made to collide only crowd the session that asks for them.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
