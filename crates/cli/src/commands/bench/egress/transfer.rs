//! A lot on one connection.

use super::outside::Way;
use super::service::{self, READ, Running};
use super::throughput::middle;
use super::{INTERCEPT, PASS, Rig};
use crate::commands::bench::figure::Figure;
use crate::commands::bench::memory::{peak, resident};
use crate::commands::bench::{Plan, measured};
use crate::output::Outcome;

pub(super) async fn measure(plan: &Plan, rig: &Rig) -> Outcome<Vec<Figure>> {
    // A process for each, as only the most that it ever held can be seen afterwards.
    let pass = Running::start(&rig.outside, 1, Some(&rig.trail("pass"))).await?;
    let intercept = Running::start(&rig.outside, 1, Some(&rig.trail("intercept"))).await?;
    let figures = beside(plan, rig, &pass, &intercept).await;
    pass.process.end().await;
    intercept.process.end().await;
    figures
}

async fn beside(plan: &Plan, rig: &Rig, pass: &Running, intercept: &Running) -> Outcome<Vec<Figure>> {
    let direct = rig.outside.direct()?;
    let ways = [direct, pass.way(0, service::PASS, &rig.outside)?, intercept.way(0, READ, &rig.outside)?];
    for way in &ways {
        way.open().await?.ask(&way.request("")).await?;
    }
    let before = [resident(pass.process.pid)?, resident(intercept.process.pid)?];
    let mut rates = [(); 3].map(|()| Vec::new());
    for _ in 0..plan.pick(5, 1) {
        for (way, rates) in ways.iter().zip(&mut rates) {
            rates.push(once(way).await?);
        }
    }
    let grown = [peak(pass.process.pid)? - before[0], peak(intercept.process.pid)? - before[1]];
    let [direct, passed, intercepted] = rates.map(middle);
    let direct = measured(direct, PASS)?;
    let figure = |name, rate, grown| -> Outcome<Figure> {
        let figure = Figure::new(name, measured(rate, name)?, "Gbit/s").larger_is_better();
        Ok(figure.with_number("grown_mib", grown).with_number("direct_gbit_s", direct))
    };
    Ok(vec![figure(PASS, passed, grown[0])?, figure(INTERCEPT, intercepted, grown[1])?])
}

async fn once(way: &Way) -> Outcome<f64> {
    way.open().await?.transfer(way).await
}
