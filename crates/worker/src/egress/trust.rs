//! What programs of a sandbox trust: the authorities that the worker trusts, and the session's own.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use palisade_egress::proxy::certificate_pem;
use palisade_sandbox::{Given, PROXY};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::OpenError;

/// Where it all is inside.
pub(super) const INSIDE: &str = "/run/palisade/trust";
const BUNDLE: &str = "bundle.pem";
const OWN: &str = "ca.pem";
/// What programs that have authorities of their own are to trust besides those.
const EXTRA: &str = "extra.pem";
const KEYSTORE: &str = "cacerts.jks";

/// Where systems keep what their programs trust; each is covered where it exists.
const SYSTEM: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];
/// The same for Java.
const SYSTEM_JAVA: &[&str] = &["/etc/ssl/certs/java/cacerts", "/etc/pki/ca-trust/extracted/java/cacerts"];

/// Variables by which programs are told a file of authorities instead of the system's.
const BUNDLES: &[&str] = &[
    "SSL_CERT_FILE",
    "NIX_SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
];

/// The authorities of upstreams.
#[derive(Debug)]
pub(super) struct Trust {
    authorities: Vec<CertificateDer<'static>>,
    /// The same as text.
    pem: String,
    /// Those that are not the system's.
    extra: String,
}

impl Trust {
    /// The system's authorities, and those of a file (PEM).
    pub(super) fn open(more: Option<&Path>) -> Result<Trust, OpenError> {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some of the system's certificate authorities cannot be read");
        }
        let mut authorities = found.certs;
        let system = authorities.len();
        if let Some(path) = more {
            let wrong = |cause: String| OpenError::Authorities { path: path.to_owned(), cause };
            let text = fs::read(path).map_err(|why| wrong(why.to_string()))?;
            let before = authorities.len();
            for certificate in CertificateDer::pem_slice_iter(&text) {
                authorities.push(certificate.map_err(|why| wrong(why.to_string()))?);
            }
            if authorities.len() == before {
                return Err(wrong("there is no certificate in it".to_owned()));
            }
        }
        let (mut pem, mut extra) = (String::new(), String::new());
        for certificate in &authorities {
            pem.push_str(&certificate_pem(certificate));
        }
        for certificate in &authorities[system..] {
            extra.push_str(&certificate_pem(certificate));
        }
        Ok(Trust { authorities, pem, extra })
    }

    /// For the worker's own connections to upstreams. Without any, no upstream is trusted.
    pub(super) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(self.authorities.iter().cloned());
        if ignored > 0 {
            tracing::debug!(ignored, "certificate authorities that cannot be used");
        }
        if roots.is_empty() {
            tracing::warn!(
                "there are no certificate authorities: no upstream with TLS can be reached; install ca-certificates"
            );
        }
        roots
    }

    /// Writes what a sandbox is given into a directory, and says where it goes.
    pub(super) fn write(&self, directory: &Path, own: &str) -> io::Result<Vec<Given>> {
        // For the agent's eyes, whatever the worker's mask is.
        let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        fs::create_dir_all(directory)?;
        open(directory, 0o755)?;
        let certificate = CertificateDer::from_pem_slice(own.as_bytes()).map_err(io::Error::other)?;
        let put = |name: &str, content: &[u8]| {
            let path = directory.join(name);
            fs::write(&path, content)?;
            open(&path, 0o644)
        };
        put(OWN, own.as_bytes())?;
        put(EXTRA, [own, &self.extra].concat().as_bytes())?;
        put(BUNDLE, [own, &self.pem].concat().as_bytes())?;
        put(KEYSTORE, &keystore([&certificate].into_iter().chain(&self.authorities)))?;
        let over =
            |file: &str, target: &str| Given { host: directory.join(file), target: target.to_owned(), over: true };
        let mut given = vec![Given { host: directory.to_owned(), target: INSIDE.to_owned(), over: false }];
        given.extend(SYSTEM.iter().map(|target| over(BUNDLE, target)));
        given.extend(SYSTEM_JAVA.iter().map(|target| over(KEYSTORE, target)));
        Ok(given)
    }
}

/// The variables by which programs find the proxy and what to trust.
pub(super) fn environment() -> Vec<(String, String)> {
    let bundle = format!("{INSIDE}/{BUNDLE}");
    let proxy = format!("http://{PROXY}");
    let mut variables: Vec<(&str, String)> = BUNDLES.iter().map(|name| (*name, bundle.clone())).collect();
    variables.push(("NODE_EXTRA_CA_CERTS", format!("{INSIDE}/{EXTRA}")));
    let java = format!("-Djavax.net.ssl.trustStore={INSIDE}/{KEYSTORE} -Djavax.net.ssl.trustStoreType=jks");
    variables.push(("JAVA_TOOL_OPTIONS", java));
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        variables.push((name, proxy.clone()));
    }
    for name in ["NO_PROXY", "no_proxy"] {
        variables.push((name, "localhost,127.0.0.1,::1".to_owned()));
    }
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A store of trusted certificates as Java reads it (the format JKS, which needs no password to be read).
fn keystore<'a>(certificates: impl Iterator<Item = &'a CertificateDer<'static>>) -> Vec<u8> {
    const MAGIC: u32 = 0xfeed_feed;
    const VERSION: u32 = 2;
    const TRUSTED: u32 = 2;
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(text.bytes());
    };
    let mut entries = Vec::new();
    let mut count = 0u32;
    for certificate in certificates {
        entries.extend(TRUSTED.to_be_bytes());
        text(&mut entries, &format!("authority-{count}"));
        // When it was put in: nobody asks.
        entries.extend(0u64.to_be_bytes());
        text(&mut entries, "X.509");
        entries.extend(u32::try_from(certificate.len()).unwrap_or(u32::MAX).to_be_bytes());
        entries.extend_from_slice(certificate);
        count += 1;
    }
    for word in [MAGIC, VERSION, count] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(entries);
    // The format's own check, over its usual password as UTF-16; it keeps no secret.
    let mut check = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    check.update(&"changeit".bytes().flat_map(|byte| [0, byte]).collect::<Vec<u8>>());
    check.update(b"Mighty Aphrodite");
    check.update(&bytes);
    bytes.extend(check.finish().as_ref());
    bytes
}
