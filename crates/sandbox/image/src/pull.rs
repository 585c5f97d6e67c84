//! A pull: from a reference to an image in the store.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt as _, TryStreamExt as _};
use palisade_api::Timestamp;

use crate::auth::CredentialSources;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::{self, FORM, Image, ImageRecord, LayerRecord};
use crate::layout::Layout;
use crate::manifest::{self, Descriptor, Document, Manifest, ManifestError};
use crate::policy::{Limits, Policy};
use crate::reference::{LocalReference, Reference};
use crate::registry::Registry;
use crate::source::Source;
use crate::store::{self, Lock, Scratch, Store};
use crate::unpack::{self, Ownership};

/// Layers that are downloaded and unpacked at once.
const AT_ONCE: usize = 3;
/// Indexes on the way from a reference to an image.
const NESTING: usize = 3;

/// What a pull gave.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// The reference that a run may use: the same image, by its digest.
    pub pinned: Reference,
    /// Layers that were not there before.
    pub new_layers: usize,
    /// What the reference meant before, if that was another image.
    pub moved_from: Option<Digest>,
}

/// A layer that is there and stays while the lock lives.
struct Ready {
    diff_id: Digest,
    record: LayerRecord,
    new: bool,
    _lock: Lock,
}

impl Store {
    /// Gets an image from its registry, layout or archive into the store, and notes what the reference means at `now`.
    /// What is there already is not asked for again.
    ///
    /// # Errors
    /// When the policy refuses it, or a step fails; then the store is as it was, apart from whole layers.
    pub async fn pull(
        &self,
        reference: &Reference,
        policy: &Policy,
        credentials: &CredentialSources,
        now: Timestamp,
    ) -> Result<Pulled, Error> {
        policy.check_origin(reference)?;
        if let Some(image) = self.complete(reference, policy)? {
            return Ok(Pulled { image, pinned: reference.clone(), new_layers: 0, moved_from: None });
        }
        let store = self.clone();
        let scratch = tokio::task::spawn_blocking(move || store.scratch()).await.map_err(Error::interrupted)??;
        let source = self.source(reference, policy, credentials, &scratch).await?;
        let (top, top_bytes) = source.top().await?;
        let mut documents = vec![(top, top_bytes)];
        let manifest = self.manifest(&source, &mut documents, policy).await?;
        let manifest_digest = documents.last().expect("the top is one").0;
        let mut names = vec![top, manifest_digest];
        names.dedup();
        let signer = source.signer(&names, policy).await?;
        let config_bytes = source.small(&manifest.config, policy).await?;
        let configuration = manifest::configuration(&config_bytes, &policy.platform, manifest.layers.len())?;
        let config_digest = manifest.config.digest;
        documents.push((config_digest, config_bytes));

        let ready = self.layers(&source, &manifest, &configuration.diff_ids, policy).await?;
        let find = |diff_id: &Digest| {
            ready.iter().find(|ready| ready.diff_id == *diff_id).expect("every layer of the image was made ready")
        };
        let stack: Vec<_> = configuration.diff_ids.iter().map(|it| (*it, find(it).record.summary.opaque)).collect();
        let flattened = ready.iter().any(|ready| ready.record.ownership == Ownership::Flattened);
        let record = ImageRecord {
            form: FORM,
            digest: top,
            manifest: manifest_digest,
            config_digest,
            reference: reference.to_string(),
            pulled_at: now,
            platform: policy.platform.to_string(),
            ownership: if flattened { Ownership::Flattened } else { Ownership::Kept },
            signed_by: signer.map(crate::PublicKey::name).into_iter().collect(),
            stack: image::stack(&stack),
            layers: configuration.diff_ids,
            bytes: ready.iter().map(|ready| ready.record.summary.bytes).sum(),
            entries: ready.iter().map(|ready| ready.record.summary.entries).sum(),
            notes: ready.iter().flat_map(|ready| ready.record.summary.notes.iter().cloned()).collect(),
            config: configuration.config,
        };
        let new_layers = ready.iter().filter(|ready| ready.new).count();
        let pinned = reference.with_digest(top);
        let (store, reference) = (self.clone(), reference.clone());
        let commit = move || {
            // The layers are held until the record names them.
            let _ready = ready;
            store.commit(&scratch, record, &documents, &reference, now)
        };
        let (image, moved_from) = tokio::task::spawn_blocking(commit).await.map_err(Error::interrupted)??;
        Ok(Pulled { image, pinned, new_layers, moved_from })
    }

