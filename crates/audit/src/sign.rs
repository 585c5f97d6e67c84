//! Keys that sign checkpoints. Who has a trail but not its key cannot write it anew without being found out.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::SignerError;
use crate::record::{Hash, Seq};

/// The kind of a checkpoint's record.
pub(crate) const CHECKPOINT: &str = "trail.checkpoint";

/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

const PEM_BEGIN: &str = "-----BEGIN PUBLIC KEY-----\n";
const PEM_END: &str = "\n-----END PUBLIC KEY-----\n";

/// The body of a checkpoint's record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Checkpoint {
    /// The record before it, the last that it vouches for.
    pub(crate) seq: Seq,
    /// That record's hash.
    pub(crate) hash: String,
    /// Records after which the next checkpoint follows at the latest.
    pub(crate) every: u64,
    /// The id of the key.
    pub(crate) key: String,
    /// The signature of [`statement`], in base64.
    pub(crate) signature: String,
}

/// What is signed.
pub(crate) fn statement(seq: Seq, hash: Hash, time: &str, every: u64) -> String {
    format!("palisade audit checkpoint 1\nseq {seq}\nhash {hash}\ntime {time}\nevery {every}\n")
}

/// A private key that signs checkpoints. Keep it where who may write the trail's directory cannot read it.
#[derive(Clone)]
pub struct Signer {
    pair: Arc<Ed25519KeyPair>,
    public: PublicKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("public", &self.public).finish_non_exhaustive()
    }
}

impl Signer {
    /// Takes a key in PKCS#8, version 2 as RFC 8410 has it.
    ///
    /// # Errors
    ///
    /// The bytes are something else.
    pub fn from_pkcs8(der: &[u8]) -> Result<Signer, ring::error::KeyRejected> {
        let pair = Ed25519KeyPair::from_pkcs8(der)?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Ok(Signer { pair: Arc::new(pair), public: PublicKey(public) })
    }

    /// Reads the key in a file (PKCS#8, DER, mode 0600); makes one when there is none.
    ///
    /// # Errors
    ///
    /// The file cannot be used, holds something else, or can be read by others.
    pub fn open(path: &Path) -> Result<Signer, SignerError> {
        let failed = |step| move |cause| SignerError::Io { path: path.to_owned(), step, cause };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| SignerError::Random)?;
                create(path, der.as_ref()).map_err(failed("write it"))?;
                File::open(path).map_err(failed("open it"))?
            }
            Err(why) => return Err(failed("open it")(why)),
        };
        let mode = file.metadata().map_err(failed("look at it"))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SignerError::Exposed { path: path.to_owned(), mode });
        }
        let mut der = Zeroizing::new(Vec::with_capacity(256));
        io::Read::read_to_end(&mut io::Read::take(&mut file, 4096), &mut der).map_err(failed("read it"))?;
        Signer::from_pkcs8(&der).map_err(|_| SignerError::NoKey {
            path: path.to_owned(),
            expected: "PKCS#8 in DER, version 2. Where there is no file, one is made",
        })
    }

    /// The key that its signatures are verified with.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// The signature of a statement, in base64.
    pub(crate) fn sign(&self, statement: &str) -> String {
        STANDARD.encode(self.pair.sign(statement.as_bytes()))
    }

    /// The body of the checkpoint that follows a record.
    pub(crate) fn checkpoint(&self, seq: Seq, hash: Hash, time: &str, every: u64) -> Checkpoint {
        let signature = self.sign(&statement(seq, hash, time, every));
        Checkpoint { seq, hash: hash.to_string(), every, key: self.public.id(), signature }
    }
}

/// Writes a new file, readable by its owner only: whole, or not at all. One that another made meanwhile stays.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = dir.join(name);
    let outcome = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        match std::fs::hard_link(&new, path) {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    })();
    // It has a second name by now, or is of no use.
    let _ = std::fs::remove_file(&new);
    outcome?;
    File::open(dir)?.sync_all()
}

/// A key that checkpoints are verified with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl PublicKey {
    /// What checkpoints name it by: the first 16 digits of its SHA-256.
    pub fn id(&self) -> String {
        let mut id = Hash::of(&self.0).to_string();
        id.truncate(16);
        id
    }

    /// The key in PEM (SubjectPublicKeyInfo), as `openssl pkey -pubin` reads it.
    pub fn to_pem(&self) -> String {
        format!("{PEM_BEGIN}{}{PEM_END}", STANDARD.encode([&SPKI[..], &self.0].concat()))
    }

    /// Reads a key in PEM, as [`PublicKey::to_pem`] writes it.
    pub fn from_pem(pem: &str) -> Option<PublicKey> {
        let text = pem.trim().strip_prefix(PEM_BEGIN.trim())?.strip_suffix(PEM_END.trim())?;
        let der = STANDARD.decode(text.trim()).ok()?;
        der.strip_prefix(&SPKI)?.try_into().ok().map(PublicKey)
    }

    /// Reads a key from a PEM file.
    ///
    /// # Errors
    ///
    /// The file cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<PublicKey, SignerError> {
        let pem = std::fs::read_to_string(path).map_err(|cause| SignerError::Io {
            path: path.to_owned(),
            step: "read it",
            cause,
        })?;
        let expected = "a public key in PEM";
        PublicKey::from_pem(&pem).ok_or_else(|| SignerError::NoKey { path: path.to_owned(), expected })
    }

    /// Whether a statement was signed with the private half.
    pub(crate) fn holds(&self, statement: &str, signature: &str) -> bool {
        STANDARD.decode(signature).is_ok_and(|signature| {
            UnparsedPublicKey::new(&ED25519, &self.0).verify(statement.as_bytes(), &signature).is_ok()
        })
    }

    /// The file that a trail keeps it in.
    fn beside(&self, dir: &Path) -> PathBuf {
        dir.join(format!("checkpoint-{}.pem", self.id()))
    }

    /// Puts the key beside the trail that it verifies.
    pub(crate) fn put(&self, dir: &Path) -> Result<(), SignerError> {
        let path = self.beside(dir);
        let failed = |cause| SignerError::Io { path: path.clone(), step: "write it", cause };
        // One that was changed, or is half a file after a crash, is put right.
        if std::fs::read(&path).is_ok_and(|there| there == self.to_pem().as_bytes()) {
            return Ok(());
        }
        match std::fs::remove_file(&path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(failed(why)),
            _ => create(&path, self.to_pem().as_bytes()).map_err(failed),
        }
    }

    /// The keys beside a trail. Files that hold none are passed over: what they should vouch for will not verify.
    pub(crate) fn all_beside(dir: &Path) -> io::Result<Vec<PublicKey>> {
        let mut keys = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("checkpoint-") && name.ends_with(".pem") {
                keys.extend(PublicKey::read(&path).ok());
            }
        }
        Ok(keys)
    }
}
