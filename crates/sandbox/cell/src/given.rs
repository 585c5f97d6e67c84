//! A sandbox whose walls are somebody else's, or that has none.

use std::fs;
use std::io;
use std::sync::atomic::Ordering;

use palisade_cell::Setup;

use crate::setup::{Built, Failed, Step, chdir, limits};
use crate::sys::prctl;
use crate::{landlock, reaper, seal};

/// Inside the walls of a container runtime: what is left of privileges is given up or refuses the start; filters are added
/// where this kernel, or what imitates one, takes them.
pub(crate) fn enter(setup: &Setup) -> Result<Built, Failed> {
    let mut built = Built::default();
    limits(&setup.rlimits).step("resource limits", "setrlimit")?;
    chdir(&setup.workdir).step("working directory", &setup.workdir)?;
    // Without the right to give it up there is nothing to give up, which is what is looked at below.
    if let Err(failed) = seal::drop_privileges(false) {
        built.notes.push(format!("{} ({}): {}", failed.step, failed.detail, failed.cause));
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]).step("no_new_privs", "set")?;
    let _ = prctl(libc::PR_SET_DUMPABLE, [0, 0, 0, 0]).map_err(|why| built.notes.push(format!("dumpable: {why}")));
    powerless()?;
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

/// Refuses what the runtime should not have left.
fn powerless() -> Result<(), Failed> {
    const STATUS: &str = "/proc/self/status";
    let status = fs::read_to_string(STATUS).step("checking privileges", STATUS)?;
    let mut looked = 0;
    for line in status.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        if matches!(name, "CapInh" | "CapPrm" | "CapEff" | "CapBnd" | "CapAmb") {
            looked += 1;
            if u64::from_str_radix(value.trim(), 16) != Ok(0) {
                let cause = io::Error::from_raw_os_error(libc::EPERM);
                let detail = format!("the container runtime left {name}{}", value.trim_end());
                return Err(Failed { step: "checking privileges", detail, cause });
            }
        }
    }
    if looked < 3 {
        let cause = io::Error::from_raw_os_error(libc::ENODATA);
        return Err(Failed { step: "checking privileges", detail: "capabilities are not shown".to_owned(), cause });
    }
    // SAFETY: no pointers.
    if unsafe { libc::geteuid() } == 0 {
        let cause = io::Error::from_raw_os_error(libc::EPERM);
        return Err(Failed { step: "checking privileges", detail: "the cell is root".to_owned(), cause });
    }
    Ok(())
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
