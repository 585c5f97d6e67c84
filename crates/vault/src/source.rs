//! What a source of secrets is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use palisade_api::Secret;
use serde_json::value::RawValue;

use crate::error::FetchError;

/// The longest secret, in bytes.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// One place that secrets come from.
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync {
    /// What it is and where, without a secret: for errors, listings and `palisade vault test`.
    fn description(&self) -> String;

    /// Whether each session gets a secret of its own at this path, to be revoked when the session ends.
    fn per_session(&self, _path: &str) -> bool {
        false
    }

    /// How long an answer may be used without asking again.
    fn keep(&self) -> Duration;

    /// Fetches what is at `path` now.
    async fn fetch(&self, path: &str) -> Result<Document, FetchError>;

    /// Whether what was fetched with this stamp is certainly still what the source holds. Called on each use: it must be
    /// as cheap as a `stat`.
    fn unchanged(&self, _path: &str, _stamp: &Stamp) -> bool {
        true
    }

    /// Lengthens a lease; returns how long it holds from now.
    async fn renew(&self, lease: &Lease) -> Result<Renewed, FetchError> {
        Err(FetchError::malformed(
            &self.description(),
            format!("it gives no leases, yet one `{}` is renewed", lease.shown()),
        ))
    }

    /// Ends a lease at the source.
    async fn revoke(&self, lease: &Lease) -> Result<(), FetchError> {
        Err(FetchError::malformed(
            &self.description(),
            format!("it gives no leases, yet one `{}` is revoked", lease.shown()),
        ))
    }

    /// Work that keeps the source able to serve, such as renewing its own token. Called now and then.
    async fn tend(&self) -> Result<(), FetchError> {
        Ok(())
    }

    /// Gives back what the source holds of others, such as its own token. Nothing is fetched afterwards.
    async fn close(&self) -> Result<(), FetchError> {
        Ok(())
    }
}

/// What a source answered.
#[derive(Debug, Clone)]
pub struct Document {
    /// The value, or values by field.
    pub content: Content,
    /// When it ends, if the source says so.
    pub expires: Option<SystemTime>,
    /// The lease it came with.
    pub lease: Option<Lease>,
    /// What tells it from a later one.
    pub stamp: Stamp,
}

impl Document {
    /// A document that is neither leased nor dated.
    pub fn plain(content: Content) -> Self {
        Self { content, expires: None, lease: None, stamp: Stamp::default() }
    }
}

/// One value, or a record of them.
#[derive(Debug, Clone)]
pub enum Content {
    /// A single value; if a field is asked for, it is parsed as a JSON object.
    Single(Arc<Secret>),
    /// Values by field.
    Record(BTreeMap<String, Arc<Secret>>),
}

impl Content {
    /// The single value.
    pub fn single(value: Secret) -> Self {
        Self::Single(Arc::new(value))
    }

    /// Picks what a reference asks for. The error names fields, never values.
    pub(crate) fn pick(&self, field: Option<&str>) -> Result<Arc<Secret>, String> {
        match (self, field) {
            (Self::Single(value), None) => Ok(value.clone()),
            (Self::Single(value), Some(field)) => {
                let record = parse_record(value.expose().as_bytes()).ok_or_else(|| {
                    format!("names the field `{field}`, but the value is no JSON object; leave out `#{field}`")
                })?;
                record.get(field).cloned().ok_or_else(|| no_field(field, &record))
            }
            (Self::Record(record), Some(field)) => record.get(field).cloned().ok_or_else(|| no_field(field, record)),
            (Self::Record(record), None) => match record.values().next() {
                Some(only) if record.len() == 1 => Ok(only.clone()),
                _ => Err(format!("names no field, and there are several; add one of {} after `#`", names(record))),
            },
        }
    }
}

fn no_field(field: &str, record: &BTreeMap<String, Arc<Secret>>) -> String {
    if record.is_empty() {
        return format!("names the field `{field}`, but the record is empty");
    }
    format!("names the field `{field}`, but the record has {}", names(record))
}

fn names(record: &BTreeMap<String, Arc<Secret>>) -> String {
    let mut shown: Vec<String> = record.keys().take(8).map(|name| format!("`{}`", name.escape_debug())).collect();
    if record.len() > shown.len() {
        shown.push(format!("{} more", record.len() - shown.len()));
    }
    shown.join(", ")
}

/// A JSON object as secrets by field: strings as they are, everything else as its JSON text. `None` if it is no object.
pub(crate) fn parse_record(json: &[u8]) -> Option<BTreeMap<String, Arc<Secret>>> {
    // The values are borrowed, so that no copy is left behind that is not zeroed.
    let parts: BTreeMap<String, &RawValue> = serde_json::from_slice(json).ok()?;
    let mut record = BTreeMap::new();
    for (name, raw) in parts {
        let value = match raw.get() {
            "null" => continue,
            text if text.starts_with('"') => serde_json::from_str::<Secret>(text).ok()?,
            text => Secret::new(text),
        };
        record.insert(name, Arc::new(value));
    }
    Some(record)
}

/// What tells one state of a secret from another; sources that cannot tell leave it empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamp(pub Vec<u64>);

/// A secret on loan.
#[derive(Clone)]
pub struct Lease {
    /// The source's name for it. Who holds it and may ask the source can end the lease, so it is not shown whole.
    pub id: Arc<Secret>,
    /// How long it holds from when it was given.
    pub lasts: Duration,
    /// Whether it can be lengthened.
    pub renewable: bool,
}

impl Lease {
    /// What may be shown of it.
    pub(crate) fn shown(&self) -> &str {
        self.id.expose().rsplit_once('/').map_or("…", |(path, _)| path)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("of", &self.shown())
            .field("lasts", &self.lasts)
            .field("renewable", &self.renewable)
            .finish()
    }
}

/// How a lease goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// From now.
    pub lasts: Duration,
    /// Whether it can be lengthened again.
    pub renewable: bool,
}
