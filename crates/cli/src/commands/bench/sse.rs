//! What many open event streams cost, and how late events come out of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use memchr::memmem;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::figure::{Figure, Samples};
use super::rig::{PATIENCE, Rig, calls};
use super::{Plan, measured, memory};
use crate::output::{Context as _, Failure, Outcome, note};

const LATENCY: &str = "sse.p99_ms";
const MEMORY: &str = "sse.rss_mib";
/// Streams that are open on each session.
const READERS: usize = 10;
/// Events that the server emits in a second.
const RATE: usize = 1_000;
/// Events that a stream of an idle session shows for one `user.interrupt`: its arrival, and that it was read.
const ECHOES: usize = 2;
/// How each of them begins on the wire.
const MARK: &[u8] = b"event: user.interrupt\n";
/// Connections that are made, and requests that are under way, at a time.
const AT_ONCE: usize = 64;
/// Open files besides the streams.
const SPARE_FILES: u64 = 256;

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let mut figures = Vec::new();
    for streams in plan.pick(&[1_000, 10_000][..], &[1_000][..]) {
        let rig = Rig::start(&plan.place, &calls(0)).await?;
        let measured = with_server(plan, &rig, *streams).await;
        rig.end().await;
        figures.extend(measured?);
    }
    Ok(figures)
}

/// A session whose streams are read.
#[derive(Default)]
struct Watched {
    id: String,
    /// When its last event was due to be sent, in nanoseconds since the beginning.
    due: AtomicU64,
    /// How often its streams have shown an event.
    shown: AtomicUsize,
    /// How often they will have, once all that was sent has arrived.
    expected: AtomicUsize,
}

/// What the readers have seen.
struct Seen {
    begun: Instant,
    events: AtomicUsize,
    late: Mutex<Samples>,
}

async fn with_server(plan: &Plan, rig: &Rig, streams: usize) -> Outcome<Vec<Figure>> {
    let what = || format!("{streams} streams cannot be opened");
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let needed = streams as u64 + SPARE_FILES;
    if files.is_some_and(|files| files < needed) {
        let why = format!("this process and the server may each open {} files", files.unwrap_or_default());
        return Err(Failure::new(what()).why(why).fix(format!("raise the hard limit (`ulimit -Hn`) to {needed}")));
    }
    let address: SocketAddr = rig.url.trim_start_matches("http://").parse().context(what())?;
    let before = memory::resident(rig.server.pid)?;
    let sessions: Vec<Arc<Watched>> = futures::stream::iter(0..streams / READERS)
        .map(|_| async { rig.session(None).await.map(|id| Arc::new(Watched { id, ..Watched::default() })) })
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Outcome<_>>()?;

    let seen = Arc::new(Seen { begun: Instant::now(), events: AtomicUsize::new(0), late: Mutex::default() });
    let opened = futures::stream::iter(0..streams)
        .map(|number| {
            let session = sessions[number % sessions.len()].clone();
            async move { open(address, &rig.api_key, &session.id).await.map(|stream| (stream, session)) }
        })
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let mut readers = JoinSet::new();
    for stream in opened {
        let (stream, session) = stream?;
        readers.spawn(read(stream, session, seen.clone()));
    }

    let warm_up = plan.pick(Duration::from_secs(2), Duration::from_millis(500));
    let lasting = plan.pick(Duration::from_secs(10), Duration::from_secs(3));
    send(rig, &sessions, &seen, warm_up).await?;
    *seen.late.lock().unwrap_or_else(PoisonError::into_inner) = Samples::default();
    seen.events.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    let sent = send(rig, &sessions, &seen, lasting).await?;
    let took = begun.elapsed().as_secs_f64();
    let lost = (sent * ECHOES * READERS).saturating_sub(seen.events.load(Ordering::Relaxed));
    if lost > 0 {
        note(format!("warning: {lost} events did not arrive within {} s", PATIENCE.as_secs()));
    }
    let resident = memory::resident(rig.server.pid)?;
    readers.shutdown().await;
    let late = std::mem::take(&mut *seen.late.lock().unwrap_or_else(PoisonError::into_inner));
    let rate = (sent * ECHOES) as f64 / took;
    let details = |figure: Figure| figure.with("streams", streams).with("sessions", sessions.len());
    Ok(vec![
        details(Figure::new(LATENCY, measured(late.percentile_ms(99), LATENCY)?, "ms"))
            .with_number("p50_ms", measured(late.percentile_ms(50), LATENCY)?)
            .with_number("max_ms", measured(late.percentile_ms(100), LATENCY)?)
            .with_number("events_per_s", rate.round())
            .with_number("deliveries_per_s", (rate * READERS as f64).round())
            .with("lost", lost),
        details(Figure::new(MEMORY, resident, "MiB"))
            .with_number("before_mib", before)
            .with_number("kib_per_stream", (resident - before) * 1024.0 / streams as f64),
    ])
}

