//! References: how people name images.
//!
//! | form | what it names |
//! |---|---|
//! | `[registry/]repository[:tag][@sha256:…]` | an image of a registry; `docker.io` and `latest` are understood as usual |
//! | `oci:PATH[:name][@sha256:…]` | an image of an OCI layout, a directory or a tar of one |
//! | `oci-archive:FILE[:name][@sha256:…]` | the same, a tar only |
//! | `docker-archive:FILE[:name][@sha256:…]` | an image of a tar that `docker save` or `podman save` wrote |
//! | `sha256:…` | an image that is in the store already |

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The longest repository that registries accept, in bytes.
const LONGEST_REPOSITORY: usize = 255;
/// The longest tag, in bytes.
const LONGEST_TAG: usize = 128;
/// Docker Hub, as people write it.
const DOCKER_HUB: &str = "docker.io";

/// Names an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// An image of a registry.
    Registry(RegistryReference),
    /// An image in a directory or file of this machine.
    Local(LocalReference),
    /// An image that is in the store, by its digest alone.
    Stored(Digest),
}

/// An image of a registry, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryReference {
    /// Host and port, in lower case; `docker.io` for Docker Hub.
    pub registry: String,
    /// The path below the registry, for example `library/debian`.
    pub repository: String,
    /// The tag. None when there is a digest, whose place it cannot take.
    pub tag: Option<String>,
    /// The digest.
    pub digest: Option<Digest>,
}

/// An image in a directory or file of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalReference {
    /// How the image is stored there.
    pub format: LocalFormat,
    /// The directory or file.
    pub path: PathBuf,
    /// Which of its images, when it holds more than one: a tag of a layout, a repository and tag of `docker save`.
    pub name: Option<String>,
    /// The digest.
    pub digest: Option<Digest>,
}

/// How an image is stored outside a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalFormat {
    /// An OCI layout: a directory or a tar.
    Oci,
    /// An OCI layout in a tar.
    OciArchive,
    /// A tar in the form of `docker save`.
    DockerArchive,
}

/// Why a text is no reference; each names the part that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("the image is empty: name one, for example debian:12 or oci:/path/to/layout")]
    Empty,
    /// It has characters that no reference has.
    #[error("{0:?} has white space or control characters: remove them")]
    Characters(String),
    /// It begins with a URL's scheme.
    #[error("{0:?} is a URL: name the image without {1}://")]
    Scheme(String, String),
    /// The registry is no host.
    #[error("the registry {0:?} is not a host: use letters, digits, `-` and `.`, and a port if needed")]
    Registry(String),
    /// The repository has characters that it must not have.
    #[error(
        "the repository {0:?} is not valid: its parts are lower-case letters and digits, joined by `.`, `_`, `__` or `-`"
    )]
    Repository(String),
    /// The repository is too long.
    #[error("the repository is longer than {LONGEST_REPOSITORY} bytes")]
    RepositoryLength,
    /// The tag is not one.
    #[error(
        "the tag {0:?} is not valid: it is up to {LONGEST_TAG} letters, digits, `_`, `.` and `-`, and begins with none of \
         the last two"
    )]
    Tag(String),
    /// The digest is not one.
    #[error("the digest is not valid: {0}")]
    Digest(#[from] DigestError),
    /// No path after the prefix.
    #[error("{0} names no path: write {0}PATH")]
    Path(&'static str),
}

impl Reference {
    /// The digest that the reference fixes, if it does.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Reference::Registry(it) => it.digest,
            Reference::Local(it) => it.digest,
            Reference::Stored(digest) => Some(*digest),
        }
    }

    /// Whether what it names can change.
    pub fn is_mutable(&self) -> bool {
        self.digest().is_none()
    }

    /// The same image, fixed to this digest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Reference {
        match self.clone() {
            Reference::Registry(it) => Reference::Registry(RegistryReference { digest: Some(digest), tag: None, ..it }),
            Reference::Local(it) => Reference::Local(LocalReference { digest: Some(digest), name: None, ..it }),
            Reference::Stored(_) => Reference::Stored(digest),
        }
    }
}

