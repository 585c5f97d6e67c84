//! The session's sandbox: started when first needed or before, replaced when it has died.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_sandbox::{Driver, Sandbox, Spec, ToolCall, ToolOutput};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::observe::Observation;
use crate::pace::{Backoff, Pace, unit};
use crate::workspace::Home;

/// How often a sandbox is tried before a call is answered without one.
const ATTEMPTS: u32 = 3;

/// What a session's sandboxes are made from.
pub(crate) struct Plan {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) spec: Spec,
    pub(crate) home: Home,
    pub(crate) seed: Option<PathBuf>,
}

/// One session's sandbox.
pub(crate) struct Hands {
    plan: Plan,
    pace: Pace,
    session: Arc<str>,
    observe: Arc<dyn Fn(Observation) + Send + Sync>,
    sandbox: Mutex<Option<Arc<Sandbox>>>,
}

impl Hands {
    pub(crate) fn new(
        plan: Plan,
        pace: Pace,
        session: Arc<str>,
        observe: Arc<dyn Fn(Observation) + Send + Sync>,
    ) -> Self {
        Self { plan, pace, session, observe, sandbox: Mutex::new(None) }
    }

    /// The sandbox, started if there is none. Whoever asks meanwhile waits for the same one.
    pub(crate) async fn ready(&self) -> Result<Arc<Sandbox>, String> {
        let mut sandbox = self.sandbox.lock().await;
        if let Some(sandbox) = &*sandbox {
            return Ok(sandbox.clone());
        }
        let mut backoff = Backoff::new(self.pace.retry);
        let mut attempt = 1;
        loop {
            match self.create().await {
                Ok(created) => return Ok(sandbox.insert(Arc::new(created)).clone()),
                Err(reason) if attempt >= ATTEMPTS => {
                    tracing::error!(session = &*self.session, reason, "the sandbox could not be started");
                    (self.observe)(Observation::SandboxFailed { session: self.session.to_string(), reason });
                    // The reason may name paths of this host; it is for the operator, not for the agent.
                    return Err("The call was not run: the worker could not start a sandbox for this session \
                         (see the worker's log)."
                        .into());
                }
                Err(reason) => {
                    tracing::warn!(session = &*self.session, reason, "the sandbox could not be started; trying again");
                    tokio::time::sleep(backoff.delay(unit())).await;
                    attempt += 1;
                }
            }
        }
    }

    /// The sandbox, if there is one. It is not started, but one that is on its way is waited for.
    pub(crate) async fn live(&self) -> Option<Arc<Sandbox>> {
        self.sandbox.lock().await.clone()
    }

    /// What makes the sandboxes.
    pub(crate) fn driver(&self) -> &'static str {
        self.plan.driver.name()
    }

    async fn create(&self) -> Result<Sandbox, String> {
        let began = Instant::now();
        let (home, seed) = (self.plan.home.clone(), self.plan.seed.clone());
        let made = tokio::task::spawn_blocking(move || home.make(seed.as_deref())).await;
        made.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let created = self.plan.driver.create(self.plan.spec.clone()).await;
        let created = created.map_err(|error| error.to_string())?;
        let took = began.elapsed();
        tracing::info!(
            session = &*self.session,
            driver = self.plan.driver.name(),
            took_us = took.as_micros() as u64,
            "sandbox started"
        );
        let report = Box::new(created.report().clone());
        (self.observe)(Observation::SandboxStarted { session: self.session.to_string(), took, report });
        Ok(created)
    }

    /// Runs one tool. `Err` is the text of an error result.
    pub(crate) async fn run(&self, name: &str, input: Value, timeout: Duration) -> Result<ToolOutput, String> {
        let sandbox = self.ready().await?;
        let call = ToolCall { name: name.to_owned(), input, timeout };
        match sandbox.tool(call).await {
            Ok(output) => Ok(output),
            Err(error) => {
                tracing::warn!(session = &*self.session, tool = name, %error, "tool failed; the next call gets a new sandbox");
                self.discard(&sandbox).await;
                Err(format!("{name}: the sandbox failed while it ran the call ({error}); the next call gets a new one"))
            }
        }
    }

    /// Lets go of a sandbox that no longer works, unless somebody else did already.
    async fn discard(&self, dead: &Arc<Sandbox>) {
        let mut sandbox = self.sandbox.lock().await;
        if sandbox.as_ref().is_some_and(|current| Arc::ptr_eq(current, dead)) {
            *sandbox = None;
        }
    }

    /// Ends the sandbox and everything in it. The directories stay.
    pub(crate) async fn close(&self) {
        let Some(sandbox) = self.sandbox.lock().await.take() else { return };
        // A call that was cancelled may hold on to it for a moment; the last one to let go ends it.
        if let Some(sandbox) = Arc::into_inner(sandbox)
            && let Err(error) = sandbox.destroy().await
        {
            tracing::warn!(session = &*self.session, %error, "the sandbox did not end cleanly");
        }
    }
}
