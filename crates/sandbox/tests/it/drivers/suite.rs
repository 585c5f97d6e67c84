//! What every driver must pass.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use palisade_sandbox::{
    Driver, Error, Exec, ExecRequest, ExitStatus, Facility, Given, MemoryMount, Output, Process, Rootfs, Sandbox, Size,
    Spec, Status, ToolCall, archive,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A driver under test.
pub(crate) struct Subject {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) rootfs: Rootfs,
    /// Where the places are inside: none for the usual ones.
    pub(crate) bare: bool,
    /// What it must enforce on this machine.
    pub(crate) enforces: &'static [Facility],
    /// What it must leave alone at the end: looked at when all sandboxes are gone. What is left is said.
    pub(crate) left: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// What must live as long as the test: images, engines.
    pub(crate) _keep: Box<dyn std::any::Any + Send>,
}

/// A sandbox of it.
pub(crate) struct Place {
    pub(crate) sandbox: Sandbox,
    pub(crate) home: TempDir,
    bare: bool,
}

pub(crate) fn home() -> (TempDir, PathBuf, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let (workspace, outputs) = (home.path().join("workspace"), home.path().join("outputs"));
    fs::create_dir(&workspace).unwrap();
    fs::create_dir(&outputs).unwrap();
    (home, workspace, outputs)
}

impl Subject {
    pub(crate) async fn place(&self) -> Place {
        self.place_with(|_| {}).await
    }

    pub(crate) async fn place_with(&self, change: impl FnOnce(&mut Spec)) -> Place {
        let (home, _, _) = home();
        let mut spec = self.spec(&home);
        change(&mut spec);
        let sandbox = self.driver.create(spec).await.unwrap_or_else(|why| panic!("{}: {why}", self.driver.name()));
        Place { sandbox, home, bare: self.bare }
    }
}

impl Subject {
    /// The spec of a sandbox in a home.
    pub(crate) fn spec(&self, home: &TempDir) -> Spec {
        let mut spec = Spec::new(home.path().join("workspace"), home.path().join("outputs"));
        spec.rootfs = self.rootfs.clone();
        spec
    }
}

impl Place {
    pub(crate) fn of(sandbox: Sandbox, home: TempDir) -> Place {
        Place { sandbox, home, bare: false }
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.home.path().join("workspace")
    }

    /// The outputs as they are called inside.
    fn outputs(&self) -> String {
        if self.bare {
            self.home.path().join("outputs").display().to_string()
        } else {
            "/mnt/session/outputs".to_owned()
        }
    }

    pub(crate) async fn call(&self, name: &str, input: Value) -> (String, bool) {
        let call = ToolCall { name: name.to_owned(), input, timeout: Duration::from_secs(30) };
        let output = self.sandbox.tool(call).await.unwrap();
        (output.content[0]["text"].as_str().unwrap_or_default().to_owned(), output.is_error)
    }

    pub(crate) async fn bash(&self, command: &str) -> String {
        self.call("bash", json!({"command": command})).await.0
    }

    /// Perl, as it is in a root file system without locales.
    async fn perl(&self, words: &[&str]) -> String {
        let quiet = ["/bin/env", "PERL_BADLANG=0", "/bin/perl", "-e"];
        self.run(&[&quiet, words].concat()).await.1
    }

    pub(crate) async fn run(&self, words: &[&str]) -> (ExitStatus, String) {
        let request = ExecRequest { timeout: Some(Duration::from_secs(30)), ..argv(words) };
        let (status, mut out, err) = self.sandbox.exec(request).await.unwrap().wait().await.unwrap();
        out.extend(err);
        (status, String::from_utf8_lossy(&out).trim().to_owned())
    }
}

pub(crate) fn argv(words: &[&str]) -> ExecRequest {
    ExecRequest { argv: words.iter().map(|&word| word.to_owned()).collect(), ..ExecRequest::default() }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let look = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), look).await.unwrap_or_else(|_| panic!("not within 30 s: {what}"));
}

