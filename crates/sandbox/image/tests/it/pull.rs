//! Pulls from a registry: what is asked, what is believed, and what a run may then name.

use palisade_image::{
    CredentialSources, Digest, Error, ManifestError, PolicyError, Reference, Registries, RegistryError,
};

use crate::make::{file, image, named, plain_layer, tar};
use crate::registry::{Access, Registry};
use crate::rig::{Rig, at};

fn big() -> crate::make::Image {
    // Random enough to be as long as it is after compression.
    let text: String =
        (0..200_000_u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)).collect();
    image(vec![plain_layer(tar(&[file("big", &text)]))])
}

#[tokio::test]
async fn a_tag_is_pulled_and_a_run_names_its_digest() {
    let (rig, registry) = (Rig::new(), Registry::start().await);
    let (first, second) = (named("first"), named("second"));
    registry.push("app:v1", &first);
    let reference: Reference = registry.reference("app:v1").parse().unwrap();
    let store = rig.store();
    assert!(matches!(store.resolve(&reference, &rig.policy), Err(Error::Policy(PolicyError::Mutable { .. }))));

    let pulled = rig.pull(&reference.to_string()).await.unwrap();
    assert_eq!((pulled.image.digest(), pulled.new_layers, pulled.moved_from), (first.digest(), 1, None));
    assert!(!registry.requests().is_empty());

    // A run with the tag is told what to name, and that works without the registry.
    let asked = registry.requests().len();
    let refusal = store.resolve(&reference, &rig.policy).unwrap_err().to_string();
    let fixed = registry.reference(&format!("app@{}", first.digest()));
    assert!(refusal.contains(&fixed), "{refusal}");
    assert_eq!(store.resolve(&fixed.parse().unwrap(), &rig.policy).unwrap(), pulled.image);
    assert_eq!(store.resolve(&first.digest().to_string().parse().unwrap(), &rig.policy).unwrap(), pulled.image);
    let unknown = registry.reference(&format!("app@{}", second.digest())).parse().unwrap();
    assert!(matches!(store.resolve(&unknown, &rig.policy), Err(Error::Absent { .. })));
    let mut lax = rig.policy.clone();
    lax.allow_mutable = true;
    assert_eq!(store.resolve(&reference, &lax).unwrap(), pulled.image);

    // The tag moves: nothing changes until it is pulled again.
    registry.push("app:v1", &second);
    assert_eq!(store.resolve(&reference, &lax).unwrap().digest(), first.digest());
    assert_eq!(registry.requests().len(), asked, "a run asks no registry");
    let moved = rig.pull(&reference.to_string()).await.unwrap();
    assert_eq!((moved.image.digest(), moved.moved_from), (second.digest(), Some(first.digest())));
    assert_eq!(store.resolve(&reference, &lax).unwrap().digest(), second.digest());
    assert_eq!(store.resolve(&fixed.parse().unwrap(), &rig.policy).unwrap().digest(), first.digest());
}

#[tokio::test]
async fn what_is_there_is_not_asked_for_again() {
    let (rig, registry) = (Rig::new(), Registry::start().await);
    registry.push("app:v1", &named("a"));
    let pulled = rig.pull(&registry.reference("app:v1")).await.unwrap();
    let count = |requests: &[String]| requests.iter().filter(|it| it.contains("/blobs/")).count();
    let before = count(&registry.requests());
    assert_eq!(rig.pull(&registry.reference("app:v1")).await.unwrap().new_layers, 0);
    assert_eq!(count(&registry.requests()), before + 1, "only the configuration");
    let asked = registry.requests().len();
    let fixed = registry.reference(&format!("app@{}", pulled.image.digest()));
    assert_eq!(rig.pull(&fixed).await.unwrap().image, pulled.image);
    assert_eq!(registry.requests().len(), asked);
}

