//! Images outside a registry: OCI layouts (image specification, Image Layout) and the archives of `docker save`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use crate::archive::Files;
use crate::digest::{self, Digest};
use crate::inflate::Compression;
use crate::manifest::{self, Descriptor, Manifest, ManifestError};
use crate::policy::Limits;
use crate::reference::{LocalFormat, LocalReference};
use crate::signature;

/// The annotation that names an image of a layout.
const NAME: &str = "org.opencontainers.image.ref.name";
/// Annotations that say that an entry of a layout is signatures, as `cosign save` writes them.
const KIND: &str = "kind";
const SIGNATURES: &str = "dev.cosignproject.cosign/sigs";

/// Why a layout or archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It cannot be read.
    #[error("{path} cannot be read: {cause}; check that it is a whole archive or layout", path = path.display())]
    Read {
        /// The directory or file.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// It is something else.
    #[error("{path} is not {what}: it has no {missing}", path = path.display())]
    Kind {
        /// The directory or file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is missing.
        missing: &'static str,
    },
    /// One of its own documents is not valid.
    #[error("{name} in {path} is not valid: {cause}", path = path.display())]
    Json {
        /// The directory or file.
        path: PathBuf,
        /// The document.
        name: &'static str,
        /// Where and why.
        cause: serde_json::Error,
    },
    /// It has no such image, or more than one.
    #[error("{path} has {found}: name one of {names}", path = path.display())]
    Choice {
        /// The directory or file.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What can be named.
        names: String,
    },
    /// A part is missing.
    #[error("{path} lacks {what}: make it again", path = path.display())]
    Missing {
        /// The directory or file.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// A part is not what its name says.
    #[error("{what} in {path} has another digest, {found}: the file is damaged or was changed", path = path.display())]
    Digest {
        /// The directory or file.
        path: PathBuf,
        /// What.
        what: String,
        /// Its digest.
        found: Digest,
    },
}

/// An image outside a registry.
pub(crate) struct Layout {
    path: PathBuf,
    files: Files,
    limits: Limits,
    contents: Contents,
}

enum Contents {
    Oci(Vec<Descriptor>),
    /// The manifest that was made for the one image that is meant, its digest, and the names of its blobs.
    Docker {
        digest: Digest,
        manifest: Vec<u8>,
        blobs: BTreeMap<Digest, String>,
    },
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    names: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

impl Layout {
    /// Opens it. `scratch` gives a file for what must be unpacked to be read.
    pub(crate) fn open(
        reference: &LocalReference,
        scratch: impl FnOnce() -> io::Result<File>,
        limits: &Limits,
    ) -> Result<Layout, LayoutError> {
        let path = reference.path.clone();
        let failed = |cause| LayoutError::Read { path: path.clone(), cause };
        let files = Files::open(&path, scratch, limits).map_err(failed)?;
        if reference.format != LocalFormat::Oci && matches!(files, Files::Directory(_)) {
            return Err(failed(io::Error::other("it is a directory: name it as oci:PATH")));
        }
        let contents = match reference.format {
            LocalFormat::Oci | LocalFormat::OciArchive => {
                let missing = |missing| LayoutError::Kind { path: path.clone(), what: "an OCI layout", missing };
                let read = |name| files.read(name, limits.document_bytes).map_err(failed);
                read("oci-layout")?.ok_or_else(|| missing("oci-layout"))?;
                let index = read("index.json")?.ok_or_else(|| missing("index.json"))?;
                let index: Index = serde_json::from_slice(&index).map_err(|cause| LayoutError::Json {
                    path: path.clone(),
                    name: "index.json",
                    cause,
                })?;
                Contents::Oci(index.manifests)
            }
            LocalFormat::DockerArchive => docker(&files, reference, limits)?,
        };
        Ok(Layout { path, files, limits: limits.clone(), contents })
    }

    /// What is at a path: a layout, or else an archive of `docker save`.
    pub(crate) fn format(path: &std::path::Path, limits: &Limits) -> io::Result<LocalFormat> {
        // A compressed archive is looked at through its decompression, without keeping it.
        let mut file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Ok(LocalFormat::Oci);
        }
        if Compression::of_file(&mut file)? != Compression::None {
            let limits = Limits { layer_bytes: limits.image_bytes, ..limits.clone() };
            let (inflate, _) = crate::inflate::archive(file, &limits)?;
            return first_format(inflate);
        }
        first_format(file)
    }

    /// The index or manifest that is meant.
    pub(crate) fn top(&self, reference: &LocalReference) -> Result<(Digest, Vec<u8>), LayoutError> {
        let entries = match &self.contents {
            Contents::Docker { digest, manifest, .. } => {
                return match reference.digest.filter(|wanted| wanted != digest) {
                    None => Ok((*digest, manifest.clone())),
                    Some(wanted) => Err(LayoutError::Choice {
                        path: self.path.clone(),
                        found: format!("no image {wanted}"),
                        names: format!("@{digest}"),
                    }),
                };
            }
            Contents::Oci(entries) => entries,
        };
        let named = |entry: &&Descriptor, name: &str| {
            let own = entry.annotations.get(NAME).or_else(|| entry.annotations.get("io.containerd.image.name"));
            own.is_some_and(|own| own == name || own.ends_with(&format!(":{name}")))
        };
        let found: Vec<&Descriptor> = match (&reference.digest, &reference.name) {
            // Also one that the index does not list, for example one platform of an image.
            (Some(digest), _) => return self.document(*digest).map(|bytes| (*digest, bytes)),
            (None, Some(name)) => entries.iter().filter(|entry| named(entry, name)).collect(),
            (None, None) => entries.iter().filter(|entry| !is_signature(entry)).collect(),
        };
        match found.as_slice() {
            [one] => self.document(one.digest).map(|bytes| (one.digest, bytes)),
            other => {
                let name = |entry: &Descriptor| match entry.annotations.get(NAME) {
                    Some(name) => format!(":{name}"),
                    None => format!("@{}", entry.digest),
                };
                let all = entries.iter().filter(|entry| !is_signature(entry)).take(20);
                let names = all.map(name).map(|name| name.chars().take(100).collect::<String>());
                let found = if other.is_empty() { "no such image" } else { "more than one such image" };
                let names = names.collect::<Vec<_>>().join(", ");
                Err(LayoutError::Choice { path: self.path.clone(), found: found.to_owned(), names })
            }
        }
    }

    /// A manifest or index by its digest.
    pub(crate) fn document(&self, digest: Digest) -> Result<Vec<u8>, LayoutError> {
        self.small(digest, self.limits.document_bytes)
    }

    /// The manifest of an image's signatures, if there is one.
    pub(crate) fn signatures(&self, image: Digest) -> Result<Option<Vec<u8>>, LayoutError> {
        let Contents::Oci(entries) = &self.contents else { return Ok(None) };
        let tag = signature::tag(image);
        let named = |entry: &&Descriptor| {
            entry.annotations.get(NAME).is_some_and(|name| *name == tag || name.ends_with(&format!(":{tag}")))
        };
        // `cosign save` names no image; whether a statement is about this one is seen in it.
        let found = entries.iter().find(named).or_else(|| entries.iter().find(|entry| is_signature(entry)));
        found.map(|entry| self.document(entry.digest)).transpose()
    }

    fn name(&self, digest: Digest) -> String {
        match &self.contents {
            Contents::Docker { blobs, .. } => blobs.get(&digest).cloned().unwrap_or_default(),
            Contents::Oci(_) => format!("blobs/sha256/{}", digest.hex()),
        }
    }

    fn missing(&self, digest: Digest) -> LayoutError {
        LayoutError::Missing { path: self.path.clone(), what: digest.to_string() }
    }

    /// A blob, whole and with its digest checked.
    pub(crate) fn small(&self, digest: Digest, limit: u64) -> Result<Vec<u8>, LayoutError> {
        let failed = |cause| LayoutError::Read { path: self.path.clone(), cause };
        let bytes = self.files.read(&self.name(digest), limit).map_err(failed)?;
        let bytes = bytes.ok_or_else(|| self.missing(digest))?;
        match Digest::of(&bytes) {
            found if found == digest => Ok(bytes),
            found => Err(LayoutError::Digest { path: self.path.clone(), what: digest.to_string(), found }),
        }
    }

    /// Copies a blob and checks its digest. What is unpacked is the copy: the original may change meanwhile.
    pub(crate) fn blob(&self, descriptor: &Descriptor, to: &mut File) -> Result<(), LayoutError> {
        let failed = |cause| LayoutError::Read { path: self.path.clone(), cause };
        let digest = descriptor.digest;
        let (file, _) = self.files.file(&self.name(digest)).map_err(failed)?.ok_or_else(|| self.missing(digest))?;
        let (_, found) = digest::copy(file, to, descriptor.size).map_err(failed)?;
        if found == digest {
            return Ok(());
        }
        Err(LayoutError::Digest { path: self.path.clone(), what: digest.to_string(), found })
    }
}

fn is_signature(entry: &Descriptor) -> bool {
    let name = entry.annotations.get(NAME);
    entry.annotations.get(KIND).is_some_and(|kind| kind == SIGNATURES)
        || name.is_some_and(|name| name.ends_with(".sig"))
}

/// What an archive is, by the first of its members that tells.
fn first_format(reader: impl io::Read) -> io::Result<LocalFormat> {
    let mut docker = false;
    for entry in tar::Archive::new(reader).entries()?.take(10_000) {
        let path = entry?.path_bytes().into_owned();
        match path.strip_prefix(b"./").unwrap_or(&path) {
            // Current archives of `docker save` are layouts as well, with the digests that the registry knows.
            b"oci-layout" => return Ok(LocalFormat::OciArchive),
            b"manifest.json" => docker = true,
            _ => {}
        }
    }
    if docker { Ok(LocalFormat::DockerArchive) } else { Err(io::Error::other("it holds no image")) }
}

/// Makes a manifest for an image of `docker save`, which has none.
fn docker(files: &Files, reference: &LocalReference, limits: &Limits) -> Result<Contents, LayoutError> {
    let path = || reference.path.clone();
    let failed = |cause| LayoutError::Read { path: path(), cause };
    let bytes = files.read("manifest.json", limits.document_bytes).map_err(failed)?;
    let what = "an archive of docker save";
    let bytes = bytes.ok_or_else(|| LayoutError::Kind { path: path(), what, missing: "manifest.json" })?;
    let saved: Vec<Saved> = serde_json::from_slice(&bytes).map_err(|cause| LayoutError::Json {
        path: path(),
        name: "manifest.json",
        cause,
    })?;
    let wanted = |saved: &&Saved| {
        reference.name.as_ref().is_none_or(|wanted| {
            let full = |name: &str| name.parse::<crate::reference::Reference>().map(|it| it.to_string()).ok();
            saved.names.iter().flatten().any(|name| name == wanted || full(name) == full(wanted))
        })
    };
    let found: Vec<&Saved> = saved.iter().filter(wanted).collect();
    let [image] = found.as_slice() else {
        let names: Vec<String> =
            saved.iter().flat_map(|saved| saved.names.iter().flatten()).take(20).cloned().collect();
        let found = if found.is_empty() { "no such image" } else { "more than one such image" };
        return Err(LayoutError::Choice { path: path(), found: found.to_owned(), names: names.join(", ") });
    };
    let mut blobs = BTreeMap::new();
    let mut describe = |name: &str, media_type: &str, limit: u64| {
        // What is named must be in the archive; in a directory the name could lead out of it.
        let missing = || LayoutError::Missing { path: path(), what: name.to_owned() };
        let (file, _) = files.file(name).map_err(failed)?.ok_or_else(missing)?;
        let (size, digest) = digest::copy(file, &mut io::sink(), limit).map_err(failed)?;
        blobs.insert(digest, name.to_owned());
        let (media_type, annotations) = (media_type.to_owned(), BTreeMap::new());
        Ok(Descriptor { media_type, digest, size, annotations, platform: None })
    };
    let config = describe(&image.config, manifest::OCI_CONFIG, limits.document_bytes)?;
    let layers = image.layers.iter().take(limits.layers + 1);
    let layers: Result<Vec<_>, LayoutError> =
        layers.map(|name| describe(name, manifest::OCI_LAYER, limits.blob_bytes)).collect();
    let manifest = manifest::write(&Manifest { config, layers: layers? });
    Ok(Contents::Docker { digest: Digest::of(&manifest), manifest, blobs })
}

/// Descriptors are written by strangers; a size that is too large is found by who reads the blob.
pub(crate) fn document_limit(what: &str, descriptor: &Descriptor, limit: u64) -> Result<(), ManifestError> {
    if descriptor.size > limit {
        return Err(ManifestError::Size { what: what.to_owned(), size: descriptor.size, limit });
    }
    Ok(())
}