pub(crate) async fn the_six_tools_work(subject: Subject) {
    let place = subject.place().await;
    let ok = |text: &str| (text.to_owned(), false);
    assert_eq!(
        place.call("write", json!({"file_path": "a/b", "content": "one\ntwo\n"})).await,
        ok("wrote 8 bytes to a/b")
    );
    assert_eq!(place.call("read", json!({"file_path": "a/b"})).await, ok("one\ntwo\n"));
    let edit = json!({"file_path": "a/b", "old_string": "two", "new_string": "three"});
    assert_eq!(place.call("edit", edit).await, ok("edited a/b (1 replacement(s))"));
    assert!(place.call("glob", json!({"pattern": "**/b"})).await.0.ends_with("/a/b"));
    assert!(place.call("grep", json!({"pattern": "^thr"})).await.0.ends_with("/a/b:2:three\n"));
    assert_eq!(place.bash("cd a && x=kept; cat b").await, "one\nthree");
    assert_eq!(place.bash("echo $x; cat b; false").await, "kept\none\nthree");
    let (text, is_error) = place.call("bash", json!({"command": "sleep 100", "timeout_ms": 300})).await;
    assert!(is_error && text.contains("timed out"), "{text}");
    assert_eq!(place.call("bash", json!({"restart": true, "command": "echo again"})).await, ok("again"));
    for name in ["/etc/passwd", "../secret", "/proc/1/environ"] {
        let (text, is_error) = place.call("read", json!({"file_path": name})).await;
        assert!(is_error && text.contains("outside"), "{name}: {text}");
    }
}

pub(crate) async fn commands_have_input_output_and_an_end(subject: Subject) {
    let place = subject.place().await;
    let (status, out, err) = place
        .sandbox
        .exec(argv(&["/bin/bash", "-c", "echo out; echo err >&2; exit 7"]))
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!((status.code, out.as_slice(), err.as_slice()), (Some(7), &b"out\n"[..], &b"err\n"[..]));
    let mut cat = place.sandbox.exec(ExecRequest { stdin: true, ..argv(&["/bin/cat"]) }).await.unwrap();
    cat.write(b"over and over").await.unwrap();
    assert_eq!(cat.next().await.unwrap(), Some(Output::Stdout(b"over and over".to_vec())));
    cat.close_stdin().await.unwrap();
    assert_eq!(cat.wait().await.unwrap().0.code, Some(0));
    // More than any pipe on the way holds, both ways.
    let many = vec![b'x'; 3 << 20];
    let cat = place.sandbox.exec(ExecRequest { stdin: true, ..argv(&["/bin/cat"]) }).await.unwrap();
    let (mut cat, mut back) = (cat, 0);
    for piece in many.chunks(128 << 10) {
        cat.write(piece).await.unwrap();
        while back < piece.len() {
            let Some(Output::Stdout(bytes)) = cat.next().await.unwrap() else { panic!("no more") };
            back += bytes.len();
        }
        back -= piece.len();
    }
    cat.close_stdin().await.unwrap();
    assert_eq!(cat.wait().await.unwrap().0.code, Some(0));
    let sleep = place.sandbox.exec(argv(&["/bin/sleep", "1000"])).await.unwrap();
    sleep.signal(15).await.unwrap();
    assert_eq!(sleep.wait().await.unwrap().0.signal, Some(15));
    let late = ExecRequest { timeout: Some(Duration::from_millis(100)), ..argv(&["/bin/sleep", "1000"]) };
    assert!(place.sandbox.exec(late).await.unwrap().wait().await.unwrap().0.timed_out);
    let missing = place.sandbox.exec(argv(&["/no/such/program"])).await.unwrap().wait().await;
    assert!(matches!(missing, Err(Error::Exec(_))), "{missing:?}");
}

/// Reads until `wanted` has been said.
async fn hear(exec: &mut Exec, wanted: &str) -> String {
    let mut said = String::new();
    while !said.contains(wanted) {
        match exec.next().await.unwrap() {
            Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => said.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} after {said}"),
        }
    }
    said
}

async fn terminal(place: &Place) -> Exec {
    let tty = Some(Size { rows: 31, cols: 97 });
    let words = argv(&["/bin/bash", "--norc", "-i"]);
    place.sandbox.exec(ExecRequest { tty, ..words }).await.unwrap()
}

pub(crate) async fn a_terminal_has_a_size(subject: Subject) {
    let place = subject.place().await;
    let mut exec = terminal(&place).await;
    exec.write(b"stty size\n").await.unwrap();
    hear(&mut exec, "31 97").await;
    exec.resize(Size { rows: 50, cols: 120 }).await.unwrap();
    exec.write(b"stty size\n").await.unwrap();
    hear(&mut exec, "50 120").await;
    exec.write(b"exit 7\n").await.unwrap();
    assert_eq!(exec.wait().await.unwrap().0.code, Some(7));
}

