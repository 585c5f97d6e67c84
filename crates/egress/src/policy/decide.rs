//! The decisions.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use super::address::Range;
use super::explain::{self, Asked, Failed, Why};
use super::path::{NormalPath, PathError};
use super::rule::{Layer, Rule, Wire};
use super::{Grant, Mode, Policy, Protocol, Reason, Refusal, Request, RuleName, Scheme, Treatment, Verdict};
use crate::git::{self, Service};
use crate::{Authority, Host};

/// The name in records where no rule allowed, and the policy only observes.
static OBSERVED: LazyLock<Arc<str>> = LazyLock::new(|| "(observed)".into());

impl Policy {
    /// Whether a name may be looked up: whether any rule could allow a connection to it.
    pub fn knows(&self, host: &Host) -> bool {
        !self.layers.is_empty() && self.layers.iter().all(|layer| layer.mode == Mode::Observe || layer.knows(host))
    }

    /// Whether bytes to this authority are carried without a look at them, so that nothing need be waited for: in some protocols
    /// the server speaks first.
    pub fn is_opaque(&self, authority: &Authority) -> bool {
        let opaque = |layer: &Arc<Layer>| {
            let found = layer.for_host(&authority.host);
            let mut matching = layer.at(&found).filter(|rule| rule.ports.contain(authority.port)).peekable();
            matching.peek().is_some() && matching.all(|rule| rule.wire == Wire::Tcp)
        };
        !self.layers.is_empty() && self.layers.iter().all(opaque)
    }

    /// Whether a connection may be made, and what is to be done with it.
    pub fn connection(&self, authority: &Authority, protocol: Protocol) -> Verdict<Treatment> {
        let asked = Asked::Connection(authority, protocol);
        let mut treatment = Treatment::PassThrough;
        let mut decision = Decision::default();
        for layer in &self.layers {
            let found = layer.for_host(&authority.host);
            let fits = |rule: &Rule| match (rule.wire, protocol) {
                _ if !rule.ports.contain(authority.port) => Err(Failed::Port),
                (Wire::Tcp, _) => Ok(Treatment::PassThrough),
                (Wire::Tls, Protocol::Tls) => Ok(Treatment::PassThrough),
                (Wire::Https { .. }, Protocol::Tls) if rule.inspects => Ok(Treatment::Intercept),
                (Wire::Https { .. }, Protocol::Tls) => Ok(Treatment::PassThrough),
                // Plain requests are read in any case: it costs nothing, and each must name the host that is allowed.
                (Wire::Https { plain: true }, Protocol::Http) => Ok(Treatment::Intercept),
                (Wire::Https { plain: false } | Wire::Tls, Protocol::Http) => Err(Failed::Tls),
                (Wire::Https { .. } | Wire::Tls, Protocol::Tcp) => Err(Failed::Protocol),
            };
            match first(layer, &found, asked, fits) {
                Ok((rule, Treatment::Intercept)) => {
                    treatment = Treatment::Intercept;
                    decision.allowed(rule);
                }
                Ok((rule, Treatment::PassThrough)) => decision.allowed(rule),
                Err(refusal) => {
                    // Where nothing is refused, plain requests are still read, for the record.
                    if protocol == Protocol::Http {
                        treatment = Treatment::Intercept;
                    }
                    if let Some(refusal) = decision.refused(layer, *refusal) {
                        return Verdict::Refused(refusal);
                    }
                }
            }
        }
        decision.verdict(asked, treatment)
    }

    /// Whether a request may be made, and on which terms.
    pub fn request(&self, request: &Request<'_>) -> Verdict<Grant> {
        let asked = Asked::Request(request);
        let upgrade = request.upgrade.map(|to| to.trim().eq_ignore_ascii_case("websocket"));
        // A tunnel in which nothing more is decided, unless it becomes a WebSocket (RFC 8441).
        if request.method.eq_ignore_ascii_case("CONNECT") && upgrade != Some(true) {
            let message = "CONNECT inside a connection was refused by the egress policy: it opens a tunnel in which nothing can \
                           be decided. Trying again does not help; what would: a request to the host itself";
            return Verdict::Refused(Refusal::new(Reason::MethodNotAllowed, None, message));
        }
        let facts = Facts { request, upgrade, path: OnceCell::new(), service: git::service(request.path) };
        let mut grant = Grant { private: true, ..Grant::default() };
        let mut decision = Decision::default();
        for layer in &self.layers {
            let found = layer.for_host(&request.authority.host);
            match first(layer, &found, asked, |rule| facts.fits(rule)) {
                Ok((rule, ())) => {
                    grant.private &= rule.private;
                    grant.compared |= rule.methods.is_some() || rule.paths.is_some();
                    grant.max_request_bytes = match (grant.max_request_bytes, rule.max_request_bytes) {
                        (Some(one), Some(other)) => Some(one.min(other)),
                        (one, other) => one.or(other),
                    };
                    if facts.service == Some(Service::Push)
                        && let Some(rules) = &rule.push
                    {
                        grant.git = Some(match grant.git {
                            None => rules.clone(),
                            Some(before) => Arc::new(before.and(rules)),
                        });
                    }
                    decision.allowed(rule);
                }
                Err(mut refusal) => {
                    grant.private = false;
                    // A push is refused all the same: rules about pushes are there for what others rely on.
                    if layer.mode == Mode::Observe && facts.is_push() {
                        refusal.reason = Reason::PushRefused;
                        refusal.message.push_str(". This holds for pushes also while the policy only observes");
                        return Verdict::Refused(*refusal);
                    }
                    if let Some(refusal) = decision.refused(layer, *refusal) {
                        return Verdict::Refused(refusal);
                    }
                }
            }
        }
        decision.verdict(asked, grant)
    }

