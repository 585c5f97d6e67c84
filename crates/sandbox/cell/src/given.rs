//! A sandbox whose walls are somebody else's, or that has none.

use std::fs;
use std::io;

use palisade_cell::{Claim, Setup};

use crate::sys::prctl;
use crate::walls::{Failed, Step, filter, landlock, limits, mounts, privileges, users};

/// What holds the sandbox in.
#[derive(Debug, Default)]
pub(crate) struct Entered {
    pub(crate) landlock_abi: i32,
    pub(crate) seccomp: bool,
    pub(crate) filtered: bool,
    pub(crate) notes: Vec<String>,
}

impl Entered {
    /// Walls of the cell's own.
    pub(crate) fn own(landlock_abi: i32) -> Entered {
        Entered { landlock_abi, seccomp: true, ..Entered::default() }
    }
}

/// Inside the walls of a container runtime: what is left of privileges refuses the start; filters are added where this
/// kernel, or what imitates one, takes them.
pub(crate) fn enter(setup: &Setup, claim: &Claim, filters: [&[u8]; 2]) -> Result<Entered, Failed> {
    let mut entered = Entered { filtered: powerless()?, ..Entered::default() };
    if setup.own_users {
        // Before the limits are lowered: what they are now is what is counted for everybody outside.
        match users::enter() {
            Ok(made) => made?,
            Err(why) => entered.notes.push(format!(
                "a user namespace of the sandbox's own: {why}; it shares queued signals, timers, inotify instances and watches with others"
            )),
        }
        powerless()?;
    }
    for limit in &setup.rlimits {
        if let Err(why) = limits::lower(std::slice::from_ref(limit)) {
            entered.notes.push(format!("resource limit {}: {why}", limit.0));
        }
    }
    mounts::chdir(&claim.workdir).step("working directory", &claim.workdir)?;
    privileges::forbid_new()?;
    if let Err(why) = prctl(libc::PR_SET_DUMPABLE, [0, 0, 0, 0]) {
        entered.notes.push(format!("dumpable: {why}"));
    }
    if setup.landlock {
        let restricted = landlock::Ruleset::new("").and_then(|mut rules| {
            rules.allow(&claim.roots)?;
            rules.restrict()
        });
        match restricted {
            Ok(abi) => entered.landlock_abi = abi,
            Err(why) => entered.notes.push(format!("landlock: {why}")),
        }
    }
    match filters.into_iter().try_for_each(filter::install) {
        Ok(()) => entered.seccomp = true,
        // The runtime's profile lets namespaces be made that these must refuse.
        Err(failed) if setup.own_users => return Err(failed),
        Err(failed) => entered.notes.push(format!("the cell's own system-call filters: {}", failed.cause)),
    }
    Ok(entered)
}

/// Refuses what the runtime should not have left; says whether there is a system-call filter.
fn powerless() -> Result<bool, Failed> {
    const STATUS: &str = "/proc/self/status";
    const STEP: &str = "checking privileges";
    let refused = |detail: String| Err(Failed { step: STEP, detail, cause: io::Error::from_raw_os_error(libc::EPERM) });
    let status = fs::read_to_string(STATUS).step(STEP, STATUS)?;
    let (mut looked, mut filtered) = (0, false);
    for line in status.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match name {
            "CapInh" | "CapPrm" | "CapEff" | "CapBnd" | "CapAmb" => {
                looked += 1;
                if u64::from_str_radix(value, 16) != Ok(0) {
                    return refused(format!("the container runtime left {name} {value}"));
                }
            }
            "NoNewPrivs" if value != "1" => {
                return refused("the container runtime did not set no_new_privs".to_owned());
            }
            "Seccomp" => filtered = value == "2",
            _ => {}
        }
    }
    if looked < 3 {
        return refused("capabilities are not shown".to_owned());
    }
    // SAFETY: no pointers.
    if unsafe { libc::geteuid() } == 0 {
        return refused("the cell is root".to_owned());
    }
    Ok(filtered)
}

/// No walls: only what keeps the processes together.
pub(crate) fn settle(setup: &Setup, claim: &Claim) -> Result<Entered, Failed> {
    // Orphans come here, or their end could not be brought about.
    prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0]).step("collecting orphans", "subreaper")?;
    limits::lower(&setup.rlimits).step("resource limits", "setrlimit")?;
    mounts::chdir(&claim.workdir).step("working directory", &claim.workdir)?;
    Ok(Entered::default())
}
