//! Keys: those of hosts, which are public, and those that the agent signs with.

use std::fmt;
use std::sync::Arc;

use palisade_api::Secret;
use signature::{Signer as _, Verifier as _};
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, PrivateKey, PublicKey, Signature};

use super::{Bind, rsa};
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
    #[error(
        "it is of a kind that is not supported: use Ed25519, ECDSA on P-256 or P-384, or RSA of at least 2048 bits"
    )]
    Kind,
    /// It would sign with SHA-1.
    #[error("an RSA key signs with SHA-256 or SHA-512 only: `ssh-rsa`, which the client asks for, is SHA-1")]
    Sha1,
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
        supported(key.key_data())?;
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

fn supported(key: &KeyData) -> Result<(), SshKeyError> {
    use ssh_key::EcdsaCurve::{NistP256, NistP384};
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { curve: NistP256 | NistP384 } => Ok(()),
        Algorithm::Rsa { .. } if key.rsa().is_some_and(|key| key.key_size() >= rsa::LEAST) => Ok(()),
        _ => Err(SshKeyError::Kind),
    }
}

fn private(value: &Secret) -> Result<PrivateKey, SshKeyError> {
    let key = PrivateKey::from_openssh(value.expose()).map_err(|_| SshKeyError::NotPrivate)?;
    if key.is_encrypted() {
        return Err(SshKeyError::Encrypted);
    }
    supported(key.public_key().key_data()).map(|()| key)
}

/// The public part, as agents tell it.
pub(crate) fn public_key(value: &Secret) -> Result<Vec<u8>, SshKeyError> {
    private(value)?.public_key().to_bytes().map_err(|_| SshKeyError::NotPrivate)
}

/// Signs, in the way that `algorithm` names for a key that has several.
pub(crate) fn sign(value: &Secret, algorithm: &[u8], data: &[u8]) -> Result<Vec<u8>, SshKeyError> {
    let key = private(value)?;
    if let Some(key) = key.key_data().rsa() {
        return rsa::sign(key, algorithm, data);
    }
    let signature: Signature = key.try_sign(data).map_err(|_| SshKeyError::Kind)?;
    Vec::<u8>::try_from(signature).map_err(|_| SshKeyError::Kind)
}

/// Whether what a host has signed is what it is said to have signed.
pub(crate) trait Signed {
    fn is_signed(&self) -> bool;
}

