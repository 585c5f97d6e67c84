//! The documents that describe an image: indexes, manifests and configurations. All of them come from strangers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::policy::{Limits, Platform};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const LAYERS: [&str; 7] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    // What some builders write.
    "application/vnd.docker.image.rootfs.diff.tar+zstd",
];

/// What is asked of a registry.
pub(crate) const ACCEPT: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not what it should be.
    #[error("the {what} is not valid: {cause}: the image is damaged or not an OCI image")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where and why.
        cause: serde_json::Error,
    },
    /// It is of a kind that is not supported.
    #[error("the manifest is of the kind {0:?}, which is not supported: push the image again with a current tool")]
    Kind(String),
    /// It could be read as two different things.
    #[error("the manifest is an index and an image at once: do not trust this registry")]
    Ambiguous,
    /// There is no image for this machine.
    #[error("there is no image for {wanted}, only for {found}: use an image that is built for {wanted}")]
    Platform {
        /// What was looked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// Indexes that name indexes.
    #[error("the index leads to index after index: name the digest of one image")]
    Nesting,
    /// A layer is not a tar, is encrypted, or must be fetched from elsewhere.
    #[error("layer {digest} is of the kind {kind:?}, which is not supported")]
    Layer {
        /// The layer.
        digest: Digest,
        /// Its media type.
        kind: String,
    },
    /// Without layers there is no file system.
    #[error("the image has no layers, so there is nothing to run in")]
    Empty,
    /// Too many layers.
    #[error("the image has {found} layers, more than {limit}: flatten it")]
    Layers {
        /// How many.
        found: usize,
        /// How many may be.
        limit: usize,
    },
    /// Manifest and configuration disagree.
    #[error("the manifest has {layers} layers and the configuration {diff_ids}: the image is damaged")]
    Mismatch {
        /// Layers of the manifest.
        layers: usize,
        /// Layers of the configuration.
        diff_ids: usize,
    },
    /// Something is larger than allowed.
    #[error("{what} has {size} bytes, more than {limit}")]
    Size {
        /// What.
        what: String,
        /// How large it says it is.
        size: u64,
        /// How large it may be.
        limit: u64,
    },
    /// A value of the configuration cannot be handed to a program.
    #[error("the configuration's {field} has a null character or an empty name: the image is damaged")]
    Config {
        /// The field.
        field: &'static str,
    },
}

/// Something named by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Described>,
}

/// The machine that a descriptor says its image is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Described {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// A manifest of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What a reference leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Image(Manifest),
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "schemaVersion")]
    schema: u64,
    #[serde(rename = "mediaType", default)]
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers")]
    old_layers: Option<serde::de::IgnoredAny>,
}

/// Some tools write `null` for an empty map or list.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Reads an index or a manifest. What it is is told by the document itself, never by what the registry says of it: two
/// readings of one digest must not differ.
pub(crate) fn document(bytes: &[u8]) -> Result<Document, ManifestError> {
    let wire: Wire = serde_json::from_slice(bytes).map_err(|cause| ManifestError::Json { what: "manifest", cause })?;
    if wire.schema != 2 {
        return Err(ManifestError::Kind(format!("schema {}", wire.schema)));
    }
    let kind = wire.media_type.as_deref();
    match (wire.manifests, wire.config, wire.layers) {
        (Some(_), config, layers) if config.is_some() || layers.is_some() || wire.old_layers.is_some() => {
            Err(ManifestError::Ambiguous)
        }
        (Some(manifests), ..) => match kind {
            None | Some(OCI_INDEX | DOCKER_INDEX) => Ok(Document::Index(manifests)),
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => Err(ManifestError::Ambiguous),
            Some(other) => Err(ManifestError::Kind(other.to_owned())),
        },
        (None, Some(config), Some(layers)) => match kind {
            None | Some(OCI_MANIFEST | DOCKER_MANIFEST) => Ok(Document::Image(Manifest { config, layers })),
            Some(OCI_INDEX | DOCKER_INDEX) => Err(ManifestError::Ambiguous),
            Some(other) => Err(ManifestError::Kind(other.to_owned())),
        },
        _ => Err(ManifestError::Kind(kind.unwrap_or("neither index nor image").to_owned())),
    }
}

impl Manifest {
    /// Checks what can be checked before anything is downloaded.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), ManifestError> {
        match self.layers.len() {
            0 => return Err(ManifestError::Empty),
            found if found > limits.layers => return Err(ManifestError::Layers { found, limit: limits.layers }),
            _ => {}
        }
        if self.config.size > limits.document_bytes {
            let what = "the configuration".to_owned();
            return Err(ManifestError::Size { what, size: self.config.size, limit: limits.document_bytes });
        }
        for layer in &self.layers {
            if !LAYERS.contains(&layer.media_type.as_str()) {
                return Err(ManifestError::Layer { digest: layer.digest, kind: layer.media_type.clone() });
            }
            if layer.size > limits.blob_bytes {
                let what = format!("layer {}", layer.digest);
                return Err(ManifestError::Size { what, size: layer.size, limit: limits.blob_bytes });
            }
        }
        Ok(())
    }
}