/// Not of gVisor: its terminals neither interrupt nor say which group is in the foreground.
pub(crate) async fn a_terminal_has_jobs(subject: Subject) {
    let place = subject.place().await;
    let mut exec = terminal(&place).await;
    for typed in [true, false] {
        // Heard when it is there to be interrupted.
        exec.write(b"bash -c 'echo up; sleep 1000'\n").await.unwrap();
        hear(&mut exec, "up\r\n").await;
        if typed {
            exec.write(b"\x03").await.unwrap();
        } else {
            exec.signal(2).await.unwrap();
        }
        // What is typed before the shell shows that it is ready again may be forgotten.
        hear(&mut exec, "bash-").await;
        exec.write(format!("echo {typed} $?\n").as_bytes()).await.unwrap();
        hear(&mut exec, &format!("{typed} 130")).await;
    }
}

pub(crate) async fn files_go_in_and_come_back(subject: Subject) {
    let place = subject.place().await;
    let from = tempfile::tempdir().unwrap();
    let tree = from.path().join("tree");
    fs::create_dir_all(tree.join("deep")).unwrap();
    fs::write(tree.join("deep/file"), vec![7; 300_000]).unwrap();
    std::os::unix::fs::symlink("deep/file", tree.join("link")).unwrap();
    let mut packed = Vec::new();
    archive::pack(&tree, &mut packed).unwrap();
    // Relative paths begin in the workspace.
    let exec = place.sandbox.copy_in(".").await.unwrap();
    exec.write(&packed).await.unwrap();
    exec.close_stdin().await.unwrap();
    let (status, _, said) = exec.wait().await.unwrap();
    assert_eq!(status.code, Some(0), "{}", String::from_utf8_lossy(&said));
    assert_eq!(fs::read(place.workspace().join("tree/link")).unwrap(), vec![7; 300_000]);
    let mut exec = place.sandbox.copy_out("tree").await.unwrap();
    let mut back = Vec::new();
    while let Some(output) = exec.next().await.unwrap() {
        let Output::Stdout(bytes) = output else { panic!("{output:?}") };
        back.extend(bytes);
    }
    assert_eq!(exec.status().unwrap().code, Some(0));
    let to = tempfile::tempdir().unwrap();
    archive::unpack(&back[..], to.path()).unwrap();
    assert_eq!(fs::read(to.path().join("tree/deep/file")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::read_link(to.path().join("tree/link")).unwrap(), Path::new("deep/file"));
}

pub(crate) async fn a_detached_command_is_listed_and_heard_again(subject: Subject) {
    let place = subject.place().await;
    let words = argv(&["/bin/bash", "-c", "echo one; read x; echo got $x; exit 7"]);
    let wanted = ExecRequest { detach: true, stdin: true, label: "build".into(), ..words };
    let mut exec = place.sandbox.exec(wanted).await.unwrap();
    hear(&mut exec, "one\n").await;
    let (process, offset) = (exec.process(), exec.offset());
    drop(exec);
    // A process that belongs to nobody, and one of the host that is none of the sandbox's.
    place.bash("(sleep 1234 &) ; true").await;
    let mut other = std::process::Command::new("/bin/sleep").arg("4321").spawn().unwrap();
    let sleeps = |listed: &[Process], time: &str| {
        listed.iter().any(|listed| listed.argv.last().is_some_and(|word| word == time))
    };
    let look = async {
        loop {
            let listed = place.sandbox.processes().await.unwrap();
            // Until then it is a copy of the shell.
            if sleeps(&listed, "1234") {
                break listed;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let listed = tokio::time::timeout(Duration::from_secs(30), look).await.unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    let found = listed.iter().find(|listed| listed.id == Some(process)).unwrap();
    assert!(found.detached && found.label == "build" && found.pid > 1 && found.end.is_none(), "{found:?}");
    assert!(found.argv[0] == "/bin/bash" && !found.state.is_empty(), "{found:?}");
    assert!(!sleeps(&listed, "4321"), "{listed:?}");
    let mut again = place.sandbox.attach(process, Some(offset), true).await.unwrap();
    again.write(b"word\n").await.unwrap();
    assert_eq!(hear(&mut again, "got word\n").await, "got word\n");
    assert_eq!(again.wait().await.unwrap().0.code, Some(7));
    let (status, out, _) = place.sandbox.attach(process, None, false).await.unwrap().wait().await.unwrap();
    assert_eq!((status.code, out.as_slice()), (Some(7), &b"one\ngot word\n"[..]));
}

pub(crate) async fn a_port_inside_is_reached(subject: Subject) {
    let place = subject.place().await;
    // Perl's own words, as there may be no modules.
    let server = "socket(S, 2, 1, 0) or die; bind(S, pack('S n N x8', 2, 0, 0x7f000001)) or die; listen(S, 9) or die; \
                  my (undef, $port) = unpack('S n', getsockname(S)); $| = 1; print \"port $port\\n\"; \
                  accept(C, S) or die; close S; my $n = 0; while (sysread(C, my $b, 65536)) { $n += length $b } \
                  syswrite(C, \"got $n\\n\"); close C; <STDIN>";
    // The image has no locales, of which Perl would complain.
    let env = vec![("LC_ALL".to_owned(), "C".to_owned())];
    let words = argv(&["perl", "-e", server]);
    let mut server = place.sandbox.exec(ExecRequest { stdin: true, env, ..words }).await.unwrap();
    let said = hear(&mut server, "\n").await;
    let port = said.trim().strip_prefix("port ").and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    let (mut ours, theirs) = tokio::io::duplex(1 << 16);
    let relay = place.sandbox.connect(port).await.unwrap().relay(theirs);
    let talk = async move {
        ours.write_all(&vec![b'x'; 500_000]).await.unwrap();
        ours.shutdown().await.unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).await.unwrap();
        said
    };
    let (relayed, said) = tokio::join!(relay, talk);
    relayed.unwrap();
    assert_eq!(said, "got 500000\n");
    let refused = place.sandbox.connect(port).await;
    assert!(matches!(&refused, Err(Error::Connect { reason, .. }) if reason.contains("refused")), "{refused:?}");
}

pub(crate) async fn a_command_gets_what_the_spec_says_and_no_more(subject: Subject) {
    let place = subject.place_with(|spec| spec.env.push(("GIVEN".to_owned(), "by the spec".to_owned()))).await;
    let (_, env) = place.run(&["env"]).await;
    let names: BTreeSet<&str> = env.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let known = ["GIVEN", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER"];
    assert_eq!(names, BTreeSet::from(known), "{env}");
    // Nothing is read from where the worker speaks, and nothing is open but the three.
    assert_eq!(place.run(&["/bin/cat"]).await.1, "");
    let (_, open) = place.run(&["/bin/bash", "-c", "for fd in /proc/self/fd/*; do echo -n \"${fd##*/} \"; done"]).await;
    let open: BTreeSet<u32> = open.split_whitespace().filter_map(|fd| fd.parse().ok()).filter(|fd| *fd < 200).collect();
    assert!(open.is_subset(&BTreeSet::from([0, 1, 2, 3])) && open.len() >= 3, "{open:?}");
}

pub(crate) async fn what_is_written_is_the_hosts(subject: Subject) {
    let memory = tempfile::tempdir().unwrap();
    let (seen, kept) = (memory.path().join("seen"), memory.path().join("kept"));
    for directory in [&seen, &kept] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("note"), "a note").unwrap();
    }
    let mount =
        |host: &Path, name: &str, read_only| MemoryMount { host: host.to_owned(), name: name.to_owned(), read_only };
    let mounts = vec![mount(&seen, "seen", true), mount(&kept, "kept", false)];
    let place = subject.place_with(|spec| spec.memory = mounts).await;
    fs::write(place.workspace().join("from-host"), "hello").unwrap();
    assert_eq!(place.bash("cat from-host; echo back > from-sandbox").await, "hello");
    assert_eq!(fs::read_to_string(place.workspace().join("from-sandbox")).unwrap(), "back\n");
    let outputs = place.outputs();
    assert!(!place.call("write", json!({"file_path": format!("{outputs}/result"), "content": "done"})).await.1);
    assert_eq!(fs::read_to_string(place.home.path().join("outputs/result")).unwrap(), "done");
    let inside = |name: &str, host: &Path| {
        if place.bare { host.display().to_string() } else { format!("/mnt/memory/{name}") }
    };
    let (seen_inside, kept_inside) = (inside("seen", &seen), inside("kept", &kept));
    assert_eq!(place.call("read", json!({"file_path": format!("{seen_inside}/note")})).await.0, "a note");
    let (text, is_error) =
        place.call("write", json!({"file_path": format!("{seen_inside}/note"), "content": "x"})).await;
    assert!(is_error && text.contains("read-only"), "{text}");
    if !place.bare {
        place.bash("echo x > /mnt/memory/seen/note; rm -f /mnt/memory/seen/note; touch /mnt/memory/seen/more").await;
        assert_eq!(fs::read_dir(&seen).unwrap().count(), 1);
    }
    assert_eq!(fs::read_to_string(seen.join("note")).unwrap(), "a note");
    assert!(!place.call("write", json!({"file_path": format!("{kept_inside}/note"), "content": "y"})).await.1);
    assert_eq!(fs::read_to_string(kept.join("note")).unwrap(), "y");
    // The work outlives the sandbox, and the next one may go on with it.
    let workspace = place.workspace();
    place.sandbox.destroy().await.unwrap();
    let next = subject.place_with(|spec| spec.workspace = workspace.into()).await;
    assert_eq!(next.bash("echo more >> from-sandbox && cat from-sandbox").await, "back\nmore");
}

pub(crate) async fn nobody_has_a_privilege(subject: Subject) {
    let place = subject.place().await;
    assert_eq!(place.run(&["/bin/bash", "-c", "echo $UID $EUID"]).await.1, "1000 1000");
    let (_, status) = place.run(&["/bin/cat", "/proc/self/status"]).await;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(field(set).is_none_or(|value| value.bytes().all(|b| b == b'0')), "{set}: {status}");
    }
    assert!(field("CapEff").is_some(), "{status}");
    assert_ne!(field("NoNewPrivs"), Some("0"), "{status}");
    assert!(field("Seccomp").is_none_or(|mode| mode == "2"), "{status}");
    for path in [
        "/x",
        "/etc/passwd",
        "/bin/bash",
        "/.palisade/cell",
        "/.palisade/x",
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
    ] {
        let (status, said) = place.run(&["/bin/bash", "-c", &format!("echo x > {path}")]).await;
        assert_ne!(status.code, Some(0), "{path}: {said}");
    }
    assert_eq!(place.run(&["/bin/cat", "/etc/shadow"]).await.0.code, Some(1));
    for directory in ["/tmp", "/dev/shm", "$HOME", "/workspace"] {
        let (status, said) = place.run(&["/bin/bash", "-c", &format!("echo x > {directory}/x")]).await;
        assert_eq!(status.code, Some(0), "{directory}: {said}");
    }
    for facility in subject.enforces {
        assert!(place.sandbox.report().enforces(*facility), "{facility}: {:?}", place.sandbox.report());
    }
    // The cell cannot be looked into.
    // Where it could be, there is nothing to be seen.
    let (status, environ) = place.run(&["/bin/cat", "/proc/1/environ"]).await;
    assert!(
        status.code != Some(0) || environ.trim_matches('\0').is_empty() || environ.starts_with("HOME="),
        "{environ}"
    );
    assert_ne!(place.run(&["/bin/cat", "/proc/1/mem"]).await.0.code, Some(0));
}

/// Where a kernel of its own lets the first process be killed and stopped, no other signal ends it.
pub(crate) async fn no_other_signal_ends_the_cell(subject: Subject) {
    let place = subject.place().await;
    place.bash("for n in {1..64}; do [ $n = 9 ] || [ $n = 19 ] || kill -$n 1; done").await;
    assert_eq!(place.bash("echo here").await, "here");
}

pub(crate) async fn the_cell_cannot_be_killed(subject: Subject) {
    let place = subject.place().await;
    place.bash("kill -9 1; kill -15 1; kill -2 1").await;
    assert_eq!(place.bash("echo here").await, "here");
}

pub(crate) async fn there_is_no_network(subject: Subject) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let place = subject.place().await;
    for host in ["127.0.0.1", "1.1.1.1", "169.254.169.254"] {
        let said = place.bash(&format!("(echo > /dev/tcp/{host}/{port}) 2>/dev/null && echo through; true")).await;
        assert_eq!(said, "(no output)", "{host}");
    }
    let devices = place.bash("cat /proc/net/dev").await;
    assert!(!devices.contains("eth") && !devices.contains("docker"), "{devices}");
}

