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

/// Calls of a session that are left out: shell, connections and caches are cold.
const WARM_UP: usize = 10;

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let rig = Rig::start(&plan.place, &calls(WARM_UP + plan.pick(70, 50))).await?;
    let figures = with_server(plan, &rig).await;
    rig.end().await;
    figures
}

/// A peer: its name, and what starts it.
struct Peer {
    name: &'static str,
    program: PathBuf,
    script: PathBuf,
    times: Samples,
}

async fn with_server(plan: &Plan, rig: &Rig) -> Outcome<Vec<Figure>> {
    let (mut ours, mut peers) = (Samples::default(), peers(plan));
    // Turn by turn, so that what else the machine does falls on all.
    for _ in 0..plan.pick(3, 1) {
        ours.append(play(rig, rig.worker(&[]).await?).await?.without_first(WARM_UP));
        let mut present = Vec::new();
        for mut peer in peers {
            let theirs = match rig.foreign_worker(&peer.program, &peer.script).await {
                Ok(worker) => play(rig, worker).await,
                Err(failure) => Err(failure),
            };
            match theirs {
                Ok(times) => {
                    peer.times.append(times.without_first(WARM_UP));
                    present.push(peer);
                }
                Err(failure) => {
                    failure.report_as_warning();
                    note(format!("note: {FIGURE} has no peer {}", peer.name));
                }
            }
        }
        peers = present;
    }
    let figure = Figure::new(FIGURE, measured(ours.percentile_ms(50), FIGURE)?, "ms")
        .with_number("p99_ms", measured(ours.percentile_ms(99), FIGURE)?)
        .with("calls", ours.len());
    let beside = |peer: &Peer| Some(figure.clone().beside(peer.name, peer.times.percentile_ms(50)?));
    let figures: Vec<_> = peers.iter().filter_map(beside).collect();
    Ok(if figures.is_empty() { vec![figure] } else { figures })
}

/// The official workers whose SDKs are installed.
fn peers(plan: &Plan) -> Vec<Peer> {
    let node = plan.compat.join("typescript/node_modules/@anthropic-ai/sdk/package.json");
    let candidates = [
        ("python_worker", plan.python.clone(), plan.compat.join("python/official_worker.py"), plan.python.clone()),
        ("typescript_worker", PathBuf::from("node"), plan.compat.join("typescript/official-worker.mjs"), node),
    ];
    let mut found = Vec::new();
    for (name, program, script, needed) in candidates {
        let missing = [&script, &needed].into_iter().find(|path| !path.exists()).cloned();
        match missing {
            None => found.push(Peer { name, program, script, times: Samples::default() }),
            Some(missing) => note(format!("note: {FIGURE} has no peer {name}: there is no {}", missing.display())),
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
