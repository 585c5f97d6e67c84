//! Two sandboxes: the first leaves something, the second looks for it. Both run the same attempt, in the roles `leave` and
//! `find`. And attacks on processes of the host by their numbers.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use crate::said::denied;
use crate::sys::{self, Errno, call, path};
use crate::{Attempt, Facts, Said};

const KEY: i32 = 0x50414c49;
const NAME: &str = "palisade-between";
const LEFT: &str = "left by a neighbour";

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("neighbours.shared-memory", |facts| {
        either(facts, || call!(libc::SYS_shmget, KEY, 4096, 0o1666), || call!(libc::SYS_shmget, KEY, 0, 0))
    }),
    ("neighbours.message-queue", |facts| {
        either(facts, || call!(libc::SYS_msgget, KEY, 0o1666), || call!(libc::SYS_msgget, KEY, 0))
    }),
    ("neighbours.semaphore", |facts| {
        either(facts, || call!(libc::SYS_semget, KEY, 1, 0o1666), || call!(libc::SYS_semget, KEY, 0, 0))
    }),
    ("neighbours.posix-queue", |facts| {
        let name = path(NAME);
        let attr = [0u64, 1, 8, 0, 0, 0, 0, 0];
        let open = |flags: i32| call!(libc::SYS_mq_open, &name, flags, 0o666, &attr);
        if leaves(facts) {
            // No memory is given for queues at all, so that not even this may be possible.
            return match open(libc::O_CREAT | libc::O_RDWR) {
                Ok(_) => hold(),
                Err(why) => Said::from_error("", why),
            };
        }
        denied(open(libc::O_RDWR))
    }),
    ("neighbours.tmp-file", |facts| file(facts, "/tmp/left")),
    ("neighbours.shared-memory-file", |facts| file(facts, "/dev/shm/left")),
    ("neighbours.home-file", |facts| file(facts, "/home/agent/left")),
    ("neighbours.run-file", |facts| file(facts, "/run/left")),
    ("neighbours.workspace-file", |facts| file(facts, "/workspace/left")),
    ("neighbours.outputs-file", |facts| file(facts, "/mnt/session/outputs/left")),
    ("neighbours.abstract-socket", |facts| {
        let address = SocketAddr::from_abstract_name(NAME).expect("the name is short");
        if leaves(facts) {
            let listener = UnixListener::bind_addr(&address);
            return match listener {
                Ok(_kept) => hold(),
                Err(why) => Said::Unclear(why.to_string()),
            };
        }
        match UnixStream::connect_addr(&address) {
            Ok(_) => Said::Through("connected".to_owned()),
            Err(why) => Said::from_error("", Errno::of(&why)),
        }
    }),
    ("neighbours.loopback", |facts| {
        if leaves(facts) {
            return match std::net::TcpListener::bind("127.0.0.1:40717") {
                Ok(_kept) => hold(),
                Err(why) => Said::Unclear(why.to_string()),
            };
        }
        match std::net::TcpStream::connect("127.0.0.1:40717") {
            Ok(_) => Said::Through("connected".to_owned()),
            Err(why) => Said::from_error("", Errno::of(&why)),
        }
    }),
    ("neighbours.processes", |facts| {
        if leaves(facts) {
            // Its name is what the other one looks for.
            let _ = call!(libc::SYS_prctl, libc::PR_SET_NAME, c"neighbour-left");
            return hold();
        }
        for pid in sys::processes() {
            let name = sys::read(&format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.starts_with(b"neighbour-left") {
                return Said::Through(format!("process {pid}"));
            }
        }
        Said::Refused("not to be seen".to_owned())
    }),
    ("neighbours.signals", |facts| {
        if leaves(facts) {
            return hold();
        }
        // Every number there can be, but for the first few hundred, which belong to this sandbox itself.
        let own = std::process::id() as i32;
        let limit = String::from_utf8_lossy(&sys::read("/proc/sys/kernel/pid_max").unwrap_or_default()).trim().parse();
        for pid in (300..limit.unwrap_or(65536i32).min(1 << 22)).filter(|pid| *pid != own) {
            if sys::kill(pid, 0).is_ok() {
                return Said::Through(format!("process {pid} can be signalled"));
            }
        }
        Said::Refused("ESRCH".to_owned())
    }),
    ("neighbours.host-process-kill", |facts| victim(facts, |pid| sys::kill(pid, libc::SIGKILL))),
    ("neighbours.host-process-handle", |facts| {
        victim(facts, |pid| {
            let fd = call!(libc::SYS_pidfd_open, pid, 0)?;
            call!(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, 0, 0)
        })
    }),
    ("neighbours.host-process-trace", |facts| {
        victim(facts, |pid| call!(libc::SYS_ptrace, libc::PTRACE_SEIZE, pid, 0, 0))
    }),
    ("neighbours.host-process-limits", |facts| {
        victim(facts, |pid| call!(libc::SYS_prlimit64, pid, libc::RLIMIT_NOFILE, &[0u64, 0], 0))
    }),
    ("neighbours.host-process-priority", |facts| victim(facts, |pid| call!(libc::SYS_setpriority, 0, pid, 19))),
    ("neighbours.host-process-files", |facts| match sys::read(&format!("/proc/{}/cmdline", facts.text("victim"))) {
        Ok(line) if String::from_utf8_lossy(&line).contains("victim") => Said::Through("its command line".to_owned()),
        Ok(_) => Said::Refused("another process has this number here".to_owned()),
        Err(why) => Said::from_error("", why),
    }),
    // What the host starts to see whether it stays alive.
    ("neighbours.victim", |_| hold()),
];

fn leaves(facts: &Facts) -> bool {
    facts.text("role") == "leave"
}

/// Says that something was left, and keeps it until the end.
fn hold() -> Said {
    let _ = Said::Unclear("left".to_owned()).tell();
    sys::rest()
}

fn either(
    facts: &Facts,
    leave: impl FnOnce() -> Result<usize, Errno>,
    find: impl FnOnce() -> Result<usize, Errno>,
) -> Said {
    if !leaves(facts) {
        return denied(find());
    }
    match leave() {
        Ok(_) => hold(),
        Err(why) => Said::Unclear(why.to_string()),
    }
}

fn file(facts: &Facts, at: &str) -> Said {
    if !leaves(facts) {
        return denied(sys::open(at, libc::O_RDONLY));
    }
    match sys::make(at, LEFT) {
        Ok(_) => hold(),
        Err(why) => Said::Unclear(why.to_string()),
    }
}

fn victim(facts: &Facts, attack: impl FnOnce(i32) -> Result<usize, Errno>) -> Said {
    match i32::try_from(facts.number("victim")) {
        Ok(pid @ 2..) => denied(attack(pid)),
        _ => Said::Unclear("no victim is known".to_owned()),
    }
}