pub(crate) async fn the_network_leads_to_the_worker_or_is_refused(subject: Subject) {
    let given = tempfile::tempdir().unwrap();
    fs::write(given.path().join("ca.pem"), "a certificate").unwrap();
    fs::set_permissions(given.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let change = |spec: &mut Spec| {
        spec.egress = true;
        let (host, target) = (given.path().to_owned(), "/run/palisade/trust".to_owned());
        spec.given.push(Given { host, target, over: false });
    };
    if !subject.driver.capabilities().egress {
        let (home, workspace, outputs) = home();
        let mut spec = Spec::new(workspace, outputs);
        spec.rootfs = subject.rootfs.clone();
        change(&mut spec);
        let why = subject.driver.create(spec).await.unwrap_err().to_string();
        assert!(why.contains("egress"), "{why}");
        drop(home);
        return;
    }
    let place = subject.place_with(change).await;
    let sockets = place.sandbox.network().unwrap();
    let caught = std::net::TcpListener::from(sockets.caught);
    caught.set_nonblocking(false).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = caught.accept().unwrap();
        let to = rustix::net::sockopt::ip_original_dst(&stream).unwrap();
        std::io::Write::write_all(&mut stream, format!("meant for {to}").as_bytes()).unwrap();
    });
    assert_eq!(place.bash("cat < /dev/tcp/93.184.216.34/4711").await, "meant for 93.184.216.34:4711");
    let refused = place
        .bash("(echo x > /dev/udp/8.8.8.8/443) 2>/dev/null; (echo x > /dev/tcp/::1/9) 2>/dev/null || echo refused");
    assert_eq!(refused.await, "refused");
    assert_eq!(place.bash("cat /run/palisade/trust/ca.pem").await, "a certificate");
    let devices = place.bash("cat /proc/net/dev").await;
    assert!(!devices.contains("eth") && !devices.contains("docker"), "{devices}");
}

