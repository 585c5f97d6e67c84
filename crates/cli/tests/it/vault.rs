//! Secrets through the binary: values go in and are never shown; what cannot be had is said; what is revoked is refused.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use palisade_testkit::secrets::{Fake, FakeHashicorp};
use serde_json::{Value, json};

use crate::rig::{Rig, mode, signal};

/// Every secret of the tests holds this.
const CANARY: &str = "CANARY";

/// Runs a command with something on its standard input, and looks at what the system shows of it meanwhile.
fn fed(rig: &Rig, args: &[&str], input: &str) -> Output {
    let mut child =
        rig.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (first, rest) = input.split_at(input.len() / 2);
    let _ = stdin.write_all(first.as_bytes());
    // It waits for the rest of its input.
    let mistaken = args.iter().any(|word| word.contains(CANARY));
    for file in ["cmdline", "environ"] {
        let shown = std::fs::read(format!("/proc/{}/{file}", child.id())).unwrap_or_default();
        assert!(mistaken || !String::from_utf8_lossy(&shown).contains(CANARY), "{args:?} shows a secret in its {file}");
    }
    let _ = stdin.write_all(rest.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    unseen(args, &output);
    output
}

fn unseen(args: &[&str], output: &Output) {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains(CANARY), "{args:?} shows a secret: {said}");
}

/// A command that must fail with an error of three parts; gives the error.
fn failure(rig: &Rig, args: &[&str], input: &str) -> Value {
    let args = [args, &["--output", "json"]].concat();
    let output = fed(rig, &args, input);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    let said: Value =
        serde_json::from_slice(&output.stderr).unwrap_or_else(|why| panic!("{args:?}: {why}: {output:?}"));
    said["error"].clone()
}

/// Looks for the canary in all files below a directory.
fn scan(directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            scan(&path);
        } else if path.is_file() {
            let content = std::fs::read(&path).unwrap();
            assert!(memchr::memmem::find(&content, CANARY.as_bytes()).is_none(), "{} holds a secret", path.display());
        }
    }
}

