//! Routes: without one a connection fails before any rule is asked.

use std::io;

use rustix::net::{AddressFamily, SocketType, socket};

use super::netlink::{ACK, CREATE, Messages, attribute, open};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWROUTE: u16 = 24;
const UP: u32 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const TABLE_LOCAL: u8 = 255;
const PROTOCOL_STATIC: u8 = 4;
const SCOPE_HOST: u8 = 254;
const TYPE_LOCAL: u8 = 2;
/// The loopback device is the first of each namespace.
const LOOPBACK: u32 = 1;

/// The loopback device is up.
pub(super) fn up() -> io::Result<()> {
    let mut messages = Messages::default();
    let mut fixed = vec![0; 4];
    fixed.extend(LOOPBACK.to_ne_bytes());
    // What is to be, and what of it is to change.
    fixed.extend([UP.to_ne_bytes(), UP.to_ne_bytes()].concat());
    messages.message(RTM_NEWLINK, ACK, &fixed, |_| {});
    messages.send(&open(None)?, 1)
}

/// Every address is this namespace's own.
pub(super) fn everywhere() -> io::Result<()> {
    add(AddressFamily::INET, Some([127, 0, 0, 1]))?;
    // Where the kernel has no IPv6, or none here, it leads nowhere by itself.
    if socket(AddressFamily::INET6, SocketType::DGRAM, None).is_ok() {
        match add(AddressFamily::INET6, None) {
            Err(why)
                if matches!(why.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::ENODEV | libc::EINVAL)) => {}
            done => done?,
        }
    }
    Ok(())
}

fn add(family: AddressFamily, source: Option<[u8; 4]>) -> io::Result<()> {
    let family = u8::try_from(family.as_raw()).unwrap_or(0);
    let mut messages = Messages::default();
    let fixed = [family, 0, 0, 0, TABLE_LOCAL, PROTOCOL_STATIC, SCOPE_HOST, TYPE_LOCAL, 0, 0, 0, 0];
    messages.message(RTM_NEWROUTE, ACK | CREATE, &fixed, |to| {
        attribute(to, RTA_OIF, &LOOPBACK.to_ne_bytes());
        if let Some(source) = source {
            attribute(to, RTA_PREFSRC, &source);
        }
    });
    messages.send(&open(None)?, 1)
}
