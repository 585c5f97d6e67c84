//! Where an image comes from, behind one set of questions.

use std::fs::File;
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::Error;
use crate::layout::{self, Layout};
use crate::manifest::{self, Descriptor, Document};
use crate::policy::Policy;
use crate::reference::{LocalReference, RegistryReference};
use crate::registry::Registry;
use crate::signature::{self, PublicKey, SignatureError};

pub(crate) enum Source {
    Registry(Box<Registry>, RegistryReference),
    Local(Arc<Layout>, LocalReference),
}

impl Source {
    /// The index or manifest that the reference names, and its digest.
    pub(crate) async fn top(&self) -> Result<(Digest, Vec<u8>), Error> {
        match self {
            Source::Registry(registry, reference) => {
                let selector = reference.selector();
                let found = registry.manifest(&selector).await?;
                found.ok_or_else(|| {
                    let what = format!("{}:{selector}", reference.repository);
                    crate::RegistryError::Missing { registry: reference.registry.clone(), what }.into()
                })
            }
            Source::Local(layout, reference) => Ok(layout.top(reference)?),
        }
    }

    /// An index or manifest by its digest.
    pub(crate) async fn document(&self, descriptor: &Descriptor, policy: &Policy) -> Result<Vec<u8>, Error> {
        layout::document_limit("the manifest", descriptor, policy.limits.document_bytes)?;
        match self {
            Source::Registry(registry, reference) => {
                let digest = descriptor.digest;
                let found = registry.manifest(&digest.to_string()).await?;
                let (_, bytes) = found.ok_or_else(|| {
                    let what = format!("{}@{digest}", reference.repository);
                    crate::RegistryError::Missing { registry: reference.registry.clone(), what }
                })?;
                Ok(bytes)
            }
            Source::Local(layout, _) => Ok(layout.document(descriptor.digest)?),
        }
    }

    /// A small blob.
    pub(crate) async fn small(&self, descriptor: &Descriptor, policy: &Policy) -> Result<Vec<u8>, Error> {
        let limit = policy.limits.document_bytes;
        layout::document_limit("a document of the image", descriptor, limit)?;
        match self {
            Source::Registry(registry, _) => Ok(registry.small(descriptor, limit).await?),
            Source::Local(layout, _) => Ok(layout.small(descriptor.digest, limit)?),
        }
    }

    /// Writes a blob to an empty file, whole and with its digest checked, or fails.
    pub(crate) async fn blob(&self, descriptor: &Descriptor, mut file: File) -> Result<(), Error> {
        match self {
            Source::Registry(registry, _) => Ok(registry.blob(descriptor, file).await?),
            Source::Local(layout, _) => {
                let (layout, descriptor) = (layout.clone(), descriptor.clone());
                let copied = tokio::task::spawn_blocking(move || layout.blob(&descriptor, &mut file)).await;
                Ok(copied.map_err(Error::interrupted)??)
            }
        }
    }

    /// Which of the policy's keys signed the image; the digests are the names under which it may have been signed.
    pub(crate) async fn signer<'a>(
        &self,
        images: &[Digest],
        policy: &'a Policy,
    ) -> Result<Option<&'a PublicKey>, Error> {
        let keys = policy.require_signature.as_slice();
        if keys.is_empty() {
            return Ok(None);
        }
        let mut looked_at = 0;
        for image in images {
            let bytes = match self {
                Source::Registry(registry, _) => registry.manifest(&signature::tag(*image)).await?.map(|it| it.1),
                Source::Local(layout, _) => layout.signatures(*image)?,
            };
            let Some(bytes) = bytes else { continue };
            let Document::Image(manifest) = manifest::document(&bytes)? else { continue };
            for layer in manifest.layers.iter().take(signature::MOST) {
                let Some(signature) = layer.annotations.get(signature::ANNOTATION) else { continue };
                if layer.media_type != signature::STATEMENT {
                    continue;
                }
                looked_at += 1;
                let statement = self.small(layer, policy).await?;
                if let Some(key) = signature::signer(keys, *image, &statement, signature) {
                    return Ok(Some(key));
                }
            }
        }
        let image = images[0];
        Err(match looked_at {
            0 => SignatureError::Missing { image, tag: signature::tag(image) },
            found => SignatureError::Untrusted { image, found },
        }
        .into())
    }
}
