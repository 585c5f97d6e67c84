//! The same things done by others, where they are installed and work.

mod engine;
mod lane;
mod rootfs;

use std::path::Path;

use crate::commands::bench::Plan;
use crate::commands::bench::figure::{Figure, Samples};
use crate::output::{Context as _, Outcome, note};
use engine::Engine;
use lane::Lane;

/// All namespaces, a read-only root, its own /dev, /proc and /tmp.
const BWRAP: &str =
    "bwrap --unshare-all --die-with-parent --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp /bin/echo up";
/// A namespace of each kind, to be entered.
const UNSHARE: &str = "unshare -Urmpfniu --mount-proc --kill-child sleep 3600 </dev/null >/dev/null 2>&1 & echo $!";
const WARM_UP: usize = 1;

/// One of them.
struct Peer {
    name: &'static str,
    /// Its turn comes in one of so many rounds: slow ones have fewer.
    every: usize,
    lane: Lane,
    cold: Option<String>,
    exec: Option<String>,
    /// What ends what is left of it.
    end: Option<String>,
    colds: Samples,
    execs: Samples,
}

/// All that are here.
pub(super) struct Peers {
    peers: Vec<Peer>,
    engine: Option<Engine>,
    _directory: tempfile::TempDir,
}

impl Peers {
    /// Starts what each needs: a container that waits for commands, an engine. One that does not work is left out, and a
    /// note says why.
    pub(super) async fn start(plan: &Plan) -> Outcome<Peers> {
        let what = "the directory of the peers cannot be made";
        let directory = tempfile::Builder::new().prefix("palisade-bench.").tempdir_in(&plan.place).context(what)?;
        let root = directory.path().join("rootfs");
        rootfs::make(&root).context("the root file system of the peers cannot be made")?;
        let mut peers = Peers { peers: Vec::new(), engine: None, _directory: directory };
        let at = peers._directory.path().to_owned();
        peers.add("bwrap", 1, Peer::bwrap().await);
        peers.add("nsenter", 1, Peer::nsenter().await);
        peers.add("crun", 1, Peer::runtime("crun", "crun", &at).await);
        peers.add("runc", 4, Peer::runtime("runc", "runc", &at).await);
        peers.add("runsc", 20, Peer::runtime("runsc", "runsc --network=none", &at).await);
        match Engine::start(&at, &root).await {
            Ok(engine) => {
                let docker = Peer::docker(&engine).await;
                peers.engine = Some(engine);
                peers.add("docker", 20, docker);
            }
            Err(why) => left_out("docker", &why),
        }
        Ok(peers)
    }

    fn add(&mut self, name: &'static str, every: usize, peer: Result<Peer, String>) {
        match peer {
            Ok(peer) => self.peers.push(Peer { name, every, ..peer }),
            Err(why) => left_out(name, &why),
        }
    }

    /// Everybody's turn with a sandbox of their own, from nothing to the first output.
    pub(super) async fn cold(&mut self, round: usize) {
        for peer in &mut self.peers {
            if let Some(command) = peer.cold.clone().filter(|_| round.is_multiple_of(peer.every)) {
                match peer.lane.run(&command).await {
                    Ok(took) => peer.colds.add(took),
                    Err(why) => {
                        peer.cold = None;
                        note(format!("note: {} has failed after {} rounds: {why}", peer.name, peer.colds.len()));
                    }
                }
            }
        }
    }

    /// Everybody's turn with a command in a sandbox that is up.
    pub(super) async fn exec(&mut self, round: usize) {
        for peer in &mut self.peers {
            if let Some(command) = peer.exec.clone().filter(|_| round.is_multiple_of(peer.every)) {
                match peer.lane.run(&command).await {
                    Ok(took) => peer.execs.add(took),
                    Err(why) => {
                        peer.exec = None;
                        note(format!("note: {} has failed after {} rounds: {why}", peer.name, peer.execs.len()));
                    }
                }
            }
        }
    }

    pub(super) fn beside_cold(&self, figure: Figure) -> Figure {
        self.peers.iter().fold(figure, |figure, peer| beside(figure, peer.name, &peer.colds))
    }

    pub(super) fn beside_exec(&self, figure: Figure) -> Figure {
        self.peers.iter().fold(figure, |figure, peer| beside(figure, peer.name, &peer.execs))
    }

    /// Ends what was started.
    pub(super) async fn end(mut self) {
        for peer in &mut self.peers {
            if let Some(end) = &peer.end
                && let Err(why) = peer.lane.run(end).await
            {
                note(format!("warning: {} leaves something behind: {why}", peer.name));
            }
        }
        if let Some(engine) = self.engine.take()
            && let Err(why) = engine.end().await
        {
            note(format!("warning: dockerd does not end: {why}"));
        }
    }
}

fn left_out(name: &str, why: &str) {
    note(format!("note: {name} is left out: {why}"));
}

