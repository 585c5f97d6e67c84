//! Rights: capabilities, users, set-id files; what the worker left open; dumps; terminals.

use crate::said::{denied, steps};
use crate::sys::{self, Errno, call, path};
use crate::{Attempt, Said};

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("capabilities.have", |_| status(&["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"], "0000000000000000")),
    ("capabilities.new-privileges", |_| status(&["NoNewPrivs:"], "1")),
    ("capabilities.filters", |_| status(&["Seccomp:"], "2")),
    ("capabilities.set", |_| {
        let header = [0x2008_0522u32, 0];
        denied(call!(libc::SYS_capset, &header, &[u32::MAX; 6]))
    }),
    ("capabilities.ambient", |_| denied(call!(libc::SYS_prctl, libc::PR_CAP_AMBIENT, 2, 21, 0, 0))),
    ("capabilities.bounding-set", |_| denied(call!(libc::SYS_prctl, libc::PR_CAPBSET_DROP, 0, 0, 0, 0))),
    ("capabilities.secure-bits", |_| denied(call!(libc::SYS_prctl, libc::PR_SET_SECUREBITS, 0, 0, 0, 0))),
    ("capabilities.seccomp-off", |_| {
        // Mode 0 is none; the kernel knows no way back, and says so as EINVAL.
        match call!(libc::SYS_prctl, libc::PR_SET_SECCOMP, 0, 0, 0, 0) {
            Err(Errno(libc::EINVAL)) => Said::Refused("EINVAL".to_owned()),
            result => denied(result),
        }
    }),
    ("capabilities.new-privileges-off", |_| match call!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) {
        Err(Errno(libc::EINVAL)) => Said::Refused("EINVAL".to_owned()),
        result => denied(result),
    }),
    ("capabilities.root", |_| same_user(call!(libc::SYS_setuid, 0))),
    ("capabilities.root-all", |_| same_user(call!(libc::SYS_setresuid, 0, 0, 0))),
    ("capabilities.root-group", |_| same_user(call!(libc::SYS_setresgid, 0, 0, 0))),
    ("capabilities.groups", |_| denied(call!(libc::SYS_setgroups, 1, &[0u32]))),
    ("capabilities.file-user", |_| same_user(call!(libc::SYS_setfsuid, 0))),
    ("capabilities.set-id-mode", |_| set_id(|at| call!(libc::SYS_fchmodat, libc::AT_FDCWD, at, 0o4755))),
    ("capabilities.set-id-mode-2", |_| set_id(|at| call!(452, libc::AT_FDCWD, at, 0o6755, 0))),
    ("capabilities.set-id-descriptor", |_| {
        set_id(|at| {
            let fd = call!(libc::SYS_openat, libc::AT_FDCWD, at, libc::O_RDONLY, 0)?;
            call!(libc::SYS_fchmod, fd, 0o4755)
        })
    }),
    #[cfg(target_arch = "x86_64")]
    ("capabilities.set-id-old-mode", |_| set_id(|at| call!(libc::SYS_chmod, at, 0o4755))),
    #[cfg(target_arch = "x86_64")]
    ("capabilities.set-id-old-born", |_| {
        let _ = std::fs::remove_file("/tmp/old");
        is_set("/tmp/old", call!(libc::SYS_open, c"/tmp/old", libc::O_CREAT | libc::O_WRONLY, 0o4755))
    }),
    #[cfg(target_arch = "x86_64")]
    ("capabilities.set-id-created", |_| {
        let _ = std::fs::remove_file("/tmp/created");
        is_set("/tmp/created", call!(libc::SYS_creat, c"/tmp/created", 0o2755))
    }),
    ("capabilities.set-id-temporary", |_| {
        let flags = libc::O_TMPFILE | libc::O_WRONLY;
        denied(call!(libc::SYS_openat, libc::AT_FDCWD, c"/tmp", flags, 0o4755))
    }),
    ("capabilities.set-id-born", |_| {
        let _ = std::fs::remove_file("/tmp/born");
        let flags = libc::O_CREAT | libc::O_WRONLY;
        let made = call!(libc::SYS_openat, libc::AT_FDCWD, c"/tmp/born", flags, 0o4755);
        is_set("/tmp/born", made)
    }),
    ("capabilities.set-id-node", |_| {
        let _ = std::fs::remove_file("/tmp/node");
        let made = call!(libc::SYS_mknodat, libc::AT_FDCWD, c"/tmp/node", libc::S_IFREG | 0o4755, 0);
        is_set("/tmp/node", made)
    }),
    ("capabilities.file-capability", |_| {
        let _ = sys::make("/tmp/capable", "");
        // cap_setuid+ep, revision 2.
        let value = [0x0200_0001u32, 1 << 7, 0, 0, 0];
        denied(call!(libc::SYS_setxattr, c"/tmp/capable", c"security.capability", &value, 20, 0))
    }),
    ("capabilities.set-id-programs", |_| {
        // By effect: whatever of that kind is here is started, and looked at while it runs.
        for program in
            ["/usr/bin/su", "/bin/su", "/usr/bin/passwd", "/usr/bin/sudo", "/usr/bin/newgrp", "/usr/bin/chsh"]
        {
            if let Some(user) = run_as(program)
                && user != own_user()
            {
                return Said::Through(format!("{program} runs as user {user}"));
            }
        }
        Said::Refused("none gains anything".to_owned())
    }),
    ("secrets.environment", |facts| {
        let name = facts.text("variable");
        if name.is_empty() {
            return Said::Unclear("the worker has no variable to look for".to_owned());
        }
        let own = std::iter::once("self".to_owned()).chain(std::iter::once("1".to_owned()));
        for pid in own.chain(sys::processes().iter().map(ToString::to_string)) {
            let bytes = sys::read(&format!("/proc/{pid}/environ")).unwrap_or_default();
            if String::from_utf8_lossy(&bytes).contains(name) {
                return Said::Through(format!("{name}, from process {pid}"));
            }
        }
        Said::Refused("not in any environment".to_owned())
    }),
    ("secrets.arguments", |facts| {
        // The worker's own processes, with what stands on their command lines.
        let parent = facts.text("worker");
        for pid in sys::processes() {
            let line = sys::read(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let ours =
                line.contains("palisade-hostile") || line.contains("palisade-cell") || line.is_empty() || pid == 1;
            if !ours {
                return Said::Through(format!("process {pid}: {line}"));
            }
        }
        Said::Refused(format!("no process but the sandbox's own, {parent} least of all"))
    }),
    ("secrets.descriptors", |_| {
        let own = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let mut open: Vec<i32> = own.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        open.sort_unstable();
        // The listing itself is one.
        open.retain(|fd| call!(libc::SYS_fcntl, *fd, libc::F_GETFD).is_ok());
        if open.iter().all(|fd| *fd <= 2) {
            Said::Refused("three descriptors and no more".to_owned())
        } else {
            Said::Through(format!("descriptors {open:?}"))
        }
    }),
    ("secrets.descriptor-numbers", |_| {
        // Without /proc: every number there can be.
        for fd in 3..65536 {
            if call!(libc::SYS_fcntl, fd, libc::F_GETFD).is_ok() {
                return Said::Through(format!("descriptor {fd}"));
            }
        }
        Said::Refused("EBADF".to_owned())
    }),
    ("secrets.descriptors-of-others", |facts| {
        for pid in sys::processes() {
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                let target = std::fs::read_link(entry.path()).unwrap_or_default();
                let text = target.to_string_lossy();
                if text.starts_with("socket:") || text.contains("canary") || text == facts.text("canary") {
                    return Said::Through(format!("process {pid} holds {text}"));
                }
            }
        }
        Said::Refused("nobody holds any".to_owned())
    }),
    ("secrets.streams", |facts| {
        // What the three descriptors are must not lead back to something of the worker's.
        for fd in 0..3 {
            let target = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
            let text = target.to_string_lossy().into_owned();
            if !(text.starts_with("pipe:") || text == "/dev/null" || text.starts_with("socket:")) {
                return Said::Through(format!("descriptor {fd} is {text}"));
            }
        }
        Said::Refused(format!("pipes, or nothing{}", facts.text("none")))
    }),
    ("cores.limit", |_| {
        let _ = call!(libc::SYS_setrlimit, libc::RLIMIT_CORE, &[u64::MAX, u64::MAX]);
        let _ = call!(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, &[u64::MAX, u64::MAX], 0);
        let limits = sys::read("/proc/self/limits").unwrap_or_default();
        let limits = String::from_utf8_lossy(&limits).into_owned();
        let line = limits.lines().find(|line| line.starts_with("Max core")).unwrap_or_default();
        match line.split_whitespace().nth(4) {
            Some("0" | "1") => Said::Refused("no more than one byte".to_owned()),
            Some(limit) => Said::Through(limit.to_owned()),
            None => Said::Unclear("no limits are shown".to_owned()),
        }
    }),
    ("cores.crash", |_| {
        let _ = call!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        let _ = call!(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, &[u64::MAX, u64::MAX], 0);
        let Ok(pid) = sys::fork() else { return Said::Unclear("fork".to_owned()) };
        if pid == 0 {
            let _ = sys::kill(std::process::id() as i32, libc::SIGSEGV);
            sys::end(0);
        }
        let mut status = 0;
        // SAFETY: the status lives through the call.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if libc::WCOREDUMP(status) {
            Said::Through("a core was dumped".to_owned())
        } else {
            Said::Refused("no core".to_owned())
        }
    }),
    ("terminal.type-into", |_| {
        steps(|| {
            let (_, slave) = pair()?;
            Ok(denied(call!(libc::SYS_ioctl, slave, libc::TIOCSTI, c"x")))
        })
    }),
    ("terminal.type-into-input", |_| denied(call!(libc::SYS_ioctl, 0, libc::TIOCSTI, c"x"))),
    ("terminal.paste", |_| denied(call!(libc::SYS_ioctl, 0, libc::TIOCLINUX, c"\x03"))),
    ("terminal.high-bits", |_| {
        // CVE-2019-10063: the kernel looks at 32 bits of the number, and a careless filter at 64.
        steps(|| {
            let (_, slave) = pair()?;
            Ok(denied(call!(libc::SYS_ioctl, slave, 1u64 << 32 | libc::TIOCSTI, c"x")))
        })
    }),
    ("terminal.discipline", |_| {
        steps(|| {
            let (_, slave) = pair()?;
            // Every number that the kernel may have a module for; 0 is what a terminal has already.
            for discipline in 1..=30i32 {
                match call!(libc::SYS_ioctl, slave, libc::TIOCSETD, &[discipline]) {
                    // The second is no kernel with disciplines at all.
                    Err(Errno(libc::EPERM | libc::ENOTTY)) => {}
                    looked_up => {
                        let found = looked_up.map_or_else(|why| why.to_string(), |_| "granted".to_owned());
                        return Ok(Said::Through(format!("{discipline} was looked for: {found}")));
                    }
                }
            }
            Ok(Said::Refused("every one of them".to_owned()))
        })
    }),
    ("terminal.controlling", |_| denied(sys::open("/dev/tty", libc::O_RDWR))),
    ("terminal.of-others", |_| {
        for entry in std::fs::read_dir("/dev/pts").into_iter().flatten().flatten() {
            let at = entry.path().display().to_string();
            if !at.ends_with("ptmx") && sys::open(&at, libc::O_RDWR | libc::O_NOCTTY).is_ok() {
                return Said::Through(format!("{at} can be opened"));
            }
        }
        Said::Refused("there is none".to_owned())
    }),
];

