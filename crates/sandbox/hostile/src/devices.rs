//! Devices: made, opened, listed.

use std::os::unix::fs::FileTypeExt;

use crate::said::{denied, steps};
use crate::sys::{self, call, path};
use crate::{Attempt, Said};

/// What commands may have.
const HARMLESS: &[&str] = &["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"];

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("devices.make-disk", |_| make(libc::S_IFBLK, 8, 0)),
    ("devices.make-virtual-disk", |_| make(libc::S_IFBLK, 254, 0)),
    ("devices.make-memory", |_| make(libc::S_IFCHR, 1, 1)),
    ("devices.make-kernel-log", |_| make(libc::S_IFCHR, 1, 11)),
    ("devices.make-null", |_| make(libc::S_IFCHR, 1, 3)),
    ("devices.memory", |_| open(&["/dev/mem", "/dev/kmem", "/dev/port"])),
    ("devices.kernel-log", |_| open(&["/dev/kmsg"])),
    ("devices.fuse", |_| open(&["/dev/fuse", "/dev/cuse"])),
    ("devices.tunnel", |_| open(&["/dev/net/tun"])),
    ("devices.virtual-machines", |_| open(&["/dev/kvm", "/dev/vhost-net", "/dev/vhost-vsock", "/dev/vfio/vfio"])),
    ("devices.loop", |_| open(&["/dev/loop-control", "/dev/loop0", "/dev/mapper/control"])),
    ("devices.disks", |_| open(&["/dev/sda", "/dev/vda", "/dev/vda1", "/dev/nvme0n1", "/dev/xvda", "/dev/root"])),
    ("devices.terminals", |_| {
        open(&["/dev/tty0", "/dev/tty1", "/dev/ttyS0", "/dev/hvc0", "/dev/vcs", "/dev/input/event0"])
    }),
    ("devices.others", |_| {
        let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let device = entry.file_type().is_ok_and(|kind| kind.is_block_device() || kind.is_char_device());
            if device && !HARMLESS.contains(&name.as_str()) {
                return Said::Through(format!("/dev/{name} is there"));
            }
        }
        Said::Refused("none but the harmless ones".to_owned())
    }),
    ("devices.execute-mapping", |_| {
        steps(|| {
            // Control registers of graphics and management devices are mapped through their own files.
            let entries = std::fs::read_dir("/dev/dri").or_else(|_| std::fs::read_dir("/sys/bus/pci/devices"));
            match entries {
                Ok(_) => Ok(Said::Through("buses of the machine".to_owned())),
                Err(why) => Ok(Said::from_error("", sys::Errno::of(&why))),
            }
        })
    }),
];

fn make(kind: u32, major: u32, minor: u32) -> Said {
    for place in ["/tmp", "/workspace", "/dev/shm", "/run", "/dev"] {
        let at = format!("{place}/palisade-device");
        let device = libc::makedev(major, minor);
        if call!(libc::SYS_mknodat, libc::AT_FDCWD, &path(&at), kind | 0o666, device).is_ok() {
            let opened = sys::open(&at, libc::O_RDONLY | libc::O_NONBLOCK);
            let _ = std::fs::remove_file(&at);
            if opened.is_ok() {
                return Said::Through(format!("device {major}:{minor} made and opened"));
            }
        }
    }
    let last =
        call!(libc::SYS_mknodat, libc::AT_FDCWD, c"/tmp/palisade-device", kind | 0o666, libc::makedev(major, minor));
    let _ = std::fs::remove_file("/tmp/palisade-device");
    denied(last)
}

fn open(places: &[&str]) -> Said {
    for place in places {
        if sys::open(place, libc::O_RDONLY | libc::O_NONBLOCK).is_ok() {
            return Said::Through(format!("opened {place}"));
        }
    }
    Said::Refused("not there".to_owned())
}
