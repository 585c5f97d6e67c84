//! Commands: terminals, those that go on by themselves, those who listen, limits, and connections.

use std::time::Duration;

use palisade_sandbox::{Error, Exec, ExecRequest, ExitStatus, Output, Size};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::rig::Rig;

fn request(words: &[&str]) -> ExecRequest {
    let argv = words.iter().map(|&word| word.to_owned()).collect();
    ExecRequest { argv, timeout: Some(Duration::from_secs(60)), ..ExecRequest::default() }
}

fn shell(script: &str) -> ExecRequest {
    request(&["/bin/bash", "-c", script])
}

/// Reads until `wanted` has been said; everything that has.
async fn until(exec: &mut Exec, wanted: &str) -> String {
    let mut said = Vec::new();
    loop {
        match exec.next().await.unwrap() {
            Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => said.extend(bytes),
            Some(Output::Lost(bytes)) => panic!("{bytes} bytes are lost"),
            None => panic!("it ended: {}", String::from_utf8_lossy(&said)),
        }
        let text = String::from_utf8_lossy(&said);
        if text.contains(wanted) {
            return text.into_owned();
        }
    }
}

/// What it says to its end, and how it ends.
async fn rest(mut exec: Exec) -> (String, ExitStatus) {
    let mut said = Vec::new();
    while let Some(output) = exec.next().await.unwrap() {
        match output {
            Output::Stdout(bytes) | Output::Stderr(bytes) => said.extend(bytes),
            Output::Lost(bytes) => said.extend(format!("[{bytes} lost]").into_bytes()),
        }
    }
    (String::from_utf8_lossy(&said).into_owned(), exec.status().unwrap())
}

#[tokio::test]
async fn a_terminal_has_a_size_job_control_and_an_end() {
    let rig = Rig::new().await;
    let tty = Some(Size { rows: 31, cols: 97 });
    let mut exec = rig.sandbox.exec(ExecRequest { tty, ..request(&["/bin/bash", "--norc", "-i"]) }).await.unwrap();
    exec.write(b"PS1='$ '; echo first; stty size; tty; echo $TERM\n").await.unwrap();
    let said = until(&mut exec, "xterm-256color\r\n").await;
    assert!(said.contains("31 97\r\n") && said.contains("/dev/pts/0"), "{said}");
    exec.resize(Size { rows: 50, cols: 120 }).await.unwrap();
    exec.write(b"stty size\n").await.unwrap();
    until(&mut exec, "50 120").await;
    // The character that interrupts reaches the job in the foreground and nothing else.
    // Each job is heard when it is there: before, whoever types reaches the shell.
    exec.write(b"bash -c 'echo up; sleep 1000'\n").await.unwrap();
    until(&mut exec, "up\r\n").await;
    exec.write(b"\x03").await.unwrap();
    until(&mut exec, "$ ").await;
    exec.write(b"echo after $?\n").await.unwrap();
    until(&mut exec, "after 130").await;
    exec.write(b"bash -c 'echo up; sleep 1000'\n").await.unwrap();
    until(&mut exec, "up\r\n").await;
    exec.write(b"\x1a").await.unwrap();
    until(&mut exec, "Stopped").await;
    exec.write(b"bg; jobs\n").await.unwrap();
    until(&mut exec, "Running").await;
    // A signal reaches the job in the foreground, too.
    exec.write(b"bash -c 'echo up; cat'\n").await.unwrap();
    until(&mut exec, "up\r\n").await;
    exec.signal(2).await.unwrap();
    // The shell hears it too, and forgets what was typed before it shows that it is ready again.
    until(&mut exec, "$ ").await;
    exec.write(b"echo cat $?\n").await.unwrap();
    let said = until(&mut exec, "cat 130").await;
    if !said.rsplit("cat 130").next().unwrap().contains("$ ") {
        until(&mut exec, "$ ").await;
    }
    exec.close_stdin().await.unwrap();
    let (_, status) = rest(exec).await;
    assert_eq!(status.code, Some(0));
}

#[tokio::test]
async fn no_terminal_reaches_another_sandbox_or_the_host() {
    let rig = Rig::new().await;
    let other = Rig::new().await;
    let tty = Some(Size { rows: 24, cols: 80 });
    let mut exec = rig.sandbox.exec(ExecRequest { tty, ..request(&["/bin/sleep", "1000"]) }).await.unwrap();
    exec.write(b"x").await.unwrap();
    until(&mut exec, "x").await;
    assert_eq!(rig.bash("ls /dev/pts").await, "0\nptmx");
    assert_eq!(other.bash("ls /dev/pts").await, "ptmx");
    drop(exec);
    // Both of its ends are given back.
    for _ in 0..70 {
        let exec = rig.sandbox.exec(ExecRequest { tty, ..request(&["/bin/true"]) }).await.unwrap();
        assert_eq!(rest(exec).await.1.code, Some(0));
    }
}

