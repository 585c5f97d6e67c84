//! The cell, PID 1: its memory, program, descriptors and life.

use crate::said::{denied, denied_or, steps};
use crate::sys::{self, Errno, call, unreadable, unwritable};
use crate::{Attempt, Facts, Said};

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("cell.environment", |_| unreadable("/proc/1/environ")),
    ("cell.memory-read", |_| denied(sys::open("/proc/1/mem", libc::O_RDONLY))),
    ("cell.memory-write", |_| denied(sys::open("/proc/1/mem", libc::O_WRONLY))),
    ("cell.memory-map", |_| unreadable("/proc/1/maps")),
    ("cell.memory-calls", |_| {
        let mut ours = [0u64; 1];
        let local = [ours.as_mut_ptr() as usize, 8];
        let remote = [0x40_0000usize, 8];
        match denied(call!(libc::SYS_process_vm_readv, 1, &local, 1, &remote, 1, 0)) {
            Said::Refused(_) => denied(call!(libc::SYS_process_vm_writev, 1, &local, 1, &remote, 1, 0)),
            said => said,
        }
    }),
    ("cell.auxiliary-vector", |_| unreadable("/proc/1/auxv")),
    ("cell.stack", |_| unreadable("/proc/1/stack")),
    ("cell.system-call", |_| unreadable("/proc/1/syscall")),
    ("cell.io-counters", |_| unreadable("/proc/1/io")),
    ("cell.descriptors", |_| match std::fs::read_dir("/proc/1/fd") {
        Ok(mut entries) => match entries.next() {
            Some(_) => Said::Through("the cell's descriptors".to_owned()),
            None => Said::Refused("empty".to_owned()),
        },
        Err(why) => Said::from_error("", Errno::of(&why)),
    }),
    ("cell.socket", |_| {
        for n in 0..64 {
            if std::fs::read_link(format!("/proc/1/fd/{n}")).is_ok() {
                return Said::Through(format!("descriptor {n} of the cell"));
            }
        }
        Said::Refused("none to be seen".to_owned())
    }),
    ("cell.socket-steal", |_| {
        steps(|| {
            let fd = call!(libc::SYS_pidfd_open, 1, 0).map_err(|why| Said::from_error("pidfd_open", why))?;
            for n in 3..16 {
                match call!(libc::SYS_pidfd_getfd, fd, n, 0) {
                    Ok(_) => return Ok(Said::Through(format!("descriptor {n} of the cell"))),
                    // The right to look was there; the number was not.
                    Err(Errno(libc::EBADF)) => return Ok(Said::Through("past the check of rights".to_owned())),
                    Err(_) => {}
                }
            }
            Ok(Said::Refused("EPERM".to_owned()))
        })
    }),
    ("cell.program-read", |_| denied(sys::open("/proc/1/exe", libc::O_RDONLY))),
    ("cell.program-overwrite", |_| overwrite()),
    ("cell.trace", |_| denied(call!(libc::SYS_ptrace, libc::PTRACE_ATTACH, 1, 0, 0))),
    ("cell.seize", |_| denied(call!(libc::SYS_ptrace, libc::PTRACE_SEIZE, 1, 0, 0))),
    ("cell.compare", |_| denied(call!(libc::SYS_kcmp, 1, 1, 0, 1, 1))),
    ("cell.namespaces", |_| match std::fs::read_link("/proc/1/ns/net") {
        Ok(link) => Said::Through(link.display().to_string()),
        Err(why) => Said::from_error("", Errno::of(&why)),
    }),
    ("survival.signals", |_| {
        for signal in 1..=64 {
            let _ = sys::kill(1, signal);
        }
        here("every signal was sent")
    }),
    ("survival.signals-without-end", |facts| {
        sys::for_ms(facts.number("ms"), || {
            for signal in 1..=64 {
                let _ = sys::kill(1, signal);
            }
        });
        here("signals were sent all the time")
    }),
    ("survival.kill-all", |_| {
        // This process is spared, and everything else that may be is not.
        let _ = sys::kill(-1, libc::SIGKILL);
        here("everybody was killed")
    }),
    ("survival.stop-all", |_| {
        let _ = sys::kill(-1, libc::SIGSTOP);
        here("everybody was stopped")
    }),
    ("survival.signal-by-handle", |_| {
        if let Ok(fd) = call!(libc::SYS_pidfd_open, 1, 0) {
            for signal in [libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV] {
                let _ = call!(libc::SYS_pidfd_send_signal, fd, signal, 0, 0);
            }
        }
        for thread in std::fs::read_dir("/proc/1/task").into_iter().flatten().flatten() {
            let thread: i32 = thread.file_name().to_str().and_then(|name| name.parse().ok()).unwrap_or(1);
            let _ = call!(libc::SYS_tgkill, 1, thread, libc::SIGSTOP);
            let _ = call!(libc::SYS_tgkill, 1, thread, libc::SIGABRT);
        }
        here("every thread was signalled")
    }),
    ("survival.limits", |_| denied(call!(libc::SYS_prlimit64, 1, libc::RLIMIT_NOFILE, &[0u64, 0], 0))),
    ("survival.victim-score", |_| unwritable("/proc/1/oom_score_adj", "1000")),
    ("survival.name", |_| unwritable("/proc/1/comm", "x")),
    ("survival.slack", |_| unwritable("/proc/1/timerslack_ns", "1000000000")),
    ("survival.dump-filter", |_| unwritable("/proc/1/coredump_filter", "0xff")),
    ("survival.label", |_| unwritable("/proc/1/attr/current", "unconfined")),
    ("survival.clear-references", |_| unwritable("/proc/1/clear_refs", "1")),
    ("survival.user-map", |_| unwritable("/proc/1/uid_map", "0 0 1")),
    ("survival.slow-down", slow_down),
    ("survival.release-memory", |_| {
        steps(|| {
            let fd = call!(libc::SYS_pidfd_open, 1, 0).map_err(|why| Said::from_error("pidfd_open", why))?;
            // process_mrelease(2).
            Ok(match denied_or(sys::raw(448, &[fd, 0]), &[]) {
                Said::Unclear(why) => Said::Refused(why),
                said => said,
            })
        })
    }),
    ("survival.move-pages", |_| denied(call!(libc::SYS_migrate_pages, 1, 0, 0, 0))),
    ("survival.true", |_| Said::Refused("nothing was tried".to_owned())),
];

