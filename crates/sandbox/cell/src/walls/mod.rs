//! From a fresh set of namespaces to a sealed sandbox, in two steps.
//!
//! The worker has made the namespaces, mapped the user and executed this program with the capabilities that it needs to
//! build its own walls. [`build`] makes all that is the same for everybody; [`claim`] adds what belongs to one session and
//! gives up every privilege. In between nothing runs here but this program, so that a sandbox can wait for its session.
//! Each step that fails is named; nothing is served unless all have succeeded.

mod devices;
pub(crate) mod filter;
mod hostname;
mod keyring;
pub(crate) mod landlock;
pub(crate) mod limits;
pub(crate) mod mounts;
pub(crate) mod privileges;
mod proc;
pub(crate) mod users;

use std::io;
use std::os::fd::OwnedFd;

use palisade_cell::{Claim, Root, Setup};

use crate::sys;

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) step: &'static str,
    pub(crate) detail: String,
    pub(crate) cause: io::Error,
}

/// Names the step of a failure.
pub(crate) trait Step<T> {
    /// The step, and what it was about.
    fn step(self, step: &'static str, detail: impl Into<String>) -> Result<T, Failed>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: &'static str, detail: impl Into<String>) -> Result<T, Failed> {
        self.map_err(|cause| Failed { step, detail: detail.into(), cause })
    }
}

/// Walls that wait for a session.
pub(crate) struct Built {
    /// Where the root is: beside the host's, or already in its place.
    at: &'static str,
    landlock: landlock::Ruleset,
    pub(crate) notes: Vec<String>,
}

/// In a nursery: builds what its sandboxes share, and leaves the host. They are born with copies of these mounts, which they
/// can neither remove nor make writable.
pub(crate) fn template(root: &Root, descriptors: Vec<OwnedFd>) -> Result<(), Failed> {
    // SAFETY: no pointers.
    let own = sys::check(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into());
    own.step("mount namespace", "unshare")?;
    mounts::make_private().step("mount propagation", "/")?;
    let at = mounts::root(root, descriptors)?;
    devices::make(at)?;
    proc::shadow(at)?;
    mounts::leave_host()?;
    mounts::seal_root()
}

/// Builds all that does not depend on the session. `filter` is the program that holds from here on.
pub(crate) fn build(setup: &Setup, filter: &[u8], descriptors: Vec<OwnedFd>) -> Result<Built, Failed> {
    let mut notes = Vec::new();
    let at = match &setup.root {
        Some(root) => {
            mounts::make_private().step("mount propagation", "/")?;
            let at = mounts::root(root, descriptors)?;
            devices::make(at)?;
            at
        }
        None => "",
    };
    mounts::scratch(at, setup)?;
    devices::terminals(at, &mut notes)?;
    proc::mount(at)?;
    let at = if setup.leave_early && !at.is_empty() { mounts::leave_host()? } else { at };
    limits::lower(&setup.rlimits).step("resource limits", "setrlimit")?;
    limits::forget_dumps();
    keyring::renew().step("session keyring", "join")?;
    let landlock = if setup.landlock { landlock::Ruleset::new(at) } else { Ok(landlock::Ruleset::none()) };
    let landlock = landlock.step("landlock", "create_ruleset")?;
    privileges::bound()?;
    privileges::forbid_new()?;
    filter::install(filter)?;
    Ok(Built { at, landlock, notes })
}

/// Adds what belongs to the session, and seals. `filter` takes the calls that only this program needed. Returns the Landlock
/// ABI in force.
pub(crate) fn claim(mut built: Built, claim: &Claim, filter: &[u8], descriptors: Vec<OwnedFd>) -> Result<i32, Failed> {
    // Only now is this process in all its control groups: what it sees as their root is its own, not the worker's.
    privileges::own_cgroups()?;
    mounts::session(built.at, claim, descriptors)?;
    if !built.at.is_empty() {
        mounts::leave_host()?;
    }
    mounts::seal_root()?;
    hostname::set(&claim.hostname).step("host name", &claim.hostname)?;
    mounts::chdir(&claim.workdir).step("working directory", &claim.workdir)?;
    built.landlock.allow(&claim.roots).step("landlock", "add_rule")?;
    privileges::drop_all()?;
    let abi = built.landlock.restrict().step("landlock", "restrict_self")?;
    filter::install(filter)?;
    Ok(abi)
}
