//! Tests of the audit trail at its boundary.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod archive;
mod crash;
mod full;
mod signed;
mod tamper;
mod trail;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use palisade_api::Timestamp;
use palisade_audit::{Filter, Options, Record, read};

/// A clock that goes on by a second whenever it is asked.
fn options() -> Options {
    let seconds = AtomicI64::new(1_790_000_000);
    Options::new(Arc::new(move || Timestamp::from_micros(seconds.fetch_add(1, Ordering::Relaxed) * 1_000_000)))
}

/// All records of a trail.
fn all(dir: &Path) -> Vec<Record> {
    read(dir, Filter::default()).unwrap().map(Result::unwrap).collect()
}

/// The kinds of all records of a trail.
fn kinds(dir: &Path) -> Vec<String> {
    all(dir).into_iter().map(|record| record.kind).collect()
}
