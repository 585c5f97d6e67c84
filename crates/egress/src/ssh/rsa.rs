//! RSA as SSH uses it (RFC 8332): `rsa-sha2-256` and `rsa-sha2-512`. What signs with SHA-1, `ssh-rsa`, is refused.

use crypto_bigint::{BoxedUint, NonZero};
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair,
};
use ssh_key::private::RsaKeypair;
use ssh_key::public::RsaPublicKey;
use zeroize::Zeroizing;

use super::SshKeyError;
use super::wire::{Reader, string};

/// The kinds of signature, as they are called on the wire.
const SHA256: &[u8] = b"rsa-sha2-256";
const SHA512: &[u8] = b"rsa-sha2-512";

/// The fewest bits that a key may have.
pub(super) const LEAST: u32 = 2048;

/// Signs, in the way that what is signed names.
pub(super) fn sign(key: &RsaKeypair, algorithm: &[u8], data: &[u8]) -> Result<Vec<u8>, SshKeyError> {
    let padding: &dyn ring::signature::RsaEncoding = match algorithm {
        SHA256 => &RSA_PKCS1_SHA256,
        SHA512 => &RSA_PKCS1_SHA512,
        _ => return Err(SshKeyError::Sha1),
    };
    let (public, private) = (key.public(), key.private());
    let positive = |number: &ssh_key::Mpint| {
        number.as_positive_bytes().map(|bytes| Zeroizing::new(bytes.to_vec())).ok_or(SshKeyError::NotPrivate)
    };
    let (d, p, q) = (positive(private.d())?, positive(private.p())?, positive(private.q())?);
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n: positive(public.n())?, e: positive(public.e())? },
        // OpenSSH leaves the exponents of the primes out.
        dP: exponent(&d, &p)?,
        dQ: exponent(&d, &q)?,
        qInv: positive(private.iqmp())?,
        d,
        p,
        q,
    };
    let signer = RsaKeyPair::from_components(&components).map_err(|_| SshKeyError::NotPrivate)?;
    let mut signature = vec![0; signer.public().modulus_len()];
    signer.sign(padding, &SystemRandom::new(), data, &mut signature).map_err(|_| SshKeyError::NotPrivate)?;
    let mut blob = Vec::new();
    string(&mut blob, algorithm);
    string(&mut blob, &signature);
    Ok(blob)
}

/// `d mod (prime - 1)`, without zeros before it.
fn exponent(d: &[u8], prime: &[u8]) -> Result<Zeroizing<Vec<u8>>, SshKeyError> {
    let number = |bytes: &[u8]| {
        let bits = u32::try_from(bytes.len() * 8).map_err(|_| SshKeyError::NotPrivate)?;
        BoxedUint::from_be_slice(bytes, bits).map(Zeroizing::new).map_err(|_| SshKeyError::NotPrivate)
    };
    let less = Zeroizing::new(number(prime)?.wrapping_sub(BoxedUint::one()));
    let less = Option::from(NonZero::new((*less).clone())).ok_or(SshKeyError::NotPrivate)?;
    let rest = Zeroizing::new(number(d)?.rem(&less));
    let bytes = Zeroizing::new(rest.to_be_bytes().into_vec());
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(Zeroizing::new(bytes[zeros..].to_vec()))
}

/// Whether a signature, as it is on the wire, is of this key over `data`.
pub(super) fn verify(key: &RsaPublicKey, signature: &[u8], data: &[u8]) -> bool {
    let mut reader = Reader::new(signature);
    let (Some(algorithm), Some(bytes), Some(())) = (reader.string(), reader.string(), reader.end()) else {
        return false;
    };
    let parameters = match algorithm {
        SHA256 => &RSA_PKCS1_2048_8192_SHA256,
        SHA512 => &RSA_PKCS1_2048_8192_SHA512,
        _ => return false,
    };
    let (Some(n), Some(e)) = (key.n().as_positive_bytes(), key.e().as_positive_bytes()) else { return false };
    PublicKeyComponents { n, e }.verify(parameters, data, bytes).is_ok()
}
