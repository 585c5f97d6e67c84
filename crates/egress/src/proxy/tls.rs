//! TLS to the outside, and what goes wrong with it, in words.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::name::Host;

/// How long a certificate that was seen at an address counts.
const SEEN: Duration = Duration::from_secs(300);
/// Addresses whose certificates are remembered.
const MAX_SEEN: usize = 4096;
/// TLS sessions to the outside that one session can resume.
const MAX_RESUMED: usize = 16;

/// How one session speaks TLS to the outside. No session shares tickets with another.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// Offers HTTP/1.1 only.
    pub(super) one: Arc<ClientConfig>,
    /// Offers HTTP/2 first.
    pub(super) two: Arc<ClientConfig>,
}

impl Client {
    pub(super) fn new(
        verifier: &Arc<WebPkiServerVerifier>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Client, rustls::Error> {
        let mut one = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()?
            .with_webpki_verifier(Arc::clone(verifier))
            .with_no_client_auth();
        one.resumption = Resumption::in_memory_sessions(MAX_RESUMED);
        let mut two = one.clone();
        one.alpn_protocols = vec![b"http/1.1".to_vec()];
        two.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A ticket says which protocol was spoken; the two must not take each other's.
        two.resumption = Resumption::in_memory_sessions(MAX_RESUMED);
        Ok(Client { one: Arc::new(one), two: Arc::new(two) })
    }
}

/// Checks certificates against `roots`. With none, none is good: a machine without authorities can still have upstreams without
/// TLS.
pub(super) fn verifier(
    mut roots: Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, VerifierBuilderError> {
    if roots.is_empty() {
        // The verifier wants one: this one's key is gone before anything can be signed with it.
        Arc::make_mut(&mut roots).add(nobodys()?).map_err(|_| VerifierBuilderError::NoRootAnchors)?;
    }
    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).build()
}

/// The certificate of an authority that nobody has the key of.
fn nobodys() -> Result<CertificateDer<'static>, VerifierBuilderError> {
    let made = || {
        let mut params = CertificateParams::default();
        // Of nobody else's name either, or what others have signed would be called badly signed.
        params.distinguished_name.push(DnType::CommonName, "an authority that nobody has the key of");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(&KeyPair::generate()?)
    };
    made()
        .map(|certificate: rcgen::Certificate| certificate.der().clone())
        .map_err(|_: rcgen::Error| VerifierBuilderError::NoRootAnchors)
}

/// What went wrong between here and an upstream's TLS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TlsError {
    #[error("the certificate of {0} has expired. Its owner has to renew it; trying again does not help")]
    Expired(Host),
    #[error("the certificate of {0} is not valid yet: either it or the clock of this machine is wrong")]
    NotYetValid(Host),
    #[error(
        "the certificate of {0} is signed by nobody that this worker trusts. If the host is your own, add its authority to the \
         trusted roots of the worker"
    )]
    UnknownIssuer(Host),
    #[error("what answers as {0} shows a certificate for another name")]
    Name(Host),
    #[error("the certificate of {host} is not accepted: {why}")]
    Certificate { host: Host, why: String },
    #[error("no TLS connection with {host}: {why}")]
    Handshake { host: Host, why: String },
    #[error("{host} did not finish its TLS handshake within {seconds} s")]
    TimedOut { host: Host, seconds: u64 },
}

impl TlsError {
    /// Stable, for the trail and the agent.
    pub(super) fn code(&self) -> &'static str {
        match self {
            TlsError::Expired(_) => "upstream_certificate_expired",
            TlsError::NotYetValid(_) => "upstream_certificate_not_yet_valid",
            TlsError::UnknownIssuer(_) => "upstream_certificate_unknown",
            TlsError::Name(_) => "upstream_certificate_name",
            TlsError::Certificate { .. } => "upstream_certificate_invalid",
            TlsError::Handshake { .. } => "upstream_tls_failed",
            TlsError::TimedOut { .. } => "upstream_timeout",
        }
    }

    fn of(host: &Host, error: &std::io::Error) -> TlsError {
        let host = host.clone();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(error)) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsError::Expired(host),
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    TlsError::NotYetValid(host)
                }
                CertificateError::UnknownIssuer => TlsError::UnknownIssuer(host),
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    TlsError::Name(host)
                }
                other => TlsError::Certificate { host, why: other.to_string() },
            },
            Some(other) => TlsError::Handshake { host, why: other.to_string() },
            None => TlsError::Handshake { host, why: error.to_string() },
        }
    }
}

