//! How many events per second become durable.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_api::{EventId, SessionId, Timestamp};
use palisade_core::batch::{Batch, Kind, LogEntry, Mutation, Precondition, Record};
use palisade_store::{Sqlite, Store};
use serde_json::json;

use super::Plan;
use super::figure::{Figure, Samples};
use crate::output::{Context as _, Failure, Outcome};

const FIGURE: &str = "events.durable_per_s";
const SESSIONS: [usize; 3] = [1, 16, 64];
/// Events of one commit.
const EVENTS: u64 = 4;

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let lasting = plan.pick(Duration::from_secs(3), Duration::from_millis(700));
    let warm_up = plan.pick(Duration::from_millis(500), Duration::from_millis(200));
    let mut figures = Vec::new();
    for sessions in SESSIONS {
        figures.push(at(plan, sessions, warm_up, lasting).await?);
    }
    Ok(figures)
}

/// A fresh database, and so many sessions that commit as fast as it lets them, each one batch at a time as its actor does.
async fn at(plan: &Plan, sessions: usize, warm_up: Duration, lasting: Duration) -> Outcome<Figure> {
    let what = "events cannot be stored";
    let home = tempfile::Builder::new().prefix("palisade-bench.").tempdir_in(&plan.place).context(what)?;
    let store = Arc::new(Sqlite::open(&home.path().join("palisade.db")).context(what)?);
    let from = Instant::now() + warm_up;
    let until = from + lasting;
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..sessions {
        writers.spawn(write(store.clone(), SessionId::from_tail(&format!("bench{number:021}")), from, until));
    }
    let (mut commits, mut times) = (0, Samples::default());
    while let Some(written) = writers.join_next().await {
        let own = written.context(what)??;
        commits += own.len();
        times.extend(own);
    }
    store.close().await;
    let events = commits as f64 * EVENTS as f64;
    let middle = times.percentile_ms(50).ok_or_else(|| Failure::new(what).why("no commit ended in time"))?;
    Ok(Figure::new(FIGURE, events / lasting.as_secs_f64(), "events/s")
        .with("sessions", sessions)
        .with_number("commit_p50_ms", middle)
        .with_number("commit_p99_ms", times.percentile_ms(99).unwrap_or_default()))
}

/// One session's commits: the session's record and four events each. Gives how long those took that were acknowledged
/// between `from` and `until`.
async fn write(store: Arc<Sqlite>, session: SessionId, from: Instant, until: Instant) -> Outcome<Vec<Duration>> {
    let what = "events cannot be stored";
    store.commit(Batch::new().with(Mutation::TakeLease(session.clone(), 1))).await.context(what)?;
    let mut times = Vec::new();
    let mut tail = 0;
    loop {
        let batch = batch(&session, tail)?;
        let begun = Instant::now();
        store.commit(batch).await.context(what)?;
        let ended = Instant::now();
        tail += EVENTS;
        if ended > until {
            return Ok(times);
        }
        if ended >= from {
            times.push(ended - begun);
        }
    }
}

fn batch(session: &SessionId, tail: u64) -> Outcome<Batch> {
    let body = json!({"id": session, "type": "session", "status": "running", "state": "x".repeat(1500)});
    let record = Record::new(Kind::Session, session.as_str(), Timestamp::from_micros(1), &body);
    let mut record = record.context("a record cannot be written")?;
    record.status = Some("running".to_owned());
    let events = (tail + 1..=tail + EVENTS)
        .map(|seq| LogEntry {
            seq,
            id: EventId::from_tail(&format!("bench{seq:021}")),
            kind: "agent.message".to_owned(),
            at: Timestamp::from_micros(seq.cast_signed()),
            body: format!(r#"{{"type":"agent.message","seq":{seq},"text":"{}"}}"#, "x".repeat(350)),
            private: None,
        })
        .collect();
    Ok(Batch::new()
        .when(Precondition::Epoch(session.clone(), 1))
        .with(Mutation::Put(record))
        .with(Mutation::Append(session.clone(), events)))
}
