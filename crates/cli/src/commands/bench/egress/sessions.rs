//! What a thousand sessions with open connections hold.

use super::service::{READ, Running};
use super::{Rig, SESSIONS};
use crate::commands::bench::figure::Figure;
use crate::commands::bench::memory::resident;
use crate::output::Outcome;

const COUNT: usize = 1000;

pub(super) async fn measure(rig: &Rig) -> Outcome<Figure> {
    let none = Running::start(&rig.outside, 0, Some(&rig.trail("none"))).await?;
    let base = resident(none.process.pid);
    none.process.end().await;
    let service = Running::start(&rig.outside, COUNT, Some(&rig.trail("sessions"))).await?;
    let held = held(rig, &service).await;
    service.process.end().await;
    let (idle, open) = held?;
    Ok(Figure::new(SESSIONS, open, "MiB").with_number("without_connections_mib", idle).with_number("empty_mib", base?))
}

/// Before the connections are there, and with them.
async fn held(rig: &Rig, service: &Running) -> Outcome<(f64, f64)> {
    let idle = resident(service.process.pid)?;
    let mut open = Vec::with_capacity(COUNT);
    for session in 0..COUNT {
        let way = service.way(session, READ, &rig.outside)?;
        let mut stream = way.open().await?;
        stream.ask(&way.request("")).await?;
        open.push(stream);
    }
    Ok((idle, resident(service.process.pid)?))
}
