//! `palisade forward`: a port of this machine's loopback device that leads to one inside a sandbox.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;
use palisade_worker::perimeter::{ConnectBody, Purpose};
use serde_json::json;
use tokio::net::TcpListener;

use crate::commands::sandboxes::{WorkerAt, failed};
use crate::local::for_each_connection;
use crate::output::{Context as _, Outcome, Output, note};

/// Lead a port of this machine's loopback device to one inside a session's sandbox.
#[derive(Debug, Args)]
#[command(
    after_help = "It listens on 127.0.0.1 only, for every user of this machine, until it is ended with control-c."
)]
pub(crate) struct ForwardArgs {
    /// The session's id.
    session: String,
    /// The port here, 0 for a free one, and the port inside.
    #[arg(value_name = "LOCAL:REMOTE", value_parser = ports)]
    ports: (u16, u16),
    #[command(flatten)]
    worker: WorkerAt,
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let parsed = text.split_once(':').and_then(|(local, remote)| Some((local.parse().ok()?, remote.parse().ok()?)));
    parsed.filter(|(_, remote)| *remote != 0).ok_or_else(|| "use LOCAL:REMOTE, such as 8080:3000".to_owned())
}

pub(crate) async fn run(args: &ForwardArgs, out: Output) -> Outcome {
    let client = args.worker.client()?;
    client.session(&args.session).await.map_err(|why| failed("nothing can be forwarded", &why))?;
    let (local, remote) = args.ports;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local)).await.context("the port cannot be listened on")?;
    let address: SocketAddr = listener.local_addr().context("the port cannot be listened on")?;
    out.either(&json!({"address": address, "port": remote}), format!("forwarding {address} to port {remote}"));
    for_each_connection(&listener, |mut outside| {
        let (client, session) = (client.clone(), args.session.clone());
        async move {
            let body = ConnectBody { port: remote, purpose: Purpose::Forward };
            match client.connect(&session, &body).await {
                // Either side may end it, for whatever reason.
                Ok(mut inside) => {
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
                Err(why) => note(format!("a connection was not forwarded: {why}")),
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ports_are_named() {
        assert_eq!(ports("0:80"), Ok((0, 80)));
        for wrong in ["80", "80:0", "1:99999", "a:b", "1:2:3", ""] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
