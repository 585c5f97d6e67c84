//! From nothing to the first output of a command.

use std::path::Path;
use std::time::{Duration, Instant};

use palisade_sandbox::Native;

use super::peers::Peers;
use super::{COLD, Home, echo, end, start};
use crate::commands::bench::figure::{Figure, Samples};
use crate::commands::bench::{Plan, measured};
use crate::output::Outcome;

const WARM_UP: usize = 10;

pub(super) async fn measure(plan: &Plan, peers: &mut Peers) -> Outcome<Figure> {
    let runs = plan.pick(300, 40);
    let driver = Native::default();
    let (mut starts, mut lives) = (Samples::default(), Samples::default());
    // Turn by turn, so that what else the machine does falls on all.
    for round in 0..runs + WARM_UP {
        let (start, life) = ours(&driver, &plan.place).await?;
        starts.add(start);
        lives.add(life);
        peers.cold(round).await;
    }
    let (starts, lives) = (starts.without_first(WARM_UP), lives.without_first(WARM_UP));
    let figure = Figure::new(COLD, measured(starts.percentile_ms(50), COLD)?, "ms")
        .with_number("p95_ms", measured(starts.percentile_ms(95), COLD)?)
        .with_number("p99_ms", measured(starts.percentile_ms(99), COLD)?)
        .with_number("with_end_p50_ms", measured(lives.percentile_ms(50), COLD)?)
        .with("runs", starts.len());
    Ok(peers.beside_cold(figure))
}

/// From asking for a sandbox to the first byte of a command's output, and to the sandbox's end.
async fn ours(driver: &Native, place: &Path) -> Outcome<(Duration, Duration)> {
    let home = Home::make(place)?;
    let begun = Instant::now();
    let sandbox = start(driver, home.spec()).await?;
    echo(&sandbox).await?;
    let first = begun.elapsed();
    end(sandbox).await?;
    Ok((first, begun.elapsed()))
}
