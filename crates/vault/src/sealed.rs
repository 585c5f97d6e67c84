//! A file of secrets, encrypted with [age](https://age-encryption.org) to one X25519 key.
//!
//! The content is JSON: `{"version": 1, "secrets": {NAME: {"value": …, "created": …, "changed": …}}}`, so `age -d -i KEY` shows
//! it. Every change writes a new file beside the old one, makes it durable, and puts it in the old one's place: after a crash
//! there is the old content or the new one. Writers wait for each other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use age::secrecy::ExposeSecret as _;
use palisade_api::Secret;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::clock::rfc3339;
use crate::source::MAX_SECRET_BYTES;
use crate::surroundings::{Origin, Surroundings, check_private};

/// The largest sealed file that is read.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// The most secrets in one file.
const MAX_SECRETS: usize = 4096;

/// What went wrong with a sealed file or its key.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// The key cannot be read.
    #[error("the key of the sealed file cannot be had: {0}")]
    KeyRead(String),
    /// What was read is no key.
    #[error(
        "`{0}` holds no age identity: a line that begins with `AGE-SECRET-KEY-1`. Make one with `palisade vault init` or \
         `age-keygen`"
    )]
    KeyParse(String),
    /// A step on the file system failed.
    #[error("`{}` cannot be {step}: {error}", path.display())]
    Io {
        /// What was done: `opened`, `written`, …
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is there already.
    #[error("`{}` exists already; remove it first if nothing in it is needed", .0.display())]
    Exists(PathBuf),
    /// The file is not as it must be.
    #[error("the sealed file cannot be used: {0}")]
    Unfit(String),
    /// Encrypted to another key.
    #[error("`{}` is not encrypted to this key; name the key that it was made with", .0.display())]
    WrongKey(PathBuf),
    /// Changed, cut off, or no age file.
    #[error("`{}` is damaged or no age file ({why}); restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which check failed.
        why: &'static str,
    },
    /// No such name.
    #[error("`{}` holds no secret `{name}`; `palisade vault list` shows the names", path.display())]
    NoSecret {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("`{}` already holds a secret `{name}`; `palisade vault rotate` gives it a new value", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// No name for a secret.
    #[error("a secret's name has 1 to 128 letters, digits, `-`, `_` and `.`")]
    Name,
    /// No value.
    #[error("the value is {0}")]
    Value(&'static str),
    /// Full.
    #[error("the file holds {MAX_SECRETS} secrets already; use a second one, or a server made for it")]
    Full,
}

fn io(step: &'static str, path: &Path, error: impl Into<std::io::Error>) -> SealedError {
    SealedError::Io { step, path: path.to_owned(), error: error.into() }
}

/// The key of a sealed file: an age X25519 identity.
pub struct Key(age::x25519::Identity);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.recipient())
    }
}

impl Key {
    /// Makes a key and keeps it in a new file with the mode 0600, which must not exist. Durable when this returns.
    pub fn generate(path: &Path) -> Result<Self, SealedError> {
        let identity = age::x25519::Identity::generate();
        let text = identity.to_string();
        let directory = Directory::lock(path)?;
        let mut content = Zeroizing::new(Vec::with_capacity(256));
        content
            .extend_from_slice(b"# The key of Palisade's sealed file. Whoever has it can read every secret in it.\n");
        content.extend_from_slice(text.expose_secret().as_bytes());
        content.push(b'\n');
        directory.write(path, &content, true)?;
        Ok(Self(identity))
    }

    /// Reads a key.
    pub fn read(origin: &Origin, surroundings: &Surroundings) -> Result<Self, SealedError> {
        let text = origin.read(surroundings).map_err(SealedError::KeyRead)?;
        let line = text.expose().lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        // The parser's own text may hold a part of the line.
        let identity =
            line.and_then(|line| line.parse().ok()).ok_or_else(|| SealedError::KeyParse(origin.to_string()))?;
        Ok(Self(identity))
    }

    /// Its public half, as age writes it.
    pub fn recipient(&self) -> String {
        self.0.to_public().to_string()
    }
}

/// A secret of the file, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SealedEntry {
    /// Its name.
    pub name: String,
    /// When it was added; RFC 3339.
    pub created: String,
    /// When it got its value; RFC 3339.
    pub changed: String,
}