/// A pseudo-terminal of one's own, made the controlling one.
fn pair() -> Result<(usize, usize), Said> {
    let master = sys::open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY);
    let master = master
        .or_else(|_| sys::open("/dev/pts/ptmx", libc::O_RDWR))
        .map_err(|why| Said::Unclear(format!("ptmx: {why}")))?;
    let mut number = [0u32];
    let _ = call!(libc::SYS_ioctl, master, libc::TIOCSPTLCK, &[0i32]);
    call!(libc::SYS_ioctl, master, libc::TIOCGPTN, &mut number)
        .map_err(|why| Said::Unclear(format!("TIOCGPTN: {why}")))?;
    let slave = sys::open(&format!("/dev/pts/{}", number[0]), libc::O_RDWR | libc::O_NOCTTY);
    let slave = slave.map_err(|why| Said::Unclear(format!("pts: {why}")))?;
    let _ = call!(libc::SYS_setsid);
    let _ = call!(libc::SYS_ioctl, slave, libc::TIOCSCTTY, 0);
    Ok((master, slave))
}

fn own_user() -> u32 {
    // SAFETY: no pointers; it cannot fail.
    unsafe { libc::geteuid() }
}

/// Lines of one's own status that must all have this value.
fn status(names: &[&str], wanted: &str) -> Said {
    let text = sys::read("/proc/self/status").unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    for name in names {
        match text.lines().find_map(|line| line.strip_prefix(name)) {
            Some(value) if value.trim() == wanted => {}
            Some(value) => return Said::Through(format!("{name} {}", value.trim())),
            None => return Said::Unclear(format!("{name} is not shown")),
        }
    }
    Said::Refused(format!("{} {wanted}", names.join(" ")))
}

