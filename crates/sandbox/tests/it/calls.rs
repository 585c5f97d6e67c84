//! Programs that ask the kernel for what escapes are made of. Each is judged by what it got.

use std::time::Duration;

use palisade_sandbox::Facility;
use serde_json::json;

use crate::rig::Rig;

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
async fn programs_set_their_own_place_at_the_processors_and_not_the_cells() {
    let rig = Rig::new().await;
    // Whatever priority the tests have.
    let own = "echo $(($(nice -n 5 nice) - $(nice))); renice -n 6 -p $$ >/dev/null; taskset -c 0 nproc; taskset -p 1 $BASHPID >/dev/null; chrt -b 0 echo batch; \
               ionice -c 3 echo idle; ps -o ni= -p $$ | tr -d ' '";
    assert_eq!(rig.run(&["/bin/bash", "-ec", own]).await.1, "5\n1\nbatch\nidle\n6");
    for refused in [
        "renice 19 -p 1",
        "renice 19 -g 1",
        "renice 19 -u 1000",
        "taskset -p 1 1",
        "chrt -i -p 0 1",
        "ionice -c 3 -p 1",
    ] {
        let (status, said) = rig.run(&["/bin/bash", "-c", refused]).await;
        assert!(status.code != Some(0) && said.contains("not permitted"), "{refused}: {said}");
    }
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
    // The second lock on the door that the filters close: no user namespace below this one.
    assert_eq!(rig.bash("cat /proc/sys/user/max_user_namespaces").await, "0");
    // Nothing of the worker's place shows: the root of its control groups is the sandbox's own.
    let groups = rig.bash("cut -d: -f3 /proc/self/cgroup | sort -u").await;
    assert_eq!(groups, "/", "{groups}");
    let (text, _) = rig.call("bash", json!({"command": "cat /proc/self/uid_map /proc/self/setgroups"})).await;
    let map: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    // With root the ids of an image at host users of its own; without it the one user that there is.
    assert!(matches!(map[..], ["0", host, "65536"] if host != "0") || map[0] == "1000", "{text}");
}
