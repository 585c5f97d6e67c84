//! The session's own fields change.

use palisade_api::{Budget, McpServer, MetadataPatch, Patch, Tool};

use crate::session::{Env, Outcome, Phase, Refusal, State, Step};

/// A change of a session, already checked for its form.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// A new title, or none.
    pub title: Patch<String>,
    /// Keys to set and to remove.
    pub metadata: Option<MetadataPatch>,
    /// The agent's tools, whole.
    pub tools: Option<Vec<Tool>>,
    /// The agent's MCP servers, whole.
    pub mcp_servers: Option<Vec<McpServer>>,
    /// A higher budget, or none any more.
    pub budget: Patch<Budget>,
}

/// Changes a session. Takes effect from the next turn; a raised or removed budget resumes paused work.
///
/// # Errors
/// When the session is in no state for the change.
pub fn update(state: &mut State, change: Change, env: &mut Env<'_>) -> Result<Outcome, Refusal> {
    if state.phase == Phase::Terminated {
        return Err(Refusal::new("session is terminated and cannot be changed"));
    }
    let agent_changes = change.tools.is_some() || change.mcp_servers.is_some();
    if agent_changes && matches!(state.phase, Phase::Sampling { .. } | Phase::Rescheduled { .. }) {
        return Err(Refusal::field("agent", "cannot change while the session is running"));
    }
    match (&change.budget, &state.session.budget) {
        (Patch::Value(_), None) => {
            return Err(
                Refusal::field("budget", "can only be set when the session is created").code("budget_create_only")
            );
        }
        (Patch::Value(new), Some(_)) => {
            let cap = new.cents().map_err(|why| Refusal::field("budget.max_list_cost", why))?;
            if cap <= state.cost.div_ceil(crate::session::MICROCENTS) {
                return Err(Refusal::field("budget.max_list_cost", "must exceed the cost consumed so far")
                    .code("budget_not_raised"));
            }
        }
        _ => {}
    }
    let mut merged = state.session.metadata.clone();
    if let Some(patch) = &change.metadata {
        patch.apply(&mut merged);
        merged.validate().map_err(|why| Refusal::field("metadata", why).code("invalid_metadata"))?;
    }

    let mut step = Step::new(state, env);
    let mut changed = ChangedFields::default();
    if !change.title.is_absent() {
        let before = step.state.session.title.clone();
        change.title.apply(&mut step.state.session.title);
        changed.title = before != step.state.session.title;
    }
    if merged != step.state.session.metadata {
        step.state.session.metadata = merged;
        changed.metadata = true;
    }
    if let Some(tools) = change.tools {
        changed.agent |= tools != step.state.session.agent.tools;
        step.state.session.agent.tools = tools;
    }
    if let Some(servers) = change.mcp_servers {
        changed.agent |= servers != step.state.session.agent.mcp_servers;
        step.state.session.agent.mcp_servers = servers;
    }
    if !change.budget.is_absent() {
        let before = step.state.session.budget.clone();
        change.budget.apply(&mut step.state.session.budget);
        changed.budget = before != step.state.session.budget;
    }
    step.updated(&changed);
    Ok(step.finish())
}

/// Which fields a change really changed.
#[derive(Debug, Default)]
pub(crate) struct ChangedFields {
    pub(crate) title: bool,
    pub(crate) metadata: bool,
    pub(crate) agent: bool,
    pub(crate) budget: bool,
}