/// A sealed file. Its functions block for as long as the file system takes.
#[derive(Debug, Clone)]
pub struct SealedFile {
    path: PathBuf,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    version: u32,
    secrets: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(serialize_with = "expose")]
    value: Secret,
    created: String,
    changed: String,
}

fn expose<S: Serializer>(value: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.expose())
}

impl SealedFile {
    /// Makes an empty one, which must not exist.
    pub fn create(path: &Path, key: &Key) -> Result<Self, SealedError> {
        let file = Self { path: path.to_owned() };
        let directory = Directory::lock(path)?;
        let empty = Sealed { version: 1, secrets: BTreeMap::new() };
        directory.write(path, &file.seal(&empty, key)?, true)?;
        Ok(file)
    }

    /// One that exists; it is read when it is used.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The names, without values.
    pub fn list(&self, key: &Key) -> Result<Vec<SealedEntry>, SealedError> {
        let (sealed, _) = self.unseal(key)?;
        let show =
            |(name, entry): (String, Entry)| SealedEntry { name, created: entry.created, changed: entry.changed };
        Ok(sealed.secrets.into_iter().map(show).collect())
    }

    /// Adds a secret under a new name.
    pub fn add(&self, key: &Key, name: &str, value: Secret, now: SystemTime) -> Result<(), SealedError> {
        check(name, &value)?;
        self.change(key, |sealed| {
            if sealed.secrets.contains_key(name) {
                return Err(SealedError::Taken { path: self.path.clone(), name: name.to_owned() });
            }
            if sealed.secrets.len() >= MAX_SECRETS {
                return Err(SealedError::Full);
            }
            let now = rfc3339(now);
            sealed.secrets.insert(name.to_owned(), Entry { value, created: now.clone(), changed: now });
            Ok(())
        })
    }

    /// Gives a secret a new value. Workers that run use it from the next request on.
    pub fn rotate(&self, key: &Key, name: &str, value: Secret, now: SystemTime) -> Result<(), SealedError> {
        check(name, &value)?;
        self.change(key, |sealed| {
            let entry = sealed.secrets.get_mut(name).ok_or_else(|| self.no_secret(name))?;
            entry.value = value;
            entry.changed = rfc3339(now);
            Ok(())
        })
    }

    /// Removes a secret. Workers that run refuse it from the next request on.
    pub fn remove(&self, key: &Key, name: &str) -> Result<(), SealedError> {
        self.change(key, |sealed| sealed.secrets.remove(name).map(|_| ()).ok_or_else(|| self.no_secret(name)))
    }

    /// Encrypts the file to another key.
    pub fn rekey(&self, old: &Key, new: &Key) -> Result<(), SealedError> {
        let directory = Directory::lock(&self.path)?;
        let (sealed, _) = self.unseal(old)?;
        directory.write(&self.path, &self.seal(&sealed, new)?, false)
    }

    /// One value, and the facts of the file that it was read from.
    pub(crate) fn value(&self, key: &Key, name: &str) -> Result<(Secret, std::fs::Metadata), SealedError> {
        let (mut sealed, facts) = self.unseal(key)?;
        let entry = sealed.secrets.remove(name).ok_or_else(|| self.no_secret(name))?;
        Ok((entry.value, facts))
    }

    fn no_secret(&self, name: &str) -> SealedError {
        SealedError::NoSecret { path: self.path.clone(), name: name.to_owned() }
    }

    fn change(&self, key: &Key, edit: impl FnOnce(&mut Sealed) -> Result<(), SealedError>) -> Result<(), SealedError> {
        // Locked before reading, so that no change of another writer is lost.
        let directory = Directory::lock(&self.path)?;
        let (mut sealed, _) = self.unseal(key)?;
        edit(&mut sealed)?;
        directory.write(&self.path, &self.seal(&sealed, key)?, false)
    }

