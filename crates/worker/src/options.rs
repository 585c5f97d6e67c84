//! What a worker is told at its start.

use std::any::Any;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use palisade_api::{EnvironmentId, Secret};
use palisade_sandbox::{Driver, Facility, Limits, Rootfs};

use crate::egress::Egress;
use crate::observe::Observer;
use crate::pace::Pace;

/// When the worker looks into its queue.
#[derive(Debug, Clone, Default)]
pub enum Mode {
    /// Always: a long poll is open whenever a session could be taken on.
    #[default]
    AlwaysOn,
    /// Until the queue is empty; then it finishes what it has taken on and ends. For schedules and hooks of other systems.
    Drain,
    /// When a `session.status_run_started` webhook arrives, at the start, and after each session.
    Webhook {
        /// Where to listen, plain HTTP; public TLS belongs in front of it.
        listen: SocketAddr,
        /// The endpoint's signing secret, `whsec_…`.
        signing_key: Secret,
    },
}

/// When checkpoints of a session's workspace are taken, and what they are for. By default none are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checkpoints {
    /// Before which calls.
    pub before: Before,
    /// Undo what such a call did to the workspace when it fails, is given up or is cut off.
    pub transactional: bool,
    /// When the worker lets go of an idle session.
    pub on_idle: bool,
    /// When the session's sandbox ends for another reason.
    pub on_stop: bool,
}

/// Which calls have a checkpoint taken before them. Calls that only read never do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Before {
    /// None.
    #[default]
    Off,
    /// Those that a person had to confirm.
    Gated,
    /// All.
    All,
}

/// Everything a worker needs. [`Options::new`] fills in the defaults.
#[derive(Clone)]
pub struct Options {
    /// The control plane, `https://…` (or `http://…` on this machine), without `/v1`.
    pub base_url: String,
    /// Permits plain HTTP to another machine. The environment key then crosses the network in the clear.
    pub insecure_http: bool,
    /// The environment whose queue is served.
    pub environment_id: EnvironmentId,
    /// Its key.
    pub environment_key: Secret,
    /// How the worker names itself to the control plane; a random name when absent.
    pub worker_id: Option<String>,
    /// How many sessions are served at a time, at least one.
    pub concurrency: usize,
    /// How long a session may be idle after a turn before the worker lets go of it; zero: without limit.
    pub max_idle: Duration,
    /// How long running calls may go on after a shutdown was asked for.
    pub grace: Duration,
    /// Where sessions live: `sessions/<session id>/{layers,outputs,journal.jsonl}`; what fresh workspaces start with is in
    /// `bases`, checkpoints are in `checkpoints`.
    pub state_dir: PathBuf,
    /// What makes sandboxes.
    pub driver: Arc<dyn Driver>,
    /// The sandbox's root file system.
    pub rootfs: Rootfs,
    /// What the root file system must not lose while the worker runs, such as the lease of an image.
    pub held: Option<Arc<dyn Any + Send + Sync>>,
    /// GPUs by the names of their devices below `/dev`.
    pub gpus: Vec<String>,
    /// The sandbox's limits.
    pub limits: Limits,
    /// What must be enforced, or no sandbox starts.
    pub require: Vec<Facility>,
    /// Variables for the commands in a sandbox. Credentials have no place here; `ANTHROPIC_*` is refused.
    pub sandbox_env: Vec<(String, String)>,
    /// How long one tool call may run.
    pub tool_timeout: Duration,
    /// A directory whose contents every fresh workspace starts with, as they are when the worker starts.
    pub seed: Option<PathBuf>,
    /// When checkpoints are taken.
    pub checkpoints: Checkpoints,
    /// When to look into the queue.
    pub mode: Mode,
    /// Certificates (PEM) to trust in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// Tools this worker answers for; calls of others are left to other clients.
    pub tools: BTreeSet<String>,
    /// How fast things are tried again.
    pub pace: Pace,
    /// Whether operators of this machine may look into sandboxes through the local admin API.
    pub admin: bool,
    /// Whether that API may serve pages of a sandbox to browsers.
    pub allow_preview: bool,
    /// Where SSH into live sessions is served; nowhere when absent. It needs the local admin API, which lets people in.
    pub ssh: Option<SocketAddr>,
    /// What lets sessions reach the outside; without it nothing does.
    pub egress: Option<Arc<Egress>>,
    /// Hears what happens.
    pub on_event: Option<Observer>,
}

impl Options {
    /// Options with the defaults: four sessions at a time, 60 s idle, 30 s grace, 120 s per call, the six tools.
    pub fn new(
        base_url: impl Into<String>,
        environment_id: EnvironmentId,
        environment_key: Secret,
        state_dir: impl Into<PathBuf>,
        driver: Arc<dyn Driver>,
    ) -> Self {
        Self {
            base_url: base_url.into(),
            insecure_http: false,
            environment_id,
            environment_key,
            worker_id: None,
            concurrency: 4,
            max_idle: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            state_dir: state_dir.into(),
            driver,
            rootfs: Rootfs::Host,
            held: None,
            gpus: Vec::new(),
            limits: Limits::default(),
            require: Vec::new(),
            sandbox_env: Vec::new(),
            tool_timeout: Duration::from_secs(120),
            seed: None,
            checkpoints: Checkpoints::default(),
            mode: Mode::AlwaysOn,
            ca_file: None,
            tools: ["bash", "read", "write", "edit", "glob", "grep"].map(String::from).into(),
            pace: Pace::default(),
            admin: true,
            allow_preview: false,
            ssh: None,
            egress: None,
            on_event: None,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("base_url", &self.base_url)
            .field("environment_id", &self.environment_id)
            .field("concurrency", &self.concurrency)
            .field("state_dir", &self.state_dir)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
