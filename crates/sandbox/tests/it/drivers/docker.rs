//! The `docker` driver, with each engine that is here: started for the test, on a socket and in directories of its own.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_sandbox::{Docker, DockerOptions, Facility, Rootfs};
use tempfile::TempDir;

use super::suite::{self, Subject};
use super::{has, is_root, root};

const WALLS: &[Facility] = &[
    Facility::Namespaces,
    Facility::Capabilities,
    Facility::Seccomp,
    Facility::MemoryLimit,
    Facility::PidLimit,
    Facility::Freeze,
];

/// An engine that runs for as long as this lives.
struct Engine {
    process: Child,
    image: String,
    socket: PathBuf,
    scratch: PathBuf,
    _home: TempDir,
}

#[derive(Clone, Copy)]
enum Kind {
    Docker,
    Podman,
}

impl Engine {
    /// Starts one and gives it an image.
    fn start(kind: Kind) -> Option<Arc<Engine>> {
        let needed: &[&str] = match kind {
            Kind::Docker => &["dockerd", "containerd", "runc"],
            Kind::Podman => &["podman", "conmon", "runc"],
        };
        if !is_root() || !needed.iter().all(|program| has(program)) {
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name).display().to_string();
        let socket = home.path().join("socket");
        let host = format!("unix://{}", socket.display());
        // Ends with this process, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        match kind {
            Kind::Docker => command.args(["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none"]).args([
                "--storage-driver=vfs",
                &format!("--host={host}"),
                &format!("--data-root={}", at("data")),
                &format!("--exec-root={}", at("exec")),
                &format!("--pidfile={}", at("pid")),
            ]),
            // Its usual runtime does not work with every layout of control groups.
            Kind::Podman => {
                command.args(["podman", "--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--runtime=runc"]).args([
                    &format!("--root={}", at("root")),
                    &format!("--runroot={}", at("run")),
                    &format!("--tmpdir={}", at("tmp")),
                    "system",
                    "service",
                    "--time=0",
                    &host,
                ])
            }
        };
        let log = fs::File::create(home.path().join("log")).unwrap();
        // Podman's monitor leaves a file where it was started when memory runs out.
        command.current_dir(home.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().unwrap();
        let scratch = home.path().join("scratch");
        let mut engine = Engine { process, image: String::new(), socket, scratch, _home: home };
        let began = Instant::now();
        while !ask(&engine.socket, "GET", "/_ping", &[]).is_some_and(|said| said.contains("200 OK")) {
            let log = || fs::read_to_string(engine._home.path().join("log")).unwrap_or_default();
            assert!(engine.process.try_wait().unwrap().is_none(), "the engine has ended: {}", log());
            assert!(began.elapsed() < Duration::from_secs(60), "the engine does not answer: {}", log());
            std::thread::park_timeout(Duration::from_millis(50));
        }
        engine.image = engine.import();
        Some(Arc::new(engine))
    }

    /// Makes an image of the small root; its id.
    fn import(&self) -> String {
        let root = self._home.path().join("image");
        root::build(&root);
        let tar = Command::new("tar").arg("-C").arg(&root).args(["-cf", "-", "."]).output().unwrap();
        assert!(tar.status.success());
        let said = ask(&self.socket, "POST", "/images/create?fromSrc=-", &tar.stdout).unwrap();
        let (_, rest) = said.split_once("sha256:").unwrap_or_else(|| panic!("no image: {said}"));
        format!("sha256:{}", &rest[..64])
    }