    fn unseal(&self, key: &Key) -> Result<(Sealed, std::fs::Metadata), SealedError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(CWD, &self.path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP) => {
                let shown = self.path.display();
                return Err(SealedError::Unfit(format!("`{shown}` is a symbolic link; name the file itself")));
            }
            Err(error) => return Err(io("opened", &self.path, error)),
        };
        // It is encrypted, so others may read it; who can write it could put an older one in its place.
        let facts = check_private(&file, &self.path.display().to_string(), true).map_err(SealedError::Unfit)?;
        if facts.len() > MAX_FILE_BYTES {
            return Err(SealedError::Unfit(format!("it has more than {} MiB", MAX_FILE_BYTES >> 20)));
        }
        let mut encrypted = Vec::new();
        (&file).take(MAX_FILE_BYTES).read_to_end(&mut encrypted).map_err(|error| io("read", &self.path, error))?;
        let damaged = |why| SealedError::Damaged { path: self.path.clone(), why };
        let decryptor = age::Decryptor::new_buffered(&encrypted[..]).map_err(|_| damaged("its header"))?;
        let mut reader =
            decryptor.decrypt(std::iter::once(&key.0 as &dyn age::Identity)).map_err(|error| match error {
                age::DecryptError::NoMatchingKeys => SealedError::WrongKey(self.path.clone()),
                _ => damaged("its header"),
            })?;
        // Room for all of it at once: what grows leaves its former self behind.
        let mut plain = Zeroizing::new(Vec::with_capacity(encrypted.len()));
        reader.read_to_end(&mut plain).map_err(|_| damaged("its content"))?;
        let sealed: Sealed = serde_json::from_slice(&plain).map_err(|_| damaged("what it holds"))?;
        if sealed.version != 1 {
            let why = format!("it has the version {}, and this program reads version 1", sealed.version);
            return Err(SealedError::Unfit(why));
        }
        Ok((sealed, facts))
    }

    fn seal(&self, sealed: &Sealed, key: &Key) -> Result<Vec<u8>, SealedError> {
        // JSON escapes a byte with at most six.
        let room =
            sealed.secrets.iter().map(|(name, entry)| 6 * entry.value.expose().len() + name.len() + 128).sum::<usize>();
        let mut plain = Zeroizing::new(Vec::with_capacity(room + 64));
        serde_json::to_writer(&mut *plain, sealed).map_err(|error| io("encrypted", &self.path, error))?;
        age::encrypt(&key.0.to_public(), &plain)
            .map_err(|error| io("encrypted", &self.path, std::io::Error::other(error.to_string())))
    }
}

fn check(name: &str, value: &Secret) -> Result<(), SealedError> {
    let simple = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 128 || !name.bytes().all(simple) {
        return Err(SealedError::Name);
    }
    if value.is_blank() {
        return Err(SealedError::Value("empty"));
    }
    if value.expose().len() > MAX_SECRET_BYTES {
        return Err(SealedError::Value("longer than 64 KiB"));
    }
    Ok(())
}

/// The directory of a file that is being changed, locked against other writers.
struct Directory {
    path: PathBuf,
    handle: OwnedFd,
}

impl Directory {
    fn lock(file: &Path) -> Result<Self, SealedError> {
        let path = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle =
            rustix::fs::openat(CWD, &path, flags, Mode::empty()).map_err(|error| io("opened", &path, error))?;
        loop {
            match rustix::fs::flock(&handle, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { path, handle }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(io("locked", &path, error)),
            }
        }
    }

    /// Puts content in a file's place; the file is there whole or not at all, and durable when this returns.
    fn write(&self, path: &Path, content: &[u8], new: bool) -> Result<(), SealedError> {
        let name = path.file_name().ok_or_else(|| SealedError::Unfit(format!("`{}` names no file", path.display())))?;
        let mut beside = std::ffi::OsString::from(".");
        beside.push(name);
        beside.push(".new");
        // Nobody else writes now, so one that is there is left from a crash.
        match rustix::fs::unlinkat(&self.handle, &beside, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(io("removed", &self.path.join(&beside), error)),
        }
        let put = || -> Result<(), SealedError> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let handle = rustix::fs::openat(&self.handle, &beside, flags, Mode::RUSR | Mode::WUSR)
                .map_err(|error| io("made", &self.path.join(&beside), error))?;
            let mut file = File::from(handle);
            file.write_all(content).and_then(|()| file.sync_all()).map_err(|error| io("written", path, error))?;
            let flags = if new { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
            rustix::fs::renameat_with(&self.handle, &beside, &self.handle, name, flags).map_err(|error| match error {
                Errno::EXIST => SealedError::Exists(path.to_owned()),
                error => io("put in place", path, error),
            })
        };
        put().inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&self.handle, &beside, AtFlags::empty());
        })?;
        rustix::fs::fsync(&self.handle).map_err(|error| io("made durable", path, error))
    }
}
