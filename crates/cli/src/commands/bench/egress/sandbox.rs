//! What a sandbox's start waits for its network.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_egress::broker::{Broker, Mint};
use palisade_egress::policy::Policy;
use palisade_egress::proxy::{Listeners, Options, Service, Session, SessionSpec};
use palisade_sandbox::{Given, Native, Sandbox, Sockets};
use rustls::RootCertStore;

use super::service::Nowhere;
use super::{Rig, SANDBOX};
use crate::commands::bench::figure::{Figure, Samples};
use crate::commands::bench::sandbox::{Home, echo, end, start};
use crate::commands::bench::{Plan, measured};
use crate::commands::egress::now;
use crate::output::{Context as _, Failure, Outcome};

const WARM_UP: usize = 10;
const NO_SERVICE: &str = "a sandbox's network cannot be served";

/// What its network is.
#[derive(Clone, Copy)]
enum Network {
    Nowhere,
    Led,
    Served,
}

pub(super) async fn measure(plan: &Plan, rig: &Rig) -> Outcome<Figure> {
    let driver = Native::default();
    let mut roots = RootCertStore::empty();
    roots.add(rig.outside.root().clone()).context(NO_SERVICE)?;
    let service = Service::new(Options::new(Arc::new(Nowhere::default()), Arc::new(roots))).context(NO_SERVICE)?;
    let networks = [Network::Nowhere, Network::Led, Network::Served];
    let mut times = [(); 3].map(|()| Samples::default());
    for _ in 0..plan.pick(300, 40) + WARM_UP {
        for (network, times) in networks.iter().zip(&mut times) {
            times.add(one(&driver, &service, &rig.place, *network).await?);
        }
    }
    let times = times.map(|times| times.without_first(WARM_UP));
    let ms = |which: usize, percent| measured(times[which].percentile_ms(percent), SANDBOX);
    Ok(Figure::new(SANDBOX, ms(1, 50)? - ms(0, 50)?, "ms")
        .with_number("with_authority_ms", ms(2, 50)? - ms(0, 50)?)
        .with_number("nowhere_p50_ms", ms(0, 50)?)
        .with_number("led_p50_ms", ms(1, 50)?)
        .with_number("nowhere_p99_ms", ms(0, 99)?)
        .with_number("led_p99_ms", ms(1, 99)?)
        .with("runs", times[0].len()))
}

/// From asking for a sandbox to the first byte of a command's output.
async fn one(driver: &Native, service: &Service, place: &Path, network: Network) -> Outcome<Duration> {
    let home = Home::make(place)?;
    let mut spec = home.spec();
    spec.egress = !matches!(network, Network::Nowhere);
    let begun = Instant::now();
    let (sandbox, session) = if matches!(network, Network::Served) {
        let mint = Mint::new().context(NO_SERVICE)?;
        let broker = Broker::new(&mint, "sesn_bench", Vec::new()).context(NO_SERVICE)?;
        let policy = Policy::parse("rules:\n- {name: read, host: read.test, methods: [GET]}\n").context(NO_SERVICE)?;
        let (policy, broker) = (Arc::new(policy), Arc::new(broker));
        let session = "sesn_bench".to_owned();
        let prepared = service.prepare(SessionSpec { session, policy, broker, ssh_keys: Vec::new(), now: now() });
        let prepared = prepared.context(NO_SERVICE)?;
        let ca = home.path().join("ca.pem");
        std::fs::write(&ca, prepared.ca_pem()).context(NO_SERVICE)?;
        spec.given.push(Given { host: ca, target: "/run/palisade/ca.pem".to_owned(), over: false });
        let sandbox = start(driver, spec).await?;
        let session = prepared.serve(listeners(&sandbox)?).context(NO_SERVICE)?;
        (sandbox, Some(session))
    } else {
        (start(driver, spec).await?, None)
    };
    echo(&sandbox).await?;
    let took = begun.elapsed();
    if let Some(session) = session {
        Session::close(session).await;
    }
    end(sandbox).await?;
    Ok(took)
}

fn listeners(sandbox: &Sandbox) -> Outcome<Listeners> {
    let nothing = || Failure::new(NO_SERVICE).why("it leads nowhere");
    let Sockets { proxy, caught, resolver_tcp, resolver_udp, .. } = sandbox.network().ok_or_else(nothing)?;
    Ok(Listeners {
        proxy: TcpListener::from(proxy),
        transparent: TcpListener::from(caught),
        dns_tcp: TcpListener::from(resolver_tcp),
        dns_udp: UdpSocket::from(resolver_udp),
        ssh_agent: None,
    })
}
