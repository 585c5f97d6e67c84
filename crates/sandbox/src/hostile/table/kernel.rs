//! What escapes begin with: namespaces, wide interfaces of the kernel, mounts, other ways into it.

use crate::hostile::Attempt;

pub(super) const KERNEL: &[Attempt] = &[
    Attempt::new("kernel.unshare-user", "unshare the user namespace"),
    Attempt::new("kernel.unshare-mount", "unshare the mount namespace"),
    Attempt::new("kernel.unshare-pid", "unshare the process namespace"),
    Attempt::new("kernel.unshare-net", "unshare the network namespace"),
    Attempt::new("kernel.unshare-ipc", "unshare the IPC namespace"),
    Attempt::new("kernel.unshare-uts", "unshare the host name namespace"),
    Attempt::new("kernel.unshare-cgroup", "unshare the cgroup namespace"),
    Attempt::new("kernel.unshare-time", "unshare the time namespace"),
    Attempt::new("kernel.clone-user", "clone into a user namespace"),
    Attempt::new("kernel.clone-user-net", "clone into user and network namespaces").after("CVE-2022-25636"),
    Attempt::new("kernel.clone-user-mount", "clone into user and mount namespaces").after("CVE-2022-0492"),
    Attempt::new("kernel.clone3-user", "the same with clone3, whose arguments filters cannot see"),
    Attempt::new("kernel.clone3-plain", "make a process with clone3, where filters cannot see that it is harmless"),
    Attempt::new("kernel.setns-own", "join a namespace by its file"),
    Attempt::new("kernel.setns-cell", "join the cell's namespaces by its process handle"),
    Attempt::new("kernel.namespace-parent", "ask a namespace for the one around it, and join that"),
    Attempt::new("kernel.ptrace-child", "attach to a process of the same user"),
    Attempt::new("kernel.ptrace-seize", "seize a process of the same user"),
    Attempt::new("kernel.ptrace-traceme", "be traced, and go on behind the filters' back").after("CVE-2019-13272"),
    Attempt::new("kernel.read-memory", "read another process's memory"),
    Attempt::new("kernel.write-memory", "write another process's memory"),
    Attempt::new("kernel.steal-descriptor", "take a descriptor out of another process"),
    Attempt::new("kernel.advise-memory", "advise the kernel on another process's memory"),
    Attempt::new("kernel.compare", "compare kernel objects of two processes"),
    Attempt::new("kernel.bpf-map", "make a BPF map").after("CVE-2021-3490"),
    Attempt::new("kernel.bpf-program", "load a BPF program").after("CVE-2020-8835"),
    Attempt::new("kernel.io-uring", "make an io_uring, whose work goes past system-call filters")
        .after("CVE-2022-29582"),
    Attempt::new("kernel.io-uring-register", "register with an io_uring").after("CVE-2021-41073"),
    Attempt::new("kernel.io-uring-enter", "enter an io_uring"),
    Attempt::new("kernel.userfaultfd", "hold page faults of the kernel").after("CVE-2021-22555"),
    Attempt::new("kernel.userfaultfd-device", "the same through its device"),
    Attempt::new("kernel.perf", "open a performance counter").after("CVE-2013-2094"),
    Attempt::new("kernel.fanotify", "watch files of the whole mount"),
    Attempt::new("kernel.key-add", "add a key").after("CVE-2016-0728"),
    Attempt::new("kernel.key-request", "ask for a key, for which the kernel starts a program of the host"),
    Attempt::new("kernel.keyring-join", "join a session keyring").after("CVE-2016-0728"),
    Attempt::new("kernel.keyring-session", "find the session keyring"),
    Attempt::new("kernel.keyring-user", "find the user's keyring, which containers of one user share"),
    Attempt::new("kernel.handle-name", "get a file's handle"),
    Attempt::new("kernel.handle-open", "open the host's root by its handle").after("Shocker, 2014"),
    Attempt::new("kernel.fsopen", "open a file system's context"),
    Attempt::new("kernel.fsconfig", "overflow a file system's parameters").after("CVE-2022-0185"),
    Attempt::new("kernel.fspick", "pick up a mounted file system's context"),
    Attempt::new("kernel.kexec", "load another kernel"),
    Attempt::new("kernel.kexec-file", "load another kernel from a file"),
    Attempt::new("kernel.module-load", "load a module"),
    Attempt::new("kernel.module-load-file", "load a module from a file"),
    Attempt::new("kernel.module-remove", "remove a module"),
    Attempt::new("kernel.later-calls", "make system calls that are newer than the filters"),
    Attempt::new("kernel.openat2", "open with arguments that filters cannot see"),
    Attempt::new("kernel.seccomp-undo", "put a filter that allows everything on top"),
];

#[cfg(target_arch = "x86_64")]
pub(super) const GATES: &[Attempt] = &[
    Attempt::new("gates.x32", "the x32 interface: the same calls by other numbers"),
    Attempt::new("gates.x32-unshare", "a namespace through the x32 interface"),
    Attempt::new("gates.ia32", "the 32-bit gate of a 64-bit process"),
    Attempt::new("gates.ia32-unshare", "a namespace through the 32-bit gate"),
];

pub(super) const MOUNTS: &[Attempt] = &[
    Attempt::new("mounts.tmpfs", "mount a file system in memory"),
    Attempt::new("mounts.remount-root", "make the root writable"),
    Attempt::new("mounts.remount-programs", "make the programs writable"),
    Attempt::new("mounts.remount-proc-sys", "make the kernel's settings writable"),
    Attempt::new("mounts.bind-over", "bind a directory over /etc"),
    Attempt::new("mounts.bind-workspace", "bind the root into the workspace"),
    Attempt::new("mounts.fresh-proc", "mount /proc without masks"),
    Attempt::new("mounts.sysfs", "mount /sys"),
    Attempt::new("mounts.devpts", "mount terminals"),
    Attempt::new("mounts.mqueue", "mount message queues"),
    Attempt::new("mounts.fuse", "mount a file system that is served from inside"),
    Attempt::new("mounts.overlay", "mount an overlay"),
    Attempt::new("mounts.overlay-in-namespace", "mount an overlay in a user namespace")
        .after("CVE-2021-3493, CVE-2023-0386"),
    Attempt::new("mounts.cgroup-release-agent", "have a control group's end start a program of the host")
        .after("CVE-2022-0492"),
    Attempt::new("mounts.unmount-proc", "unmount /proc"),
    Attempt::new("mounts.unmask-kcore", "unmount what masks the kernel's memory"),
    Attempt::new("mounts.unmount-root", "unmount the root"),
    Attempt::new("mounts.pivot-root", "change the root"),
    Attempt::new("mounts.chroot", "change the root with chroot"),
    Attempt::new("mounts.chroot-out", "walk out of a root below an open directory"),
    Attempt::new("mounts.open-tree", "copy the mounts"),
    Attempt::new("mounts.move", "move a mount"),
    Attempt::new("mounts.set-attributes", "take the read-only flag off the root"),
    Attempt::new("mounts.propagation", "share mounts with the host"),
];

/// There are none but the one gate.
#[cfg(not(target_arch = "x86_64"))]
pub(super) const GATES: &[Attempt] = &[];
