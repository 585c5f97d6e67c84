//! The six tools, as the model sees them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use palisade_sandbox::{MemoryMount, ToolCall};
use serde_json::{Value, json};

use crate::rig::Rig;

async fn ok(rig: &Rig, name: &str, input: Value) -> String {
    let (text, is_error) = rig.call(name, input.clone()).await;
    assert!(!is_error, "{name} {input}: {text}");
    text
}

async fn wrong(rig: &Rig, name: &str, input: Value) -> String {
    let (text, is_error) = rig.call(name, input.clone()).await;
    assert!(is_error, "{name} {input}: {text}");
    text
}

#[tokio::test]
async fn bash_says_what_happened() {
    let rig = Rig::new().await;
    for (command, said) in [
        ("echo hi", Ok("hi")),
        ("printf 'no end'", Ok("no end")),
        ("printf 'two\\n\\n'", Ok("two\n")),
        ("true", Ok("(no output)")),
        ("echo out; echo err >&2", Ok("out\nerr")),
        ("false", Err("exit 1")),
        ("exit_like() { return 7; }; exit_like", Err("exit 7")),
        ("echo because; false", Err("because")),
        ("sh -c 'kill -9 $$'", Err("exit 137")),
        ("", Err("bash: command is required")),
        ("  \n ", Err("bash: command is required")),
    ] {
        let (text, is_error) = rig.call("bash", json!({"command": command})).await;
        let said = said.map_or_else(|said| (said, true), |said| (said, false));
        if command.contains("kill -9") {
            assert!(is_error && text.contains("Killed"), "{text}");
        } else {
            assert_eq!((text.as_str(), is_error), said, "{command}");
        }
    }
    assert_eq!(wrong(&rig, "bash", json!({})).await, "bash: command is required");
    assert!(wrong(&rig, "bash", json!({"command": 1})).await.contains("must be a string"));
    assert_eq!(ok(&rig, "bash", json!({"restart": true, "command": "echo both"})).await, "both");
    assert!(wrong(&rig, "no_such", json!({})).await.contains("no such tool"));
    let environment = rig.bash("env | cut -d= -f1 | sort | tr '\\n' ' '").await;
    assert!(!environment.contains("ANTHROPIC") && !environment.contains("CARGO"), "{environment}");
    assert_eq!(
        rig.bash("echo $TERM $HOME $PWD $-; tty; id -un").await,
        "dumb /home/agent /workspace hBs\nnot a tty\nagent"
    );
    // As many bytes as are kept, and one more.
    let exact = rig.bash("head -c 102400 /dev/zero | tr '\\0' x").await;
    assert!(exact.len() == 102_400 && !exact.contains("truncated"));
    let more = rig.bash("head -c 102401 /dev/zero | tr '\\0' x").await;
    assert_eq!(more.len(), 102_400 + "[output truncated: the first 1 bytes are missing]\n".len());
    let wide = rig.bash("for i in $(seq 60000); do printf ü; done; printf x").await;
    assert!(wide.starts_with("[output truncated: the first 17602 bytes are missing]\nü") && !wide.contains('\u{fffd}'));
}

