//! The planes inside this process: the engine and its server, and what a process of either kind sets up first.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::model::Models;
use palisade_engine::{Clock, Engine, SystemClock};
use palisade_server::Server;
use palisade_store::{Sqlite, Store, StoreError};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::client::url_file;
use crate::output::{Context as _, Failure, Outcome, note};

/// The longest reply asked of a model, in tokens.
const MAX_TOKENS: u32 = 32_000;

/// The database of a state directory.
pub(crate) fn database(state_dir: &Path) -> PathBuf {
    state_dir.join("palisade.db")
}

/// Why a database cannot be opened, and what to do about it.
pub(crate) fn unopened(database: &Path, why: &StoreError) -> Failure {
    // The store's own errors say what to do.
    Failure::new(format!("the database {} cannot be opened", database.display())).why(why)
}

/// Makes a state directory that only its owner can enter, and gives its absolute path.
pub(crate) fn make_state_dir(path: &Path) -> Outcome<PathBuf> {
    let what = || format!("the state directory {} cannot be used", path.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).context(what())?;
    path.canonicalize().context(what())
}

/// What a server is started with.
pub(crate) struct Setup {
    pub(crate) state_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    pub(crate) allow_plaintext: bool,
    pub(crate) models: Models,
    pub(crate) rules: palisade_core::session::Rules,
    pub(crate) leases: palisade_core::work::Leases,
}

/// How long requests under way may take when the server ends.
const LAST_REQUESTS: Duration = Duration::from_secs(15);

/// A server of this process.
pub(crate) struct Running {
    pub(crate) url: String,
    /// Where a process of this machine reaches it.
    pub(crate) local_url: String,
    /// Where the first key was written, when this was the first start.
    pub(crate) bootstrap: Option<PathBuf>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    sqlite: Arc<Sqlite>,
    engine: Arc<Engine>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), palisade_server::Error>>,
    url_file: PathBuf,
}

impl Running {
    /// Opens the state directory, takes up what was under way in it, and serves.
    pub(crate) async fn start(setup: Setup) -> Outcome<Running> {
        crate::client::install_crypto();
        let state_dir = make_state_dir(&setup.state_dir)?;
        let database = database(&state_dir);
        let sqlite = Arc::new(Sqlite::open(&database).map_err(|why| unopened(&database, &why))?);
        let store: Arc<dyn Store> = sqlite.clone();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let engine = Engine::start(palisade_engine::Options {
            store: store.clone(),
            models: setup.models,
            clock: clock.clone(),
            rules: setup.rules,
            leases: setup.leases,
            max_tokens: MAX_TOKENS,
        })
        .await
        .context("the engine cannot be started")?;
        let mut options = palisade_server::Options::new(setup.listen, state_dir.clone());
        let scheme = if setup.tls.is_some() { "https" } else { "http" };
        options.tls = setup.tls.map(|(cert, key)| palisade_server::Tls { cert, key });
        options.allow_plaintext = setup.allow_plaintext;
        let ready = async {
            let server = Server::bind(options, engine.clone()).await.context("the server cannot be started")?;
            let bootstrap = palisade_server::keys::bootstrap(&*store, &state_dir, clock.now())
                .await
                .context("the first key cannot be made")?;
            Ok((server, bootstrap))
        };
        let (server, bootstrap) = match ready.await {
            Ok(ready) => ready,
            Err(failure) => {
                engine.shutdown().await;
                sqlite.close().await;
                return Err(failure);
            }
        };
        let address = server.local_addr();
        let url = format!("{scheme}://{address}");
        // "Any address" is no address to connect to.
        let near = match address.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let local_url = format!("{scheme}://{}", SocketAddr::new(near, address.port()));
        let url_file = url_file(&state_dir);
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.run(stop.clone()));
        let running = Running { url, local_url, bootstrap, store, clock, sqlite, engine, stop, task, url_file };
        write_whole(&running.url_file, running.local_url.as_bytes()).context("the server's address cannot be noted")?;
        Ok(running)
    }

    /// Waits until the server ends by itself, which it does only when it fails.
    pub(crate) async fn failed(&mut self) -> Failure {
        let failure = Failure::new("the server ended");
        match (&mut self.task).await {
            Ok(Ok(())) => failure.why("it was stopped"),
            Ok(Err(why)) => failure.why(why),
            Err(why) => failure.why(why),
        }
    }

    /// Ends in good order: no new requests, streams ended, actors stopped at their last durable step, the database closed.
    pub(crate) async fn shutdown(mut self) {
        // Only the address of this server is removed, and before it stops answering.
        let _ = std::fs::remove_file(&self.url_file);
        self.stop.cancel();
        // Requests under way are finished first: they still need the engine.
        if !self.task.is_finished() && !matches!(tokio::time::timeout(LAST_REQUESTS, &mut self.task).await, Ok(Ok(_))) {
            note("warning: the server did not end in good order; nothing that was acknowledged is lost");
        }
        self.engine.shutdown().await;
        self.sqlite.close().await;
    }
}

/// Writes a small file so that a reader sees all of it or none.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    std::fs::rename(&new, path)
}

/// Waits for SIGINT or SIGTERM, also one that comes after this was called and before it is waited for.
pub(crate) fn asked_to_end() -> impl Future<Output = Outcome<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    async {
        let [terminate, interrupt] = signals;
        let mut terminate = terminate.context("signals cannot be waited for")?;
        let mut interrupt = interrupt.context("signals cannot be waited for")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    }
}

/// Gives every connection that comes its own task, at most 64 at a time, until the process is asked to end; they end with it.
pub(crate) async fn for_each_connection<F>(listener: &TcpListener, mut task: impl FnMut(TcpStream) -> F) -> Outcome
where
    F: Future<Output = ()> + Send + 'static,
{
    const MOST: usize = 64;
    let mut connections = JoinSet::new();
    let ended = asked_to_end();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            asked = &mut ended => return asked.map(|()| ExitCode::SUCCESS),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MOST => {
                let (stream, _) = accepted.context("the port cannot be listened on")?;
                connections.spawn(task(stream));
            }
        }
    }
}

/// Sets the process up to hold many connections and to give nothing of its memory away.
pub(crate) fn harden() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let files = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
    warn("the limit of open files cannot be raised", raised);
    let core = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    warn("core files cannot be turned off", core);
    // The kernel gives the /proc files of a sealed process's children to root, so that without root no user could be
    // mapped into a sandbox.
    if rustix::process::geteuid().is_root() {
        seal();
    }
}

/// Has no other process of this user trace this one or read its environment. Not for a process that makes sandboxes without
/// root.
pub(crate) fn seal() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    warn("the process cannot be made non-dumpable", set_dumpable_behavior(DumpableBehavior::NotDumpable));
}

fn warn(what: &str, result: rustix::io::Result<()>) {
    if let Err(why) = result {
        note(format!("warning: {what}: {why}"));
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Sends the log to standard error. `PALISADE_LOG` filters it, in the syntax of tracing's `EnvFilter`.
pub(crate) fn log(format: LogFormat, default: &str) {
    use std::io::IsTerminal as _;
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("PALISADE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only when there is a subscriber already, which then stays.
    let _ = match format {
        LogFormat::Text => subscriber.with_ansi(color).try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
}
