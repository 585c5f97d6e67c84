//! Which placeholder stands for what, where.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use palisade_api::Secret;

use super::guard::Guard;
use super::placeholder::Placeholder;
use super::scan::{Anchors, Check, Needles};
use super::{BrokerError, Credential, Hosts, Kind, Mint, Misuse, Places, Shape, Wire};
use crate::{Authority, Supply};

/// So many sealed tokens are kept; the oldest is forgotten for another.
const SEALED: usize = 64;
/// A shorter value cannot be told from ordinary text.
const SHORTEST: usize = 6;
/// A longer one would be held back for too long.
const LONGEST: usize = 32 * 1024;

/// A token that became a placeholder.
pub(super) struct Sealed {
    pub(super) text: String,
    pub(super) token: Arc<Secret>,
    /// The placeholder that was given up for it.
    pub(super) forgotten: Option<String>,
}

/// What a placeholder is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It is replaced.
    Token,
    /// It names the keys with which a request is signed again.
    AwsKeyId,
    /// It never leaves the sandbox.
    AwsSecretKey,
}

enum Value {
    Supplied(Arc<dyn Supply>),
    /// A token that was given for a credential: it goes with that.
    Sealed(Arc<Secret>, Arc<dyn Supply>),
}

/// One placeholder of the session.
pub(super) struct Entry {
    pub(super) reference: String,
    pub(super) text: String,
    /// Where the core begins in `text`.
    pub(super) core_at: usize,
    pub(super) role: Role,
    /// Hosts, and the places that are enabled there.
    grants: Vec<(Hosts, Places)>,
    cleartext: bool,
    value: Value,
}

impl Entry {
    /// Whether it may go there at all: the places that are enabled.
    pub(super) fn places(&self, wire: Wire, authority: &Authority) -> Result<Places, Misuse> {
        let mut places: Option<Places> = None;
        for (hosts, more) in &self.grants {
            if hosts.matches(authority) {
                let before = places.unwrap_or(Places { header: false, query: false, path: false, body: false });
                places = Some(Places {
                    header: before.header || more.header,
                    query: before.query || more.query,
                    path: before.path || more.path,
                    body: before.body || more.body,
                });
            }
        }
        let host = || authority.to_string();
        match places {
            None => Err(Misuse::Host { reference: self.reference.clone(), host: host() }),
            Some(_) if wire == Wire::Http && !self.cleartext => {
                Err(Misuse::Cleartext { reference: self.reference.clone(), host: host() })
            }
            Some(places) => Ok(places),
        }
    }

    /// Whether it may stand there.
    pub(super) fn check(&self, wire: Wire, authority: &Authority, place: &'static str) -> Result<(), Misuse> {
        let places = self.places(wire, authority)?;
        let enabled = match place {
            "header" => places.header,
            "query" => places.query,
            "path" => places.path,
            "body" => places.body,
            _ => false,
        };
        if enabled && self.role == Role::Token {
            Ok(())
        } else {
            Err(Misuse::Place { reference: self.reference.clone(), place })
        }
    }

    /// The value as its source has it now.
    pub(super) async fn raw_value(&self) -> Result<Arc<Secret>, Misuse> {
        match &self.value {
            Value::Supplied(supply) => supply.value().await,
            Value::Sealed(value, of) => of.value().await.map(|_| Arc::clone(value)),
        }
        .map_err(|error| Misuse::supply(&self.reference, error))
    }

    /// The value, if it is one that can be put in and found again in answers.
    pub(super) async fn value(&self) -> Result<Arc<Secret>, Misuse> {
        let value = self.raw_value().await?;
        self.usable(&value)?;
        Ok(value)
    }

    pub(super) fn usable(&self, value: &Secret) -> Result<(), Misuse> {
        let unusable = |why| Err(Misuse::Unusable { reference: self.reference.clone(), why });
        match value.expose().len() {
            0..SHORTEST => unusable("it is shorter than 6 bytes, so that it could not be found in answers"),
            LONGEST.. => unusable("it is longer than 32 KiB"),
            _ => Ok(()),
        }
    }
}

