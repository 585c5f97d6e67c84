//! `palisade worker`: the execution plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use palisade_api::{EnvironmentId, Secret};
use palisade_image::{Policy, PublicKey, Registries, Store as ImageStore};
use palisade_sandbox::{Facility, Limits, Native, PoolOptions, Report, Rootfs, Status};
use palisade_worker::{
    Before, Checkpoints, Egress, EgressOptions, Mode, Observation, Observer, Options, Summary, Worker,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cli::{StateDir, block_on};
use crate::commands::drivers::DriverArgs;
use crate::commands::egress;
use crate::local::{self, LogFormat};
use crate::output::{Context as _, Failure, Outcome, Output};
use crate::secret::{self, Source};

/// The variable that the vendor's own workers read the key from.
const KEY_VARIABLE: &str = "ANTHROPIC_ENVIRONMENT_KEY";

/// Start the execution plane: claim sessions of one environment and run their tools in sandboxes.
#[derive(Debug, Args)]
#[command(after_help = "Without --environment-key-file and --environment-key-env the key is taken from \
                        ANTHROPIC_ENVIRONMENT_KEY. A key that comes from the environment is taken out of it; no child \
                        process and no sandbox sees it.\n\
                        SIGTERM and SIGINT end the worker in good order: no new claims, running calls finish within \
                        --grace, leases are released.")]
pub(crate) struct WorkerArgs {
    /// The control plane.
    #[arg(long, value_name = "URL", env = "ANTHROPIC_BASE_URL")]
    base_url: String,
    /// The environment whose sessions are served.
    #[arg(long, value_name = "ENVIRONMENT_ID", env = "ANTHROPIC_ENVIRONMENT_ID")]
    environment: String,
    /// A file that holds the environment's key.
    #[arg(long, value_name = "FILE", conflicts_with = "environment_key_env")]
    environment_key_file: Option<PathBuf>,
    /// The environment variable that holds the environment's key.
    #[arg(long, value_name = "NAME")]
    environment_key_env: Option<String>,
    /// Where sessions' workspaces, outputs and journals are kept.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// End when the queue is empty, instead of waiting for more.
    #[arg(long, conflicts_with = "webhook_listen")]
    drain: bool,
    /// Look into the queue when a webhook arrives at this address, instead of polling.
    #[arg(long, value_name = "ADDRESS", requires = "webhook_key_file")]
    webhook_listen: Option<SocketAddr>,
    /// A file that holds the webhook endpoint's signing secret.
    #[arg(long, value_name = "FILE", requires = "webhook_listen")]
    webhook_key_file: Option<PathBuf>,
    /// Permit plain HTTP to another machine: the environment's key then crosses the network in the clear.
    #[arg(long)]
    insecure_http: bool,
    /// Certificates (PEM) to trust besides the system's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    #[command(flatten)]
    serving: ServingArgs,
    /// Say nothing about each session.
    #[arg(long, short)]
    quiet: bool,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Calls that have a checkpoint taken before them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Calls {
    /// None.
    #[default]
    Off,
    /// Those that a person had to confirm.
    Gated,
    /// All that can change something.
    All,
}

/// How sessions are served.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServingArgs {
    /// How many sessions are served at a time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// After how many idle seconds a session is let go until it is continued; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    max_idle: u32,
    /// How many seconds running calls may go on after a shutdown was asked for.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u32,
    /// How many seconds one tool call may run.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..))]
    tool_timeout: u32,
    /// A directory whose contents every fresh workspace starts with.
    #[arg(long, value_name = "DIR")]
    seed: Option<PathBuf>,
    /// Serve SSH into live sessions to those who have a certificate of `palisade ssh`; on a free loopback port unless told.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:0")]
    ssh: Option<SocketAddr>,
    /// Let `palisade preview` show pages of sandboxes to browsers of this machine.
    #[arg(long)]
    allow_preview: bool,
    /// The sandbox's read-only root file system, instead of the host's own programs.
    #[arg(long, value_name = "DIR", help_heading = "Sandbox")]
    rootfs: Option<PathBuf>,
    #[command(flatten)]
    driver: DriverArgs,
    /// An image of `palisade image` as the sandbox's root file system, named by digest; with the docker driver one of the engine's.
    #[arg(long, value_name = "IMAGE", conflicts_with = "rootfs", help_heading = "Sandbox")]
    image: Option<String>,
    /// Where images are; otherwise `images` in the state directory that `palisade image` uses.
    #[arg(long, value_name = "DIR", requires = "image", help_heading = "Sandbox")]
    image_store: Option<PathBuf>,
    /// Take an image that is named by a tag as the tag was pulled last.
    #[arg(long, requires = "image", help_heading = "Sandbox")]
    allow_mutable_image: bool,
    /// A cosign public key (PEM); the image must have been pulled with one of those given.
    #[arg(long, value_name = "FILE", requires = "image", help_heading = "Sandbox")]
    cosign_key: Vec<PathBuf>,
    /// A GPU by the name of its device below /dev, such as nvidia0; may be repeated.
    #[arg(long, value_name = "DEVICE", help_heading = "Sandbox")]
    gpu: Vec<String>,
    /// Sandboxes that are made in advance and wait for sessions; 0: none.
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Sandbox")]
    pool: u16,
    /// What sessions may reach, by environment and agent (docs/reference/egress-policy.md). Without it nothing leaves a sandbox.
    #[arg(long, value_name = "FILE", help_heading = "Egress")]
    egress: Option<PathBuf>,
    /// Credentials that the egress service puts into requests, and where their values come from (docs/vault.md).
    #[arg(long, value_name = "FILE", requires = "egress", help_heading = "Egress")]
    credentials: Option<PathBuf>,
    /// Who signs identities of sessions, and the tokens that they have placeholders of (docs/egress.md).
    #[arg(long, value_name = "FILE", requires = "egress", help_heading = "Egress")]
    identity: Option<PathBuf>,
    /// Certificate authorities (PEM) of upstreams besides the system's.
    #[arg(long, value_name = "FILE", requires = "egress", help_heading = "Egress")]
    upstream_ca: Option<PathBuf>,
    /// Take a checkpoint of the workspace before calls that can change it.
    #[arg(long, value_enum, default_value_t, value_name = "CALLS", help_heading = "Checkpoints")]
    checkpoint_before: Calls,
    /// Undo what such a call did to the workspace when it fails or is cut off.
    #[arg(long, help_heading = "Checkpoints")]
    transactional: bool,
    /// Take a checkpoint when an idle session is let go.
    #[arg(long, help_heading = "Checkpoints")]
    checkpoint_on_idle: bool,
    /// Take a checkpoint when a session's sandbox ends for another reason.
    #[arg(long, help_heading = "Checkpoints")]
    checkpoint_on_stop: bool,
    /// Memory of a session's sandbox, in MiB; 0: no limit.
    #[arg(long, value_name = "MIB", default_value_t = 2048, help_heading = "Sandbox")]
    memory_mib: u32,
    /// Processes and threads of a sandbox; 0: no limit.
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = "Sandbox")]
    pids: u32,
    /// Processor time of a sandbox, in cores, such as 1.5; no limit when left out.
    #[arg(long, value_name = "CORES", help_heading = "Sandbox")]
    cpus: Option<f64>,
    /// The share of a busy processor against other sandboxes, 1 to 10000; 100 when left out.
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Sandbox")]
    cpu_weight: Option<u32>,
    /// Open files of one process of a sandbox.
    #[arg(long, value_name = "N", default_value_t = 4096, help_heading = "Sandbox")]
    open_files: u32,
    /// The largest file that a sandbox may write, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 8192, help_heading = "Sandbox")]
    file_mib: u32,
    /// What a session may keep in its workspace and in its outputs, each, in MiB, at least 16; 0: no limit. Where the file
    /// system has no project quotas they are kept in files of this size, beside their directories.
    #[arg(long, value_name = "MIB", default_value_t = 0, value_parser = disk_mib, help_heading = "Sandbox")]
    disk_mib: u32,
    /// The sandbox's /tmp and its home directory, each, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 512, help_heading = "Sandbox")]
    tmp_mib: u32,
    /// What must be in force around every sandbox, or the worker does not start: memory-limit, process-limit, cpu-limit, disk-limit,
    /// distinct-user, freeze, landlock, seccomp, capabilities, namespaces. May be repeated, or a list with commas.
    #[arg(long, value_name = "FACILITY", value_delimiter = ',', value_parser = facility, help_heading = "Sandbox")]
    require: Vec<Facility>,
}

