//! What is allowed: which registries, which references, whose signatures, and how much.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::reference::{self, Reference, ReferenceError, RegistryReference};
use crate::signature::PublicKey;

/// What may be pulled and run. The default allows local images by digest, and no registry.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Where images may come from.
    pub registries: Registries,
    /// Registries that are spoken to without TLS. Those on loopback need not be named.
    pub insecure: Vec<String>,
    /// Whether a run may name an image by a tag, which then means what the tag meant when it was pulled.
    pub allow_mutable: bool,
    /// An image must be signed by one of these keys, if there are any.
    pub require_signature: Vec<PublicKey>,
    /// For which machine images are chosen.
    pub platform: Platform,
    /// How much one image may take.
    pub limits: Limits,
    /// Certificates (PEM) to trust besides the system's when registries are spoken to.
    pub ca_file: Option<PathBuf>,
}

/// A set of registries.
#[derive(Debug, Clone)]
pub enum Registries {
    /// Every registry.
    Any,
    /// What one of the patterns matches.
    Only(Vec<RegistryPattern>),
}

impl Default for Registries {
    fn default() -> Registries {
        Registries::Only(Vec::new())
    }
}

/// A registry, or a part of one: `ghcr.io`, `ghcr.io/acme`, `docker.io/library/debian`. It matches whole parts of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryPattern {
    registry: String,
    prefix: Option<String>,
}

impl FromStr for RegistryPattern {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<RegistryPattern, ReferenceError> {
        let text = text.strip_suffix("/*").unwrap_or(text).trim_end_matches('/');
        let (registry, prefix) = match text.split_once('/') {
            Some((registry, prefix)) => (registry, Some(prefix)),
            None => (text, None),
        };
        let registry = reference::registry(registry)?;
        // Any reference with this repository has its form checked.
        let form = |prefix: &str| reference::split_registry(&format!("localhost/{prefix}")).map(|(_, prefix)| prefix);
        Ok(RegistryPattern { registry, prefix: prefix.map(form).transpose()? })
    }
}

impl fmt::Display for RegistryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.registry)?;
        self.prefix.as_ref().map_or(Ok(()), |prefix| write!(f, "/{prefix}"))
    }
}

impl RegistryPattern {
    fn matches(&self, reference: &RegistryReference) -> bool {
        let below = |prefix: &String| match reference.repository.strip_prefix(prefix.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        };
        self.registry == reference.registry && self.prefix.as_ref().is_none_or(below)
    }
}

/// Why a policy refuses an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The registry is not allowed.
    #[error("{reference} is not allowed: {allowed}; add its registry to the allowed ones, or use another image")]
    Registry {
        /// What was asked for.
        reference: String,
        /// What is allowed.
        allowed: String,
    },
    /// A run names an image that may change.
    #[error("{reference} may mean another image tomorrow: {fix}")]
    Mutable {
        /// What was asked for.
        reference: String,
        /// What to name instead, or how to find out.
        fix: String,
    },
    /// No required signature is on record.
    #[error(
        "{reference} is not known to be signed by a required key: pull it again with the key, after checking who signs it"
    )]
    Unsigned {
        /// What was asked for.
        reference: String,
    },
}

impl Policy {
    /// Whether the image may come from where the reference says.
    pub(crate) fn check_origin(&self, reference: &Reference) -> Result<(), PolicyError> {
        let Reference::Registry(registry) = reference else { return Ok(()) };
        let Registries::Only(patterns) = &self.registries else { return Ok(()) };
        if patterns.iter().any(|pattern| pattern.matches(registry)) {
            return Ok(());
        }
        let names: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        let allowed = match names.as_slice() {
            [] => "no registry is allowed".to_owned(),
            names => format!("allowed are {}", names.join(", ")),
        };
        Err(PolicyError::Registry { reference: reference.to_string(), allowed })
    }

    /// Whether a registry is spoken to without TLS.
    pub(crate) fn is_insecure(&self, registry: &str) -> bool {
        is_loopback(registry)
            || self.insecure.iter().any(|named| reference::registry(named).is_ok_and(|named| named == registry))
    }
}

/// Whether a host, with or without a port, is this machine and nothing else.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The machine that an image is made for, in the words of Go: `amd64`, `arm64`. The system is always Linux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The processor's architecture.
    pub architecture: String,
    /// The variant of it, where images differ by it.
    pub variant: Option<String>,
}

impl Default for Platform {
    /// This machine.
    fn default() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Platform { architecture: architecture.to_owned(), variant: None }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// How much one image may take. All sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// A manifest, an index, an image's configuration or a signature.
    pub document_bytes: u64,
    /// One layer as it is downloaded.
    pub blob_bytes: u64,
    /// One layer unpacked.
    pub layer_bytes: u64,
    /// All layers unpacked.
    pub image_bytes: u64,
    /// Layers of an image. The kernel stacks up to 500.
    pub layers: usize,
    /// Entries of one layer, and directories that it has only in their paths.
    pub entries: u64,
    /// What the paths and attributes of one layer's directories take in memory while it is unpacked.
    pub path_bytes: u64,
    /// Parts of a path.
    pub depth: usize,
    /// How many times larger than its download a layer may be, once it is larger than 64 MiB.
    pub ratio: u64,
    /// How often a request to a registry is made before it has failed.
    pub attempts: u32,
    /// How long to wait before the second attempt; each later wait is twice as long.
    pub pause: Duration,
    /// How long a registry may be silent.
    pub silence: Duration,
}

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            document_bytes: 4 * MIB,
            blob_bytes: 8 * GIB,
            layer_bytes: 16 * GIB,
            image_bytes: 32 * GIB,
            layers: 256,
            entries: 1_000_000,
            path_bytes: 512 * MIB,
            depth: 128,
            ratio: 200,
            attempts: 5,
            pause: Duration::from_millis(500),
            silence: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_parts() {
        let only = |pattern: &str| Policy {
            registries: Registries::Only(vec![pattern.parse().unwrap()]),
            ..Policy::default()
        };
        let check = |pattern: &str, text: &str| only(pattern).check_origin(&text.parse().unwrap()).is_ok();
        assert!(check("ghcr.io", "ghcr.io/a/b"));
        assert!(check("ghcr.io/a", "ghcr.io/a/b:1"));
        assert!(check("ghcr.io/a/*", "ghcr.io/a/b:1"));
        assert!(check("docker.io/library/debian", "debian"));
        assert!(check("index.docker.io", "debian"));
        assert!(!check("ghcr.io/a", "ghcr.io/ab/c"));
        assert!(!check("ghcr.io", "ghcr.io.evil.example/a"));
        assert!(!check("ghcr.io", "ghcr.io:444/a"));
        assert!(!check("docker.io/library/debian", "docker.io/evil/debian"));
        let none = Policy::default().check_origin(&"debian".parse().unwrap()).unwrap_err();
        assert!(none.to_string().contains("no registry is allowed"), "{none}");
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil.example", "127.0.0.1.evil.example", "[2001:db8::1]:1", "10.0.0.1", "0.0.0.0"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
