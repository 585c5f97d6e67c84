//! The local admin API, as an operator of the machine uses it.

use std::os::unix::fs::PermissionsExt as _;

use palisade_testkit::control_plane::{FakeSession, KEY, text};
use palisade_worker::perimeter::{
    Client, ClientError, ConnectBody, ExecBody, Kind, Purpose, SignalBody, Stream, socket,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::rig::{Rig, Working};

/// A worker that serves one session, whose sandbox is up.
async fn served() -> (Rig, FakeSession, Working, Client) {
    let rig = Rig::new().await;
    let session = rig.fake.session();
    session.queue();
    let working = rig.start();
    let call = session.bash("echo up > marker; echo up");
    assert_eq!(text(&rig.result(&session, &call).await), "up");
    let client = Client::new(rig.dir.path().join("state"));
    (rig, session, working, client)
}

fn argv(words: &[&str]) -> ExecBody {
    ExecBody { argv: words.iter().map(|&word| word.to_owned()).collect(), ..ExecBody::default() }
}

/// All that a stream says: the command's number, both outputs and the end.
async fn all(mut stream: Stream) -> (u64, String, String, Value) {
    let (mut process, mut out, mut err) = (0, Vec::new(), Vec::new());
    loop {
        let frame = stream.next().await.unwrap().expect("an end is told");
        match frame.kind {
            Kind::Started => process = serde_json::from_slice(&frame.payload).unwrap(),
            Kind::Stdout => out.extend(frame.payload),
            Kind::Stderr => err.extend(frame.payload),
            Kind::Failed => return (process, String::new(), String::from_utf8(frame.payload).unwrap(), Value::Null),
            Kind::Exit => {
                let exit = serde_json::from_slice(&frame.payload).unwrap();
                return (process, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), exit);
            }
            other => panic!("{other:?}"),
        }
    }
}