    /// Gets the image at a path: an OCI layout, or an archive of one or of `docker save`, told by what is in it.
    ///
    /// # Errors
    /// As [`Store::pull`].
    pub async fn import(&self, path: PathBuf, policy: &Policy, now: Timestamp) -> Result<Pulled, Error> {
        let limits = policy.limits.clone();
        let told = path.clone();
        let format = tokio::task::spawn_blocking(move || Layout::format(&told, &limits)).await;
        let format = format
            .map_err(Error::interrupted)?
            .map_err(|cause| crate::LayoutError::Read { path: path.clone(), cause })?;
        let reference = Reference::Local(LocalReference::of_path(&path, format));
        self.pull(&reference, policy, &CredentialSources::none(), now).await
    }

    /// The image that a digest names, if the store has all of it and nothing else is to be found out.
    fn complete(&self, reference: &Reference, policy: &Policy) -> Result<Option<Image>, Error> {
        let Some(digest) = reference.digest() else { return Ok(None) };
        let image = self.image(digest)?;
        let known = image.is_some();
        let whole = |image: &Image| {
            let layers = image.record().layers.iter().all(|layer| self.layer_path(*layer).is_dir());
            layers && image.platform() == policy.platform.to_string() && image.is_signed_as(policy)
        };
        match (image.filter(whole), reference) {
            // A digest alone says nothing of where the rest of it is.
            (None, Reference::Stored(_)) if known => {
                Err(Error::Damaged { image: digest, what: "a layer, or a signature by a required key,".to_owned() })
            }
            (None, Reference::Stored(_)) => Err(Error::Absent { reference: reference.to_string() }),
            (image, _) => Ok(image),
        }
    }

    async fn source(
        &self,
        reference: &Reference,
        policy: &Policy,
        credentials: &CredentialSources,
        scratch: &Scratch,
    ) -> Result<Source, Error> {
        match reference {
            Reference::Registry(named) => {
                let credential = credentials.find(named).await?;
                Ok(Source::Registry(Box::new(Registry::new(named, credential, policy)?), named.clone()))
            }
            Reference::Local(local) => {
                let (local, limits) = (local.clone(), policy.limits.clone());
                let file = scratch.path().join("archive");
                let opened = tokio::task::spawn_blocking(move || {
                    let layout = Layout::open(&local, || new_file(&file), &limits)?;
                    Ok(Source::Local(Arc::new(layout), local))
                });
                opened.await.map_err(Error::interrupted)?
            }
            Reference::Stored(digest) => Err(Error::Absent { reference: digest.to_string() }),
        }
    }

    /// The manifest for this machine; all documents on the way are added.
    async fn manifest(
        &self,
        source: &Source,
        documents: &mut Vec<(Digest, Vec<u8>)>,
        policy: &Policy,
    ) -> Result<Manifest, Error> {
        for _ in 0..NESTING {
            let (_, bytes) = documents.last().expect("the top is one");
            match manifest::document(bytes)? {
                Document::Image(manifest) => {
                    manifest.check(&policy.limits)?;
                    return Ok(manifest);
                }
                Document::Index(entries) => {
                    let chosen = manifest::choose(&entries, &policy.platform)?;
                    documents.push((chosen.digest, source.document(chosen, policy).await?));
                }
            }
        }
        Err(ManifestError::Nesting.into())
    }

    /// Has all layers in the store, each once.
    async fn layers(
        &self,
        source: &Source,
        manifest: &Manifest,
        diff_ids: &[Digest],
        policy: &Policy,
    ) -> Result<Vec<Ready>, Error> {
        let mut seen = BTreeSet::new();
        let total = AtomicU64::new(0);
        let wanted = diff_ids.iter().zip(&manifest.layers).filter(|(diff_id, _)| seen.insert(**diff_id));
        let work: Vec<_> = wanted
            .map(|(diff_id, descriptor)| async {
                let ready = self.ready(source, descriptor, *diff_id, &policy.limits).await?;
                let bytes = ready.record.summary.bytes;
                let limit = policy.limits.image_bytes;
                if total.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > limit {
                    return Err(Error::Size { limit });
                }
                Ok(ready)
            })
            .collect();
        futures::stream::iter(work).buffered(AT_ONCE).try_collect().await
    }

