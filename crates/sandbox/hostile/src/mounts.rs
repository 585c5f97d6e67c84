//! Mounts: what would turn the file system into another one.

use crate::kernel::mount;
use crate::said::{denied, denied_or, steps};
use crate::sys::{self, call};
use crate::{Attempt, Facts, Said};

const BIND: u64 = libc::MS_BIND;
const AGAIN: u64 = libc::MS_REMOUNT | libc::MS_BIND;

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("mounts.tmpfs", |_| denied(mount(c"none", c"/tmp", c"tmpfs", 0, c""))),
    ("mounts.remount-root", |_| denied(mount(c"none", c"/", c"", AGAIN, c""))),
    ("mounts.remount-programs", |_| denied(mount(c"none", c"/usr", c"", AGAIN, c""))),
    ("mounts.remount-proc-sys", |_| denied(mount(c"none", c"/proc/sys", c"", AGAIN, c""))),
    ("mounts.bind-over", |_| denied(mount(c"/tmp", c"/etc", c"", BIND, c""))),
    ("mounts.bind-workspace", |_| denied(mount(c"/", c"/workspace", c"", BIND | libc::MS_REC, c""))),
    ("mounts.fresh-proc", |_| denied(mount(c"proc", c"/tmp", c"proc", 0, c""))),
    ("mounts.sysfs", |_| denied(mount(c"sysfs", c"/tmp", c"sysfs", 0, c""))),
    ("mounts.devpts", |_| denied(mount(c"devpts", c"/tmp", c"devpts", 0, c""))),
    ("mounts.mqueue", |_| denied(mount(c"mqueue", c"/tmp", c"mqueue", 0, c""))),
    ("mounts.fuse", |_| denied(mount(c"fuse", c"/tmp", c"fuse", 0, c"fd=0,rootmode=40000,user_id=0,group_id=0"))),
    ("mounts.overlay", |_| {
        let data = c"lowerdir=/usr,upperdir=/tmp/upper,workdir=/tmp/work";
        denied(mount(c"overlay", c"/tmp", c"overlay", 0, data))
    }),
    ("mounts.overlay-in-namespace", |_| {
        steps(|| {
            // CVE-2021-3493, CVE-2023-0386: capabilities of files that an overlay carries out of a user namespace.
            let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
            call!(libc::SYS_unshare, flags).map_err(|why| Said::from_error("unshare", why))?;
            let data = c"lowerdir=/usr,upperdir=/tmp/upper,workdir=/tmp/work";
            Ok(denied_or(mount(c"overlay", c"/tmp", c"overlay", 0, data), &[libc::ENOENT]))
        })
    }),
    ("mounts.cgroup-release-agent", release_agent),
    ("mounts.unmount-proc", |_| denied(call!(libc::SYS_umount2, c"/proc", libc::MNT_DETACH))),
    ("mounts.unmask-kcore", |_| denied(call!(libc::SYS_umount2, c"/proc/kcore", libc::MNT_DETACH))),
    ("mounts.unmount-root", |_| denied(call!(libc::SYS_umount2, c"/", libc::MNT_DETACH))),
    ("mounts.pivot-root", |_| denied(call!(libc::SYS_pivot_root, c".", c"."))),
    ("mounts.chroot", |_| denied(call!(libc::SYS_chroot, c"/tmp"))),
    ("mounts.chroot-out", |facts| {
        steps(|| {
            // The classic: a root below an open directory, then up from there.
            let out =
                sys::open("/", libc::O_RDONLY | libc::O_DIRECTORY).map_err(|why| Said::from_error("open", why))?;
            call!(libc::SYS_chroot, c"/tmp").map_err(|why| Said::from_error("chroot", why))?;
            call!(libc::SYS_fchdir, out).map_err(|why| Said::from_error("fchdir", why))?;
            let up = format!("../../../../../../..{}", facts.text("canary"));
            sys::read(&up).map_err(|why| Said::from_error("canary", why))?;
            Ok(Said::Through("the canary".to_owned()))
        })
    }),
    ("mounts.open-tree", |_| denied(call!(libc::SYS_open_tree, libc::AT_FDCWD, c"/", 1))),
    ("mounts.move", |_| denied(call!(libc::SYS_move_mount, libc::AT_FDCWD, c"/tmp", libc::AT_FDCWD, c"/run", 0))),
    ("mounts.set-attributes", |_| {
        // Clears "read-only" on the root.
        let attributes = [0u64, 1, 0, 0];
        denied(call!(libc::SYS_mount_setattr, libc::AT_FDCWD, c"/", 0, &attributes, 32))
    }),
    ("mounts.propagation", |_| denied(mount(c"none", c"/", c"", libc::MS_SHARED | libc::MS_REC, c""))),
];

/// CVE-2022-0492: a control group whose end starts a program of the host.
fn release_agent(facts: &Facts) -> Said {
    let mut how = Vec::new();
    for controller in [c"rdma", c"memory", c"pids", c"cpu"] {
        match mount(c"cgroup", c"/tmp", c"cgroup", 0, controller) {
            Ok(_) => {
                let _ = sys::write("/tmp/release_agent", facts.text("marker"));
                return Said::Through("a control group hierarchy".to_owned());
            }
            Err(why) => how.push(why.to_string()),
        }
    }
    // Without a mount of one's own: those of the host, should they be here.
    for place in ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/rdma"] {
        let at = format!("{place}/release_agent");
        if sys::open(&at, libc::O_WRONLY).is_ok() {
            return Said::Through(format!("{at} can be written"));
        }
    }
    how.dedup();
    Said::Refused(how.join(", "))
}
