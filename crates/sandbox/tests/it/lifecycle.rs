//! Start, commands, end.

use std::time::Duration;

use palisade_sandbox::{Driver, ExecRequest, Facility, Native, Options, Output, Rootfs, Spec, ToolCall};
use serde_json::json;

use crate::rig::Rig;

fn argv(words: &[&str]) -> ExecRequest {
    ExecRequest { argv: words.iter().map(|&word| word.to_owned()).collect(), ..ExecRequest::default() }
}

#[tokio::test]
async fn a_command_runs_as_nobody_special() {
    let rig = Rig::new().await;
    let (status, out, err) = rig.sandbox.exec(argv(&["/usr/bin/id", "-u"])).await.unwrap().wait().await.unwrap();
    assert_eq!((status.code, out.as_slice(), err.as_slice()), (Some(0), &b"1000\n"[..], &b""[..]));
    for facility in [Facility::Namespaces, Facility::Capabilities, Facility::Seccomp] {
        assert!(rig.sandbox.report().enforces(facility), "{facility}");
    }
}

#[tokio::test]
async fn a_command_begins_with_the_signals_that_everybody_expects() {
    let rig = Rig::new().await;
    for status in [rig.run(&["/bin/cat", "/proc/self/status"]).await.1, rig.bash("/bin/cat /proc/self/status").await] {
        for set in ["SigBlk", "SigIgn", "SigCgt"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
        }
    }
    // The cell ignores all but the end of a child, which it waits for, and what cannot be ignored.
    let cell = std::fs::read_to_string(format!("/proc/{}/status", rig.sandbox.pid().unwrap())).unwrap();
    let said = cell.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(said.trim(), 16).unwrap();
    let expected =
        [libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD].iter().fold(u64::MAX, |all, it| all & !(1 << (it - 1)));
    // The C library takes one of its two for itself.
    assert_eq!(ignored | 1 << 32, expected, "{said}");
}

#[tokio::test]
async fn input_output_and_signals() {
    let rig = Rig::new().await;
    let mut cat = rig.sandbox.exec(ExecRequest { stdin: true, ..argv(&["/bin/cat"]) }).await.unwrap();
    cat.write(b"over and over").await.unwrap();
    assert_eq!(cat.next().await.unwrap(), Some(Output::Stdout(b"over and over".to_vec())));
    cat.close_stdin().await.unwrap();
    assert_eq!(cat.wait().await.unwrap().0.code, Some(0));
    let sleep = rig.sandbox.exec(argv(&["/bin/sleep", "1000"])).await.unwrap();
    sleep.signal(15).await.unwrap();
    assert_eq!(sleep.wait().await.unwrap().0.signal, Some(15));
    let late = ExecRequest { timeout: Some(Duration::from_millis(50)), ..argv(&["/bin/sleep", "1000"]) };
    assert!(rig.sandbox.exec(late).await.unwrap().wait().await.unwrap().0.timed_out);
    let missing = rig.sandbox.exec(argv(&["/no/such/program"])).await.unwrap().wait().await;
    assert!(missing.unwrap_err().to_string().contains("No such file"));
}

#[tokio::test]
async fn a_slow_reader_slows_the_command_and_nobody_else() {
    let rig = Rig::new().await;
    let mut flood = rig.sandbox.exec(argv(&["/usr/bin/yes"])).await.unwrap();
    // The flood waits for its reader; everything else goes on.
    assert_eq!(rig.bash("echo through").await, "through");
    let mut taken = 0;
    while taken < 4 << 20 {
        let Some(Output::Stdout(bytes)) = flood.next().await.unwrap() else { panic!("ended") };
        taken += bytes.len();
    }
}