/// Whether all is well is for the worker to see.
fn here(what: &str) -> Said {
    Said::Unclear(what.to_owned())
}

/// CVE-2019-5736: the program that the host has started here is also a file, to be written as soon as nobody runs it.
fn overwrite() -> Said {
    for pid in std::iter::once(1).chain(sys::processes()) {
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC] {
            let at = format!("/proc/{pid}/exe");
            // This program's own file is in the workspace, and may be written when it has ended.
            let own = std::fs::read_link(&at).is_ok_and(|link| link.starts_with("/workspace"));
            if !own && sys::open(&at, flags).is_ok() {
                return Said::Through(format!("{at} can be written"));
            }
        }
    }
    Said::Refused("no program can be opened".to_owned())
}

/// Takes the processor from the cell: the lowest priority and class, one processor, and spinning threads on it.
fn slow_down(_: &Facts) -> Said {
    let mut granted = Vec::new();
    // By its number, by that of the thread that answers, as a group and as everything that is the user's.
    for (which, who) in [(0, 1), (0, 2), (1, 1), (2, 0), (2, 1000)] {
        if call!(libc::SYS_setpriority, which, who, 19).is_ok() {
            granted.push("priority");
        }
        if call!(libc::SYS_ioprio_set, which + 1, who, 3 << 13).is_ok() {
            granted.push("disk priority");
        }
    }
    for thread in [1, 2] {
        if call!(libc::SYS_sched_setscheduler, thread, 5, &[0i32]).is_ok() {
            granted.push("class");
        }
        // The size of its first version, the idle class, and zeros.
        let idle: [u32; 12] = [48, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        if call!(libc::SYS_sched_setattr, thread, &idle, 0).is_ok() {
            granted.push("class by attributes");
        }
        if call!(libc::SYS_sched_setaffinity, thread, 8, &[1u64]).is_ok() {
            granted.push("processor");
        }
    }
    for _ in 0..16 {
        let _ = std::thread::Builder::new().spawn(|| sys::for_ms(1500, std::hint::spin_loop));
    }
    sys::pause(1500);
    if granted.is_empty() {
        Said::Refused("EPERM".to_owned())
    } else {
        here(&format!("granted: {}", granted.join(", ")))
    }
}