#[tokio::test]
async fn read_text() {
    let rig = Rig::new().await;
    let at = |name: &str| rig.workspace().join(name);
    fs::write(at("text"), "one\ntwo\nthree\n").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("binary"), b"ab\xff\xfe\0").unwrap();
    fs::write(at("nul"), b"ab\0c").unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("limit"), "x".repeat(256 << 10)).unwrap();
    fs::write(at("over"), "line of text\n".repeat(30_000)).unwrap();
    fs::write(at("long"), format!("short\n{}\nshort", "x".repeat(300 << 10))).unwrap();
    rig.bash("mkfifo fifo; ln -s text link; ln -s nowhere dangling").await;
    for path in ["text", "/workspace/text", "./dir/../text", "link"] {
        assert_eq!(ok(&rig, "read", json!({"file_path": path})).await, "one\ntwo\nthree\n");
    }
    assert_eq!(ok(&rig, "read", json!({"file_path": "empty"})).await, "");
    assert_eq!(ok(&rig, "read", json!({"file_path": "limit"})).await.len(), 256 << 10);
    for (range, said) in [
        (json!([1, 1]), "one"),
        (json!([2, 3]), "two\nthree"),
        (json!([2, -1]), "two\nthree"),
        (json!([2, 0]), "two\nthree"),
        (json!([0, 1]), "one"),
        (json!([9, 12]), ""),
    ] {
        assert_eq!(ok(&rig, "read", json!({"file_path": "text", "view_range": range})).await, said);
    }
    for range in [json!([1]), json!([3, 2]), json!("1-2"), json!([1, 2, 3]), json!([1.5, 2]), json!(["1", "2"])] {
        let said = wrong(&rig, "read", json!({"file_path": "text", "view_range": range})).await;
        assert_eq!(said, "read: view_range must be [start_line, end_line]");
    }
    let said = wrong(&rig, "read", json!({"file_path": "over"})).await;
    assert!(
        said.starts_with("read: over is 390000 bytes, exceeds 262144-byte limit.") && said.contains("view_range"),
        "{said}"
    );
    assert_eq!(
        ok(&rig, "read", json!({"file_path": "over", "view_range": [29_999, 30_001]})).await,
        "line of text\nline of text"
    );
    assert!(
        wrong(&rig, "read", json!({"file_path": "over", "view_range": [1, -1]})).await.contains("262144-byte limit")
    );
    assert!(
        wrong(&rig, "read", json!({"file_path": "long", "view_range": [2, 2]})).await.contains("262144-byte limit")
    );
    assert_eq!(ok(&rig, "read", json!({"file_path": "long", "view_range": [3, 3]})).await, "short");
    for (path, said) in [
        ("binary", "read: binary: not valid UTF-8 text (binary file)"),
        ("nul", "read: nul: not valid UTF-8 text (binary file)"),
        ("dir", "read: dir is not a regular file"),
        ("fifo", "read: fifo is not a regular file"),
        ("none", "read: none: no such file or directory"),
        ("dangling", "read: dangling: no such file or directory"),
        ("text/below", "read: text/below: "),
        ("/etc/passwd", "read: path '/etc/passwd' is outside the session's working directory"),
        ("../../etc/passwd", "read: path '../../etc/passwd' is outside the session's working directory"),
        ("", "read: the path must not be empty"),
        ("a\0b", "read: the path must not be empty or hold NUL"),
        ("/dev/zero", "read: path '/dev/zero' is outside"),
        ("/proc/self/mem", "read: path '/proc/self/mem' is outside"),
    ] {
        let text = wrong(&rig, "read", json!({"file_path": path})).await;
        assert!(text.starts_with(said), "{path:?}: {text}");
    }
    assert_eq!(wrong(&rig, "read", json!({})).await, "read: file_path is required");
    assert_eq!(wrong(&rig, "read", json!({"file_path": 1})).await, "read: file_path must be a string");
}