/// The image of an index that is for this machine. One that names no platform is taken only when it is alone.
pub(crate) fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, ManifestError> {
    let fits = |descriptor: &&Descriptor| {
        descriptor.platform.as_ref().is_some_and(|it| it.os == "linux" && it.architecture == wanted.architecture)
    };
    let variant = |it: &Descriptor| it.platform.as_ref().and_then(|platform| platform.variant.clone());
    let same = manifests.iter().filter(fits).find(|it| variant(it) == wanted.variant);
    // Where no variant is asked for, the first one is what everybody else takes.
    let any = || manifests.iter().filter(fits).find(|_| wanted.variant.is_none());
    let only = || match manifests {
        [one] if one.platform.is_none() => Some(one),
        _ => None,
    };
    same.or_else(any).or_else(only).ok_or_else(|| {
        let names = manifests.iter().filter_map(|it| it.platform.as_ref());
        let mut names: Vec<String> = names
            .filter(|it| it.os != "unknown")
            .map(|it| format!("{}/{}", it.os, it.architecture).chars().take(40).collect())
            .take(20)
            .collect();
        names.sort_unstable();
        names.dedup();
        let found = if names.is_empty() { "nothing that is named".to_owned() } else { names.join(", ") };
        ManifestError::Platform { wanted: wanted.to_string(), found }
    })
}

/// How the image's author meant it to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Variables, in the image's order.
    pub env: Vec<(String, String)>,
    /// The program and its first arguments; empty when there is none.
    pub entrypoint: Vec<String>,
    /// What follows the entrypoint unless something else is asked for.
    pub cmd: Vec<String>,
    /// The directory to begin in; always absolute.
    pub working_dir: Option<String>,
    /// `user[:group]`, names or numbers; None is root.
    pub user: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A configuration and the layers that it names, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Configuration {
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct WireConfiguration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, deserialize_with = "nullable")]
    config: WireConfig,
    rootfs: WireLayers,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireConfig {
    #[serde(rename = "Env", deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(rename = "Entrypoint", deserialize_with = "nullable")]
    entrypoint: Vec<String>,
    #[serde(rename = "Cmd", deserialize_with = "nullable")]
    cmd: Vec<String>,
    #[serde(rename = "WorkingDir", deserialize_with = "nullable")]
    working_dir: String,
    #[serde(rename = "User", deserialize_with = "nullable")]
    user: String,
    #[serde(rename = "Labels", deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct WireLayers {
    #[serde(default, deserialize_with = "nullable")]
    diff_ids: Vec<Digest>,
}

/// Reads an image's configuration and checks that it is for this machine and has as many layers as the manifest.
pub(crate) fn configuration(bytes: &[u8], wanted: &Platform, layers: usize) -> Result<Configuration, ManifestError> {
    let wire: WireConfiguration =
        serde_json::from_slice(bytes).map_err(|cause| ManifestError::Json { what: "configuration", cause })?;
    // Images from scratch may leave both out.
    let fits = |given: &str, wanted: &str| given.is_empty() || given == wanted;
    if !fits(&wire.os, "linux") || !fits(&wire.architecture, &wanted.architecture) {
        let found = format!("{}/{}", wire.os, wire.architecture).chars().take(40).collect();
        return Err(ManifestError::Platform { wanted: wanted.to_string(), found });
    }
    let diff_ids = wire.rootfs.diff_ids;
    if diff_ids.len() != layers {
        return Err(ManifestError::Mismatch { layers, diff_ids: diff_ids.len() });
    }
    let refuse = |field| Err(ManifestError::Config { field });
    let WireConfig { env, entrypoint, cmd, working_dir, user, labels } = wire.config;
    let mut pairs = Vec::with_capacity(env.len());
    for variable in env {
        let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
        if name.is_empty() || variable.contains('\0') {
            return refuse("Env");
        }
        pairs.push((name.to_owned(), value.to_owned()));
    }
    for (field, values) in [("Entrypoint", &entrypoint), ("Cmd", &cmd)] {
        if values.iter().any(|value| value.contains('\0')) {
            return refuse(field);
        }
    }
    if working_dir.contains('\0') {
        return refuse("WorkingDir");
    }
    if user.contains('\0') {
        return refuse("User");
    }
    let absolute = |path: String| if path.starts_with('/') { path } else { format!("/{path}") };
    let config = ImageConfig {
        env: pairs,
        entrypoint,
        cmd,
        working_dir: (!working_dir.is_empty()).then(|| absolute(working_dir)),
        user: (!user.is_empty()).then_some(user),
        labels,
    };
    Ok(Configuration { config, diff_ids })
}