/// A facility by its name.
fn facility(name: &str) -> Result<Facility, String> {
    let named = |facility: &Facility| facility.to_string().replace(' ', "-");
    Facility::ALL.into_iter().find(|facility| named(facility) == name).ok_or_else(|| {
        let all: Vec<String> = Facility::ALL.iter().map(named).collect();
        format!("there is {}", all.join(", "))
    })
}

impl ServingArgs {
    /// Puts these choices into a worker's options.
    pub(crate) async fn apply(&self, options: &mut Options, state: &StateDir) -> Outcome<()> {
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
        let mib = |mib: u32| u64::from(mib) << 20;
        let some = |number: u64| (number > 0).then_some(number);
        let cpu_millis = match self.cpus {
            None => None,
            // Checked to be a small positive number, so that the conversion loses nothing but its fraction.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
            Some(cpus) if (0.01..=4096.0).contains(&cpus) => Some((cpus * 1000.0) as u64),
            Some(cpus) => {
                return Err(Failure::new("--cpus cannot be used").why(format!("{cpus} is not between 0.01 and 4096")));
            }
        };
        options.concurrency = usize::from(self.concurrency);
        options.max_idle = seconds(self.max_idle);
        options.grace = seconds(self.grace);
        options.tool_timeout = seconds(self.tool_timeout);
        options.seed.clone_from(&self.seed);
        options.allow_preview = self.allow_preview;
        options.ssh = self.ssh;
        options.rootfs = match (&self.rootfs, &self.image) {
            (_, Some(_)) if self.driver.has_engine() => Rootfs::Host,
            (_, Some(image)) => Rootfs::Layers(self.image(image, state, options)?),
            (Some(directory), None) => Rootfs::Directory(directory.clone()),
            (None, None) => Rootfs::Host,
        };
        options.gpus.clone_from(&self.gpu);
        let native = palisade_sandbox::Options {
            pool: PoolOptions::of(usize::from(self.pool)),
            ..palisade_sandbox::Options::default()
        };
        let scratch = options.state_dir.join("containers");
        options.driver = self.driver.open(native, self.image.as_deref(), Some(scratch)).await?;
        if self.transactional && self.checkpoint_before == Calls::Off {
            return Err(Failure::new("--transactional cannot be used")
                .why("a call is undone by going back to the checkpoint before it, and none is taken")
                .fix("name the calls with --checkpoint-before gated or --checkpoint-before all"));
        }
        options.checkpoints = Checkpoints {
            before: match self.checkpoint_before {
                Calls::Off => Before::Off,
                Calls::Gated => Before::Gated,
                Calls::All => Before::All,
            },
            transactional: self.transactional,
            on_idle: self.checkpoint_on_idle,
            on_stop: self.checkpoint_on_stop,
        };
        options.limits = Limits {
            memory_bytes: some(mib(self.memory_mib)),
            pids: some(u64::from(self.pids)),
            cpu_millis,
            cpu_weight: self.cpu_weight,
            open_files: some(u64::from(self.open_files)),
            file_bytes: some(mib(self.file_mib)),
            disk_bytes: some(mib(self.disk_mib)),
            tmp_bytes: mib(self.tmp_mib),
            ..Limits::default()
        };
        options.require.clone_from(&self.require);
        options.egress = self.egress(options).await?;
        Ok(())
    }

