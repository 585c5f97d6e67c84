//! Small images, made from nothing: as hostile as a test wants them.

use std::io::Write as _;
use std::path::Path;

use palisade_image::Digest;
use serde_json::{Value, json};
use tar::EntryType;

pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// One entry of an archive, written as it is.
pub(crate) struct Entry {
    path: Vec<u8>,
    kind: EntryType,
    data: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    link: Vec<u8>,
    pax: Vec<(String, Vec<u8>)>,
    size: Option<u64>,
}

pub(crate) fn entry(kind: EntryType, path: impl AsRef<[u8]>) -> Entry {
    let (path, owner) = (path.as_ref().to_vec(), (0, 0));
    Entry { path, kind, data: Vec::new(), mode: 0o755, owner, link: Vec::new(), pax: Vec::new(), size: None }
}

pub(crate) fn dir(path: &str) -> Entry {
    entry(EntryType::Directory, path)
}

pub(crate) fn file(path: &str, data: &str) -> Entry {
    Entry { data: data.as_bytes().to_vec(), mode: 0o644, ..entry(EntryType::Regular, path) }
}

pub(crate) fn symlink(path: &str, target: &str) -> Entry {
    Entry { link: target.as_bytes().to_vec(), ..entry(EntryType::Symlink, path) }
}

pub(crate) fn hard_link(path: &str, target: &str) -> Entry {
    Entry { link: target.as_bytes().to_vec(), ..entry(EntryType::Link, path) }
}

impl Entry {
    pub(crate) fn mode(self, mode: u32) -> Entry {
        Entry { mode, ..self }
    }

    pub(crate) fn owner(self, user: u64, group: u64) -> Entry {
        Entry { owner: (user, group), ..self }
    }

    pub(crate) fn pax(mut self, key: &str, value: &[u8]) -> Entry {
        self.pax.push((key.to_owned(), value.to_vec()));
        self
    }

    /// A size that the data does not have.
    pub(crate) fn claims(self, size: u64) -> Entry {
        Entry { size: Some(size), ..self }
    }
}

fn padded(archive: &mut Vec<u8>, data: &[u8]) {
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// An archive without its end mark.
pub(crate) fn tar_open(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries {
        let long = |kind: EntryType, text: &[u8], archive: &mut Vec<u8>| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(text.len() as u64 + 1);
            header.as_mut_bytes()[..3].copy_from_slice(b"../");
            header.set_cksum();
            archive.extend_from_slice(header.as_bytes());
            padded(archive, &[text, b"\0"].concat());
        };
        if !entry.pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &entry.pax {
                let rest = key.len() + value.len() + 3;
                let mut length = rest + 1;
                while length != rest + length.to_string().len() {
                    length = rest + length.to_string().len();
                }
                records.extend_from_slice(format!("{length} {key}=").as_bytes());
                records.extend_from_slice(value);
                records.push(b'\n');
            }
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_size(records.len() as u64);
            header.set_cksum();
            archive.extend_from_slice(header.as_bytes());
            padded(&mut archive, &records);
        }
        if entry.path.len() > 100 {
            long(EntryType::GNULongName, &entry.path, &mut archive);
        }
        if entry.link.len() > 100 {
            long(EntryType::GNULongLink, &entry.link, &mut archive);
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(entry.size.unwrap_or(entry.data.len() as u64));
        let path = &entry.path[..entry.path.len().min(100)];
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        let link = &entry.link[..entry.link.len().min(100)];
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        padded(&mut archive, &entry.data);
    }
    archive
}

pub(crate) fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut archive = tar_open(entries);
    archive.resize(archive.len() + 1024, 0);
    archive
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

/// A layer as it is stored, and the digest of its archive.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) media_type: &'static str,
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: Digest,
}

pub(crate) fn layer(entries: &[Entry]) -> Layer {
    let archive = tar(entries);
    Layer { media_type: GZIP, blob: gzip(&archive), diff_id: Digest::of(&archive) }
}