/// A file of credentials over the sealed file that `init` makes, and these credentials: variable and reference.
fn credentials(rig: &Rig, sources: &str, all: &[(&str, &str)]) -> String {
    let one = |(variable, reference): &(&str, &str)| {
        json!({"auth": {
            "type": "environment_variable", "secret_name": variable, "secret_value": {"from": reference},
            "networking": {"type": "limited", "allowed_hosts": ["127.0.0.1"]},
        }, "use": {"cleartext": true}})
        .to_string()
    };
    let all = all.iter().map(one).collect::<Vec<_>>().join(",");
    let path = rig.path("credentials.yaml");
    std::fs::write(&path, format!("sources: {sources}\ncredentials: [{all}]\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn sealed(rig: &Rig) -> String {
    let (file, key) = (rig.path("state/vault.age"), rig.path("state/vault.key"));
    format!("{{sealed: {{file: {}, key: 'file:{}'}}}}", file.display(), key.display())
}

#[test]
fn values_go_in_and_do_not_come_out() {
    let rig = Rig::new();
    let made = rig.object(&["vault", "init"]);
    assert!(made["recipient"].as_str().unwrap().starts_with("age1"), "{made}");
    assert_eq!((mode(&rig.path("state/vault.age")), mode(&rig.path("state/vault.key"))), (0o600, 0o600));
    let again = failure(&rig, &["vault", "init"], "");
    assert!(again["why"].as_str().unwrap().contains("exists already"), "{again}");

    assert!(fed(&rig, &["vault", "add", "github"], "CANARY-one\n").status.success());
    std::fs::write(rig.path("pem"), "CANARY-first line\nCANARY-second line\n").unwrap();
    assert!(fed(&rig, &["vault", "add", "pem", "--from-file", "pem"], "").status.success());
    std::fs::remove_file(rig.path("pem")).unwrap();
    for (args, input, why) in [
        (&["vault", "add", "github"][..], "CANARY", "there already"),
        (&["vault", "rotate", "nobody"], "CANARY", "no secret of that name"),
        (&["vault", "remove", "nobody"], "", "no secret of that name"),
        (&["vault", "add", "empty"], "\n", "empty"),
        (&["vault", "add", "long"], &"CANARY".repeat(12_000), "more than 64 KiB"),
        (&["vault", "add", "none", "--from-file", "missing"], "", "missing"),
    ] {
        let error = failure(&rig, args, input);
        assert!(error["why"].as_str().unwrap().contains(why) && error["fix"].is_string(), "{args:?}: {error}");
    }
    // What already went wrong on the command line is at least not repeated where logs are kept.
    for args in [
        &["vault", "add", "github", "CANARY-value"][..],
        &["vault", "add", "CANARY/value"],
        &["vault", "list", "--key", "AGE-SECRET-KEY-1CANARY"],
    ] {
        let output = rig.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        unseen(args, &output);
    }

    let names = |rig: &Rig| {
        let listed = rig.objects(&["vault", "list"]);
        listed.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&rig), ["github", "pem"]);
    let file = credentials(&rig, &sealed(&rig), &[("A", "sealed:github"), ("B", "sealed:pem")]);
    let test = ["vault", "test", "--credentials", &file];
    let tried = rig.objects(&test);
    assert!(tried.len() == 2 && tried.iter().all(|it| it["ok"] == true), "{tried:?}");

    assert!(fed(&rig, &["vault", "rotate", "github"], "CANARY-two").status.success());
    let before = std::fs::read(rig.path("state/vault.age")).unwrap();
    rig.text(&["vault", "rekey"]);
    assert_ne!(std::fs::read(rig.path("state/vault.age")).unwrap(), before);
    assert!(!rig.path("state/vault.key.new").exists());
    assert_eq!(mode(&rig.path("state/vault.key")), 0o600);
    assert_eq!(rig.objects(&test).len(), 2);
    // A run that was cut off after its first step, and one after its second, are gone on with.
    let key = rig.path("state/vault.key");
    let held = std::fs::read(&key).unwrap();
    rig.text(&["vault", "rekey", "--new-key", "state/vault.key.new"]);
    let new = std::fs::read(rig.path("state/vault.key.new")).unwrap();
    rig.text(&["vault", "rekey"]);
    assert_eq!(std::fs::read(&key).unwrap(), new);
    std::fs::write(rig.path("other.key"), held).unwrap();
    std::fs::set_permissions(rig.path("other.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let wrong = failure(&rig, &["vault", "list", "--key", "other.key"], "");
    assert!(wrong["why"].as_str().unwrap().contains("not encrypted to this key"), "{wrong}");

    rig.text(&["vault", "remove", "github"]);
    assert_eq!(names(&rig), ["pem"]);
    let lost = rig.run(&[&test[..], &["--output", "json"]].concat());
    assert_eq!(lost.status.code(), Some(1));
    unseen(&test, &lost);
    let said = String::from_utf8(lost.stdout).unwrap();
    assert!(said.contains("holds no secret") && said.contains("github"), "{said}");
    scan(&rig.path("state"));
}

#[test]
fn a_prompt_shows_nothing_of_what_is_typed() {
    let rig = Rig::new();
    rig.text(&["vault", "init"]);
    // A terminal of its own; what it shows is printed.
    let program = format!("{} vault add typed", env!("CARGO_BIN_EXE_palisade"));
    let mut command = rig.command(&[]);
    let environment: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.unwrap().to_owned())).collect();
    command = std::process::Command::new("script");
    command.args(["-qec", &program, "/dev/null"]).env_clear().envs(environment).env("SHELL", "/bin/sh");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keys, mut shown) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut screen = Vec::new();
    shown.read_until(b':', &mut screen).unwrap();
    assert!(String::from_utf8_lossy(&screen).contains("value of typed"), "{}", String::from_utf8_lossy(&screen));
    keys.write_all(b"CANARX\x7fY-typed\r").unwrap();
    let mut rest = String::new();
    shown.read_to_string(&mut rest).unwrap();
    drop(keys);
    assert!(child.wait().unwrap().success(), "{rest}");
    assert!(rest.contains("added typed") && !rest.contains("CANAR"), "{rest}");
}