#[tokio::test]
async fn an_index_leads_to_the_image_of_this_machine() {
    let (rig, registry) = (Rig::new(), Registry::start().await);
    let image = named("a");
    registry.push("app:direct", &image);
    let index = image.index().to_string().into_bytes();
    registry.state.lock().unwrap().manifests.insert("app:multi".into(), index.clone());
    let pulled = rig.pull(&registry.reference("app:multi")).await.unwrap();
    assert_eq!(pulled.image.digest(), Digest::of(&index));
    assert_eq!(pulled.image.manifest(), image.digest());
    let mut other = rig.policy.clone();
    other.platform.architecture = "riscv64".into();
    let reference = registry.reference("app:multi").parse().unwrap();
    let result = rig.store().pull(&reference, &other, &CredentialSources::none(), at(1)).await;
    assert!(matches!(result, Err(Error::Manifest(ManifestError::Platform { .. }))));

    let nested = |inner: &[u8]| {
        let bytes = serde_json::json!({"schemaVersion": 2, "manifests": [
            {"mediaType": crate::make::INDEX, "digest": Digest::of(inner), "size": inner.len(),
             "platform": {"os": "linux", "architecture": crate::make::architecture()}}]});
        bytes.to_string().into_bytes()
    };
    let mut top = index;
    for _ in 0..3 {
        let outer = nested(&top);
        registry.state.lock().unwrap().manifests.insert(format!("app@{}", Digest::of(&top)), top);
        top = outer;
    }
    registry.state.lock().unwrap().manifests.insert("app:deep".into(), top);
    let deep = rig.pull(&registry.reference("app:deep")).await;
    assert!(matches!(deep, Err(Error::Manifest(ManifestError::Nesting))), "{deep:?}");
}

#[tokio::test]
async fn registries_that_are_not_allowed_are_not_asked() {
    let (mut rig, registry) = (Rig::new(), Registry::start().await);
    registry.push("app:v1", &named("a"));
    for allowed in [vec![], vec!["ghcr.io"], vec!["127.0.0.1"]] {
        let patterns = allowed.iter().map(|pattern: &&str| pattern.parse().unwrap()).collect();
        rig.policy.registries = Registries::Only(patterns);
        let result = rig.pull(&registry.reference("app:v1")).await;
        assert!(matches!(result, Err(Error::Policy(PolicyError::Registry { .. }))));
    }
    assert_eq!(registry.requests(), Vec::<String>::new());
    rig.policy.registries = Registries::Only(vec![registry.reference("app").parse().unwrap()]);
    let pulled = rig.pull(&registry.reference("app:v1")).await.unwrap();
    // Also what was pulled is not run once its registry is not allowed.
    rig.policy.registries = Registries::default();
    let fixed = registry.reference(&format!("app@{}", pulled.image.digest())).parse().unwrap();
    assert!(matches!(rig.store().resolve(&fixed, &rig.policy), Err(Error::Policy(PolicyError::Registry { .. }))));
}