pub(crate) async fn limits_hold(subject: Subject) {
    let place = subject
        .place_with(|spec| {
            spec.limits.memory_bytes = Some(256 << 20);
            spec.limits.pids = Some(64);
            spec.limits.tmp_bytes = 8 << 20;
        })
        .await;
    // Places in memory have a size.
    assert_ne!(place.run(&["/bin/bash", "-c", "head -c 20000000 /dev/zero > /tmp/big"]).await.0.code, Some(0));
    // Whatever is eaten up, the cell answers.
    place.bash("for i in {1..200}; do sleep 100 & done 2>/dev/null; true").await;
    fs::write(place.workspace().join("file"), "content").unwrap();
    assert_eq!(place.call("read", json!({"file_path": "file"})).await.0, "content");
    let usage = place.sandbox.usage().await.unwrap();
    assert!(usage.processes.is_none_or(|count| count <= 64), "{usage:?}");
    assert_eq!(place.call("bash", json!({"restart": true, "command": "echo again"})).await.0, "again");
    let (_, running) =
        place.run(&["/bin/bash", "-c", "n=0; for p in /proc/[0-9]*; do n=$((n+1)); done; echo $n"]).await;
    assert!(running.parse::<u32>().unwrap() < 64, "{running}");
}

/// The child's side of [`dies_with_its_worker`]: has a sandbox, frozen if it is told so, and waits for its death.
#[expect(clippy::print_stdout, reason = "the parent waits for it")]
pub(crate) async fn live(subject: Subject) {
    let place = subject.place().await;
    place.bash("(sleep 1000 &) ; true").await;
    if std::env::var_os(FROZEN).is_some() {
        place.sandbox.freeze().await.unwrap();
    }
    println!("up");
    std::future::pending::<()>().await;
}

