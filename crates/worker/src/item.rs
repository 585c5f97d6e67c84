//! One work item, from the acknowledged claim to the stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use palisade_checkpoint::Store;
use palisade_sandbox::Spec;
use palisade_sandbox::disk::Limit;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::{CallError, Client, Credential};
use crate::egress::Whose;
use crate::hands::{Hands, Plan};
use crate::journal::Journal;
use crate::lease::{self, Lease};
use crate::ledger::{Ledger, SessionEnd};
use crate::observe::Observation;
use crate::options::Options;
use crate::pace::{Backoff, unit};
use crate::perimeter::Registry;
use crate::session::{self, Context, End};
use crate::skills::{self, SkillError, UnpackError};
use crate::wire::{Session, SkillRef, WorkItem, sessions_token};
use crate::worker::Slot;
use crate::workspace::{Base, Home};

/// How often a session is looked up before its item fails.
const LOOK_UPS: u32 = 6;

/// What all items of a worker share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) client: Arc<Client>,
    pub(crate) tools: Arc<std::collections::BTreeSet<String>>,
    pub(crate) observe: Arc<dyn Fn(Observation) + Send + Sync>,
    /// The sessions that operators may look into.
    pub(crate) registry: Registry,
    /// What fresh workspaces start with.
    pub(crate) base: Base,
    pub(crate) store: Arc<Store>,
}

/// How an item ended, for the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    Failed,
    Lost,
}

/// Why the item ends: the outcome and the words for it.
struct Verdict {
    outcome: Outcome,
    reason: String,
    /// The session waits for its user.
    idle: bool,
}

impl Verdict {
    fn completed(reason: impl Into<String>) -> Self {
        Self { outcome: Outcome::Completed, reason: reason.into(), idle: false }
    }

    fn failed(reason: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, reason: reason.into(), idle: false }
    }

    fn lost() -> Self {
        Self { outcome: Outcome::Lost, reason: "lease lost".into(), idle: false }
    }
}

/// Serves an acknowledged item of type `session` to its end.
pub(crate) async fn serve(shared: Arc<Shared>, work: WorkItem, mut slot: Slot, shutdown: CancellationToken) -> Outcome {
    let token = work.secret.as_ref().and_then(|secret| match sessions_token(secret) {
        Ok(token) => Some(token),
        Err(error) => {
            tracing::warn!(work = work.id, %error, "no sessions token; using the environment key");
            None
        }
    });
    let credential = Arc::new(Credential::new(token));
    let session: Arc<str> = work.data.id.as_str().into();
    // The first beat goes out before anything is set up: until then the item looks abandoned.
    let (lease_tx, mut lease) = watch::channel(Lease::Claiming);
    let pace = shared.options.pace.clone();
    let mut heartbeat =
        tokio::spawn(lease::keep(shared.client.clone(), credential.clone(), work.id.clone(), pace, lease_tx));

    let limits = &shared.options.limits;
    let home = Home::of(&shared.options.state_dir, &session)
        .within(Limit { bytes: limits.disk_bytes, inodes: limits.disk_inodes });
    let hands = Arc::new(Hands::new(
        plan(&shared, home.clone()),
        shared.options.pace.clone(),
        session.clone(),
        shared.observe.clone(),
    ));
    // Keeps the session's lock until everything is torn down.
    let mut journal = None;
    let served =
        serve_session(&shared, &session, &credential, &home, &hands, &mut journal, lease.clone(), &mut slot, shutdown);
    let verdict = tokio::select! {
        verdict = served => verdict,
        // A lease that ends during the set-up; later the session's loop sees it first.
        ended = ended(&mut lease) => match ended {
            Lease::Lost => Verdict::lost(),
            _ => Verdict::completed("ended by the control plane"),
        },
    };
    hands.checkpoint_at_end(verdict.idle).await;
    // The sandbox ends before the item does, so that whoever continues the session never meets its processes.
    let closed = tokio::time::timeout(Duration::from_secs(10), hands.close()).await.is_ok();
    if !closed {
        tracing::warn!(session = &*session, "the sandbox takes long to end; going on without it");
    }
    // Not below a sandbox that may still run: the next item takes them out.
    if journal.is_some() && closed {
        let installed = home.installed_skills();
        if !installed.is_empty()
            && let Ok(Some(layers)) = home.layers()
        {
            skills::remove(&home.layer(layers.layer).join("upper"), &installed);
            let _ = home.note_skills(&[]);
        }
    }
    // Whoever continues the session opens them anew.
    let _ = tokio::task::spawn_blocking(move || home.release()).await;
    drop(journal);
    heartbeat.abort();
    let _ = (&mut heartbeat).await;
    match verdict.outcome {
        Outcome::Lost => {
            (shared.observe)(Observation::LeaseLost { work: work.id.clone(), session: session.to_string() })
        }
        _ => {
            if let Err(error) = shared.client.stop(Some(&credential), &work.id).await {
                tracing::warn!(work = work.id, %error, "the item could not be stopped; its lease will lapse");
            }
        }
    }
    match verdict.outcome {
        Outcome::Failed => {
            tracing::error!(work = work.id, session = &*session, reason = verdict.reason, "work item failed")
        }
        _ => tracing::info!(work = work.id, session = &*session, reason = verdict.reason, "work item ended"),
    }
    let (work, session, reason) = (work.id, session.to_string(), verdict.reason);
    (shared.observe)(Observation::Ended { work, session, reason });
    verdict.outcome
}