#[test]
fn what_is_wrong_with_a_file_names_its_field_and_repeats_no_value() {
    let rig = Rig::new();
    let auth = |more: &str| {
        format!(
            "credentials: [{{auth: {{type: environment_variable, secret_name: A, networking: {{type: unrestricted}}, \
             secret_value: {{from: 'sealed:a'}}}}{more}}}]"
        )
    };
    let twice = auth("").replace("}]", "}, ") + auth("").trim_start_matches("credentials: [").trim_end();
    for (text, field) in [
        ("CANARY: 1".to_owned(), "unknown key"),
        ("[CANARY".to_owned(), "no YAML"),
        ("sources: {}\nsources: {env: {variables: [CANARY]}}".to_owned(), "twice"),
        ("sources: CANARY".to_owned(), "`sources`"),
        ("sources: {sealed: {file: CANARY, key: 'file:/k'}}".to_owned(), "`sources.sealed.file`"),
        ("sources: {sealed: {file: /f, key: CANARY}}".to_owned(), "`sources.sealed.key`"),
        ("credentials: CANARY".to_owned(), "`credentials`"),
        ("credentials: [CANARY]".to_owned(), "`credentials[0]`"),
        (auth(", CANARY: 1"), "`credentials[0]`"),
        (auth(", vaults: CANARY"), "`credentials[0].vaults`"),
        (auth(", use: {as: CANARY}"), "`credentials[0].use.as`"),
        (auth("").replace("{from: 'sealed:a'}", "CANARY"), "`credentials[0].auth.secret_value`"),
        (auth("").replace("'sealed:a'", "'CANARY'"), "`credentials[0].auth.secret_value.from`"),
        (twice, "`credentials[1].auth.secret_name`"),
    ] {
        std::fs::write(rig.path("bad.yaml"), &text).unwrap();
        for command in ["check", "test"] {
            let error = failure(&rig, &["vault", command, "--credentials", "bad.yaml"], "");
            assert!(error["why"].as_str().unwrap().contains(field), "{text}: {error}");
        }
    }
    // It reads well, but what it names is nowhere: that is known before anything runs.
    std::fs::write(rig.path("lost.yaml"), auth("")).unwrap();
    let checked = rig.run(&["vault", "check", "--credentials", "lost.yaml", "--output", "json"]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&checked.stdout).contains("names no configured source"), "{checked:?}");
    let nothing = failure(&rig, &["vault", "test", "--credentials", "lost.yaml", "CANARY"], "");
    assert!(nothing["why"].as_str().unwrap().contains("no reference"), "{nothing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_server_is_tried_without_leaving_a_lease() {
    let fake = Fake::start(FakeHashicorp::default(), Arc::new(now)).await;
    fake.service.token("hvs.CANARY");
    fake.service.write("secret/team", json!({"token": "CANARY-kv", "user": "CANARY-user"}));
    fake.service.role("database/creds/app", Duration::from_secs(3600), Duration::from_secs(7200));
    let rig = Rig::new();
    std::fs::write(rig.path("token"), "hvs.CANARY").unwrap();
    std::fs::set_permissions(rig.path("token"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let sources = format!(
        "{{vault: {{prod: {{address: '{}', auth: {{method: token, token: 'file:{}'}}, mounts: {{secret: kv, database: \
         dynamic}}}}}}}}",
        fake.url(),
        rig.path("token").display()
    );
    let all = [
        ("A", "vault:prod/secret/team#token"),
        ("B", "vault:prod/database/creds/app#password"),
        ("C", "vault:prod/secret/team#nothing"),
        ("D", "vault:prod/secret/nobody#x"),
    ];
    let file = credentials(&rig, &sources, &all);
    let output = fed(&rig, &["vault", "test", "--credentials", &file, "--output", "json"], "");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let tried = crate::rig::objects(&String::from_utf8(output.stdout).unwrap());
    let find = |reference: &str| tried.iter().find(|it| it["reference"] == reference).unwrap();
    assert_eq!(find(all[0].1)["ok"], true);
    assert_eq!((&find(all[1].1)["ok"], &find(all[1].1)["lease_s"]), (&json!(true), &json!(3600)));
    assert!(find(all[2].1)["why"].as_str().unwrap().contains("`token`, `user`"), "{tried:?}");
    assert!(find(all[3].1)["why"].as_str().unwrap().contains("holds no such secret"), "{tried:?}");
    assert!(fake.service.leases().is_empty(), "a trial leaves no lease");
    // One alone, by its reference and by its name; and a server that does not serve.
    for one in [all[0].1, "A"] {
        assert_eq!(rig.object(&["vault", "test", "--credentials", &file, one])["ok"], true);
    }
    fake.service.seal(true);
    let output = fed(&rig, &["vault", "test", "--credentials", &file, "A"], "");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("sealed"), "{output:?}");
}

#[expect(clippy::disallowed_methods, reason = "the server's clock is the machine's, as the binary's is")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// An upstream in the clear; what it was sent as authorization.
fn upstream() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|read| read > 2) {
                if line.to_ascii_lowercase().starts_with("authorization:") {
                    kept.lock().unwrap().push(line.trim().to_owned());
                }
                line.clear();
            }
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfine";
            let _ = stream.get_mut().write_all(answer.as_bytes());
        }
    });
    (port, seen)
}

