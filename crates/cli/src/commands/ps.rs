//! `palisade ps` and `palisade top`: sessions that a worker serves, and what runs in their sandboxes.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use palisade_sandbox::Process;
use palisade_worker::perimeter::{Client, SessionBody};
use serde_json::{Value, json};

use crate::commands::sandboxes::{WorkerAt, failed};
use crate::output::{Outcome, Output, plain};

/// List the sessions that a worker serves, or the processes of one's sandbox.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// The session's id.
    session: Option<String>,
    #[command(flatten)]
    worker: WorkerAt,
}

/// Watch what sessions use, or the processes of one's sandbox.
#[derive(Debug, Args)]
#[command(after_help = "Without a terminal, and with --output json, it is shown once. Control-c ends it.")]
pub(crate) struct TopArgs {
    /// The session's id.
    session: Option<String>,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    interval: u32,
    #[command(flatten)]
    worker: WorkerAt,
}

pub(crate) async fn ps(args: &PsArgs, out: Output) -> Outcome {
    let client = args.worker.client()?;
    show(&client, args.session.as_deref(), &mut Before::default(), None, out).await?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn top(args: &TopArgs, out: Output) -> Outcome {
    let client = args.worker.client()?;
    let mut before = Before::default();
    let interval = Duration::from_secs(u64::from(args.interval));
    if out.is_json() || !std::io::stdout().is_terminal() {
        show(&client, args.session.as_deref(), &mut before, None, out).await?;
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        show(&client, args.session.as_deref(), &mut before, Some(interval), out).await?;
        tokio::select! {
            asked = crate::local::asked_to_end() => return asked.map(|()| ExitCode::SUCCESS),
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// Processor time at the last look, by session or process.
#[derive(Default)]
struct Before(HashMap<String, u64>);

impl Before {
    /// What was used since, in per cent of one processor.
    fn share(&mut self, name: String, now: Option<u64>, interval: Option<Duration>) -> String {
        let (Some(now), Some(interval)) = (now, interval) else { return "-".to_owned() };
        let before = self.0.insert(name, now);
        let Some(spent) = before.and_then(|before| now.checked_sub(before)) else { return "-".to_owned() };
        format!("{}%", u128::from(spent) * 100 / interval.as_millis().max(1))
    }
}

async fn show(
    client: &Client,
    session: Option<&str>,
    before: &mut Before,
    interval: Option<Duration>,
    out: Output,
) -> Outcome<()> {
    let (head, rows, objects) = match session {
        Some(session) => {
            let processes = client.processes(session).await.map_err(|why| failed("there is nothing to list", &why))?;
            let head: &[&str] = &["id", "pid", "state", "tty", "age", "cpu", "%", "memory", "command"];
            let rows: Vec<_> = processes.iter().map(|process| process_row(process, before, interval)).collect();
            let objects: Vec<Value> = processes.iter().map(|process| json!(process)).collect();
            (head, rows, objects)
        }
        None => {
            let sessions = client.sessions().await.map_err(|why| failed("there is nothing to list", &why))?;
            let head: &[&str] = &["session", "driver", "served", "sandbox", "cpu", "%", "memory", "peak", "processes"];
            let rows: Vec<_> = sessions.iter().map(|session| session_row(session, before, interval)).collect();
            let objects: Vec<Value> = sessions.iter().map(|session| json!(session)).collect();
            (head, rows, objects)
        }
    };
    for object in &objects {
        out.object(object);
    }
    if interval.is_some() {
        out.piece("\x1b[H\x1b[2J");
    }
    out.table(head, &rows);
    Ok(())
}

fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

fn session_row(session: &SessionBody, before: &mut Before, interval: Option<Duration>) -> Vec<String> {
    vec![
        plain(&session.id).into_owned(),
        session.driver.clone(),
        age(session.served_ms),
        match (session.sandbox, session.paused) {
            (true, false) => "up",
            (true, true) => "paused",
            (false, true) => "on disk",
            (false, false) => "none",
        }
        .to_owned(),
        or_dash(session.cpu_ms, seconds),
        before.share(session.id.clone(), session.cpu_ms, interval),
        or_dash(session.memory_bytes, |bytes| memory(bytes >> 10)),
        or_dash(session.memory_peak_bytes, |bytes| memory(bytes >> 10)),
        or_dash(session.processes, |count| count.to_string()),
    ]
}

fn process_row(process: &Process, before: &mut Before, interval: Option<Duration>) -> Vec<String> {
    let words = process.argv.join(" ");
    let words = if process.label.is_empty() { words } else { format!("{} ({words})", process.label) };
    let state = match process.end {
        Some(end) => match (end.code, end.signal) {
            (Some(code), _) => format!("exit {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or(0)),
        },
        None => process.state.clone(),
    };
    let live = process.end.is_none();
    vec![
        or_dash(process.id, |id| id.to_string()),
        or_dash(live.then_some(process.pid), |pid| pid.to_string()),
        state,
        or_dash(process.tty, |tty| format!("pts/{tty}")),
        age(process.age_ms),
        or_dash(live.then_some(process.cpu_ms), seconds),
        before.share(process.pid.to_string(), live.then_some(process.cpu_ms), interval),
        or_dash(live.then_some(process.rss_kib), memory),
        plain(&words).chars().take(200).collect(),
    ]
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

fn age(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

fn memory(kib: u64) -> String {
    match kib {
        0..10_240 => format!("{kib} KiB"),
        10_240..10_485_760 => format!("{} MiB", kib >> 10),
        _ => format!("{} GiB", kib >> 20),
    }
}
