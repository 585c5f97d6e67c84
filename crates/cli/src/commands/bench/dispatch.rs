//! How long a new session waits for the first result of a tool.

use std::time::{Duration, Instant};

use palisade_api::Timestamp;
use palisade_engine::{Clock as _, SystemClock};
use serde_json::Value;

use super::figure::{Figure, Samples};
use super::rig::{PATIENCE, Rig, calls};
use super::{Plan, measured};
use crate::output::{Failure, Outcome};

const FIGURE: &str = "dispatch.first_result_p50_ms";
const WARM_UP: usize = 3;

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let rig = Rig::start(&plan.place, &calls(1)).await?;
    let figures = with_server(plan, &rig).await;
    rig.end().await;
    figures
}

async fn with_server(plan: &Plan, rig: &Rig) -> Outcome<Vec<Figure>> {
    let sessions = plan.pick(60, 12);
    let worker = rig.worker(&["--concurrency", "8", "--max-idle", "1"]).await?;
    let mut times = Samples::default();
    let mut failed = None;
    for _ in 0..sessions + WARM_UP {
        match tokio::time::timeout(PATIENCE, session(rig)).await {
            Ok(Ok(took)) => times.add(took),
            Ok(Err(failure)) => failed = Some(failure),
            Err(_) => failed = Some(Failure::new("a session got no result").why("it was not there in time")),
        }
        if failed.is_some() {
            break;
        }
    }
    worker.end().await;
    if let Some(failure) = failed {
        return Err(failure);
    }
    let times = times.without_first(WARM_UP);
    Ok(vec![
        Figure::new(FIGURE, measured(times.percentile_ms(50), FIGURE)?, "ms")
            .with_number("p95_ms", measured(times.percentile_ms(95), FIGURE)?)
            .with("sessions", times.len()),
    ])
}

/// From sending the request to the sight of the result. The session is then deleted, and with it its sandbox goes.
async fn session(rig: &Rig) -> Outcome<Duration> {
    let (begun, clock) = (Instant::now(), SystemClock::default().now());
    let session = rig.session(Some("Go.")).await?;
    let mut stream = rig.client.stream(&session, false).await?;
    let mut result = None;
    loop {
        let Ok(event) = tokio::time::timeout(Duration::from_secs(1), stream.next()).await else {
            // Everything may have happened before the stream was open; then the log says when it did.
            if result.is_none() {
                result = logged(rig, &session, clock).await?;
            }
            if result.is_some() {
                break;
            }
            continue;
        };
        let Some(event) = event? else {
            return Err(Failure::new("a session got no result").why("its stream ended first"));
        };
        match event["type"].as_str() {
            Some("user.tool_result") if result.is_none() => result = Some(begun.elapsed()),
            Some("session.status_idle") if event["stop_reason"]["type"] == "end_turn" => break,
            Some("session.status_terminated") => {
                return Err(Failure::new("a session got no result").why("it was terminated"));
            }
            _ => {}
        }
    }
    rig.client.delete("delete the session", &format!("/v1/sessions/{session}")).await?;
    match result {
        Some(took) => Ok(took),
        None => Err(Failure::new("a session got no result").why("its turn ended without one")),
    }
}

/// When the log says that the result was read, counted from `begun` on the same clock.
async fn logged(rig: &Rig, session: &str, begun: Timestamp) -> Outcome<Option<Duration>> {
    let path = format!("/v1/sessions/{session}/events");
    let events = rig.client.list("read the session's events", &path, &[], usize::MAX).await?;
    let result = events.iter().find(|event| event["type"] == "user.tool_result");
    let at = result.and_then(|event| match &event["processed_at"] {
        Value::String(at) => at.parse::<Timestamp>().ok(),
        _ => None,
    });
    Ok(at.map(|at| Duration::from_micros((at.as_micros() - begun.as_micros()).max(0).unsigned_abs())))
}
