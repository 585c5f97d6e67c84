//! Leading the network of a container that somebody else has made.

use std::io;
use std::os::fd::AsFd;

use palisade_cell::egress::{self, Sockets};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Error;
use crate::within;

/// Leads the network of a container to sockets, by its first process: from outside, before anything but the cell runs in it.
/// Needs root, and an engine on this machine. Blocks.
pub(crate) fn lead(pid: i32) -> Result<Sockets, Error> {
    let wrong = |step: &'static str, cause: io::Error| Error::Build {
        step: "egress network".to_owned(),
        detail: step.to_owned(),
        cause,
    };
    within::is_cell(pid).map_err(|cause| wrong("the container's first process", cause))?;
    let namespace = within::foreign(pid, "net").map_err(|cause| wrong("the container's network", cause))?;
    // What is led in here must not be the worker's own network.
    let namespace = namespace
        .ok_or_else(|| wrong("the container has no network of its own", io::ErrorKind::InvalidInput.into()))?;
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