#[tokio::test]
async fn read_pictures_and_documents() {
    let rig = Rig::new().await;
    let see = async |name: &str, bytes: &[u8]| {
        fs::write(rig.workspace().join(name), bytes).unwrap();
        let call =
            ToolCall { name: "read".to_owned(), input: json!({"file_path": name}), timeout: Duration::from_secs(20) };
        rig.sandbox.tool(call).await.unwrap()
    };
    for (name, head, kind, media) in [
        ("a.png", &b"\x89PNG\r\n\x1a\nrest"[..], "image", "image/png"),
        ("a.jpg", b"\xff\xd8\xff\xe0rest", "image", "image/jpeg"),
        ("a.gif", b"GIF89arest", "image", "image/gif"),
        ("a.webp", b"RIFF\0\0\0\0WEBPrest", "image", "image/webp"),
        ("a.pdf", b"%PDF-1.7\nrest", "document", "application/pdf"),
    ] {
        let output = see(name, head).await;
        assert!(!output.is_error);
        assert_eq!(output.content[0]["type"], kind);
        assert_eq!(output.content[0]["source"]["type"], "base64");
        assert_eq!(output.content[0]["source"]["media_type"], media);
        assert_eq!(output.content[0]["source"]["data"], rig.bash(&format!("base64 -w 0 {name}")).await);
    }
    let png = |bytes: usize| [&b"\x89PNG\r\n\x1a\n"[..], &vec![0; bytes - 8]].concat();
    let output = see("big.png", &png(3_932_160)).await;
    assert_eq!(output.content[0]["source"]["data"].as_str().unwrap().len(), 5 << 20);
    let output = see("bigger.png", &png(3_932_161)).await;
    assert!(output.is_error && output.content[0]["text"].as_str().unwrap().contains("5 MiB"));
    let pdf = |bytes: usize| [&b"%PDF-"[..], &vec![b' '; bytes - 5]].concat();
    assert!(!see("big.pdf", &pdf(20 << 20)).await.is_error);
    assert!(see("bigger.pdf", &pdf((20 << 20) + 1)).await.is_error);
}

#[tokio::test]
async fn write_and_edit() {
    let memory = tempfile::tempdir().unwrap();
    let host = memory.path().to_owned();
    let rig = Rig::with(|spec| {
        spec.memory.push(MemoryMount { host: host.clone(), name: "kept".to_owned(), read_only: false });
        spec.memory.push(MemoryMount { host, name: "seen".to_owned(), read_only: true });
    })
    .await;
    let at = |name: &str| rig.workspace().join(name);
    let write = |path: &str, content: &str| json!({"file_path": path, "content": content});
    assert_eq!(ok(&rig, "write", write("a/b/c", "größe")).await, "wrote 7 bytes to a/b/c");
    assert_eq!(fs::read_to_string(at("a/b/c")).unwrap(), "größe");
    assert_eq!(fs::metadata(at("a/b/c")).unwrap().permissions().mode() & 0o777, 0o644);
    rig.bash("chmod 750 a/b/c; ln -s a/b/c link; mkfifo fifo; mkdir sealed && chmod 500 sealed").await;
    assert_eq!(ok(&rig, "write", write("link", "through")).await, "wrote 7 bytes to link");
    assert!(at("link").is_symlink());
    assert_eq!(fs::metadata(at("a/b/c")).unwrap().permissions().mode() & 0o777, 0o750);
    assert_eq!(ok(&rig, "write", write("empty", "")).await, "wrote 0 bytes to empty");
    assert_eq!(
        ok(&rig, "write", write("/mnt/session/outputs/report", "x")).await,
        "wrote 1 bytes to /mnt/session/outputs/report"
    );
    assert_eq!(fs::read_to_string(rig.home.path().join("outputs/report")).unwrap(), "x");
    assert_eq!(ok(&rig, "write", write("/mnt/memory/kept/note", "x")).await, "wrote 1 bytes to /mnt/memory/kept/note");
    assert_eq!(ok(&rig, "read", json!({"file_path": "/mnt/memory/seen/note"})).await, "x");
    for (path, said) in [
        ("a/b", "write: a/b: is a directory"),
        ("fifo", "write: fifo is not a regular file"),
        ("/mnt/memory/seen/note", "write: path '/mnt/memory/seen/note' is on a read-only mount"),
        ("/tmp/x", "write: path '/tmp/x' is outside"),
        ("/mnt/memory/x", "write: path '/mnt/memory/x' is outside"),
        ("sealed/x", "write: sealed/x: permission denied"),
        ("a/b/c/d", "write: a/b/c/d: "),
    ] {
        let text = wrong(&rig, "write", write(path, "y")).await;
        assert!(text.starts_with(said), "{path}: {text}");
    }
    assert_eq!(wrong(&rig, "write", json!({"file_path": "x"})).await, "write: content is required");
    assert_eq!(rig.bash("find . -name '*.tmp' | wc -l").await, "0");

    let edit = |old: &str, new: &str| json!({"file_path": "e", "old_string": old, "new_string": new});
    fs::write(at("e"), "one two two\r\nthree\n").unwrap();
    assert_eq!(ok(&rig, "edit", edit("one", "1")).await, "edited e (1 replacement(s))");
    assert_eq!(wrong(&rig, "edit", edit("two", "2")).await, "edit: old_string appears 2 times in e (must be unique)");
    assert_eq!(wrong(&rig, "edit", edit("four", "4")).await, "edit: old_string not found in e");
    assert_eq!(wrong(&rig, "edit", edit("", "4")).await, "edit: old_string is required");
    let all = json!({"file_path": "e", "old_string": "two", "new_string": "$&\\1", "replace_all": true});
    assert_eq!(ok(&rig, "edit", all).await, "edited e (2 replacement(s))");
    assert_eq!(ok(&rig, "edit", edit("\r\nthree", "")).await, "edited e (1 replacement(s))");
    assert_eq!(fs::read_to_string(at("e")).unwrap(), "1 $&\\1 $&\\1\n");
    fs::write(at("binary"), b"a\xff").unwrap();
    fs::write(at("big"), "a".repeat((256 << 10) + 1)).unwrap();
    for (path, said) in [
        ("binary", "not valid UTF-8"),
        ("big", "exceeds 262144-byte limit"),
        ("none", "edit: none: no such file or directory"),
        ("fifo", "edit: fifo is not a regular file"),
        ("/mnt/memory/seen/note", "read-only mount"),
        ("/etc/hosts", "outside the session's working directory"),
    ] {
        let text = wrong(&rig, "edit", json!({"file_path": path, "old_string": "a", "new_string": "b"})).await;
        assert!(text.contains(said), "{path}: {text}");
    }
    // Bash sees what the tools wrote, and may change it.
    assert_eq!(rig.bash("cat a/b/c && echo more >> a/b/c && tail -n 1 e").await, "through1 $&\\1 $&\\1");
    assert_eq!(ok(&rig, "read", json!({"file_path": "a/b/c"})).await, "throughmore\n");
}