#[tokio::test]
async fn a_detached_command_goes_on_and_is_heard_again() {
    let rig = Rig::new().await;
    let script = "echo one; read x; echo got $x; echo err >&2; read y; echo last; exit 7";
    let mut exec = rig
        .sandbox
        .exec(ExecRequest { detach: true, stdin: true, label: "build".into(), ..shell(script) })
        .await
        .unwrap();
    until(&mut exec, "one\n").await;
    let (process, offset) = (exec.process(), exec.offset());
    drop(exec);
    // Two at a time, from where the first left off and from the beginning: nothing twice, nothing missing.
    let mut again = rig.sandbox.attach(process, Some(offset), true).await.unwrap();
    let whole = rig.sandbox.attach(process, None, false).await.unwrap();
    again.write(b"1\n").await.unwrap();
    let mut said = until(&mut again, "got 1\n").await;
    while !said.contains("err") {
        said.push_str(&until(&mut again, "").await);
    }
    assert!(!said.contains("one"), "{said}");
    let listed = rig.sandbox.processes().await.unwrap();
    let found = listed.iter().find(|listed| listed.id == Some(process)).unwrap();
    assert!(found.detached && found.label == "build" && found.pid > 1 && found.end.is_none(), "{found:?}");
    assert!(listed.iter().any(|listed| listed.pid == 1 && listed.id.is_none()), "{listed:?}");
    again.write(b"2\n").await.unwrap();
    let (said, status) = rest(again).await;
    assert_eq!((said.as_str(), status.code), ("last\n", Some(7)));
    assert_eq!(rest(whole).await.0, "one\ngot 1\nerr\nlast\n");
    // It has ended, and can still be asked.
    let (said, status) = rest(rig.sandbox.attach(process, None, false).await.unwrap()).await;
    assert_eq!((said.as_str(), status.code), ("one\ngot 1\nerr\nlast\n", Some(7)));
    let found = rig.sandbox.processes().await.unwrap().into_iter().find(|listed| listed.id == Some(process)).unwrap();
    assert_eq!((found.pid, found.end.unwrap().code), (0, Some(7)));
    let gone = rig.sandbox.attach(9999, None, false).await.unwrap().wait().await.unwrap_err();
    assert!(gone.to_string().contains("no command 9999"), "{gone}");
}

#[tokio::test]
async fn what_fell_out_of_a_log_is_said() {
    let rig = Rig::new().await;
    let exec = rig.sandbox.exec(ExecRequest { detach: true, ..shell("seq 400000; echo the end") }).await.unwrap();
    let process = exec.process();
    drop(exec);
    let ended = async || rig.sandbox.processes().await.unwrap().iter().any(|listed| listed.end.is_some());
    while !ended().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut exec = rig.sandbox.attach(process, Some(0), false).await.unwrap();
    let (mut lost, mut kept) = (0, Vec::new());
    while let Some(output) = exec.next().await.unwrap() {
        match output {
            Output::Stdout(bytes) => kept.extend(bytes),
            Output::Lost(bytes) => lost += bytes,
            Output::Stderr(_) => panic!("nothing was said there"),
        }
    }
    let written: String = (1..=400_000).map(|n| format!("{n}\n")).collect::<String>() + "the end\n";
    let lost = usize::try_from(lost).unwrap();
    assert_eq!(kept.len(), 256 << 10);
    assert_eq!(kept, &written.as_bytes()[lost..]);
}

