//! What a worker holds in memory, and what each idle session adds.

use std::time::Duration;

use serde_json::json;

use super::Plan;
use super::figure::Figure;
use super::memory::{self, Held};
use super::rig::{PATIENCE, Process, Rig, calls, user_message};
use crate::client::Stream;
use crate::output::{Failure, Outcome, note};

const IDLE: &str = "worker.idle_rss_mib";
const SESSION: &str = "worker.session_rss_mib";

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let rig = Rig::start(&plan.place, &calls(1)).await?;
    let figures = with_server(plan, &rig).await;
    rig.end().await;
    figures
}

async fn with_server(plan: &Plan, rig: &Rig) -> Outcome<Vec<Figure>> {
    // Without a limit of idleness, so that every sandbox is still there when the last one has come.
    let worker = rig.worker(&["--concurrency", "64", "--max-idle", "0"]).await?;
    let figures = with_worker(plan, rig, &worker).await;
    worker.end().await;
    figures
}

async fn with_worker(plan: &Plan, rig: &Rig, worker: &Process) -> Outcome<Vec<Figure>> {
    let sessions = plan.pick(20, 6);
    settle().await;
    let mut figures = vec![Figure::new(IDLE, memory::resident(worker.pid)?, "MiB")];
    if !plan.wants(SESSION) {
        return Ok(figures);
    }
    let before = memory::held(worker.pid)?;
    for _ in 0..sessions {
        one(rig).await?;
    }
    settle().await;
    let after = memory::held(worker.pid)?;
    let mut inside: Vec<Held> = Vec::new();
    for pid in memory::descendants(worker.pid)? {
        inside.push(memory::held(pid)?);
    }
    let shells = inside.iter().filter(|held| held.name == "bash").count();
    if shells != sessions {
        note(format!("warning: {SESSION}: {sessions} sessions are idle, but there are {shells} shells"));
    }
    let each = |total: f64| total / sessions as f64;
    let bash = each(inside.iter().filter(|held| held.name == "bash").map(|held| held.private).sum());
    let cell = each(inside.iter().filter(|held| held.name != "bash").map(|held| held.private).sum());
    let own = each(after.private - before.private);
    figures.push(
        Figure::new(SESSION, own + bash + cell, "MiB")
            .with_number("worker_mib", own)
            .with_number("cell_mib", cell)
            .with_number("bash_mib", bash)
            .with_number("worker_rss_mib", after.resident)
            .with("processes", inside.len())
            .with("sessions", sessions),
    );
    Ok(figures)
}

/// Until what was under way is over.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

/// A session that has run one command, and now waits for its user.
async fn one(rig: &Rig) -> Outcome<()> {
    let session = rig.session(None).await?;
    let mut stream = rig.client.stream(&session, false).await?;
    let body = json!({"events": [user_message("Go.")]});
    rig.client.post("send the message", &format!("/v1/sessions/{session}/events"), &body).await?;
    match tokio::time::timeout(PATIENCE, idle(&mut stream)).await {
        Ok(ended) => ended,
        Err(_) => Err(Failure::new("a session did not become idle").why("it was still running after a while")),
    }
}

async fn idle(stream: &mut Stream) -> Outcome<()> {
    while let Some(event) = stream.next().await? {
        if event["type"] == "session.status_idle" && event["stop_reason"]["type"] == "end_turn" {
            return Ok(());
        }
    }
    Err(Failure::new("a session did not become idle").why("its stream ended first"))
}
