//! What the kernel refused in a sandbox's network: datagrams, IPv6, whatever is no stream to an IPv4 address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use palisade_audit::Trail;
use serde::Serialize;
use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;

/// The largest message of `nfnetlink_log` for the headers of one packet, and room for several.
const MESSAGE: usize = 16 << 10;
/// `NFULA_PAYLOAD` of `linux/netfilter/nfnetlink_log.h`.
const PAYLOAD: u16 = 9;

/// A packet that was refused.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Packet {
    /// Always `datagram`.
    kind: &'static str,
    /// Where it was to go.
    to: String,
    /// What it was: `udp`, `icmp`, `tcp`, or the number of its protocol.
    protocol: String,
    allowed: bool,
    reason: &'static str,
    /// What refused it.
    rule: &'static str,
}

/// Keeps what is told on a sandbox's socket until the task is aborted.
pub(super) fn listen(socket: OwnedFd, trail: Trail, session: String) -> io::Result<JoinHandle<()>> {
    // A netlink socket is one of datagrams, and is read like one.
    let socket = UnixDatagram::from_std(std::os::unix::net::UnixDatagram::from(socket))?;
    Ok(tokio::spawn(async move {
        let mut buffer = vec![0; MESSAGE];
        loop {
            match socket.recv(&mut buffer).await {
                Ok(read) => {
                    for packet in packets(&buffer[..read]) {
                        if let Err(error) = trail.note("egress.refused", Some(&session), &packet).await {
                            tracing::error!(%error, session, "a refused packet is not in the audit trail");
                        }
                    }
                }
                // More than there was room for: they were refused all the same.
                Err(why) if why.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {}
                Err(_) => return,
            }
        }
    }))
}

/// The packets in messages of the kernel.
fn packets(mut messages: &[u8]) -> Vec<Packet> {
    const HEADER: usize = 16;
    const LOG_HEADER: usize = 4;
    let mut found = Vec::new();
    while let Some(length) = messages.first_chunk::<4>().map(|length| u32::from_ne_bytes(*length) as usize) {
        let Some(message) = messages.get(..length).filter(|_| length >= HEADER) else { break };
        let mut attributes = message.get(HEADER + LOG_HEADER..).unwrap_or_default();
        while let Some(header) = attributes.first_chunk::<4>() {
            let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
            let Some(attribute) = attributes.get(4..length) else { break };
            if u16::from_ne_bytes([header[2], header[3]]) & 0x3fff == PAYLOAD {
                found.extend(packet(attribute));
            }
            attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// What the headers of a packet say.
fn packet(bytes: &[u8]) -> Option<Packet> {
    let (address, protocol, payload): (IpAddr, u8, &[u8]) = match bytes.first()? >> 4 {
        4 => {
            let address: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
            let header = usize::from(bytes[0] & 15) * 4;
            (address.into(), bytes[9], bytes.get(header..)?)
        }
        6 => {
            let address: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
            (address.into(), bytes[6], bytes.get(40..)?)
        }
        _ => return None,
    };
    let (protocol, has_ports) = match protocol {
        6 => ("tcp".to_owned(), true),
        17 => ("udp".to_owned(), true),
        1 | 58 => ("icmp".to_owned(), false),
        number => (number.to_string(), false),
    };
    let port = payload.get(2..4).filter(|_| has_ports).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let to = port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string());
    let reason = if address.is_ipv6() { "ipv6_refused" } else { "udp_refused" };
    Some(Packet { kind: "datagram", to, protocol, allowed: false, reason, rule: "kernel" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_say_where_they_were_to_go() {
        let mut v4 = vec![0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 8, 8, 8, 8];
        v4.extend([0xc0, 0, 0x01, 0xbb, 0, 13, 0, 0]);
        assert_eq!(packet(&v4).unwrap().to, "8.8.8.8:443");
        let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 58, 64];
        v6.extend([0; 16]);
        v6.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        v6.extend([0x80, 0, 0, 0]);
        let told = packet(&v6).unwrap();
        assert_eq!((told.to.as_str(), told.protocol.as_str(), told.reason), ("2001:db8::1", "icmp", "ipv6_refused"));
        for length in 0..v4.len() {
            let _ = packet(&v4[..length]);
        }
        // One message with one payload, and what is cut off or lies about its length.
        let mut message = vec![0; 20];
        message.extend(u16::try_from(4 + v4.len()).unwrap().to_ne_bytes());
        message.extend(PAYLOAD.to_ne_bytes());
        message.extend(&v4);
        let length = u32::try_from(message.len()).unwrap();
        message[..4].copy_from_slice(&length.to_ne_bytes());
        assert_eq!(packets(&message).len(), 1);
        for cut in 0..message.len() {
            assert_eq!(packets(&message[..cut]), []);
        }
        for length in 0..64u32 {
            let mut lie = message.clone();
            lie[..4].copy_from_slice(&length.to_ne_bytes());
            let _ = packets(&lie);
        }
    }
}