fn refusal(error: &ClientError) -> (u16, &str) {
    match error {
        ClientError::Refused { status, message } => (*status, message),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_runs_commands_in_a_live_sandbox() {
    let (rig, session, working, client) = served().await;
    let mode = std::fs::metadata(socket(client.state_dir())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let sessions = client.sessions().await.unwrap();
    assert_eq!((sessions.len(), sessions[0].id.as_str(), sessions[0].sandbox), (1, session.id.as_str(), true));
    // The same place that the agent's own calls see.
    let run = argv(&["/bin/sh", "-c", "cat marker; pwd; echo to stderr >&2; exit 3"]);
    let (_, out, err, exit) = all(client.exec(&session.id, &run).await.unwrap()).await;
    assert_eq!((out.as_str(), err.as_str(), &exit["code"]), ("up\n/workspace\n", "to stderr\n", &3.into()));
    assert!(exit["wall_us"].as_u64().unwrap() > 0 && exit["max_rss_kib"].as_u64().unwrap() > 0, "{exit}");
    // Input, and one that goes on when its connection ends.
    let mut stream =
        client.exec(&session.id, &ExecBody { stdin: true, detach: true, ..argv(&["/bin/cat"]) }).await.unwrap();
    let process: u64 = serde_json::from_slice(&stream.next().await.unwrap().unwrap().payload).unwrap();
    palisade_worker::perimeter::Frame::new(Kind::Stdin, b"one".to_vec()).write(&mut stream.writer).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().payload, b"one");
    drop(stream);
    let mut again = client.attach(&session.id, process, Some(1), false).await.unwrap();
    again.next().await.unwrap();
    assert_eq!(again.next().await.unwrap().unwrap().payload, b"ne");
    assert!(client.processes(&session.id).await.unwrap().iter().any(|found| found.id == Some(process)));
    client.signal(&session.id, &SignalBody { process, signal: 15 }).await.unwrap();
    assert_eq!(all(again).await.3["signal"], 15);
    // What it is not given it cannot show.
    let (_, out, _, _) = all(client.exec(&session.id, &argv(&["/usr/bin/env"])).await.unwrap()).await;
    assert!(!out.contains(KEY) && !out.contains("ANTHROPIC"), "{out}");
    working.end().await;
    assert!(!socket(client.state_dir()).exists());
    drop(rig);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said() {
    let (_rig, session, working, client) = served().await;
    let unknown = client.exec("sesn_none", &argv(&["true"])).await.unwrap_err();
    assert_eq!(refusal(&unknown).0, 404);
    for hostile in ["../x", "a/b", "%2e", ""] {
        assert!(client.session(hostile).await.is_err(), "{hostile}");
    }
    assert_eq!(refusal(&client.exec(&session.id, &argv(&[])).await.unwrap_err()).0, 400);
    let missing = all(client.exec(&session.id, &argv(&["/no/such"])).await.unwrap()).await;
    assert!(missing.2.contains("No such file"), "{missing:?}");
    let root = ExecBody { uid: Some(0), ..argv(&["/bin/true"]) };
    assert!(all(client.exec(&session.id, &root).await.unwrap()).await.2.contains("cannot run as user 0"));
    let signal = client.signal(&session.id, &SignalBody { process: 1, signal: 900 }).await.unwrap_err();
    assert_eq!(refusal(&signal).0, 400);
    let preview = client.connect(&session.id, &ConnectBody { port: 80, purpose: Purpose::Preview }).await;
    assert!(refusal(&preview.err().unwrap()).1.contains("--allow-preview"));
    // A plain request, an unknown field, a body that is none.
    for (request, status) in [
        ("POST /perimeter/v1/sessions/x/exec HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}", "426"),
        ("GET /perimeter/v1/other HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let mut stream = tokio::net::UnixStream::connect(socket(client.state_dir())).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, format!("HTTP/1.1 {status}").as_bytes());
    }
    working.end().await;
    assert!(matches!(client.sessions().await, Err(ClientError::Unreachable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_kept_out() {
    if !rustix::process::geteuid().is_root() {
        println!("not tried: without root nobody else can be played");
        return;
    }
    let (_rig, session, working, client) = served().await;
    // Even where the socket's own mode would let them in.
    let path = socket(client.state_dir());
    let mut open = path.as_path();
    while let Some(parent) = open.parent().filter(|parent| parent.starts_with(std::env::temp_dir())) {
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o777)).unwrap();
        open = parent;
    }
    let program = "use IO::Socket::UNIX; $) = $( = 65534; $> = $< = 65534; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) \
                   or die 'closed'; print $s \"GET /perimeter/v1/sessions HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n\"; print <$s>";
    let path = path.to_str().unwrap().to_owned();
    let run = move || std::process::Command::new("perl").args(["-e", program, &path]).output().unwrap();
    let said = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(!String::from_utf8_lossy(&said.stdout).contains(&session.id), "{said:?}");
    assert_eq!(client.sessions().await.unwrap().len(), 1);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_in_and_come_out() {
    let (rig, session, working, client) = served().await;
    let from = tempfile::tempdir().unwrap();
    std::fs::write(from.path().join("data"), vec![5; 4_000_000]).unwrap();
    let mut packed = Vec::new();
    palisade_sandbox::archive::pack(&from.path().join("data"), &mut packed).unwrap();
    client.copy_in(&session.id, "/workspace/copied", std::io::Cursor::new(packed.clone())).await.unwrap();
    assert_eq!(std::fs::metadata(rig.file(&session, "copied")).unwrap().len(), 4_000_000);
    let mut back = Vec::new();
    client.copy_out(&session.id, "copied", &mut back).await.unwrap();
    let to = tempfile::tempdir().unwrap();
    palisade_sandbox::archive::unpack(&back[..], to.path()).unwrap();
    assert_eq!(std::fs::read(to.path().join("copied")).unwrap(), vec![5; 4_000_000]);
    // A link of the agent leads the worker nowhere.
    let call = session.bash("ln -s /etc etc; ln -s /proc/1/environ secret");
    rig.result(&session, &call).await;
    let mut said = Vec::new();
    client.copy_out(&session.id, "/workspace/secret", &mut said).await.unwrap();
    assert!(said.len() < 2048 && !String::from_utf8_lossy(&said).contains("ANTHROPIC"));
    let refused = client.copy_in(&session.id, "/workspace/etc/new", std::io::Cursor::new(packed)).await.unwrap_err();
    assert!(!std::path::Path::new("/etc/new").exists(), "{refused}");
    let missing = client.copy_out(&session.id, "/no/such", Vec::new()).await.unwrap_err();
    assert!(refusal(&missing).1.contains("No such file"), "{missing}");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_session() {
    let (_rig, session, working, client) = served().await;
    let mut stream = client.exec(&session.id, &argv(&["/bin/sleep", "1000"])).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().kind, Kind::Started);
    let end = tokio::spawn(async move { all(stream).await });
    working.end().await;
    assert!(end.await.unwrap().2.contains("has ended"));
}
