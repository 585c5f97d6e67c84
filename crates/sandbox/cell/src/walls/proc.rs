//! `/proc`.

use std::fs;
use std::os::fd::AsRawFd;

use super::mounts::tmpfs;
use super::{Failed, Step};
use crate::sys;

/// A process file system of this namespace only, with what tells of the host masked.
pub(super) fn mount(root: &str) -> Result<(), Failed> {
    let at = format!("{root}/proc");
    fs::create_dir_all(&at).step("proc", &at)?;
    let target = sys::path(&at).step("proc", &at)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    sys::mount(c"proc", &target, Some(c"proc"), flags, Some(c"hidepid=invisible"))
        .or_else(|_| sys::mount(c"proc", &target, Some(c"proc"), flags, Some(c"hidepid=2")))
        .step("proc", &at)?;
    // A second lock on the door that the filters close: no user namespace below this one. Kernels that do not let its own
    // root set it leave the filters.
    let _ = fs::write(format!("{at}/sys/user/max_user_namespaces"), "0");
    for name in ["bus", "fs", "irq", "sys", "sysrq-trigger"] {
        let path = sys::path(&format!("{at}/{name}")).step("read-only proc", name)?;
        if let Ok(tree) = sys::open_tree(&path) {
            sys::mount_setattr(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH, libc::MOUNT_ATTR_RDONLY)
                .step("read-only proc", name)?;
            sys::move_mount(&tree, &path).step("read-only proc", name)?;
        }
    }
    let null = sys::path(&format!("{root}/dev/null")).step("masked proc", "null")?;
    for name in [
        "kcore",
        "keys",
        "key-users",
        "kmsg",
        "kallsyms",
        "timer_list",
        "sched_debug",
        "latency_stats",
        "kpagecount",
        "kpageflags",
        "kpagecgroup",
        "vmallocinfo",
        "slabinfo",
        "iomem",
        "ioports",
        "modules",
        "config.gz",
        "pressure",
        "interrupts",
        "timer_stats",
    ] {
        let text = format!("{at}/{name}");
        let Ok(kind) = fs::symlink_metadata(&text) else { continue };
        let path = sys::path(&text).step("masked proc", name)?;
        if kind.is_dir() {
            tmpfs(&text, "mode=000,size=4k", libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV)
                .step("masked proc", name)?;
        } else {
            sys::mount(&null, &path, None, libc::MS_BIND, None).step("masked proc", name)?;
        }
    }
    for name in ["acpi", "scsi", "asound", "driver", "device-tree"] {
        let text = format!("{at}/{name}");
        if fs::symlink_metadata(&text).is_ok_and(|kind| kind.is_dir()) {
            tmpfs(&text, "mode=000,size=4k", libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV)
                .step("masked proc", name)?;
        }
    }
    Ok(())
}