/// All placeholders of a session.
pub(super) struct Table {
    guard: Arc<Guard>,
    credentials: Vec<Credential>,
    environment: Vec<(String, String)>,
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    by_core: HashMap<String, Arc<Entry>>,
    sealed: VecDeque<String>,
    /// The search for those that may stand in bodies, made when first needed.
    body: Option<Arc<BodyNeedles>>,
}

impl Table {
    pub(super) fn new(mint: Mint, credentials: Vec<Credential>) -> Result<Table, BrokerError> {
        let guard = mint.guard();
        let mut taken: HashMap<String, String> = HashMap::new();
        let mut environment = Vec::new();
        let mut entries = Entries::default();
        for credential in &credentials {
            let Places { header, query, path, body } = credential.places;
            if !(header || query || path || body) {
                return Err(BrokerError::NoPlace { reference: credential.reference.clone() });
            }
            let wanted: Vec<(&str, Shape, Role)> = match credential.kind {
                Kind::Token(shape) => vec![(&credential.variable, shape, Role::Token)],
                Kind::AwsKeys => vec![
                    ("AWS_ACCESS_KEY_ID", Shape::AwsKeyId, Role::AwsKeyId),
                    ("AWS_SECRET_ACCESS_KEY", Shape::AwsSecretKey, Role::AwsSecretKey),
                ],
                Kind::ClientCertificate => vec![],
            };
            for (variable, shape, role) in wanted {
                if !is_variable(variable) {
                    let (variable, reference) = (variable.to_owned(), credential.reference.clone());
                    return Err(BrokerError::NotAVariable { variable, reference });
                }
                if let Some(first) = taken.insert(variable.to_owned(), credential.reference.clone()) {
                    let (variable, second) = (variable.to_owned(), credential.reference.clone());
                    return Err(BrokerError::Variable { variable, first, second });
                }
                let placeholder = mint.make(shape)?;
                environment.push((variable.to_owned(), placeholder.text.clone()));
                let grants = vec![(credential.hosts.clone(), credential.places)];
                let value = Value::Supplied(Arc::clone(&credential.value));
                entries.insert(placeholder, &credential.reference, role, grants, credential.cleartext, value);
            }
        }
        Ok(Table { guard, credentials, environment, entries: RwLock::new(entries) })
    }