#[tokio::test]
async fn tokens_and_passwords_open_registries() {
    let registry = Registry::start().await;
    registry.push("app:v1", &named("a"));
    let reference: Reference = registry.reference("app:v1").parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    let auths = serde_json::json!({"auths": {registry.address.to_string(): {"auth": "dXNlcjpzZWNyZXQ="}}});
    std::fs::write(&file, auths.to_string()).unwrap();
    let known = CredentialSources::usual(|name| (name == "REGISTRY_AUTH_FILE").then(|| file.clone().into()));
    for (access, short, anonymous) in [
        (Access::Open, false, true),
        (Access::Token, false, true),
        (Access::Token, true, true),
        (Access::TokenForUser, false, false),
        (Access::Basic, false, false),
    ] {
        {
            let mut state = registry.state.lock().unwrap();
            (state.access, state.short_tokens) = (access, short);
        }
        let (rig, other) = (Rig::new(), Rig::new());
        let pulled = rig.store().pull(&reference, &rig.policy, &known, at(1)).await;
        assert!(pulled.is_ok(), "{access:?}: {pulled:?}");
        let result = other.store().pull(&reference, &other.policy, &CredentialSources::none(), at(1)).await;
        match result {
            Ok(_) => assert!(anonymous, "{access:?}"),
            Err(error) => {
                assert!(matches!(error, Error::Registry(RegistryError::Denied { .. })), "{access:?}: {error}");
                assert!(!anonymous, "{access:?}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn a_password_is_not_sent_to_a_foreign_token_service() {
    let (rig, registry, thief) = (Rig::new(), Registry::start().await, Registry::start().await);
    registry.push("app:v1", &named("a"));
    {
        let mut state = registry.state.lock().unwrap();
        state.access = Access::TokenForUser;
        state.realm = Some(format!("http://localhost:{}/token", thief.address.port()));
    }
    let auths = serde_json::json!({"auths": {registry.address.to_string(): {"auth": "dXNlcjpzZWNyZXQ="}}}).to_string();
    let known = CredentialSources::usual(|name| (name == "DOCKER_AUTH_CONFIG").then(|| auths.clone().into()));
    let reference = registry.reference("app:v1").parse().unwrap();
    let error = rig.store().pull(&reference, &rig.policy, &known, at(1)).await.unwrap_err();
    assert!(matches!(error, Error::Registry(RegistryError::Challenge { .. })), "{error}");
    assert!(!error.to_string().contains("secret"));
    assert_eq!(thief.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn tokens_do_not_follow_redirections() {
    let (rig, registry, storage) = (Rig::new(), Registry::start().await, Registry::start().await);
    let image = named("a");
    registry.push("app:v1", &image);
    storage.push("app:v1", &image);
    {
        let mut state = registry.state.lock().unwrap();
        state.access = Access::Token;
        state.redirect = Some(format!("http://localhost:{}", storage.address.port()));
    }
    rig.pull(&registry.reference("app:v1")).await.unwrap();
    assert_eq!(storage.state.lock().unwrap().elsewhere, [false, false]);
}

#[tokio::test]
async fn broken_downloads_go_on_where_they_broke() {
    for ranges in [true, false] {
        let (rig, registry) = (Rig::new(), Registry::start().await);
        let image = big();
        registry.push("app:v1", &image);
        {
            let mut state = registry.state.lock().unwrap();
            (state.ranges, state.failures) = (ranges, 2);
        }
        // Without ranges the second answer brings nothing new.
        registry.state.lock().unwrap().cuts = if ranges { 5 } else { 2 };
        let pulled = rig.pull(&registry.reference("app:v1")).await.unwrap();
        let text = std::fs::read(pulled.image.layers()[0].join("big")).unwrap();
        assert_eq!(text.len(), 200_000);
        let resumed = registry.requests().iter().any(|it| it.contains("bytes="));
        assert!(resumed, "{:?}", registry.requests());
    }
}

#[tokio::test]
async fn downloads_that_never_end_well_fail() {
    let (rig, registry) = (Rig::new(), Registry::start().await);
    let image = big();
    registry.push("app:v1", &image);
    registry.state.lock().unwrap().failures = 3;
    let result = rig.pull(&registry.reference("app:v1")).await;
    assert!(matches!(result, Err(Error::Registry(RegistryError::Status { status: 503, .. }))), "{result:?}");

    // Other bytes under the digest of the layer, of the configuration, and of the manifest.
    for blob in [image.layers[0].blob.clone(), image.config_bytes()] {
        let name = Digest::of(&blob).to_string();
        let mut changed = blob.clone();
        changed[10] ^= 1;
        registry.state.lock().unwrap().blobs.insert(name.clone(), changed);
        let result = rig.pull(&registry.reference("app:v1")).await;
        assert!(matches!(result, Err(Error::Registry(RegistryError::Digest { .. }))), "{result:?}");
        let longer = [&blob[..], &b"more"[..]].concat();
        registry.state.lock().unwrap().blobs.insert(name.clone(), longer[4..].to_vec());
        let result = rig.pull(&registry.reference("app:v1")).await;
        assert!(matches!(result, Err(Error::Registry(RegistryError::Digest { .. }))), "{result:?}");
        registry.state.lock().unwrap().blobs.insert(name.clone(), Vec::new());
        let result = rig.pull(&registry.reference("app:v1")).await;
        assert!(matches!(result, Err(Error::Registry(_))), "{result:?}");
        registry.state.lock().unwrap().blobs.remove(&name);
        let result = rig.pull(&registry.reference("app:v1")).await;
        assert!(matches!(result, Err(Error::Registry(RegistryError::Missing { .. }))), "{result:?}");
        registry.state.lock().unwrap().blobs.insert(name, blob);
    }
    let name = format!("app@{}", image.digest());
    registry.state.lock().unwrap().manifests.insert(name.clone(), named("another").manifest_bytes());
    let result = rig.pull(&registry.reference(&name)).await;
    assert!(matches!(result, Err(Error::Registry(RegistryError::Digest { .. }))), "{result:?}");
    registry.state.lock().unwrap().manifests.insert("app:v1".into(), vec![b' '; 5 << 20]);
    let result = rig.pull(&registry.reference("app:v1")).await;
    assert!(matches!(result, Err(Error::Registry(RegistryError::Size { .. }))), "{result:?}");
    rig.assert_nothing_made();
    let gone = rig.pull(&registry.reference("nothing:v1")).await;
    assert!(matches!(gone, Err(Error::Registry(RegistryError::Missing { .. }))), "{gone:?}");
    drop(registry);
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let rig = Rig::new();
    // A port that the system gives to nobody.
    let address = "127.0.0.1:1";
    let error = rig.pull(&format!("{address}/app")).await.unwrap_err();
    assert!(matches!(&error, Error::Registry(RegistryError::Unreachable { .. })), "{error}");
    assert!(error.to_string().contains(address), "{error}");
}
