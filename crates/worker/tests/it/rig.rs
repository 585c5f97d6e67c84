//! A fake control plane, a state directory and a worker between them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use palisade_sandbox::{Driver, Native};
use palisade_testkit::control_plane::{ENVIRONMENT, FakeControlPlane, FakeSession, KEY};
use palisade_worker::{Error, Observation, Options, Pace, Secret, Summary, Worker};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) struct Rig {
    pub(crate) fake: FakeControlPlane,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) observed: Arc<Mutex<Vec<Observation>>>,
}

/// A worker at work. Dropping it is a crash: nothing is posted, stopped or released.
pub(crate) struct Working {
    pub(crate) shutdown: CancellationToken,
    handle: Option<JoinHandle<Result<Summary, Error>>>,
}

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.abort();
        }
    }
}

impl Working {
    /// Asks for the end and waits for it.
    pub(crate) async fn end(self) -> Summary {
        self.shutdown.cancel();
        self.outcome().await.unwrap()
    }

    /// Waits for the end.
    pub(crate) async fn outcome(mut self) -> Result<Summary, Error> {
        let handle = self.handle.take().unwrap();
        tokio::time::timeout(Duration::from_secs(20), handle).await.expect("the worker ends").unwrap()
    }

    /// Ends the worker as a crash does.
    pub(crate) async fn crash(mut self) {
        let handle = self.handle.take().unwrap();
        handle.abort();
        let _ = handle.await;
    }
}

pub(crate) fn native() -> Arc<dyn Driver> {
    Arc::new(Native::new(palisade_sandbox::Options::default()))
}

impl Rig {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { fake: FakeControlPlane::start().await, dir, observed: Arc::default() }
    }

    /// Options with short pauses.
    pub(crate) fn options(&self) -> Options {
        let ms = Duration::from_millis;
        let key = Secret::new(KEY);
        let mut options =
            Options::new(self.fake.url(), ENVIRONMENT.into(), key, self.dir.path().join("state"), native());
        options.pace = Pace {
            empty_poll: (ms(5), ms(10)),
            failed_poll: (ms(5), ms(20)),
            reconnect: (ms(5), ms(20)),
            retry: (ms(5), ms(20)),
            send_for: Duration::from_secs(60),
            heartbeat: (ms(20), ms(300)),
            ..Pace::default()
        };
        let observed = self.observed.clone();
        options.on_event = Some(Arc::new(move |observation| observed.lock().unwrap().push(observation.clone())));
        options
    }

    pub(crate) fn start_with(&self, options: Options) -> Working {
        let shutdown = CancellationToken::new();
        let worker = Worker::new(options).unwrap();
        let handle = Some(tokio::spawn(worker.run(shutdown.clone())));
        Working { shutdown, handle }
    }

    pub(crate) fn start(&self) -> Working {
        self.start_with(self.options())
    }

    /// Waits for the accepted result of a call.
    pub(crate) async fn result(&self, session: &FakeSession, call: &str) -> Value {
        self.fake.wait("a result", |_| session.result_of(call)).await
    }

    /// A file that the session wrote into its workspace, from the host: what lies on the base is the newest layer.
    pub(crate) fn file(&self, session: &FakeSession, name: &str) -> PathBuf {
        let layers = self.dir.path().join("state/sessions").join(&session.id).join("layers");
        let numbers = std::fs::read_dir(&layers).into_iter().flatten().flatten();
        let newest = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok()).max().unwrap_or(1);
        layers.join(newest.to_string()).join("upper").join(name)
    }

    /// Lets a command of the session go on that waits for `/mnt/session/outputs/go`.
    pub(crate) fn go(&self, session: &FakeSession) {
        let outputs = self.dir.path().join("state/sessions").join(&session.id).join("outputs");
        std::fs::write(outputs.join("go"), "").unwrap();
    }

    /// Waits until a file of the session's workspace has this content.
    pub(crate) async fn content(&self, session: &FakeSession, name: &str, content: &str) {
        let read = || std::fs::read_to_string(self.file(session, name)).ok().filter(|found| found == content);
        self.fake.wait(&format!("{name} to hold {content:?}"), |_| read()).await;
    }

    pub(crate) async fn observes(&self, what: &str, matches: impl Fn(&Observation) -> bool) {
        self.fake.wait(what, |_| self.observed.lock().unwrap().iter().any(&matches).then_some(())).await;
    }
}
