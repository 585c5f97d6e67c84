//! Keys: those of hosts, which are public, and those that the agent signs with.

use std::fmt;
use std::sync::Arc;

use palisade_api::Secret;
use signature::{Signer as _, Verifier as _};
use ssh_key::{Algorithm, PrivateKey, PublicKey, Signature};

use super::Bind;
use crate::Supply;
use crate::broker::Hosts;

/// The public key of a host.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey {
    bytes: Vec<u8>,
    text: String,
}

/// Why a key cannot be used. Holds nothing of a private one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SshKeyError {
    /// It is no public key.
    #[error(
        "it is no public key as OpenSSH writes it: `ssh-ed25519 AAAA…`, which `ssh-keyscan HOST` prints behind the host's name"
    )]
    NotPublic,
    /// It is of a kind that is not supported.
    #[error("it is of a kind that is not supported: use Ed25519, or ECDSA on P-256 or P-384")]
    Kind,
    /// It is no private key.
    #[error("it is no private key as OpenSSH writes it, `-----BEGIN OPENSSH PRIVATE KEY-----`")]
    NotPrivate,
    /// It needs a passphrase.
    #[error("it is encrypted: keep it without a passphrase, in a source that encrypts")]
    Encrypted,
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({})", self.text)
    }
}

impl HostKey {
    /// Reads one as OpenSSH writes it: its kind, its text, and perhaps a comment.
    ///
    /// # Errors
    /// When it is none, or of a kind that is not supported.
    pub fn parse(text: &str) -> Result<HostKey, SshKeyError> {
        let key = PublicKey::from_openssh(text.trim()).map_err(|_| SshKeyError::NotPublic)?;
        supported(&key.algorithm())?;
        let key = PublicKey::from(key.key_data().clone());
        let bytes = key.to_bytes().map_err(|_| SshKeyError::NotPublic)?;
        let text = key.to_openssh().map_err(|_| SshKeyError::NotPublic)?;
        Ok(HostKey { bytes, text })
    }

    /// As OpenSSH writes it, without a comment.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn is(&self, bytes: &[u8]) -> bool {
        self.bytes == bytes
    }
}

/// A key that a session's clients may log in with, without having it.
#[derive(Debug, Clone)]
pub struct SshKey {
    /// How records name it. Never the value.
    pub reference: String,
    /// Where.
    pub hosts: Hosts,
    /// The keys by which these hosts are known.
    pub host_keys: Vec<HostKey>,
    /// As whom.
    pub users: Vec<String>,
    /// The private key, in OpenSSH's format.
    pub value: Arc<dyn Supply>,
}

fn supported(algorithm: &Algorithm) -> Result<(), SshKeyError> {
    use ssh_key::EcdsaCurve::{NistP256, NistP384};
    match algorithm {
        Algorithm::Ed25519 | Algorithm::Ecdsa { curve: NistP256 | NistP384 } => Ok(()),
        _ => Err(SshKeyError::Kind),
    }
}

fn private(value: &Secret) -> Result<PrivateKey, SshKeyError> {
    let key = PrivateKey::from_openssh(value.expose()).map_err(|_| SshKeyError::NotPrivate)?;
    if key.is_encrypted() {
        return Err(SshKeyError::Encrypted);
    }
    supported(&key.algorithm()).map(|()| key)
}

/// The public part, as agents tell it.
pub(crate) fn public_key(value: &Secret) -> Result<Vec<u8>, SshKeyError> {
    private(value)?.public_key().to_bytes().map_err(|_| SshKeyError::NotPrivate)
}

/// Signs.
pub(crate) fn sign(value: &Secret, data: &[u8]) -> Result<Vec<u8>, SshKeyError> {
    let signature: Signature = private(value)?.try_sign(data).map_err(|_| SshKeyError::Kind)?;
    Vec::<u8>::try_from(signature).map_err(|_| SshKeyError::Kind)
}

/// Whether what a host has signed is what it is said to have signed.
pub(crate) trait Signed {
    fn is_signed(&self) -> bool;
}

impl Signed for Bind<'_> {
    fn is_signed(&self) -> bool {
        let Ok(key) = PublicKey::from_bytes(self.host_key) else { return false };
        let Ok(signature) = Signature::try_from(self.signature) else { return false };
        key.key_data().verify(self.session, &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use ssh_key::LineEnding;
    use ssh_key::private::{Ed25519Keypair, KeypairData};

    use super::*;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::new(KeypairData::Ed25519(Ed25519Keypair::from_seed(&[seed; 32])), "a comment").unwrap()
    }

    fn secret(key: &PrivateKey) -> Secret {
        Secret::new(key.to_openssh(LineEnding::LF).unwrap().to_string())
    }

    #[test]
    fn a_signature_is_its_hosts_and_for_its_session() {
        let (host, other) = (key(1), key(2));
        let signature = sign(&secret(&host), b"session").unwrap();
        let bytes = public_key(&secret(&host)).unwrap();
        let bind = |host_key: &[u8], session: &[u8], signature: &[u8]| {
            Bind { host_key, session, signature, forwarding: false }.is_signed()
        };
        assert!(bind(&bytes, b"session", &signature));
        assert!(!bind(&bytes, b"another", &signature));
        assert!(!bind(&public_key(&secret(&other)).unwrap(), b"session", &signature));
        assert!(!bind(&bytes, b"session", &signature[1..]) && !bind(&bytes[1..], b"session", &signature));
        assert!(!bind(&bytes, b"session", b"") && !bind(b"", b"session", &signature));
    }

    #[test]
    fn keys_that_cannot_be_used_are_told_apart() {
        let text = key(1).public_key().to_openssh().unwrap();
        let host = HostKey::parse(&format!("{text} more words\n")).unwrap();
        assert!(host.is(&public_key(&secret(&key(1))).unwrap()) && !host.is(b""));
        assert_eq!(Some(host.text()), text.strip_suffix(" a comment"));
        assert_eq!(HostKey::parse("github.com ssh-ed25519 AAAA"), Err(SshKeyError::NotPublic));
        let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAQQDIWi+Eew9nH4xbDDrwJSmJLy05TI2blZ8AppoK8uiIylZCHLyDN6FIaf4DmEbBTM/4hTXQuHG4w+IYMxn3kJKr";
        assert_eq!(HostKey::parse(rsa), Err(SshKeyError::Kind));
        assert_eq!(public_key(&Secret::new("no key")), Err(SshKeyError::NotPrivate));
        let shown = format!("{:?} {}", sign(&Secret::new("-----BEGIN"), b""), SshKeyError::NotPrivate);
        assert!(shown.contains("OPENSSH PRIVATE KEY"), "{shown}");
    }
}
