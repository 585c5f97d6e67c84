//! The guarantees and the attempts against each.

mod bombs;
mod calls;
mod files;
mod kernel;
mod machine;
mod network;

use super::Guarantee;

/// The guarantees, each with its attempts.
pub fn guarantees() -> &'static [Guarantee] {
    GUARANTEES
}

const GUARANTEES: &[Guarantee] = &[
    Guarantee {
        name: "secrets",
        title: "No variable and no descriptor of the worker comes in",
        mechanism: "cells are copies of a nursery, a program that was started once with an empty environment and one socket; `close_range` before anything else in the copy; setup over one socket",
        attempts: files::SECRETS,
    },
    Guarantee {
        name: "cell",
        title: "The cell's memory, program and socket are out of reach",
        mechanism: "sealed memory file, not dumpable, `hidepid=invisible`, `ptrace` and relatives refused, socket close-on-exec",
        attempts: files::CELL,
    },
    Guarantee {
        name: "survival",
        title: "The cell survives its children",
        mechanism: "PID 1 of its namespace, which ignores signals; no `prlimit` on others, no scheduling of it; one thread always kept for file tools",
        attempts: files::SURVIVAL,
    },
    Guarantee {
        name: "files",
        title: "No file of the host but programs and libraries, and those read-only",
        mechanism: "mount namespace, `pivot_root` into a tmpfs, read-only `nosuid,nodev` binds of named directories, Landlock; of `/etc` only what programs need, no private keys",
        attempts: files::FILES,
    },
    Guarantee {
        name: "links",
        title: "Links, `..`, hard links and `/proc/*/root` lead nowhere outside",
        mechanism: "the same; the file tools resolve every link and then check the place",
        attempts: files::LINKS,
    },
    Guarantee {
        name: "mounts",
        title: "No mount is made, moved, changed or taken away",
        mechanism: "no capability, and every call of that kind refused by the filters",
        attempts: kernel::MOUNTS,
    },
    Guarantee {
        name: "kernel",
        title: "No new namespace, module, key, handle, BPF program, io_uring, userfaultfd, trace",
        mechanism: "system-call filters with argument checks; `clone3` and `openat2`, whose arguments cannot be checked, and every call newer than the list are \"not there\"; `max_user_namespaces` 0",
        attempts: kernel::KERNEL,
    },
    Guarantee {
        name: "gates",
        title: "The x32 and 32-bit interfaces do not go past the filters",
        mechanism: "both kill the process",
        attempts: kernel::GATES,
    },
    Guarantee {
        name: "capabilities",
        title: "No capability, none to be had",
        mechanism: "all five sets empty, locked securebits, `no_new_privs`, `nosuid` everywhere, no set-id file can be made",
        attempts: machine::CAPABILITIES,
    },
    Guarantee {
        name: "devices",
        title: "No device but the harmless ones",
        mechanism: "six nodes bound one by one, `nodev` everywhere else, no capability to make any",
        attempts: machine::DEVICES,
    },
    Guarantee {
        name: "machine",
        title: "The machine's settings stay as they are, and it tells little about itself",
        mechanism: "no `/sys`; `/proc` read-only or masked where it is the machine's; calls that set clocks, names, priorities refused",
        attempts: machine::MACHINE,
    },
    Guarantee {
        name: "terminal",
        title: "Nobody types into a terminal of the worker",
        mechanism: "own `devpts`, no controlling terminal, `TIOCSTI`, `TIOCLINUX` and `TIOCSETD` refused",
        attempts: machine::TERMINAL,
    },
    Guarantee {
        name: "cores",
        title: "No core dump, not even to a handler of the host",
        mechanism: "core limit 1, which also turns pipe handlers off, and cannot be changed",
        attempts: machine::CORES,
    },
    Guarantee {
        name: "network",
        title: "No network but an own loopback device",
        mechanism: "network namespace; only `AF_UNIX`, `AF_INET` and `AF_INET6` sockets, of the latter TCP and UDP only",
        attempts: network::NETWORK,
    },
    Guarantee {
        name: "neighbours",
        title: "Two sandboxes share nothing, not even a user of the host",
        mechanism: "IPC, network, PID, mount and time namespaces; with root a host user per sandbox, claimed machine-wide for as long as it lives",
        attempts: network::NEIGHBOURS,
    },
    Guarantee {
        name: "processes",
        title: "Processes are limited, and the worker is still answered",
        mechanism: "cgroup `pids`, and a process limit of the sandbox's own user namespace; `restart` kills all at one instant",
        attempts: bombs::PROCESSES,
    },
    Guarantee {
        name: "memory",
        title: "Memory is limited, and running out of it stays inside",
        mechanism: "cgroup `memory`, swap off; sized tmpfs with limited inodes, charged to the sandbox",
        attempts: bombs::MEMORY,
    },
    Guarantee {
        name: "places",
        title: "Places in memory, on the disk and single files are limited",
        mechanism: "sized tmpfs with limited inodes; project quota or a file system in a sized file; a file size limit, hard",
        attempts: bombs::PLACES,
    },
    Guarantee {
        name: "resources",
        title: "Descriptors, locked memory, queues, priorities are limited, and others still get theirs",
        mechanism: "resource limits, hard",
        attempts: bombs::RESOURCES,
    },
    Guarantee {
        name: "streams",
        title: "Output and input cost the worker a fixed amount of memory, and stall nobody else",
        mechanism: "windows in both directions, with a least charge per frame",
        attempts: calls::STREAMS,
    },
    Guarantee {
        name: "status",
        title: "A command's status cannot be forged by its output",
        mechanism: "one random number per call on a pipe that commands do not have",
        attempts: calls::STATUS,
    },
    Guarantee {
        name: "tools",
        title: "The file tools are answered whatever they are called on, and show nothing that a terminal obeys",
        mechanism: "regular files only, opened without waiting; bounds on size, depth, entries and time; control characters removed",
        attempts: calls::TOOLS,
    },
    Guarantee {
        name: "time",
        title: "A call ends in time, with all that it started in its group or below it",
        mechanism: "stopped first, then killed; the next call gets a fresh shell",
        attempts: calls::TIME,
    },
    Guarantee {
        name: "endings",
        title: "A sandbox ends with everything in it",
        mechanism: "the end of PID 1 is the end of its namespace; the control group is killed besides",
        attempts: calls::ENDINGS,
    },
    Guarantee {
        name: "frames",
        title: "Nobody but the cell speaks for the cell",
        mechanism: "bounded frames, strict decoding, close on the first error; the socket is the cell's alone",
        attempts: calls::FRAMES,
    },
];
