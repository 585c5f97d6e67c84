//! The file system: the host's canary by every way there is, and places that must stay as they are.

use std::os::unix::fs::FileExt;

use crate::said::{denied, steps};
use crate::sys::{self, Errno, call, path};
use crate::{Attempt, Facts, Said};

/// A directory of the host that is mounted here, not to be written: the host looks at its `note` afterwards.
const MEMORY: &str = "/mnt/memory/canary";

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("links.by-name", |facts| canary(facts, "")),
    ("links.dots", |facts| canary(facts, "/workspace/../../../../../..")),
    ("links.own-root", |facts| canary(facts, "/proc/self/root")),
    ("links.cell-root", |facts| canary(facts, "/proc/1/root")),
    ("links.cell-directory", |facts| canary(facts, "/proc/1/cwd/../../../..")),
    ("links.thread-root", |facts| canary(facts, "/proc/thread-self/root/../..")),
    ("links.every-root", |facts| {
        every(|pid| ["root", "cwd/../../../../.."].iter().any(|way| seen(facts, &format!("/proc/{pid}/{way}"))))
    }),
    ("links.leaked-directories", |facts| {
        // CVE-2024-21626: a directory of the host that stayed open, and a way up from it.
        for fd in 0..1024 {
            let up = format!("../../../../../../../..{}", facts.text("canary"));
            if call!(libc::SYS_openat, fd, &path(&up), libc::O_RDONLY, 0).is_ok() {
                return Said::Through(format!("the canary, from descriptor {fd}"));
            }
        }
        Said::Refused("no descriptor leads there".to_owned())
    }),
    ("links.symbolic", |facts| {
        let _ = std::fs::remove_file("link");
        let _ = std::os::unix::fs::symlink(facts.text("canary"), "link");
        let said = canary_at("link");
        let _ = std::fs::remove_file("link");
        said
    }),
    ("links.hard", |facts| {
        denied(call!(libc::SYS_linkat, libc::AT_FDCWD, &path(facts.text("canary")), libc::AT_FDCWD, c"hard", 0))
    }),
    ("links.hard-by-descriptor", |_| {
        steps(|| {
            // A second name, in a place that may be written, for a file that may not.
            let fd = open_read_only()?;
            let at = path(&format!("/proc/self/fd/{fd}"));
            Ok(denied(call!(libc::SYS_linkat, libc::AT_FDCWD, &at, libc::AT_FDCWD, c"hard", libc::AT_SYMLINK_FOLLOW)))
        })
    }),
    ("links.marker", |facts| match sys::make(facts.text("marker"), "here") {
        Ok(_) => Said::Unclear("written somewhere".to_owned()),
        Err(why) => Said::from_error("", why),
    }),
    ("files.passwords", |_| first(&["/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh/ssh_host_ed25519_key"])),
    ("files.homes", |_| first(&["/root", "/home/root", "/var/log/syslog", "/var/log/auth.log", "/var/lib/palisade"])), // tidy: place allowed: it must not be readable
    ("files.engine-sockets", |_| {
        first(&[
            "/var/run/docker.sock",
            "/run/docker.sock",
            "/run/containerd/containerd.sock",
            "/run/podman/podman.sock",
            "/run/crio/crio.sock",
            "/run/dbus/system_bus_socket",
            "/run/systemd/private",
        ])
    }),
    ("files.machine-identity", |facts| {
        // An image may have one of its own.
        let known = facts.text("machine");
        if !known.is_empty() && sys::read("/etc/machine-id").is_ok_and(|id| id.starts_with(known.as_bytes())) {
            return Said::Through("the machine's id".to_owned());
        }
        first(&["/sys/class/dmi/id/product_uuid", "/sys/class/dmi/id/board_serial", "/sys/class/net"])
    }),
    ("files.boot", |_| first(&["/boot", "/vmlinuz", "/initrd.img", "/sys/kernel/notes"])),
    ("files.root-write", |_| unmade("/palisade-marker")),
    ("files.etc-write", |_| unmade("/etc/palisade-marker")),
    ("files.programs-write", |_| unmade("/usr/bin/palisade-marker")),
    ("files.devices-write", |_| unmade("/dev/palisade-marker")),
    ("files.mounts-write", |_| unmade("/mnt/memory/palisade-marker")),
    ("files.read-only-write", |_| sys::unwritable(&format!("{MEMORY}/note"), "overwritten")),
    ("files.read-only-create", |_| unmade(&format!("{MEMORY}/palisade-marker"))),
    ("files.read-only-remove", |_| {
        denied(call!(libc::SYS_unlinkat, libc::AT_FDCWD, &path(&format!("{MEMORY}/note")), 0))
    }),
    ("files.read-only-rename", |_| {
        denied(call!(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            &path(&format!("{MEMORY}/note")),
            libc::AT_FDCWD,
            c"/workspace/note",
            0
        ))
    }),
    ("files.read-only-mode", |_| {
        steps(|| {
            let fd = open_read_only()?;
            Ok(denied(call!(libc::SYS_fchmod, fd, 0o666)))
        })
    }),
    ("files.read-only-times", |_| {
        denied(call!(libc::SYS_utimensat, libc::AT_FDCWD, &path(&format!("{MEMORY}/note")), 0, 0))
    }),
    ("files.read-only-attributes", |_| {
        denied(call!(libc::SYS_setxattr, &path(&format!("{MEMORY}/note")), c"user.palisade", c"x", 1, 0))
    }),
    ("files.read-only-reopen", |_| {
        steps(|| {
            // A descriptor for reading, opened once more through its link in /proc, this time for writing.
            let fd = open_read_only()?;
            Ok(denied(sys::open(&format!("/proc/self/fd/{fd}"), libc::O_RDWR)))
        })
    }),
    ("files.dirty-pipe", |_| unchanged(dirty_pipe)),
    ("files.dirty-cow", |_| unchanged(dirty_cow)),
    ("files.splice-write", |_| {
        unchanged(|fd, _| {
            // A write behind the file system's back: a private mapping that is written through /proc/self/mem.
            let map = call!(libc::SYS_mmap, 0, 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0)?;
            let memory =
                std::fs::OpenOptions::new().write(true).open("/proc/self/mem").map_err(|why| Errno::of(&why))?;
            let _ = memory.write_at(b"overwritten", map as u64);
            Ok(())
        })
    }),
    ("files.shared-mapping", |_| {
        steps(|| {
            let fd = open_read_only()?;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            Ok(denied(call!(libc::SYS_mmap, 0, 4096, protection, libc::MAP_SHARED, fd, 0)))
        })
    }),
    ("files.own-program-of-root", |_| {
        // The mounts of the host's root, should one be left below this one.
        let mounts = sys::read("/proc/self/mountinfo").unwrap_or_default();
        let mounts = String::from_utf8_lossy(&mounts);
        let writable = mounts.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let (at, options) = (*fields.get(4)?, *fields.get(5)?);
            let own = ["/workspace", "/mnt/session", "/tmp", "/home/agent", "/run", "/dev", "/proc"];
            let ours = own.iter().any(|place| at == *place || at.starts_with(&format!("{place}/")));
            (options.split(',').any(|option| option == "rw") && !ours).then(|| at.to_owned())
        });
        // What is mounted to be written must at least not be this user's to write.
        for at in writable {
            let marker = format!("{}/palisade-marker", at.trim_end_matches('/'));
            if sys::make(&marker, "here").is_ok() {
                let _ = std::fs::remove_file(&marker);
                return Said::Through(format!("wrote below {at}"));
            }
        }
        Said::Refused("no other mount can be written".to_owned())
    }),
    ("files.names", |_| {
        // Names that programs trip over are only names, and in the workspace only.
        for name in ["a\nb", "\u{1b}[2J", "..\\..\\x", "%2e%2e", "\u{202e}cod", "-rf"] {
            if let Err(why) = sys::make(name, "x") {
                return Said::from_error(name, why);
            }
        }
        match sys::make(&format!("x\0{MEMORY}/palisade-marker"), "x") {
            Ok(_) => Said::Through("a name with NUL".to_owned()),
            Err(_) => Said::Refused("a name with NUL".to_owned()),
        }
    }),
];

