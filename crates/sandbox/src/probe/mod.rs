//! What this machine gives and withholds.

mod place;

use std::fs;

pub use place::probe_place;

use crate::native;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What.
    pub facility: &'static str,
    /// Whether it is there.
    pub available: bool,
    /// Whether a sandbox cannot be made without it.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it, when it is not.
    pub fix: Option<&'static str>,
}

/// What to do where no control groups can be made. A login's session gives none by itself, but systemd does when it is asked.
const GROUPS: &str =
    "run the worker as root, as a systemd unit with Delegate=yes, or from a login with systemd's busctl and a bus";

/// Looks at this machine.
pub fn probe() -> Vec<Probe> {
    let mut probes = Vec::new();
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    for (name, label) in [
        ("user", "user namespaces"),
        ("mnt", "mount namespaces"),
        ("pid", "process namespaces"),
        ("net", "network namespaces"),
        ("ipc", "IPC namespaces"),
        ("uts", "host name namespaces"),
        ("cgroup", "cgroup namespaces"),
        ("time", "time namespaces"),
    ] {
        let there = fs::symlink_metadata(format!("/proc/self/ns/{name}")).is_ok();
        let limit = read(&format!("/proc/sys/user/max_{name}_namespaces"));
        let forbidden = limit.as_deref() == Some("0");
        probes.push(Probe {
            facility: label,
            available: there && !forbidden,
            required: name != "time",
            detail: match (there, limit) {
                (false, _) => "not built into this kernel".to_owned(),
                (true, Some(limit)) => format!("limit {limit}"),
                (true, None) => "no limit known".to_owned(),
            },
            fix: Some("use a kernel that has them, and raise user.max_*_namespaces with sysctl"),
        });
    }
    if let Some(value) = read("/proc/sys/kernel/unprivileged_userns_clone") {
        probes.push(Probe {
            facility: "unprivileged user namespaces",
            available: value == "1" || native::is_root(),
            required: true,
            detail: format!("kernel.unprivileged_userns_clone={value}"),
            fix: Some("sysctl kernel.unprivileged_userns_clone=1, or run the worker as root"),
        });
    }
    if let Some(value) = read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") {
        probes.push(Probe {
            facility: "AppArmor and user namespaces",
            available: value == "0" || native::is_root(),
            required: true,
            detail: format!("kernel.apparmor_restrict_unprivileged_userns={value}"),
            fix: Some("install an AppArmor profile with `userns,` for palisade, or set the sysctl to 0"),
        });
    }
    let filters = read("/proc/sys/kernel/seccomp/actions_avail");
    probes.push(Probe {
        facility: "seccomp filters",
        available: filters.is_some(),
        required: true,
        detail: filters.unwrap_or_else(|| "not built into this kernel".to_owned()),
        fix: Some("use a kernel with CONFIG_SECCOMP_FILTER"),
    });
    let modules = read("/sys/kernel/security/lsm");
    let abi = native::landlock_abi();
    probes.push(Probe {
        facility: "Landlock",
        available: abi > 0,
        required: false,
        detail: match abi {
            0 => format!("not enabled (security modules: {})", modules.as_deref().unwrap_or("unknown")),
            abi => format!("ABI {abi}"),
        },
        fix: Some("add landlock to the kernel's lsm= list (Linux 5.13 or newer)"),
    });
    let layout = native::cgroups();
    let place = |place: &Option<native::GroupPlace>| {
        let place = place.as_ref()?;
        Some(format!("cgroup v{} at {}", if place.unified { 2 } else { 1 }, place.directory.display()))
    };
    let unified = layout.unified.as_ref().map(|directory| format!("cgroup v2 at {}", directory.display()));
    for (label, found) in [
        ("memory limits", place(&layout.memory)),
        ("process limits", place(&layout.pids)),
        ("processor limits", place(&layout.cpu)),
        ("freezer", unified.or_else(|| place(&layout.freezer))),
    ] {
        probes.push(Probe {
            facility: label,
            available: found.is_some(),
            required: false,
            detail: found.unwrap_or_else(|| "no control group can be made here".to_owned()),
            fix: Some(GROUPS),
        });
    }
    let overlay = read("/proc/filesystems").is_some_and(|text| text.lines().any(|line| line.ends_with("\toverlay")));
    probes.push(Probe {
        facility: "overlay file system",
        available: overlay,
        required: false,
        detail: if overlay { "available".to_owned() } else { "not loaded".to_owned() },
        fix: Some("modprobe overlay"),
    });
    let sealed = native::program();
    probes.push(Probe {
        facility: "sealed memory files",
        available: sealed.is_ok(),
        required: true,
        detail: sealed.map_or_else(|why| why.to_string(), |()| "available".to_owned()),
        fix: Some("set the sysctl vm.memfd_noexec to 0 or 1"),
    });
    let egress = native::egress();
    probes.push(Probe {
        facility: "egress network",
        available: egress.is_ok(),
        required: false,
        detail: egress.map_or_else(|why| why.to_string(), |()| "connections can be led to the egress service".to_owned()),
        fix: Some("use a kernel with nf_tables, its NAT, reject and log expressions, and conntrack (CONFIG_NF_TABLES_INET, NFT_REDIR, NFT_REJECT, NFT_LOG, NF_NAT), or load them"),
    });
    probes
}
