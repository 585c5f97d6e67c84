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
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::broker::{Broker, Hosts};
use crate::name::Host;
use crate::policy::Policy;

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
    /// Blocks of addresses: the first, and how many leading bits are fixed.
    pub(super) blocks: Vec<(IpAddr, u8)>,
    /// Anything.
    pub(super) any: bool,
}

impl Constraints {
    /// The hosts that the policy allows to be read, and those to which credentials may go. Hosts that are passed through as
    /// long as nothing needs to be read are among them; those of rules for opaque TLS and plain TCP are not.
    pub(super) fn new(policy: &Policy, broker: &Broker) -> Constraints {
        let opened = policy.opened();
        let mut constraints = Constraints {
            names: opened.names.iter().map(ToString::to_string).collect(),
            blocks: opened.blocks,
            any: opened.any,
        };
        for pattern in broker.hosts().flat_map(|hosts| match hosts {
            Hosts::Limited(patterns) => patterns.as_slice(),
            // Any that the policy allows.
            Hosts::Unrestricted => &[],
        }) {
            match pattern.host() {
                Host::Name(name) => constraints.names.push(name.to_string()),
                Host::Address(address) => constraints.blocks.push((*address, if address.is_ipv4() { 32 } else { 128 })),
            }
        }
        constraints.names.sort_unstable();
        constraints.names.dedup();
        // One that is below another is permitted with it.
        let all = constraints.names.clone();
        let above = |name: &str| {
            let mut rest = name;
            std::iter::from_fn(move || {
                rest = rest.split_once('.')?.1;
                Some(rest)
            })
            .any(|above| all.binary_search_by(|other| other.as_str().cmp(above)).is_ok())
        };
        constraints.names.retain(|name| !above(name));
        constraints.blocks.sort_unstable();
        constraints.blocks.dedup();
        constraints
    }
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
        params.name_constraints = name_constraints(constraints);
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
            pem: certificate_pem(certificate.der()),
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
        let leaf = self.leaf(host)?;
        let certified = CertifiedKey::new(vec![leaf], Arc::clone(&self.signing));
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

    /// A certificate for `host`.
    fn leaf(&self, host: &Host) -> Result<CertificateDer<'static>, CaError> {
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
        Ok(params.signed_by(&self.key, &self.issuer)?.der().clone())
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
fn name_constraints(constraints: &Constraints) -> Option<NameConstraints> {
    if constraints.any {
        return None;
    }
    let mut permitted: Vec<_> = constraints.names.iter().cloned().map(GeneralSubtree::DnsName).collect();
    let mut excluded = Vec::new();
    if permitted.is_empty() {
        excluded.push(GeneralSubtree::DnsName(String::new()));
    }
    let subtree = |address: IpAddr, bits| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, bits));
    permitted.extend(constraints.blocks.iter().map(|(address, bits)| subtree(*address, *bits)));
    for (all, here) in [
        (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
        (Ipv6Addr::UNSPECIFIED.into(), IpAddr::is_ipv6),
    ] {
        if !constraints.blocks.iter().any(|(address, _)| here(address)) {
            excluded.push(subtree(all, 0));
        }
    }
    Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded })
}

/// A certificate as text (RFC 7468).
pub fn certificate_pem(der: &[u8]) -> String {
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

#[cfg(test)]
mod tests {
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;

    /// Whether a client that trusts the authority takes its certificate for a host.
    fn takes(ca: &Ca, host: &str, after: Duration) -> bool {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
        let verifier = crate::proxy::tls::verifier(Arc::new(roots), &provider).unwrap();
        let leaf = ca.leaf(&host.parse().unwrap()).unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_000_000_000) + after);
        verifier.verify_server_cert(&leaf, &[], &name, &[], now).is_ok()
    }

    fn authority(policy: &str) -> Ca {
        let broker = Broker::new(&crate::broker::Mint::from_key(&[1; 32]), "s", Vec::new()).unwrap();
        let constraints = Constraints::new(&Policy::parse(policy).unwrap(), &broker);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        Ca::new(&constraints, now, &Arc::new(rustls::crypto::ring::default_provider())).unwrap()
    }

    #[test]
    fn it_speaks_for_what_is_read_and_for_nothing_else() {
        let day = Duration::from_secs(24 * 3600);
        let ca = authority(
            "rules:\n- {name: a, host: [api.test, '*.wide.test', deep.wide.test], methods: GET}\n- {name: b, host: opaque.test, protocol: tls}\n\
             - {name: c, address: 10.0.0.0/8, private: true, intercept: true}\n",
        );
        for (host, taken) in [
            ("api.test", true),
            ("x.wide.test", true),
            ("10.1.2.3", true),
            ("other.test", false),
            ("opaque.test", false),
            ("test", false),
            ("notapi.test", false),
            ("11.0.0.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(takes(&ca, host, Duration::ZERO), taken, "{host}");
        }
        assert!(takes(&ca, "api.test", day) && !takes(&ca, "api.test", day * 60));
        let nothing = authority("rules:\n- {name: b, host: opaque.test, protocol: tls}\n");
        assert!(["opaque.test", "10.0.0.1", "2001:db8::1"].iter().all(|host| !takes(&nothing, host, day)));
    }
}