#[tokio::test]
async fn glob_finds_files() {
    let rig = Rig::new().await;
    rig.bash("mkdir -p src/deep .hidden .git node_modules/m; touch -d 2020-01-01 src/old.rs; touch -d 2021-01-01 src/deep/mid.rs; \
              touch -d 2022-01-01 new.ts; touch .dot .hidden/f.rs .git/f.rs node_modules/m/f.rs; ln -s /etc etc; ln -s src again")
        .await;
    let glob = |pattern: &str| json!({"pattern": pattern});
    for (pattern, found) in [
        ("**/*.rs", "/workspace/src/deep/mid.rs\n/workspace/src/old.rs"),
        ("**/*.{rs,ts}", "/workspace/new.ts\n/workspace/src/deep/mid.rs\n/workspace/src/old.rs"),
        ("*.rs", "no matches"),
        ("./new.*", "/workspace/new.ts"),
        ("src/*", "/workspace/src/old.rs"),
        ("src/**", "/workspace/src/deep/mid.rs\n/workspace/src/old.rs"),
        ("[a-n]ew.t?", "/workspace/new.ts"),
        (".dot", "/workspace/.dot"),
        (".hidden/*.rs", "/workspace/.hidden/f.rs"),
        ("etc/*", "no matches"),
    ] {
        assert_eq!(ok(&rig, "glob", glob(pattern)).await, found, "{pattern}");
    }
    assert_eq!(ok(&rig, "glob", json!({"pattern": "*.rs", "path": "src"})).await, "/workspace/src/old.rs");
    assert_eq!(
        wrong(&rig, "glob", glob("/etc/*")).await,
        "glob: absolute pattern not permitted; pass a relative pattern (and optionally path)"
    );
    for pattern in ["../*", "src/../../*", "", "[z", "{a,b"] {
        assert!(wrong(&rig, "glob", glob(pattern)).await.starts_with("glob: "));
    }
    for (path, said) in
        [("/etc", "outside"), ("etc", "outside"), ("none", "no such file"), ("new.ts", "not a directory")]
    {
        assert!(wrong(&rig, "glob", json!({"pattern": "*", "path": path})).await.contains(said), "{path}");
    }
    rig.bash("mkdir many; touch many/{1..500}").await;
    assert_eq!(ok(&rig, "glob", glob("many/*")).await.lines().count(), 200);
}

