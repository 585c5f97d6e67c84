//! Signing keys: made, shown, used, shown on, forgotten.
//!
//! A key is a file, `SINCE-KID.key`: PKCS#8, readable by its owner only. `SINCE` says from when it signs, in microseconds, so that
//! all that is to be known of a key is in its name and its bytes, and each step of a rotation is one file that appears or goes: a
//! crash between two steps leaves a state that the next turn goes on from. When the next key signs, only the public half is kept, as
//! `SINCE-KID.pub`, until the last token has expired.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use palisade_api::Timestamp;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustix::fs::OFlags;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::identity::{IdentityError, MAX_LIFETIME, SKEW};

/// A key file is smaller.
const MAX_FILE: u64 = 4096;

/// When keys change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    pub(super) rotate_after: Duration,
    pub(super) publish_ahead: Duration,
}

/// The keys of an issuer, in the order in which they sign.
#[derive(Debug)]
pub(super) struct KeyRing {
    dir: PathBuf,
    schedule: Schedule,
    keys: Vec<Key>,
    /// Held until it is closed, by the kernel if need be.
    _lock: File,
}

#[derive(Debug)]
struct Key {
    /// From when it signs.
    since: Timestamp,
    kid: String,
    /// The two coordinates.
    public: [u8; 64],
    /// Gone when it does not sign any more.
    pair: Option<Arc<EcdsaKeyPair>>,
}

impl Key {
    fn file(&self, extension: &str) -> String {
        file(self.since, &self.kid, extension)
    }
}

fn file(since: Timestamp, kid: &str, extension: &str) -> String {
    format!("{:020}-{kid}.{extension}", since.as_micros().max(0))
}

