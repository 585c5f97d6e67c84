//! Programs that ask the kernel for what escapes are made of. Each is judged by what it got.

use std::time::Duration;

use palisade_sandbox::Facility;
use serde_json::json;

use crate::rig::Rig;

/// Calls by number, so that a program of any language can make them: name, number on x86_64, number on aarch64, arguments
/// in Perl. All of them must be refused.
const REFUSED: &[(&str, i32, i32, &str)] = &[
    ("mount", 165, 40, r#""none", "/tmp", "tmpfs", 0, 0"#),
    ("umount2", 166, 39, r#""/proc", 2"#),
    ("pivot_root", 155, 41, r#"".", ".""#),
    ("chroot", 161, 51, r#""/tmp""#),
    ("unshare user", 272, 97, "0x10000000"),
    ("unshare mount", 272, 97, "0x20000"),
    ("unshare time", 272, 97, "0x80"),
    ("setns", 308, 268, "0, 0"),
    ("clone user", 56, 220, "0x10000011, 0, 0, 0, 0"),
    ("clone net", 56, 220, "0x40000011, 0, 0, 0, 0"),
    ("clone mount and user", 56, 220, "0x10020011, 0, 0, 0, 0"),
    ("clone3", 435, 435, r#"my $a = pack("Q11", 0x10000000, (0) x 3, 17, (0) x 6), 88"#),
    ("clone3 plain", 435, 435, r#"my $a = pack("Q11", (0) x 4, 17, (0) x 6), 88"#),
    ("openat2", 437, 437, r#"-100, "/etc/passwd", my $h = pack("Q3", 0, 0, 0), 24"#),
    ("open_tree", 428, 428, r#"-100, "/", 1"#),
    ("move_mount", 429, 429, r#"-100, "/tmp", -100, "/run", 0"#),
    ("fsopen", 430, 430, r#""tmpfs", 0"#),
    ("mount_setattr", 442, 442, r#"-100, "/", 0, my $m = pack("Q4", 0, 1, 0, 0), 32"#),
    ("open_tree_attr", 467, 467, r#"-100, "/", 1, 0, 0"#),
    ("ptrace traceme", 101, 117, "0, 0, 0, 0"),
    ("ptrace attach cell", 101, 117, "16, 1, 0, 0"),
    ("ptrace seize parent", 101, 117, "0x4206, getppid(), 0, 0"),
    ("process_vm_readv cell", 310, 270, "1, 0, 0, 0, 0, 0"),
    ("process_vm_readv parent", 310, 270, "getppid(), 0, 0, 0, 0, 0"),
    ("process_vm_writev", 311, 271, "1, 0, 0, 0, 0, 0"),
    ("pidfd_getfd", 438, 438, "0, 0, 0"),
    ("kcmp", 312, 272, "1, 1, 0, 0, 0"),
    ("bpf", 321, 280, r#"0, my $b = "\0" x 120, 120"#),
    ("perf_event_open", 298, 241, r#"my $p = "\0" x 128, 0, -1, -1, 0"#),
    ("io_uring_setup", 425, 425, r#"8, my $u = "\0" x 120"#),
    ("io_uring_enter", 426, 426, "0, 0, 0, 0, 0, 0"),
    ("userfaultfd", 323, 282, "0"),
    ("fanotify_init", 300, 262, "0, 0"),
    ("add_key", 248, 217, r#""user", "k", "v", 1, -3"#),
    ("request_key", 249, 218, r#""user", "k", 0, -3"#),
    ("keyctl", 250, 219, "0, -3, 1"),
    ("keyctl join", 250, 219, "1, 0"),
    ("open_by_handle_at", 304, 265, r#"0, my $h = pack("l2a128", 8, 1, ""), 0"#),
    ("name_to_handle_at", 303, 264, r#"-100, "/workspace", my $n = pack("l2a128", 128, 0, ""), my $i = "\0" x 8, 0"#),
    ("kexec_load", 246, 104, "0, 0, 0, 0"),
    ("init_module", 175, 105, r#""", 0, """#),
    ("finit_module", 313, 273, r#"0, "", 0"#),
    ("delete_module", 176, 106, r#""x", 0"#),
    ("reboot", 169, 142, "0xfee1dead, 672274793, 0x1234567, 0"),
    ("swapon", 167, 224, r#""/tmp/x", 0"#),
    ("acct", 163, 89, "0"),
    ("quotactl", 179, 60, "0, 0, 0, 0"),
    ("syslog", 103, 116, r#"3, my $l = "\0" x 4096, 4096"#),
    ("settimeofday", 164, 170, r#"my $t = pack("q2", 0, 0), 0"#),
    ("clock_settime", 227, 112, r#"0, my $t = pack("q2", 0, 0)"#),
    ("sethostname", 170, 161, r#""x", 1"#),
    ("setdomainname", 171, 162, r#""x", 1"#),
    ("personality", 135, 92, "0x0040000"),
    ("vhangup", 153, 58, ""),
    ("move_pages", 279, 239, "0, 0, 0, 0, 0, 0"),
    ("mknod device", 133, 33, r#""/tmp/sda", 0060666, 0x0800"#),
    ("chmod setuid", 90, 53, r#""/tmp/f", 04755"#),
    ("fchmodat2 setuid", 452, 452, r#"-100, "/tmp/f", 06755, 0"#),
    ("socket netlink", 41, 198, "16, 3, 0"),
    ("socket packet", 41, 198, "17, 3, 0x300"),
    ("socket vsock", 41, 198, "40, 1, 0"),
    ("socket alg", 41, 198, "38, 5, 0"),
    ("socket bluetooth", 41, 198, "31, 3, 1"),
    ("socket can", 41, 198, "29, 3, 1"),
    ("socket xdp", 41, 198, "44, 3, 0"),
    ("socket raw", 41, 198, "2, 3, 1"),
    ("socket raw 6", 41, 198, "10, 3, 58"),
    ("socketpair netlink", 53, 199, r#"16, 3, 0, my $s = "\0" x 8"#),
    ("ioctl TIOCSTI", 16, 29, r#"0, 0x5412, my $c = "x""#),
    ("ioctl TIOCLINUX", 16, 29, r#"0, 0x541c, my $c = "\3""#),
    ("setuid 0", 105, 146, "0"),
    ("setresuid 0", 117, 147, "0, 0, 0"),
    ("setgroups", 116, 159, "0, 0"),
    ("capset", 126, 91, r#"my $h = pack("LL", 0x20080522, 0), my $d = pack("L6", (0xffffffff) x 6)"#),
    ("prctl bounding set", 157, 167, "24, 0, 0, 0, 0"),
    ("prctl ambient", 157, 167, "47, 2, 21, 0, 0"),
    ("prctl securebits", 157, 167, "28, 0, 0, 0, 0"),
    ("prctl no_new_privs off", 157, 167, "38, 0, 0, 0, 0"),
    ("nice below zero", 141, 140, "0, 0, -10"),
    ("sched_setscheduler fifo", 144, 119, r#"0, 1, my $s = pack("l", 1)"#),
    ("later than all that is known", 999, 999, "0, 0, 0, 0, 0, 0"),
];

#[tokio::test]
async fn calls_that_escapes_are_made_of_are_refused() {
    let rig = Rig::new().await;
    let mut program = "open F, '>', '/tmp/f'; $| = 1;\n".to_owned();
    for (name, x86_64, aarch64, arguments) in REFUSED {
        let number = if cfg!(target_arch = "x86_64") { x86_64 } else { aarch64 };
        // A child that a clone has made must not go on as a second program.
        program.push_str(&format!(
            "{{ my $me = $$; my @a = ({arguments}); my $r = syscall({number}, @a); exit if $$ != $me; print '{name}: ', ($r == -1 ? 'no' : 'YES'), \"\\n\" }}\n"
        ));
    }
    program.push_str("print 'end'");
    let said = rig.perl(&program).await;
    let granted: Vec<&str> = said.lines().filter(|line| !line.ends_with(": no")).collect();
    assert_eq!(granted, ["end"], "{said}");
    assert_eq!(said.lines().count(), REFUSED.len() + 1);
    // The second lock on the same door: even without the filters, no user namespace below this one.
    assert_eq!(rig.bash("cat /proc/sys/user/max_user_namespaces").await, "0");
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn other_ways_into_the_kernel_are_closed() {
    let rig = Rig::new().await;
    // x32: getpid by its other number.
    let (status, _) = rig.run(&["/usr/bin/perl", "-e", "syscall(0x40000000 + 39); print 'alive'"]).await;
    assert_eq!(status.signal, Some(31));
    // The 32-bit gate: `mov eax, 20; int 0x80; ret` as a program of its own.
    let mut elf = Vec::new();
    elf.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    elf.extend(0x40_0078u64.to_le_bytes());
    elf.extend(64u64.to_le_bytes());
    elf.extend(0u64.to_le_bytes());
    elf.extend(*b"\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0");
    elf.extend(*b"\x01\0\0\0\x05\0\0\0");
    for word in [0u64, 0x40_0000, 0x40_0000, 0x86, 0x86, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    // eax = 20 (getpid there); int 0x80; eax = 1 (exit there); int 0x80
    elf.extend([0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xb8, 1, 0, 0, 0, 0xcd, 0x80]);
    std::fs::write(rig.workspace().join("gate"), &elf).unwrap();
    rig.bash("cp gate /tmp/gate && chmod 755 /tmp/gate").await;
    let (status, said) = rig.run(&["/tmp/gate"]).await;
    assert_eq!(status.signal, Some(31), "{said}");
}

#[tokio::test]
async fn nobody_has_a_capability_or_gets_one() {
    let rig = Rig::new().await;
    let status = rig.bash("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\n\\t '").await;
    let none = "0".repeat(16);
    let sets = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:{none}")).concat();
    assert_eq!(status, format!("{sets}NoNewPrivs:1Seccomp:2"));
    for word in ["su", "sudo", "mount", "ping", "newgrp", "passwd", "chsh", "umount", "pkexec"] {
        let said = rig
            .bash(&format!(
                "p=$(command -v {word}) && [ -u $p ] && echo | timeout 5 $p / / >/dev/null 2>&1 && echo gained; id -u"
            ))
            .await;
        assert_eq!(said, "1000", "{word}");
    }
    let made = "use Fcntl; umask 0; for my $m (04755, 02755, 06777) { sysopen(F, \"/workspace/s$m\", O_CREAT|O_WRONLY, $m) and print 'made' } \
                mkdir '/workspace/d'; chmod 04755, '/workspace/d' and print 'set'; print 'end'";
    assert_eq!(rig.perl(made).await, "end");
    assert_eq!(rig.bash("cp /usr/bin/env /tmp/e; chmod u+s /tmp/e; install -m 4755 /usr/bin/env /tmp/i; find /tmp /workspace -perm /6000").await.lines().filter(|line| line.starts_with('/')).count(), 0);
}

#[tokio::test]
async fn the_cell_survives_what_is_done_to_it() {
    let rig = Rig::new().await;
    let pid = rig.sandbox.pid().unwrap();
    for signal in ["KILL", "STOP", "TERM", "SEGV", "HUP", "USR1", "INT", "34"] {
        rig.bash(&format!("kill -{signal} 1")).await;
    }
    rig.perl("kill 'KILL', -1").await;
    rig.bash("kill -9 -1").await;
    // A shell that stops itself is one that takes too long.
    let stopped = json!({"command": "kill -STOP -1; kill -STOP $$"});
    assert!(rig.within("bash", stopped, Duration::from_millis(300)).await.0.contains("timed out after 300ms"));
    assert_eq!(rig.bash("echo here").await, "here");
    assert_eq!(rig.call("write", json!({"file_path": "f", "content": "x"})).await.0, "wrote 1 bytes to f");
    assert_eq!(rig.sandbox.pid(), Some(pid));
    // Its priority among victims and its limits are its own business.
    for file in ["oom_score_adj", "coredump_filter", "comm", "timerslack_ns", "setgroups", "uid_map"] {
        assert_ne!(rig.run(&["/bin/bash", "-c", &format!("echo 1 > /proc/1/{file}")]).await.0.code, Some(0), "{file}");
    }
    assert_eq!(
        rig.perl(
            "my $l = pack('Q2', 0, 0); print syscall(NUMBER, 1, 7, $l, 0) == -1 ? 'no' : 'set'"
                .replace("NUMBER", &libc::SYS_prlimit64.to_string())
                .as_str()
        )
        .await,
        "no"
    );
}

#[tokio::test]
async fn no_core_is_dumped_not_even_to_a_handler_of_the_host() {
    let rig = Rig::new().await;
    // A program that guards its secrets this way must be able to go on.
    let said = rig.bash("ulimit -c 0; ulimit -c unlimited 2>/dev/null; prlimit --core=unlimited 2>/dev/null; ulimit -Hc; ulimit -Sc").await;
    assert!(said.lines().all(|limit| limit == "0"), "in blocks, one byte is none: {said}");
    let limit = rig.bash("grep core /proc/self/limits").await;
    assert_eq!(limit.split_whitespace().collect::<Vec<_>>()[..6], ["Max", "core", "file", "size", "1", "1"], "{limit}");
    rig.bash("cd /workspace; bash -c 'kill -SEGV $$'; ls").await;
    assert_eq!(std::fs::read_dir(rig.workspace()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_sandbox_has_every_namespace_of_its_own() {
    let rig = Rig::new().await;
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"] {
        let link = format!("/proc/self/ns/{kind}");
        let Ok(outside) = std::fs::read_link(&link) else { continue };
        let (status, inside) = rig.run(&["/bin/readlink", &link]).await;
        assert_eq!(status.code, Some(0), "{inside}");
        assert_ne!(inside, outside.to_str().unwrap(), "{kind}");
    }
    assert!(rig.sandbox.report().enforces(Facility::Namespaces));
    // Nothing of the worker's place shows: the root of its control groups is the sandbox's own.
    let groups = rig.bash("cut -d: -f3 /proc/self/cgroup | sort -u").await;
    assert_eq!(groups, "/", "{groups}");
    let (text, _) = rig
        .within("bash", json!({"command": "cat /proc/self/uid_map /proc/self/setgroups"}), Duration::from_secs(5))
        .await;
    let map: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    // With root the ids of an image at host users of its own; without it the one user that there is.
    assert!(matches!(map[..], ["0", host, "65536"] if host != "0") || map[0] == "1000", "{text}");
}
