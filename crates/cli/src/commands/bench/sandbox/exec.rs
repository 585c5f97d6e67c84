//! Commands and the shell in a sandbox that is up.

use std::time::Instant;

use palisade_sandbox::Native;

use super::peers::Peers;
use super::{BASH, EXEC, Home, NO_CALL, bash, command as exec, end, start};
use crate::commands::bench::figure::{Figure, Samples};
use crate::commands::bench::{Plan, measured};
use crate::output::{Context as _, Failure, Outcome};

const WARM_UP: usize = 10;

pub(super) async fn command(plan: &Plan, peers: &mut Peers) -> Outcome<Figure> {
    let runs = plan.pick(400, 60);
    let home = Home::make(&plan.place)?;
    let sandbox = start(&Native::default(), home.spec()).await?;
    let mut times = Samples::default();
    for round in 0..runs + WARM_UP {
        let begun = Instant::now();
        let ended = exec(&sandbox, &["/bin/true"]).await?.wait().await.context(NO_CALL)?;
        times.add(begun.elapsed());
        if ended.0.code != Some(0) {
            return Err(Failure::new(NO_CALL).why("`true` did not succeed"));
        }
        peers.exec(round).await;
    }
    end(sandbox).await?;
    let times = times.without_first(WARM_UP);
    let figure = Figure::new(EXEC, measured(times.percentile_ms(50), EXEC)?, "ms")
        .with_number("p99_ms", measured(times.percentile_ms(99), EXEC)?)
        .with("runs", times.len());
    Ok(peers.beside_exec(figure))
}

pub(super) async fn builtin(plan: &Plan) -> Outcome<Figure> {
    let runs = plan.pick(5000, 500);
    let home = Home::make(&plan.place)?;
    let sandbox = start(&Native::default(), home.spec()).await?;
    let mut times = Samples::default();
    for _ in 0..runs + WARM_UP {
        let begun = Instant::now();
        bash(&sandbox, ":").await?;
        times.add(begun.elapsed());
    }
    end(sandbox).await?;
    let times = times.without_first(WARM_UP);
    let at = |percent| measured(times.percentile_ms(percent), BASH).map(|ms| ms * 1000.0);
    Ok(Figure::new(BASH, at(50)?, "µs").with_number("p99_us", at(99)?).with("runs", times.len()))
}
