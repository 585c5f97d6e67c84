//! git against a server that wants a token which only the broker knows.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::world::{CANARY, DIRECT, World, credential, has, policy, rule};

/// `git http-backend` behind HTTP, as CGI wants it.
struct Served {
    root: std::path::PathBuf,
    token: String,
}

async fn answer(
    State(served): State<Arc<Served>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let host = uri.host().map(str::to_owned).unwrap_or_else(|| header("host").to_owned());
    let basic = STANDARD.encode(format!("x-access-token:{}", served.token));
    let known = [format!("Basic {basic}"), format!("Bearer {}", served.token)]
        .iter()
        .any(|known| header("authorization") == known);
    // One of the names is a mirror that anybody may read.
    if !known && !host.starts_with("mirror.") {
        let refused =
            Response::builder().status(StatusCode::UNAUTHORIZED).header("www-authenticate", "Basic realm=\"code\"");
        return refused.body(Body::from("a token is needed\n")).unwrap();
    }
    let mut command = Command::new("git");
    command.arg("http-backend").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    command
        .env("GIT_PROJECT_ROOT", &served.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("PATH_INFO", uri.path())
        .env("QUERY_STRING", uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"));
    if known {
        command.env("REMOTE_USER", "agent");
    }
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let (_, output) = tokio::join!(
        async move {
            let _ = input.write_all(&body).await;
        },
        child.wait_with_output()
    );
    let output = output.unwrap().stdout;
    let end = output.windows(4).position(|at| at == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(output[..end].to_vec()).unwrap();
    let head: BTreeMap<&str, &str> = head.lines().filter_map(|line| line.split_once(": ")).collect();
    let mut response = Response::builder();
    for (name, value) in &head {
        response = match *name {
            "Status" => response.status(value.split(' ').next().unwrap()),
            name => response.header(name, *value),
        };
    }
    response.body(Body::from(output[end + 4..].to_vec())).unwrap()
}

/// Runs git on the server's side.
async fn git(at: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(at).args(arguments).env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", at);
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "t").env(format!("GIT_{who}_EMAIL"), "t@example.com");
    }
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_fetches_and_pushes_only_where_it_may() {
    if !has(&["git"]) {
        return;
    }
    let world = World::new().await;
    let token = format!("ghp_{CANARY}gitgitgitgitgitgitgitgitgitg");
    world.secret("git", &token);
    let root = tempfile::tempdir().unwrap();
    let repository = root.path().join("team/repo.git");
    std::fs::create_dir_all(&repository).unwrap();
    git(&repository, &["init", "--quiet", "--bare", "--initial-branch=main"]).await;
    let tree = git(&repository, &["mktree"]).await;
    let first = git(&repository, &["commit-tree", "-m", "first", &tree]).await;
    git(&repository, &["update-ref", "refs/heads/main", &first]).await;
    let served = Arc::new(Served { root: root.path().to_owned(), token: token.clone() });
    let app = Router::new().fallback(answer).layer(axum::extract::DefaultBodyLimit::max(64 << 20)).with_state(served);
    let upstream = world.upstream(&["git.test", "mirror.test"], app).await;
    let port = upstream.port;
    let rules = [
        rule("code", "git.test", port, ", paths: ['/team/*.git/**'], git: {push: ['refs/heads/agent/*']}"),
        rule("mirror", "mirror.test", port, ""),
    ];
    let (working, session) = world.begin(&policy(&rules), &credential("GIT_TOKEN", "file:keys/git", "git.test"));

    for (how, before) in [("proxy", "env"), ("direct", DIRECT)] {
        let begin = format!(
            "(set -e; export HOME=/workspace/{how} GIT_TERMINAL_PROMPT=0; mkdir $HOME; cd $HOME\n\
             git config --global user.name a; git config --global user.email a@example.com\n"
        );
        let url = format!("https://git.test:{port}/team/repo.git");
        let with_token = format!("https://x-access-token:$GIT_TOKEN@git.test:{port}/team/repo.git");
        let script = format!(
            "{begin}{before} git clone -q {with_token} repo; cd repo; git checkout -q -b agent/{how}\n\
             head -c 300000 /dev/urandom > blob; git add .; git commit -q -m second\n\
             {before} git push -q origin agent/{how}; {before} git fetch origin; git log --oneline origin/agent/{how}\n\
             {before} git -c http.extraHeader=\"Authorization: Bearer $GIT_TOKEN\" ls-remote {url}\n\
             {before} git clone -q https://mirror.test:{port}/team/repo.git $HOME/mirror; git -C $HOME/mirror log --oneline origin/agent/{how})"
        );
        let shown = world.run(&session, &script).await;
        assert!(shown.matches("second").count() == 2 && shown.contains("refs/heads/main"), "{shown}");
        let pushed = git(&repository, &["log", "--format=%s", &format!("agent/{how}")]).await;
        assert_eq!(pushed, "second\nfirst");
        // Everything that is refused says so in git's own words, and changes nothing.
        let here = format!("cd /workspace/{how}/repo; export GIT_TERMINAL_PROMPT=0; {before} git push");
        for (push, named) in [
            ("origin HEAD:main", "refs/heads/main"),
            (&*format!("--delete origin agent/{how}"), "refs/heads/agent/"),
            ("--force origin HEAD:refs/heads/agent/ok HEAD:refs/tags/v1", "refs/tags/v1"),
        ] {
            let shown = world.fails(&session, &format!("{here} {push} 2>&1")).await;
            assert!(
                shown.contains("this push was refused by the egress policy") && shown.contains(named),
                "{push}: {shown}"
            );
        }
        let shown = world
            .fails(
                &session,
                &format!("{begin}{before} git clone https://git.test:{port}/other/repo.git other 2>&1)")
                    .replace("mkdir", "mkdir -p"),
            )
            .await;
        assert!(shown.contains("403"), "{shown}");
        let refs = git(&repository, &["for-each-ref", "--format=%(refname)"]).await;
        assert!(
            refs.contains(&format!("refs/heads/agent/{how}")) && !refs.contains("tags") && !refs.contains("agent/ok"),
            "{refs}"
        );
        assert_eq!(git(&repository, &["rev-parse", "main"]).await, first);
    }
    let pushed = world
        .recorded("a push", |record| {
            record["method"] == "POST"
                && record["path"] == "/team/repo.git/git-receive-pack"
                && record["allowed"] == true
        })
        .await;
    assert_eq!(pushed["credentials"], serde_json::json!(["GIT_TOKEN"]), "{pushed}");
    world.recorded("a refused push", |record| record["reason"] == "push_refused").await;
    let shown = world.run(&session, "env; cat /workspace/*/repo/.git/config").await;
    assert!(shown.contains("GIT_TOKEN=ghp_") && !shown.contains(CANARY), "{shown}");
    working.end().await;
}