#[tokio::test]
async fn grep_finds_lines() {
    let rig = Rig::new().await;
    rig.bash(
        "mkdir -p src .git node_modules; printf 'alpha\\nbeta\\ngamma\\n' > src/a; printf 'beta max' > b; \
              printf 'beta\\0' > binary; cp b .git/b; cp b node_modules/b; ln -s /etc/passwd link; mkfifo fifo; \
              { head -c 5000 /dev/zero | tr '\\0' y; echo needle; } > long; yes 'many lines' | head -n 20000 > many; \
              printf 'x\\033[31mred\\n' > escape",
    )
    .await;
    let grep = |pattern: &str| json!({"pattern": pattern});
    assert_eq!(ok(&rig, "grep", grep("^beta")).await, "/workspace/b:1:beta max\n/workspace/src/a:2:beta\n");
    assert_eq!(ok(&rig, "grep", json!({"pattern": "a$", "path": "src/a"})).await, "1:alpha\n2:beta\n3:gamma\n");
    assert_eq!(ok(&rig, "grep", json!({"pattern": "beta", "path": "src"})).await, "/workspace/src/a:2:beta\n");
    // Line by line: nothing matches across the end of a line.
    for pattern in ["alpha\\sbeta", "alpha[^x]beta", "a\\n", "no such thing", "root:"] {
        assert_eq!(ok(&rig, "grep", grep(pattern)).await, "no matches", "{pattern}");
    }
    assert_eq!(ok(&rig, "grep", json!({"pattern": "[^q]+ta|gamma", "path": "src/a"})).await, "2:beta\n3:gamma\n");
    assert_eq!(ok(&rig, "grep", json!({"pattern": "(?i)GAMMA", "path": "src/a"})).await, "3:gamma\n");
    assert_eq!(ok(&rig, "grep", json!({"pattern": "x*", "path": "b"})).await, "1:beta max\n");
    let long = ok(&rig, "grep", json!({"pattern": "y", "path": "long"})).await;
    assert!(long.len() < 2100 && long.starts_with("1:yyy"), "{}", long.len());
    let many = ok(&rig, "grep", grep("many")).await;
    assert!(many.ends_with("\n[output truncated]\n") && many.len() < 101 << 10);
    assert_eq!(ok(&rig, "grep", grep("red")).await, "/workspace/escape:1:xred\n");
    assert!(wrong(&rig, "grep", grep("(open")).await.starts_with("grep: "));
    assert!(wrong(&rig, "grep", grep(&"(a{1000}){1000}".repeat(3))).await.starts_with("grep: "));
    assert_eq!(wrong(&rig, "grep", json!({"pattern": ""})).await, "grep: pattern is required");
    for (path, said) in [("/etc", "outside"), ("link", "outside"), ("none", "no such file"), ("fifo", "neither")] {
        let text = wrong(&rig, "grep", json!({"pattern": "root", "path": path})).await;
        assert!(text.contains(said), "{path}: {text}");
    }
}