/// Writes a manifest for an image that came without one. The same image gets the same bytes, and so the same digest.
pub(crate) fn write(manifest: &Manifest) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Written<'a> {
        schema_version: u64,
        media_type: &'a str,
        config: &'a Descriptor,
        layers: &'a [Descriptor],
    }
    let written =
        Written { schema_version: 2, media_type: OCI_MANIFEST, config: &manifest.config, layers: &manifest.layers };
    serde_json::to_vec(&written).expect("strings and numbers can be written as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(architecture: &str, variant: Option<&str>) -> serde_json::Value {
        json!({
            "mediaType": OCI_MANIFEST, "size": 1, "digest": Digest::of(architecture.as_bytes()),
            "platform": {"os": "linux", "architecture": architecture, "variant": variant},
        })
    }

    #[test]
    fn an_index_gives_the_image_of_the_machine() {
        let index = json!({"schemaVersion": 2, "manifests": [
            descriptor("arm64", Some("v8")), descriptor("amd64", None), descriptor("arm64", Some("v9")),
        ]});
        let Document::Index(manifests) = document(index.to_string().as_bytes()).unwrap() else { panic!("no index") };
        let machine = |architecture: &str, variant: Option<&str>| Platform {
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        };
        let choose = |wanted| choose(&manifests, &wanted).map(|it| it.platform.clone().unwrap().variant);
        assert_eq!(choose(machine("amd64", None)).unwrap(), None);
        assert_eq!(choose(machine("arm64", None)).unwrap().as_deref(), Some("v8"));
        assert_eq!(choose(machine("arm64", Some("v9"))).unwrap().as_deref(), Some("v9"));
        let error = choose(machine("riscv64", None)).unwrap_err().to_string();
        assert!(error.contains("linux/amd64, linux/arm64"), "{error}");
    }

    #[test]
    fn a_document_with_two_readings_is_refused() {
        let config = descriptor("amd64", None);
        for ambiguous in [
            json!({"schemaVersion": 2, "manifests": [], "layers": [], "config": config}),
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": []}),
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "layers": [], "config": config}),
        ] {
            let result = document(ambiguous.to_string().as_bytes());
            assert!(matches!(result, Err(ManifestError::Ambiguous)), "{ambiguous}");
        }
        for unsupported in [json!({"schemaVersion": 1, "fsLayers": []}), json!({"schemaVersion": 2})] {
            let result = document(unsupported.to_string().as_bytes());
            assert!(matches!(result, Err(ManifestError::Kind(_))), "{unsupported}");
        }
    }

    #[test]
    fn layers_that_cannot_be_unpacked_are_refused_before_the_download() {
        let layer = |kind: &str, size: u64| Descriptor {
            media_type: kind.into(),
            digest: Digest::of(b""),
            size,
            annotations: BTreeMap::new(),
            platform: None,
        };
        let check = |layers: Vec<Descriptor>| {
            let limits = Limits { layers: 2, ..Limits::default() };
            Manifest { config: layer(OCI_CONFIG, 1), layers }.check(&limits)
        };
        assert!(check(vec![layer(OCI_LAYER, 1)]).is_ok());
        assert!(matches!(check(vec![]), Err(ManifestError::Empty)));
        assert!(matches!(check(vec![layer(OCI_LAYER, 1); 3]), Err(ManifestError::Layers { .. })));
        assert!(matches!(check(vec![layer(OCI_LAYER, u64::MAX)]), Err(ManifestError::Size { .. })));
        for kind in ["", "application/vnd.oci.image.layer.nondistributable.v1.tar", "text/html"] {
            assert!(matches!(check(vec![layer(kind, 1)]), Err(ManifestError::Layer { .. })), "{kind}");
        }
    }

    #[test]
    fn a_configuration_is_handed_out_typed() {
        let machine = Platform { architecture: "amd64".into(), variant: None };
        let bytes = json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"a")]},
            "config": {"Env": ["PATH=/bin", "A=b=c", "EMPTY"], "Entrypoint": null, "Cmd": ["sh"], "WorkingDir": "app",
                       "User": "1000:1000", "Labels": {"a": "b"}},
        });
        let read = configuration(bytes.to_string().as_bytes(), &machine, 1).unwrap();
        assert_eq!(read.config.env[1], ("A".into(), "b=c".into()));
        assert_eq!(read.config.env[2], ("EMPTY".into(), String::new()));
        assert_eq!(read.config.working_dir.as_deref(), Some("/app"));
        assert_eq!(read.config.entrypoint, Vec::<String>::new());
        let refuse = |field: &str, value: serde_json::Value| {
            let mut bytes = bytes.clone();
            bytes["config"][field] = value;
            configuration(bytes.to_string().as_bytes(), &machine, 1)
        };
        assert!(matches!(refuse("Env", json!(["=x"])), Err(ManifestError::Config { .. })));
        assert!(matches!(refuse("Cmd", json!(["\0"])), Err(ManifestError::Config { .. })));
        assert!(matches!(refuse("User", json!(7)), Err(ManifestError::Json { .. })));
        let other = Platform { architecture: "arm64".into(), variant: None };
        assert!(matches!(configuration(bytes.to_string().as_bytes(), &other, 1), Err(ManifestError::Platform { .. })));
        assert!(matches!(
            configuration(bytes.to_string().as_bytes(), &machine, 2),
            Err(ManifestError::Mismatch { .. })
        ));
    }
}
