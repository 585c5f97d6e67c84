//! Calls that escapes begin with: namespaces, wide interfaces of the kernel, other processes' memory, handles.

use std::ffi::CStr;

use crate::said::{denied, denied_or, steps};
use crate::sys::{self, Errno, call};
use crate::{Attempt, Said};

const CLONE_NEWTIME: u64 = 0x80;

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("kernel.unshare-user", |_| unshare(libc::CLONE_NEWUSER as u64)),
    ("kernel.unshare-mount", |_| unshare(libc::CLONE_NEWNS as u64)),
    ("kernel.unshare-pid", |_| unshare(libc::CLONE_NEWPID as u64)),
    ("kernel.unshare-net", |_| unshare(libc::CLONE_NEWNET as u64)),
    ("kernel.unshare-ipc", |_| unshare(libc::CLONE_NEWIPC as u64)),
    ("kernel.unshare-uts", |_| unshare(libc::CLONE_NEWUTS as u64)),
    ("kernel.unshare-cgroup", |_| unshare(libc::CLONE_NEWCGROUP as u64)),
    ("kernel.unshare-time", |_| unshare(CLONE_NEWTIME)),
    ("kernel.clone-user", |_| clone(libc::CLONE_NEWUSER as u64)),
    ("kernel.clone-user-net", |_| clone((libc::CLONE_NEWUSER | libc::CLONE_NEWNET) as u64)),
    ("kernel.clone-user-mount", |_| clone((libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as u64)),
    ("kernel.clone3-user", |_| clone3(libc::CLONE_NEWUSER as u64)),
    ("kernel.clone3-plain", |_| clone3(0)),
    ("kernel.setns-own", |_| {
        steps(|| {
            let fd = open("/proc/self/ns/uts")?;
            Ok(denied(call!(libc::SYS_setns, fd, libc::CLONE_NEWUTS)))
        })
    }),
    ("kernel.setns-cell", |_| {
        steps(|| {
            let fd = call!(libc::SYS_pidfd_open, 1, 0).map_err(|why| Said::from_error("pidfd_open", why))?;
            Ok(denied(call!(libc::SYS_setns, fd, libc::CLONE_NEWNET | libc::CLONE_NEWNS)))
        })
    }),
    ("kernel.namespace-parent", |_| {
        steps(|| {
            // NS_GET_PARENT (linux/nsfs.h): a handle on the namespace of the host that this one lies in.
            let fd = open("/proc/self/ns/pid")?;
            let parent = call!(libc::SYS_ioctl, fd, 0xb702).map_err(|why| Said::from_error("NS_GET_PARENT", why))?;
            Ok(denied(call!(libc::SYS_setns, parent, libc::CLONE_NEWPID)))
        })
    }),
    ("kernel.ptrace-child", |_| with_child(|pid| denied(call!(libc::SYS_ptrace, libc::PTRACE_ATTACH, pid, 0, 0)))),
    ("kernel.ptrace-seize", |_| with_child(|pid| denied(call!(libc::SYS_ptrace, libc::PTRACE_SEIZE, pid, 0, 0)))),
    ("kernel.ptrace-traceme", |_| denied(call!(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0))),
    ("kernel.read-memory", |_| with_child(|pid| memory(libc::SYS_process_vm_readv, pid))),
    ("kernel.write-memory", |_| with_child(|pid| memory(libc::SYS_process_vm_writev, pid))),
    ("kernel.steal-descriptor", |_| {
        with_child(|pid| {
            steps(|| {
                let fd = call!(libc::SYS_pidfd_open, pid, 0).map_err(|why| Said::from_error("pidfd_open", why))?;
                Ok(denied(call!(libc::SYS_pidfd_getfd, fd, 1, 0)))
            })
        })
    }),
    ("kernel.advise-memory", |_| {
        with_child(|pid| {
            steps(|| {
                let pages = vec![0u8; 8192];
                let range = [pages.as_ptr() as usize / 4096 * 4096 + 4096, 4096];
                let fd = call!(libc::SYS_pidfd_open, pid, 0).map_err(|why| Said::from_error("pidfd_open", why))?;
                Ok(denied(call!(libc::SYS_process_madvise, fd, &range, 1, libc::MADV_COLD, 0)))
            })
        })
    }),
    ("kernel.compare", |_| with_child(|pid| denied(call!(libc::SYS_kcmp, std::process::id(), pid, 0, 1, 1)))),
    ("kernel.bpf-map", |_| {
        // BPF_MAP_CREATE of an array of one number.
        let mut attr = [0u32; 32];
        (attr[0], attr[1], attr[2], attr[3]) = (2, 4, 8, 1);
        denied(call!(libc::SYS_bpf, 0, &attr, 128))
    }),
    ("kernel.bpf-program", |_| {
        // BPF_PROG_LOAD of a socket filter that returns zero.
        let program = [0x0000_0000_0000_00b7u64, 0x0000_0000_0000_0095];
        let mut attr = [0u64; 16];
        (attr[0], attr[1], attr[2]) = (1 | 2 << 32, program.as_ptr() as u64, c"GPL".as_ptr() as u64);
        denied(call!(libc::SYS_bpf, 5, &attr, 128))
    }),
    ("kernel.io-uring", |_| denied(call!(libc::SYS_io_uring_setup, 8, &mut [0u8; 120]))),
    ("kernel.io-uring-register", |_| {
        denied_or(call!(libc::SYS_io_uring_register, 0, 0, 0, 0), &[libc::EOPNOTSUPP, libc::EBADF, libc::EINVAL])
    }),
    ("kernel.io-uring-enter", |_| {
        denied_or(call!(libc::SYS_io_uring_enter, 0, 0, 0, 0, 0, 0), &[libc::EOPNOTSUPP, libc::EBADF, libc::EINVAL])
    }),
    ("kernel.userfaultfd", |_| denied(call!(libc::SYS_userfaultfd, 1))),
    ("kernel.userfaultfd-device", |_| denied(sys::open("/dev/userfaultfd", libc::O_RDWR))),
    ("kernel.perf", |_| {
        // A software clock, of this process, in user mode only: what a careless setting leaves to everybody.
        let mut attr = [0u64; 16];
        (attr[0], attr[5]) = (1 | 128 << 32, 1 << 5 | 1 << 6);
        denied(call!(libc::SYS_perf_event_open, &attr, 0, -1, -1, 0))
    }),
    ("kernel.fanotify", |_| denied(call!(libc::SYS_fanotify_init, 0x200, 0))),
    ("kernel.key-add", |_| denied(call!(libc::SYS_add_key, c"user", c"palisade", c"x", 1, -2))),
    ("kernel.key-request", |_| denied_or(call!(libc::SYS_request_key, c"user", c"palisade-none", 0, -2), &[126])),
    ("kernel.keyring-join", |_| denied(call!(libc::SYS_keyctl, 1, 0))),
    ("kernel.keyring-session", |_| denied_or(call!(libc::SYS_keyctl, 0, -3, 1), &[126])),
    ("kernel.keyring-user", |_| denied_or(call!(libc::SYS_keyctl, 0, -4, 1), &[126])),
    ("kernel.handle-name", |_| {
        let mut handle = [128u32; 34];
        denied(call!(libc::SYS_name_to_handle_at, libc::AT_FDCWD, c".", &mut handle, &mut [0u64; 1], 0))
    }),
    ("kernel.handle-open", |_| {
        steps(|| {
            // Shocker: the root of the host's file system is inode 2.
            let place = open("/workspace").or_else(|_| open("."))?;
            let mut handle = [0u32; 34];
            (handle[0], handle[1], handle[2]) = (8, 1, 2);
            Ok(denied_or(call!(libc::SYS_open_by_handle_at, place, &handle, 0), &[116]))
        })
    }),
    ("kernel.fsopen", |_| denied(call!(libc::SYS_fsopen, c"tmpfs", 0))),
    ("kernel.fsconfig", |_| {
        steps(|| {
            // CVE-2022-0185: parameters of a file system that are longer, added up, than the kernel reckons with.
            let fd = call!(libc::SYS_fsopen, c"ext4", 0).map_err(|why| Said::from_error("fsopen", why))?;
            Ok(denied_or(call!(libc::SYS_fsconfig, fd, 1, c"", c"AAAA", 0), &[libc::EINVAL]))
        })
    }),
    ("kernel.fspick", |_| denied(call!(libc::SYS_fspick, libc::AT_FDCWD, c"/", 0))),
    ("kernel.kexec", |_| denied(call!(libc::SYS_kexec_load, 0, 0, 0, 0))),
    ("kernel.kexec-file", |_| {
        denied_or(call!(libc::SYS_kexec_file_load, -1, -1, 0, 0, 0), &[libc::EBADF, libc::EINVAL])
    }),
    ("kernel.module-load", |_| {
        denied_or(call!(libc::SYS_init_module, c"", 0, c""), &[libc::ENOEXEC, libc::EINVAL, libc::EFAULT])
    }),
    ("kernel.module-load-file", |_| denied_or(call!(libc::SYS_finit_module, -1, c"", 0), &[libc::EBADF, libc::EINVAL])),
    ("kernel.module-remove", |_| {
        denied_or(call!(libc::SYS_delete_module, c"palisade_none", libc::O_NONBLOCK), &[libc::ENOENT])
    }),
    ("kernel.later-calls", |_| {
        // Numbers behind all that were looked at: the next one that escapes are made of has one of them.
        for number in 467..=520 {
            match sys::raw(number, &[]) {
                Err(Errno(libc::ENOSYS)) => {}
                other => return Said::Through(format!("call {number}: {other:?}")),
            }
        }
        Said::Refused("ENOSYS".to_owned())
    }),
    ("kernel.openat2", |_| {
        let how = [0u64; 3];
        denied(call!(libc::SYS_openat2, libc::AT_FDCWD, c".", &how, 24))
    }),
    ("kernel.seccomp-undo", |_| {
        // A filter that allows everything, put on top: the strictest one must still win.
        let program = [0x7fff_0000_0000_0006u64];
        let header = [1u64, program.as_ptr() as u64];
        if let Err(why) = call!(libc::SYS_seccomp, 1, 0, &header) {
            return Said::from_error("seccomp", why);
        }
        unshare(libc::CLONE_NEWUSER as u64)
    }),
    #[cfg(target_arch = "x86_64")]
    ("gates.x32", |_| denied(sys::raw(0x4000_0000 + libc::SYS_getpid, &[]))),
    #[cfg(target_arch = "x86_64")]
    ("gates.x32-unshare", |_| denied(sys::raw(0x4000_0000 + libc::SYS_unshare, &[libc::CLONE_NEWUSER as usize]))),
    #[cfg(target_arch = "x86_64")]
    ("gates.ia32", |_| gate(20, 0)),
    #[cfg(target_arch = "x86_64")]
    ("gates.ia32-unshare", |_| gate(310, libc::CLONE_NEWUSER as u32)),
];