fn canary(facts: &Facts, way: &str) -> Said {
    canary_at(&format!("{way}{}", facts.text("canary")))
}

fn canary_at(at: &str) -> Said {
    match sys::read(at) {
        Ok(_) => Said::Through(format!("read {at}")),
        Err(why) => Said::from_error("", why),
    }
}

fn seen(facts: &Facts, way: &str) -> bool {
    sys::read(&format!("{way}{}", facts.text("canary"))).is_ok()
}

fn every(reaches: impl Fn(i32) -> bool) -> Said {
    match std::iter::once(1).chain(sys::processes()).find(|pid| reaches(*pid)) {
        Some(pid) => Said::Through(format!("the canary, through process {pid}")),
        None => Said::Refused("no process leads there".to_owned()),
    }
}

fn first(places: &[&str]) -> Said {
    for place in places {
        let Ok(meta) = std::fs::metadata(place) else { continue };
        let open = if meta.is_dir() { listed(place) } else { sys::open(place, libc::O_RDONLY).is_ok() };
        // A socket cannot be opened, but it is there.
        if open || (!meta.is_dir() && !meta.is_file()) {
            return Said::Through(format!("{place} is there"));
        }
    }
    Said::Refused("not there".to_owned())
}

/// Whether a directory shows that anything is in it.
fn listed(at: &str) -> bool {
    std::fs::read_dir(at).is_ok_and(|mut entries| entries.next().is_some())
}

