//! `/proc`.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use super::{Failed, Step};
use crate::sys;

/// What tells of the machine or its kernel. What only the host's root may read is out of reach without a mask: it is
/// nobody here.
const FILES: &[&str] = &[
    "kcore",
    "kmsg",
    "keys",
    "key-users",
    "kallsyms",
    "cmdline",
    "config.gz",
    "modules",
    "interrupts",
    "iomem",
    "ioports",
    "partitions",
    "diskstats",
    "swaps",
    "timer_list",
    "sched_debug",
    "latency_stats",
];
const DIRECTORIES: &[&str] = &["acpi", "scsi", "asound", "driver", "device-tree", "pressure"];

/// A process file system in which no process is left: the kernel lets a sandbox mount its own only where all of another
/// can be seen, and this one tells nothing of the host's processes.
pub(super) fn shadow(root: &str) -> Result<(), Failed> {
    let at = format!("{root}/proc");
    let target = sys::path(&at).step("shadow proc", &at)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // It belongs to the process namespace of whoever mounts it, and outlives both.
    sys::in_child(libc::CLONE_NEWPID, || sys::mount(c"proc", &target, Some(c"proc"), flags, None))
        .step("shadow proc", &at)
}

/// A process file system of this namespace only, with what tells of the host masked.
pub(super) fn mount(root: &str) -> Result<(), Failed> {
    let at = format!("{root}/proc");
    let target = sys::path(&at).step("proc", &at)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    sys::mount(c"proc", &target, Some(c"proc"), flags, Some(c"hidepid=invisible"))
        .or_else(|_| sys::mount(c"proc", &target, Some(c"proc"), flags, Some(c"hidepid=2")))
        .step("proc", &at)?;
    // A second lock on the door that the filters close: no user namespace below this one. Kernels that do not let its own
    // root set it leave the filters.
    let _ = fs::write(format!("{at}/sys/user/max_user_namespaces"), "0");
    // These are counted for whoever made the namespace as well: one sandbox must not use up all that its worker has.
    let _ = fs::write(format!("{at}/sys/user/max_inotify_instances"), "32");
    let whole = fs::read_to_string(format!("{at}/sys/fs/inotify/max_user_watches")).unwrap_or_default();
    let _ = fs::write(format!("{at}/sys/user/max_inotify_watches"), palisade_cell::watches(&whole).to_string());
    for name in ["bus", "fs", "irq", "sys", "sysrq-trigger"] {
        let path = sys::path(&format!("{at}/{name}")).step("read-only proc", name)?;
        if let Ok(tree) = sys::open_tree(&path) {
            sys::mount_setattr(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH, libc::MOUNT_ATTR_RDONLY)
                .step("read-only proc", name)?;
            sys::move_mount(&tree, &path).step("read-only proc", name)?;
        }
    }
    let null = sys::path(&format!("{root}/dev/null")).step("masked proc", "null")?;
    for name in FILES {
        let path = sys::path(&format!("{at}/{name}")).step("masked proc", *name)?;
        if_there(sys::mount(&null, &path, None, libc::MS_BIND, None)).step("masked proc", *name)?;
    }
    // A place that has nothing in it, with any sandbox.
    let empty = sys::path(&format!("{root}/mnt/memory")).step("masked proc", "empty")?;
    let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    for name in DIRECTORIES {
        let path = sys::path(&format!("{at}/{name}")).step("masked proc", *name)?;
        if if_there(sys::mount(&empty, &path, None, libc::MS_BIND, None)).step("masked proc", *name)? {
            sys::mount(c"none", &path, None, flags, None).step("masked proc", *name)?;
        }
    }
    Ok(())
}

/// What is not there on this kernel needs no mask.
fn if_there(mounted: io::Result<()>) -> io::Result<bool> {
    match mounted {
        Err(why) if why.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        done => done.map(|()| true),
    }
}