fn open(at: &str) -> Result<usize, Said> {
    sys::open(at, libc::O_RDONLY).map_err(|why| Said::from_error(at, why))
}

fn unshare(flags: u64) -> Said {
    denied(call!(libc::SYS_unshare, flags))
}

fn clone(flags: u64) -> Said {
    let made = call!(libc::SYS_clone, flags | libc::SIGCHLD as u64, 0, 0, 0, 0);
    born(made)
}

fn clone3(flags: u64) -> Said {
    let mut request = [0u64; 11];
    (request[0], request[4]) = (flags, libc::SIGCHLD as u64);
    let made = call!(libc::SYS_clone3, &request, 88);
    born(made)
}

/// A child that was made does nothing.
fn born(made: Result<usize, Errno>) -> Said {
    match made {
        Ok(0) => sys::end(0),
        made => denied(made),
    }
}

/// Does something to another process of the same user.
fn with_child(attack: impl FnOnce(i32) -> Said) -> Said {
    match sys::child(|| {}) {
        Ok(pid) => {
            let said = attack(pid);
            sys::reap(pid);
            said
        }
        Err(why) => Said::Unclear(format!("fork: {why}")),
    }
}

/// Reads or writes eight bytes at an address that a child has in common with its parent.
fn memory(number: i64, pid: i32) -> Said {
    let mut ours = [0u64; 1];
    let theirs = Box::new([7u64; 1]);
    let local = [ours.as_mut_ptr() as usize, 8];
    let remote = [theirs.as_ptr() as usize, 8];
    denied(call!(number, pid, &local, 1, &remote, 1, 0))
}

/// A call by the 32-bit gate of a 64-bit process.
#[cfg(target_arch = "x86_64")]
fn gate(number: u32, first: u32) -> Said {
    let mut value = number;
    // SAFETY: the gate takes its arguments in these registers and gives its result in the first; no memory is touched.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first:r}", "int 0x80", "xchg rbx, {first:r}",
            first = inout(reg) u64::from(first) => _, inout("eax") value,
            in("ecx") 0, in("edx") 0, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    match value as i32 {
        errno @ -4095..=-1 => Said::from_error("", Errno(-errno)),
        value => Said::Through(format!("granted, with {value}")),
    }
}

/// Calls a file system's name for those who need one.
pub(crate) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: u64, data: &CStr) -> Result<usize, Errno> {
    call!(libc::SYS_mount, source, target, kind, flags, data)
}
