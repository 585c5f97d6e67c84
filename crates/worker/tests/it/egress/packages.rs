//! pip and npm, from registries that want tokens which only the broker knows, and from ones that want none.

use std::io::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::world::{CANARY, DIRECT, World, credential, has, policy, rule};

/// A file and its type, by host and path.
type Files = dyn Fn(&str, &str) -> Option<(&'static str, Vec<u8>)> + Send + Sync;

/// Files by path, for whoever has the right `Authorization`; for everybody at hosts whose names begin with `open-`.
struct Shelf {
    authorization: String,
    files: Box<Files>,
}

async fn give(State(shelf): State<Arc<Shelf>>, uri: Uri, headers: HeaderMap) -> Response<Body> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let host = uri.authority().map(|host| host.as_str().to_owned()).unwrap_or_else(|| header("host").to_owned());
    let say = |status, kind: &str, body| {
        Response::builder().status(status).header("content-type", kind).body(Body::from(body)).unwrap()
    };
    if !host.starts_with("open-") && header("authorization") != shelf.authorization {
        return say(StatusCode::UNAUTHORIZED, "text/plain", b"a token is needed\n".to_vec());
    }
    match (shelf.files)(&host, uri.path()) {
        Some((kind, body)) => say(StatusCode::OK, kind, body),
        None => say(StatusCode::NOT_FOUND, "text/plain", Vec::new()),
    }
}

fn wheel() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    let info = "palisade_probe-1.0.dist-info";
    for (name, content) in [
        ("palisade_probe.py".to_owned(), "WORD = 'from the wheel'\n".to_owned()),
        (format!("{info}/METADATA"), "Metadata-Version: 2.1\nName: palisade-probe\nVersion: 1.0\n".to_owned()),
        (
            format!("{info}/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_owned(),
        ),
        (
            format!("{info}/RECORD"),
            format!("palisade_probe.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"),
        ),
    ] {
        zip.start_file(name, options).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn tarball() -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, content) in [
        ("package/package.json", r#"{"name": "palisade-probe", "version": "1.0.0", "main": "index.js"}"#),
        ("package/index.js", "module.exports = 'from the tarball';\n"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pip_installs_from_an_index() {
    if !has(&["python3"]) {
        return;
    }
    let world = World::new().await;
    let token = format!("pypi-AgEIcHlwaS5vcmc{CANARY}pippippippippippippippip");
    world.secret("pypi", &token);
    const NAME: &str = "palisade_probe-1.0-py3-none-any.whl";
    let shelf = Shelf {
        authorization: format!("Basic {}", STANDARD.encode(format!("__token__:{token}"))),
        files: Box::new(|_, path| match path {
            "/simple/palisade-probe/" => {
                let page = format!("<!DOCTYPE html><html><body><a href=\"/files/{NAME}\">{NAME}</a></body></html>");
                Some(("text/html", page.into_bytes()))
            }
            path if path == format!("/files/{NAME}") => Some(("application/octet-stream", wheel())),
            _ => None,
        }),
    };
    let upstream = world
        .upstream(&["pypi.test", "open-pypi.test"], Router::new().fallback(give).with_state(Arc::new(shelf)))
        .await;
    let port = upstream.port;
    let rules = [
        rule("index", "pypi.test", port, ", methods: [GET], paths: [/simple/, /files/]"),
        rule("open", "open-pypi.test", port, ""),
    ];
    let (working, session) = world.begin(&policy(&rules), &credential("PYPI_TOKEN", "file:keys/pypi", "pypi.test"));
    world.run(&session, "python3 -m venv /workspace/venv").await;
    for (how, before) in [("proxy", "env"), ("direct", DIRECT)] {
        for (kind, index) in [
            ("opened", format!("https://__token__:$PYPI_TOKEN@pypi.test:{port}/simple")),
            ("passed", format!("https://open-pypi.test:{port}/simple")),
        ] {
            let place = format!("/workspace/{how}-{kind}");
            let script = format!(
                "{before} /workspace/venv/bin/pip install -q --no-cache-dir --disable-pip-version-check --retries 0 --target {place} \
                 --index-url {index} palisade-probe==1.0 2>&1 && PYTHONPATH={place} python3 -c 'import palisade_probe as p; print(p.WORD)'"
            );
            let shown = world.run(&session, &script).await;
            assert!(shown.contains("from the wheel"), "{how} {kind}: {shown}");
        }
    }
    let record = world.recorded("the index", |record| record["path"] == "/simple/palisade-probe/").await;
    assert_eq!(record["credentials"], json!(["PYPI_TOKEN"]), "{record}");
    // A package that the index does not have by this rule: pip is told why, and does not look elsewhere.
    let missing = format!(
        "{DIRECT} /workspace/venv/bin/pip download --no-cache-dir --retries 0 https://pypi.test:{port}/other/x-1.0.tar.gz 2>&1"
    );
    let shown = world.fails(&session, &missing).await;
    assert!(shown.contains("403"), "{shown}");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn npm_installs_from_a_registry() {
    if !has(&["node", "npm"]) {
        return;
    }
    let world = World::new().await;
    let token = format!("npm_{CANARY}npmnpmnpmnpmnpmnpmnpmnpmnpmn");
    world.secret("npm", &token);
    let shelf = Shelf {
        authorization: format!("Bearer {token}"),
        files: Box::new(|host, path| match path {
            "/palisade-probe" => {
                let digest = ring::digest::digest(&ring::digest::SHA512, &tarball());
                let page = json!({"name": "palisade-probe", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {
                    "name": "palisade-probe", "version": "1.0.0", "main": "index.js",
                    "dist": {"tarball": format!("https://{host}/palisade-probe/-/palisade-probe-1.0.0.tgz"),
                        "integrity": format!("sha512-{}", STANDARD.encode(digest))}}}});
                Some(("application/json", page.to_string().into_bytes()))
            }
            "/palisade-probe/-/palisade-probe-1.0.0.tgz" => Some(("application/octet-stream", tarball())),
            _ => None,
        }),
    };
    let upstream =
        world.upstream(&["npm.test", "open-npm.test"], Router::new().fallback(give).with_state(Arc::new(shelf))).await;
    let port = upstream.port;
    let rules = [
        rule("registry", "npm.test", port, ", methods: [GET], paths: [/palisade-probe, /palisade-probe/]"),
        rule("open", "open-npm.test", port, ""),
    ];
    let (working, session) = world.begin(&policy(&rules), &credential("NPM_TOKEN", "file:keys/npm", "npm.test"));
    for (how, before) in [("proxy", "env"), ("direct", DIRECT)] {
        for host in ["npm.test", "open-npm.test"] {
            let script = format!(
                "(set -e; mkdir -p /workspace/{how}-{host}; cd /workspace/{how}-{host}; echo '{{\"name\": \"own\"}}' > package.json\n\
                 printf 'registry=https://{host}:{port}/\\n//npm.test:{port}/:_authToken=${{NPM_TOKEN}}\\nupdate-notifier=false\\nfetch-retries=0\\n' > .npmrc\n\
                 {before} npm install --cache ./cache --no-audit --no-fund palisade-probe 2>&1; node -p 'require(\"palisade-probe\")')"
            );
            let shown = world.run(&session, &script).await;
            assert!(shown.contains("from the tarball"), "{how} {host}: {shown}");
        }
    }
    let record = world
        .recorded("the tarball", |record| record["path"].as_str().is_some_and(|path| path.ends_with(".tgz")))
        .await;
    assert_eq!(record["credentials"], json!(["NPM_TOKEN"]), "{record}");
    working.end().await;
}
