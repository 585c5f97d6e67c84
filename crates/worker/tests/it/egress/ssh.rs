//! `ssh` and `git` over SSH, against OpenSSH's server, with a key that only the agent of the session has.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::world::{CANARY, World, has, policy, rule};

/// OpenSSH's server, which takes one key.
pub(super) struct Sshd {
    pub(super) port: u16,
    folder: tempfile::TempDir,
    /// The key by which it is known.
    pub(super) host_key: String,
    child: Child,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// Makes a key; its public part.
fn keygen(at: &Path, kind: &str, comment: &str) -> String {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", kind, "-N", "", "-C", comment, "-f"]).arg(at);
    assert!(command.status().unwrap().success());
    let text = std::fs::read_to_string(at.with_extension("pub")).unwrap();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

impl Sshd {
    /// Takes this key for its own user, and serves the repositories of its folder.
    pub(super) async fn start(user_key: &str, kind: &str) -> Sshd {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let host_key = keygen(&folder.path().join("host"), kind, "host");
        std::fs::write(folder.path().join("authorized"), format!("{user_key}\n")).unwrap();
        let mut tries = 0;
        loop {
            // It takes no socket from others, so the port is asked for and given back; should somebody else get it meanwhile, then
            // another one is tried.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = format!(
                "ListenAddress 127.0.0.1:{port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nPidFile {at}/pid\n\
                 StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
                 LogLevel VERBOSE\n"
            );
            std::fs::write(folder.path().join("config"), config).unwrap();
            let mut command = Command::new("/usr/sbin/sshd");
            command.args(["-D", "-e", "-f"]).arg(folder.path().join("config")).stdin(Stdio::null());
            command.stderr(std::fs::File::create(folder.path().join("log")).unwrap());
            let mut child = command.spawn().unwrap();
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(10) && child.try_wait().unwrap().is_none() {
                // Whoever answers at the port may be somebody else.
                let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                if log.contains(&format!("Server listening on 127.0.0.1 port {port}.")) {
                    return Sshd { port, folder, host_key, child };
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let _ = child.kill();
            let _ = child.wait();
            tries += 1;
            let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            assert!(tries < 3, "sshd does not start: {log}");
        }
    }
}

/// A credential that the agent signs with.
pub(super) fn ssh_key(from: &str, host: &str, user: &str, host_key: &str) -> String {
    format!(
        "  - display_name: deploy key\n    auth: {{type: environment_variable, secret_name: DEPLOY, secret_value: {{from: '{from}'}}, \
         networking: {{type: limited, allowed_hosts: [{host}]}}}}\n    use: {{as: ssh_key, users: [{user}], host_keys: ['{host_key}']}}\n"
    )
}

/// Where a server can be run: it wants the directory for the processes that serve nobody yet.
pub(super) fn can_serve() -> bool {
    if !has(&["ssh", "sshd", "ssh-keygen", "ssh-add", "git"]) {
        return false;
    }
    if geteuid().is_root() {
        let _ = std::fs::create_dir_all("/run/sshd");
        let _ = std::fs::set_permissions("/run/sshd", std::fs::Permissions::from_mode(0o755));
    }
    true
}

/// The user that the server runs as: the only one that it can let in where it is not root's.
pub(super) fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A private key that has been put into the worker's source.
pub(super) fn key_in_source(world: &World, kind: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let public = keygen(&folder.path().join("key"), kind, CANARY);
    world.secret("deploy", &std::fs::read_to_string(folder.path().join("key")).unwrap());
    public
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_logs_in_where_its_key_is_for_and_nowhere_else() {
    if !can_serve() {
        return;
    }
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let world = World::new().await;
        let public = key_in_source(&world, kind);
        let (sshd, other) = (Sshd::start(&public, kind).await, Sshd::start(&public, kind).await);
        let user = user();
        let repository = sshd.folder.path().join("repo.git");
        let made =
            Command::new("git").args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(&repository).status();
        assert!(made.unwrap().success());
        let rules = [
            rule("code", "code.test", sshd.port, ", protocol: tcp"),
            // It may be connected to, and takes the key. But the key is not for it, by its name or by what it shows.
            rule("other", "other.test", other.port, ", protocol: tcp"),
            rule("false", "code.test", other.port, ", protocol: tcp"),
        ];
        let credential = ssh_key("file:keys/deploy", "code.test", &user, &sshd.host_key);
        let (working, session) = world.begin(&policy(&rules), &credential);

        let port = sshd.port;
        let shown = world.run(&session, &format!("ssh -v -p {port} {user}@code.test echo in-$((40 + 2)) 2>&1")).await;
        assert!(shown.lines().any(|line| line == "in-42"), "{shown}");
        let script = format!(
            "(set -e; export HOME=/workspace/home; mkdir $HOME; cd $HOME; git config --global user.name a\n\
             git config --global user.email a@example.com; git clone -q ssh://{user}@code.test:{port}{at} repo 2>&1; cd repo\n\
             git commit -q --allow-empty -m over-ssh; git push -q origin HEAD:agent/one; git fetch; git log --format=%s origin/agent/one)",
            at = repository.display()
        );
        assert!(world.run(&session, &script).await.ends_with("over-ssh"));
        let record =
            world.recorded("a signature", |record| record["kind"] == "signature" && record["allowed"] == true).await;
        assert_eq!(record["to"], format!("{user}@code.test:{port}"), "{record}");
        assert_eq!(record["credentials"], serde_json::json!(["deploy key"]), "{record}");
        assert!(record["rule"].as_str().unwrap().ends_with("/code"), "{record}");

        // The public part is no secret; the private one is nowhere.
        assert!(world.run(&session, "ssh-add -L").await.starts_with(&public));
        let shown = world
            .outcome(&session, "env; find / -xdev -name 'id_*' 2>/dev/null; cat /run/palisade/trust/* 2>/dev/null")
            .await
            .0;
        assert!(!shown.contains(CANARY) && !shown.contains("OPENSSH PRIVATE"), "{shown}");

        // Nobody else is logged in, and nobody as somebody else; nothing else is signed.
        let other = other.port;
        let anyway = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o GlobalKnownHostsFile=/dev/null";
        for (command, reason) in [
            (format!("ssh {anyway} -p {other} {user}@other.test true"), "nothing"),
            (format!("ssh {anyway} -p {other} {user}@code.test true"), "nothing"),
            (format!("ssh -p {port} nobody@code.test true"), "credential_misused"),
            (
                "ssh-add -L > key.pub; echo x > file; ssh-keygen -Y sign -f key.pub -n git file".to_owned(),
                "ssh_not_bound",
            ),
            ("ssh-add -D && ssh-add -L".to_owned(), "nothing"),
            ("ssh-keygen -q -t ed25519 -N '' -f own && ssh-add own".to_owned(), "nothing"),
        ] {
            let before = world.records().iter().filter(|record| record["reason"] == reason).count();
            world.fails(&session, &format!("({command}) 2>&1")).await;
            if reason != "nothing" {
                let count = |world: &World| world.records().iter().filter(|record| record["reason"] == reason).count();
                world.rig.fake.wait("a refused signature", |_| (count(&world) > before).then_some(())).await;
            }
        }
        let alerts =
            world.records().iter().filter(|record| record["kind"] == "signature" && record["alert"] == true).count();
        assert!(alerts > 0, "a signature for somebody else is told at once");
        let log = std::fs::read_to_string(sshd.folder.path().join("log")).unwrap();
        assert!(log.contains("Accepted publickey"), "{log}");
        working.end().await;
    }
}

/// Talks to the agent by itself: what a program can try that is no client of anybody's.
const HOSTILE: &str = r#"
import os, socket, struct, sys
def s(b): return struct.pack('>I', len(b)) + b
def ask(sock, message):
    sock.sendall(s(message))
    n = struct.unpack('>I', sock.recv(4, socket.MSG_WAITALL))[0]
    return sock.recv(n, socket.MSG_WAITALL)
def agent():
    sock = socket.socket(socket.AF_UNIX); sock.connect(os.environ['SSH_AUTH_SOCK']); return sock
def login(session, key, user=b'USER', method=b'publickey', more=b''):
    return s(session) + b'\x32' + s(user) + s(b'ssh-connection') + s(method) + b'\x01' + s(b'ssh-ed25519') + s(key) + more
def sign(sock, key, data): return ask(sock, b'\x0d' + s(key) + s(data) + bytes(4))[0]
def bind(sock, host, session, signature, forwarding=0):
    return ask(sock, b'\x1b' + s(b'session-bind@openssh.com') + s(host) + s(session) + s(signature) + bytes([forwarding]))[0]
a = agent()
answer = ask(a, b'\x0b')
n = struct.unpack('>I', answer[5:9])[0]
key = answer[9:9 + n]
host = bytes.fromhex(sys.argv[1]); forged = bytes.fromhex(sys.argv[2]); session = bytes.fromhex(sys.argv[3])
results = {}
results['unbound'] = sign(a, key, login(session, key))
# The host has signed this, but on no connection of this session.
b = agent(); results['bind'] = bind(b, host, session, forged); results['foreign'] = sign(b, key, login(session, key))
# Once bound to nothing it stays so.
results['again'] = bind(b, host, session, forged)
c = agent(); results['garbage'] = ask(c, b'\xff' * 100)[0]; results['empty'] = ask(c, b'')[0]
d = agent(); d.sendall(struct.pack('>I', 1 << 31)); results['long'] = d.recv(1) == b''
# Many that say nothing keep nobody out for long: they are closed here.
many = [agent() for _ in range(12)]
[m.close() for m in many]
results['after'] = ask(agent(), b'\x0b')[0]
print(results)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_of_the_host_from_elsewhere_binds_nothing() {
    if !can_serve() || !has(&["python3"]) {
        return;
    }
    use ssh_key::PrivateKey;
    use ssh_key::private::{Ed25519Keypair, KeypairData};
    let world = World::new().await;
    key_in_source(&world, "ed25519");
    // Whoever attacks has made a connection of their own to the host, which has signed for that.
    let host = PrivateKey::new(KeypairData::Ed25519(Ed25519Keypair::from_seed(&[7; 32])), "host").unwrap();
    let session_id = [9; 32];
    let signature: Vec<u8> = signature::Signer::<ssh_key::Signature>::sign(&host, &session_id).try_into().unwrap();
    let public = host.public_key();
    let credential = ssh_key("file:keys/deploy", "code.test", "git", &public.to_openssh().unwrap());
    let rules = [rule("code", "code.test", 2222, ", protocol: tcp")];
    let (working, session) = world.begin(&policy(&rules), &credential);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let program = HOSTILE.replace("USER", "git");
    let command = format!(
        "cat > hostile.py <<'EOF'\n{program}\nEOF\npython3 hostile.py {} {} {}",
        hex(&public.to_bytes().unwrap()),
        hex(&signature),
        hex(&session_id)
    );
    let shown = world.run(&session, &command).await;
    let refused =
        "{'unbound': 5, 'bind': 5, 'foreign': 5, 'again': 5, 'garbage': 5, 'empty': 5, 'long': True, 'after': 12}";
    assert_eq!(shown, refused);
    world.recorded("a refused signature", |record| record["reason"] == "ssh_not_bound").await;
    working.end().await;
}
