//! Processes that do not want to end: with their call, with their sandbox, with their worker.

use crate::said::denied;
use crate::sys::{self, call};
use crate::{Attempt, Said};

/// A pipe with a name: open for writing as long as anybody of ours is alive, which the host can tell.
const ALIVE: &str = "/workspace/alive";

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("time.ignore-signals", |_| {
        ignore();
        alive();
        sys::rest()
    }),
    ("time.stopped", |_| {
        alive();
        let _ = sys::kill(std::process::id() as i32, libc::SIGSTOP);
        sys::rest()
    }),
    ("time.stopped-children", |_| {
        for _ in 0..8 {
            let _ = sys::child(|| {
                alive();
                let _ = sys::kill(std::process::id() as i32, libc::SIGSTOP);
            });
        }
        sys::rest()
    }),
    ("time.own-group", |_| {
        let _ = sys::child(|| {
            let _ = call!(libc::SYS_setpgid, 0, 0);
            ignore();
            alive();
        });
        sys::rest()
    }),
    ("time.own-session", |_| {
        let _ = sys::child(|| {
            let _ = call!(libc::SYS_setsid);
            ignore();
            alive();
        });
        sys::rest()
    }),
    ("time.busy", |_| {
        alive();
        loop {
            std::hint::spin_loop();
        }
    }),
    ("time.waits-in-kernel", |_| {
        // The parent of a vfork waits where signals do not reach it, until its child ends, which it does not.
        alive();
        let flags = libc::CLONE_VFORK | libc::SIGCHLD;
        if let Ok(0) = call!(libc::SYS_clone, flags, 0, 0, 0, 0) {
            ignore();
            sys::rest();
        }
        sys::rest()
    }),
    ("streams.flood", |_| {
        // Both streams at once, with nobody who reads them.
        let block = [b'x'; 4096];
        let _ = sys::child(|| while call!(libc::SYS_write, 1, &block, block.len()).is_ok() {});
        while call!(libc::SYS_write, 2, &block, block.len()).is_ok() {}
        sys::rest()
    }),
    ("streams.deaf", |_| sys::rest()),
    ("frames.forged", |_| {
        // What the cell would say to the worker, said by somebody else, wherever it can be said.
        let frames = sys::read("/workspace/frames").unwrap_or_default();
        for fd in 0..256 {
            let _ = call!(libc::SYS_write, fd, frames.as_ptr() as usize, frames.len());
        }
        for pid in sys::processes() {
            for fd in 0..16 {
                let _ = sys::open(&format!("/proc/{pid}/fd/{fd}"), libc::O_WRONLY | libc::O_NONBLOCK)
                    .and_then(|fd| call!(libc::SYS_write, fd, frames.as_ptr() as usize, frames.len()));
            }
        }
        Said::Unclear("said to everybody".to_owned())
    }),
    ("endings.daemon", |_| {
        daemon(1);
        Said::Unclear("a process is left".to_owned())
    }),
    ("endings.renamed-daemon", |_| {
        daemon(2);
        Said::Unclear("processes under other names are left".to_owned())
    }),
    ("endings.orphans", |_| {
        daemon(40);
        Said::Unclear("orphans are left".to_owned())
    }),
    ("endings.stopped-orphan", |_| {
        if let Ok(0) = sys::fork() {
            let _ = call!(libc::SYS_setsid);
            alive();
            let _ = sys::kill(std::process::id() as i32, libc::SIGSTOP);
            sys::rest();
        }
        while sys::open("/workspace/alive-made", libc::O_RDONLY).is_err() {
            sys::pause(1);
        }
        Said::Unclear("a stopped orphan is left".to_owned())
    }),
    ("endings.respawning", |_| {
        // Each starts the next before it ends: whoever kills them one by one comes too late.
        if let Ok(0) = sys::fork() {
            let _ = call!(libc::SYS_setsid);
            alive();
            loop {
                match sys::fork() {
                    Ok(0) => {}
                    Ok(_) => sys::end(0),
                    Err(_) => {}
                }
                sys::pause(1);
            }
        }
        while sys::open("/workspace/alive-made", libc::O_RDONLY).is_err() {
            sys::pause(1);
        }
        Said::Unclear("a chain of processes is left".to_owned())
    }),
    ("endings.parent-signal", |_| {
        // A process that outlives its reaper would need one outside.
        denied(call!(libc::SYS_prctl, libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0).and_then(|_| {
            daemon(1);
            sys::kill(1, libc::SIGKILL)
        }))
    }),
];

/// Ignores what can be ignored.
fn ignore() {
    for signal in 1..=64 {
        // SAFETY: to ignore a signal needs no handler; those that cannot be ignored stay as they are.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Opens the pipe with a name, for as long as this process and its children live, and says so.
fn alive() {
    let _ = call!(libc::SYS_openat, libc::AT_FDCWD, &sys::path(ALIVE), libc::O_WRONLY, 0);
    let _ = sys::make("/workspace/alive-made", "");
}

/// Processes on their own: two forks, a session, another name, nobody's children.
fn daemon(count: usize) {
    for n in 0..count {
        let Ok(0) = sys::fork() else { continue };
        let _ = call!(libc::SYS_setsid);
        if let Ok(0) = sys::fork() {
            let name = sys::path(["kworker/0:1", "systemd", "bash"][n % 3]);
            let _ = call!(libc::SYS_prctl, libc::PR_SET_NAME, &name);
            let _ = call!(libc::SYS_chdir, c"/");
            ignore();
            alive();
            sys::rest();
        }
        sys::end(0);
    }
    while sys::open("/workspace/alive-made", libc::O_RDONLY).is_err() {
        sys::pause(1);
    }
}
