//! Records a second, each awaited until it is durable: `cargo bench -p palisade-audit`.
//!
//! What one caller gets is what the disk's sync costs; many share one.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use palisade_api::Timestamp;
use palisade_audit::{Options, Trail, verify};
use serde_json::{Value, json};

/// Records that each caller appends in one iteration.
const ROUNDS: u64 = 50;

fn main() {
    divan::main();
}

/// A request, as the egress service records it.
fn body() -> Value {
    json!({
        "to": "api.example.com:443", "protocol": "https", "method": "POST", "path": "/v1/messages", "allowed": true,
        "observed": false, "rule": "models", "credentials": ["vault/anthropic"], "alert": false,
    })
}

fn options() -> Options {
    Options::new(Arc::new(|| Timestamp::from_micros(1_790_000_000_000_000)))
}

/// So many callers append one after the other, each waiting for its own records.
#[divan::bench(args = [1, 32, 256], sample_count = 20, sample_size = 1)]
fn append(bencher: Bencher<'_, '_>, callers: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let trail = Trail::open(directory.path(), options()).expect("a new trail");
    bencher.counter(ItemsCount::new(callers * ROUNDS)).bench(|| {
        runtime.block_on(async {
            let callers = (0..callers).map(|_| {
                let trail = trail.clone();
                tokio::spawn(async move {
                    for _ in 0..ROUNDS {
                        trail.append("egress.request", Some("sesn_01"), body()).await.expect("room");
                    }
                })
            });
            for caller in callers.collect::<Vec<_>>() {
                caller.await.expect("a caller");
            }
        });
    });
}

/// Verifying a trail, which opening it does too.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn verify_trail(bencher: Bencher<'_, '_>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let trail = Trail::open(directory.path(), options()).expect("a new trail");
    runtime.block_on(async {
        for _ in 0..50_000 {
            trail.note("egress.request", Some("sesn_01"), body()).await.expect("room");
        }
        trail.close().await;
    });
    let bytes: u64 = std::fs::read_dir(directory.path())
        .expect("the trail")
        .map(|entry| entry.expect("a file").metadata().expect("its size").len())
        .sum();
    bencher
        .counter(ItemsCount::new(50_000_u64))
        .counter(BytesCount::new(bytes))
        .bench(|| assert!(verify(directory.path()).expect("a trail").intact()));
}
