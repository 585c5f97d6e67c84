//! The provider's key: where it comes from, and how it is kept.

use std::io::Read;
use std::path::PathBuf;

use palisade_api::Secret;
use zeroize::Zeroizing;

/// The longest key, in bytes; what is longer is some other file.
const LONGEST: usize = 16 * 1024;

/// `text` without the key: a provider may repeat in an error what it was sent.
pub(crate) fn redact(key: &Secret, text: String) -> String {
    let key = key.expose();
    if key.is_empty() || !text.contains(key) { text } else { text.replace(key, "(key)") }
}

/// Where a key comes from. It is never given by value, so that it is in no argument and no configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file that holds nothing but the key; white space around it does not count.
    File(PathBuf),
    /// The name of an environment variable.
    Environment(String),
}

/// Why a key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("the model provider's key cannot be read from {}: {source}. Check the path and who may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The variable is not there.
    #[error(
        "the model provider's key is expected in the environment variable {variable}, which is not set. Set it, or name a file instead"
    )]
    Unset {
        /// Its name.
        variable: String,
    },
    /// There is nothing in it.
    #[error("the model provider's key is empty: {origin}. Put the key there")]
    Empty {
        /// The file or variable.
        origin: String,
    },
    /// It holds something else.
    #[error(
        "{origin} does not hold a key: a key is one line of printable ASCII of at most 16 KiB. Put nothing but the key there"
    )]
    NotAKey {
        /// The file or variable.
        origin: String,
    },
}

impl KeySource {
    /// Reads the key. To be done once, at start.
    ///
    /// # Errors
    /// When there is no usable key; the error names the file or the variable, and shows nothing of what is in it.
    pub fn read(&self) -> Result<Secret, KeyError> {
        match self {
            KeySource::File(path) => {
                let unreadable = |source| KeyError::Unreadable { path: path.clone(), source };
                let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
                let file = std::fs::File::open(path).map_err(unreadable)?;
                file.take(LONGEST as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
                checked(&bytes, || format!("the file {}", path.display()))
            }
            KeySource::Environment(variable) => {
                let value = std::env::var_os(variable).ok_or_else(|| KeyError::Unset { variable: variable.clone() })?;
                let bytes = Zeroizing::new(value.into_encoded_bytes());
                checked(&bytes, || format!("the environment variable {variable}"))
            }
        }
    }
}

fn checked(bytes: &[u8], origin: impl Fn() -> String) -> Result<Secret, KeyError> {
    let key = bytes.trim_ascii();
    if key.is_empty() {
        return Err(KeyError::Empty { origin: origin() });
    }
    if bytes.len() > LONGEST || !key.iter().all(u8::is_ascii_graphic) {
        return Err(KeyError::NotAKey { origin: origin() });
    }
    let key = str::from_utf8(key).map_err(|_| KeyError::NotAKey { origin: origin() })?;
    Ok(Secret::new(key))
}
