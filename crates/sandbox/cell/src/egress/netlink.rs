//! Messages of netlink: how they are laid out, and how their answers are read.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
pub(super) const ACK: u16 = 4;
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(super) const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 0x8000;

/// A socket of this family in the caller's namespace.
pub(super) fn open(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

/// Messages on their way to the kernel.
#[derive(Debug, Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
    count: u32,
}

impl Messages {
    /// One more message: its kind, its flags, its fixed part, and what writes its attributes.
    pub(super) fn message(&mut self, kind: u16, flags: u16, fixed: &[u8], attributes: impl FnOnce(&mut Vec<u8>)) {
        self.count += 1;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        attributes(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Sends them all at once, and waits until the last message that asked for it was acknowledged, `acknowledged` of them.
    pub(super) fn send(&self, socket: &OwnedFd, acknowledged: usize) -> io::Result<()> {
        sendto(socket, &self.bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0; 8192];
        let mut left = acknowledged;
        while left > 0 {
            let (read, _) = recv(socket, &mut answer, RecvFlags::empty())?;
            let mut rest = &answer[..read];
            while rest.len() >= 20 {
                let length = usize::try_from(u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]])).unwrap_or(0);
                if u16::from_ne_bytes([rest[4], rest[5]]) == NLMSG_ERROR {
                    match i32::from_ne_bytes([rest[16], rest[17], rest[18], rest[19]]) {
                        0 => left = left.saturating_sub(1),
                        errno => return Err(io::Error::from_raw_os_error(-errno)),
                    }
                }
                rest = rest.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// An attribute.
pub(super) fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    to.extend_from_slice(&length.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// An attribute that is a string.
pub(super) fn text(to: &mut Vec<u8>, kind: u16, value: &str) {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    attribute(to, kind, &bytes);
}

/// An attribute that holds others.
pub(super) fn nested(to: &mut Vec<u8>, kind: u16, inside: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.extend_from_slice(&[0; 2]);
    to.extend_from_slice(&(kind | NESTED).to_ne_bytes());
    inside(to);
    let length = u16::try_from(to.len() - start).unwrap_or(u16::MAX);
    to[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}