    /// The egress service, where there is a policy for it.
    async fn egress(&self, options: &Options) -> Outcome<Option<Arc<Egress>>> {
        let Some(policy) = &self.egress else { return Ok(None) };
        if !options.driver.capabilities().egress {
            return Err(Failure::new("--egress cannot be used")
                .why(format!("the {} driver leads no network to the egress service", options.driver.name()))
                .fix("use native, oci with runc or crun, or, as root, docker"));
        }
        let policies = egress::policies(policy)?;
        let credentials = egress::credentials(self.credentials.as_deref())?;
        let identity = self.identity.as_deref().map(egress::identity).transpose()?;
        let settings = EgressOptions {
            policies,
            credentials,
            identity: identity.map(|config| (config, options.state_dir.join("identity"))),
            upstream_ca: self.upstream_ca.clone(),
            resolver: None,
            state: options.state_dir.clone(),
            trail: options.state_dir.join("audit"),
            now: egress::now,
        };
        let opened = tokio::task::spawn_blocking(move || Egress::open(settings)).await;
        let opened = opened.context("the egress service cannot be started")?;
        opened.context("the egress service cannot be started").map(Some)
    }
}

/// A limit of the disk: a file system needs some room for itself.
fn disk_mib(text: &str) -> Result<u32, String> {
    let least = palisade_sandbox::disk::LEAST >> 20;
    match text.parse::<u32>() {
        Ok(mib) if mib == 0 || u64::from(mib) >= least => Ok(mib),
        Ok(_) => Err(format!("a disk has at least {least} MiB; 0 is no limit")),
        Err(why) => Err(format!("{why}")),
    }
}