    pub(super) fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }

    pub(super) fn credentials(&self) -> &[Credential] {
        &self.credentials
    }

    pub(super) fn environment(&self) -> Vec<(String, String)> {
        self.environment.clone()
    }

    pub(super) fn entry(&self, core: &str) -> Option<Arc<Entry>> {
        self.read(|entries| entries.by_core.get(core).cloned())
    }

    /// The placeholder of the secret key that belongs to AWS keys.
    pub(super) fn secret_of(&self, reference: &str) -> Option<String> {
        self.read(|entries| {
            let mut all = entries.by_core.values();
            all.find(|entry| entry.role == Role::AwsSecretKey && entry.reference == reference)
                .map(|entry| entry.text.clone())
        })
    }

    fn read<T>(&self, f: impl FnOnce(&Entries) -> T) -> T {
        f(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a token that an upstream gave, and returns what stands for it. The same token has the same placeholder.
    pub(super) fn seal(
        &self,
        credential: &Credential,
        token: Arc<Secret>,
        refresh: bool,
    ) -> Result<Sealed, BrokerError> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let known =
            entries.sealed.iter().filter_map(|core| entries.by_core.get(core)).find_map(|entry| match &entry.value {
                Value::Sealed(value, _) if **value == *token => {
                    Some(Sealed { text: entry.text.clone(), token: Arc::clone(value), forgotten: None })
                }
                _ => None,
            });
        if let Some(known) = known {
            return Ok(known);
        }
        let exchange = credential.exchange.as_ref();
        let places = exchange.map_or(credential.places, |exchange| exchange.places);
        let mut grants = vec![(
            exchange.and_then(|exchange| exchange.hosts.clone()).unwrap_or_else(|| credential.hosts.clone()),
            places,
        )];
        if refresh {
            grants = vec![(credential.hosts.clone(), Places { header: true, query: false, path: false, body: true })];
        }
        let placeholder = self.guard.mint().make(Shape::of(&token))?;
        let text = placeholder.text.clone();
        entries.sealed.push_back(placeholder.core.clone());
        let reference = &credential.reference;
        entries.insert(
            placeholder,
            reference,
            Role::Token,
            grants,
            credential.cleartext,
            Value::Sealed(Arc::clone(&token), Arc::clone(&credential.value)),
        );
        let mut forgotten = None;
        if entries.sealed.len() > SEALED
            && let Some(oldest) = entries.sealed.pop_front()
        {
            forgotten = entries.by_core.remove(&oldest).map(|entry| entry.text.clone());
        }
        entries.body = None;
        Ok(Sealed { text, token, forgotten })
    }

    /// Those that may stand in the body of a request to `authority`.
    pub(super) fn in_body(&self, wire: Wire, authority: &Authority) -> Vec<Arc<Entry>> {
        self.read(|entries| {
            let all = entries.by_core.values();
            all.filter(|entry| entry.check(wire, authority, "body").is_ok()).cloned().collect()
        })
    }

    /// The search for placeholders in bodies.
    pub(super) fn body_needles(&self) -> Arc<BodyNeedles> {
        if let Some(needles) = self.read(|entries| entries.body.clone()) {
            return needles;
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let own: Vec<Arc<Entry>> = entries
            .by_core
            .values()
            .filter(|entry| entry.role == Role::Token && entry.grants.iter().any(|(_, places)| places.body))
            .cloned()
            .collect();
        let needles = Arc::new(BodyNeedles::new(Arc::clone(&self.guard), own));
        entries.body = Some(Arc::clone(&needles));
        needles
    }
}

impl Entries {
    fn insert(
        &mut self,
        placeholder: Placeholder,
        reference: &str,
        role: Role,
        grants: Vec<(Hosts, Places)>,
        cleartext: bool,
        value: Value,
    ) {
        let Placeholder { text, core } = placeholder;
        let core_at = text.find(&core).unwrap_or_default();
        let reference = reference.to_owned();
        self.by_core.insert(core, Arc::new(Entry { reference, text, core_at, role, grants, cleartext, value }));
    }
}

fn is_variable(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The guard's search, and whole placeholders of the session that may be replaced in bodies.
pub(super) struct BodyNeedles {
    guard: Arc<Guard>,
    own: Vec<Arc<Entry>>,
    anchors: Anchors,
}

/// What was found in a body.
pub(super) enum Find {
    /// A whole placeholder of the session.
    Own(Arc<Entry>),
    /// A core, of which only that is known.
    Core(Option<String>),
}

impl BodyNeedles {
    fn new(guard: Arc<Guard>, own: Vec<Arc<Entry>>) -> BodyNeedles {
        let mut list = guard.anchor_list();
        for (at, entry) in own.iter().enumerate() {
            let anchor = entry.text.as_bytes()[..entry.text.len().min(8)].to_vec();
            let owner = guard.owners().saturating_add(u32::try_from(at).unwrap_or(u32::MAX));
            list.push((anchor, owner));
        }
        BodyNeedles { guard, own, anchors: Anchors::new(list) }
    }

    pub(super) fn find(&self, owner: u32, text: &[u8]) -> Find {
        match owner.checked_sub(self.guard.owners()).and_then(|at| self.own.get(at as usize)) {
            Some(entry) => Find::Own(Arc::clone(entry)),
            None => Find::Core(self.guard.core(owner, text)),
        }
    }
}

impl Needles for BodyNeedles {
    fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    fn check(&self, owner: u32, text: &[u8], more: bool) -> Check {
        let Some(entry) = owner.checked_sub(self.guard.owners()).and_then(|at| self.own.get(at as usize)) else {
            return self.guard.check(owner, text, more);
        };
        let wanted = entry.text.as_bytes();
        let shared = wanted.len().min(text.len());
        match (wanted[..shared] == text[..shared], shared == wanted.len()) {
            (true, true) => Check::Found(shared),
            (true, false) if more => Check::More,
            _ => Check::No,
        }
    }
}