#[test]
fn what_is_rotated_revoked_and_allowed_bites_on_the_next_request() {
    let rig = Rig::new();
    rig.text(&["vault", "init"]);
    assert!(fed(&rig, &["vault", "add", "github"], "CANARY-one").status.success());
    let (port, seen) = upstream();
    let policy = format!(
        "default: {{rules: [{{name: up, address: 127.0.0.1, ports: [{port}], tls: optional, methods: [GET]}}]}}\n"
    );
    std::fs::write(rig.path("policy.yaml"), policy).unwrap();
    let file = credentials(&rig, &sealed(&rig), &[("GITHUB_TOKEN", "sealed:github")]);
    let up = rig.start(&["up", "--max-idle", "600", "--egress", "policy.yaml", "--credentials", &file]);
    let said = rig.text(&["run", "--model", "scripted", "work"]);
    assert!(said.contains("It said: 42"), "{said}");
    let session = rig.object(&["ps"])["id"].as_str().unwrap().to_owned();
    let ask = || {
        let ask = format!(
            "curl -sS -m 20 --noproxy '' -w ' %{{http_code}}' -H \"authorization: Bearer $GITHUB_TOKEN\" http://127.0.0.1:{port}/"
        );
        rig.text(&["exec", &session, "--", "sh", "-c", &ask])
    };
    let last = || seen.lock().unwrap().last().cloned().unwrap_or_default();
    assert_eq!(ask(), "fine 200");
    assert_eq!(last(), "authorization: Bearer CANARY-one");
    assert!(fed(&rig, &["vault", "rotate", "github"], "CANARY-two").status.success());
    assert_eq!(ask(), "fine 200");
    assert_eq!(last(), "authorization: Bearer CANARY-two");

    let status = rig.object(&["vault", "status"]);
    assert_eq!(status["credentials"][0]["revoked"], false, "{status}");
    assert_eq!((&status["sources"][0]["kind"], &status["sources"][0]["down"]), (&json!("sealed"), &Value::Null));
    let revoked = rig.object(&["vault", "revoke", "sealed:github"]);
    assert_eq!(revoked["references"], json!(["sealed:github"]));
    let (refused, count) = (ask(), seen.lock().unwrap().len());
    assert!(!refused.contains("fine") && refused.contains("revoked"), "{refused}");
    assert_eq!(ask(), refused);
    assert_eq!(seen.lock().unwrap().len(), count);
    assert_eq!(rig.object(&["vault", "status"])["credentials"][0]["revoked"], true);
    // By the name that records have, too.
    assert_eq!(rig.object(&["vault", "allow", "GITHUB_TOKEN"])["references"], json!(["sealed:github"]));
    assert_eq!(ask(), "fine 200");
    for (command, name, why) in [
        ("revoke", "sealed:CANARY", "no credential of this worker"),
        ("revoke", "CANARY", "no credential of this worker"),
        ("allow", "sealed:github", "not revoked"),
    ] {
        let error = failure(&rig, &["vault", command, name], "");
        assert!(error["why"].as_str().unwrap().contains(why), "{error}");
    }
    // The live worker is asked, which has written one segment so far; it stays.
    let told = rig.object(&["egress", "archive", "--older-than", "0", "--to", "archive"]);
    assert_eq!((told["segments"].as_u64(), told["through"].is_null()), (Some(0), true), "{told}");
    let (_, _, log) = up.end();
    assert!(log.contains("archive the audit trail"), "{log}");
    let error = failure(&rig, &["egress", "archive", "--older-than", "0", "--to", "archive"], "");
    assert!(error["why"].as_str().unwrap().contains("no worker answers"), "{error}");
    assert!(log.contains("credential revoke") && log.contains("sealed:github") && !log.contains(CANARY), "{log}");
    rig.text(&["egress", "verify"]);
    scan(&rig.path("state"));
}