impl RegistryReference {
    /// What stands for the manifest in the registry's API: the digest, or else the tag.
    pub(crate) fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl LocalFormat {
    fn prefix(self) -> &'static str {
        match self {
            LocalFormat::Oci => "oci:",
            LocalFormat::OciArchive => "oci-archive:",
            LocalFormat::DockerArchive => "docker-archive:",
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        for format in [LocalFormat::Oci, LocalFormat::OciArchive, LocalFormat::DockerArchive] {
            if let Some(rest) = text.strip_prefix(format.prefix()) {
                return local(format, rest).map(Reference::Local);
            }
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(ReferenceError::Characters(text.to_owned()));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(ReferenceError::Scheme(text.to_owned(), scheme.to_owned()));
        }
        if text.starts_with("sha256:") && !text.contains('/') && !text.contains('@') {
            return Ok(Reference::Stored(text.parse()?));
        }
        remote(text).map(Reference::Registry)
    }
}

/// Takes the digest off the end.
fn digest(text: &str) -> Result<(&str, Option<Digest>), ReferenceError> {
    match text.rsplit_once('@') {
        Some((rest, digest)) => Ok((rest, Some(digest.parse()?))),
        None => Ok((text, None)),
    }
}

fn local(format: LocalFormat, text: &str) -> Result<LocalReference, ReferenceError> {
    // A path may hold an `@`; a digest is recognised by how it begins.
    let (text, digest) = if text.contains("@sha") { digest(text)? } else { (text, None) };
    let (path, name) = match text.split_once(':') {
        Some((path, name)) => (path, Some(name)),
        None => (text, None),
    };
    if path.is_empty() {
        return Err(ReferenceError::Path(format.prefix()));
    }
    let plain = |name: &str| !name.is_empty() && name.len() <= 512 && name.bytes().all(|byte| byte.is_ascii_graphic());
    if let Some(name) = name.filter(|name| !plain(name)) {
        return Err(ReferenceError::Tag(name.to_owned()));
    }
    Ok(LocalReference { format, path: path.into(), name: name.map(str::to_owned), digest })
}

fn remote(text: &str) -> Result<RegistryReference, ReferenceError> {
    let (text, digest) = digest(text)?;
    // A colon after the last slash begins a tag; before it, a port.
    let (name, tag) = match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    };
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(ReferenceError::Tag(tag.to_owned()));
    }
    let (registry, repository) = split_registry(name)?;
    let tag = digest.is_none().then(|| tag.unwrap_or("latest").to_owned());
    Ok(RegistryReference { registry, repository, tag, digest })
}

/// Tells the registry from the repository. The first part is a registry when it could not be a repository's: it has a dot
/// or a port, or is `localhost`.
pub(crate) fn split_registry(name: &str) -> Result<(String, String), ReferenceError> {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':', '[']) || first == "localhost" => (first, rest.to_owned()),
        _ => (DOCKER_HUB, name.to_owned()),
    };
    let registry = self::registry(registry)?;
    let repository = match registry.as_str() {
        DOCKER_HUB if !repository.contains('/') && is_repository(&repository) => format!("library/{repository}"),
        _ => repository,
    };
    if repository.len() > LONGEST_REPOSITORY {
        return Err(ReferenceError::RepositoryLength);
    }
    if !is_repository(&repository) {
        return Err(ReferenceError::Repository(repository));
    }
    Ok((registry, repository))
}

/// A registry's host and port in the one form in which they are compared.
pub(crate) fn registry(text: &str) -> Result<String, ReferenceError> {
    let refuse = || ReferenceError::Registry(text.to_owned());
    let lower = text.to_ascii_lowercase();
    let (host, port) = match lower.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((address, rest))) => {
            let address: std::net::Ipv6Addr = address.parse().map_err(|_| refuse())?;
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(refuse)?) };
            (format!("[{address}]"), port)
        }
        Some(None) => return Err(refuse()),
        None => match lower.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (lower.clone(), None),
        },
    };
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    if !host.starts_with('[') && (host.len() > 253 || !host.split('.').all(label)) {
        return Err(refuse());
    }
    let host =
        if matches!(host.as_str(), "index.docker.io" | "registry-1.docker.io") { DOCKER_HUB.into() } else { host };
    let Some(port) = port else { return Ok(host) };
    let number: u16 = port.parse().ok().filter(|number| *number != 0).ok_or_else(refuse)?;
    if port.starts_with('+') { Err(refuse()) } else { Ok(format!("{host}:{number}")) }
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= LONGEST_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_repository(repository: &str) -> bool {
    repository.split('/').all(|part| {
        // Runs of letters and digits, with one of the separators between each two.
        let mut between = String::new();
        let mut any = false;
        for c in part.chars() {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                let separator =
                    matches!(between.as_str(), "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
                if !separator || (!between.is_empty() && !any) {
                    return false;
                }
                between.clear();
                any = true;
            } else {
                between.push(c);
            }
        }
        any && between.is_empty()
    })
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Display for LocalReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.format.prefix(), self.path.display())?;
        if let Some(name) = &self.name {
            write!(f, ":{name}")?;
        }
        self.digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Registry(it) => it.fmt(f),
            Reference::Local(it) => it.fmt(f),
            Reference::Stored(digest) => digest.fmt(f),
        }
    }
}

