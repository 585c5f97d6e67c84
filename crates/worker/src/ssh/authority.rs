//! Certificates: who may come in, to which session, and until when.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use palisade_checkpoint::{Durable, write_whole};
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{Fingerprint, LineEnding};
use russh::keys::{Certificate, HashAlg, PrivateKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// For how long a certificate is good, in seconds: long enough to connect.
const VALID: u64 = 300;
/// How far the clocks of two programs on one machine may be apart, in seconds.
const SKEW: u64 = 5;
/// The host key's file in the state directory.
const HOST_KEY: &str = "ssh_host_ed25519_key";

fn other(why: impl std::fmt::Display) -> io::Error {
    io::Error::other(why.to_string())
}

fn random<const N: usize>() -> io::Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(other)?;
    Ok(bytes)
}

fn key() -> io::Result<PrivateKey> {
    let pair = Ed25519Keypair::from_seed(&*random()?);
    PrivateKey::new(KeypairData::Ed25519(pair), "palisade").map_err(other)
}

/// The host's key: the one that an earlier start left, or a new one.
pub(super) fn host_key(state_dir: &Path) -> io::Result<PrivateKey> {
    let path = state_dir.join(HOST_KEY);
    match std::fs::read_to_string(&path).map(Zeroizing::new) {
        Ok(text) => PrivateKey::from_openssh(text.as_bytes()).map_err(other),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            let key = key()?;
            let text = key.to_openssh(LineEnding::LF).map_err(other)?;
            write_whole(state_dir, HOST_KEY, text.as_bytes(), Durable::Yes).map_err(other)?;
            Ok(key)
        }
        Err(why) => Err(why),
    }
}

/// What an operator needs to connect, once.
#[derive(Clone, Serialize, Deserialize)]
pub struct Issued {
    /// The private key that the certificate is for, in OpenSSH's format. Nobody keeps it but who asked.
    pub private_key: String,
    /// The certificate.
    pub certificate: String,
    /// The host's public key.
    pub host_key: String,
    /// Where the server listens.
    pub address: SocketAddr,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Issues certificates. Its key lives as long as the worker, and is nowhere but in its memory.
pub(crate) struct Authority {
    key: PrivateKey,
    fingerprint: Fingerprint,
    host_key: String,
    address: SocketAddr,
}

impl Authority {
    pub(super) fn new(host_key: &PrivateKey, address: SocketAddr) -> io::Result<Authority> {
        let key = key()?;
        let fingerprint = key.public_key().fingerprint(HashAlg::Sha256);
        let host_key = host_key.public_key().to_openssh().map_err(other)?;
        Ok(Authority { key, fingerprint, host_key, address })
    }

    /// A key and its certificate for one session. `now` is in Unix seconds.
    pub(crate) fn issue(&self, session: &str, holder: &str, now: u64) -> io::Result<Issued> {
        let pair = key()?;
        let nonce = random::<32>()?;
        let mut builder =
            Builder::new(nonce.to_vec(), pair.public_key().key_data().clone(), now.saturating_sub(SKEW), now + VALID)
                .map_err(other)?;
        builder.cert_type(CertType::User).map_err(other)?;
        builder.valid_principal(session).map_err(other)?;
        builder.key_id(holder).map_err(other)?;
        for extension in ["permit-pty", "permit-port-forwarding"] {
            builder.extension(extension, "").map_err(other)?;
        }
        let certificate = builder.sign(&self.key).map_err(other)?;
        Ok(Issued {
            private_key: pair.to_openssh(LineEnding::LF).map_err(other)?.to_string(),
            certificate: certificate.to_openssh().map_err(other)?,
            host_key: self.host_key.clone(),
            address: self.address,
        })
    }

    /// Whether a certificate lets its holder, who has shown to have its key, into a session; if not, why.
    pub(super) fn admits(&self, session: &str, certificate: &Certificate, now: u64) -> Result<(), &'static str> {
        if !certificate.cert_type().is_user() {
            return Err("it is not a user's certificate");
        }
        // Nobody without a name in it, lest one that names nobody be good for all.
        if certificate.valid_principals() != [session.to_owned()] {
            return Err("it is not for this session");
        }
        if !certificate.critical_options().is_empty() {
            return Err("it has options that are not known here");
        }
        certificate.validate_at(now, [&self.fingerprint]).map_err(|_| "it is not this worker's, or its time is over")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_one_session_and_a_few_minutes() {
        let address = "127.0.0.1:22".parse().unwrap();
        let host = key().unwrap();
        let (ours, theirs) = (Authority::new(&host, address).unwrap(), Authority::new(&host, address).unwrap());
        let issued = ours.issue("sesn_1", "uid 0", 1_000_000).unwrap();
        let certificate = Certificate::from_openssh(&issued.certificate).unwrap();
        assert!(ours.admits("sesn_1", &certificate, 1_000_000).is_ok());
        assert!(ours.admits("sesn_1", &certificate, 1_000_000 + VALID - 1).is_ok());
        assert!(ours.admits("sesn_1", &certificate, 1_000_000 + VALID).is_err());
        assert!(ours.admits("sesn_1", &certificate, 1_000_000 - SKEW - 1).is_err());
        assert!(ours.admits("sesn_2", &certificate, 1_000_000).is_err());
        assert!(ours.admits("", &certificate, 1_000_000).is_err());
        assert!(theirs.admits("sesn_1", &certificate, 1_000_000).is_err());
        assert!(!format!("{issued:?}").contains("PRIVATE"));
    }

    #[test]
    fn the_host_key_stays() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let first = host_key(dir.path()).unwrap();
        assert_eq!(host_key(dir.path()).unwrap().public_key(), first.public_key());
        let mode = std::fs::metadata(dir.path().join(HOST_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
