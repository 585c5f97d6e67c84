//! What a source reads of the machine before it can speak to anybody: its own credential.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use palisade_api::Secret;
use serde::{Deserialize, Deserializer, de};
use zeroize::Zeroizing;

use crate::program;
use crate::source::MAX_SECRET_BYTES;

type Variable = dyn Fn(&str) -> Option<OsString> + Send + Sync;

/// The worker's environment, handed in.
#[derive(Clone)]
pub struct Surroundings {
    variable: Arc<Variable>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self::new(|name| std::env::var_os(name))
    }

    /// Others, for tests.
    pub fn new(variable: impl Fn(&str) -> Option<OsString> + Send + Sync + 'static) -> Self {
        Self { variable: Arc::new(variable) }
    }

    pub(crate) fn variable(&self, name: &str) -> Option<OsString> {
        (self.variable)(name)
    }

    /// A variable's value as a secret. The error names the variable and the fix.
    pub(crate) fn secret(&self, name: &str) -> Result<Secret, String> {
        let value = self.variable(name).filter(|value| !value.is_empty()).ok_or_else(|| {
            format!("the environment variable `{name}` is not set; set it where the worker is started")
        })?;
        value
            .into_string()
            .map(Secret::new)
            .map_err(|_| format!("the environment variable `{name}` is not valid UTF-8; set it to text"))
    }

    fn credentials_directory(&self) -> Result<PathBuf, String> {
        self.variable("CREDENTIALS_DIRECTORY").map(PathBuf::from).filter(|path| path.is_absolute()).ok_or_else(|| {
            "`CREDENTIALS_DIRECTORY` is not set, so systemd handed over no credentials; add `LoadCredential=` or \
             `LoadCredentialEncrypted=` to the worker's unit"
                .to_owned()
        })
    }
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Surroundings")
    }
}

/// Where a source's own credential, or a key, is kept.
///
/// Written as `env:VARIABLE`, `file:/ABSOLUTE/PATH`, `mounted:/ABSOLUTE/PATH` for a file that others can read too, `credential:NAME` for
/// one that systemd handed over, which it has decrypted with the machine's TPM if it was sealed with `systemd-creds encrypt
/// --with-key=tpm2`, or `program:/ABSOLUTE/PATH` for what a program prints, such as one that has the TPM unseal it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A variable of the worker's environment.
    Env(String),
    /// A file that nobody but its owner can read.
    File(PathBuf),
    /// A file that others may read too, where whoever made it leaves no choice: a pod's token.
    Mounted(PathBuf),
    /// A file of that name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// What this program prints. It gets no argument and no environment.
    Program(PathBuf),
}

/// The text is no origin. What it says is not repeated: somebody may have put the secret itself there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write where it is kept, as `env:VARIABLE`, `file:/ABSOLUTE/PATH`, `mounted:/ABSOLUTE/PATH`, `credential:NAME` (systemd) or `program:/ABSOLUTE/PATH` that prints it; never the secret itself"
)]
pub struct OriginError;

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let simple = |name: &str, more: &[u8]| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || more.contains(&byte))
        };
        match text.split_once(':') {
            Some(("env", name)) if simple(name, b"") => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(PathBuf::from(path))),
            Some(("mounted", path)) if path.starts_with('/') => Ok(Self::Mounted(PathBuf::from(path))),
            Some(("program", path)) if path.starts_with('/') => Ok(Self::Program(PathBuf::from(path))),
            Some(("credential", name)) if simple(name, b"-.") && !matches!(name, "." | "..") => {
                Ok(Self::Credential(name.to_owned()))
            }
            _ => Err(OriginError),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Mounted(path) => write!(f, "mounted:{}", path.display()),
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::Program(path) => write!(f, "program:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Origin {
    /// Reads it now. Blocks for as long as the file system takes. The error says what is wrong and the fix.
    pub(crate) fn read(&self, surroundings: &Surroundings) -> Result<Secret, String> {
        let secret = match self {
            Self::Env(name) => surroundings.secret(name)?,
            Self::File(path) => read_private(path, false)?,
            Self::Mounted(path) => read_private(path, true)?,
            Self::Credential(name) => read_private(&surroundings.credentials_directory()?.join(name), true)?,
            Self::Program(path) => program::printed(path)?,
        };
        if secret.is_blank() {
            return Err(format!("`{self}` is empty; put the credential there"));
        }
        Ok(secret)
    }

    /// As [`Origin::read`], on a thread that may block.
    pub(crate) async fn load(&self, surroundings: &Surroundings) -> Result<Secret, String> {
        let (origin, surroundings) = (self.clone(), surroundings.clone());
        match tokio::task::spawn_blocking(move || origin.read(&surroundings)).await {
            Ok(read) => read,
            Err(_) => Err("the runtime is stopping".to_owned()),
        }
    }
}

/// Reads a file that belongs to this process's user or root, and that nobody else may read, or at least not write.
fn read_private(path: &Path, shared: bool) -> Result<Secret, String> {
    let shown = path.display();
    let file = std::fs::OpenOptions::new()
        .read(true)
        // A FIFO must not hold the caller.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|error| format!("`{shown}` cannot be opened: {error}"))?;
    check_private(&file, &shown.to_string(), shared)?;
    read_text(file, &shown.to_string())
}

/// Refuses what is no regular file, belongs to another, or can be read by others.
pub(crate) fn check_private(file: &std::fs::File, shown: &str, shared: bool) -> Result<std::fs::Metadata, String> {
    let facts = file.metadata().map_err(|error| format!("`{shown}` cannot be looked at: {error}"))?;
    if !facts.is_file() {
        return Err(format!("`{shown}` is no regular file; name a file that holds the secret"));
    }
    let us = rustix::process::geteuid().as_raw();
    if facts.uid() != us && facts.uid() != 0 {
        return Err(format!(
            "`{shown}` belongs to the user {}, who could change it; `chown {us} {shown}` or give it to root",
            facts.uid()
        ));
    }
    // Who may write may choose which secret is used, so that is refused in every case.
    let open = facts.mode() & if shared { 0o022 } else { 0o077 };
    if open != 0 {
        return Err(format!(
            "`{shown}` has the mode {:04o}, so others can {} it; `chmod {} {shown}`",
            facts.mode() & 0o7777,
            if open & 0o022 != 0 { "change" } else { "read" },
            if shared { "go-w" } else { "0600" }
        ));
    }
    Ok(facts)
}

/// Reads a secret as text, without the line end that editors add.
pub(crate) fn read_text(file: std::fs::File, shown: &str) -> Result<Secret, String> {
    let bytes = read_bytes(file, shown)?;
    text(&bytes).ok_or_else(|| format!("`{shown}` is not valid UTF-8; store text, or binary as base64"))
}

/// Reads all of a secret, which has a bound.
pub(crate) fn read_bytes(from: impl Read, shown: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 1));
    let limit = MAX_SECRET_BYTES as u64 + 1;
    from.take(limit).read_to_end(&mut bytes).map_err(|error| format!("`{shown}` cannot be read: {error}"))?;
    if bytes.len() > MAX_SECRET_BYTES {
        return Err(format!("`{shown}` has more than {MAX_SECRET_BYTES} bytes; a secret is shorter"));
    }
    Ok(bytes)
}

/// Text without the one line end at its end.
pub(crate) fn text(bytes: &[u8]) -> Option<Secret> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Some(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
}
