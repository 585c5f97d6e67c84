//! Signatures in cosign's form: a tag `sha256-….sig` beside the image, whose layers are statements about the image's
//! digest and whose annotations are signatures of those statements (cosign, `specs/SIGNATURE_SPEC.md`).

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::Deserialize;

use crate::digest::Digest;

/// The media type of a statement.
pub(crate) const STATEMENT: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation that holds the signature, in base64.
pub(crate) const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// More signatures than this are not looked at.
pub(crate) const MOST: usize = 64;

/// What comes before the point in the DER form of a P-256 key (RFC 5480, section 2).
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A public key that signs images: ECDSA on P-256, what `cosign generate-key-pair` makes.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    point: Vec<u8>,
    name: Digest,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("the key {path} cannot be read: {cause}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// It is not a public key in PEM.
    #[error("the key is not a PEM file with one `BEGIN PUBLIC KEY`: give cosign's .pub file")]
    Pem,
    /// It is a key of another kind.
    #[error("the key is not an ECDSA key on P-256: no other kind is supported")]
    Kind,
}

/// Why no signature counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("{image} has no signature (tag {tag}), and one is required: sign it with cosign, or use a signed image")]
    Missing {
        /// The image's digest.
        image: Digest,
        /// Where it was looked for.
        tag: String,
    },
    /// There are some, but none by a required key.
    #[error("none of the {found} signatures of {image} is by a required key: check the key, and who signed the image")]
    Untrusted {
        /// The image's digest.
        image: Digest,
        /// How many were looked at.
        found: usize,
    },
}

impl PublicKey {
    /// Reads a key from a PEM file.
    ///
    /// # Errors
    /// When the file cannot be read or holds no ECDSA key on P-256.
    pub fn read(path: &Path) -> Result<PublicKey, KeyError> {
        let failed = |cause| KeyError::Read { path: path.display().to_string(), cause };
        std::fs::read_to_string(path).map_err(failed)?.parse()
    }

    /// The digest of the key's DER form, by which the store remembers who signed.
    pub(crate) fn name(&self) -> Digest {
        self.name
    }

    fn verifies(&self, statement: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point).verify(statement, signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.name)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(pem: &str) -> Result<PublicKey, KeyError> {
        let body = pem.trim().strip_prefix("-----BEGIN PUBLIC KEY-----").ok_or(KeyError::Pem)?;
        let body = body.strip_suffix("-----END PUBLIC KEY-----").ok_or(KeyError::Pem)?;
        let text: String = body.split_whitespace().collect();
        let der = STANDARD.decode(text).map_err(|_| KeyError::Pem)?;
        let point = der.strip_prefix(&P256_PREFIX).ok_or(KeyError::Kind)?;
        // 4 says that both coordinates follow.
        if point.len() != 65 || point[0] != 4 {
            return Err(KeyError::Kind);
        }
        Ok(PublicKey { point: point.to_vec(), name: Digest::of(&der) })
    }
}

/// The tag under which the signatures of an image are kept.
pub(crate) fn tag(image: Digest) -> String {
    format!("sha256-{}.sig", image.hex())
}

/// What a statement says, as far as it matters.
#[derive(Deserialize)]
struct Statement {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Subject,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

/// Which of the keys signed this statement, if the statement is about this image.
pub(crate) fn signer<'a>(
    keys: &'a [PublicKey],
    image: Digest,
    statement: &[u8],
    signature: &str,
) -> Option<&'a PublicKey> {
    let signature = STANDARD.decode(signature.trim()).ok()?;
    // The signature first: what nobody vouches for is not parsed.
    let key = keys.iter().find(|key| key.verifies(statement, &signature))?;
    let Statement { critical } = serde_json::from_slice(statement).ok()?;
    (critical.kind == "cosign container image signature" && critical.image.digest == image).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_p256_keys_in_pem_are_keys() {
        let der = |prefix: &[u8], point: &[u8]| {
            let text = STANDARD.encode([prefix, point].concat());
            format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n").parse::<PublicKey>()
        };
        let point = [&[4][..], &[7; 64]].concat();
        assert!(der(&P256_PREFIX, &point).is_ok());
        assert!(matches!(der(&P256_PREFIX, &point[..64]), Err(KeyError::Kind)));
        assert!(matches!(der(&P256_PREFIX[1..], &point), Err(KeyError::Kind)));
        assert!(matches!("".parse::<PublicKey>(), Err(KeyError::Pem)));
        assert!(matches!("-----BEGIN PUBLIC KEY-----".parse::<PublicKey>(), Err(KeyError::Pem)));
    }
}
