//! Where secrets come from.
//!
//! A configuration names secrets by [`Reference`]s, such as `vault:prod/secret/github#token`; a [`Vault`] fetches what they name
//! when it is needed, keeps it for a moment, and takes it back. [`SealedFile`] is the store for those who have no server.

mod clock;
mod config;
mod credential;
mod error;
mod http;
pub mod identity;
mod program;
mod reference;
mod sealed;
mod source;
mod sources;
mod surroundings;
mod vault;

pub use clock::{Clock, SystemClock};
pub use config::{CacheConfig, ConfigError, VaultConfig};
pub use credential::*;
pub use error::{FetchError, VaultError};
pub use reference::{Kind, Reference, ReferenceError};
pub use sealed::{Key, SealedEntry, SealedError, SealedFile};
pub use source::{Content, Document, Lease, MAX_SECRET_BYTES, Renewed, Source, Stamp};
pub use sources::aws::{AwsAuth, AwsConfig};
pub use sources::azure::{AzureAuth, AzureConfig};
pub use sources::env::EnvConfig;
pub use sources::exec::ExecConfig;
pub use sources::file::FileConfig;
pub use sources::google::{GoogleAuth, GoogleConfig};
pub use sources::hashicorp::{Engine, HashicorpAuth, HashicorpConfig};
pub use sources::onepassword::OnePasswordConfig;
pub use sources::sealed::SealedConfig;
pub use surroundings::{Origin, OriginError, Surroundings};
pub use vault::{LeaseLeft, Limits, Probe, Session, SourceState, Sources, Vault};
