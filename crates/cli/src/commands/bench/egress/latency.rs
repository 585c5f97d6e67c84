//! What a request waits for the service: on a connection that is kept, and on a new one.

use std::time::{Duration, Instant};

use super::outside::Way;
use super::service::{CREDENTIAL, READ, Running};
use super::{ADDED, FRESH, Rig};
use crate::commands::bench::figure::{Figure, Samples};
use crate::commands::bench::{Plan, measured};
use crate::output::Outcome;

const WARM_UP: usize = 200;
const WARM_UP_FRESH: usize = 10;

pub(super) async fn measure(plan: &Plan, rig: &Rig) -> Outcome<Vec<Figure>> {
    let ours = Running::start(&rig.outside, 2, Some(&rig.trail("latency"))).await?;
    let bare = Running::start(&rig.outside, 1, None).await?;
    let figures = both(plan, rig, &ours, &bare).await;
    ours.process.end().await;
    bare.process.end().await;
    figures
}

async fn both(plan: &Plan, rig: &Rig, ours: &Running, bare: &Running) -> Outcome<Vec<Figure>> {
    let mut figures = Vec::new();
    if plan.wants(ADDED) {
        figures.push(added(plan, rig, ours, bare).await?);
    }
    if plan.wants(FRESH) {
        figures.push(fresh(plan, rig, ours, bare).await?);
    }
    Ok(figures)
}

/// So many requests one after the other are a turn. With fewer, a way is measured by what came before it: after one that left a
/// processor idle it pays for waking that.
const TURN: usize = 25;

/// Turn by turn, on a connection of each way that is kept.
async fn kept<const N: usize>(rounds: usize, ways: [(Way, &str); N]) -> Outcome<[Samples; N]> {
    let mut times = [(); N].map(|()| Samples::default());
    let mut open = Vec::with_capacity(N);
    for (way, more) in &ways {
        open.push((way.open().await?, way.request(more)));
    }
    for _ in 0..(rounds + WARM_UP).div_ceil(TURN) {
        for ((stream, request), times) in open.iter_mut().zip(&mut times) {
            for _ in 0..TURN {
                times.add(stream.ask(request).await?);
            }
        }
    }
    Ok(times.map(|times| times.without_first(WARM_UP)))
}

async fn added(plan: &Plan, rig: &Rig, ours: &Running, bare: &Running) -> Outcome<Figure> {
    let outside = &rig.outside;
    let us = |times: &Samples, percent| measured(times.percentile_ms(percent).map(|ms| ms * 1000.0), ADDED);
    let ways = [(outside.direct()?, ""), (ours.way(0, READ, outside)?, ""), (bare.way(0, READ, outside)?, "")];
    let [direct, through, without] = kept(plan.pick(10_000, 1_500), ways).await?;
    // On its own, as each of these waits for the disk and what is written then would be in the others' times.
    let field = format!("Authorization: Bearer {}\r\n", ours.placeholder(1)?);
    let ways = [(outside.direct()?, ""), (ours.way(1, CREDENTIAL, outside)?, field.as_str())];
    let [before, credential] = kept(plan.pick(800, 100), ways).await?;
    Ok(Figure::new(ADDED, us(&through, 50)? - us(&direct, 50)?, "µs")
        .with_number("added_p99_us", us(&through, 99)? - us(&direct, 99)?)
        .with_number("direct_p50_us", us(&direct, 50)?)
        .with_number("direct_p99_us", us(&direct, 99)?)
        .with_number("without_trail_us", us(&without, 50)? - us(&direct, 50)?)
        .with_number("without_trail_p99_us", us(&without, 99)? - us(&direct, 99)?)
        .with_number("with_credential_us", us(&credential, 50)? - us(&before, 50)?)
        .with_number("with_credential_p99_us", us(&credential, 99)? - us(&before, 99)?)
        .with("requests", through.len()))
}

async fn fresh(plan: &Plan, rig: &Rig, ours: &Running, bare: &Running) -> Outcome<Figure> {
    let outside = &rig.outside;
    let ways = [outside.direct()?, ours.way(0, READ, outside)?, bare.way(0, READ, outside)?];
    let mut times = [(); 3].map(|()| Samples::default());
    for _ in 0..plan.pick(500, 60) + WARM_UP_FRESH {
        for (way, times) in ways.iter().zip(&mut times) {
            times.add(one(way).await?);
        }
    }
    let [direct, through, without] = times.map(|times| times.without_first(WARM_UP_FRESH));
    Ok(Figure::new(FRESH, measured(through.percentile_ms(50), FRESH)?, "ms")
        .with_number("p99_ms", measured(through.percentile_ms(99), FRESH)?)
        .with_number("direct_p50_ms", measured(direct.percentile_ms(50), FRESH)?)
        .with_number("without_trail_p50_ms", measured(without.percentile_ms(50), FRESH)?)
        .with("connections", through.len()))
}

/// From nothing to the end of the first answer.
async fn one(way: &Way) -> Outcome<Duration> {
    let request = way.request("");
    let began = Instant::now();
    way.open().await?.ask(&request).await?;
    Ok(began.elapsed())
}