/// The name that a certificate of `host` must hold.
fn server_name(host: &Host) -> Result<ServerName<'static>, TlsError> {
    match host {
        Host::Address(address) => Ok(ServerName::IpAddress((*address).into())),
        Host::Name(name) => ServerName::try_from(name.to_string())
            .map_err(|error| TlsError::Handshake { host: host.clone(), why: error.to_string() }),
    }
}

/// A handshake as a client, with the certificate checked for `host`.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    host: &Host,
    config: Arc<ClientConfig>,
    limit: Duration,
) -> Result<TlsStream<S>, TlsError> {
    let connect = TlsConnector::from(config).connect(server_name(host)?, stream);
    match tokio::time::timeout(limit, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(TlsError::of(host, &error)),
        Err(_) => Err(TlsError::TimedOut { host: host.clone(), seconds: limit.as_secs() }),
    }
}

/// Certificates that were seen at addresses, for connections that are passed through.
///
/// With TLS 1.3 the certificate of a handshake is encrypted, so that of a passed-through connection cannot be read on the wire.
/// Instead this program makes a handshake of its own with the same address, for the name that the policy allowed, before it lets
/// the first byte of the client through, and remembers the result for [`SEEN`]. This shows that the address speaks for the name.
/// It does not show what is said afterwards: an upstream that serves several names at one address and takes a `Host` header other
/// than the server name (domain fronting) can be had only by interception, which a rule with `intercept` asks for.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<HashMap<(SocketAddr, Host), Instant>>);

impl Seen {
    pub(super) fn has(&self, address: SocketAddr, host: &Host) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&(address, host.clone())).is_some_and(|at| at.elapsed() < SEEN)
    }

    fn add(&self, address: SocketAddr, host: &Host) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MAX_SEEN {
            seen.retain(|_, at| at.elapsed() < SEEN);
            if seen.len() >= MAX_SEEN {
                seen.clear();
            }
        }
        seen.insert((address, host.clone()), Instant::now());
    }

    /// Looks at the certificate that `stream`, a connection of this program's own to `address`, shows for `host`.
    pub(super) async fn look<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        (stream, address): (S, SocketAddr),
        host: &Host,
        (verifier, provider): (&Arc<WebPkiServerVerifier>, &Arc<CryptoProvider>),
        limit: Duration,
    ) -> Result<(), TlsError> {
        let witness = Arc::new(Witness {
            inner: Arc::clone(verifier),
            certificate: AtomicBool::new(false),
            signature: AtomicBool::new(false),
        });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Handshake { host: host.clone(), why: error.to_string() })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        let result = connect(stream, host, Arc::new(config), limit).await;
        // An upstream that wants a certificate of its client ends the handshake after it has shown its own.
        if !(witness.certificate.load(Ordering::Relaxed) && witness.signature.load(Ordering::Relaxed)) {
            result?;
            return Err(TlsError::Handshake { host: host.clone(), why: "it showed no certificate".to_owned() });
        }
        self.add(address, host);
        Ok(())
    }
}

/// Checks as its inner one does, and remembers that all was well.
#[derive(Debug)]
struct Witness {
    inner: Arc<WebPkiServerVerifier>,
    certificate: AtomicBool,
    signature: AtomicBool,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.certificate.store(true, Ordering::Relaxed);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = self.inner.verify_tls12_signature(message, certificate, signature)?;
        self.signature.store(true, Ordering::Relaxed);
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = self.inner.verify_tls13_signature(message, certificate, signature)?;
        self.signature.store(true, Ordering::Relaxed);
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_authorities_no_certificate_is_good() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = verifier(Arc::new(RootCertStore::empty()), &provider).unwrap();
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["host.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let name = ServerName::try_from("host.test").unwrap();
        let now = UnixTime::since_unix_epoch(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap());
        let refused = verifier.verify_server_cert(own.der(), &[], &name, &[], now).unwrap_err();
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(refused, unknown);
    }
}
