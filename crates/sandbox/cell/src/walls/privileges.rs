//! Privileges are given up.

use std::io;

use super::Failed;
use crate::sys::{check, prctl};

fn step<T>(result: io::Result<T>, step: &'static str, detail: &str) -> Result<T, Failed> {
    result.map_err(|cause| Failed { step, detail: detail.to_owned(), cause })
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// No program that is executed can have more privileges than this process.
pub(crate) fn forbid_new() -> Result<(), Failed> {
    step(prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]), "no_new_privs", "set")
}

/// A control group namespace whose root is where this process is.
pub(super) fn own_cgroups() -> Result<(), Failed> {
    // SAFETY: no pointers.
    let own = check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }.into());
    step(own.map(drop), "control group namespace", "unshare")
}

/// No program that is executed can be given a capability. Those that this process has stay.
pub(super) fn bound() -> Result<(), Failed> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, [capability, 0, 0, 0]) {
            Ok(()) => {}
            // Past the last capability that this kernel knows.
            Err(why) if why.raw_os_error() == Some(libc::EINVAL) && capability > 30 => break,
            Err(why) => return step(Err(why), "capability bounding set", &capability.to_string()),
        }
    }
    Ok(())
}

/// No capability in any of the other sets, none to be had again, and no new privileges.
pub(super) fn drop_all() -> Result<(), Failed> {
    clear()?;
    forbid_new()?;
    // The change of credentials has cleared it.
    step(prctl(libc::PR_SET_PDEATHSIG, [libc::SIGKILL as libc::c_ulong, 0, 0, 0]), "parent death signal", "set")?;
    // Commands run as the same user: without this they could trace this process and read its memory.
    step(prctl(libc::PR_SET_DUMPABLE, [0, 0, 0, 0]), "dumpable", "clear")
}

/// No capability in any of the other sets, and none to be had again.
pub(super) fn clear() -> Result<(), Failed> {
    step(
        prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0, 0, 0]),
        "ambient capabilities",
        "clear",
    )?;
    // NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, each with its lock (linux/securebits.h).
    let bits = 0b0000_0001 | 0b0000_0010 | 0b0000_0100 | 0b0000_1000 | 0b0010_0000 | 0b0100_0000 | 0b1000_0000;
    step(prctl(libc::PR_SET_SECUREBITS, [bits, 0, 0, 0]), "securebits", "lock")?;
    // Version 3 of the interface: two words for each of effective, permitted, inheritable.
    let header = CapHeader { version: 0x2008_0522, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: the header and the six words are what version 3 of the interface wants, and live through the call.
    let cleared = check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) });
    step(cleared.map(drop), "capabilities", "clear")
}
