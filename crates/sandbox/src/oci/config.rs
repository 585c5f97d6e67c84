//! `config.json` of the OCI runtime specification, hardened.

use std::path::Path;

use serde_json::{Value, json};

use super::{bundle, seccomp};
use crate::Spec;
use crate::native::{INSIDE, Identity};

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

/// Who the sandbox's users are on the host.
#[derive(Debug)]
pub(super) struct Users {
    /// Root inside, as which the runtime builds the walls. Nothing of the sandbox runs as this.
    pub(super) root: u32,
    agent: u32,
}

/// How far the host's numbers for the two users are apart: the range of the one is as long as this.
const APART: u32 = 1 << 20;

impl Users {
    pub(super) fn of(identity: &Identity) -> Users {
        Users { root: identity.uid + APART, agent: identity.uid }
    }

    fn json(&self) -> Value {
        json!([
            {"containerID": 0, "hostID": self.root, "size": 1},
            {"containerID": INSIDE, "hostID": self.agent, "size": 1},
        ])
    }
}

/// What tells of the host, or changes it.
const MASKED: &[&str] = &[
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
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The configuration of a sandbox's container. Limits are not in it: the whole container is in control groups of ours.
pub(super) fn config(spec: &Spec, users: &Users, mounts: &[Mount]) -> Value {
    let mut all = bundle::system_mounts(spec.limits.tmp_bytes);
    // Shallow ones first: a mount hides what was mounted below it before.
    let mut mounts: Vec<&Mount> = mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    all.extend(mounts.into_iter().map(Mount::json));
    let none: [&str; 0] = [];
    let namespaces: Vec<Value> = ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"]
        .into_iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": INSIDE, "gid": INSIDE},
            "args": [bundle::CELL, "stdio"],
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
            "uidMappings": users.json(),
            "gidMappings": users.json(),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "rootfsPropagation": "rprivate",
            "seccomp": seccomp::profile(),
        },
    })
}
