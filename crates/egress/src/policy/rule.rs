//! Rules as they are asked: compiled, and found by host.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Mode;
use super::address::Block;
use super::path::Pattern;
use crate::git::PushRules;
use crate::{Host, Name};

/// A rule.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) name: Arc<str>,
    pub(super) hosts: Vec<HostPattern>,
    pub(super) addresses: Vec<Block>,
    pub(super) ports: Ports,
    pub(super) wire: Wire,
    /// All of them when there is no list.
    pub(super) methods: Option<Vec<Box<str>>>,
    pub(super) paths: Option<Vec<Pattern>>,
    pub(super) encoded_slashes: bool,
    pub(super) max_request_bytes: Option<u64>,
    pub(super) requests_per_minute: Option<u32>,
    pub(super) max_session_bytes: Option<u64>,
    pub(super) private: bool,
    /// Whether it decides by request.
    pub(super) inspects: bool,
    pub(super) websocket: bool,
    pub(super) push: Option<Arc<PushRules>>,
}

/// What is spoken under a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// HTTP in TLS, and plain HTTP too if `plain`.
    Https { plain: bool },
    /// TLS that is never opened.
    Tls,
    /// Anything.
    Tcp,
}

/// The host of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostPattern {
    Exactly(Name),
    /// `*.name`, without the name itself.
    Below(Name),
}

/// Ranges of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports(Vec<(u16, u16)>);

impl Ports {
    pub(super) fn new(mut ranges: Vec<(u16, u16)>) -> Ports {
        ranges.sort_unstable();
        Ports(ranges)
    }

    pub(super) fn contain(&self, port: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// As text: `80, 443, 8000-8999`.
    pub(super) fn text(&self) -> String {
        let one = |(first, last): &(u16, u16)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        self.0.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// One section, compiled. A request is let through by the first of its rules that allows it.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) mode: Mode,
    pub(super) rules: Vec<Rule>,
    pub(super) max_session_bytes: Option<u64>,
    pub(super) requests_per_minute: Option<u32>,
    /// Rules by name, by suffix of names, by address, and by their own name; positions in `rules`, in order.
    exact: HashMap<Name, Vec<u32>>,
    below: HashMap<Name, Vec<u32>>,
    addressed: Vec<u32>,
    named: HashMap<Arc<str>, u32>,
    /// The most dots that a suffix has: what is longer need not be looked for.
    dots: usize,
}

impl Layer {
    pub(super) fn new(
        mode: Mode,
        rules: Vec<Rule>,
        max_session_bytes: Option<u64>,
        requests_per_minute: Option<u32>,
    ) -> Layer {
        let mut exact: HashMap<Name, Vec<u32>> = HashMap::new();
        let mut below: HashMap<Name, Vec<u32>> = HashMap::new();
        let mut addressed = Vec::new();
        let mut named = HashMap::new();
        let mut dots = 0;
        for (position, rule) in (0..).zip(&rules) {
            for host in &rule.hosts {
                let list = match host {
                    HostPattern::Exactly(name) => exact.entry(name.clone()).or_default(),
                    HostPattern::Below(name) => {
                        dots = dots.max(name.matches('.').count());
                        below.entry(name.clone()).or_default()
                    }
                };
                if list.last() != Some(&position) {
                    list.push(position);
                }
            }
            if !rule.addresses.is_empty() {
                addressed.push(position);
            }
            named.insert(rule.name.clone(), position);
        }
        Layer { mode, rules, max_session_bytes, requests_per_minute, exact, below, addressed, named, dots }
    }

    /// The rule of a name.
    pub(super) fn rule(&self, name: &str) -> Option<&Rule> {
        self.named.get(name).and_then(|position| self.rules.get(*position as usize))
    }

    /// The rules that name a host, in their order.
    pub(super) fn for_host(&self, host: &Host) -> Found {
        let mut found = Found::default();
        match host {
            Host::Name(name) => {
                if let Some(list) = self.exact.get(name) {
                    found.add(list);
                }
                if !self.below.is_empty() {
                    let mut rest: &str = name;
                    let mut left = name.bytes().filter(|byte| *byte == b'.').count();
                    while let Some((_, after)) = rest.split_once('.') {
                        rest = after;
                        left -= 1;
                        if left <= self.dots
                            && let Some(list) = self.below.get(rest)
                        {
                            found.add(list);
                        }
                    }
                }
            }
            Host::Address(address) => {
                for position in &self.addressed {
                    if self.rules.get(*position as usize).is_some_and(|rule| rule.names(*address)) {
                        found.add(&[*position]);
                    }
                }
            }
        }
        found.sort();
        found
    }

    /// Whether any rule names a host.
    pub(super) fn knows(&self, host: &Host) -> bool {
        !self.for_host(host).is_empty()
    }

    /// The rules at positions.
    pub(super) fn at<'a>(&'a self, found: &'a Found) -> impl Iterator<Item = &'a Rule> {
        found.positions().iter().filter_map(|position| self.rules.get(*position as usize))
    }
}

impl Rule {
    /// Whether an address is among those that it names.
    pub(super) fn names(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|block| block.names(address))
    }

    /// Whether an address is in one of its blocks, however wide.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|block| block.contains(address))
    }
}

/// Positions of rules. Few hosts have more than a handful, which need no allocation.
#[derive(Debug, Default)]
pub(super) struct Found {
    few: [u32; 8],
    count: usize,
    many: Vec<u32>,
}

impl Found {
    fn add(&mut self, positions: &[u32]) {
        for position in positions {
            if self.many.is_empty()
                && let Some(place) = self.few.get_mut(self.count)
            {
                *place = *position;
                self.count += 1;
            } else {
                if self.many.is_empty() {
                    self.many.extend_from_slice(&self.few);
                }
                self.many.push(*position);
            }
        }
    }

    fn sort(&mut self) {
        if self.many.is_empty() {
            if let Some(few) = self.few.get_mut(..self.count) {
                few.sort_unstable();
            }
        } else {
            self.many.sort_unstable();
            self.many.dedup();
        }
    }

    fn positions(&self) -> &[u32] {
        if self.many.is_empty() { self.few.get(..self.count).unwrap_or_default() } else { &self.many }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}
