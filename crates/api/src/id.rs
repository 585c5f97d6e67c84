//! Identifiers: a prefix that says what is named, and an opaque tail.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The text is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdError {
    /// The prefix that was wanted.
    pub prefix: &'static str,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "must start with {:?} followed by 1 to 128 letters, digits, '_' or '-'", self.prefix)
    }
}

impl std::error::Error for IdError {}

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn encode(prefix: &str, bytes: &[u8; 16]) -> Arc<str> {
    let mut value = u128::from_be_bytes(*bytes);
    let mut tail = [b'0'; 22];
    for digit in tail.iter_mut().rev() {
        // The remainder is below 62.
        *digit = BASE62[usize::try_from(value % 62).unwrap_or(0)];
        value /= 62;
    }
    let mut text = String::with_capacity(prefix.len() + 24);
    text.push_str(prefix);
    text.push_str("01");
    text.extend(tail.iter().map(|&digit| char::from(digit)));
    Arc::from(text)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// What every identifier of this kind starts with.
            pub const PREFIX: &'static str = $prefix;

            /// Reads an identifier strictly.
            ///
            /// # Errors
            /// When the prefix is another or the tail holds other characters.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                let tail = text.strip_prefix($prefix).ok_or(IdError { prefix: $prefix })?;
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                if tail.is_empty() || tail.len() > 128 || !tail.chars().all(plain) {
                    return Err(IdError { prefix: $prefix });
                }
                Ok(Self(Arc::from(text)))
            }

            /// An identifier with this tail.
            pub fn from_tail(tail: &str) -> Self {
                Self(Arc::from(format!("{}{tail}", $prefix)))
            }

            /// An identifier made of 128 random bits.
            pub fn from_bytes(bytes: &[u8; 16]) -> Self {
                Self(encode($prefix, bytes))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(Arc::from(text))
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(Arc::from(text))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            // Identifiers of another server are opaque: any text is taken here, and checked where it matters.
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map(Self::from)
            }
        }
    )*};
}

ids! {
    /// An agent.
    AgentId = "agent_";
    /// An environment.
    EnvironmentId = "env_";
    /// A work item. The hosted product uses the session's id here, so treat it as opaque.
    WorkId = "work_";
    /// A session.
    SessionId = "sesn_";
    /// An event of a session.
    EventId = "sevt_";
    /// A thread of a session.
    ThreadId = "sthr_";
    /// A resource of a session.
    ResourceId = "sesrsc_";
    /// A request, as in the `request-id` header.
    RequestId = "req_";
    /// An API key's or an environment key's name (never the key).
    KeyId = "apikey_";
    /// A vault.
    VaultId = "vlt_";
    /// A file.
    FileId = "file_";
    /// A memory store.
    MemoryStoreId = "memstore_";
    /// A skill.
    SkillId = "skill_";
    /// An outcome.
    OutcomeId = "outc_";
    /// A deployment.
    DeploymentId = "depl_";
    /// A workflow run.
    WorkflowRunId = "wrun_";
}
