//! Client certificates: the sandbox never sees them, the proxy shows them to upstreams that the credential names.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{Broker, Kind, Misuse};
use crate::Authority;

/// A certificate to show to an upstream.
#[derive(Clone)]
pub struct ClientCertificate {
    /// The credential that it is from.
    pub reference: String,
    /// The chain and its key.
    pub key: Arc<CertifiedKey>,
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCertificate").field("reference", &self.reference).finish_non_exhaustive()
    }
}

impl Broker {
    /// The certificate to show to `authority`, if a credential is one for it: the first, as with all credentials.
    pub async fn client_certificate(&self, authority: &Authority) -> Result<Option<ClientCertificate>, Misuse> {
        let mut credentials = self.table.credentials().iter();
        let Some(credential) = credentials
            .find(|credential| credential.kind == Kind::ClientCertificate && credential.hosts.matches(authority))
        else {
            return Ok(None);
        };
        let reference = credential.reference.clone();
        let pem = credential.value.value().await.map_err(|error| Misuse::supply(&reference, error))?;
        let unusable = |why| Misuse::Unusable { reference: reference.clone(), why };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.expose().as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| unusable("it is not PEM"))?;
        if chain.is_empty() {
            return Err(unusable("there is no certificate in it; a chain and its private key in PEM are needed"));
        }
        let key = PrivateKeyDer::from_pem_slice(pem.expose().as_bytes())
            .map_err(|_| unusable("there is no private key in it; a chain and its private key in PEM are needed"))?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|_| {
            unusable("the private key is of a kind that is not supported: use RSA, ECDSA P-256 or P-384, or Ed25519")
        })?;
        let key = CertifiedKey::new(chain, key);
        if key.keys_match().is_err() {
            return Err(unusable("the private key is not the certificate's"));
        }
        Ok(Some(ClientCertificate { reference, key: Arc::new(key) }))
    }
}
