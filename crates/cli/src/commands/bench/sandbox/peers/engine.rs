//! A Docker Engine of our own: nothing that runs on this machine already is touched.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::lane::Lane;

/// The image that is made for it.
pub(super) const IMAGE: &str = "palisade-bench";
const UP: Duration = Duration::from_secs(20);
const DOWN: Duration = Duration::from_secs(20);

pub(super) struct Engine {
    daemon: Child,
    /// Short, as the path of a socket must be.
    sockets: tempfile::TempDir,
}

impl Engine {
    /// Starts the daemon without a network, and makes the image.
    pub(super) async fn start(at: &Path, rootfs: &Path) -> Result<Engine, String> {
        super::as_root()?;
        for program in ["dockerd", "docker"] {
            super::installed(program, "sh").await?;
        }
        let sockets = tempfile::Builder::new().prefix("palisade-bench.").tempdir().map_err(|why| why.to_string())?;
        let own = |name: &str| sockets.path().join(name);
        let daemon = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--host"])
            .arg(format!("unix://{}", own("s").display()))
            .arg("--data-root")
            .arg(at.join("docker"))
            .arg("--exec-root")
            .arg(own("exec"))
            .arg("--pidfile")
            .arg(own("pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|why| why.to_string())?;
        let engine = Engine { daemon, sockets };
        match engine.prepare(rootfs).await {
            Ok(()) => Ok(engine),
            Err(why) => {
                // The first error says more.
                let _ = engine.end().await;
                Err(why)
            }
        }
    }

    async fn prepare(&self, rootfs: &Path) -> Result<(), String> {
        let mut lane = Lane::open("sh").map_err(|why| why.to_string())?;
        let asks = async {
            while lane.attempt(&self.docker("version")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(UP, asks).await.map_err(|_| "dockerd does not come up here".to_owned())?;
        let import = self.docker(&format!("import - {IMAGE}"));
        lane.attempt(&format!("tar -C '{}' -c . | {import}", rootfs.display())).await.map(drop)
    }

    /// A command line for this engine.
    pub(super) fn docker(&self, arguments: &str) -> String {
        format!("docker --host unix://{} {arguments}", self.sockets.path().join("s").display())
    }

    /// Ends the daemon, and with it what it has started.
    pub(super) async fn end(mut self) -> Result<(), String> {
        let pid = self.daemon.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, Signal::TERM).map_err(|why| why.to_string())?;
        }
        match tokio::time::timeout(DOWN, self.daemon.wait()).await {
            Ok(ended) => ended.map(drop).map_err(|why| why.to_string()),
            Err(_) => Err(format!("it is killed after {} s", DOWN.as_secs())),
        }
    }
}