    /// Whether an address may be dialled under the rule that allowed the connection or request. Holds also while the policy
    /// observes: nothing is let into private networks, to this machine or to a metadata service by oversight.
    pub fn address(&self, rule: &RuleName, address: IpAddr) -> Result<(), Refusal> {
        let address = address.to_canonical();
        let range = Range::of(address);
        for layer in &self.layers {
            let rule = rule.parts().find_map(|name| layer.rule(name));
            let allowed = match rule {
                _ if range.is_never() => false,
                Some(rule) if !rule.addresses.is_empty() => {
                    rule.names(address) || (rule.private && range.is_private() && rule.contains(address))
                }
                Some(rule) => range == Range::Public || (rule.private && range.is_private()),
                // Allowed by no rule of this section, which observes.
                None => range == Range::Public && layer.mode == Mode::Observe,
            };
            if !allowed {
                return Err(explain::address(layer, rule, address, range));
            }
        }
        if self.layers.is_empty() {
            return Err(no_policy());
        }
        Ok(())
    }
}

fn no_policy() -> Refusal {
    let message = "refused by the egress policy: nothing may go out of this sandbox. Trying again does not help; what would: an \
                   egress policy for its environment, written by whoever runs it";
    Refusal::new(Reason::NotAllowed, None, message)
}

/// The first rule that allows, or the refusal of the one that came nearest.
fn first<'a, T>(
    layer: &'a Layer,
    found: &'a super::rule::Found,
    asked: Asked<'_>,
    fits: impl Fn(&Rule) -> Result<T, Failed>,
) -> Result<(&'a Rule, T), Box<Refusal>> {
    let mut nearest: Option<(&Rule, Failed)> = None;
    for rule in layer.at(found) {
        match fits(rule) {
            Ok(terms) => return Ok((rule, terms)),
            Err(failed) if nearest.is_none_or(|(_, before)| before < failed) => nearest = Some((rule, failed)),
            Err(_) => {}
        }
    }
    Err(Box::new(match nearest {
        Some((rule, failed)) => explain::nearest(asked, rule, failed),
        None => explain::unknown(asked),
    }))
}

/// What all sections say together.
#[derive(Default)]
struct Decision {
    rule: Option<RuleName>,
    observed: Option<Refusal>,
}

impl Decision {
    fn allowed(&mut self, rule: &Rule) {
        let name = RuleName::new(rule.name.clone());
        self.rule = Some(match self.rule.take() {
            None => name,
            Some(before) => before.and(name),
        });
    }

    /// The refusal, unless the section only observes.
    fn refused(&mut self, layer: &Layer, refusal: Refusal) -> Option<Refusal> {
        if layer.mode == Mode::Enforce {
            return Some(refusal);
        }
        self.observed.get_or_insert(refusal);
        None
    }

    fn verdict<T>(self, asked: Asked<'_>, grant: T) -> Verdict<T> {
        match (self.rule, self.observed) {
            (None, None) => {
                let mut refusal = no_policy();
                refusal.message = explain::unknown(asked).message;
                Verdict::Refused(refusal)
            }
            (rule, observed) => {
                let rule = rule.unwrap_or_else(|| RuleName::new(OBSERVED.clone()));
                Verdict::Allowed { rule, grant, observed }
            }
        }
    }
}

/// What is known of a request.
struct Facts<'a> {
    request: &'a Request<'a>,
    /// Whether it is to become a WebSocket, or something else.
    upgrade: Option<bool>,
    /// Read only if a rule compares paths.
    path: OnceCell<Result<NormalPath, PathError>>,
    service: Option<Service>,
}

impl Facts<'_> {
    fn is_push(&self) -> bool {
        matches!(self.service, Some(Service::Push | Service::PushRefs))
    }

    fn fits(&self, rule: &Rule) -> Result<(), Failed> {
        let request = self.request;
        if !rule.ports.contain(request.authority.port) {
            return Err(Failed::Port);
        }
        match (rule.wire, request.scheme) {
            // Nothing is known of what these allow but the host and the port.
            (Wire::Tcp, _) | (Wire::Tls, Scheme::Https) => return Ok(()),
            (Wire::Https { plain: false } | Wire::Tls, Scheme::Http) => return Err(Failed::Tls),
            (Wire::Https { .. }, _) => {}
        }
        match self.upgrade {
            Some(true) if !rule.websocket => return Err(Failed::Upgrade),
            Some(false) => return Err(Failed::Upgrade),
            _ => {}
        }
        if let Some(methods) = &rule.methods {
            // What a WebSocket begins with; what is GET without a body.
            let method = match (self.upgrade, request.method) {
                (Some(true), "CONNECT") | (_, "HEAD") => "GET",
                (_, method) => method,
            };
            if !methods.iter().any(|one| **one == *method || **one == *request.method) {
                return Err(Failed::Method);
            }
        }
        if let Some(patterns) = &rule.paths {
            let path = self.path.get_or_init(|| NormalPath::parse(request.path));
            let path = path.as_ref().map_err(|why| Failed::Path((*why).into()))?;
            if path.has_encoded_slash() && !rule.encoded_slashes {
                return Err(Failed::Path(Why::EncodedSlash));
            }
            if !patterns.iter().any(|pattern| pattern.allows(path)) {
                return Err(Failed::Path(Why::NotListed));
            }
        }
        if self.is_push() && !rule.push.as_ref().is_some_and(|rules| rules.allows_some()) {
            return Err(Failed::Push);
        }
        match (rule.max_request_bytes, request.body_bytes) {
            (Some(most), Some(bytes)) if bytes > most => Err(Failed::Size(most)),
            _ => Ok(()),
        }
    }
}