const FROZEN: &str = "PALISADE_TEST_FROZEN";

/// A worker that is killed takes its sandboxes with it; what cannot go is removed by the next one. `test` is the name of a
/// test that calls [`live`], `name` and `value` a variable for it, and `next` makes the next driver.
pub(crate) async fn dies_with_its_worker<D>(
    test: &str,
    variable: (&str, &str),
    frozen: bool,
    left: impl Fn(u32) -> Vec<String>,
    next: impl AsyncFnOnce() -> D,
) {
    let mut child = crate::rig::again(test);
    child.env(variable.0, variable.1).stdout(Stdio::piped());
    if frozen {
        child.env(FROZEN, "1");
    }
    let mut child = child.spawn().unwrap();
    let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
    loop {
        let mut line = String::new();
        assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "the worker has ended");
        if line.trim_end().ends_with("up") {
            break;
        }
    }
    let pid = child.id();
    assert!(!left(pid).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    let _next = next().await;
    until("nothing is left of the worker's", || left(pid).is_empty()).await;
}

/// What the kernel counts for each user of the host: one sandbox must leave others theirs.
pub(crate) async fn what_is_counted_for_users_is_limited(subject: Subject) {
    let (place, other) = (subject.place().await, subject.place().await);
    // Of 128 that a user of the host has.
    let watch = format!("$n++ while $n < 1000 && syscall({}, 0) >= 0; print $n + 0", libc::SYS_inotify_init1);
    assert_eq!(place.perl(&[&watch]).await, "32");
    // Of what one has of these, an eighth at most.
    let files = format!(
        "my ($n, $i) = (0, syscall({}, 0)); mkdir '/tmp/w'; $n++ while $n < 20000 && open(my $f, '>', qq(/tmp/w/$n)) \
         && syscall({}, $i, qq(/tmp/w/$n), 0x20) >= 0; print $n",
        libc::SYS_inotify_init1,
        libc::SYS_inotify_add_watch
    );
    let whole = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap();
    let whole: u64 = whole.trim().parse().unwrap();
    assert_eq!(place.perl(&[&files]).await, (whole / 8).clamp(1024, 16384).to_string());
    // Timers that are held, and those of another: they count as queued signals.
    let timers = format!(
        "$| = 1; $n++ while $n < 9000 && syscall({}, 1, 0, my $t = '    ') >= 0; print $n + 0, qq(\n); sleep 30",
        libc::SYS_timer_create
    );
    let mut held = place.sandbox.exec(argv(&["/bin/env", "PERL_BADLANG=0", "/bin/perl", "-e", &timers])).await.unwrap();
    let Some(Output::Stdout(said)) = held.next().await.unwrap() else { panic!("it says nothing") };
    assert_eq!(String::from_utf8_lossy(&said).trim(), "1024");
    let one = format!("print syscall({}, 1, 0, my $t = '    ')", libc::SYS_timer_create);
    assert_eq!(other.perl(&[&one]).await, "0");
}

