//! Secrets of every kind of source, used and then looked for wherever they must not be.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use palisade_api::Secret;
use palisade_testkit::secrets::{Fake, FakeHashicorp};
use palisade_vault::{Key, SealedFile};
use serde_json::json;

use super::world::{CANARY, World, credential, has, policy, rule};

/// Gives back what it is told, as it is, in base64, in hexadecimal and percent-encoded.
async fn echo(State(told): State<Arc<Mutex<Vec<String>>>>, headers: HeaderMap) -> Response<Body> {
    let value = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let token = value.trim_start_matches("Bearer ").to_owned();
    let hex: String = token.bytes().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = token.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let body = format!(
        "plain {token}\nbase64 {}\nbase64 {}\nhex {hex}\npercent {percent}\n",
        STANDARD.encode(&token),
        STANDARD.encode(&value)
    );
    told.lock().unwrap().push(token.clone());
    Response::builder().header("x-told", token).body(Body::from(body)).unwrap()
}

/// The canary as it looks in other encodings: what of its base64 does not depend on its surroundings, at each alignment.
fn forms() -> Vec<String> {
    let mut forms = vec![CANARY.to_owned(), CANARY.bytes().map(|byte| format!("{byte:02x}")).collect()];
    for before in 0..3 {
        let text = STANDARD.encode([&b"\0\0\0"[..before], CANARY.as_bytes()].concat());
        let stable = before.div_ceil(3) * 4;
        let whole = (before + CANARY.len()) / 3 * 4;
        forms.push(text[stable..whole].to_owned());
    }
    forms
}

fn found_in(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    forms().into_iter().find(|form| text.contains(form.as_str()))
}

fn look_through(directory: &Path, seen: &mut usize) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = std::fs::symlink_metadata(&path).unwrap();
        if kind.is_dir() {
            look_through(&path, seen);
        } else if kind.is_file() {
            *seen += 1;
            let found = found_in(&std::fs::read(&path).unwrap());
            assert_eq!(found, None, "a secret is in {}", path.display());
        }
    }
}

/// Asks with a token, keeps all that comes back, and then looks for the canary in its own memory.
const MEMORY: &str = r#"
import os, re, sys, urllib.request
patterns = [re.compile(text.encode()) for text in sys.argv[2:]]
held = []
for name in os.environ["NAMES"].split():
    request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + os.environ[name]})
    with urllib.request.urlopen(request) as answer:
        held.append((answer.read(), str(answer.headers)))
    assert os.environ[name].encode() in held[-1][0], held[-1]
found = read = 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps.readlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if "r" not in line.split()[1] or "[v" in line:
            continue
        try:
            memory.seek(start)
            piece = memory.read(end - start)
        except OSError:
            continue
        read += len(piece)
        found += sum(len(pattern.findall(piece)) for pattern in patterns)
