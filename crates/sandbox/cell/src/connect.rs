//! Connections to ports of the sandbox's own loopback device.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use palisade_cell::{End, LEAST_CHARGE, OUTPUT_WINDOW, Reply, charge};

use crate::exec::BUFFER;
use crate::link::Link;
use crate::sys::{self, check, interest};

/// Connections of one sandbox at the same time.
const LIMIT: usize = 128;

struct Connection {
    id: u64,
    socket: OwnedFd,
    connected: bool,
    window: u64,
    sent: u64,
    input: VecDeque<u8>,
    close_input: bool,
    over: bool,
}

/// All connections.
pub(crate) struct Connections {
    all: BTreeMap<u64, Connection>,
    link: Arc<Link>,
}

fn connect(port: u16) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let socket = check(unsafe { libc::socket(libc::AF_INET, kind, 0) }.into())?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(socket).unwrap_or(-1)) };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    };
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the address lives through the call, and the length is its own.
    let done = check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) }.into());
    match done {
        Err(why) if why.raw_os_error() != Some(libc::EINPROGRESS) => Err(why),
        _ => Ok(socket),
    }
}

/// What became of a connection that was being made.
fn outcome(socket: &OwnedFd) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let (fd, value) = (socket.as_raw_fd(), (&raw mut error).cast());
    // SAFETY: both live through the call, and the length is the number's own.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, value, &raw mut length) }.into())?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

impl Connection {
    fn ready(&mut self, events: libc::c_short, buffer: &mut [u8], link: &Link) {
        if !self.connected {
            if let Err(why) = outcome(&self.socket) {
                link.send(&Reply::ExecFailed { id: self.id, message: why.to_string() }, &[]);
                self.over = true;
                return;
            }
            self.connected = true;
            // Nothing, as the first thing that comes: somebody listens there.
            link.send(&Reply::Output { id: self.id, stderr: false, offset: 0 }, &[]);
            self.window -= charge(0).min(self.window);
        }
        if events & libc::POLLOUT != 0 {
            self.feed(link);
        }
        if events & !libc::POLLOUT != 0 && self.window >= LEAST_CHARGE {
            let most = usize::try_from(self.window).unwrap_or(BUFFER).min(BUFFER);
            match sys::read(&self.socket, &mut buffer[..most]) {
                Ok(read @ 1..) => {
                    link.send(&Reply::Output { id: self.id, stderr: false, offset: self.sent }, &buffer[..read]);
                    self.sent += read as u64;
                    self.window -= charge(read).min(self.window);
                }
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => {
                    let end = End { code: Some(0), ..End::default() };
                    link.send(&Reply::Exit { id: self.id, end }, &[]);
                    self.over = true;
                }
            }
        }
    }

    fn feed(&mut self, link: &Link) {
        while !self.input.is_empty() {
            let (front, _) = self.input.as_slices();
            let taken = match sys::write(&self.socket, front) {
                Ok(taken) => taken,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody reads there any more: what is read from there says the rest.
                Err(_) => self.input.len(),
            };
            self.input.drain(..taken);
            link.send(&Reply::Taken { id: self.id, bytes: taken as u64 }, &[]);
        }
        if self.close_input {
            self.close_input = false;
            // SAFETY: no pointers. One that is closed already is what is wanted.
            unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_WR) };
        }
    }
}

impl Connections {
    pub(crate) fn new(link: Arc<Link>) -> Connections {
        Connections { all: BTreeMap::new(), link }
    }

    pub(crate) fn start(&mut self, id: u64, port: u16) {
        let socket = if self.all.len() >= LIMIT {
            Err(io::Error::other(format!("too many connections into this sandbox: {LIMIT} are the most")))
        } else {
            connect(port)
        };
        match socket {
            Ok(socket) => {
                let connection = Connection {
                    id,
                    socket,
                    connected: false,
                    window: OUTPUT_WINDOW,
                    sent: 0,
                    input: VecDeque::new(),
                    close_input: false,
                    over: false,
                };
                self.all.insert(id, connection);
            }
            Err(why) => self.link.send(&Reply::ExecFailed { id, message: why.to_string() }, &[]),
        }
    }

    /// Input for a connection. Whether there is one.
    pub(crate) fn write(&mut self, id: u64, bytes: &[u8]) -> bool {
        let Some(connection) = self.all.get_mut(&id) else { return false };
        connection.input.extend(bytes);
        connection.close_input |= bytes.is_empty();
        if connection.connected {
            connection.feed(&self.link);
        }
        true
    }

    pub(crate) fn open_window(&mut self, id: u64, bytes: u64) -> bool {
        let Some(connection) = self.all.get_mut(&id) else { return false };
        connection.window = connection.window.saturating_add(bytes).min(OUTPUT_WINDOW);
        true
    }

    pub(crate) fn cancel(&mut self, id: u64) -> bool {
        self.all.remove(&id).is_some()
    }

    pub(crate) fn watch(&self, watched: &mut Vec<libc::pollfd>) {
        for connection in self.all.values() {
            let output = if !connection.connected || !connection.input.is_empty() { libc::POLLOUT } else { 0 };
            let input = if connection.connected && connection.window >= LEAST_CHARGE { libc::POLLIN } else { 0 };
            // An end is reported whether it is asked for or not, and cannot be told while the window is closed.
            let fd = if output | input == 0 { -1 } else { connection.socket.as_raw_fd() };
            watched.push(interest(fd, output | input));
        }
    }

    /// Does what descriptors are ready for: `ready` is what [`Connections::watch`] has put there, `buffer` of [`BUFFER`] bytes.
    pub(crate) fn ready(&mut self, ready: &[libc::pollfd], buffer: &mut [u8]) {
        for (connection, ready) in self.all.values_mut().zip(ready) {
            if ready.revents != 0 {
                connection.ready(ready.revents, buffer, &self.link);
            }
        }
        self.all.retain(|_, connection| !connection.over);
    }

    /// How many descriptors are watched.
    pub(crate) fn watched(&self) -> usize {
        self.all.len()
    }
}