    /// Has one layer in the store. Whoever wants the same layer meanwhile waits, in this process and others.
    async fn ready(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        diff_id: Digest,
        limits: &Limits,
    ) -> Result<Ready, Error> {
        let store = self.clone();
        let claim = move || {
            let making = store.lock_layer(diff_id)?;
            if let Some(ready) = store.present(diff_id, false, &store.lock()?)? {
                return Ok((making, Some(ready), None));
            }
            Ok((making, None, Some(store.scratch()?)))
        };
        let claimed: Result<_, Error> = tokio::task::spawn_blocking(claim).await.map_err(Error::interrupted)?;
        let (making, ready, scratch) = claimed?;
        if let Some(ready) = ready {
            return Ok(ready);
        }
        let scratch = scratch.expect("there is one when the layer is not there");
        let blob = scratch.path().join("blob");
        let file = new_file(&blob).map_err(Error::store("making a file", &blob))?;
        source.blob(descriptor, file).await?;
        let (store, limits, layer) = (self.clone(), limits.clone(), descriptor.digest);
        let work = move || {
            let _making = making;
            store.unpack(&scratch, diff_id, layer, &limits)
        };
        tokio::task::spawn_blocking(work).await.map_err(Error::interrupted)?
    }

    /// A layer that is there, kept from being pruned; `_lock` is the store's.
    fn present(&self, diff_id: Digest, new: bool, _lock: &Lock) -> Result<Option<Ready>, Error> {
        let Some(kept) = self.keep_layer(diff_id)? else { return Ok(None) };
        let damaged = || Error::Damaged { image: diff_id, what: "the layer's record".to_owned() };
        let record = self.layer(diff_id)?.ok_or_else(damaged)?;
        Ok(Some(Ready { diff_id, record, new, _lock: kept }))
    }

    /// Unpacks the blob in `scratch` and moves the layer to its place.
    fn unpack(&self, scratch: &Scratch, diff_id: Digest, layer: Digest, limits: &Limits) -> Result<Ready, Error> {
        let making = scratch.path().join("layer");
        let root = image::root(&making);
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&root)
            .map_err(Error::store("making a directory", &root))?;
        let blob = scratch.path().join("blob");
        let file = File::open(&blob).map_err(Error::store("opening a blob", &blob))?;
        let ownership = self.ownership();
        let summary = unpack::unpack(file, &root, Some(diff_id), ownership, limits)
            .map_err(|cause| Error::Layer { layer, cause })?;
        fs::remove_file(&blob).map_err(Error::store("removing a blob", &blob))?;
        let record = LayerRecord { form: FORM, ownership, summary };
        self.write_json(scratch, &making.join("layer.json"), &record)?;
        // One call for a hundred thousand files.
        let synced = File::open(&making).and_then(|made| Ok(rustix::fs::syncfs(made)?));
        synced.map_err(Error::store("writing the layer to the disk", &making))?;
        // A prune may not come between the move and the lock.
        let lock = self.lock()?;
        let place = self.layer_path(diff_id);
        let moved = fs::rename(&making, &place).and_then(|()| store::sync_parent(&place));
        moved.map_err(Error::store("moving a layer to its place", &place))?;
        let damaged = || Error::Damaged { image: diff_id, what: "the layer".to_owned() };
        self.present(diff_id, true, &lock)?.ok_or_else(damaged)
    }

    /// Makes an image visible.
    fn commit(
        &self,
        scratch: &Scratch,
        mut record: ImageRecord,
        documents: &[(Digest, Vec<u8>)],
        reference: &Reference,
        now: Timestamp,
    ) -> Result<(Image, Option<Digest>), Error> {
        let _lock = self.lock()?;
        for (digest, bytes) in documents {
            let path = self.blob_path(*digest);
            if !path.is_file() {
                self.write(scratch, &path, bytes)?;
            }
        }
        let before = if reference.is_mutable() { self.pin(reference)?.map(|pin| pin.digest) } else { None };
        // What another key vouched for stays vouched for.
        if let Some(known) = self.image(record.digest)? {
            let known = known.record().signed_by.iter().filter(|key| !record.signed_by.contains(key)).copied();
            let known: Vec<Digest> = known.collect();
            record.signed_by.extend(known);
        }
        let digest = record.digest;
        self.write_json(scratch, &self.image_path(digest), &record)?;
        if reference.is_mutable() {
            self.set_pin(scratch, reference, digest, now)?;
        }
        Ok((Image::new(record, self.path("layers")), before.filter(|before| *before != digest)))
    }
}

fn new_file(path: &std::path::Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}