/// Empty files take memory too.
pub(crate) async fn names_in_memory_are_limited(subject: Subject) {
    let place = subject.place_with(|spec| (spec.limits.tmp_bytes, spec.limits.shm_bytes) = (8 << 20, 8 << 20)).await;
    for (at, most) in [("/tmp", 2048), ("/home/agent", 2048), ("/run", 4096), ("/dev/shm", 2048)] {
        let fill = "$n++ while $n < 9000 && open my $f, '>', qq($ARGV[0]/f$n); print $n + 0";
        let made = place.perl(&[fill, at]).await;
        assert!((1000..=most).contains(&made.parse().unwrap()), "{at}: {made}");
    }
}

pub(crate) async fn the_machine_tells_little_about_itself(subject: Subject) {
    let place = subject.place().await;
    assert_eq!(place.bash("echo /sys/*").await, "/sys/*");
    for masked in ["/proc/interrupts", "/proc/iomem", "/proc/kallsyms", "/proc/modules"] {
        assert!(place.run(&["/bin/cat", masked]).await.1.lines().all(|line| line.contains(masked)), "{masked}");
    }
    for path in ["/proc/sys/kernel/core_pattern", "/proc/irq/default_smp_affinity"] {
        let (status, said) = place.run(&["/bin/bash", "-c", &format!("echo 1 > {path}")]).await;
        assert_ne!(status.code, Some(0), "{path}: {said}");
    }
}

/// For what imitates a kernel its own threads count too, and a bomb may end it; the host is as safe as ever.
pub(crate) async fn a_bomb_ends_the_sandbox_at_most(subject: Subject) {
    let place = subject.place_with(|spec| spec.limits.pids = Some(128)).await;
    assert!(place.sandbox.report().enforces(Facility::PidLimit));
    let bomb = ":(){ :|:& };:; sleep 2";
    let call = ToolCall { name: "bash".to_owned(), input: json!({"command": bomb}), timeout: Duration::from_secs(3) };
    let heard = place.sandbox.tool(call).await;
    assert!(matches!(heard, Ok(_) | Err(Error::Ended | Error::Timeout(_))), "{heard:?}");
    let usage = place.sandbox.usage().await.unwrap();
    assert!(usage.processes.is_none_or(|count| count <= 128), "{usage:?}");
    place.sandbox.destroy().await.unwrap();
    assert_eq!((subject.left)(), Vec::<String>::new());
}

