//! System-call filters: what programs need is allowed, everything else is not there.

mod allowed;
mod bpf;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bpf::{Condition, Verdict};
use palisade_cell::filter_bytes;

/// The last system call that was looked at for these lists (`removexattrat`, Linux 6.13; one number on all architectures).
/// Whatever comes later is as good as not there.
const LAST: u32 = 466;

/// Families of sockets that a sandbox with a loopback device and nothing else has a use for.
const FAMILIES: [libc::c_int; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// What the internet families are used for, besides what a kind of socket has by itself (0).
const PROTOCOLS: [libc::c_int; 2] = [libc::IPPROTO_TCP, libc::IPPROTO_UDP];

/// Of the kinds of sockets, streams (1) and datagrams (2) have none of these bits, nor have raw ones (3); sequences of packets
/// (5) and what DCCP has (6) do.
const OTHER_KINDS: u32 = 0b1100;

/// Namespaces that `clone` must not make.
const NAMESPACES: u32 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u32;

/// All processes of a user, as `setpriority` and `ioprio_set` number them.
const PRIO_USER: u32 = 2;
const IOPRIO_WHO_USER: u32 = 3;

/// Calls that the cell makes between its two filters, and nobody after it.
const BUILDING: &[libc::c_long] = &[
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_sethostname,
];

/// The filter for everything that runs in a sandbox, as raw bytes. It leaves the calls that the cell still needs to
/// [`seal`].
pub(super) fn base() -> &'static [u8] {
    static FILTER: OnceLock<Vec<u8>> = OnceLock::new();
    FILTER.get_or_init(|| filter_bytes(&bpf::program(&verdicts(), &Verdict::Answer(libc::ENOSYS), LAST)))
}

/// The filter that takes what only the cell needed, as raw bytes.
pub(super) fn seal() -> &'static [u8] {
    static FILTER: OnceLock<Vec<u8>> = OnceLock::new();
    FILTER.get_or_init(|| {
        let verdicts = BUILDING.iter().map(|&call| (number(call), Verdict::Answer(libc::EPERM))).collect();
        filter_bytes(&bpf::program(&verdicts, &Verdict::Allow, LAST))
    })
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

fn verdicts() -> BTreeMap<u32, Verdict> {
    let mut verdicts = BTreeMap::new();
    let mut say = |call: libc::c_long, verdict: Verdict| {
        verdicts.insert(number(call), verdict);
    };
    for &call in allowed::ALLOWED.iter().chain(BUILDING) {
        say(call, Verdict::Allow);
    }
    for &call in allowed::REFUSED {
        say(call, Verdict::Answer(libc::EPERM));
    }
    let eperm = |conditions| (conditions, libc::EPERM);
    // The structures of `clone3` and `openat2` are in memory and cannot be looked at; both stay "not there", so that
    // programs fall back to the older calls, whose arguments can.
    say(libc::SYS_clone, Verdict::Unless(vec![eperm(vec![Condition::AnyBit(0, NAMESPACES)])]));
    let families = FAMILIES.map(|family| Condition::NotEqual(0, family.unsigned_abs())).to_vec();
    // Raw sockets of the allowed families need a capability that nobody has; the other families are refused here. So are the
    // other protocols of the internet families: to ask for one is enough for the kernel to load the module that has it.
    let internet = |condition| vec![Condition::NotEqual(0, libc::AF_UNIX.unsigned_abs()), condition];
    let mut protocols = internet(Condition::NotEqual(2, 0));
    protocols.extend(PROTOCOLS.map(|protocol| Condition::NotEqual(2, protocol.unsigned_abs())));
    let kinds = internet(Condition::AnyBit(1, OTHER_KINDS));
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        let rules = vec![
            eperm(families.clone()),
            (kinds.clone(), libc::ESOCKTNOSUPPORT),
            (protocols.clone(), libc::EPROTONOSUPPORT),
        ];
        say(call, Verdict::Unless(rules));
    }
    // Typing into somebody else's terminal; and disciplines of terminals, which the kernel loads modules for as well.
    let terminal = [libc::TIOCSTI, libc::TIOCLINUX, libc::TIOCSETD];
    let terminal = terminal.map(|request| eperm(vec![Condition::Equal(1, request as u32)]));
    say(libc::SYS_ioctl, Verdict::Unless(terminal.to_vec()));
    // A file that sets its user's id has no power here, and need not be made either.
    let set_id = libc::S_ISUID | libc::S_ISGID;
    for (call, mode) in chmods() {
        say(call, Verdict::Unless(vec![eperm(vec![Condition::AnyBit(mode, set_id)])]));
    }
    // Nor may it be born that way. The mode counts only where a file is created.
    let creating = (libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY)).unsigned_abs();
    for (call, flags, mode) in opens() {
        let mut conditions = vec![Condition::AnyBit(mode, set_id)];
        conditions.extend(flags.map(|flags| Condition::AnyBit(flags, creating)));
        let mut rules = vec![eperm(conditions)];
        if flags.is_none() {
            // Character and block devices share a bit that files, pipes and sockets do not have.
            rules.push(eperm(vec![Condition::AnyBit(mode, libc::S_IFCHR)]));
        }
        say(call, Verdict::Unless(rules));
    }
    // Limits of another process: the cell's are the same user's to set. The limit of core dumps stays as the cell has set it:
    // many programs that guard secrets lower it and end when they cannot, so they are told that they have.
    let (other, setting) = (Condition::NotEqual(0, 0), Condition::Given(2));
    let core = |argument| Condition::Equal(argument, libc::RLIMIT_CORE);
    say(libc::SYS_prlimit64, Verdict::Unless(vec![eperm(vec![other, setting.clone()]), (vec![core(1), setting], 0)]));
    say(libc::SYS_setrlimit, Verdict::Unless(vec![(vec![core(0)], 0)]));
    // Its place at the processors and disks is as much the same user's to take: of the cell itself, and of the thread that it
    // keeps, which is its first. Others of its threads come and go.
    let cell = |argument| [1, 2].map(|thread| eperm(vec![Condition::Equal(argument, thread)])).to_vec();
    let scheduling =
        [libc::SYS_sched_setparam, libc::SYS_sched_setscheduler, libc::SYS_sched_setattr, libc::SYS_sched_setaffinity];
    for call in scheduling {
        say(call, Verdict::Unless(cell(0)));
    }
    for (call, everybody) in [(libc::SYS_setpriority, PRIO_USER), (libc::SYS_ioprio_set, IOPRIO_WHO_USER)] {
        let mut rules = cell(1);
        rules.push(eperm(vec![Condition::Equal(0, everybody)]));
        say(call, Verdict::Unless(rules));
    }
    verdicts
}

/// Calls that change a mode, and where it is.
fn chmods() -> Vec<(libc::c_long, u32)> {
    vec![
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_chmod, 1),
        (libc::SYS_fchmod, 1),
        (libc::SYS_fchmodat, 2),
        (452, 2), // fchmodat2
    ]
}

/// Calls that create files: where their flags are, if they have any, and their mode.
fn opens() -> Vec<(libc::c_long, Option<u32>, u32)> {
    vec![
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, Some(1), 2),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_creat, None, 1),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_mknod, None, 1),
        (libc::SYS_openat, Some(2), 3),
        (libc::SYS_mknodat, None, 2),
    ]
}