#[test]
fn what_is_revoked_stays_so_when_the_worker_is_killed() {
    let rig = Rig::new();
    rig.text(&["vault", "init"]);
    assert!(fed(&rig, &["vault", "add", "github"], "CANARY-one").status.success());
    std::fs::write(rig.path("policy.yaml"), "default: {rules: [{name: a, host: a.example}]}\n").unwrap();
    let file = credentials(&rig, &sealed(&rig), &[("GITHUB_TOKEN", "sealed:github")]);
    let start = || rig.start(&["up", "--max-idle", "600", "--egress", "policy.yaml", "--credentials", &file]);
    let revoked = || rig.object(&["vault", "status"])["credentials"][0]["revoked"] == true;
    let first = start();
    // It is up when it answers for a session.
    rig.text(&["run", "--model", "scripted", "work"]);
    assert_eq!(rig.object(&["vault", "revoke", "sealed:github"])["kept"], true);
    signal(first.pid(), "KILL");
    drop(first);
    let second = start();
    rig.text(&["run", "--model", "scripted", "work"]);
    assert!(revoked());
    rig.object(&["vault", "allow", "sealed:github"]);
    signal(second.pid(), "KILL");
    drop(second);
    let third = start();
    rig.text(&["run", "--model", "scripted", "work"]);
    assert!(!revoked());
    assert!(third.end().0);
    // What cannot be read gives nothing out again.
    std::fs::write(rig.path("state/worker/revoked.json"), "[\"sealed:git").unwrap();
    let error =
        failure(&rig, &["up", "--listen", "127.0.0.1:0", "--egress", "policy.yaml", "--credentials", &file], "");
    assert!(error["why"].as_str().unwrap().contains("revoked.json"), "{error}");
}

#[test]
fn a_worker_that_is_aborted_leaves_no_core() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let rig = Rig::new();
    let core = getrlimit(Resource::Core);
    setrlimit(Resource::Core, Rlimit { current: core.maximum, ..core }).unwrap();
    let left = || {
        let files = std::fs::read_dir(rig.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
        files.filter(|name| name.to_string_lossy().starts_with("core")).count()
    };
    // Where other programs leave one, so that it would be seen.
    let mut other = std::process::Command::new("sh");
    other.args(["-c", "kill -ABRT $$"]).current_dir(rig.path(".")).status().unwrap();
    let before = left();
    rig.text(&["vault", "init"]);
    assert!(fed(&rig, &["vault", "add", "github"], "CANARY-one").status.success());
    std::fs::write(rig.path("policy.yaml"), "default: {rules: [{name: a, host: a.example}]}\n").unwrap();
    let file = credentials(&rig, &sealed(&rig), &[("GITHUB_TOKEN", "sealed:github")]);
    let up = rig.start(&["up", "--max-idle", "600", "--egress", "policy.yaml", "--credentials", &file]);
    rig.text(&["run", "--model", "scripted", "work"]);
    signal(up.pid(), "ABRT");
    let (well, _, _) = up.end();
    assert!(!well && left() == before);
    scan(&rig.path("state"));
}

