//! Programs that use up what there is. The worker must still be answered, and the end must still come.

use std::time::Duration;

use palisade_sandbox::{ExecRequest, Facility, Output};
use serde_json::json;

use crate::rig::{Rig, began};

/// What must go on whatever a sandbox does to itself.
async fn answers(rig: &Rig) {
    std::fs::write(rig.workspace().join("file"), "content").unwrap();
    let (text, is_error) = rig.within("read", json!({"file_path": "file"}), Duration::from_secs(5)).await;
    assert_eq!((text.as_str(), is_error), ("content", false));
}

/// Ends a sandbox, and shows that nothing of it is left.
async fn ends(rig: Rig) {
    let pid = rig.sandbox.pid().unwrap();
    let own = format!("palisade-{}-", std::process::id());
    let born = began(pid);
    tokio::time::timeout(Duration::from_secs(20), rig.sandbox.destroy()).await.unwrap().unwrap();
    assert!(born.is_some() && began(pid) != born);
    for hierarchy in ["memory", "pids", "unified", "."] {
        for group in std::fs::read_dir(format!("/sys/fs/cgroup/{hierarchy}")).into_iter().flatten().flatten() {
            assert!(!group.file_name().to_string_lossy().starts_with(&own), "{:?}", group.path());
        }
    }
}

#[tokio::test]
async fn forks_without_end() {
    for bomb in [
        ":(){ :|:& };:",
        "while :; do setsid sh -c 'sleep 1000' & done",
        "exec perl -e 'use POSIX; while (1) { fork; setpgrp; setsid() }'",
        "exec perl -e 'while (1) { my $p = fork; if (!$p) { prctl(); sub prctl { syscall(157, 4, 0, 0, 0, 0) } while (1) { fork } } }'",
    ] {
        let rig = Rig::with(|spec| spec.limits.pids = Some(64)).await;
        assert!(rig.sandbox.report().enforces(Facility::PidLimit));
        rig.within("bash", json!({"command": bomb}), Duration::from_millis(700)).await;
        answers(&rig).await;
        // A new start clears the field.
        let again = json!({"restart": true, "command": "echo again"});
        assert_eq!(rig.call("bash", again).await, ("again".to_owned(), false), "{bomb}");
        assert_eq!(rig.run(&["/bin/echo", "here"]).await.1, "here");
        ends(rig).await;
    }
}

#[tokio::test]
async fn memory_that_belongs_to_no_process() {
    // Files in memory cannot be taken back by killing: what is left is the end of this sandbox, and of this one only.
    let other = Rig::new().await;
    let rig = Rig::with(|spec| (spec.limits.memory_bytes, spec.limits.tmp_bytes) = (Some(64 << 20), 1 << 30)).await;
    let fill = ExecRequest {
        argv: ["/bin/bash", "-c", "head -c 500M /dev/zero > /tmp/fill; head -c 500M /dev/zero > /home/agent/fill"]
            .map(str::to_owned)
            .to_vec(),
        timeout: Some(Duration::from_secs(20)),
        ..ExecRequest::default()
    };
    let filled = rig.sandbox.exec(fill).await.unwrap().wait().await;
    if rig.sandbox.report().enforces(Facility::MemoryLimit)
        && let Ok((status, ..)) = filled
    {
        assert_ne!(status.code, Some(0));
    }
    assert_eq!(other.bash("echo untouched").await, "untouched");
    other.sandbox.destroy().await.unwrap();
    ends(rig).await;
}

#[tokio::test]
async fn places_in_memory_have_a_size() {
    let rig = Rig::with(|spec| spec.limits.tmp_bytes = 16 << 20).await;
    for place in ["/tmp", "/home/agent", "/run", "/dev/shm"] {
        let said =
            rig.bash(&format!("head -c 100M /dev/zero > {place}/fill; stat -c %s {place}/fill; rm {place}/fill")).await;
        assert!(said.contains("No space left"), "{place}: {said}");
        let many = format!(
            "use POSIX; my $n = 0; while (open my $f, '>', \"{place}/f$n\") {{ $n++ }} print $n < 20000 ? $! : $n; unlink \"{place}/f$_\" for 0 .. $n"
        );
        assert_eq!(rig.perl(&many).await, "No space left on device", "{place}");
    }
    answers(&rig).await;
    // The rest of the root is not to be filled at all.
    assert_eq!(rig.bash("for d in / /mnt /dev /etc /home /proc; do echo x > $d/x; done 2>/dev/null; ls /x /mnt/x /dev/x /etc/x /home/x 2>/dev/null | wc -l").await, "0");
    ends(rig).await;
}