pub(crate) fn plain_layer(archive: Vec<u8>) -> Layer {
    Layer { media_type: TAR, diff_id: Digest::of(&archive), blob: archive }
}

/// An image whose documents can be changed before they are used.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) config: Value,
    pub(crate) layers: Vec<Layer>,
}

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn image(layers: Vec<Layer>) -> Image {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
    let config = json!({
        "architecture": architecture(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {"Env": ["PATH=/bin"], "Entrypoint": ["/bin/sh"], "Cmd": ["-l"], "WorkingDir": "/srv", "User": "app",
                   "Labels": {"made": "here"}},
    });
    Image { config, layers }
}

/// An image of one small layer whose content is its name.
pub(crate) fn named(name: &str) -> Image {
    image(vec![layer(&[dir("etc"), file("etc/name", name)])])
}

impl Image {
    pub(crate) fn config_bytes(&self) -> Vec<u8> {
        self.config.to_string().into_bytes()
    }

    pub(crate) fn manifest(&self) -> Value {
        let config = self.config_bytes();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|it| json!({"mediaType": it.media_type, "digest": Digest::of(&it.blob), "size": it.blob.len()}))
            .collect();
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config),
                       "size": config.len()},
        })
    }

    pub(crate) fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest().to_string().into_bytes()
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest_bytes())
    }

    pub(crate) fn blobs(&self) -> Vec<Vec<u8>> {
        self.layers.iter().map(|layer| layer.blob.clone()).chain([self.config_bytes()]).collect()
    }

    /// An index that leads to this image and to one that is for another machine.
    pub(crate) fn index(&self) -> Value {
        let bytes = self.manifest_bytes();
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": MANIFEST, "digest": Digest::of(b"other"), "size": 5,
             "platform": {"os": "linux", "architecture": "mips"}},
            {"mediaType": MANIFEST, "digest": Digest::of(&bytes), "size": bytes.len(),
             "platform": {"os": "linux", "architecture": architecture()}},
        ]})
    }

    /// Writes it as an OCI layout, in which it has a tag.
    pub(crate) fn layout(&self, dir: &Path, tag: &str) {
        layout(dir, &[(tag, self.manifest_bytes())], &self.blobs());
    }

    /// Writes it as `docker save` did for many years.
    pub(crate) fn docker_archive(&self, tag: &str) -> Vec<u8> {
        let config = self.config_bytes();
        let name = format!("{}.json", Digest::of(&config).to_string().trim_start_matches("sha256:"));
        let mut entries = vec![Entry { data: config, ..entry(EntryType::Regular, &name) }];
        let mut layers = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let path = format!("{number}/layer.tar");
            // The same layer a second time is a link to the first.
            match self.layers.iter().position(|it| it.blob == layer.blob) {
                Some(first) if first < number => {
                    entries.push(symlink(&path, &format!("../{first}/layer.tar")));
                }
                _ => entries.push(Entry { data: layer.blob.clone(), ..entry(EntryType::Regular, &path) }),
            }
            layers.push(path);
        }
        let manifest = json!([{"Config": name, "RepoTags": [tag], "Layers": layers}]).to_string();
        entries.push(file("manifest.json", &manifest));
        tar(&entries)
    }
}

/// Writes an OCI layout of tagged manifests and blobs.
pub(crate) fn layout(dir: &Path, manifests: &[(&str, Vec<u8>)], blobs: &[Vec<u8>]) {
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let name = |bytes: &[u8]| dir.join("blobs").join(Digest::of(bytes).to_string().replace(':', "/"));
    let mut entries = Vec::new();
    for (tag, bytes) in manifests {
        std::fs::write(name(bytes), bytes).unwrap();
        entries.push(json!({
            "mediaType": MANIFEST, "digest": Digest::of(bytes), "size": bytes.len(),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }));
    }
    for blob in blobs {
        std::fs::write(name(blob), blob).unwrap();
    }
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": entries}).to_string()).unwrap();
}

/// The files of a directory as one archive.
pub(crate) fn archived(dir: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", dir).unwrap();
    builder.into_inner().unwrap()
}
