//! Which hosts a session's connections may be opened for: what its certificate authority may speak for.

use std::net::IpAddr;

use super::rule::{HostPattern, Rule, Wire};
use super::{Mode, Policy};
use crate::{Authority, Name};

/// Hosts by name, each with all below it, and addresses by block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Names. What is below each is meant, too.
    pub(crate) names: Vec<Name>,
    /// Blocks of addresses: the first, and how many leading bits are fixed.
    pub(crate) blocks: Vec<(IpAddr, u8)>,
    /// Any host: the policy only observes.
    pub(crate) any: bool,
}

impl Policy {
    /// The hosts of every rule under which HTTPS can be read.
    pub(crate) fn opened(&self) -> Opened {
        let mut opened = Opened { any: self.mode() == Mode::Observe, ..Opened::default() };
        let readable = |rule: &&Rule| matches!(rule.wire, Wire::Https { .. });
        for rule in self.layers.iter().flat_map(|layer| &layer.rules).filter(readable) {
            opened.names.extend(rule.hosts.iter().map(|host| match host {
                HostPattern::Exactly(name) | HostPattern::Below(name) => name.clone(),
            }));
            opened.blocks.extend(rule.addresses.iter().map(|block| block.parts()));
        }
        opened
    }

    /// Whether TLS to this authority is never opened: each rule for it carries what is spoken as it is.
    pub(crate) fn stays_closed(&self, authority: &Authority) -> bool {
        self.layers.iter().any(|layer| {
            let found = layer.for_host(&authority.host);
            let mut rules = layer.at(&found).filter(|rule| rule.ports.contain(authority.port)).peekable();
            rules.peek().is_some() && rules.all(|rule| !matches!(rule.wire, Wire::Https { .. }))
        })
    }
}