#[tokio::test]
async fn a_listener_that_waits_is_waited_for() {
    let rig = Rig::new().await;
    let mut first = rig.sandbox.exec(ExecRequest { stdin: true, ..shell("read x; seq 300000") }).await.unwrap();
    let second = rig.sandbox.attach(first.process(), None, true).await.unwrap();
    first.write(b"go\n").await.unwrap();
    let (slow, fast) = tokio::join!(
        async {
            let mut bytes = 0;
            while let Some(output) = first.next().await.unwrap() {
                if let Output::Stdout(output) = output {
                    bytes += output.len();
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            bytes
        },
        rest(second)
    );
    assert_eq!(slow, fast.0.len());
    assert!(fast.0.ends_with("\n300000\n") && !fast.0.contains("lost"));
}

#[tokio::test]
async fn the_starter_of_a_command_ends_it_and_a_listener_does_not() {
    let rig = Rig::new().await;
    let mut exec = rig.sandbox.exec(shell("echo up; sleep 1000 & sleep 1000")).await.unwrap();
    let other = rig.sandbox.attach(exec.process(), None, false).await.unwrap();
    drop(rig.sandbox.attach(exec.process(), None, false).await.unwrap());
    assert_eq!(rig.bash("echo here").await, "here");
    // Who is killed before has never said it.
    until(&mut exec, "up\n").await;
    drop(exec);
    let (said, status) = rest(other).await;
    assert_eq!((said.as_str(), status.signal), ("up\n", Some(9)));
    rig.gone("sleep").await;
}

#[tokio::test]
async fn as_many_as_may_run_do_and_the_next_is_told() {
    let rig = Rig::new().await;
    let mut running = Vec::new();
    for n in 0..64 {
        let script = format!("read x; echo {n} $x");
        running.push(rig.sandbox.exec(ExecRequest { stdin: true, ..shell(&script) }).await.unwrap());
    }
    let refused = rig.sandbox.exec(shell("true")).await.unwrap().wait().await.unwrap_err();
    assert!(refused.to_string().contains("64 are the most"), "{refused}");
    for (n, exec) in running.iter().enumerate() {
        exec.write(format!("{n}\n").as_bytes()).await.unwrap();
    }
    for (n, exec) in running.into_iter().enumerate() {
        assert_eq!(rest(exec).await.0, format!("{n} {n}\n"));
    }
    // Those that have ended do not count, and do not pile up.
    for _ in 0..200 {
        let exec = rig.sandbox.exec(ExecRequest { detach: true, ..shell("true") }).await.unwrap();
        assert_eq!(rest(exec).await.1.code, Some(0));
    }
    assert!(rig.sandbox.processes().await.unwrap().len() <= 2 * 64 + 8);
}

#[tokio::test]
async fn limits_of_one_command_hold_and_its_usage_is_told() {
    let rig = Rig::new().await;
    let flood = ExecRequest { output_limit: Some(100_000), ..shell("yes & yes >&2") };
    let (said, status) = rest(rig.sandbox.exec(flood).await.unwrap()).await;
    assert!(status.output_exceeded && status.signal == Some(9) && said.len() == 100_000, "{status:?} {}", said.len());
    let enough = ExecRequest { output_limit: Some(3), ..shell("echo ab") };
    let (said, status) = rest(rig.sandbox.exec(enough).await.unwrap()).await;
    assert_eq!((said.as_str(), status.code, status.output_exceeded), ("ab\n", Some(0), false));
    let slow = ExecRequest { timeout: Some(Duration::from_millis(100)), ..shell("sleep 1000") };
    assert!(rest(rig.sandbox.exec(slow).await.unwrap()).await.1.timed_out);
    let (_, status) = rest(rig.sandbox.exec(shell("i=0; while ((i++ < 300000)); do :; done")).await.unwrap()).await;
    let usage = status.usage;
    assert!(usage.user + usage.system > Duration::from_millis(20), "{usage:?}");
    assert!(usage.wall >= Duration::from_millis(20) && usage.max_rss_kib > 500, "{usage:?}");
    let root = ExecRequest { uid: Some(0), ..shell("id -u") };
    let refused = rig.sandbox.exec(root).await.unwrap().wait().await.unwrap_err();
    assert!(refused.to_string().contains("cannot run as user 0"), "{refused}");
    let own = ExecRequest { uid: Some(1000), cwd: Some("/tmp".into()), ..shell("id -u; pwd") };
    assert_eq!(rest(rig.sandbox.exec(own).await.unwrap()).await.0, "1000\n/tmp\n");
    let nowhere = ExecRequest { cwd: Some("/no/where".into()), ..shell("true") };
    let refused = rig.sandbox.exec(nowhere).await.unwrap().wait().await.unwrap_err();
    assert!(refused.to_string().contains("working directory /no/where"), "{refused}");
}

#[tokio::test]
async fn a_call_of_the_shell_tells_what_it_used() {
    let rig = Rig::new().await;
    rig.bash("true").await;
    let call = palisade_sandbox::ToolCall {
        name: "bash".into(),
        input: serde_json::json!({"command": "i=0; while ((i++ < 500000)); do :; done"}),
        timeout: Duration::from_secs(60),
    };
    let usage = rig.sandbox.tool(call).await.unwrap().usage;
    assert!(usage.cpu.unwrap() >= Duration::from_millis(20) && usage.wall >= Duration::from_millis(20), "{usage:?}");
}

#[tokio::test]
async fn programs_are_found_and_scripts_are_run() {
    let rig = Rig::new().await;
    rig.bash("mkdir bin d; printf 'echo script $1' > bin/plain; chmod +x bin/plain; mkdir bin/env").await;
    let env = vec![("PATH".to_owned(), "/no:/workspace/bin:/usr/bin".to_owned())];
    let run = async |words: &[&str]| {
        rest(rig.sandbox.exec(ExecRequest { env: env.clone(), ..request(words) }).await.unwrap()).await.0
    };
    assert_eq!(run(&["plain", "word"]).await, "script word\n");
    assert!(run(&["env"]).await.contains("PATH=/no:/workspace/bin:/usr/bin\n"));
    for (words, why) in [(&["nothing"][..], "No such file"), (&[], "argv is empty"), (&["/workspace/d"], "denied")] {
        let refused = rig.sandbox.exec(request(words)).await.unwrap().wait().await.unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    let odd = ExecRequest { env: vec![("A=B".into(), "x".into())], ..shell("true") };
    assert!(rig.sandbox.exec(odd).await.unwrap().wait().await.unwrap_err().to_string().contains("malformed"));
}

#[tokio::test]
async fn a_port_inside_is_reached_and_no_other() {
    let rig = Rig::new().await;
    let server = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 4444, \
                  Listen => 9, ReuseAddr => 1) or die; $| = 1; print \"up\\n\"; while (my $c = $s->accept) { \
                  my $n = 0; while (sysread($c, my $b, 65536)) { $n += length $b } print $c \"got $n\\n\", 'y' x 3000000; close $c }";
    let mut server = rig.sandbox.exec(request(&["/usr/bin/perl", "-e", server])).await.unwrap();
    until(&mut server, "up").await;
    for _ in 0..3 {
        let (mut ours, theirs) = tokio::io::duplex(1 << 16);
        let relay = rig.sandbox.connect(4444).await.unwrap().relay(theirs);
        let talk = async move {
            ours.write_all(&vec![b'x'; 5_000_000]).await.unwrap();
            ours.shutdown().await.unwrap();
            let mut said = Vec::new();
            ours.read_to_end(&mut said).await.unwrap();
            said
        };
        let (relayed, said) = tokio::join!(relay, talk);
        relayed.unwrap();
        assert!(said.starts_with(b"got 5000000\nyyy") && said.len() == 3_000_012, "{}", said.len());
    }
    // A port of the host is not one of the sandbox.
    let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = rig.sandbox.connect(host.local_addr().unwrap().port()).await;
    assert!(matches!(&refused, Err(Error::Connect { reason, .. }) if reason.contains("refused")), "{refused:?}");
}

#[tokio::test]
async fn whoever_listens_hears_of_the_end_of_the_sandbox() {
    let rig = Rig::new().await;
    let mut exec = rig.sandbox.exec(shell("sleep 1000")).await.unwrap();
    rig.sandbox.destroy().await.unwrap();
    assert!(matches!(exec.next().await, Err(Error::Ended)));
}

/// Polls something a few times, and gives it up if it is not done by then.
async fn briefly<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    let given_up = async {
        for _ in 0..polls {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = given_up => None,
    }
}

#[tokio::test]
async fn who_stops_waiting_loses_nothing() {
    const BYTES: usize = 16 << 20;
    const SINKS: usize = 8;
    let rig = Rig::new().await;
    // Small pieces, so that a window that is told twice overruns what holds them here.
    let script = format!("yes 123456 | dd bs=14 count={} iflag=fullblock status=none", BYTES / 14);
    let mut exec = rig.sandbox.exec(shell(&script)).await.unwrap();
    let mut sinks = Vec::new();
    for _ in 0..SINKS {
        let sink = ExecRequest { stdin: true, ..request(&["/bin/sh", "-c", "exec cat > /dev/null"]) };
        sinks.push(rig.sandbox.exec(sink).await.unwrap());
    }
    let piece = vec![b'x'; 64 << 10];
    // What is taken between two stops, in whatever pieces it comes.
    const BETWEEN: usize = BYTES / 32;
    let (mut heard, mut round) = (0, 0);
    let mut hear = |said: Result<Option<Output>, Error>| match said {
        Ok(Some(Output::Stdout(bytes))) => {
            heard += bytes.len();
            Some(bytes.len())
        }
        Ok(None) => None,
        other => panic!("{other:?} after {heard} bytes"),
    };
    'all: loop {
        round += 1;
        // While nothing is taken, what is sent waits in the middle of frames, and is given up there.
        let stopped = round < 100;
        if stopped {
            rig.sandbox.freeze().await.unwrap();
        }
        for sink in &sinks {
            while briefly(1 + round % 3, sink.write(&piece)).await.is_some() {}
        }
        for polls in 0..20 {
            if let Some(said) = briefly(polls % 3, exec.next()).await
                && hear(said).is_none()
            {
                break 'all;
            }
        }
        if stopped {
            rig.sandbox.thaw().await.unwrap();
        }
        let mut taken = 0;
        while taken < BETWEEN {
            match hear(exec.next().await) {
                Some(more) => taken += more,
                None => break 'all,
            }
        }
    }
    assert!(round > 3, "{round}");
    assert_eq!(heard, BYTES / 14 * 14);
    // Whatever was given up has given its room back.
    for sink in &sinks {
        let all = tokio::time::timeout(Duration::from_secs(30), sink.write(&vec![b'x'; 4 << 20])).await;
        all.expect("there is room").unwrap();
    }
}
