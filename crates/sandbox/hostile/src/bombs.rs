//! Programs that take more than they were given. Each stops at an amount that a machine without limits can bear, and each
//! gives back what it took by ending. `limit` is what the sandbox may use; `ms` how long to keep at it.

use crate::sys::{self, Errno, call, path};
use crate::{Attempt, Facts, Said};

const MIB: u64 = 1 << 20;

pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("processes.fork", |facts| processes(facts, || {})),
    ("processes.sessions", |facts| processes(facts, || _ = call!(libc::SYS_setsid))),
    ("processes.groups", |facts| processes(facts, || _ = call!(libc::SYS_setpgid, 0, 0))),
    ("processes.siblings", |facts| {
        // Children of PID 1 rather than one's own.
        many(facts, |_| match call!(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) {
            Ok(0) => sys::rest(),
            made => made,
        })
    }),
    ("processes.orphans", |facts| {
        many(facts, |_| {
            let pid = sys::fork()?;
            if pid == 0 {
                let _ = call!(libc::SYS_setsid);
                let made = sys::fork();
                match made {
                    Ok(0) => sys::rest(),
                    Ok(_) => sys::end(0),
                    Err(_) => sys::end(1),
                }
            }
            let mut status = 0;
            // SAFETY: the status lives through the call.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if libc::WEXITSTATUS(status) == 0 { Ok(1) } else { Err(Errno(libc::EAGAIN)) }
        })
    }),
    ("processes.zombies", |facts| {
        many(facts, |_| match sys::fork() {
            Ok(0) => sys::end(0),
            made => made.map(|pid| pid as usize),
        })
    }),
    ("processes.threads", |facts| {
        many(facts, |_| {
            let thread = std::thread::Builder::new().stack_size(16 << 10).spawn(|| sys::rest());
            thread.map(|_| 0).map_err(|why| Errno::of(&why))
        })
    }),
    ("processes.churn", |facts| {
        sys::for_ms(facts.number("ms"), || {
            if let Ok(0) = sys::fork() {
                let _ = sys::fork();
                let _ = sys::fork();
                sys::end(0);
            }
            // SAFETY: a null pointer is allowed where the status is not wanted.
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        });
        Said::Unclear("forked without pause".to_owned())
    }),
    ("processes.churn-detached", |facts| {
        sys::for_ms(facts.number("ms"), || {
            if let Ok(0) = sys::fork() {
                let _ = call!(libc::SYS_setsid);
                if let Ok(0) = sys::fork() {
                    sys::pause(20);
                }
                sys::end(0);
            }
            // SAFETY: a null pointer is allowed where the status is not wanted.
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        });
        Said::Unclear("forked orphans without pause".to_owned())
    }),
    ("processes.spin", |facts| {
        for _ in 0..32 {
            let _ = sys::child(|| sys::for_ms(1500, std::hint::spin_loop));
        }
        sys::for_ms(facts.number("ms"), std::hint::spin_loop);
        Said::Unclear("kept the processors busy".to_owned())
    }),
    ("memory.anonymous", |facts| memory(facts, 0)),
    ("memory.shared", |facts| memory(facts, libc::MAP_SHARED)),
    ("memory.children", |facts| {
        // Each below the limit, all together far above it: what counts is who holds its part at the same time.
        let part = facts.number("limit") / 4;
        let mut ends = [0; 2];
        // SAFETY: the array has room for the two descriptors.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK) } != 0 {
            return Said::Unclear("no pipe".to_owned());
        }
        let mut children = Vec::new();
        for index in 0..16u8 {
            let Ok(pid) = sys::fork() else { break };
            if pid == 0 {
                touch(part);
                // SAFETY: the byte lives through the call.
                unsafe { libc::write(ends[1], [index].as_ptr().cast(), 1) };
                loop {
                    sys::pause(1000);
                }
            }
            children.push(pid);
        }
        let (mut ready, mut dead) = ([false; 16], [false; 16]);
        // Until each has its part or is gone; whoever gets neither is slow, which is no success. One that is gone does not
        // hold its part any more, whether it had it before or not.
        for _ in 0..1000 {
            let mut byte = 0u8;
            // SAFETY: the byte lives through the call.
            while unsafe { libc::read(ends[0], (&raw mut byte).cast(), 1) } == 1 {
                ready[usize::from(byte)] = true;
            }
            for (index, pid) in children.iter().enumerate() {
                dead[index] = dead[index] || gone(*pid);
            }
            if (0..children.len()).all(|index| ready[index] || dead[index]) {
                break;
            }
            sys::pause(10);
        }
        // Who was ended needs a while to be gone, and its memory is free before that; who holds its part holds it until the end.
        let mut alive = children.len();
        for _ in 0..150 {
            for (index, pid) in children.iter().enumerate() {
                dead[index] = dead[index] || gone(*pid);
            }
            alive = (0..children.len()).filter(|index| ready[*index] && !dead[*index]).count();
            if alive <= 4 {
                break;
            }
            sys::pause(20);
        }
        let ended = dead.iter().filter(|dead| **dead).count();
        for (index, pid) in children.iter().enumerate() {
            if !dead[index] {
                // SAFETY: no pointers; the number is a child's that was not collected.
                unsafe { libc::kill(*pid, libc::SIGKILL) };
            }
        }
        if alive > 4 {
            Said::Through(format!("{alive} children hold {part} bytes each"))
        } else {
            Said::Refused(format!("{alive} children hold their part, {ended} were ended"))
        }
    }),
    ("memory.file-in-memory", |facts| {
        let fd = match call!(libc::SYS_memfd_create, c"bomb", 0) {
            Ok(fd) => fd,
            Err(why) => return Said::from_error("memfd_create", why),
        };
        fill(fd, facts.number("limit") * 4, "memory")
    }),
    ("memory.shared-segment", |facts| {
        let wanted = facts.number("limit") * 4;
        match call!(libc::SYS_shmget, 0, wanted, 0o1600).and_then(|id| call!(libc::SYS_shmat, id, 0, 0)) {
            Ok(at) => {
                for page in (0..wanted as usize).step_by(4096) {
                    // SAFETY: the segment was attached at this address and is as long as was asked for.
                    unsafe { ((at + page) as *mut u8).write_volatile(1) };
                }
                Said::Through(format!("{wanted} bytes"))
            }
            Err(why) => refused(why),
        }
    }),
    ("memory.page-tables", |facts| {
        // One page of tables for each touch of the same page of zeros.
        let touches = facts.number("limit") * 4 / 4096;
        let length = touches << 21;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        match call!(libc::SYS_mmap, 0, length, libc::PROT_READ, flags, -1, 0) {
            Ok(at) => {
                let _ = call!(libc::SYS_madvise, at, length, libc::MADV_NOHUGEPAGE);
                for touch in 0..touches as usize {
                    // SAFETY: the mapping begins at this address and is as long as was asked for.
                    unsafe { ((at + (touch << 21)) as *const u8).read_volatile() };
                }
                Said::Through(format!("{touches} pages of tables"))
            }
            Err(why) => refused(why),
        }
    }),
    ("memory.pipes", |facts| {
        let wanted = facts.number("limit") * 4;
        let page = vec![1u8; MIB as usize];
        let mut held = 0;
        while held < wanted {
            let mut ends = [0i32; 2];
            if let Err(why) = call!(libc::SYS_pipe2, &mut ends, libc::O_NONBLOCK) {
                return Said::Refused(format!("{why} at {held} bytes"));
            }
            let _ = call!(libc::SYS_fcntl, ends[1], libc::F_SETPIPE_SZ, MIB);
            held += call!(libc::SYS_write, ends[1], page.as_ptr() as usize, page.len()).unwrap_or(0) as u64;
        }
        Said::Through(format!("{held} bytes"))
    }),
    ("memory.sockets", |facts| {
        let wanted = facts.number("limit") * 4;
        let page = vec![1u8; 32 << 10];
        let mut held = 0;
        while held < wanted {
            let mut ends = [0i32; 2];
            let made =
                call!(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0, &mut ends);
            if let Err(why) = made {
                return Said::Refused(format!("{why} at {held} bytes"));
            }
            while let Ok(sent) = call!(libc::SYS_write, ends[1], page.as_ptr() as usize, page.len()) {
                held += sent as u64;
            }
        }
        Said::Through(format!("{held} bytes"))
    }),
    ("memory.locked", |_| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        match call!(libc::SYS_mmap, 0, 64 * MIB, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
            .and_then(|at| call!(libc::SYS_mlock, at, 64 * MIB))
        {
            Ok(_) => Said::Through("64 MiB locked".to_owned()),
            Err(why) => refused(why),
        }
    }),
    ("places.tmp", |facts| place(facts, "/tmp")),
    ("places.home", |facts| place(facts, "/home/agent")),
    ("places.run", |facts| place(facts, "/run")),
    ("places.shared-memory", |facts| place(facts, "/dev/shm")),
    ("places.tmp-names", |facts| names(facts, "/tmp")),
    ("places.home-names", |facts| names(facts, "/home/agent")),
    ("places.run-names", |facts| names(facts, "/run")),
    ("places.shared-memory-names", |facts| names(facts, "/dev/shm")),
    ("places.workspace", |facts| place(facts, "/workspace")),
    ("places.outputs", |facts| place(facts, "/mnt/session/outputs")),
    ("places.workspace-allocation", |facts| {
        match open("allocated").and_then(|fd| call!(libc::SYS_fallocate, fd, 0, 0, facts.number("limit") * 4)) {
            Ok(_) => Said::Through("more than the workspace may hold".to_owned()),
            Err(why) => refused(why),
        }
    }),
    ("places.workspace-names", |facts| names(facts, "/workspace")),
    ("places.outputs-names", |facts| names(facts, "/mnt/session/outputs")),
    ("places.long-file", |facts| {
        ignore(libc::SIGXFSZ);
        match open("long").and_then(|fd| call!(libc::SYS_ftruncate, fd, facts.number("limit") + 1)) {
            Ok(_) => Said::Through("a longer file than allowed".to_owned()),
            Err(why) => refused(why),
        }
    }),
    ("places.long-write", |facts| {
        ignore(libc::SIGXFSZ);
        let fd = match open("long") {
            Ok(fd) => fd,
            Err(why) => return Said::Unclear(why.to_string()),
        };
        fill(fd, facts.number("limit") * 2, "file")
    }),
    ("places.long-allocation", |facts| {
        ignore(libc::SIGXFSZ);
        match open("long").and_then(|fd| call!(libc::SYS_fallocate, fd, 0, 0, facts.number("limit") * 2)) {
            Ok(_) => Said::Through("a longer file than allowed".to_owned()),
            Err(why) => refused(why),
        }
    }),
    ("resources.descriptors", |facts| many(facts, |_| call!(libc::SYS_dup, 0))),
    ("resources.descriptor-limit", |_| {
        match call!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, &[1u64 << 20, 1 << 20], 0) {
            Ok(_) => Said::Through("raised".to_owned()),
            Err(why) => refused(why),
        }
    }),
    ("resources.process-limit", |_| {
        match call!(libc::SYS_prlimit64, 0, libc::RLIMIT_NPROC, &[u64::MAX, u64::MAX], 0) {
            Ok(_) => Said::Through("raised".to_owned()),
            Err(why) => refused(why),
        }
    }),
    ("resources.passed-descriptors", |facts| {
        many(facts, |_| {
            let mut ends = [0i32; 2];
            call!(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_DGRAM, 0, &mut ends)
        })
    }),
    ("resources.message-queues", |_| {
        match call!(libc::SYS_mq_open, c"bomb", libc::O_CREAT | libc::O_RDWR, 0o600, &[0u64, 10, 8192, 0, 0, 0, 0, 0]) {
            Ok(_) => Said::Through("a queue".to_owned()),
            Err(why) => refused(why),
        }
    }),
    // These are held, so that the host can see whether its own users still get what it takes.
    ("resources.inotify-instances", |facts| held(facts, |_| call!(libc::SYS_inotify_init1, 0))),
    ("resources.inotify-watches", |facts| {
        let Ok(fd) = call!(libc::SYS_inotify_init1, 0) else { return Said::Unclear("inotify_init1".to_owned()) };
        let many = facts.text("role") == "hold";
        let _ = many.then(|| std::fs::create_dir("/tmp/watched"));
        // As many as there may be is more than this makes on a large machine: a quarter tells as well.
        let all = sys::read("/proc/sys/fs/inotify/max_user_watches").unwrap_or_default();
        let all = String::from_utf8_lossy(&all).trim().parse().unwrap_or(u64::MAX);
        held(facts, |n| {
            if n > (all / 4).max(4096) {
                let _ = Said::Through(format!("{n} of {all} are held")).tell();
                sys::rest();
            }
            let at = if many { format!("/tmp/watched/{n}") } else { "watched".to_owned() };
            sys::make(&at, "")?;
            call!(libc::SYS_inotify_add_watch, fd, &path(&at), libc::IN_OPEN)
        })
    }),
    ("resources.timers", |facts| {
        held(facts, |_| {
            let mut timer = [0i32];
            call!(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, 0, &mut timer)
        })
    }),
    ("resources.pending-signals", |facts| {
        let set = [1u64 << (libc::SIGRTMIN() - 1)];
        let _ = call!(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &set, 0, 8);
        held(facts, |_| {
            let mut info = [0i32; 32];
            (info[0], info[2]) = (libc::SIGRTMIN(), libc::SI_QUEUE);
            call!(libc::SYS_rt_sigqueueinfo, std::process::id(), libc::SIGRTMIN(), &info)
        })
    }),
    ("resources.epoll-watches", |facts| {
        let Ok(fd) = call!(libc::SYS_epoll_create1, 0) else { return Said::Unclear("epoll_create1".to_owned()) };
        held(facts, |_| {
            let mut ends = [0i32; 2];
            call!(libc::SYS_pipe2, &mut ends, 0)?;
            let event = [0u32; 4];
            call!(libc::SYS_epoll_ctl, fd, libc::EPOLL_CTL_ADD, ends[0], &event)
        })
    }),
    ("resources.pipe-pages", |facts| {
        held(facts, |_| {
            // Pages of all pipes of one user: past a limit, new ones get but one page each.
            let mut ends = [0i32; 2];
            call!(libc::SYS_pipe2, &mut ends, 0)?;
            let size = call!(libc::SYS_fcntl, ends[1], libc::F_GETPIPE_SZ)?;
            if size < 65536 {
                return Err(Errno(libc::EMFILE));
            }
            if facts.text("role") == "hold" {
                call!(libc::SYS_fcntl, ends[1], libc::F_SETPIPE_SZ, MIB).or(Ok(0))
            } else {
                Ok(0)
            }
        })
    }),
    ("resources.file-locks", |facts| {
        held(facts, |n| {
            let fd = open("locked")?;
            let lock = [1i64, n as i64 * 2, 1, 0];
            call!(libc::SYS_fcntl, fd, libc::F_OFD_SETLK, &lock)
        })
    }),
];

