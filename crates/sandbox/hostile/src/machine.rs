//! The machine itself: its clock, its name, its settings, what it tells about itself.

use crate::said::{denied, denied_or};
use crate::sys::{self, Errno, call, unreadable, unwritable};
use crate::{Attempt, Said};

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("machine.reboot", |_| denied_or(call!(libc::SYS_reboot, 0xfee1_deadu32, 672_274_793, 0, 0), &[libc::EINVAL])),
    ("machine.swap", |_| denied_or(call!(libc::SYS_swapon, c"/workspace/none", 0), &[libc::ENOENT])),
    ("machine.accounting", |_| denied_or(call!(libc::SYS_acct, c"/workspace/none"), &[libc::ENOENT])),
    ("machine.quota", |_| denied(call!(libc::SYS_quotactl, 0x8000_0100u32, 0, 0, 0))),
    ("machine.kernel-log", |_| denied(call!(libc::SYS_syslog, 3, &mut [0u8; 4096], 4096))),
    ("machine.time-of-day", |_| {
        let now = now();
        denied(call!(libc::SYS_settimeofday, &[now[0], now[1] / 1000], 0))
    }),
    ("machine.clock", |_| denied(call!(libc::SYS_clock_settime, 0, &now()))),
    ("machine.clock-adjust", |_| {
        // The length of a tick, set to what it is.
        let mut timex = [0u64; 26];
        (timex[0], timex[11]) = (0x4000, 10_000);
        denied(call!(libc::SYS_adjtimex, &mut timex))
    }),
    ("machine.host-name", |_| denied(call!(libc::SYS_sethostname, c"sandbox", 7))),
    ("machine.domain-name", |_| denied(call!(libc::SYS_setdomainname, c"sandbox", 7))),
    ("machine.hang-up", |_| denied(call!(libc::SYS_vhangup))),
    #[cfg(target_arch = "x86_64")]
    ("machine.io-privilege", |_| denied(call!(libc::SYS_iopl, 3))),
    #[cfg(target_arch = "x86_64")]
    ("machine.io-ports", |_| denied(call!(libc::SYS_ioperm, 0x80, 1, 1))),
    #[cfg(target_arch = "x86_64")]
    ("machine.descriptor-table", |_| {
        let entry = [0u32, 0, 0xfffff, 0x51];
        denied(call!(libc::SYS_modify_ldt, 1, &entry, 16))
    }),
    ("machine.personality", |_| {
        // ADDR_NO_RANDOMIZE and READ_IMPLIES_EXEC.
        denied(call!(libc::SYS_personality, 0x044_0000))
    }),
    ("machine.priority", |_| denied(call!(libc::SYS_setpriority, 0, 0, -10))),
    ("machine.real-time", |_| denied(call!(libc::SYS_sched_setscheduler, 0, 1, &[1i32]))),
    ("machine.deadline", |_| {
        // SCHED_DEADLINE: 1 ms of every 10.
        let attr = [48u64 | 6 << 32, 0, 0, 1_000_000, 10_000_000, 10_000_000];
        denied(call!(libc::SYS_sched_setattr, 0, &attr, 0))
    }),
    ("machine.io-real-time", |_| denied(call!(libc::SYS_ioprio_set, 1, 0, 1 << 13))),
    ("machine.memory-policy", |_| denied(call!(libc::SYS_set_mempolicy, 0, 0, 0))),
    ("machine.core-pattern", |facts| setting("/proc/sys/kernel/core_pattern", &format!("|{}", facts.text("program")))),
    ("machine.modprobe", |facts| setting("/proc/sys/kernel/modprobe", facts.text("program"))),
    ("machine.uevent-helper", |facts| setting("/sys/kernel/uevent_helper", facts.text("program"))),
    ("machine.sysrq", |_| setting("/proc/sysrq-trigger", "h")),
    ("machine.overcommit", |_| setting("/proc/sys/vm/overcommit_memory", "")),
    ("machine.drop-caches", |_| setting("/proc/sys/vm/drop_caches", "")),
    ("machine.huge-pages", |_| setting("/proc/sys/vm/nr_hugepages", "")),
    ("machine.address-randomisation", |_| setting("/proc/sys/kernel/randomize_va_space", "")),
    ("machine.file-handles", |_| setting("/proc/sys/fs/file-max", "")),
    ("machine.forwarding", |_| setting("/proc/sys/net/ipv4/ip_forward", "")),
    ("machine.irq-affinity", |_| setting("/proc/irq/default_smp_affinity", "")),
    ("machine.scheduler-debug", |_| any(&["/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/debug/tracing"])),
    ("machine.security-fs", |_| any(&["/sys/kernel/security"])),
    ("machine.bpf-fs", |_| any(&["/sys/fs/bpf"])),
    ("machine.efi", |_| any(&["/sys/firmware/efi/efivars", "/sys/firmware/efi", "/sys/firmware/acpi/tables"])),
    ("machine.cgroup-files", |_| {
        for place in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"] {
            if sys::open(&format!("{place}/cgroup.procs"), libc::O_WRONLY).is_ok() {
                return Said::Through(format!("{place}/cgroup.procs can be written"));
            }
            if std::fs::create_dir(format!("{place}/palisade-none")).is_ok() {
                let _ = std::fs::remove_dir(format!("{place}/palisade-none"));
                return Said::Through(format!("a group was made in {place}"));
            }
        }
        Said::Refused("not there or read-only".to_owned())
    }),
    ("machine.kernel-memory", |_| unreadable("/proc/kcore")),
    ("machine.kernel-addresses", |_| addresses("/proc/kallsyms")),
    ("machine.io-memory-map", |_| addresses("/proc/iomem")),
    ("machine.modules-list", |_| unreadable("/proc/modules")),
    ("machine.keys-list", |_| unreadable("/proc/keys")),
    ("machine.timers-list", |_| unreadable("/proc/timer_list")),
    ("machine.kernel-log-file", |_| unreadable("/proc/kmsg")),
    ("machine.slabs", |_| unreadable("/proc/slabinfo")),
    ("machine.page-flags", |_| unreadable("/proc/kpageflags")),
    ("machine.virtual-memory-map", |_| unreadable("/proc/vmallocinfo")),
    ("machine.interrupts", |_| unreadable("/proc/interrupts")),
    ("machine.physical-addresses", |_| physical()),
];

