//! A sandbox whose walls are somebody else's, or that has none.

use std::fs;
use std::io;
use std::sync::atomic::Ordering;

use palisade_cell::Setup;

use crate::setup::{Built, Failed, Step, chdir, limits};
use crate::sys::prctl;
use crate::{landlock, reaper, seal};

/// Inside the walls of a container runtime: what is left of privileges refuses the start; filters are added where this
/// kernel, or what imitates one, takes them.
pub(crate) fn enter(setup: &Setup) -> Result<Built, Failed> {
    let mut built = Built { filtered: powerless()?, ..Built::default() };
    for limit in &setup.rlimits {
        if let Err(why) = limits(std::slice::from_ref(limit)) {
            built.notes.push(format!("resource limit {}: {why}", limit.0));
        }
    }
    chdir(&setup.workdir).step("working directory", &setup.workdir)?;
    // Without the right to give it up there is nothing to give up, as was looked at above.
    let _ = seal::drop_privileges(false);
    prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]).step("no_new_privs", "set")?;
    if let Err(why) = prctl(libc::PR_SET_DUMPABLE, [0, 0, 0, 0]) {
        built.notes.push(format!("dumpable: {why}"));
    }
    if setup.landlock {
        match landlock::restrict(&setup.roots) {
            Ok(abi) => built.landlock_abi = abi,
            Err(why) => built.notes.push(format!("landlock: {why}")),
        }
    }
    match seal::install_filters(&setup.seccomp) {
        Ok(()) => built.seccomp = true,
        Err(failed) => built.notes.push(format!("the cell's own system-call filters: {}", failed.cause)),
    }
    Ok(built)
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
pub(crate) fn settle(setup: &Setup) -> Result<Built, Failed> {
    reaper::AMONG_OTHERS.store(true, Ordering::Relaxed);
    // Orphans come here, or their end could not be brought about.
    prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0]).step("collecting orphans", "subreaper")?;
    limits(&setup.rlimits).step("resource limits", "setrlimit")?;
    chdir(&setup.workdir).step("working directory", &setup.workdir)?;
    Ok(Built::default())
}