impl LocalReference {
    /// The same with a path that means the same everywhere, under which a pin is found again.
    pub(crate) fn absolute(&self) -> LocalReference {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        LocalReference { path, ..self.clone() }
    }

    /// A reference to a path whose format is told by what is there.
    pub fn of_path(path: &Path, format: LocalFormat) -> LocalReference {
        LocalReference { format, path: path.to_owned(), name: None, digest: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_get_the_usual_defaults() {
        for (text, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("acme/tool", "docker.io/acme/tool:latest"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("GHCR.io/acme/tool:V1", "ghcr.io/acme/tool:V1"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x/y__z:1", "localhost:5000/x/y__z:1"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("a--b/c", "docker.io/a--b/c:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), full, "{text}");
            assert!(text.parse::<Reference>().unwrap().is_mutable());
        }
        for (text, full) in [
            (format!("debian@{DIGEST}"), format!("docker.io/library/debian@{DIGEST}")),
            (format!("debian:12@{DIGEST}"), format!("docker.io/library/debian@{DIGEST}")),
            (format!("oci:/a/b:v1@{DIGEST}"), format!("oci:/a/b:v1@{DIGEST}")),
            (DIGEST.to_owned(), DIGEST.to_owned()),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert!(!reference.is_mutable());
            assert_eq!(full.parse(), Ok(reference), "what is written is read as the same");
        }
    }

    #[test]
    fn local_references_have_a_path_and_maybe_a_name() {
        let Ok(Reference::Local(local)) = "docker-archive:a@b/x.tar:repo/app:1".parse() else { panic!("not local") };
        assert_eq!((local.path.as_path(), local.name.as_deref()), (Path::new("a@b/x.tar"), Some("repo/app:1")));
        assert_eq!(local.format, LocalFormat::DockerArchive);
        assert_eq!("oci:".parse::<Reference>(), Err(ReferenceError::Path("oci:")));
        assert!(matches!("oci-archive:x:".parse::<Reference>(), Err(ReferenceError::Tag(_))));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<Reference>().unwrap_err();
        assert_eq!(error(""), ReferenceError::Empty);
        assert!(matches!(error("https://ghcr.io/x"), ReferenceError::Scheme(..)));
        assert!(matches!(error("a b"), ReferenceError::Characters(_)));
        for repository in ["Debian", "a//b", "a/../b", "/a", "a/", ".a", "a.", "a___b", "a..b", "-a", "a/-", "ä"] {
            assert!(matches!(error(repository), ReferenceError::Repository(_)), "{repository}");
        }
        for tag in ["a:", "a:-x", "a:.x", "a:x y", &format!("a:{}", "x".repeat(129)), "a:ö"] {
            assert!(matches!(error(tag), ReferenceError::Tag(_) | ReferenceError::Characters(_)), "{tag}");
        }
        for registry in
            ["a..b/x", "-a.b/x", "a.b:0/x", "a.b:99999/x", "a.b:+1/x", "[::1/x", "[zz]/x", "a_b.c/x", "a.b:/x"]
        {
            assert!(matches!(error(registry), ReferenceError::Registry(_)), "{registry}");
        }
        assert!(matches!(error("a@sha256:00"), ReferenceError::Digest(_)));
        assert!(matches!(error("a@sha512:00"), ReferenceError::Digest(_)));
        assert_eq!(error(&format!("docker.io/{}", "x/".repeat(200) + "x")), ReferenceError::RepositoryLength);
    }
}
