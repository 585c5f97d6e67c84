//! System-call filters: what no tool of an agent needs and what escapes are made of.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::Error;

/// Refused with EPERM whatever the arguments.
const REFUSED: &[libc::c_long] = &[
    // Namespaces, roots and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Other processes' memory.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Wide kernel interfaces.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Handles go past path checks.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // The machine itself.
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
];

/// The last system call that was looked at for this list (`removexattrat`, Linux 6.13; one number on all architectures).
/// Whatever comes later is as good as not there.
const LAST: u32 = 466;

/// Families of sockets that a sandbox with a loopback device and nothing else has a use for.
const FAMILIES: &[libc::c_int] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// Namespaces that `clone` must not make.
const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;

/// The filters in the form in which the cell takes them: one number per instruction.
pub(super) fn filters() -> Result<&'static Vec<Vec<u64>>, Error> {
    static FILTERS: OnceLock<Result<Vec<Vec<u64>>, String>> = OnceLock::new();
    FILTERS.get_or_init(compile).as_ref().map_err(|why| Error::Seccomp(why.clone()))
}

fn compile() -> Result<Vec<Vec<u64>>, String> {
    let mut filters = vec![numbers()];
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    let bits = |argument, mask: u64| condition(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), mask);
    let namespaces = (0..64).map(|bit| 1u64 << bit).filter(|bit| NAMESPACES & bit != 0);
    refused.insert(libc::SYS_clone, namespaces.map(|bit| rule(vec![bits(0, bit)?])).collect::<Result<_, _>>()?);
    let mut other = Vec::new();
    for family in FAMILIES {
        other.push(condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, u64::from(family.unsigned_abs()))?);
    }
    // Raw sockets of the allowed families need a capability that nobody has; the other families are refused here.
    refused.insert(libc::SYS_socket, vec![rule(other.clone())?]);
    refused.insert(libc::SYS_socketpair, vec![rule(other)?]);
    // Typing into somebody else's terminal.
    let mut terminal = Vec::new();
    for request in [libc::TIOCSTI, libc::TIOCLINUX] {
        terminal.push(rule(vec![condition(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?])?);
    }
    refused.insert(libc::SYS_ioctl, terminal);
    // A file that sets its user's id has no power here, and need not be made either.
    let mut modes = Vec::new();
    for bit in [libc::S_ISUID, libc::S_ISGID] {
        modes.push(u64::from(bit));
    }
    for (call, argument) in chmods() {
        refused.insert(call, modes.iter().map(|&bit| rule(vec![bits(argument, bit)?])).collect::<Result<_, _>>()?);
    }
    // Nor may it be born that way. The mode counts only where a file is created.
    let creating = [libc::O_CREAT, libc::O_TMPFILE & !libc::O_DIRECTORY].map(|bit| u64::from(bit.unsigned_abs()));
    for (call, flags, argument) in opens() {
        let mut rules = Vec::new();
        for &mode in &modes {
            match flags {
                Some(flags) => {
                    for create in creating {
                        rules.push(rule(vec![bits(flags, create)?, bits(argument, mode)?])?);
                    }
                }
                None => rules.push(rule(vec![bits(argument, mode)?])?),
            }
        }
        refused.insert(call, rules);
    }
    // Limits of another process: the cell's are the same user's to set.
    let other = condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0)?;
    let setting = condition(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
    refused.insert(libc::SYS_prlimit64, vec![rule(vec![other, setting.clone()])?]);
    filters.push(build(refused, libc::EPERM)?);
    // A structure in memory cannot be looked at: programs fall back to the older calls, whose arguments can.
    let unknown = [libc::SYS_clone3, libc::SYS_openat2].map(|call| (call, Vec::new()));
    filters.push(build(BTreeMap::from(unknown), libc::ENOSYS)?);
    // The limit of core dumps stays as the cell has set it. Many programs that guard secrets lower it and end when they
    // cannot, so they are told that they have.
    let core = |argument| condition(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(libc::RLIMIT_CORE));
    let limits = BTreeMap::from([
        (libc::SYS_setrlimit, vec![rule(vec![core(0)?])?]),
        (libc::SYS_prlimit64, vec![rule(vec![core(1)?, setting])?]),
    ]);
    filters.push(build(limits, 0)?);
    Ok(filters)
}

fn chmods() -> Vec<(i64, u8)> {
    vec![
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_chmod, 1),
        (libc::SYS_fchmod, 1),
        (libc::SYS_fchmodat, 2),
        (452, 2), // fchmodat2
    ]
}

/// Calls that create files: where their flags are, if they have any, and their mode.
fn opens() -> Vec<(i64, Option<u8>, u8)> {
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

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, String> {
    SeccompCondition::new(argument, length, operator, value).map_err(|why| why.to_string())
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, String> {
    SeccompRule::new(conditions).map_err(|why| why.to_string())
}

fn build(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> Result<Vec<u64>, String> {
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(|why| format!("{why:?}"))?;
    let action = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).map_err(|why| why.to_string())?;
    let program: BpfProgram = filter.try_into().map_err(|why| format!("{why:?}"))?;
    Ok(program.iter().map(|op| word(op.code, op.jt, op.jf, op.k)).collect())
}

fn word(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    u64::from(code) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32
}

/// Numbers out of range. The x32 interface of x86_64 numbers the same calls anew: all of it is refused, or it would go past
/// the other filters.
fn numbers() -> Vec<u64> {
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, offset 0
    const JUMP_GE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const JUMP_GT: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    vec![
        word(LOAD_NUMBER, 0, 0, 0),
        word(JUMP_GE, 0, 1, 0x4000_0000),
        word(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        word(JUMP_GT, 0, 1, LAST),
        word(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
        word(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
