//! Server and worker are killed at random moments, again and again, while sessions run.
//!
//! Whatever is killed when: every session completes, its log has no gap and no double, each of the user's events is
//! processed once, every call has one answer, and no command has run twice.
//!
//! `PALISADE_CHAOS_KILLS` sets how often (20 unless told; the figure in SPECIFICATION.md is of 200), `PALISADE_SEED` when.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const STEPS: usize = 16;
const SESSIONS: usize = 4;

struct Process(Child);

impl Process {
    fn kill(mut self) {
        // SIGKILL: nothing can be tidied up.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Rig {
    home: tempfile::TempDir,
    http: reqwest::Client,
    url: String,
    key: String,
}

fn palisade() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command.env("NO_COLOR", "1").env("RUST_LOG", "error").stdin(Stdio::null());
    command
}

impl Rig {
    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn server(&self, listen: &str) -> (Process, String) {
        let mut child = palisade()
            .args(["server", "--lease-ttl", "2", "--listen", listen, "--state-dir"])
            .arg(self.path("server"))
            .arg("--script")
            .arg(self.path("script.yaml"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("the server said {line:?}"));
        (Process(child), url.to_owned())
    }

    fn worker(&self, environment: &str) -> Process {
        let child = palisade()
            .args(["worker", "--quiet", "--base-url", &self.url, "--environment", environment])
            .arg("--environment-key-file")
            .arg(self.path("environment.key"))
            .arg("--state-dir")
            .arg(self.path("worker"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Process(child)
    }

    /// A request that is made again while the server is away, as the SDKs do.
    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key);
            if let Some(body) = body {
                request = request.json(body);
            }
            if let Ok(response) = request.send().await
                && response.status().is_success()
                && let Ok(value) = response.json().await
            {
                return value;
            }
            assert!(Instant::now() < deadline, "{path} is not answered");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn events(&self, session: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let mut page = String::new();
        loop {
            let list = self.call("GET", &format!("/v1/sessions/{session}/events?limit=100{page}"), None).await;
            events.extend(list["data"].as_array().unwrap().iter().cloned());
            match list["next_page"].as_str() {
                Some(next) => page = format!("&page={next}"),
                None => return events,
            }
        }
    }
}

/// A small generator of its own, so that a run can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test]
async fn sessions_outlive_every_kill() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kills = number("PALISADE_CHAOS_KILLS", 20);
    let seed = number("PALISADE_SEED", u64::from(std::process::id()));
    println!("PALISADE_SEED={seed} PALISADE_CHAOS_KILLS={kills}");
    let mut random = Random(seed);
    let home = tempfile::tempdir().unwrap();
    let mut script = String::from("name: counter\nsteps:\n");
    for step in 0..STEPS {
        let reply = format!(
            "  - delay_ms: 3\n    reply: [{{tool: {{name: bash, input: {{command: \"echo {step} >> log\"}}}}}}]\n"
        );
        script.push_str(&reply);
    }
    script.push_str("otherwise: {reply: [{text: finished}]}\n");
    std::fs::write(home.path().join("script.yaml"), script).unwrap();
    let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    let mut rig = Rig { home, http, url: String::new(), key: String::new() };
    let (server, url) = rig.server("127.0.0.1:0");
    rig.url = url;
    rig.key = std::fs::read_to_string(rig.path("server/bootstrap.key")).unwrap().trim().to_owned();
    let listen = rig.url.strip_prefix("http://").unwrap().to_owned();
    let environment =
        rig.call("POST", "/v1/environments", Some(&json!({"name": "e", "config": {"type": "self_hosted"}}))).await;
    let environment = environment["id"].as_str().unwrap().to_owned();
    let key = json!({"kind": "environment", "environment_id": environment});
    let key = rig.call("POST", "/palisade/v1/keys", Some(&key)).await;
    std::fs::write(rig.path("environment.key"), key["key"].as_str().unwrap()).unwrap();
    let agent = json!({"name": "a", "model": "scripted:counter", "tools": [{"type": "agent_toolset_20260401"}]});
    let agent = rig.call("POST", "/v1/agents", Some(&agent)).await;

    let (mut server, mut worker) = (Some(server), Some(rig.worker(&environment)));
    let mut done = 0;
    let mut finished: Vec<String> = Vec::new();
    let mut running: Vec<String> = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60 + 5 * kills);
    while done < kills || !running.is_empty() {
        assert!(Instant::now() < deadline, "sessions that never complete: {running:?}");
        while done < kills && running.len() < SESSIONS {
            let create = json!({"agent": agent["id"], "environment_id": environment});
            let session = rig.call("POST", "/v1/sessions", Some(&create)).await;
            let id = session["id"].as_str().unwrap().to_owned();
            // Sent once: a client that repeated it without knowing whether it arrived would send it twice.
            let message = json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": "go"}]}]});
            rig.call("POST", &format!("/v1/sessions/{id}/events"), Some(&message)).await;
            running.push(id);
        }
        if done < kills {
            // Shortly after the last kill, in the middle of things, and after a lapsed lease has come round again.
            let span = [20_000, 300_000, 3_000_000][usize::try_from(random.below(3)).unwrap()];
            tokio::time::sleep(Duration::from_micros(random.below(span))).await;
            done += 1;
            if random.below(2) == 0 {
                server.take().unwrap().kill();
                server = Some(rig.server(&listen).0);
            } else {
                worker.take().unwrap().kill();
                worker = Some(rig.worker(&environment));
            }
        } else {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut still = Vec::new();
        for id in running {
            let session = rig.call("GET", &format!("/v1/sessions/{id}"), None).await;
            let ended = session["status"] == "idle"
                && rig.events(&id).await.last().is_some_and(|event| event["stop_reason"]["type"] == "end_turn");
            if ended { finished.push(id) } else { still.push(id) }
        }
        running = still;
    }
    drop((server, worker));
    let (server, _) = rig.server(&listen);
    for id in &finished {
        check(&rig.events(id).await, &rig.path("worker"), id);
    }
    drop(server);
    println!("{} kills, {} sessions", done, finished.len());
}

fn check(events: &[Value], worker: &Path, session: &str) {
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let ids: BTreeSet<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), events.len(), "{session}: an event came twice");
    let times: Vec<&str> = events.iter().map(|event| event["processed_at"].as_str().unwrap()).collect();
    // RFC 3339 with and without a fraction does not sort as text: compare up to the second.
    assert!(times.windows(2).all(|pair| pair[0][..19] <= pair[1][..19]), "{session}: events are out of order");
    assert_eq!(of("user.message").len(), 1, "{session}: the message was processed once");
    let calls: Vec<&str> = of("agent.tool_use").iter().map(|call| call["id"].as_str().unwrap()).collect();
    assert_eq!(calls.len(), STEPS, "{session}: every step was taken once");
    let mut answers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut good = Vec::new();
    for result in of("user.tool_result") {
        let call = result["tool_use_id"].as_str().unwrap();
        *answers.entry(call).or_default() += 1;
        if result["is_error"] != true {
            good.push(calls.iter().position(|id| *id == call).unwrap());
        }
    }
    assert!(
        calls.iter().all(|call| answers.get(call) == Some(&1)),
        "{session}: every call has one answer: {answers:?}"
    );
    let (starts, ends) = (of("span.model_request_start"), of("span.model_request_end"));
    for start in &starts {
        let closed = ends.iter().filter(|end| end["model_request_start_id"] == start["id"]).count();
        assert_eq!(closed, 1, "{session}: a span is closed once");
    }
    assert_eq!(of("agent.message").len(), 1, "{session}");
    let log =
        std::fs::read_to_string(worker.join("sessions").join(session).join("layers/1/upper/log")).unwrap_or_default();
    let lines: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
    let once: BTreeSet<usize> = lines.iter().copied().collect();
    assert_eq!(once.len(), lines.len(), "{session}: no command ran twice: {lines:?}");
    assert!(good.iter().all(|step| once.contains(step)), "{session}: a good result means that the command ran");
}