#[test]
fn a_worker_without_a_way_out_says_so() {
    let rig = Rig::new();
    let _up = rig.start(&["up"]);
    rig.text(&["run", "--model", "scripted", "work"]);
    let error = failure(&rig, &["vault", "status"], "");
    assert!(error["why"].as_str().unwrap().contains("--credentials"), "{error}");
    // A worker whose credentials come from nowhere does not start.
    let file = credentials(&rig, "{}", &[("A", "sealed:a")]);
    std::fs::write(rig.path("policy.yaml"), "default: {rules: []}\n").unwrap();
    std::fs::write(rig.path("key"), "sk-ant-oat01-x").unwrap();
    let args =
        ["worker", "--base-url", "http://127.0.0.1:9", "--environment", "env_x", "--environment-key-file", "key"];
    let more = ["--state-dir", "other", "--egress", "policy.yaml", "--credentials", &file];
    let error = failure(&rig, &[&args[..], &more[..]].concat(), "");
    assert!(error["why"].as_str().unwrap().contains("names no configured source"), "{error}");
}

#[test]
fn what_the_guide_shows_can_be_used() {
    let rig = Rig::new();
    let guide = include_str!("../../../../docs/vault.md");
    let blocks: Vec<&str> = guide.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let uses: String = blocks
        .iter()
        .flat_map(|block| block.lines().filter(|line| line.starts_with("use: ")))
        .enumerate()
        .map(|(number, line)| {
            format!(
                "  - {{auth: {{type: environment_variable, secret_name: V{number}, secret_value: {{from: 'sealed:a'}}, \
                 networking: {{type: limited, allowed_hosts: [x.example.com]}}}}, {line}}}\n"
            )
        })
        .collect();
    assert_eq!(uses.lines().count(), 5);
    let mut files: Vec<String> =
        blocks.iter().filter(|block| block.starts_with("sources:")).map(|&block| block.to_owned()).collect();
    assert_eq!(files.len(), 2);
    let all = files[1].clone();
    files.push(format!("{all}credentials:\n{uses}"));
    // Each way to log in that the table has.
    for row in guide.lines().filter(|line| line.contains("`{method: ")) {
        let kind = row.split('`').nth(1).unwrap();
        let needs = match kind {
            "vault" => "address: 'https://x.example.com'",
            "aws" => "region: eu-central-1",
            "azure" => "address: 'https://x.example.com'",
            "google" => "project: p",
            other => panic!("{other}"),
        };
        for auth in row.split('`').filter(|part| part.starts_with("{method: ")) {
            let auth = auth.replace("ORIGIN", "'credential:x'").replace("path: P", "path: /p");
            let auth = auth.replace("role: ARN", "role: 'arn:aws:iam::1:role/worker'");
            files.push(format!("sources: {{{kind}: {{one: {{{needs}, auth: {auth}}}}}}}\n"));
        }
    }
    assert_eq!(files.len(), 3 + 11, "{files:?}");
    for text in files {
        std::fs::write(rig.path("shown.yaml"), &text).unwrap();
        let output = rig.run(&["vault", "check", "--credentials", "shown.yaml"]);
        assert!(output.status.success(), "{text}: {output:?}");
    }
    for line in guide.lines().filter(|line| line.starts_with("| `") && line.contains(":")) {
        let text = line.split('`').nth(1).unwrap();
        if text.contains(':') {
            assert!(text.parse::<palisade_vault::Reference>().is_ok(), "{text}");
        }
    }
}
