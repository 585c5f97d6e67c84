//! API keys and environment keys. Only their SHA-256 hashes are stored; the key itself is shown once.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use palisade_api::{EnvironmentId, KeyId, Secret, Timestamp};
use palisade_core::batch::{Batch, Key, Kind, Mutation, Precondition, Record};
use palisade_store::{Cursor, ListQuery, Order, Store};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::Error;

/// What every API key starts with.
pub const API_PREFIX: &str = "sk-ant-api03-";
/// What every environment key starts with.
pub const ENVIRONMENT_PREFIX: &str = "sk-ant-oat01-";

fn random(prefix: &str) -> Secret {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    bytes[..16].copy_from_slice(&palisade_engine::random_bytes());
    bytes[16..].copy_from_slice(&palisade_engine::random_bytes());
    Secret::new(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes.as_slice())))
}

/// What a key is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum KeyKind {
    /// Everything but the calls of workers.
    Api,
    /// The queue and the sessions of one environment.
    Environment {
        /// The environment.
        environment_id: EnvironmentId,
    },
}

/// A key as it is listed; the key itself is not known any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Names the key.
    pub id: KeyId,
    /// What it is for.
    pub kind: KeyKind,
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

fn hash(secret: &str) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(secret.as_bytes()) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn record(secret: &Secret, info: &KeyInfo) -> Result<Record, Error> {
    let mut record = Record::new(Kind::Key, hash(secret.expose()), info.created_at, info)?;
    record.labels.insert("key_id".to_owned(), info.id.as_str().to_owned());
    if let KeyKind::Environment { environment_id } = &info.kind {
        record.parent = Some(environment_id.as_str().to_owned());
    }
    Ok(record)
}

fn make(kind: KeyKind, name: &str, now: Timestamp) -> (Secret, KeyInfo) {
    let prefix = match kind {
        KeyKind::Api => API_PREFIX,
        KeyKind::Environment { .. } => ENVIRONMENT_PREFIX,
    };
    let id = KeyId::from_bytes(&palisade_engine::random_bytes());
    let info = KeyInfo { id, kind, name: name.to_owned(), created_at: now, revoked_at: None };
    (random(prefix), info)
}

/// Makes a key. The secret is returned once and cannot be read again.
///
/// # Errors
/// When the environment does not exist, or the store refuses the write.
pub async fn create(store: &dyn Store, kind: KeyKind, name: &str, now: Timestamp) -> Result<(KeyId, Secret), Error> {
    let environment = match &kind {
        KeyKind::Api => None,
        KeyKind::Environment { environment_id } => Some(environment_id.clone()),
    };
    let (secret, info) = make(kind, name, now);
    let mut batch = Batch::new();
    if let Some(environment) = &environment {
        let key = Key::new(Kind::Environment, environment.as_str());
        if store.get(&key).await?.is_none() {
            return Err(Error::NoEnvironment(environment.to_string()));
        }
        batch = batch.when(Precondition::Exists(key));
    }
    store.commit(batch.with(Mutation::Put(record(&secret, &info)?))).await?;
    Ok((info.id, secret))
}

/// All keys, the oldest first, revoked ones too.
///
/// # Errors
/// When the store cannot be read.
pub async fn list(store: &dyn Store) -> Result<Vec<KeyInfo>, Error> {
    let mut query =
        ListQuery { include_archived: true, order: Order::Ascending, limit: 500, ..ListQuery::new(Kind::Key) };
    let mut keys = Vec::new();
    loop {
        let page = store.list(&query).await?;
        for record in &page {
            keys.push(record.decode()?);
        }
        let Some(last) = page.last().filter(|_| page.len() == query.limit) else { return Ok(keys) };
        query.after = Some(Cursor { created_at: last.created_at, id: last.id.clone() });
    }
}

/// Revokes a key: the next request with it is refused. False when there is no such key, or it was revoked before.
///
/// # Errors
/// When the store refuses the write.
pub async fn revoke(store: &dyn Store, id: &KeyId, now: Timestamp) -> Result<bool, Error> {
    let query = ListQuery {
        labels: vec![("key_id".to_owned(), id.as_str().to_owned())],
        limit: 1,
        ..ListQuery::new(Kind::Key)
    };
    let Some(mut record) = store.list(&query).await?.pop() else { return Ok(false) };
    let mut info: KeyInfo = record.decode()?;
    info.revoked_at = Some(now);
    record.archived = true;
    record.body = serde_json::to_string(&info)?;
    let batch = Batch::new().when(Precondition::Revision(record.key(), record.revision));
    store.commit(batch.with(Mutation::Put(record))).await?;
    Ok(true)
}

/// The key that this credential is, unless it is unknown or revoked.
pub(crate) async fn find(store: &dyn Store, secret: &str) -> Result<Option<KeyInfo>, palisade_store::StoreError> {
    let hash = hash(secret);
    let Some(record) = store.get(&Key::new(Kind::Key, hash.as_str())).await? else { return Ok(None) };
    // The look-up is by the hash of a 256-bit secret, so that its time says nothing about the secret; the comparison
    // guards against a store that compares ids loosely.
    if record.archived || !bool::from(record.id.as_bytes().ct_eq(hash.as_bytes())) {
        return Ok(None);
    }
    Ok(record.decode::<KeyInfo>().ok().filter(|info| info.revoked_at.is_none()))
}

/// On the first start, makes an API key and writes it to `bootstrap.key` in the state directory, readable by its owner
/// only. None when there are keys already.
///
/// # Errors
/// When the file cannot be written, or the store refuses the write.
pub async fn bootstrap(store: &dyn Store, state_dir: &Path, now: Timestamp) -> Result<Option<PathBuf>, Error> {
    let any = ListQuery { include_archived: true, ..ListQuery::new(Kind::Key) };
    if store.count(&any).await? > 0 {
        return Ok(None);
    }
    let (secret, info) = make(KeyKind::Api, "bootstrap", now);
    let path = state_dir.join("bootstrap.key");
    // The file comes first: a crash in between leaves a key that does not work, and the next start makes another.
    write_private(&path, secret.expose().as_bytes(), true)?;
    store.commit(Batch::new().with(Mutation::Put(record(&secret, &info)?))).await?;
    Ok(Some(path))
}

/// Writes a file of mode 0600 so that it appears whole or not at all. Without `replace`, a file that is there stays.
pub(crate) fn write_private(path: &Path, bytes: &[u8], replace: bool) -> Result<(), Error> {
    let fail = |step| move |cause| Error::State { step, path: path.to_owned(), cause };
    let nonce = URL_SAFE_NO_PAD.encode(palisade_engine::random_bytes());
    let new = path.with_extension(format!("{nonce}.new"));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        if replace {
            fs::rename(&new, path)?;
        } else {
            match fs::hard_link(&new, path) {
                Err(why) if why.kind() != std::io::ErrorKind::AlreadyExists => return Err(why),
                _ => fs::remove_file(&new)?,
            }
        }
        match path.parent() {
            Some(directory) => fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|cause| {
        let _ = fs::remove_file(&new);
        fail("cannot write")(cause)
    })
}