fn beside(figure: Figure, name: &'static str, times: &Samples) -> Figure {
    let times = times.clone().without_first(WARM_UP);
    match (times.percentile_ms(50), times.percentile_ms(99)) {
        (Some(p50), Some(p99)) => figure.beside(name, p50).with_number(&format!("{name}_p99_ms"), p99),
        _ => figure,
    }
}

impl Peer {
    fn of(lane: Lane) -> Peer {
        let (colds, execs) = (Samples::default(), Samples::default());
        Peer { name: "", every: 1, lane, cold: None, exec: None, end: None, colds, execs }
    }

    async fn bwrap() -> Result<Peer, String> {
        let mut lane = installed("bwrap", "sh").await?;
        lane.attempt(BWRAP).await?;
        Ok(Peer { cold: Some(BWRAP.to_owned()), ..Peer::of(lane) })
    }

    /// `nsenter` into what `unshare` has made.
    async fn nsenter() -> Result<Peer, String> {
        let mut lane = installed("nsenter", "sh").await?;
        let outer = lane.attempt(UNSHARE).await?;
        let outer = outer.trim();
        // The process inside is the child of the one that was started, once there is one.
        let find = format!(
            "for i in 1 2 3 4 5 6 7 8 9 10; do read -r p </proc/{outer}/task/{outer}/children && break; sleep 0.1; done; \
             echo $p"
        );
        let inner = lane.attempt(&find).await?;
        let exec = format!("nsenter -t {} --user --mount --pid --net --ipc --uts /bin/true", inner.trim());
        let peer = Peer { end: Some(format!("kill {outer}")), ..Peer::of(lane) };
        peer.ready(Some(exec)).await
    }

    /// An OCI runtime: the same root file system, a limit of memory and one of processes.
    async fn runtime(program: &'static str, words: &str, at: &Path) -> Result<Peer, String> {
        as_root()?;
        let hides = program == "crun" && Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists();
        let mut lane = installed(program, if hides { "unshare -m sh" } else { "sh" }).await?;
        if hides {
            // crun refuses a version 2 hierarchy beside those of version 1.
            lane.attempt("umount /sys/fs/cgroup/unified").await?;
        }
        let (once, waits) = (at.join(format!("{program}-once")), at.join(format!("{program}-waits")));
        for (bundle, argv) in [(&once, &["/bin/echo", "up"][..]), (&waits, &["/bin/sleep", "3600"][..])] {
            rootfs::bundle(bundle, &at.join("rootfs"), argv).map_err(|why| why.to_string())?;
        }
        let runtime = format!("{words} --root '{}'", at.join(format!("{program}-state")).display());
        let id = format!("palisade-bench-{}", std::process::id());
        let cold = format!("{runtime} run --bundle '{}' {id}-once", once.display());
        lane.attempt(&cold).await?;
        let end = Some(format!("{runtime} delete --force {id}"));
        lane.attempt(&format!("{runtime} run --detach --bundle '{}' {id} >/dev/null 2>&1", waits.display())).await?;
        let peer = Peer { cold: Some(cold), end, ..Peer::of(lane) };
        peer.ready(Some(format!("{runtime} exec {id} /bin/true"))).await
    }

    async fn docker(engine: &Engine) -> Result<Peer, String> {
        let mut lane = installed("docker", "sh").await?;
        let limits = "--network=none --memory=2g --pids-limit=512";
        let cold = engine.docker(&format!("run --rm {limits} {} /bin/echo up", engine::IMAGE));
        lane.attempt(&cold).await?;
        let name = "waits";
        lane.attempt(&engine.docker(&format!("run --detach --name {name} {limits} {} /bin/sleep 3600", engine::IMAGE)))
            .await?;
        let end = Some(engine.docker(&format!("rm --force {name}")));
        let peer = Peer { cold: Some(cold), end, ..Peer::of(lane) };
        peer.ready(Some(engine.docker(&format!("exec {name} /bin/true")))).await
    }

    /// It, if it can run commands; else what it has started is ended.
    async fn ready(mut self, exec: Option<String>) -> Result<Peer, String> {
        if let Some(exec) = &exec
            && let Err(why) = self.lane.attempt(exec).await
        {
            if let Some(end) = &self.end {
                // The first error says more.
                let _ = self.lane.attempt(end).await;
            }
            return Err(why);
        }
        Ok(Peer { exec, ..self })
    }
}

fn as_root() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("it is measured as root only".to_owned());
    }
    // The scheduling policy, after the name, which may hold anything: sched(7) numbers FIFO 1 and RR 2.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let policy = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(38));
    if matches!(policy, Some("1" | "2")) {
        return Err("with real-time priority no process can go into its control groups; use `nice` instead".to_owned());
    }
    Ok(())
}

/// A shell for its commands, if it is there.
async fn installed(program: &str, shell: &str) -> Result<Lane, String> {
    let mut lane = Lane::open(shell).map_err(|why| why.to_string())?;
    let found = lane.attempt(&format!("command -v {program}")).await;
    found.map(|_| lane).map_err(|_| "it is not installed".to_owned())
}
