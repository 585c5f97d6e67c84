//! The certificate authority of one session. Its key is in memory only and goes with the session.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
    SerialNumber,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::ServerSessionMemoryCache;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::name::Host;

/// How far the clock of a sandbox may be behind.
const SKEW: Duration = Duration::from_secs(24 * 3600);
/// Longer than any session lives. Clients are satisfied with 398 days at most; the key is gone long before.
const VALID: Duration = Duration::from_secs(30 * 24 * 3600);
/// Leaves that are kept. A session that talks to more hosts has some made again, which takes a tenth of a millisecond.
const MAX_LEAVES: usize = 256;
/// TLS sessions that can be resumed.
const MAX_RESUMED: usize = 64;

/// For which hosts the authority may speak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Constraints {
    /// Names, each with all that ends in it. An X.509 constraint cannot say "this name only".
    pub(super) names: Vec<String>,
    /// Addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// Any name: a rule of the policy is for all hosts.
    pub(super) any_name: bool,
}

/// A certificate authority.
pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key: KeyPair,
    signing: Arc<dyn SigningKey>,
    base: ServerConfig,
    not_before: SystemTime,
    not_after: SystemTime,
    leaves: Mutex<HashMap<Host, Arc<ServerConfig>>>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Neither key nor certificate.
    #[error("a certificate for the sandbox could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library takes not what was made.
    #[error("the certificate for the sandbox cannot be served: {0}")]
    Tls(#[from] rustls::Error),
    /// No random numbers.
    #[error("the kernel gives no random numbers: {0}")]
    Random(getrandom::Error),
}

impl Ca {
    /// A new authority, for `constraints` only.
    pub(super) fn new(
        constraints: &Constraints,
        now: SystemTime,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Ca, CaError> {
        let (not_before, not_after) = (now - SKEW, now + VALID);
        let issuer_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial()?);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Palisade session authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints = Some(name_constraints(constraints));
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let certificate = params.self_signed(&issuer_key)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let signing = rustls::crypto::ring::sign::any_ecdsa_type(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(
            key.serialize_der(),
        )))?;
        let mut base = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoCertificate));
        base.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        base.session_storage = ServerSessionMemoryCache::new(MAX_RESUMED);
        base.send_tls13_tickets = 1;
        Ok(Ca {
            pem: pem(certificate.der()),
            issuer: Issuer::new(params, issuer_key),
            key,
            signing,
            base,
            not_before,
            not_after,
            leaves: Mutex::default(),
        })
    }

    /// The certificate of the authority, for the trust stores of the sandbox.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// How to speak TLS as `host`.
    pub(super) fn serve(&self, host: &Host) -> Result<Arc<ServerConfig>, CaError> {
        if let Some(config) = self.leaves.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            return Ok(Arc::clone(config));
        }
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial()?);
        // Some clients do not read a certificate that has no subject.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Palisade session");
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName((&**name).try_into()?),
            Host::Address(address) => SanType::IpAddress(*address),
        }];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        let leaf = params.signed_by(&self.key, &self.issuer)?;
        let certified = CertifiedKey::new(vec![leaf.der().clone()], Arc::clone(&self.signing));
        let mut config = self.base.clone();
        config.cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        let config = Arc::new(config);
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if leaves.len() >= MAX_LEAVES {
            leaves.clear();
        }
        leaves.insert(host.clone(), Arc::clone(&config));
        Ok(config)
    }
}

/// What the base configuration has before a host is known.
#[derive(Debug)]
struct NoCertificate;

impl rustls::server::ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(CaError::Random)?;
    // Positive and without a leading zero, as DER wants it.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// What is permitted; and of each kind of name of which nothing is permitted, all is excluded, since a kind that is not
/// mentioned is unconstrained (RFC 5280, section 4.2.1.10).
fn name_constraints(constraints: &Constraints) -> NameConstraints {
    let mut permitted = Vec::new();
    let mut excluded = Vec::new();
    if !constraints.any_name {
        permitted.extend(constraints.names.iter().cloned().map(GeneralSubtree::DnsName));
        if permitted.is_empty() {
            excluded.push(GeneralSubtree::DnsName(String::new()));
        }
    }
    let subtree = |address: IpAddr, prefix| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, prefix));
    for address in &constraints.addresses {
        permitted.push(subtree(*address, if address.is_ipv4() { 32 } else { 128 }));
    }
    if !constraints.addresses.iter().any(IpAddr::is_ipv4) {
        excluded.push(subtree(Ipv4Addr::UNSPECIFIED.into(), 0));
    }
    if !constraints.addresses.iter().any(IpAddr::is_ipv6) {
        excluded.push(subtree(Ipv6Addr::UNSPECIFIED.into(), 0));
    }
    NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded }
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 60);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for (index, symbol) in text.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            pem.push('\n');
        }
        pem.push(symbol);
    }
    pem.push_str("\n-----END CERTIFICATE-----\n");
    pem
}
