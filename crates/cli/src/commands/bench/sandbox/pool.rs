//! From the warm pool to the first output, one by one and a hundred at once.

use std::time::{Duration, Instant};

use palisade_sandbox::{Native, Options, PoolOptions};
use tokio::task::JoinSet;

use super::{BURST, Home, POOL, bash, echo, end, full, start};
use crate::commands::bench::figure::{Figure, Samples};
use crate::commands::bench::{Plan, measured};
use crate::output::{Context as _, Failure, Outcome};

const WARM_UP: usize = 10;
const WAITING: usize = 4;
/// How many are asked for at once, and how many of them wait.
const AT_ONCE: usize = 100;
const PREPARED: usize = 32;

/// A driver whose pool holds `waiting` before anybody asks for more.
fn pooled(waiting: usize) -> Native {
    let pool = PoolOptions { least: waiting, ..PoolOptions::of(waiting) };
    Native::new(Options { pool, ..Options::default() })
}

/// The pool learns what kind is asked for from the first one.
async fn fill(driver: &Native, home: &Home, waiting: usize) -> Outcome<()> {
    end(start(driver, home.spec()).await?).await?;
    full(driver, waiting).await
}

pub(super) async fn claims(plan: &Plan) -> Outcome<Figure> {
    let runs = plan.pick(300, 40);
    let home = Home::make(&plan.place)?;
    let driver = pooled(WAITING);
    fill(&driver, &home, WAITING).await?;
    let (mut claims, mut commands, mut shells) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..2 * (runs + WARM_UP) {
        full(&driver, WAITING).await?;
        let begun = Instant::now();
        let sandbox = start(&driver, home.spec()).await?;
        claims.add(begun.elapsed());
        if !sandbox.report().pooled {
            return Err(
                Failure::new(format!("{POOL} cannot be measured")).why("what waits in the pool was not handed out")
            );
        }
        // By a command and by the shell in turn.
        if round % 2 == 0 {
            echo(&sandbox).await?;
            commands.add(begun.elapsed());
        } else {
            bash(&sandbox, "echo up").await?;
            shells.add(begun.elapsed());
        }
        end(sandbox).await?;
    }
    driver.close().await;
    let (commands, shells) = (commands.without_first(WARM_UP), shells.without_first(WARM_UP));
    Ok(Figure::new(POOL, measured(commands.percentile_ms(50), POOL)?, "ms")
        .with_number("p99_ms", measured(commands.percentile_ms(99), POOL)?)
        .with_number("claim_p50_ms", measured(claims.without_first(2 * WARM_UP).percentile_ms(50), POOL)?)
        .with_number("bash_p50_ms", measured(shells.percentile_ms(50), POOL)?)
        .with_number("bash_p99_ms", measured(shells.percentile_ms(99), POOL)?)
        .with("runs", commands.len()))
}

pub(super) async fn bursts(plan: &Plan) -> Outcome<Figure> {
    let rounds = plan.pick(5, 2);
    let (mut warm, mut cold) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        warm.extend(burst(plan, PREPARED).await?);
        cold.extend(burst(plan, 0).await?);
    }
    let at = |samples: &Samples, percent| measured(samples.percentile_ms(percent), BURST);
    Ok(Figure::new(BURST, at(&warm, 50)?, "ms")
        .with_number("p99_ms", at(&warm, 99)?)
        .with_number("max_ms", at(&warm, 100)?)
        .with_number("no_pool_p50_ms", at(&cold, 50)?)
        .with_number("no_pool_max_ms", at(&cold, 100)?)
        .with("at_once", AT_ONCE)
        .with("waiting", PREPARED)
        .with("bursts", rounds))
}

/// Each from the moment when all were asked for to its own first output.
async fn burst(plan: &Plan, waiting: usize) -> Outcome<Vec<Duration>> {
    let mut homes = Vec::new();
    for _ in 0..AT_ONCE {
        homes.push(Home::make(&plan.place)?);
    }
    let driver = pooled(waiting);
    fill(&driver, &homes[0], waiting).await?;
    let begun = Instant::now();
    let mut all = JoinSet::new();
    for home in &homes {
        let (driver, spec) = (driver.clone(), home.spec());
        all.spawn(async move {
            let sandbox = start(&driver, spec).await?;
            echo(&sandbox).await?;
            Ok::<_, Failure>((begun.elapsed(), sandbox))
        });
    }
    let mut times = Vec::new();
    let mut sandboxes = Vec::new();
    while let Some(done) = all.join_next().await {
        let (took, sandbox) = done.context("a sandbox of a burst has failed")??;
        times.push(took);
        sandboxes.push(sandbox);
    }
    // All are there at the same time before the first one goes.
    for sandbox in sandboxes {
        end(sandbox).await?;
    }
    driver.close().await;
    Ok(times)
}