async fn ended(lease: &mut watch::Receiver<Lease>) -> Lease {
    match lease.wait_for(|lease| matches!(lease, Lease::Lost | Lease::Over)).await {
        Ok(lease) => *lease,
        // The heartbeat task is gone without a word: nobody keeps the lease.
        Err(_) => Lease::Lost,
    }
}

/// A sandbox as this worker has them.
pub(crate) fn spec(options: &Options, workspace: &Path, outputs: &Path) -> Spec {
    Spec {
        rootfs: options.rootfs.clone(),
        gpus: options.gpus.clone(),
        limits: options.limits.clone(),
        require: options.require.clone(),
        env: options.sandbox_env.clone(),
        ..Spec::new(workspace, outputs)
    }
}

fn plan(shared: &Shared, home: Home) -> Plan {
    let options = &shared.options;
    // The workspace is put together when the sandbox is started.
    let spec = spec(options, &shared.base.path, &home.outputs);
    Plan {
        driver: options.driver.clone(),
        spec,
        home,
        base: shared.base.clone(),
        store: shared.store.clone(),
        checkpoints: options.checkpoints,
    }
}

#[expect(clippy::too_many_arguments, reason = "they are the parts of one item, used once")]
async fn serve_session(
    shared: &Shared,
    session: &Arc<str>,
    credential: &Arc<Credential>,
    home: &Home,
    hands: &Arc<Hands>,
    held: &mut Option<Journal>,
    lease: watch::Receiver<Lease>,
    slot: &mut Slot,
    shutdown: CancellationToken,
) -> Verdict {
    if let Err(error) = home.make_root() {
        return Verdict::failed(error.to_string());
    }
    // An earlier item of the session must have let go of the workspace before anything of this one happens in it.
    let opened = tokio::select! {
        opened = Journal::open(&home.journal) => opened,
        () = shutdown.cancelled() => return Verdict::completed("shut down before it began"),
    };
    let (journal, traces) = match opened {
        Ok(opened) => session::split(opened),
        Err(error) => return Verdict::failed(error.to_string()),
    };
    *held = Some(journal.clone());
    // The sandbox starts while the session is looked up and its history is read.
    let found = tokio::select! {
        found = look_up(shared, credential, session) => found,
        () = shutdown.cancelled() => return Verdict::completed("shut down before it began"),
    };
    let found = match found {
        Ok(found) => found,
        Err(error) if error.status() == Some(404) => return Verdict::failed("the session does not exist (any more)"),
        Err(error) => return Verdict::failed(format!("the session could not be looked up: {error}")),
    };
    if found.status == "terminated" {
        return Verdict::completed("the session is terminated");
    }
    if found.archived_at.is_some() {
        return Verdict::completed("the session is archived");
    }
    if found.resources.iter().flatten().any(|resource| resource.kind == "memory_store") {
        return Verdict::failed(
            "the session has memory stores, which this version does not mount; \
             remove them from the session or serve it with a worker that does",
        );
    }
    if let Some(origin) = found.metadata.get(ORIGIN) {
        match origin.parse() {
            Ok(origin) => hands.start_from(origin),
            Err(_) => return Verdict::failed(format!("the session's metadata {ORIGIN:?} names no checkpoint")),
        }
    }
    let agent = found.agent.unwrap_or_default();
    if let Some(egress) = &shared.options.egress {
        let whose = Whose {
            session: session.to_string(),
            environment: shared.options.environment_id.to_string(),
            agent: agent.id,
            agent_name: agent.name,
            agent_version: agent.version.map(|version| match version {
                serde_json::Value::String(text) => text,
                other => other.to_string(),
            }),
            vaults: found.vault_ids.unwrap_or_default(),
        };
        match egress.way(&whose).await {
            Ok(way) => hands.lead(way),
            Err(reason) => return Verdict::failed(format!("the session's way out cannot be made: {reason}")),
        }
    }
    let skills = agent.skills.unwrap_or_default();
    if let Err(reason) = prepare_skills(shared, credential, session, home, hands, &skills).await {
        return Verdict::failed(reason);
    }
    // Whatever a call that was cut off did is known before the first one of this item is answered.
    hands.recover().await;
    // From here on, and until the item ends, operators may look in and start things: not before, as the workspace is another
    // item's until its lock is had, and what is put into it below a running sandbox could be led astray.
    let _entered = shared.registry.enter(session.clone(), hands.clone());
    // The sandbox starts while the history is read.
    let _early = start_early(hands);
    let options = &shared.options;
    let context = Context {
        client: shared.client.clone(),
        credential: credential.clone(),
        session: session.clone(),
        hands: hands.clone(),
        journal,
        pace: options.pace.clone(),
        tool_timeout: options.tool_timeout,
        max_idle: options.max_idle,
        grace: options.grace,
        observe: shared.observe.clone(),
    };
    match Box::pin(session::serve(context, Ledger::new(shared.tools.clone()), traces, lease, slot, shutdown)).await {
        End::Idle => Verdict { idle: true, ..Verdict::completed("the session is idle") },
        End::Session(SessionEnd::Terminated) => Verdict::completed("the session is terminated"),
        End::Session(SessionEnd::Deleted) => Verdict::completed("the session is deleted"),
        End::Lease(Lease::Lost) => Verdict::lost(),
        End::Lease(_) => Verdict::completed("ended by the control plane"),
        End::Asked => Verdict::completed("asked to end"),
        End::Refused(error) => Verdict::failed(format!("the session's events are refused: {error}")),
    }
}

