//! The system-call profile that a container runtime is given. The cell installs its own, finer filters on top of it.

use serde_json::{Value, json};

/// Refused with EPERM whatever the arguments: what no tool of an agent needs and what escapes are made of.
const REFUSED: &[&str] = &[
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "chroot",
    "clock_adjtime",
    "clock_adjtime64",
    "clock_settime",
    "clock_settime64",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "migrate_pages",
    "modify_ldt",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "personality",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "umount2",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
];

/// Families of sockets that are refused: everything but Unix, IPv4 and IPv6.
const FAMILIES: std::ops::Range<u32> = 3..46;
const AF_INET6: u32 = 10;

/// The profile in the form of the OCI runtime specification. Docker has the same, with `archMap` where this has
/// `architectures`; it takes both. `own_users` lets the cell enter a user namespace of its own, before its filters refuse
/// that as well.
pub(crate) fn profile(own_users: bool) -> Value {
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        _ => "SCMP_ARCH_X86_64",
    };
    let refuse = "SCMP_ACT_ERRNO";
    let bits = |bit: i32| json!([{"index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}]);
    let mut calls = vec![
        json!({"names": REFUSED, "action": refuse, "errnoRet": libc::EPERM}),
        // A structure in memory cannot be looked at: programs fall back to the older call, whose arguments can.
        json!({"names": ["clone3"], "action": refuse, "errnoRet": libc::ENOSYS}),
    ];
    calls.push(if own_users {
        let args = json!([{"index": 0, "value": libc::CLONE_NEWUSER, "op": "SCMP_CMP_NE"}]);
        json!({"names": ["unshare"], "action": refuse, "errnoRet": libc::EPERM, "args": args})
    } else {
        json!({"names": ["unshare"], "action": refuse, "errnoRet": libc::EPERM})
    });
    for namespace in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ] {
        calls.push(json!({"names": ["clone"], "action": refuse, "errnoRet": libc::EPERM, "args": bits(namespace)}));
    }
    for family in FAMILIES.filter(|family| *family != AF_INET6) {
        let args = json!([{"index": 0, "value": family, "op": "SCMP_CMP_EQ"}]);
        calls.push(json!({"names": ["socket"], "action": refuse, "errnoRet": libc::EPERM, "args": args}));
    }
    for request in [libc::TIOCSTI, libc::TIOCLINUX, libc::TIOCSETD] {
        let args = json!([{"index": 1, "value": request, "op": "SCMP_CMP_EQ"}]);
        calls.push(json!({"names": ["ioctl"], "action": refuse, "errnoRet": libc::EPERM, "args": args}));
    }
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [architecture], "syscalls": calls})
}