/// For what imitates a kernel its own memory is the sandbox's, and it may end with it.
pub(crate) async fn memory_is_limited(subject: Subject) {
    let place = subject.place_with(|spec| spec.limits.memory_bytes = Some(128 << 20)).await;
    let request = ExecRequest { timeout: Some(Duration::from_secs(60)), ..argv(&["/bin/tail", "/dev/zero"]) };
    let ended = place.sandbox.exec(request).await.unwrap().wait().await;
    match ended {
        Ok((status, _, _)) => assert!(status.code != Some(0) && !status.timed_out, "{status:?}"),
        Err(why) => assert!(matches!(why, Error::Ended), "{why}"),
    }
    place.sandbox.destroy().await.unwrap();
}

pub(crate) async fn it_freezes_and_thaws(subject: Subject) {
    let place = subject.place().await;
    place.bash("(while :; do echo tick >> ticks; done) > /dev/null 2>&1 & true").await;
    let ticks = place.workspace().join("ticks");
    let size = || fs::metadata(&ticks).map(|meta| meta.len()).unwrap_or(0);
    until("the first ticks", || size() > 0).await;
    place.sandbox.freeze().await.unwrap();
    let before = size();
    let call = place.call("read", json!({"file_path": "ticks", "view_range": [1, 1]}));
    assert!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err(), "a frozen sandbox has answered");
    assert_eq!(size(), before);
    place.sandbox.thaw().await.unwrap();
    until("more ticks", || size() > before).await;
    assert_eq!(place.bash("echo here").await, "here");
    // One that is frozen ends too.
    place.sandbox.freeze().await.unwrap();
    place.sandbox.destroy().await.unwrap();
    assert_eq!((subject.left)(), Vec::<String>::new());
}

pub(crate) async fn usage_is_told(subject: Subject) {
    let place = subject.place().await;
    let before = place.sandbox.usage().await.unwrap();
    place.bash("for ((i = 0; i < 300000; i++)); do :; done").await;
    let after = place.sandbox.usage().await.unwrap();
    assert!(after.cpu.unwrap() > before.cpu.unwrap(), "{before:?} {after:?}");
    assert!(after.memory_bytes.unwrap() > 0 && after.processes.unwrap() > 0, "{after:?}");
}

pub(crate) async fn the_end_leaves_nothing(subject: Subject) {
    // An engine may still be removing what an earlier part let go of.
    until("what was before is gone", || (subject.left)().is_empty()).await;
    let place = subject.place().await;
    place.bash("(sleep 1000 &) ; true").await;
    let pid = place.sandbox.pid();
    place.sandbox.destroy().await.unwrap();
    // Whoever still holds on to it has nothing.
    assert!(matches!(place.sandbox.usage().await, Err(Error::Ended)));
    assert!(matches!(place.sandbox.exec(argv(&["/bin/true"])).await, Err(Error::Ended)));
    place.sandbox.destroy().await.unwrap();
    if let Some(pid) = pid {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z"), "{stat}");
    }
    assert_eq!((subject.left)(), Vec::<String>::new());
    // Nor is there anything when nobody says goodbye.
    let place = subject.place().await;
    place.bash("(sleep 1000 &) ; true").await;
    drop(place);
    until("nothing is left", || (subject.left)().is_empty()).await;
}

pub(crate) async fn what_is_required_is_there_or_refused(subject: Subject) {
    let (_home, workspace, outputs) = home();
    for facility in
        [Facility::Landlock, Facility::DistinctUser, Facility::CpuLimit, Facility::Seccomp, Facility::Freeze]
    {
        let mut spec = Spec::new(workspace.clone(), outputs.clone());
        spec.rootfs = subject.rootfs.clone();
        spec.require = vec![facility];
        match subject.driver.create(spec).await {
            Ok(sandbox) => {
                assert!(matches!(sandbox.report().facilities.get(&facility), Some(Status::Enforced(_))));
                sandbox.destroy().await.unwrap();
            }
            Err(Error::Required { facility: named, driver, .. }) => {
                assert_eq!((named, driver), (facility, subject.driver.name()));
                assert!(!subject.enforces.contains(&facility), "{facility}");
            }
            Err(why) => panic!("{facility}: {why}"),
        }
    }
    assert_eq!((subject.left)(), Vec::<String>::new());
    let missing = Spec::new("/no/such/place", outputs);
    let refused = subject.driver.create(missing).await.unwrap_err();
    assert!(refused.to_string().starts_with("/no/such/place"), "{refused}");
}