    fn options(&self) -> DockerOptions {
        DockerOptions {
            socket: Some(self.socket.display().to_string()),
            image: self.image.clone(),
            scratch: Some(self.scratch.clone()),
            ..DockerOptions::default()
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

/// One request; what was answered, with its head.
fn ask(socket: &Path, method: &str, path: &str, body: &[u8]) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: engine\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said).ok()?;
    Some(String::from_utf8_lossy(&said).into_owned())
}

/// Containers, by the engine's own word.
fn left(socket: &Path) -> Vec<String> {
    let said = ask(socket, "GET", "/containers/json?all=true", &[]).unwrap();
    if said.contains("\"Id\"") { vec![said] } else { Vec::new() }
}

async fn subject(engine: &Arc<Engine>) -> Subject {
    let driver = Arc::new(Docker::connect(engine.options()).await.unwrap());
    let socket = engine.socket.clone();
    Subject {
        driver,
        rootfs: Rootfs::Host,
        bare: false,
        enforces: WALLS,
        left: Box::new(move || left(&socket)),
        _keep: Box::new(engine.clone()),
    }
}

/// One engine for the whole suite: starting it takes longer than most of it.
async fn conforms(kind: Kind) {
    let Some(engine) = Engine::start(kind) else { return };
    macro_rules! parts {
        ($($part:ident),* $(,)?) => {
            $(
                eprintln!("{}", stringify!($part));
                suite::$part(subject(&engine).await).await;
            )*
        };
    }
    parts!(
        the_six_tools_work,
        commands_have_input_output_and_an_end,
        a_terminal_has_a_size,
        a_terminal_has_jobs,
        files_go_in_and_come_back,
        a_detached_command_is_listed_and_heard_again,
        a_port_inside_is_reached,
        a_command_gets_what_the_spec_says_and_no_more,
        what_is_written_is_the_hosts,
        nobody_has_a_privilege,
        the_cell_cannot_be_killed,
        there_is_no_network,
        the_network_leads_to_the_worker_or_is_refused,
        limits_hold,
        what_is_counted_for_users_is_limited,
        names_in_memory_are_limited,
        the_machine_tells_little_about_itself,
        memory_is_limited,
        it_freezes_and_thaws,
        usage_is_told,
        the_end_leaves_nothing,
        what_is_required_is_there_or_refused,
    );
    images_are_named_by_what_they_are(&engine).await;
}

async fn images_are_named_by_what_they_are(engine: &Engine) {
    let tagged =
        ask(&engine.socket, "POST", &format!("/images/{}/tag?repo=localhost/some&tag=latest", engine.image), &[]);
    assert!(tagged.unwrap().contains("201"));
    let none = "0".repeat(64);
    for (image, said) in [
        ("localhost/some:latest", "a tag can change; it is "),
        ("localhost/other:latest", "a tag can change, and the engine does not have it"),
        (&format!("localhost/some@sha256:{none}"), "the engine does not have it; pull it by this digest"),
        (&format!("sha256:{none}"), "the engine does not have it; pull it by this digest"),
        ("", "none is given"),
    ] {
        let options = DockerOptions { image: (*image).to_owned(), ..engine.options() };
        let refused = Docker::connect(options).await.unwrap_err().to_string();
        assert!(refused.contains(said), "{image}: {refused}");
    }
}

/// The engine of a worker that is to be killed: its socket, image and directory.
const ENGINE: &str = "PALISADE_TEST_ENGINE";

async fn dies_with_its_worker(kind: Kind, test: &str) {
    if let Ok(words) = std::env::var(ENGINE) {
        let [socket, image, scratch] = words.split(' ').collect::<Vec<_>>()[..] else { panic!("{words}") };
        let options = DockerOptions {
            socket: Some(socket.to_owned()),
            image: image.to_owned(),
            scratch: Some(scratch.into()),
            ..DockerOptions::default()
        };
        let driver = Arc::new(Docker::connect(options).await.unwrap());
        let left: Box<dyn Fn() -> Vec<String> + Send + Sync> = Box::new(Vec::new);
        let subject = Subject { driver, rootfs: Rootfs::Host, bare: false, enforces: WALLS, left, _keep: Box::new(()) };
        return suite::live(subject).await;
    }
    let Some(engine) = Engine::start(kind) else { return };
    let words = format!("{} {} {}", engine.socket.display(), engine.image, engine.scratch.display());
    for frozen in [false, true] {
        let next = async || Docker::connect(engine.options()).await.unwrap();
        suite::dies_with_its_worker(test, (ENGINE, &words), frozen, |_| left(&engine.socket), next).await;
    }
}

#[tokio::test]
async fn docker_conforms() {
    conforms(Kind::Docker).await;
}

#[tokio::test]
async fn podman_conforms() {
    conforms(Kind::Podman).await;
}

#[tokio::test]
async fn docker_containers_die_with_their_worker() {
    dies_with_its_worker(Kind::Docker, "drivers::docker::docker_containers_die_with_their_worker").await;
}

#[tokio::test]
async fn podman_containers_die_with_their_worker() {
    dies_with_its_worker(Kind::Podman, "drivers::docker::podman_containers_die_with_their_worker").await;
}

#[tokio::test]
async fn an_engine_that_is_down_is_named() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("socket");
    let options = || DockerOptions {
        socket: Some(format!("unix://{}", socket.display())),
        image: format!("sha256:{}", "0".repeat(64)),
        scratch: Some(home.path().join("scratch")),
        ..DockerOptions::default()
    };
    let refused = Docker::connect(options()).await.unwrap_err().to_string();
    assert!(
        refused.contains("connecting through the container engine") && refused.contains("no such socket"),
        "{refused}"
    );
    // The socket is there, and nobody listens.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let refused = Docker::connect(options()).await.unwrap_err().to_string();
    assert!(refused.contains("Connection refused") && refused.contains("start the engine"), "{refused}");
    let options = DockerOptions { socket: Some("tcp://127.0.0.1:1".to_owned()), ..options() };
    let refused = Docker::connect(options).await.unwrap_err().to_string();
    assert!(refused.contains("only Unix sockets"), "{refused}");
}
