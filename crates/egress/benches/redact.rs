//! What the broker costs: heads without placeholders, and answers without secrets.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use palisade_api::Secret;
use palisade_egress::broker::{BodyPlan, Broker, Credential, Hosts, Mint, Wire};
use palisade_egress::{Authority, Supply, SupplyError};

fn main() {
    divan::main();
}

#[derive(Debug)]
struct Fixed(Arc<Secret>);

#[async_trait]
impl Supply for Fixed {
    async fn value(&self) -> Result<Arc<Secret>, SupplyError> {
        Ok(Arc::clone(&self.0))
    }
}

const PREFIXES: [&str; 8] = ["ghp_", "sk-ant-api03-", "npm_", "glpat-", "sk-proj-", "xoxb-", "", "dop_v1_"];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

/// A broker with so many credentials, all of which were put in once.
fn used(count: usize) -> Broker {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut value = |prefix: &str| {
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        let mut text = prefix.to_owned();
        for _ in 0..36 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push(letters[(random >> 33) as usize % letters.len()].into());
        }
        Arc::new(Fixed(Arc::new(Secret::new(text))))
    };
    let hosts = Hosts::limited(&["api.example.com", "*.github.com"]).expect("hosts");
    let credentials = (0..count)
        .map(|at| {
            Credential::new(format!("c{at}"), format!("V{at}"), hosts.clone(), value(PREFIXES[at % PREFIXES.len()]))
        })
        .collect();
    let broker = Broker::new(&Mint::from_key(&[7; 32]), "bench", credentials).expect("a broker");
    runtime().block_on(async {
        for (_, text) in broker.environment() {
            let mut parts = http::Request::get("/").header("x", text).body(()).expect("a request").into_parts().0;
            broker.inject(&mut parts, Wire::Https, &to()).await.expect("put in");
        }
    });
    broker
}

fn to() -> Authority {
    Authority::parse("api.example.com", Some(443)).expect("an authority")
}

/// Text as APIs answer, and bytes as downloads are.
fn answers() -> [(&'static str, Bytes); 2] {
    let mut random = 1_u64;
    let noise: Vec<u8> = (0..1024 * 1024)
        .map(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        })
        .collect();
    let mut json = String::new();
    while json.len() < 1024 * 1024 {
        let id = json.len();
        json += &format!(
            r#"{{"id":{id},"node_id":"MDEwOlJlcG9zaXRvcnkx{id}","full_name":"octocat/Hello-World","private":false,"html_url":"https:\/\/github.com\/octocat\/Hello-World","description":"This your first repo! %20 and \u00e9","sha":"6dcb09b5b57875f334f61aebed695e2e4193db5e"}},"#
        );
    }
    [("json", json.into()), ("noise", noise.into())]
}

#[divan::bench(args = [1, 4, 8, 20])]
fn redact_json(bencher: Bencher<'_, '_>, credentials: usize) {
    redact(bencher, credentials, &answers()[0].1);
}

#[divan::bench(args = [1, 4, 8, 20])]
fn redact_noise(bencher: Bencher<'_, '_>, credentials: usize) {
    redact(bencher, credentials, &answers()[1].1);
}

fn redact(bencher: Bencher<'_, '_>, credentials: usize, text: &Bytes) {
    let broker = used(credentials);
    bencher.counter(BytesCount::new(text.len())).bench_local(|| {
        let mut redactor = broker.redactor();
        for at in (0..text.len()).step_by(16 * 1024) {
            black_box(redactor.push(text.slice(at..usize::min(at + 16 * 1024, text.len()))));
        }
        black_box(redactor.finish());
        assert_eq!(redactor.found(), 0);
    });
}

/// A head as curl, an SDK or a browser sends it, with no placeholder in it.
#[divan::bench(args = [0, 8])]
fn head_without_placeholders(bencher: Bencher<'_, '_>, credentials: usize) {
    let (broker, runtime, to) = (used(credentials), runtime(), to());
    let mut request = http::Request::get("https://api.example.com/v1/things/1234567?limit=20&after=abcdef");
    for (name, value) in [
        ("host", "api.example.com"),
        ("user-agent", "python-requests/2.32.3"),
        ("accept-encoding", "gzip, deflate"),
        ("accept", "application/json"),
        ("connection", "keep-alive"),
        ("x-request-id", "5f0c0f1e-7a55-4c3b-9d7e-0a8f8d9f4f3a"),
        ("content-type", "application/json"),
        ("cookie", "session=8c7f1a2b3c4d5e6f7a8b9c0d1e2f3a4b; theme=dark"),
    ] {
        request = request.header(name, value);
    }
    let parts = request.body(()).expect("a request").into_parts().0;
    bencher.with_inputs(|| parts.clone()).bench_local_values(|mut parts| {
        runtime.block_on(broker.inject(&mut parts, Wire::Https, &to)).expect("nothing is refused")
    });
}

/// A large upload, guarded.
#[divan::bench]
fn upload(bencher: Bencher<'_, '_>) {
    let (broker, runtime, to, noise) = (used(8), runtime(), to(), answers()[1].1.clone());
    bencher.counter(BytesCount::new(noise.len())).bench_local(|| {
        let mut parts = http::Request::put("/").body(()).expect("a request").into_parts().0;
        let injection = runtime.block_on(broker.inject(&mut parts, Wire::Https, &to)).expect("nothing is refused");
        let BodyPlan::Replace(mut replacer) = injection.body else { unreachable!("headers only") };
        for at in (0..noise.len()).step_by(16 * 1024) {
            black_box(replacer.push(noise.slice(at..usize::min(at + 16 * 1024, noise.len())))).expect("clean");
        }
    });
}
