//! Leading the network of a container that somebody else has made.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use palisade_cell::egress::{self, Sockets};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Error;
use crate::oci::CELL;

/// Leads the network of a container to sockets, by its first process: from outside, before anything but the cell runs in it.
/// Needs root, and an engine on this machine. Blocks.
pub(crate) fn lead(pid: i32) -> Result<Sockets, Error> {
    let wrong = |step: &'static str, cause: io::Error| Error::Build {
        step: "egress network".to_owned(),
        detail: step.to_owned(),
        cause,
    };
    // The engine may be another machine's, and the number here somebody else's.
    let program = std::fs::read_link(format!("/proc/{pid}/exe"))
        .map_err(|cause| wrong("the container's first process", cause))?;
    if program != Path::new(CELL) {
        return Err(wrong("the container's first process is not on this machine", io::ErrorKind::InvalidInput.into()));
    }
    let namespace =
        File::open(format!("/proc/{pid}/ns/net")).map_err(|cause| wrong("the container's network", cause))?;
    let own = File::open("/proc/self/ns/net").map_err(|cause| wrong("the worker's network", cause))?;
    let number = |file: &File| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    if number(&namespace).ok() == number(&own).ok() {
        // What is led in here must not be the worker's own network.
        return Err(wrong("the container has no network of its own", io::ErrorKind::InvalidInput.into()));
    }
    // A thread of its own, which ends in there: what else the worker does stays where it is.
    let led = std::thread::Builder::new().name("lead".to_owned()).spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|cause| wrong("entering the container's network", cause.into()))?;
        egress::up().map_err(|cause| wrong("loopback", cause))?;
        egress::lead().map_err(|failed| wrong(failed.step, failed.cause))
    });
    let led = led.map_err(|cause| wrong("a thread", cause))?;
    led.join().map_err(|_| Error::Ended)?
}