fn unmade(at: &str) -> Said {
    match sys::make(at, "here") {
        Ok(_) => {
            let _ = std::fs::remove_file(at);
            Said::Through(format!("made {at}"))
        }
        Err(why) => Said::from_error("", why),
    }
}

/// The file that must not change, open for reading.
fn open_read_only() -> Result<usize, Said> {
    let at = format!("{MEMORY}/note");
    sys::open(&at, libc::O_RDONLY).map_err(|why| Said::Unclear(format!("{at}: {why}")))
}

/// Attacks the file through what a reader has.
fn unchanged(attack: impl FnOnce(usize, u64) -> Result<(), Errno>) -> Said {
    steps(|| {
        let at = format!("{MEMORY}/note");
        let before = sys::read(&at).map_err(|why| Said::Unclear(format!("{at}: {why}")))?;
        let fd = open_read_only()?;
        attack(fd, before.len() as u64).map_err(|why| Said::from_error("", why))?;
        let after = sys::read(&at).map_err(|why| Said::Unclear(format!("{at}: {why}")))?;
        Ok(if before == after { Said::Refused("unchanged".to_owned()) } else { Said::Through("changed".to_owned()) })
    })
}

/// CVE-2022-0847: a pipe's buffer that keeps its flag while a page of the file is spliced into it.
fn dirty_pipe(fd: usize, _: u64) -> Result<(), Errno> {
    let mut ends = [0i32; 2];
    call!(libc::SYS_pipe2, &mut ends, 0)?;
    let size = call!(libc::SYS_fcntl, ends[1], libc::F_GETPIPE_SZ)?;
    let mut page = [0u8; 4096];
    for _ in 0..size / 4096 {
        call!(libc::SYS_write, ends[1], &page, 4096)?;
    }
    for _ in 0..size / 4096 {
        call!(libc::SYS_read, ends[0], &mut page, 4096)?;
    }
    let offset = [0i64];
    call!(libc::SYS_splice, fd, &offset, ends[1], 0, 1, 0)?;
    call!(libc::SYS_write, ends[1], c"overwritten", 11)?;
    Ok(())
}

/// CVE-2016-5195: a private copy that is thrown away while it is written.
fn dirty_cow(fd: usize, _: u64) -> Result<(), Errno> {
    let map = call!(libc::SYS_mmap, 0, 4096, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0)?;
    let memory = std::fs::OpenOptions::new().write(true).open("/proc/self/mem").map_err(|why| Errno::of(&why))?;
    let thread = std::thread::Builder::new().spawn(move || {
        sys::for_ms(300, || _ = call!(libc::SYS_madvise, map, 4096, libc::MADV_DONTNEED));
    });
    sys::for_ms(300, || drop(memory.write_at(b"overwritten", map as u64)));
    if let Ok(thread) = thread {
        let _ = thread.join();
    }
    Ok(())
}
