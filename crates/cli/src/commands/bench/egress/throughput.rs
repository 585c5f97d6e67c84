//! Requests in a second, as many as the machine makes of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::outside::Way;
use super::peers::Peers;
use super::service::{READ, Running};
use super::{REQUESTS, Rig};
use crate::commands::bench::figure::Figure;
use crate::commands::bench::{Plan, measured};
use crate::output::{Failure, Outcome};

const CONNECTIONS: usize = 32;
/// Before anything is counted.
const WARM_UP: Duration = Duration::from_millis(500);

pub(super) async fn measure(plan: &Plan, rig: &Rig) -> Outcome<Figure> {
    let ours = Running::start(&rig.outside, 1, Some(&rig.trail("throughput"))).await?;
    let bare = Running::start(&rig.outside, 1, None).await?;
    let mut peers = Peers::start(plan, &rig.outside, &rig.place).await;
    let figure = beside(plan, rig, &ours, &bare, &mut peers).await;
    peers.end().await;
    ours.process.end().await;
    bare.process.end().await;
    figure
}

async fn beside(plan: &Plan, rig: &Rig, ours: &Running, bare: &Running, peers: &mut Peers) -> Outcome<Figure> {
    let lasts = plan.pick(Duration::from_millis(2_500), Duration::from_secs(1));
    let ways = [ours.way(0, READ, &rig.outside)?, bare.way(0, READ, &rig.outside)?];
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // By turns, so that what else the machine does falls on all.
    for _ in 0..plan.pick(3, 1) {
        with.push(rate(&ways[0], lasts).await?);
        peers.turn(lasts).await;
        without.push(rate(&ways[1], lasts).await?);
    }
    let figure = Figure::new(REQUESTS, measured(middle(with), REQUESTS)?, "1/s").larger_is_better();
    let figure = figure.with("connections", CONNECTIONS);
    Ok(peers.beside(figure.with_number("without_trail", measured(middle(without), REQUESTS)?)))
}

/// The median of the rounds.
pub(super) fn middle(mut rates: Vec<f64>) -> Option<f64> {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied()
}

/// Requests in a second on all connections together.
pub(super) async fn rate(way: &Way, lasts: Duration) -> Outcome<f64> {
    let done = Arc::new(AtomicU64::new(0));
    // Ended when this is dropped.
    let mut tasks: JoinSet<Failure> = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (mut stream, request, done) = (way.open().await?, way.request(""), Arc::clone(&done));
        tasks.spawn(async move {
            loop {
                match stream.ask(&request).await {
                    Ok(_) => done.fetch_add(1, Relaxed),
                    Err(failure) => return failure,
                };
            }
        });
    }
    let counted = async {
        tokio::time::sleep(WARM_UP).await;
        let (before, began) = (done.load(Relaxed), Instant::now());
        tokio::time::sleep(lasts).await;
        (done.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
    };
    tokio::select! {
        rate = counted => Ok(rate),
        Some(ended) = tasks.join_next() => {
            Err(ended.unwrap_or_else(|why| Failure::new("a connection of the bench has ended").why(why)))
        }
    }
}
