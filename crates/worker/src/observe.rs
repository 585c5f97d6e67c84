//! What the worker tells its owner while it works, besides its log.

use std::sync::Arc;
use std::time::Duration;

/// Something that happened. New kinds may be added.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Observation {
    /// The worker polls its queue.
    Polling,
    /// Webhook deliveries are taken here.
    Listening {
        /// The bound address.
        address: std::net::SocketAddr,
    },
    /// A work item was claimed and acknowledged.
    Claimed {
        /// The work item's id; on the hosted service the same as the session's.
        work: String,
        /// The session it is for.
        session: String,
    },
    /// The session's sandbox is up.
    SandboxStarted {
        /// The session.
        session: String,
        /// From asking for it to the sandbox being ready, its directories included.
        took: Duration,
        /// What keeps the session in.
        report: Box<palisade_sandbox::Report>,
    },
    /// The session's sandbox could not be started.
    SandboxFailed {
        /// The session.
        session: String,
        /// What the driver said.
        reason: String,
    },
    /// The session's sandbox is about to end.
    SandboxEnded {
        /// The session.
        session: String,
        /// What it used, from its start to now.
        usage: Box<palisade_sandbox::Usage>,
        /// The calls that it ran.
        calls: u64,
    },
    /// A checkpoint of the session's workspace is durable.
    CheckpointTaken {
        /// The session.
        session: String,
        /// Its name.
        checkpoint: String,
        /// On what occasion.
        why: String,
    },
    /// The session's workspace was brought back to a checkpoint.
    WorkspaceRestored {
        /// The session.
        session: String,
        /// The checkpoint.
        checkpoint: String,
    },
    /// A call waits for a person's confirmation.
    CallHeld {
        /// The session.
        session: String,
        /// The `agent.tool_use` event's id.
        call: String,
        /// The tool.
        tool: String,
    },
    /// A call's tool starts.
    CallStarted {
        /// The session.
        session: String,
        /// The `agent.tool_use` event's id.
        call: String,
        /// The tool.
        tool: String,
    },
    /// A call's tool has finished; the result is about to be posted.
    CallFinished {
        /// The session.
        session: String,
        /// The `agent.tool_use` event's id.
        call: String,
        /// The tool.
        tool: String,
        /// How long the tool ran, a checkpoint before it included.
        took: Duration,
        /// Whether the result is an error result.
        is_error: bool,
        /// What it used; none when no sandbox has answered.
        usage: Option<palisade_sandbox::ToolUsage>,
    },
    /// A running call was stopped because nobody waits for it any more.
    CallCancelled {
        /// The session.
        session: String,
        /// The `agent.tool_use` event's id.
        call: String,
    },
    /// The control plane accepted a result.
    ResultPosted {
        /// The session.
        session: String,
        /// The `agent.tool_use` event's id.
        call: String,
    },
    /// The control plane refused a result and its replacement for good; the call stays unanswered.
    ResultRefused {
        /// The session.
        session: String,
        /// The `agent.tool_use` event's id.
        call: String,
        /// What the control plane said.
        reason: String,
    },
    /// The session's agent names a skill that is not installed in the sandbox.
    SkillMissing {
        /// The session.
        session: String,
        /// The skill's id.
        skill: String,
        /// Why not.
        reason: String,
    },
    /// The lease is lost; the item was left alone.
    LeaseLost {
        /// The work item.
        work: String,
        /// The session.
        session: String,
    },
    /// The worker is done with a work item.
    Ended {
        /// The work item.
        work: String,
        /// The session.
        session: String,
        /// Why, in a few words.
        reason: String,
    },
}

/// Receives observations, on the worker's own threads: it must return quickly.
pub type Observer = Arc<dyn Fn(&Observation) + Send + Sync>;
