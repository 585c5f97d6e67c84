//! `glob` and `grep` on trees that are large, that change while they are searched, and in sandboxes that are at their limits.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use palisade_sandbox::ToolCall;
use serde_json::{Value, json};

use crate::rig::{Rig, until};

/// More files than a walk looks at alone, in an order of paths that is not that of their bytes; with one large directory.
/// Their paths in the sandbox, in order.
fn plant(rig: &Rig) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut count = 0;
    for (directory, files) in ["a", "a.b", "a/b", "a-b/c/d/e", "z", "a/b.c", "deep/1/2/3/4/5/6/7/8"]
        .iter()
        .zip([300, 300, 200, 300, 1500, 300, 300])
    {
        let at = rig.workspace().join(directory);
        fs::create_dir_all(&at).unwrap();
        for file in 0..files {
            count += 1;
            let name = format!("file{}.{}", file * 7 % files, if file % 3 == 0 { "x" } else { "y" });
            let rare = if file % 100 == 42 { "rare one\n" } else { "" };
            fs::write(at.join(&name), format!("common {count}\n{rare}common again")).unwrap();
            let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + count * 7919 % 1000);
            File::options()
                .write(true)
                .open(at.join(&name))
                .unwrap()
                .set_times(FileTimes::new().set_modified(changed))
                .unwrap();
            all.push(PathBuf::from("/workspace").join(directory).join(name));
        }
    }
    all.sort();
    all
}

fn host(rig: &Rig, path: &Path) -> PathBuf {
    rig.workspace().join(path.strip_prefix("/workspace").unwrap())
}

/// What `grep` must say: file by file in the order of paths.
fn lines(rig: &Rig, all: &[PathBuf], word: &str) -> String {
    let mut said = String::new();
    for path in all {
        for (number, line) in fs::read_to_string(host(rig, path)).unwrap().lines().enumerate() {
            if line.contains(word) {
                said.push_str(&format!("{}:{}:{line}\n", path.display(), number + 1));
            }
        }
    }
    said
}

async fn found(rig: &Rig, name: &str, input: Value) -> String {
    let (text, is_error) = rig.call(name, input).await;
    assert!(!is_error, "{name}: {text}");
    text
}

async fn finds_all(rig: &Rig, all: &[PathBuf]) {
    assert_eq!(found(rig, "grep", json!({"pattern": "rare"})).await, lines(rig, all, "rare"));
    let common = lines(rig, all, "common");
    assert!(common.len() > 200 << 10);
    let cut = format!("{}\n[output truncated]\n", &common[..100 << 10]);
    for _ in 0..3 {
        assert_eq!(found(rig, "grep", json!({"pattern": "common"})).await, cut);
    }
    let mut newest: Vec<_> = all
        .iter()
        .filter(|path| path.extension().is_some_and(|kind| kind == "x"))
        .map(|path| (fs::metadata(host(rig, path)).unwrap().modified().unwrap(), path))
        .collect();
    newest.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    let newest: Vec<_> = newest.iter().take(200).map(|(_, path)| path.to_str().unwrap()).collect();
    assert_eq!(found(rig, "glob", json!({"pattern": "**/*.x"})).await, newest.join("\n"));
}

#[tokio::test]
async fn a_large_tree_is_searched_as_a_small_one() {
    let rig = Rig::new().await;
    let all = plant(&rig);
    finds_all(&rig, &all).await;
}

#[tokio::test]
async fn a_sandbox_without_processes_left_is_searched() {
    let rig = Rig::with(|spec| spec.limits.pids = Some(32)).await;
    let all = plant(&rig);
    let fill = "while (1) { my $p = fork; last unless defined $p; if (!$p) { sleep 1000; exit } } open F, q(>.full); sleep 1000";
    rig.bash(&format!("perl -e '{fill}' >/dev/null 2>&1 &")).await;
    let full = rig.workspace().join(".full");
    until(|| full.exists()).await;
    finds_all(&rig, &all).await;
}

#[tokio::test]
async fn what_is_swapped_for_a_link_leads_nowhere() {
    let rig = Rig::new().await;
    for name in ["d/e", "other"] {
        fs::create_dir_all(rig.workspace().join(name)).unwrap();
        for file in 0..20 {
            fs::write(rig.workspace().join(name).join(format!("passwd{file}")), "nothing").unwrap();
        }
    }
    rig.bash(
        "perl -e 'while (1) { for ([q(d), q(/etc)], [q(d/e), q(/etc)], [q(d/e), q(/proc/1)], [q(other/passwd3), q(/etc/passwd)]) { \
             my ($name, $to) = @$_; rename $name, q(.kept) or next; symlink $to, $name; unlink $name; rename q(.kept), $name; \
             if (!-e q(started)) { open F, q(>started) } } }' >/dev/null 2>&1 &",
    )
    .await;
    let started = rig.workspace().join("started");
    until(|| started.exists()).await;
    for _ in 0..300 {
        for path in ["", "d", "d/e"] {
            // At a bad moment the path is the link: then it is refused.
            let input = json!({"pattern": "^root:|^Name:|^LD_|^HOME=", "path": path});
            let (text, is_error) = rig.call("grep", input).await;
            assert!(text == "no matches" || is_error, "{path}: {text}");
            let (text, is_error) =
                rig.call("glob", json!({"pattern": "**/{passwd,status,hostname}", "path": path})).await;
            assert!(text == "no matches" || is_error, "{path}: {text}");
        }
    }
}

#[tokio::test]
async fn a_search_that_is_given_up_ends() {
    let rig = Rig::new().await;
    fs::write(rig.workspace().join("text"), "only letters, line after line\n".repeat((15 << 20) / 30)).unwrap();
    // Made from outside: where the host protects hard links, the agent may not link a file that is not its own.
    fs::create_dir(rig.workspace().join("many")).unwrap();
    for i in 0..2000 {
        fs::hard_link(rig.workspace().join("text"), rig.workspace().join(format!("many/{i}"))).unwrap();
    }
    let input = json!({"pattern": "(?:[a-y]+|[^z])+zz"});
    let call = ToolCall { name: "grep".to_owned(), input, timeout: Duration::from_secs(60) };
    {
        // Each is as long as a search may be, and so many cannot run at the same time.
        let all = many(&rig, &call);
        assert!(tokio::time::timeout(Duration::from_millis(300), all).await.is_err());
    }
    // Whoever comes next does not wait for them.
    let (text, is_error) = rig.within("read", json!({"file_path": "many/none"}), Duration::from_secs(10)).await;
    assert!(is_error && text.contains("no such file"), "{text}");
}

/// Many calls at once; dropping it gives all of them up.
async fn many(rig: &Rig, call: &ToolCall) {
    let one = || async { drop(rig.sandbox.tool(call.clone()).await.unwrap()) };
    tokio::join!(one(), one(), one(), one(), one(), one(), one(), one(), one(), one(), one(), one());
    tokio::join!(one(), one(), one(), one(), one(), one(), one(), one(), one(), one(), one(), one());
}
