//! What can go wrong, with the fix beside it.

use std::path::PathBuf;

use crate::record::{Hash, MAX_BODY, MAX_KIND, MAX_SESSION, Seq};
use crate::verify::Broken;

/// What is wrong at one place of a trail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A line is not a record.
    #[error("it is not a record as trails write them: {cause}")]
    Malformed {
        /// What does not fit.
        cause: String,
    },
    /// A record is not what its hash was made of.
    #[error("it was altered: its hash says {stated}, its bytes give {found}")]
    Altered {
        /// The hash in the record.
        stated: Hash,
        /// The hash of its bytes.
        found: Hash,
    },
    /// A record does not continue the one before it.
    #[error("it does not continue the record before it, {expected}: a record was removed, inserted or moved")]
    Unlinked {
        /// The hash of the record before it.
        expected: Hash,
    },
    /// A number is not the next one.
    #[error("it is number {found} where {expected} belongs: a record was removed, inserted or moved")]
    OutOfOrder {
        /// The number that belongs there.
        expected: Seq,
        /// The number that is there.
        found: Seq,
    },
    /// A segment is named for another record than the next one.
    #[error(
        "the segment begins with record {found} where {expected} belongs: a segment was removed, renamed or shortened"
    )]
    SegmentMissing {
        /// The record that a segment should begin with.
        expected: Seq,
        /// The record that this one is named for.
        found: Seq,
    },
    /// A segment before the last ends within a line.
    #[error("the segment ends within a record")]
    SegmentCut,
    /// The chain does not begin with its first record, and does not say that what came before was archived.
    #[error(
        "the trail begins with record {first}, and no record in it says that those before were archived: segments were removed"
    )]
    BeginningMissing {
        /// The first record that is there.
        first: Seq,
    },
    /// The end of the chain is missing.
    #[error("the chain ends with record {last}, but the head file says that it reached {head}: its end was cut off")]
    Truncated {
        /// The last record that is there.
        last: Seq,
        /// The record that was.
        head: Seq,
    },
    /// The chain is another one than the head file was written for.
    #[error("the head file says {stated} for this record: the chain was written anew, or the head is of another trail")]
    HeadDiffers {
        /// The hash in the head file.
        stated: Hash,
    },
    /// There are segments, and no head file.
    #[error("the head file is missing")]
    HeadMissing,
    /// The head file cannot be read.
    #[error("the head file is damaged")]
    HeadDamaged,
    /// The head file is not signed with a key that is trusted here.
    #[error(
        "the head file is not signed with a key that is trusted here, though the trail is: the head was moved, or is not its writer's"
    )]
    HeadForged,
    /// A checkpoint does not fit where it stands.
    #[error("it is a checkpoint that speaks of another place in the chain")]
    CheckpointMoved,
    /// A checkpoint's signature does not hold.
    #[error("its signature does not hold under key {key}")]
    Forged {
        /// The key that it names.
        key: String,
    },
    /// A checkpoint is signed with a key that is not known or not trusted.
    #[error("it is signed with key {key}, which is not among the keys that are trusted here")]
    UnknownKey {
        /// The key that it names.
        key: String,
    },
    /// There should be a checkpoint, and there is none.
    #[error(
        "no checkpoint covers it, though the trail is to be signed: what follows the last one was not written with its key"
    )]
    Unsigned,
}

/// A trail was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else writes it.
    #[error(
        "the audit trail in {} is in use by {holder}. Stop that process, or give this one a directory of its own", dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who holds it, as far as is known.
        holder: String,
    },
    /// What is there does not verify.
    #[error(
        "the audit trail in {} cannot be continued: {broken}. Keep the directory as evidence by moving it elsewhere; \
         a new trail begins where there is none", dir.display()
    )]
    Broken {
        /// The directory.
        dir: PathBuf,
        /// What was found, where.
        broken: Box<Broken>,
    },
    /// The trail is signed, and there is no key to sign on with.
    #[error(
        "the audit trail in {} is signed, and was opened without a key. Name the key it was begun with; \
         to go on without one, move the directory elsewhere, and a new trail begins", dir.display()
    )]
    KeyMissing {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory or a file in it cannot be used.
    #[error("the audit trail in {} could not be opened: {step}: {cause}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A limit in the options makes no sense.
    #[error("the audit trail's {option} must be at least {least}")]
    Option {
        /// Which option.
        option: &'static str,
        /// The least that works.
        least: &'static str,
    },
}

/// A record was not kept. What it would have allowed must not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// There is no room.
    #[error("the audit trail is full: there is no space left on its disk. Free some; it goes on by itself")]
    Full,
    /// The storage refuses for another reason.
    #[error("the audit trail could not be written: {step}: {cause}. It goes on by itself when its storage does")]
    Storage {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        cause: String,
    },
    /// The trail was closed, or its writer has ended.
    #[error("the audit trail is closed")]
    Closed,
    /// The body is no JSON, by its own serialiser.
    #[error("the body of a {kind:?} record could not be written as JSON: {cause}")]
    Body {
        /// The record's kind.
        kind: String,
        /// What the serialiser said.
        cause: String,
    },
    /// The body is too long.
    #[error(
        "the body of a {kind:?} record has {bytes} bytes; at most {MAX_BODY} are kept: record a digest of what is long"
    )]
    TooLarge {
        /// The record's kind.
        kind: String,
        /// Bytes of its body.
        bytes: usize,
    },
    /// The kind is no kind.
    #[error(
        "{kind:?} is no kind of record: it must be 1 to {MAX_KIND} lower-case letters, digits, '_' and '.', \
         and not begin with \"trail.\""
    )]
    Kind {
        /// What was given.
        kind: String,
    },
    /// The session's name is too long.
    #[error("a session's name has {bytes} bytes; at most {MAX_SESSION} are kept")]
    Session {
        /// Bytes of its name.
        bytes: usize,
    },
}

/// Segments were not archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file or directory cannot be used.
    #[error("the audit trail could not be archived: {step} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A segment does not read.
    #[error("the audit trail could not be archived: {}: {flaw}", path.display())]
    Flaw {
        /// The segment.
        path: PathBuf,
        /// What is wrong.
        flaw: Flaw,
    },
    /// There is another file in its place.
    #[error("{} is there already, and is not of this trail: name a directory of its own for each trail", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// It is to go where it is.
    #[error("the archive is the trail's own directory: name another one")]
    Same,
    /// The trail cannot say what was archived. Nothing was removed.
    #[error("nothing was removed, as the trail cannot say so: {0}")]
    Trail(#[from] AppendError),
    /// The program ends.
    #[error("the program ends")]
    GivenUp,
}

/// A trail could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file cannot be read.
    #[error("the audit trail could not be read: {}: {cause}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The directory holds no trail.
    #[error("there is no audit trail in {}", dir.display())]
    NoTrail {
        /// The directory.
        dir: PathBuf,
    },
    /// A line is not a record.
    #[error("{}, byte {offset}: {flaw}", path.display())]
    Flaw {
        /// The segment.
        path: PathBuf,
        /// Where the line begins.
        offset: u64,
        /// What is wrong.
        flaw: Flaw,
    },
}

/// A signing key or a public key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The file cannot be read or written.
    #[error("the key {} could not be used: {step}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no Ed25519 key: {expected}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What belongs there.
        expected: &'static str,
    },
    /// Others can read the private key.
    #[error("the key {} can be read by others (mode {mode:03o}): `chmod 600` it, or make a new one if they should not have", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// No key could be made.
    #[error("no signing key could be made: the system gives no random numbers")]
    Random,
}