print("held", len(held), "found", found, "of", read > 1_000_000)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_every_source_are_nowhere() {
    if !has(&["python3", "curl"]) {
        return;
    }
    let log = crate::secrets::log();
    let mut world = World::new().await;
    // One of each kind that needs no account anywhere.
    let token = |kind: &str| format!("{CANARY}-{kind}-tokentokentokentoken");
    world.secret("one", &token("file"));
    world.variable("FROM_ENV", &token("env"));
    world.variable("HVS", &format!("hvs.{CANARY}-root"));
    world.source("env: {variables: [FROM_ENV]}");
    let script = world.own.path().join("print");
    std::fs::write(&script, token("exec")).unwrap();
    world.source(&format!("exec: {{print: {{command: [/bin/cat, {}]}}}}", script.display()));
    let (path, key_path) = (world.own.path().join("secrets.age"), world.own.path().join("key"));
    let key = Key::generate(&key_path).unwrap();
    SealedFile::create(&path, &key)
        .unwrap()
        .add(&key, "one", Secret::new(token("sealed")), SystemTime::UNIX_EPOCH)
        .unwrap();
    world.source(&format!("sealed: {{file: {}, key: 'file:{}'}}", path.display(), key_path.display()));
    #[expect(clippy::disallowed_methods, reason = "the fake lives by the clock that the worker has")]
    let vault = Fake::start(FakeHashicorp::default(), Arc::new(SystemTime::now)).await;
    vault.service.token(&format!("hvs.{CANARY}-root"));
    vault.service.write("secret/one", json!({"token": token("vault")}));
    world.source(&format!(
        "vault: {{prod: {{address: {}, auth: {{method: token, token: 'env:HVS'}}, mounts: {{secret: kv}}}}}}",
        vault.url()
    ));
    let sources = [
        ("A_FILE", "file:keys/one", "file"),
        ("AN_ENV", "env:FROM_ENV", "env"),
        ("AN_EXEC", "exec:print", "exec"),
        ("A_SEALED", "sealed:one", "sealed"),
        ("A_VAULT", "vault:prod/secret/one#token", "vault"),
    ];
    let credentials: String = sources.iter().map(|(name, from, _)| credential(name, from, "echo.test")).collect();

    let told = Arc::new(Mutex::new(Vec::new()));
    let upstream = world.upstream(&["echo.test"], Router::new().fallback(echo).with_state(told.clone())).await;
    let rules = [rule("echo", "echo.test", upstream.port, "")];
    let (working, session) = world.begin(&policy(&rules), &credentials);
    let names: Vec<&str> = sources.iter().map(|(name, _, _)| *name).collect();
    // Patterns that do not match themselves.
    let patterns: Vec<String> = forms().iter().map(|form| format!("[{}]{}", &form[..1], &form[1..])).collect();
    let patterns = format!("'{}'", patterns.join("' '"));
    let url = format!("https://echo.test:{}/", upstream.port);
    let script = format!(
        "cat > memory.py <<'EOF'\n{MEMORY}\nEOF\nNAMES='{}' python3 memory.py {url} {patterns}",
        names.join(" ")
    );
    let shown = world.run(&session, &script).await;
    assert!(shown.contains("held 5 found 0 of True"), "{shown}");
    let real: Vec<String> = sources.iter().map(|(_, _, kind)| token(kind)).collect();
    assert_eq!(*told.lock().unwrap(), real, "the upstream saw the real ones");

    // As an agent would show them, and where it might look.
    let shown = world.run(&session, &format!("env; curl -sSi -H \"Authorization: Bearer $A_VAULT\" {url}; cat /proc/*/environ /proc/*/cmdline /proc/*/maps 2>/dev/null | tr '\\0' '\\n'")).await;
    assert!(shown.contains("x-told: palisade_") && found_in(shown.as_bytes()).is_none(), "{shown}");
    let everywhere = "find / -xdev \\( -path /proc -o -path /sys -o -path /usr -o -path /opt \\) -prune -o -type f -readable -print0 2>/dev/null; \
         find /workspace /run /etc /tmp /home /mnt /var -type f -readable -print0 2>/dev/null";
    let any: String = forms().iter().map(|form| format!(" -e '[{}]{}'", &form[..1], &form[1..])).collect();
    let shown = world.run(&session, &format!("({everywhere}) | sort -zu > files; tr -cd '\\0' < files | wc -c; xargs -0 grep -laE {any} < files | grep -v -x -e /workspace/memory.py; true")).await;
    let (count, matching) = shown.trim().split_once('\n').unwrap_or((shown.trim(), ""));
    assert!(count.parse::<u32>().unwrap() > 20 && matching.is_empty(), "{shown}");

    working.end().await;
    // The worker's own: its state with the journal, the trail and the trust stores, and its log at the finest.
    let mut seen = 0;
    look_through(world.rig.dir.path(), &mut seen);
    assert!(seen > 5, "{seen} files of the worker's were looked through");
    assert!(!world.records().is_empty(), "the trail is among them");
    let log = log.text();
    assert!(log.contains("sandbox started"), "the log was captured");
    let at = forms().iter().find_map(|form| log.find(form.as_str()));
    assert_eq!(at.map(|at| log.get(at.saturating_sub(300)..at)), None, "a secret is in the log");
}