impl Signed for Bind<'_> {
    fn is_signed(&self) -> bool {
        let Ok(key) = PublicKey::from_bytes(self.host_key) else { return false };
        if let Some(key) = key.key_data().rsa() {
            return rsa::verify(key, self.signature, self.session);
        }
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
        let signature = sign(&secret(&host), b"ssh-ed25519", b"session").unwrap();
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

    /// Made by `ssh-keygen -t rsa -b 2048` for this test.
    const RSA: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAABFwAAAAdzc2gtcn
NhAAAAAwEAAQAAAQEAlKrg/IPYrM8n2Nds9O/RLjed/zI4TupEQmGTwCOiMTEL9tfFTSHq
eBGKn259ax1kbHvVaB8pDBSokK9dk321VlCM7i1tm4T8rvoV9mk7rLLMGh20rj/aI87kGv
ZM4beaFNxWMbRiHUeFJL1+z9ZafVhcx1NjqR7Qd6H1aH+oCQqQMqjKUJbJzlEr27+rIL5u
6Dg4jSgqQDzVwExR/LFQUNoTk1tbLvx0NwJBlNHLfETPFHAeTG0MfN0ZYMdCv4cM8hskRZ
wVDcbpMUu6bA7VCLn//Bsodaphg20KvuL6R3umEgjEltPJqFIt//VLB7qpI5TBMvOXkWIZ
lS9UE01aSQAAA8DCFY4vwhWOLwAAAAdzc2gtcnNhAAABAQCUquD8g9iszyfY12z079EuN5
3/MjhO6kRCYZPAI6IxMQv218VNIep4EYqfbn1rHWRse9VoHykMFKiQr12TfbVWUIzuLW2b
hPyu+hX2aTussswaHbSuP9ojzuQa9kzht5oU3FYxtGIdR4UkvX7P1lp9WFzHU2OpHtB3of
Vof6gJCpAyqMpQlsnOUSvbv6sgvm7oODiNKCpAPNXATFH8sVBQ2hOTW1su/HQ3AkGU0ct8
RM8UcB5MbQx83Rlgx0K/hwzyGyRFnBUNxukxS7psDtUIuf/8Gyh1qmGDbQq+4vpHe6YSCM
SW08moUi3/9UsHuqkjlMEy85eRYhmVL1QTTVpJAAAAAwEAAQAAAQADZaItcu/NBxDAhi+h
qycq+K9eCO47c2Pq5mLjZY0LtbSxx71k5Uz/wFrcCMDJ5UqJpgy6y9d6xLATWkZ3m8w8dC
u8N4KFJrVFZEaDMmVgLVe3kw0xXBkmb1BMA2u/TpwxNNWtXhNN2vgCXmga5Kl9qrq3/UJO
N3uI+ETsxdn3luLF7kQ3T7gjwYggemABBPeeHw06pe35truoYmYRoWyeC/RAKEqFhG7ynn
i/SQucJTUTV8GJMEDlcZC9aAe2qietmiDzk5SiqjRwwB+7LUXKH3dvvp0FiupX5uUz3TSP
KWR+OW72aSqeJ61w/gShAcZxCD5UjPg+bqb5YLrI0WWnAAAAgQDKLDDb7MpWuzjtF4MTyb
polKuizyh9go0wIpHfOkZSOIbH360jTg0tkG7X1E7MQVDmHVTPSUdMixrS4YHGfmM3o1hr
IdgEAP3PKhXrGhXqymR2QUczQbS1TTwVsOxVO0vrQXXSzudE3/nOx5VPWsNFDt+Ay+Hsvy
5Ts0JrEG57UQAAAIEAzeYQpTbrG+3TE9v/oGuXZO/nLJfo1ZpTHDPiU2qcxX8Bost4xb36
xYbRIjilUlFw0u1D3K3BI4+vIGk6qyD1tHYpo7gRlCJwgGQR3V5nYfc4gY1jSS9hmTUOds
R5UzmhDjbuqdWXV934+Wt8LH8rHXNaQ4Kt5Ss//VldK+aQv4MAAACBALjXvfxQpIHyU+OD
5ToUSr6QsOQBsyEU6RAditM6uaOc1phAZhm0ikdWzEivuBK8FSpNJyYFR0pVzvpBAyBuzy
voRjMTpaYPLeA4D0y4Abe5KmJGXXqOsWyfMFFZIriDj/JE7v4lpeqvB/ymWDC8SjvNLFNT
6DiyvMCDVE8O3+lDAAAABHRlc3QBAgMEBQY=
-----END OPENSSH PRIVATE KEY-----
";

    #[test]
    fn rsa_signs_with_the_hash_that_is_asked_for_and_never_with_sha1() {
        let key = Secret::new(RSA);
        let bytes = public_key(&key).unwrap();
        let host = HostKey::parse(&private(&key).unwrap().public_key().to_openssh().unwrap()).unwrap();
        assert!(host.is(&bytes) && host.text().starts_with("ssh-rsa "));
        for (algorithm, other) in [("rsa-sha2-256", b"512"), ("rsa-sha2-512", b"256")] {
            let signature = sign(&key, algorithm.as_bytes(), b"session").unwrap();
            assert_eq!(signature.len(), 276);
            let bind = |host_key: &[u8], session: &[u8], signature: &[u8]| {
                Bind { host_key, session, signature, forwarding: false }.is_signed()
            };
            assert!(bind(&bytes, b"session", &signature) && !bind(&bytes, b"another", &signature));
            assert!(!bind(&bytes, b"session", &signature[..275]) && !bind(&bytes, b"session", &[]));
            // Under another name it is another signature.
            let mut renamed = signature.clone();
            renamed[13..16].copy_from_slice(other);
            assert!(!bind(&bytes, b"session", &renamed));
            assert!(!bind(&public_key(&secret(&self::key(1))).unwrap(), b"session", &signature));
        }
        for other in ["ssh-rsa", "", "rsa-sha2-1024", "ssh-ed25519"] {
            assert_eq!(sign(&key, other.as_bytes(), b"session"), Err(SshKeyError::Sha1));
        }
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
        let shown = format!("{:?} {}", sign(&Secret::new("-----BEGIN"), b"", b""), SshKeyError::NotPrivate);
        assert!(shown.contains("OPENSSH PRIVATE KEY"), "{shown}");
    }
}