#[tokio::test]
async fn descriptors_locks_and_signals_without_end() {
    let rig = Rig::with(|spec| spec.limits.open_files = Some(256)).await;
    let files = "my @f; while (open my $f, '<', '/dev/null') { push @f, $f } print scalar(@f) < 256 ? $! : 'more'";
    assert_eq!(rig.perl(files).await, "Too many open files");
    assert_eq!(rig.bash("ulimit -n 1000000 2>/dev/null; ulimit -n").await, "256");
    let passed = "use Socket; my ($n, @k) = (0); while (socketpair(my $a, my $b, AF_UNIX, SOCK_DGRAM, 0)) { push @k, $a, $b } print scalar(@k) <= 256 ? 'held' : 'more'";
    assert_eq!(rig.perl(passed).await, "held");
    let size = rig.bash("ulimit -f 10; ulimit -l; ulimit -q; ulimit -e; ulimit -r").await;
    assert_eq!(size, "64\n0\n0\n0");
    answers(&rig).await;
    ends(rig).await;
}

#[tokio::test]
async fn output_without_end_costs_the_worker_nothing() {
    let rig = Rig::new().await;
    let before = resident();
    let mut floods = Vec::new();
    for program in
        ["exec yes", "exec yes >&2", "while :; do printf x; done", "exec perl -e '$| = 1; print \"x\" while 1'"]
    {
        let request =
            ExecRequest { argv: ["/bin/bash", "-c", program].map(str::to_owned).to_vec(), ..ExecRequest::default() };
        floods.push(rig.sandbox.exec(request).await.unwrap());
    }
    // Nobody reads them for a while.
    tokio::time::sleep(Duration::from_millis(500)).await;
    answers(&rig).await;
    for flood in &mut floods {
        let mut taken = 0;
        for _ in 0..1500 {
            let Some(Output::Stdout(bytes) | Output::Stderr(bytes)) = flood.next().await.unwrap() else {
                panic!("ended")
            };
            assert!(bytes.iter().all(|byte| b"yx\n".contains(byte)));
            taken += bytes.len();
        }
        assert!(taken >= 1500);
    }
    assert!(resident() < before + (32 << 20), "{} and {before}", resident());
    drop(floods);
    // What was dropped is killed.
    rig.gone("yes|perl").await;
    ends(rig).await;
}

#[tokio::test]
async fn all_that_was_printed_arrives_however_slowly_it_is_taken() {
    let rig = Rig::new().await;
    let count = ExecRequest {
        argv: ["/bin/bash", "-c", "seq 400000; seq 400000 >&2"].map(str::to_owned).to_vec(),
        ..ExecRequest::default()
    };
    let mut count = rig.sandbox.exec(count).await.unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    // The command ends long before its output is taken.
    tokio::time::sleep(Duration::from_millis(600)).await;
    while let Some(output) = count.next().await.unwrap() {
        match output {
            Output::Stdout(bytes) => out.extend(bytes),
            Output::Stderr(bytes) => err.extend(bytes),
            Output::Lost(bytes) => panic!("{bytes} bytes are lost"),
        }
        if out.len() % 7 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(out.ends_with(b"\n400000\n") && err == out, "{} {}", out.len(), err.len());
}

#[tokio::test]
async fn input_that_nobody_reads_stalls_nobody_else() {
    let rig = Rig::new().await;
    let sleeper =
        ExecRequest { argv: ["/bin/sleep", "1000"].map(str::to_owned).to_vec(), stdin: true, ..ExecRequest::default() };
    let sleeper = rig.sandbox.exec(sleeper).await.unwrap();
    let input = vec![b'x'; 4 << 20];
    // It waits, which is what the sender gets to feel …
    assert!(tokio::time::timeout(Duration::from_millis(300), sleeper.write(&input)).await.is_err());
    // … and nobody else.
    assert_eq!(rig.bash("echo through").await, "through");
    answers(&rig).await;
    drop(sleeper);
    // A reader gets all of it, also one that gives up midway.
    for (program, said) in [("wc -c", "4194304\n"), ("head -c 3", "xxx")] {
        let request = ExecRequest {
            argv: ["/bin/sh", "-c", program].map(str::to_owned).to_vec(),
            stdin: true,
            ..ExecRequest::default()
        };
        let reader = rig.sandbox.exec(request).await.unwrap();
        reader.write(&input).await.unwrap();
        reader.close_stdin().await.unwrap();
        assert_eq!(String::from_utf8(reader.wait().await.unwrap().1).unwrap(), said);
    }
}

/// The memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
