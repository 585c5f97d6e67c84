//! The two ends of a sandbox: what they do when the other one is gone or talks nonsense.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use palisade_sandbox::ToolCall;
use serde_json::json;

use crate::rig::{Rig, again, began, is_again};

#[tokio::test]
async fn a_sandbox_dies_with_its_worker() {
    if is_again() {
        let rig = Rig::new().await;
        rig.bash("setsid sleep 1000 & (setsid sleep 1000 &); sleep 1000 & true").await;
        println!("pid {}", rig.sandbox.pid().unwrap());
        std::future::pending::<()>().await;
    }
    let mut worker = again("protocol::a_sandbox_dies_with_its_worker").stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(worker.stdout.take().unwrap()).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("pid ")?.1.to_owned())).unwrap();
    let pid = pid.parse().unwrap();
    let born = began(pid);
    assert!(born.is_some());
    let members = |group: &str| std::fs::read_to_string(format!("{group}/cgroup.procs")).unwrap_or_default();
    let group = format!("/sys/fs/cgroup/pids/palisade-{}-0", worker.id());
    worker.kill().unwrap();
    worker.wait().unwrap();
    for _ in 0..2000 {
        if began(pid) != born && members(&group).is_empty() {
            // The next worker clears away what this one could not.
            let rig = Rig::new().await;
            assert_eq!(rig.bash("echo next").await, "next");
            assert!(!Path::new(&group).exists(), "{group}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the sandbox goes on without its worker");
}

/// Starts the cell's program on its own and lets it hear `bytes`: it must end by itself, and say nothing.
fn hear(bytes: &[u8]) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut cell = Command::new("/bin/bash")
        .args(["-c", "exec \"$0\" 3<&0", env!("PALISADE_CELL")])
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    // It may have seen enough before it has been told all.
    let _ = ours.write_all(bytes);
    let _ = ours.shutdown(std::net::Shutdown::Write);
    let mut said = Vec::new();
    let _ = ours.read_to_end(&mut said);
    assert_eq!(cell.wait().unwrap().code(), Some(2), "{bytes:02x?}");
    assert_eq!(said, b"");
}

#[test]
fn a_cell_that_is_told_nonsense_ends() {
    let frame = |header: &str| {
        let mut frame = (u32::try_from(header.len()).unwrap() + 4).to_le_bytes().to_vec();
        frame.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
        frame.extend(header.as_bytes());
        frame
    };
    hear(b"");
    hear(b"\x01");
    hear(&[0; 64]);
    hear(&[0xff; 64]);
    hear(&u32::MAX.to_le_bytes());
    hear(&[16, 0, 0, 0, 255, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    hear(&frame("{}"));
    hear(&frame("[[[["));
    hear(&frame(&"[".repeat(100_000)));
    hear(&frame(r#"{"version":1}"#));
}

#[tokio::test]
async fn a_call_given_up_while_it_is_sent_tears_nothing() {
    let rig = Rig::new().await;
    for round in 0..20 {
        let content = "x".repeat(4 << 20);
        let call = ToolCall {
            name: "write".to_owned(),
            input: json!({"file_path": "big", "content": content}),
            timeout: Duration::from_secs(20),
        };
        let _ = tokio::time::timeout(Duration::from_micros(300 * round), rig.sandbox.tool(call)).await;
        assert_eq!(rig.bash(&format!("echo {round}")).await, round.to_string());
    }
}

#[tokio::test]
async fn many_calls_at_once_are_all_answered() {
    let rig = std::sync::Arc::new(Rig::new().await);
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..60 {
        let rig = rig.clone();
        calls.spawn(async move {
            match n % 4 {
                0 => assert_eq!(rig.bash(&format!("echo {n}")).await, n.to_string()),
                1 => assert_eq!(
                    rig.call("write", json!({"file_path": format!("f{n}"), "content": "x"})).await.0,
                    format!("wrote 1 bytes to f{n}")
                ),
                2 => assert_eq!(rig.run(&["/bin/echo", &n.to_string()]).await.1, n.to_string()),
                // Programs that cannot be started, among those that can.
                _ => {
                    let request =
                        palisade_sandbox::ExecRequest { argv: vec![format!("/no/such/{n}")], ..Default::default() };
                    let failed = rig.sandbox.exec(request).await.unwrap().wait().await.unwrap_err();
                    assert!(failed.to_string().contains("No such file"), "{failed}");
                }
            }
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
}
