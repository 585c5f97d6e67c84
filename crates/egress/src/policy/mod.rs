//! What may go out: decided here, without I/O, clock or chance.
//!
//! A [`Policy`] is what holds for one session: nothing, the rules of one section of a file, or those of two, of which both must
//! allow what is asked ([`Policies::for_session`]). It is asked four times on the way out: by the resolver ([`Policy::knows`]),
//! when a connection has said what it is ([`Policy::connection`]), when a request was read ([`Policy::request`]), and for the
//! address that is about to be dialled ([`Policy::address`]). [`Budgets`] counts what a session has used.

mod address;
mod budget;
mod decide;
mod explain;
mod file;
mod opened;
mod path;
mod preset;
mod rule;
mod verdict;

use std::sync::Arc;

pub use address::{Block, BlockError, Range};
pub use budget::{Budgets, Meter};
pub use file::PolicyError;
pub use path::{NormalPath, PathError, Pattern, PatternError};
pub use verdict::{
    Grant, Mode, OVERRIDING_HEADERS, Protocol, Reason, Refusal, Request, RuleName, Scheme, Treatment, Verdict,
};

pub(crate) use path::star;

use file::{File, Section};
use rule::Layer;

/// What one session may reach. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// All of them must allow. None allows nothing.
    layers: Vec<Arc<Layer>>,
}

impl Policy {
    /// Nothing may go out.
    pub fn none() -> Policy {
        Policy::default()
    }

    /// Reads one section as a whole policy: `mode`, `presets`, `rules`, budgets.
    pub fn parse(yaml: &str) -> Result<Policy, PolicyError> {
        let section: Section = file::read(yaml)?;
        Ok(Policy { layers: vec![Arc::new(section.compile("", "")?)] })
    }

    /// Whether refusals are only recorded. Observes only if all of its sections do, so that no section loosens another.
    pub fn mode(&self) -> Mode {
        if self.layers.is_empty() || self.layers.iter().any(|layer| layer.mode == Mode::Enforce) {
            Mode::Enforce
        } else {
            Mode::Observe
        }
    }

    /// Whether any of its sections observes: to be said loudly.
    pub fn observes(&self) -> bool {
        self.layers.iter().any(|layer| layer.mode == Mode::Observe)
    }

    /// Whether nothing at all can go out.
    pub fn is_none(&self) -> bool {
        self.layers.is_empty() || self.layers.iter().any(|layer| layer.rules.is_empty() && layer.mode == Mode::Enforce)
    }

    /// The names of the rules, by section.
    pub fn rules(&self) -> impl Iterator<Item = RuleName> {
        self.layers.iter().flat_map(|layer| &layer.rules).map(|rule| RuleName::new(rule.name.clone()))
    }

    fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }
}

/// All policies of a file: for environments, for agents, and for environments that it does not name.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    default: Option<Arc<Layer>>,
    environments: std::collections::BTreeMap<String, Arc<Layer>>,
    agents: std::collections::BTreeMap<String, Arc<Layer>>,
}

/// Whose session it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The id of its environment.
    pub environment: &'a str,
    /// The id of its agent.
    pub agent: Option<&'a str>,
    /// The name of its agent. Names can be given by whoever may create agents, so a section under an id goes before.
    pub agent_name: Option<&'a str>,
}

impl Policies {
    /// Reads a file with `default`, `environments` and `agents`.
    pub fn parse(yaml: &str) -> Result<Policies, PolicyError> {
        let file: File = file::read(yaml)?;
        let compile = |section: Section, place: &str, scope: &str| section.compile(place, scope).map(Arc::new);
        let each = |sections: file::Once<Section>, kind: &str, scope: &str| {
            let compiled = sections.0.into_iter().map(|(key, section)| {
                let layer = compile(section, &format!("{kind}.{key}"), scope)?;
                Ok((key, layer))
            });
            compiled.collect::<Result<std::collections::BTreeMap<_, _>, PolicyError>>()
        };
        Ok(Policies {
            default: file.default.map(|section| compile(section, "default", "default/")).transpose()?,
            environments: each(file.environments, "environments", "environment/")?,
            agents: each(file.agents, "agents", "agent/")?,
        })
    }

    /// What holds for a session. The section of its environment, or `default` if that has none; and the section of its agent. If
    /// there are both, both must allow: an agent's section narrows its environment's and never widens it. If there is neither,
    /// nothing may go out.
    pub fn for_session(&self, subject: &Subject<'_>) -> Policy {
        let environment = self.environments.get(subject.environment).or(self.default.as_ref());
        let by = |key: Option<&str>| key.and_then(|key| self.agents.get(key));
        let agent = by(subject.agent).or_else(|| by(subject.agent_name));
        Policy { layers: environment.into_iter().chain(agent).cloned().collect() }
    }

    /// Whether any section observes.
    pub fn observes(&self) -> bool {
        let sections = self.default.iter().chain(self.environments.values()).chain(self.agents.values());
        sections.into_iter().any(|layer| layer.mode == Mode::Observe)
    }
}
