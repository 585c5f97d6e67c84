//! `config.json` of the OCI runtime specification, hardened.

use std::path::Path;

use palisade_cell::STDIO;
use serde_json::{Value, json};

use super::{bundle, seccomp};
use crate::Spec;
use crate::native::{INSIDE, Identity, RANGE};

/// A bind mount.
#[derive(Debug)]
pub(super) struct Mount {
    source: String,
    target: String,
    writable: bool,
    executable: bool,
}

impl Mount {
    pub(super) fn bind(source: &Path, target: &str, writable: bool) -> Mount {
        Mount { source: source.to_string_lossy().into_owned(), target: target.to_owned(), writable, executable: true }
    }

    /// With what the file system of `path` forbids: a user namespace may not ask for less.
    pub(super) fn like(mut self, path: &Path) -> Mount {
        let flags = rustix::fs::statvfs(path).map(|stat| stat.f_flag);
        self.executable = !flags.is_ok_and(|flags| flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC));
        self
    }

    fn json(&self) -> Value {
        let way = if self.writable { "rw" } else { "ro" };
        let execute = if self.executable { "exec" } else { "noexec" };
        json!({"destination": self.target, "type": "bind", "source": self.source,
            "options": ["bind", way, execute, "nosuid", "nodev", "rprivate"]})
    }
}

/// What tells of the host, or changes it.
pub(crate) const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/config.gz",
    "/proc/device-tree",
    "/proc/driver",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
];
/// What may be read only.
pub(crate) const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The configuration of a sandbox's container. Limits are not in it: the whole container is in control groups of ours.
pub(super) fn config(spec: &Spec, identity: &Identity, mounts: &[Mount]) -> Value {
    let mut all = bundle::system_mounts(&spec.limits);
    // Shallow ones first: a mount hides what was mounted below it before.
    let mut mounts: Vec<&Mount> = mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    all.extend(mounts.into_iter().map(Mount::json));
    let none: [&str; 0] = [];
    let namespaces: Vec<Value> = ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"]
        .into_iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    let users = json!([{"containerID": 0, "hostID": identity.root(), "size": RANGE}]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": INSIDE, "gid": INSIDE},
            "args": [bundle::CELL, STDIO],
            "env": none,
            "cwd": "/",
            "capabilities": {
                "bounding": none, "effective": none, "permitted": none, "inheritable": none, "ambient": none,
            },
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": spec.hostname,
        "mounts": all,
        "linux": {
            "namespaces": namespaces,
            "uidMappings": users,
            "gidMappings": users,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "rootfsPropagation": "rprivate",
            "seccomp": seccomp::profile(false),
        },
    })
}
