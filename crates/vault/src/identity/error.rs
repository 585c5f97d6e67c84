//! What can go wrong with identities, with the fix beside it.

use std::io;
use std::path::PathBuf;

/// No identity, no key or no token.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// An option makes no sense.
    #[error("the {option} of workload identities must be {must}")]
    Option {
        /// Which option.
        option: &'static str,
        /// What it must be.
        must: &'static str,
    },
    /// The trust domain is none.
    #[error(
        "{0:?} is no trust domain: it must be 1 to 255 lower-case letters, digits, '.', '-' and '_', such as \"agents.example.com\""
    )]
    TrustDomain(String),
    /// A part of the workload's name cannot stand in a SPIFFE ID.
    #[error(
        "{value:?} cannot be the {part} in a workload identity: a part has 1 to 128 letters, digits, '.', '-' and '_', and is not \
         \".\" or \"..\""
    )]
    Segment {
        /// Which part.
        part: &'static str,
        /// What was given, its beginning.
        value: String,
    },
    /// The session has an identity.
    #[error("session {session} has a workload identity already: end it first")]
    Begun {
        /// The session.
        session: String,
    },
    /// The session has ended.
    #[error("session {session} has ended: there are no tokens for it")]
    Ended {
        /// The session.
        session: String,
    },
    /// The audience is none.
    #[error(
        "a token is for one audience, of 1 to 512 bytes without control characters, such as \"https://api.example.com\""
    )]
    Audience,
    /// There is no key to sign with.
    #[error("there is no key to sign workload identities with: the directory of keys could not be written")]
    NoKey,
    /// The system gives no random numbers, or a key does not sign.
    #[error("a workload identity could not be signed: the system gives no random numbers")]
    Random,
    /// Another process has the keys.
    #[error("the keys in {} are in use by another process. Stop it, or give this one a directory of its own", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory or a key is not its owner's alone.
    #[error("{} must be owned by the user of this process, with mode {must:03o} at most; it is of user {owner}, with mode {mode:03o}. \
             If others may have read or changed it, remove the keys: new ones are made", path.display())]
    Exposed {
        /// The directory or file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
        /// The most that it may have.
        must: u32,
    },
    /// A key cannot be read.
    #[error("{} is damaged: {cause}. Remove it: tokens that it signed will not verify any more, and a new key is made", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        cause: &'static str,
    },
    /// The directory or a file in it cannot be used.
    #[error("the key {} could not be used: {step}: {cause}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It is no token of this form.
    #[error("it is no signed token of a workload")]
    Malformed,
    /// Its algorithm is not ES256.
    #[error("it is not signed with ES256")]
    Algorithm,
    /// Its key is not in the key set.
    #[error("its key is not in the key set")]
    UnknownKey,
    /// The signature does not hold.
    #[error("its signature does not hold")]
    Signature,
    /// Another issuer signed it.
    #[error("it is of another issuer")]
    Issuer,
    /// It is for somebody else.
    #[error("it is for another audience")]
    Audience,
    /// It is not valid yet.
    #[error("it is not valid yet")]
    Early,
    /// It has expired.
    #[error("it has expired")]
    Expired,
    /// It is valid for longer than any that is signed here.
    #[error("it is valid for longer than 15 minutes")]
    Lifetime,
}