/// A change of user must not have any effect, whatever the call says.
fn same_user(result: Result<usize, Errno>) -> Said {
    // Outside of user namespaces an unmapped user is EINVAL rather than EPERM.
    let text = sys::read("/proc/self/status").unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let root = text.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("Gid:"));
    if root.flat_map(|line| line.split_whitespace().skip(1)).any(|id| id == "0") {
        return Said::Through("root".to_owned());
    }
    Said::Refused(result.map_or_else(|why| why.to_string(), |_| "without effect".to_owned()))
}

/// A file of this user's own that is to run as this user for everybody.
fn set_id(change: impl FnOnce(&std::ffi::CString) -> Result<usize, Errno>) -> Said {
    let at = "/tmp/set-id";
    if let Err(why) = sys::make(at, "") {
        return Said::Unclear(format!("{at}: {why}"));
    }
    let changed = change(&path(at));
    is_set(at, changed)
}

fn is_set(at: &str, result: Result<usize, Errno>) -> Said {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(at).map(|meta| meta.mode() & 0o6000), result) {
        (Ok(mode @ 1..), _) => Said::Through(format!("mode {mode:o}")),
        (_, Ok(_)) => Said::Refused("without effect".to_owned()),
        (_, Err(why)) => Said::from_error("", why),
    }
}

/// The user that a program runs as, seen while it waits for its input.
fn run_as(program: &str) -> Option<u32> {
    let mut child = std::process::Command::new(program)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .ok()?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    let _ = child.kill();
    let _ = child.wait();
    // What cannot even be looked at runs as somebody else, or has ended.
    let status = status.ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok())
}
