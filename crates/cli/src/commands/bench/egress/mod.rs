//! What the way out costs: time, throughput, and memory, beside what others do.

mod latency;
mod outside;
mod peers;
mod sandbox;
mod service;
mod sessions;
mod throughput;
mod transfer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Plan;
use super::figure::Figure;
use crate::output::{Context as _, Failure, Outcome};
use outside::Outside;

pub(super) use service::{ServiceArgs, serve};

const ADDED: &str = "egress.added_p50_us";
const REQUESTS: &str = "egress.requests_per_s";
const FRESH: &str = "egress.fresh_connection_p50_ms";
const PASS: &str = "egress.pass_gbit_s";
const INTERCEPT: &str = "egress.intercept_gbit_s";
const SANDBOX: &str = "egress.sandbox_added_ms";
const SESSIONS: &str = "egress.sessions_1000_mib";

pub(super) const FIGURES: [&str; 7] = [ADDED, REQUESTS, FRESH, PASS, INTERCEPT, SANDBOX, SESSIONS];

/// The most that one of them may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let plan = plan.clone();
    // A connection is a task among others, not the program's first thread, which takes longer to be woken.
    let task = tokio::spawn(async move { all(&plan).await });
    task.await.context("the figures of egress cannot be measured")?
}

async fn all(plan: &Plan) -> Outcome<Vec<Figure>> {
    let what = "the directory of the egress service's trail cannot be made";
    let directory = tempfile::Builder::new().prefix("palisade-bench.").tempdir_in(&plan.place).context(what)?;
    let rig = Rig { outside: Outside::start().await?, place: directory.path().to_owned() };
    let mut figures = Vec::new();
    if plan.wants(ADDED) || plan.wants(FRESH) {
        figures.extend(within(ADDED, latency::measure(plan, &rig)).await?);
    }
    if plan.wants(REQUESTS) {
        figures.push(within(REQUESTS, throughput::measure(plan, &rig)).await?);
    }
    if plan.wants(PASS) || plan.wants(INTERCEPT) {
        figures.extend(within(INTERCEPT, transfer::measure(plan, &rig)).await?);
    }
    if plan.wants(SANDBOX) {
        figures.push(within(SANDBOX, sandbox::measure(plan, &rig)).await?);
    }
    if plan.wants(SESSIONS) {
        figures.push(within(SESSIONS, sessions::measure(&rig)).await?);
    }
    Ok(figures)
}

/// What all figures need.
struct Rig {
    outside: Outside,
    /// Where trails are put.
    place: PathBuf,
}

impl Rig {
    /// A directory for a trail.
    fn trail(&self, name: &str) -> PathBuf {
        Path::join(&self.place, name)
    }
}

async fn within<T>(figure: &str, measuring: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    match tokio::time::timeout(PATIENCE, measuring).await {
        Ok(measured) => measured,
        Err(_) => Err(Failure::new(format!("{figure} cannot be measured"))
            .why(format!("it has not come to its end within {} s", PATIENCE.as_secs()))),
    }
}
