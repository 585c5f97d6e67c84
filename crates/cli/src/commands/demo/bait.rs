//! Services on the host's loopback that no sandbox may reach.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::output::{Context as _, Failure, Outcome};

/// A service that takes connections and one that answers datagrams. They end when this is dropped.
pub(super) struct Bait {
    pub(super) tcp_port: u16,
    pub(super) udp_port: u16,
    taken: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Bait {
    /// Starts both, and makes sure that they can be reached from the host: bait that nobody can take proves nothing.
    pub(super) async fn start() -> Outcome<Bait> {
        let what = "the services that the sandbox must not reach cannot be started";
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context(what)?;
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.context(what)?;
        let tcp_port = tcp.local_addr().context(what)?.port();
        let udp_port = udp.local_addr().context(what)?.port();
        let taken = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let count = taken.clone();
        tasks.spawn(async move {
            while tcp.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let count = taken.clone();
        tasks.spawn(async move {
            let mut datagram = [0; 64];
            while let Ok((length, from)) = udp.recv_from(&mut datagram).await {
                count.fetch_add(1, Ordering::SeqCst);
                // A sender that has gone is no loss.
                let _ = udp.send_to(&datagram[..length], from).await;
            }
        });
        let bait = Bait { tcp_port, udp_port, taken, tasks };
        bait.taste().await.map_err(|why| Failure::new(what).why(why))?;
        Ok(bait)
    }

    async fn taste(&self) -> std::io::Result<()> {
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.tcp_port)).await?);
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        udp.connect((Ipv4Addr::LOCALHOST, self.udp_port)).await?;
        udp.send(b"ping").await?;
        let mut answer = [0; 64];
        tokio::time::timeout(std::time::Duration::from_secs(5), udp.recv(&mut answer)).await??;
        // The connection may be counted a moment later than it was made.
        for _ in 0..1000 {
            if self.taken.load(Ordering::SeqCst) >= 2 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        self.taken.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// How many connections and datagrams have come in since the start.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }

    /// Ends both.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}