impl ServingArgs {
    /// The layers of an image, which stay for as long as the worker runs, and its variables.
    fn image(&self, image: &str, state: &StateDir, options: &mut Options) -> Outcome<Vec<PathBuf>> {
        let what = "the image cannot be used";
        let place = match &self.image_store {
            Some(place) => place.clone(),
            None => state.path()?.join("images"),
        };
        let keys = self.cosign_key.iter().map(|path| PublicKey::read(path)).collect::<Result<_, _>>();
        let policy = Policy {
            registries: Registries::Any,
            allow_mutable: self.allow_mutable_image,
            require_signature: keys.context(what)?,
            ..Policy::default()
        };
        let store = ImageStore::open(place).context(what)?;
        let found = store.resolve(&image.parse().context(what)?, &policy).context(what)?;
        let lease = store.lease(&found).context(what)?;
        // Of the image's own variables only those that a session does not set itself.
        options.sandbox_env.splice(0..0, found.config().env.iter().cloned());
        let layers = lease.layers().to_vec();
        options.held = Some(Arc::new(lease));
        Ok(layers)
    }
}

impl WorkerArgs {
    fn key(&self) -> Outcome<Secret> {
        let what = "the environment's key";
        match Source::named(self.environment_key_file.as_deref(), None) {
            Some(source) => source.read(what),
            None => secret::taken_from_environment(self.environment_key_env.as_deref().unwrap_or(KEY_VARIABLE), what),
        }
    }

    fn mode(&self) -> Outcome<Mode> {
        Ok(match (self.webhook_listen, &self.webhook_key_file) {
            (Some(listen), Some(path)) => {
                let key = Source::File(path.clone()).read("the webhook's signing secret")?;
                Mode::Webhook { listen, signing_key: key }
            }
            _ if self.drain => Mode::Drain,
            _ => Mode::AlwaysOn,
        })
    }
}

/// A worker's options with the native sandbox and the defaults.
pub(crate) fn options(base_url: &str, environment: &str, key: &Secret, state_dir: PathBuf) -> Options {
    crate::client::install_crypto();
    let driver = Arc::new(Native::new(palisade_sandbox::Options::default()));
    Options::new(base_url, EnvironmentId::from(environment), key.clone(), state_dir, driver)
}

/// One line per thing that happens, for people or for programs.
pub(crate) fn observer(out: Output) -> Observer {
    Arc::new(move |observation: &Observation| {
        if let Some((value, line)) = told(observation) {
            out.either(&value, line);
        }
    })
}