fn refused(why: Errno) -> Said {
    match why.0 {
        libc::EAGAIN | libc::EINVAL => Said::Refused(why.to_string()),
        _ => Said::from_error("", why),
    }
}

fn ignore(signal: i32) {
    // SAFETY: to ignore a signal needs no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

fn open(at: &str) -> Result<usize, Errno> {
    sys::open(at, libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC)
}

/// Makes one after the other until it is refused, or twice as many as allowed are there.
fn many(facts: &Facts, mut one: impl FnMut(u64) -> Result<usize, Errno>) -> Said {
    let limit = facts.number("limit");
    for made in 0..limit * 2 {
        if let Err(why) = one(made) {
            return Said::Refused(format!("{why} at {made}"));
        }
    }
    Said::Through(format!("{} of {limit}", limit * 2))
}

fn processes(facts: &Facts, each: impl Fn()) -> Said {
    let mut made = Vec::new();
    let said = many(facts, |_| {
        let pid = sys::child(&each)?;
        made.push(pid);
        Ok(0)
    });
    // Kept for a moment: the worker must be answered meanwhile.
    sys::pause(facts.number("ms"));
    made.into_iter().for_each(sys::reap);
    said
}

fn touch(bytes: u64) {
    let mut taken = vec![0u8; bytes as usize];
    for page in taken.chunks_mut(4096) {
        page[0] = 1;
    }
    // It stays taken.
    std::hint::black_box(taken.leak());
}

fn memory(facts: &Facts, flags: i32) -> Said {
    let wanted = facts.number("limit") * 4;
    let flags = if flags == 0 { libc::MAP_PRIVATE } else { flags } | libc::MAP_ANONYMOUS;
    match call!(libc::SYS_mmap, 0, wanted, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) {
        Ok(at) => {
            for page in (0..wanted as usize).step_by(4096) {
                // SAFETY: the mapping begins at this address and is as long as was asked for.
                unsafe { ((at + page) as *mut u8).write_volatile(1) };
            }
            Said::Through(format!("{wanted} bytes"))
        }
        Err(why) => refused(why),
    }
}

fn fill(fd: usize, wanted: u64, what: &str) -> Said {
    let block = vec![1u8; MIB as usize];
    let mut written = 0;
    while written < wanted {
        match call!(libc::SYS_write, fd, block.as_ptr() as usize, block.len()) {
            Ok(more) => written += more as u64,
            Err(why) => return refused(why),
        }
    }
    Said::Through(format!("{written} bytes of {what}"))
}

fn place(facts: &Facts, at: &str) -> Said {
    let name = format!("{at}/fill");
    let said = match open(&name) {
        Ok(fd) => fill(fd, facts.number("limit") * 4, at),
        Err(why) => Said::from_error("", why),
    };
    let _ = std::fs::remove_file(&name);
    said
}

fn names(facts: &Facts, at: &str) -> Said {
    let mut made = 0;
    let said = many(facts, |n| {
        let done = call!(libc::SYS_mknodat, libc::AT_FDCWD, &path(&format!("{at}/{n}")), libc::S_IFREG | 0o600, 0);
        made += u64::from(done.is_ok());
        done
    });
    for n in 0..made {
        let _ = std::fs::remove_file(format!("{at}/{n}"));
    }
    said
}

/// Takes one, in the role `one`: it must be granted. Else takes all there are, and keeps them until the end.
fn held(facts: &Facts, mut one: impl FnMut(u64) -> Result<usize, Errno>) -> Said {
    if facts.text("role") == "one" {
        return match one(0) {
            Ok(_) => Said::Refused("there is enough for others".to_owned()),
            Err(why) => Said::Through(format!("others get none: {why}")),
        };
    }
    let mut taken = 0;
    while taken < facts.number("limit") && one(taken).is_ok() {
        taken += 1;
    }
    let _ = Said::Unclear(format!("{taken} are held")).tell();
    sys::rest()
}

/// Whether a child has ended; it is collected then.
fn gone(pid: i32) -> bool {
    let mut status = 0;
    // SAFETY: the status lives through the call.
    unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) != 0 }
}
