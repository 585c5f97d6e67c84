//! Privileges are given up and the system calls that remain are filtered.

use std::io;

use crate::setup::Failed;
use crate::sys::{check, prctl};

fn step<T>(result: io::Result<T>, step: &'static str, detail: &str) -> Result<T, Failed> {
    result.map_err(|cause| Failed { step, detail: detail.to_owned(), cause })
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// No capability in any of the five sets, none to be had again, and no new privileges. With `tied`, the end of whoever
/// started this process ends it too.
pub(crate) fn drop_privileges(tied: bool) -> Result<(), Failed> {
    step(
        prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0, 0, 0]),
        "ambient capabilities",
        "clear",
    )?;
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, [capability, 0, 0, 0]) {
            Ok(()) => {}
            // Past the last capability that this kernel knows.
            Err(why) if why.raw_os_error() == Some(libc::EINVAL) && capability > 30 => break,
            Err(why) => return step(Err(why), "capability bounding set", &capability.to_string()),
        }
    }
    // NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, each with its lock (linux/securebits.h).
    let bits = 0b0000_0001 | 0b0000_0010 | 0b0000_0100 | 0b0000_1000 | 0b0010_0000 | 0b0100_0000 | 0b1000_0000;
    step(prctl(libc::PR_SET_SECUREBITS, [bits, 0, 0, 0]), "securebits", "lock")?;
    // Version 3 of the interface: two words for each of effective, permitted, inheritable.
    let header = CapHeader { version: 0x2008_0522, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: the header and the six words are what version 3 of the interface wants, and live through the call.
    step(check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) }), "capabilities", "clear")?;
    step(prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]), "no_new_privs", "set")?;
    // The change of credentials has cleared it.
    if tied {
        step(prctl(libc::PR_SET_PDEATHSIG, [libc::SIGKILL as libc::c_ulong, 0, 0, 0]), "parent death signal", "set")?;
    }
    // Commands run as the same user: without this they could trace this process and read its memory.
    step(prctl(libc::PR_SET_DUMPABLE, [0, 0, 0, 0]), "dumpable", "clear")
}

/// Installs the filters; they hold for this process and for all that it starts.
pub(crate) fn install_filters(filters: &[Vec<u64>]) -> Result<(), Failed> {
    for filter in filters {
        let program: Vec<libc::sock_filter> = filter
            .iter()
            .map(|&word| libc::sock_filter {
                code: (word & 0xffff) as u16,
                jt: ((word >> 16) & 0xff) as u8,
                jf: ((word >> 24) & 0xff) as u8,
                k: (word >> 32) as u32,
            })
            .collect();
        let length = u16::try_from(program.len()).unwrap_or(0);
        let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
        // SAFETY: the program and its instructions live through the call; the kernel copies and checks them.
        let installed =
            check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) });
        step(installed, "seccomp", "install")?;
    }
    Ok(())
}
