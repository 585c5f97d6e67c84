//! How long a tool call takes from the model's wish to the accepted result.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::figure::{Figure, Samples};
use super::rig::{Process, Rig, calls, user_message};
use super::{Plan, measured};
use crate::commands::text;
use crate::output::{Failure, Outcome, note};

const FIGURE: &str = "tool_call.p50_ms";
/// How long a whole session may take, whoever works.
const PATIENCE: Duration = Duration::from_secs(45);

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let (count, warm_up) = plan.pick((220, 20), (60, 10));
    let rig = Rig::start(&plan.place, &calls(count)).await?;
    let figures = with_server(plan, &rig, warm_up).await;
    rig.end().await;
    figures
}

async fn with_server(plan: &Plan, rig: &Rig, warm_up: usize) -> Outcome<Vec<Figure>> {
    let ours = play(rig, rig.worker(&[]).await?).await?.without_first(warm_up);
    let figure = Figure::new(FIGURE, measured(ours.percentile_ms(50), FIGURE)?, "ms")
        .with_number("p99_ms", measured(ours.percentile_ms(99), FIGURE)?)
        .with("calls", ours.len());
    let mut figures = Vec::new();
    for (peer, program, script) in peers(plan) {
        let theirs = match rig.foreign_worker(&program, &script).await {
            Ok(worker) => play(rig, worker).await,
            Err(failure) => Err(failure),
        };
        match theirs.map(|times| times.without_first(warm_up).percentile_ms(50)) {
            Ok(Some(value)) => figures.push(figure.clone().beside(peer, value)),
            Ok(None) => note(format!("note: {FIGURE} has no peer {peer}: it answered too few calls")),
            Err(failure) => {
                failure.report_as_warning();
                note(format!("note: {FIGURE} has no peer {peer}"));
            }
        }
    }
    if figures.is_empty() {
        figures.push(figure);
    }
    Ok(figures)
}

/// The official workers whose SDKs are installed: their names, and what starts them.
fn peers(plan: &Plan) -> Vec<(&'static str, PathBuf, PathBuf)> {
    let node = plan.compat.join("typescript/node_modules/@anthropic-ai/sdk/package.json");
    let candidates = [
        ("python_worker", plan.python.clone(), plan.compat.join("python/official_worker.py"), plan.python.clone()),
        ("typescript_worker", PathBuf::from("node"), plan.compat.join("typescript/official-worker.mjs"), node),
    ];
    let mut found = Vec::new();
    for (peer, program, script, needed) in candidates {
        let missing = [&script, &needed].into_iter().find(|path| !path.exists()).cloned();
        match missing {
            None => found.push((peer, program, script)),
            Some(missing) => note(format!("note: {FIGURE} has no peer {peer}: there is no {}", missing.display())),
        }
    }
    found
}

/// One session from its message to the end of its turn; gives the time of each call in order. Ends the worker.
async fn play(rig: &Rig, worker: Process) -> Outcome<Samples> {
    let played = tokio::time::timeout(PATIENCE, session(rig)).await;
    worker.end().await;
    played.unwrap_or_else(|_| {
        let why = format!("it was not over in {} s", PATIENCE.as_secs());
        Err(Failure::new("a session of tool calls did not end").why(why))
    })
}

async fn session(rig: &Rig) -> Outcome<Samples> {
    let session = rig.session(None).await?;
    let mut stream = rig.client.stream(&session, false).await?;
    let body = json!({"events": [user_message("Go.")]});
    rig.client.post("send the message", &format!("/v1/sessions/{session}/events"), &body).await?;
    let mut asked: HashMap<String, Instant> = HashMap::new();
    let mut times = Samples::default();
    while let Some(event) = stream.next().await? {
        let now = Instant::now();
        match event["type"].as_str() {
            Some("agent.tool_use") => {
                asked.insert(text(&event, "id"), now);
            }
            Some("user.tool_result") => {
                if event["is_error"] == json!(true) {
                    return Err(Failure::new("a tool call failed").why(event["content"].to_string()));
                }
                // A result is seen when it has been accepted, and again when it has been read by the session.
                if let Some(since) = asked.remove(event["tool_use_id"].as_str().unwrap_or_default()) {
                    times.add(now - since);
                }
            }
            Some("session.status_idle") if event["stop_reason"]["type"] == "end_turn" => return Ok(times),
            Some("session.status_terminated") => {
                return Err(Failure::new("a session of tool calls did not end").why("it was terminated"));
            }
            _ => {}
        }
    }
    Err(Failure::new("a session of tool calls did not end").why("its stream ended first"))
}
