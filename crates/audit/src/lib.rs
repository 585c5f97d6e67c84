//! The audit trail: records that are durable before what they allow happens, each bound to all before it.
//!
//! A trail is a directory of segments, files with one JSON record in each line. A record ends with the hash of the one before it
//! and with its own, which is the SHA-256 of the line up to there: whoever changes, removes, adds or moves a record breaks the chain
//! at that place. A head file says how far the chain went, so that a missing end is seen too. With a [`Signer`] the trail signs
//! itself at intervals, and then nobody without the key can write the whole chain anew. `docs/security/audit.md` has the format, and
//! what it proves.
//!
//! [`Trail`] writes, [`verify()`] proves, [`read`] shows, [`Trail::subscribe`] follows, [`Trail::archive`] makes room.

mod archive;
mod error;
mod follow;
mod head;
mod lock;
mod read;
mod record;
mod segment;
mod sign;
mod trail;
mod verify;
mod writer;

pub use archive::Archived;
pub use error::{AppendError, ArchiveError, Flaw, OpenError, ReadError, SignerError};
pub use follow::{Follow, Seen};
pub use read::{Filter, Records, read};
pub use record::{Hash, Record, Seq};
pub use sign::{PublicKey, Signer};
pub use trail::{Clock, Head, Options, Trail};
pub use verify::{Broken, Point, Report, Signed, verify, verify_archived, verify_with};