fn now() -> [i64; 2] {
    let mut now = [0i64; 2];
    let _ = call!(libc::SYS_clock_gettime, 0, &mut now);
    now
}

/// A setting must not be opened for writing. Nothing is written unless it names what to write: an own marker program.
fn setting(at: &str, value: &str) -> Said {
    match sys::open(at, libc::O_WRONLY) {
        Ok(_) if value.is_empty() => Said::Through(format!("{at} can be written")),
        Ok(_) => unwritable(at, value),
        Err(why) => Said::from_error("", why),
    }
}

/// Directories that must be absent or empty.
fn any(places: &[&str]) -> Said {
    for place in places {
        if let Some(Ok(entry)) = std::fs::read_dir(place).ok().and_then(|mut entries| entries.next()) {
            return Said::Through(format!("{} is there", entry.path().display()));
        }
    }
    Said::Refused("not there".to_owned())
}

/// A list whose addresses must be zero, or that must not be readable.
fn addresses(at: &str) -> Said {
    match sys::read(at) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let shown = text.lines().find(|line| {
                line.trim_start()
                    .split(' ')
                    .next()
                    .is_some_and(|address| address.chars().any(|c| !matches!(c, '0' | '-')))
            });
            match shown {
                Some(line) => Said::Through(line.trim().to_owned()),
                None => Said::Refused("no address is shown".to_owned()),
            }
        }
        Err(why) => Said::from_error("", why),
    }
}

/// Which frame of the machine's memory a page of this process lies in: what Rowhammer attacks begin with.
fn physical() -> Said {
    use std::os::unix::fs::FileExt;
    let page = vec![1u8; 8192];
    let file = match std::fs::File::open("/proc/self/pagemap") {
        Ok(file) => file,
        Err(why) => return Said::from_error("", Errno::of(&why)),
    };
    let mut entry = [0; 8];
    match file.read_exact_at(&mut entry, (page.as_ptr() as u64 / 4096 + 1) * 8) {
        Ok(()) if u64::from_le_bytes(entry) & ((1 << 55) - 1) != 0 => Said::Through("a frame's number".to_owned()),
        Ok(()) => Said::Refused("no frame is shown".to_owned()),
        Err(why) => Said::from_error("", Errno::of(&why)),
    }
}
