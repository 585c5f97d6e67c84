//! Signatures in cosign's form: who signed what, and what a policy makes of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use palisade_image::{Digest, Error, PolicyError, PublicKey, SignatureError};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::make::{Image, named};
use crate::registry::Registry;
use crate::rig::Rig;

struct Signer(EcdsaKeyPair);

/// What comes before the point in a P-256 key's DER form.
const PREFIX: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
const TYPE: &str = "cosign container image signature";

impl Signer {
    fn new() -> Signer {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        Signer(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap())
    }

    fn key(&self) -> PublicKey {
        let der = [PREFIX, self.0.public_key().as_ref()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der)).parse().unwrap()
    }

    /// A manifest of signatures, and its blobs: a statement about `image`, signed.
    fn sign(&self, image: Digest, kind: &str) -> (Value, Vec<Vec<u8>>) {
        let statement = json!({"critical": {
            "identity": {"docker-reference": "app"}, "image": {"docker-manifest-digest": image}, "type": kind,
        }, "optional": null});
        let statement = statement.to_string().into_bytes();
        let signature = self.0.sign(&SystemRandom::new(), &statement).unwrap();
        let manifest = manifest(&statement, &STANDARD.encode(signature));
        (manifest, vec![statement, b"{}".to_vec()])
    }
}

fn manifest(statement: &[u8], signature: &str) -> Value {
    json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"{}"), "size": 2},
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "size": statement.len(),
            "digest": Digest::of(statement), "annotations": {"dev.cosignproject.cosign/signature": signature},
        }],
    })
}

fn tag(image: Digest) -> String {
    format!("{}.sig", image.to_string().replace(':', "-"))
}

fn push(registry: &Registry, image: Digest, signatures: &(Value, Vec<Vec<u8>>)) {
    let mut state = registry.state.lock().unwrap();
    state.manifests.insert(format!("app:{}", tag(image)), signatures.0.to_string().into_bytes());
    for blob in &signatures.1 {
        state.blobs.insert(Digest::of(blob).to_string(), blob.clone());
    }
}

async fn pull(rig: &Rig, registry: &Registry) -> Result<Digest, Error> {
    rig.pull(&registry.reference("app:v1")).await.map(|pulled| pulled.image.digest())
}

#[tokio::test]
async fn only_images_that_a_required_key_signed_come_in() {
    let (mut rig, registry) = (Rig::new(), Registry::start().await);
    let (ours, theirs) = (Signer::new(), Signer::new());
    let image = named("a");
    registry.push("app:v1", &image);
    rig.policy.require_signature = vec![ours.key()];
    let digest = image.digest();

    let missing = pull(&rig, &registry).await;
    assert!(matches!(missing, Err(Error::Signature(SignatureError::Missing { .. }))), "{missing:?}");
    let other = Digest::of(b"another image");
    let untrusted = [
        theirs.sign(digest, TYPE),
        ours.sign(other, TYPE),
        ours.sign(digest, "something else"),
        // A good signature of another statement.
        {
            let (signed, _) = ours.sign(other, TYPE);
            let signature = signed["layers"][0]["annotations"].as_object().unwrap().values().next().unwrap().clone();
            let (_, blobs) = ours.sign(digest, TYPE);
            (manifest(&blobs[0], signature.as_str().unwrap()), blobs)
        },
        (manifest(b"{}", "not base64!"), vec![b"{}".to_vec()]),
    ];
    for signatures in untrusted {
        push(&registry, digest, &signatures);
        let result = pull(&rig, &registry).await;
        assert!(matches!(result, Err(Error::Signature(SignatureError::Untrusted { .. }))), "{result:?}");
    }
    rig.assert_nothing_made();

    push(&registry, digest, &ours.sign(digest, TYPE));
    assert_eq!(pull(&rig, &registry).await.unwrap(), digest);
    let fixed = registry.reference(&format!("app@{digest}")).parse().unwrap();
    assert!(rig.store().resolve(&fixed, &rig.policy).is_ok());
    rig.policy.require_signature = vec![theirs.key(), ours.key()];
    assert!(rig.store().resolve(&fixed, &rig.policy).is_ok());
    // Another key is required than the one that is on record.
    rig.policy.require_signature = vec![theirs.key()];
    let refused = rig.store().resolve(&fixed, &rig.policy);
    assert!(matches!(refused, Err(Error::Policy(PolicyError::Unsigned { .. }))), "{refused:?}");
}

#[tokio::test]
async fn an_index_that_is_signed_vouches_for_its_image() {
    let (mut rig, registry) = (Rig::new(), Registry::start().await);
    let (signer, image) = (Signer::new(), named("a"));
    registry.push("app:direct", &image);
    let index = image.index().to_string().into_bytes();
    registry.state.lock().unwrap().manifests.insert("app:v1".into(), index.clone());
    rig.policy.require_signature = vec![signer.key()];
    push(&registry, Digest::of(&index), &signer.sign(Digest::of(&index), TYPE));
    pull(&rig, &registry).await.unwrap();
}

fn layout(rig: &Rig, image: &Image, signatures: Option<&(Value, Vec<Vec<u8>>)>) -> String {
    let dir = rig.path("layout");
    let mut blobs = image.blobs();
    let tag = tag(image.digest());
    let mut manifests = vec![("v1", image.manifest_bytes())];
    if let Some((manifest, more)) = signatures {
        manifests.push((&tag, manifest.to_string().into_bytes()));
        blobs.extend(more.iter().cloned());
    }
    crate::make::layout(&dir, &manifests, &blobs);
    format!("oci:{}", dir.display())
}

#[tokio::test]
async fn a_layout_carries_its_signatures() {
    let mut rig = Rig::new();
    let (signer, image) = (Signer::new(), named("a"));
    rig.policy.require_signature = vec![signer.key()];
    let unsigned = rig.pull(&layout(&rig, &image, None)).await;
    assert!(matches!(unsigned, Err(Error::Signature(SignatureError::Missing { .. }))), "{unsigned:?}");
    let signed = layout(&rig, &image, Some(&signer.sign(image.digest(), TYPE)));
    let pulled = rig.pull(&signed).await.unwrap();
    assert_eq!(pulled.image.signed_by().len(), 1);
    std::fs::write(rig.path("docker.tar"), image.docker_archive("app:v1")).unwrap();
    let saved = rig.pull(&format!("docker-archive:{}", rig.path("docker.tar").display())).await;
    assert!(matches!(saved, Err(Error::Signature(SignatureError::Missing { .. }))), "{saved:?}");
}

#[tokio::test]
async fn an_image_that_came_unsigned_is_checked_when_a_key_is_required() {
    let (mut rig, registry) = (Rig::new(), Registry::start().await);
    let (signer, image) = (Signer::new(), named("a"));
    registry.push("app:v1", &image);
    let digest = pull(&rig, &registry).await.unwrap();
    rig.policy.require_signature = vec![signer.key()];
    let fixed = registry.reference(&format!("app@{digest}"));
    assert!(rig.store().resolve(&fixed.parse().unwrap(), &rig.policy).is_err());
    assert!(rig.pull(&fixed).await.is_err(), "what is there is not enough");
    push(&registry, digest, &signer.sign(digest, TYPE));
    rig.pull(&fixed).await.unwrap();
    assert!(rig.store().resolve(&fixed.parse().unwrap(), &rig.policy).is_ok());
}
