//! Commands in live sandboxes, through the binary as an operator has it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use crate::rig::{Rig, Running, signal};

/// A worker that serves one session, and the session's id.
fn served(more: &[&str]) -> (Rig, Running, String) {
    let rig = Rig::new();
    let up = rig.start(&[&["up", "--max-idle", "600"], more].concat());
    let said = rig.text(&["run", "--model", "scripted", "work"]);
    assert!(said.contains("It said: 42"), "{said}");
    let session = rig.object(&["ps"])["id"].as_str().unwrap().to_owned();
    (rig, up, session)
}

/// A command that runs until it is told to end; what it printed first.
fn lasting(rig: &Rig, args: &[&str]) -> (Child, String) {
    let mut child = rig.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

fn end(mut child: Child) {
    signal(child.id(), "TERM");
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_operator_works_in_a_live_sandbox() {
    let (rig, up, session) = served(&[]);
    let exec = |words: &[&str]| rig.run(&[&["exec", &session, "--"], words].concat());
    let output = exec(&["sh", "-c", "pwd; echo wrong >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"/workspace\n"[..], &b"wrong\n"[..]));
    assert_eq!(exec(&["sh", "-c", "kill -TERM $$"]).status.code(), Some(128 + 15));
    let failed = exec(&["/no/such"]);
    assert_eq!(failed.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("No such file"), "{failed:?}");
    let slow = rig.run(&["exec", "--timeout", "1", &session, "--", "sleep", "1000"]);
    assert_eq!(slow.status.code(), Some(124));
    let told = rig.text(&["exec", "--env", "A=b c", "--cwd", "/tmp", &session, "--", "sh", "-c", "echo $A; pwd"]);
    assert_eq!(told, "b c\n/tmp\n");
    let mut typed = rig
        .command(&["exec", "-i", &session, "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    typed.stdin.take().unwrap().write_all(&b"x".repeat(1_000_000)).unwrap();
    assert_eq!(typed.wait_with_output().unwrap().stdout.len(), 1_000_000);
    // A terminal inside, whatever there is here.
    let told = rig.text(&["exec", "-t", &session, "--", "sh", "-c", "stty size; test -t 0 && echo terminal"]);
    assert_eq!(told, "24 80\r\nterminal\r\n");
    // One that goes on by itself.
    let process =
        rig.text(&["exec", "--detach", "--label", "counts", &session, "--", "sh", "-c", "echo early; sleep 1000"]);
    let process = process.trim();
    let listed = rig.objects(&["ps", &session]);
    let found = listed.iter().find(|found| found["label"] == "counts").unwrap();
    assert_eq!(found["id"].to_string(), process);
    let (mut attached, line) = lasting(&rig, &["attach", &session, process]);
    assert_eq!(line, "early\n");
    rig.text(&["exec", &session, "--", "sh", "-c", "until kill $(pgrep -x sleep) 2>/dev/null; do :; done"]);
    assert_eq!(attached.wait().unwrap().code(), Some(128 + 15));
    assert!(rig.text(&["ps", &session]).contains("counts (sh -c"));
    assert!(rig.text(&["top"]).contains(&session));
    assert_eq!(rig.object(&["top"])["sandbox"], true);
    for args in [&["exec", "sesn_none", "--", "true"][..], &["ps", "sesn_none"], &["attach", &session, "4711"]] {
        assert!(!rig.run(args).status.success(), "{args:?}");
    }
    let (_, _, log) = up.end();
    assert!(log.contains("admin action") && log.contains("action=\"exec\""), "{log}");
    assert!(!log.contains("b c"), "values are not logged: {log}");
    let after = rig.run(&["ps"]);
    assert!(String::from_utf8_lossy(&after.stderr).contains("no worker answers"), "{after:?}");
}

#[test]
fn files_are_copied_both_ways() {
    let (rig, _up, session) = served(&[]);
    let tree = rig.path("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), "content").unwrap();
    std::os::unix::fs::symlink("file", tree.join("link")).unwrap();
    let inside = |path: &str| format!("{session}:{path}");
    rig.text(&["cp", "tree", &inside("/workspace")]);
    rig.text(&["cp", "tree/file", &inside("renamed")]);
    assert_eq!(rig.text(&["exec", &session, "--", "cat", "tree/link", "renamed"]), "contentcontent");
    rig.text(&["cp", &inside("tree"), "back"]);
    assert_eq!(std::fs::read_to_string(rig.path("back/link")).unwrap(), "content");
    // What an agent has made is unpacked here without following it.
    rig.text(&["exec", &session, "--", "sh", "-c", "mkdir -p trap; ln -s /tmp trap/out; mkfifo trap/pipe"]);
    let output = rig.run(&["cp", &inside("trap"), "trap"]);
    assert!(output.status.success() && !rig.path("trap/pipe").exists(), "{output:?}");
    assert!(std::fs::symlink_metadata(rig.path("trap/out")).unwrap().is_symlink());
    std::process::Command::new("mkfifo").arg(rig.path("tree/pipe")).status().unwrap();
    let output = rig.run(&["cp", "tree", &inside("again")]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("left out"), "{output:?}");
    for args in [
        ["cp", "tree", "elsewhere"].map(str::to_owned),
        ["cp".to_owned(), inside("a"), inside("b")],
        ["cp".to_owned(), inside("/no/such"), "x".to_owned()],
        ["cp".to_owned(), "no-such".to_owned(), inside("x")],
        ["cp".to_owned(), "tree".to_owned(), inside("/etc/x")],
    ] {
        let output = rig.run(&args.each_ref().map(String::as_str));
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "), "{output:?}");
    }
    assert!(!rig.path("x").exists() && !rig.path("elsewhere").exists());
}

/// A server inside that answers every request with what it got.
const SERVER: &str = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 3000, \
                      Listen => 9) or die; $| = 1; while (my $c = $s->accept) { my $q = ''; while (<$c>) { $q .= $_; last \
                      if /^\\r?$/ } print $c \"HTTP/1.1 200 OK\\r\\ncontent-length: \", length $q, \"\\r\\nconnection: \
                      close\\r\\n\\r\\n$q\"; close $c }";

fn request(port: &str, head: &str) -> String {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    stream.write_all(format!("GET {head}\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_port_inside_is_led_out_and_shown_to_one_browser() {
    let (rig, _up, session) = served(&["--allow-preview"]);
    rig.text(&["exec", "--detach", &session, "--", "perl", "-e", SERVER]);
    let listens = "until grep -q :0BB8 /proc/net/tcp; do sleep 0.01; done";
    rig.text(&["exec", &session, "--", "sh", "-c", listens]);
    let (forward, line) = lasting(&rig, &["forward", &session, "0:3000"]);
    let port = line.split(&[':', ' ']).nth(2).unwrap().to_owned();
    assert!(request(&port, "/path HTTP/1.1\r\nhost: x").contains("GET /path"));
    end(forward);
    let (preview, line) = lasting(&rig, &["preview", &session, "3000"]);
    let (port, token) = line.trim().rsplit_once('/').unwrap();
    let port = port.rsplit_once(':').unwrap().1;
    let host = format!("HTTP/1.1\r\nhost: 127.0.0.1:{port}");
    assert!(request(port, &format!("/ {host}")).starts_with("HTTP/1.1 403"));
    assert!(request(port, &format!("/?palisade_token=00 {host}")).starts_with("HTTP/1.1 403"));
    assert!(request(port, &format!("/{token} HTTP/1.1\r\nhost: evil.example:{port}")).starts_with("HTTP/1.1 403"));
    let admitted = request(port, &format!("/{token} {host}"));
    assert!(admitted.starts_with("HTTP/1.1 303") && admitted.contains("SameSite=Strict"), "{admitted}");
    let cookie = admitted.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap();
    assert!(request(port, &format!("/{token} {host}")).starts_with("HTTP/1.1 403"), "the address opens once");
    let shown = request(port, &format!("/page {host}\r\ncookie: a=b; {cookie}"));
    assert!(shown.starts_with("HTTP/1.1 200") && shown.contains("GET /page"), "{shown}");
    assert!(shown.contains("a=b") && !shown.contains("palisade_preview"), "the program inside sees no pass: {shown}");
    end(preview);
    let (rig, _up, session) = served(&[]);
    let refused = rig.run(&["preview", &session, "3000"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--allow-preview"), "{refused:?}");
}

#[test]
fn ssh_lets_in_who_has_a_certificate_and_only_there() {
    if std::process::Command::new("ssh").arg("-V").output().is_err() {
        println!("not tried: there is no OpenSSH client on this machine (Debian: apt-get install openssh-client)");
        return;
    }
    let (rig, up, session) = served(&["--ssh"]);
    let ssh = |words: &[&str]| rig.run(&[&["ssh", &session, "--"], words].concat());
    let output = ssh(&["echo hello; pwd; echo wrong >&2; exit 9"]);
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    assert_eq!(&output.stdout[..], b"hello\n/workspace\n", "{output:?}");
    assert!(output.stderr.ends_with(b"wrong\n"));
    let mut typed =
        rig.command(&["ssh", &session, "--", "wc -c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    typed.stdin.take().unwrap().write_all(&b"x".repeat(3_000_000)).unwrap();
    assert_eq!(typed.wait_with_output().unwrap().stdout, b"3000000\n");
    let much = ssh(&["head -c 5000000 /dev/zero"]);
    assert_eq!(much.stdout.len(), 5_000_000);
    let output = ssh(&["-tt", "test -t 0 && stty size && echo $TERM"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // A port of the sandbox is led out; one of the host is not reached through it.
    rig.text(&["exec", "--detach", &session, "--", "perl", "-e", SERVER]);
    let listens = "until grep -q :0BB8 /proc/net/tcp; do sleep 0.01; done";
    rig.text(&["exec", &session, "--", "sh", "-c", listens]);
    let inside = rig
        .command(&["ssh", &session, "--", "-W", "localhost:3000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    inside.stdin.as_ref().unwrap().write_all(b"GET /inside HTTP/1.1\r\n\r\n").unwrap();
    let inside = inside.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&inside.stdout).contains("GET /inside"), "{inside:?}");
    let port = up.url.rsplit_once(':').unwrap().1.to_owned();
    for outside in [format!("localhost:{port}"), "192.0.2.1:80".to_owned()] {
        let refused = ssh(&["-W", &outside]);
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{outside}: {refused:?}");
    }
    let wrong = rig.run(&["ssh", "sesn_none", "--", "true"]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    // The key without its certificate opens nothing.
    let bare = ssh(&["-o", "PubkeyAcceptedAlgorithms=ssh-ed25519", "true"]);
    assert_eq!(bare.status.code(), Some(255), "{bare:?}");
    assert_eq!(crate::rig::mode(&rig.path("state/worker/ssh_host_ed25519_key")), 0o600);
    let (_, _, log) = up.end();
    for action in
        ["ssh certificate", "ssh login", "ssh exec", "ssh forward", "ssh forward refused", "ssh login refused"]
    {
        assert!(log.contains(&format!("action=\"{action}\"")), "{action}: {log}");
    }
    // Nobody else was refused.
    assert_eq!(log.matches("action=\"ssh login refused\"").count(), 1, "{log}");
    let (rig, _up, session) = served(&[]);
    let refused = rig.run(&["ssh", &session]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--ssh"), "{refused:?}");
}