#[tokio::test]
async fn a_dropped_call_kills_what_it_started() {
    let rig = Rig::new().await;
    let call = ToolCall {
        name: "bash".to_owned(),
        input: json!({"command": "echo $$ > shell; sleep 1000 & echo $! > child; wait"}),
        timeout: Duration::from_secs(60),
    };
    let child = rig.workspace().join("child");
    tokio::select! {
        done = rig.sandbox.tool(call) => panic!("it ended: {done:?}"),
        // Dropped when both have said who they are.
        () = crate::rig::until(|| std::fs::read_to_string(&child).is_ok_and(|said| said.ends_with('\n'))) => {}
    }
    for _ in 0..1000 {
        let alive = rig.bash("for p in $(cat shell child); do kill -0 $p 2>/dev/null && echo alive; done; true").await;
        if alive == "(no output)" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the command is still there");
}

#[tokio::test]
async fn the_end_leaves_nothing() {
    let rig = Rig::new().await;
    rig.bash("setsid sleep 1000 & disown; true").await;
    let pid = rig.sandbox.pid().unwrap();
    let born = crate::rig::began(pid);
    rig.sandbox.destroy().await.unwrap();
    assert!(born.is_some() && crate::rig::began(pid) != born);
    let own = format!("palisade-{}-", std::process::id());
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        for group in std::fs::read_dir(hierarchy.path()).into_iter().flatten().flatten() {
            // Other tests of this process may have groups of their own: those have members.
            let name = group.file_name().to_string_lossy().into_owned();
            if name.starts_with(&own) {
                let members = std::fs::read_to_string(group.path().join("cgroup.procs")).unwrap_or_default();
                assert!(!members.lines().any(|member| member == pid.to_string()), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn the_cell_runs_in_an_empty_root() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_owned();
    let rig = Rig::with(|spec| spec.rootfs = Rootfs::Directory(path)).await;
    assert_eq!(rig.call("write", json!({"file_path": "a", "content": "x"})).await.0, "wrote 1 bytes to a");
    assert_eq!(rig.call("read", json!({"file_path": "/workspace/a"})).await.0, "x");
    let (text, is_error) = rig.call("bash", json!({"command": "true"})).await;
    assert!(is_error && text.contains("/bin/bash"), "{text}");
}

#[tokio::test]
async fn what_is_required_and_missing_refuses_the_start() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = Spec::new(home.path(), home.path());
    spec.limits.cpu_millis = None;
    spec.require = vec![Facility::CpuLimit];
    let refused = Native::new(Options::default()).create(spec).await.unwrap_err();
    assert!(refused.to_string().contains("cpu limit is required"), "{refused}");
    let spec = Spec::new("/no/such/place", home.path());
    let refused = Native::new(Options::default()).create(spec).await.unwrap_err();
    assert!(refused.to_string().starts_with("/no/such/place"), "{refused}");
}

#[tokio::test]
async fn the_workspace_outlives_its_sandbox() {
    let rig = Rig::new().await;
    rig.bash("echo kept > file; mkdir -p sub && echo deep > sub/file").await;
    let (workspace, outputs) = (rig.workspace(), rig.home.path().join("outputs"));
    rig.sandbox.destroy().await.unwrap();
    let again = Native::new(Options::default()).create(Spec::new(&workspace, outputs)).await.unwrap();
    let call = ToolCall {
        name: "bash".to_owned(),
        input: json!({"command": "cat file sub/file; echo more >> sub/file"}),
        timeout: Duration::from_secs(10),
    };
    assert_eq!(again.tool(call).await.unwrap().content[0]["text"], "kept\ndeep");
}

/// A call has the time that it was given, however long the sandbox is stopped meanwhile.
#[tokio::test]
async fn time_that_a_sandbox_stands_still_is_nobodys() {
    let rig = Rig::new().await;
    let sandbox = &rig.sandbox;
    let call = |command: &str, ms| {
        let input = json!({"command": command, "timeout_ms": ms});
        sandbox.tool(ToolCall { name: "bash".to_owned(), input, timeout: Duration::from_millis(ms) })
    };
    let command = ExecRequest {
        argv: ["/bin/bash", "-c", "sleep 0.6; echo done"].map(ToOwned::to_owned).to_vec(),
        timeout: Some(Duration::from_millis(1500)),
        ..ExecRequest::default()
    };
    let stop = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if sandbox.freeze().await.is_err() {
            return eprintln!("not run here: nothing can be frozen");
        }
        // Longer than the limits of both and than what the worker waits beyond them.
        tokio::time::sleep(Duration::from_secs(13)).await;
        sandbox.thaw().await.unwrap();
    };
    let exec = sandbox.exec(command).await.unwrap();
    let (said, (status, out, _), ()) =
        tokio::join!(call("sleep 0.6; echo done", 1500), async { exec.wait().await.unwrap() }, stop);
    assert_eq!(said.unwrap().content[0]["text"], "done");
    assert!(!status.timed_out && out == b"done\n", "{status:?}");
    assert!(status.usage.wall < Duration::from_secs(10), "{status:?}");
    // What is left of it still ends it.
    let stop = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if sandbox.freeze().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(700)).await;
            sandbox.thaw().await.unwrap();
        }
    };
    let (said, ()) = tokio::join!(call("sleep 100", 1000), stop);
    let said = said.unwrap();
    assert!(said.is_error && said.content[0]["text"].as_str().unwrap().contains("timed out after 1000ms"), "{said:?}");
    assert!(said.usage.wall < Duration::from_secs(5), "{said:?}");
}
