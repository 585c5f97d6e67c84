//! The session's resolver: DNS over UDP and TCP on its own sockets. It asks nobody.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::evidence::{Asked, count};
use super::fault::Fault;
use super::session::{Shared, Slot};
use crate::dns::{self, tcp::Next};
use crate::policy::Reason;

/// How long a TCP connection may wait for its next query.
const IDLE: Duration = Duration::from_secs(10);

/// Answers datagrams, one after the other: keeping a refusal slows down whoever asks for too many.
pub(super) async fn datagrams(shared: Arc<Shared>, socket: UdpSocket) {
    let mut query = vec![0; dns::LARGEST];
    loop {
        match socket.recv_from(&mut query).await {
            Ok((length, from)) => {
                if let Some(reply) = answer(&shared, &query[..length]).await
                    && let Err(error) = socket.send_to(&reply, from).await
                {
                    tracing::debug!(%error, session = shared.id, "a DNS reply could not be sent");
                }
            }
            Err(error) => {
                // What a sender that is gone has left behind, and nothing that stays.
                tracing::debug!(%error, session = shared.id, "a DNS query could not be received");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

/// Answers queries on a connection.
pub(super) async fn stream(shared: Arc<Shared>, mut stream: TcpStream, slot: Slot) {
    let mut read = BytesMut::new();
    loop {
        let (reply, length) = match dns::tcp::next(&read) {
            Next::TooLong => break,
            Next::More => {
                match tokio::time::timeout(IDLE, stream.read_buf(&mut read)).await {
                    Ok(Ok(length)) if length > 0 => continue,
                    _ => break,
                };
            }
            Next::Message(query, length) => (answer(&shared, query).await, length),
        };
        read.advance(length);
        let Some(reply) = reply else { break };
        if stream.write_all(&dns::tcp::frame(&reply)).await.is_err() {
            break;
        }
    }
    drop(slot);
}

/// The reply to one query. A refusal is kept before it is told; if it cannot be kept, there is no reply.
async fn answer(shared: &Arc<Shared>, query: &[u8]) -> Option<Vec<u8>> {
    count(&shared.tally.names);
    let answer = dns::answer(query, &shared.names, &|host| shared.policy.knows(host));
    if !answer.allowed
        && let Some(asked) = answer.asked
    {
        let message = format!("the egress policy names no host {asked}");
        let asked = Asked { kind: "dns", to: asked, protocol: "dns", method: None, path: None };
        let fault = shared.refuse(asked, Fault::refused(Reason::NotAllowed, message)).await;
        if fault.code == Reason::AuditUnavailable.code() {
            return None;
        }
    }
    answer.reply
}