/// Opens one stream: the bare minimum of an HTTP client, so that the reader's own memory and time count little.
async fn open(address: SocketAddr, key: &str, session: &str) -> Outcome<TcpStream> {
    let what = "a stream cannot be opened";
    let mut stream = TcpStream::connect(address).await.context(what)?;
    let request = format!(
        "GET /v1/sessions/{session}/events/stream HTTP/1.1\r\nhost: {address}\r\nx-api-key: {key}\r\n\
         accept: text/event-stream\r\nanthropic-version: 2023-06-01\r\nanthropic-beta: managed-agents-2026-04-01\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.context(what)?;
    let mut head = Vec::with_capacity(1024);
    let ended = async {
        while memmem::find(&head, b"\r\n\r\n").is_none() {
            if stream.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    tokio::time::timeout(PATIENCE, ended).await.context(what)?.context(what)?;
    if !head.starts_with(b"HTTP/1.1 200 ") {
        let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
        return Err(Failure::new(what).why(format!("the server answered {:?}", String::from_utf8_lossy(line))));
    }
    Ok(stream)
}

/// Counts the events of a stream until it ends. Holds no buffer while it waits.
async fn read(stream: TcpStream, session: Arc<Watched>, seen: Arc<Seen>) {
    // What may be the first part of a mark, and its length.
    let mut rest = ([0; MARK.len()], 0);
    while stream.readable().await.is_ok() {
        let now = seen.begun.elapsed();
        let mut bytes = [0; 4096];
        bytes[..rest.1].copy_from_slice(&rest.0[..rest.1]);
        let length = match stream.try_read(&mut bytes[rest.1..]) {
            Ok(0) => return,
            Ok(length) => rest.1 + length,
            Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        let bytes = &bytes[..length];
        let late = now.saturating_sub(Duration::from_nanos(session.due.load(Ordering::Relaxed)));
        let mut after = 0;
        for place in memmem::find_iter(bytes, MARK) {
            after = place + MARK.len();
            seen.late.lock().unwrap_or_else(PoisonError::into_inner).add(late);
            session.shown.fetch_add(1, Ordering::Relaxed);
            seen.events.fetch_add(1, Ordering::Relaxed);
        }
        let kept = &bytes[after.max(length.saturating_sub(MARK.len() - 1))..];
        rest.0[..kept.len()].copy_from_slice(kept);
        rest.1 = kept.len();
    }
}

/// How many milliseconds ago the session's last event was due.
fn behind(session: &Watched, seen: &Seen) -> u128 {
    let due = Duration::from_nanos(session.due.load(Ordering::Relaxed));
    seen.begun.elapsed().saturating_sub(due).as_millis()
}

/// Sends events to one session after the other, at the rate and however late the answers are, and waits until every
/// stream has seen them. Gives how many were sent.
async fn send(rig: &Rig, sessions: &[Arc<Watched>], seen: &Seen, lasting: Duration) -> Outcome<usize> {
    let before = seen.events.load(Ordering::Relaxed);
    let gap = Duration::from_secs(1) * u32::try_from(ECHOES).unwrap_or(1) / u32::try_from(RATE).unwrap_or(1);
    let mut ticks = tokio::time::interval(gap);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let until = Instant::now() + lasting;
    let mut under_way = JoinSet::new();
    let mut sent = 0;
    loop {
        // When the request was due, not when there was time for it: otherwise a slow server would seem a fast one.
        let due = ticks.tick().await.into_std();
        if due >= until {
            break;
        }
        let session = sessions[sent % sessions.len()].clone();
        let due = u64::try_from(due.saturating_duration_since(seen.begun).as_nanos()).unwrap_or(u64::MAX);
        // The arrivals of two events could not be told apart, and the later one would make the earlier seem fast.
        let expected = session.expected.fetch_add(ECHOES * READERS, Ordering::Relaxed);
        if session.shown.load(Ordering::Relaxed) < expected {
            let why = format!("a stream has not shown an event {} ms after it was due", behind(&session, seen));
            return Err(Failure::new("the streams are too slow to be measured").why(why));
        }
        session.due.store(due, Ordering::Relaxed);
        let client = rig.client.clone();
        under_way.spawn(async move {
            let body = json!({"events": [{"type": "user.interrupt"}]});
            client.post("send an event", &format!("/v1/sessions/{}/events", session.id), &body).await
        });
        sent += 1;
        while let Some(done) = under_way.try_join_next() {
            done.context("an event cannot be sent")??;
        }
        if under_way.len() >= AT_ONCE
            && let Some(done) = under_way.join_next().await
        {
            done.context("an event cannot be sent")??;
        }
    }
    while let Some(done) = under_way.join_next().await {
        done.context("an event cannot be sent")??;
    }
    let late = Instant::now() + PATIENCE;
    while seen.events.load(Ordering::Relaxed) - before < sent * ECHOES * READERS && Instant::now() < late {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(sent)
}
