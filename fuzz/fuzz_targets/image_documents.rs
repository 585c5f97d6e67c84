//! What a registry says an image is: an index, a manifest, a configuration; and the names of images. Asserts: no panic, and a
//! reference that is written is read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_image::{Reference, RegistryPattern, fuzz};

fuzz_target!(init: palisade_fuzz::plant(&seeds()), |data: &[u8]| {
    fuzz::documents(data);
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(reference) = text.parse::<Reference>() {
            assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
        }
        let _ = text.parse::<RegistryPattern>();
    }
});

fn seeds() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let part =
        |kind: &str| format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":9}}"#);
    let config = part("config.v1+json");
    [
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{},{}],"annotations":{{"a":"b"}}}}"#,
            part("layer.v1.tar+gzip"),
            part("layer.v1.tar+zstd")
        ),
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":9,"platform":{{"os":"linux","architecture":"amd64","variant":"v1"}}}}]}}"#
        ),
        format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"User":"0:0","Env":["PATH=/bin"],"Entrypoint":["/a"],"Cmd":["b"],"WorkingDir":"/w","Labels":{{"a":"b"}},"ExposedPorts":{{"80/tcp":{{}}}},"Volumes":{{"/v":{{}}}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created_by":"x"}}]}}"#
        ),
        format!("registry.example:5000/a/b:tag@{digest}"),
        "oci:/a/layout:name".to_owned(),
        "docker-archive:/a.tar:name:tag".to_owned(),
        "[::1]:5000/a".to_owned(),
        "*.example/a/*".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