/// The name of a key: its thumbprint (RFC 7638).
fn thumbprint(public: &[u8; 64]) -> String {
    let (x, y) = coordinates(public);
    BASE64.encode(digest(&SHA256, format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#).as_bytes()))
}

fn coordinates(public: &[u8; 64]) -> (String, String) {
    let (x, y) = public.split_at(32);
    (BASE64.encode(x), BASE64.encode(y))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn failed<'a>(path: &'a Path, step: &'static str) -> impl Fn(io::Error) -> IdentityError + 'a {
    move |cause| IdentityError::Io { path: path.to_owned(), step, cause }
}

/// Refuses a file or directory that others own, or may use in a way that `forbidden` names.
fn owned(path: &Path, file: &File, forbidden: u32) -> Result<(), IdentityError> {
    let facts = file.metadata().map_err(failed(path, "look at it"))?;
    let (owner, mode) = (facts.uid(), facts.mode() & 0o777);
    if owner == rustix::process::geteuid().as_raw() && mode & forbidden == 0 {
        return Ok(());
    }
    Err(IdentityError::Exposed {
        path: path.to_owned(),
        owner,
        mode,
        must: 0o777 & !forbidden & !(0o111 * u32::from(!facts.is_dir())),
    })
}

impl KeyRing {
    pub(super) fn open(dir: &Path, schedule: Schedule) -> Result<KeyRing, IdentityError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed(dir, "make the directory"))?;
        let handle = File::open(dir).map_err(failed(dir, "open the directory"))?;
        // Who can put a key here can sign for every workload.
        owned(dir, &handle, 0o022)?;
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(failed(&path, "open it"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(IdentityError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(why)) => return Err(failed(&path, "lock it")(why)),
        }
        let mut ring = KeyRing { dir: dir.to_owned(), schedule, keys: Vec::new(), _lock: lock };
        for entry in std::fs::read_dir(dir).map_err(failed(dir, "read the directory"))? {
            let path = entry.map_err(failed(dir, "read the directory"))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("key" | "pub") => ring.load(&path)?,
                // Of a write that a crash ended.
                Some("new") => std::fs::remove_file(&path).map_err(failed(&path, "remove it"))?,
                _ => {}
            }
        }
        ring.sort();
        Ok(ring)
    }

    fn sort(&mut self) {
        self.keys.sort_by(|a, b| (a.since, &a.kid).cmp(&(b.since, &b.kid)));
    }

    fn load(&mut self, path: &Path) -> Result<(), IdentityError> {
        let damaged = |cause| IdentityError::Damaged { path: path.to_owned(), cause };
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let (since, kid) = name
            .split_at_checked(20)
            .and_then(|(since, kid)| Some((since.parse().ok()?, kid.strip_prefix('-')?)))
            .ok_or_else(|| damaged("its name is not that of a key"))?;
        let since = Timestamp::from_micros(since);
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut options = OpenOptions::new();
        let file =
            options.read(true).custom_flags(flags.bits().cast_signed()).open(path).map_err(failed(path, "open it"))?;
        let secret = path.extension().is_some_and(|extension| extension == "key");
        owned(path, &file, if secret { 0o077 } else { 0o022 })?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_FILE).unwrap_or(0)));
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed(path, "read it"))?;
        let (public, pair) = if secret {
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &bytes, &SystemRandom::new())
                .map_err(|_| damaged("it is no P-256 key in PKCS#8"))?;
            (uncompressed(&pair), Some(Arc::new(pair)))
        } else {
            let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is no public key"))?;
            let public = BASE64.decode(text.trim()).ok().and_then(|point| point.try_into().ok());
            (public, None)
        };
        let public = public.ok_or_else(|| damaged("it is no public key"))?;
        if thumbprint(&public) != kid {
            return Err(damaged("its name is that of another key"));
        }
        // Both halves are there when a crash came between keeping the public one and removing the other.
        match self.keys.iter_mut().find(|key| key.kid == kid) {
            Some(there) if there.since == since => there.pair = there.pair.take().or(pair),
            Some(_) => return Err(damaged("the same key is there with another time")),
            None => self.keys.push(Key { since, kid: kid.to_owned(), public, pair }),
        }
        Ok(())
    }

    /// Brings the keys to a time: makes one that is due, takes the private half of those that do not sign any more, forgets those whose
    /// tokens have all expired. What was done before an error stays done.
    pub(super) fn turn(&mut self, now: Timestamp, random: &SystemRandom) -> Result<(), IdentityError> {
        let (rotate, ahead) = (micros(self.schedule.rotate_after), micros(self.schedule.publish_ahead));
        // Made while the clock was wrong. It would not sign for years, and no other in its place.
        let horizon = now.plus(rotate).plus(ahead);
        while let Some(at) = self.keys.iter().position(|key| key.since > horizon && key.pair.is_some()) {
            let key = &self.keys[at];
            self.remove(&self.dir.join(key.file("pub")))?;
            let (old, new) = (self.dir.join(key.file("key")), self.dir.join(file(now, &key.kid, "key")));
            std::fs::rename(&old, new).map_err(failed(&old, "rename it"))?;
            self.keys[at].since = now;
            self.sort();
        }
        match self.active(now) {
            None => self.make(now, random)?,
            Some(active) => {
                let due = self.keys[active].since.plus(rotate);
                let next = self.keys[active + 1..].iter().any(|key| key.pair.is_some());
                if !next && now.plus(ahead) >= due {
                    self.make(due.max(now.plus(ahead)), random)?;
                }
            }
        }
        let Some(active) = self.active(now) else { return Ok(()) };
        for at in 0..active {
            if self.keys[at].pair.is_some() {
                self.retire(at)?;
            }
        }
        let kept = micros(MAX_LIFETIME + SKEW);
        // It may have signed until the next one with a private half did.
        while self.keys.len() > 1 && self.keys[0].pair.is_none() && self.keys[1].since.plus(kept) < now {
            self.forget(0)?;
        }
        Ok(())
    }

    /// Which key signs: the last whose time has come, or when the clock was set back before all of them, the first.
    fn active(&self, now: Timestamp) -> Option<usize> {
        let signs = |at: &usize| self.keys[*at].pair.is_some();
        let all = 0..self.keys.len();
        all.clone().rev().filter(signs).find(|at| self.keys[*at].since <= now).or_else(|| all.clone().find(signs))
    }

    fn make(&mut self, since: Timestamp, random: &SystemRandom) -> Result<(), IdentityError> {
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, random)
            .map_err(|_| IdentityError::Random)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), random)
            .map_err(|_| IdentityError::Random)?;
        let public = uncompressed(&pair).ok_or(IdentityError::Random)?;
        let key = Key { since, kid: thumbprint(&public), public, pair: Some(Arc::new(pair)) };
        self.put(&key.file("key"), der.as_ref())?;
        self.keys.push(key);
        self.sort();
        Ok(())
    }

    /// Keeps only the public half of a key.
    fn retire(&mut self, at: usize) -> Result<(), IdentityError> {
        let key = &self.keys[at];
        self.put(&key.file("pub"), BASE64.encode(key.public).as_bytes())?;
        let private = self.dir.join(key.file("key"));
        self.remove(&private)?;
        self.keys[at].pair = None;
        Ok(())
    }

    fn forget(&mut self, at: usize) -> Result<(), IdentityError> {
        for extension in ["key", "pub"] {
            self.remove(&self.dir.join(self.keys[at].file(extension)))?;
        }
        self.keys.remove(at);
        Ok(())
    }

    /// Makes one key that signs from now on, and forgets all others.
    pub(super) fn replace(&mut self, now: Timestamp, random: &SystemRandom) -> Result<(), IdentityError> {
        let old: Vec<String> = self.keys.iter().map(|key| key.kid.clone()).collect();
        self.make(now, random)?;
        for kid in old {
            if let Some(at) = self.keys.iter().position(|key| key.kid == kid) {
                self.forget(at)?;
            }
        }
        Ok(())
    }

    /// The key that signs now, after [`KeyRing::turn`], and its name.
    pub(super) fn signing(&self, now: Timestamp) -> Option<(String, Arc<EcdsaKeyPair>)> {
        let key = &self.keys[self.active(now)?];
        Some((key.kid.clone(), Arc::clone(key.pair.as_ref()?)))
    }

    /// All keys as JWKs, in the order in which they sign.
    pub(super) fn public(&self) -> Vec<Value> {
        let jwk = |key: &Key| {
            let (x, y) = coordinates(&key.public);
            json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": key.kid, "x": x, "y": y })
        };
        self.keys.iter().map(jwk).collect()
    }

    /// Writes a file: whole and durable, or not at all.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!("{name}.new"));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        })();
        written.map_err(|why| {
            // It is of no use, and takes room where there may be none.
            let _ = std::fs::remove_file(&new);
            failed(&path, "write it")(why)
        })
    }

    fn remove(&self, path: &Path) -> Result<(), IdentityError> {
        match std::fs::remove_file(path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(failed(path, "remove it")(why)),
            _ => File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed(&self.dir, "keep the change")),
        }
    }
}

/// The two coordinates of a pair's public half.
fn uncompressed(pair: &EcdsaKeyPair) -> Option<[u8; 64]> {
    pair.public_key().as_ref().strip_prefix(&[4])?.try_into().ok()
}