fn told(observation: &Observation) -> Option<(Value, String)> {
    let millis = |took: &Duration| (took.as_secs_f64() * 100_000.0).round() / 100.0;
    Some(match observation {
        Observation::Polling => (json!({"type": "polling"}), "polling for work".to_owned()),
        Observation::Listening { address } => {
            (json!({"type": "listening", "address": address}), format!("listening for webhooks on {address}"))
        }
        Observation::Claimed { work, session } => {
            (json!({"type": "claimed", "work": work, "session": session}), format!("{session} claimed ({work})"))
        }
        Observation::SandboxStarted { session, took, .. } => {
            let ms = millis(took);
            let line = format!("{session} sandbox started in {ms} ms");
            (json!({"type": "sandbox_started", "session": session, "took_ms": ms}), line)
        }
        Observation::SandboxFailed { session, reason } => (
            json!({"type": "sandbox_failed", "session": session, "reason": reason}),
            format!("{session} sandbox failed: {reason}"),
        ),
        Observation::CallHeld { session, call, tool } => (
            json!({"type": "call_held", "session": session, "call": call, "tool": tool}),
            format!("{session} {tool} waits for a confirmation"),
        ),
        Observation::SandboxEnded { session, usage, calls } => {
            let cpu = usage.cpu.as_ref().map(millis);
            let value = json!({
                "type": "sandbox_ended", "session": session, "calls": calls, "cpu_ms": cpu,
                "memory_peak_bytes": usage.memory_peak_bytes, "processes": usage.processes,
                "oom_kills": usage.oom_kills, "disk_bytes": usage.disk_bytes,
            });
            let cpu = cpu.map_or_else(String::new, |ms| format!(", {ms} ms of a processor"));
            let mib = |what, bytes: Option<u64>| {
                bytes.map_or_else(String::new, |bytes| format!(", {} MiB {what}", bytes.div_ceil(1 << 20)))
            };
            let (memory, disk) = (mib("of memory", usage.memory_peak_bytes), mib("on the disk", usage.disk_bytes));
            (value, format!("{session} sandbox ended: {calls} calls{cpu}{memory}{disk}"))
        }
        Observation::CallFinished { session, call, tool, took, is_error, usage } => {
            let ms = millis(took);
            let failed = if *is_error { " (error result)" } else { "" };
            let value = json!({
                "type": "call_finished", "session": session, "call": call, "tool": tool, "took_ms": ms,
                "is_error": is_error, "wall_ms": usage.map(|usage| millis(&usage.wall)),
                "cpu_ms": usage.and_then(|usage| usage.cpu).as_ref().map(millis),
            });
            (value, format!("{session} {tool} took {ms} ms{failed}"))
        }
        Observation::CallCancelled { session, call } => (
            json!({"type": "call_cancelled", "session": session, "call": call}),
            format!("{session} call {call} cancelled"),
        ),
        Observation::ResultRefused { session, call, reason } => (
            json!({"type": "result_refused", "session": session, "call": call, "reason": reason}),
            format!("{session} the result of {call} was refused: {reason}"),
        ),
        Observation::SkillMissing { session, skill, reason } => (
            json!({"type": "skill_missing", "session": session, "skill": skill, "reason": reason}),
            format!("{session} skill {skill} is missing: {reason}"),
        ),
        Observation::LeaseLost { work, session } => {
            (json!({"type": "lease_lost", "work": work, "session": session}), format!("{session} lease lost ({work})"))
        }
        Observation::Ended { work, session, reason } => (
            json!({"type": "ended", "work": work, "session": session, "reason": reason}),
            format!("{session} ended: {reason}"),
        ),
        // Starts and posts are told by what follows them.
        _ => return None,
    })
}

/// What a sandbox was to be kept in by and is not, as this machine does not have it.
pub(crate) fn missing(report: &Report) -> Vec<String> {
    let unavailable = |(facility, status): (&Facility, &Status)| match status {
        Status::Unavailable(why) => Some(format!("{facility} ({why})")),
        Status::Enforced(_) | Status::Unused => None,
    };
    report.facilities.iter().filter_map(unavailable).collect()
}

/// Why a worker did not start or gave up. Its own errors say what to do.
pub(crate) fn failed(why: &palisade_worker::Error) -> Failure {
    Failure::new("the worker ended").why(why)
}

pub(crate) fn run(args: &WorkerArgs, out: Output) -> Outcome {
    local::harden();
    let key = args.key()?;
    local::log(args.log_format, "warn,audit=info");
    let state_dir = local::make_state_dir(&args.state_dir)?;
    let mut options = options(&args.base_url, &args.environment, &key, state_dir);
    options.mode = args.mode()?;
    options.insecure_http = args.insecure_http;
    options.ca_file.clone_from(&args.ca_file);
    options.on_event = (!args.quiet).then(|| observer(out));
    let summary: Summary = block_on(async {
        args.serving.apply(&mut options, &StateDir::of_environment()).await?;
        let worker = Worker::new(options).map_err(|why| failed(&why))?;
        let (stop, asked) = (CancellationToken::new(), local::asked_to_end());
        let mut work = tokio::spawn(worker.run(stop.clone()));
        let ended = tokio::select! {
            ended = &mut work => ended,
            asked = asked => {
                stop.cancel();
                asked?;
                work.await
            }
        };
        ended.map_err(|why| Failure::new("the worker ended").why(why))?.map_err(|why| failed(&why))
    })??;
    if !args.quiet {
        out.either(
            &json!({"type": "summary", "summary": summary}),
            format!(
                "{} claimed, {} completed, {} failed, {} lost",
                summary.claimed, summary.completed, summary.failed, summary.lost
            ),
        );
    }
    Ok(ExitCode::SUCCESS)
}