/// The key in a session's metadata that names the checkpoint which a fresh workspace starts from.
const ORIGIN: &str = "palisade.checkpoint";

/// Starts the sandbox while other things are waited for.
fn start_early(hands: &Arc<Hands>) -> AbortOnDrop<()> {
    let hands = hands.clone();
    AbortOnDrop(tokio::spawn(async move {
        if hands.is_paused() {
            tracing::warn!(session = hands.session(), "the session is paused: `palisade resume` lets it go on");
            return;
        }
        // Whoever needs it tries again and says what is wrong.
        let _ = hands.ready().await;
    }))
}

/// Puts the agent's skills into the workspace before anything runs in it, after taking out what an item that was cut off
/// left there. A skill that cannot be installed is told and is not fatal; a workspace that cannot be written is.
async fn prepare_skills(
    shared: &Shared,
    credential: &Credential,
    session: &str,
    home: &Home,
    hands: &Hands,
    skills: &[SkillRef],
) -> Result<(), String> {
    let mut ours = home.installed_skills();
    if ours.is_empty() && skills.is_empty() {
        return Ok(());
    }
    let place = hands.prepare().await?;
    skills::remove(&place.upper, &ours);
    for skill in skills {
        let installed = async {
            let fetched = skills::fetch(&shared.client, credential, skill).await.map_err(|error| error.to_string())?;
            let (name, before) = (fetched.name.clone(), ours.clone());
            if !ours.contains(&name) {
                ours.push(name.clone());
                home.note_skills(&ours).map_err(|error| error.to_string())?;
            }
            let unpacked = skills::install(fetched, place.clone(), before).await;
            if let Err(SkillError::Unpack(UnpackError::Occupied(_))) = &unpacked {
                // What is there is the session's own; it must not be taken for ours at the end.
                ours.retain(|known| *known != name);
                home.note_skills(&ours).map_err(|error| error.to_string())?;
            }
            unpacked.map(|()| name).map_err(|error| error.to_string())
        };
        match installed.await {
            Ok(name) => tracing::info!(session, skill = skill.skill_id, name, "skill installed"),
            Err(reason) => {
                tracing::warn!(session, skill = skill.skill_id, reason, "failed to install a skill");
                let (session, skill) = (session.to_owned(), skill.skill_id.clone());
                (shared.observe)(Observation::SkillMissing { session, skill, reason });
            }
        }
    }
    Ok(())
}

/// Looks the session up; a failure that can pass is tried again for a while.
async fn look_up(shared: &Shared, credential: &Credential, session: &str) -> Result<Session, CallError> {
    let mut backoff = Backoff::new(shared.options.pace.retry);
    let mut attempt = 1;
    loop {
        match shared.client.session(credential, session).await {
            Err(error) if error.is_transient() && attempt < LOOK_UPS => {
                tracing::warn!(session, %error, "the session could not be looked up; trying again");
                tokio::time::sleep(backoff.delay_after(unit(), error.retry_after())).await;
                attempt += 1;
            }
            other => return other,
        }
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where the sessions of a state directory live.
pub(crate) fn sessions_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("sessions")
}
