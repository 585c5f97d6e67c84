//! The head file: how far the chain went, so that a missing end is seen.
//!
//! Two lines of equal length, written in turn, so that one is whole whenever the machine stops. It is written after the records it
//! speaks of are durable, and can be behind them, never ahead. Where there is a signer each line is signed: who has the directory
//! can then neither move the head nor, while nobody writes, add records that the next writer would take for its predecessor's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::record::{Hash, Seq};
use crate::sign::{PublicKey, Signer};

/// The file's name in its directory.
pub(crate) const NAME: &str = "head";

/// `SEQ HASH SIGNATURE CHECK\n`: the number with 20 digits, the hash, the signature in base64, and the hash of all that.
const SLOT: usize = 20 + 1 + 64 + 1 + SIGNATURE + 1 + 64 + 1;

/// Characters of a signature.
const SIGNATURE: usize = 88;

/// What stands for a signature where there is none.
const UNSIGNED: [u8; SIGNATURE] = [b'-'; SIGNATURE];

/// What is signed.
fn statement(seq: Seq, hash: Hash) -> String {
    format!("palisade audit head 1\nseq {seq}\nhash {hash}\n")
}

/// How often a file that looks torn is read again: a writer may be at it.
const READS: usize = 5;

/// What a head file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    /// The last record that was durable.
    pub(crate) seq: Seq,
    /// Its hash.
    pub(crate) hash: Hash,
    signature: [u8; SIGNATURE],
    /// Whether one of the two lines is damaged. A machine that stops while a line is written leaves it so.
    pub(crate) torn: bool,
}

impl Said {
    /// Whether one of these keys has signed it. Before the first record there is nothing to sign.
    pub(crate) fn signed_by(&self, keys: &[PublicKey]) -> bool {
        let signature = std::str::from_utf8(&self.signature).unwrap_or_default();
        self.seq == 0 || keys.iter().any(|key| key.holds(&statement(self.seq, self.hash), signature))
    }
}

/// An open head file.
#[derive(Debug)]
pub(crate) struct HeadFile {
    file: File,
    signer: Option<Signer>,
    /// Which line is written next.
    next: u64,
}

fn slot(seq: Seq, hash: Hash, signature: [u8; SIGNATURE]) -> String {
    let text = format!("{seq:020} {hash} {}", std::str::from_utf8(&signature).unwrap_or_default());
    let check = Hash::of(text.as_bytes());
    format!("{text} {check}\n")
}

fn parse(line: &[u8]) -> Option<Said> {
    let text = std::str::from_utf8(line).ok()?;
    let (seq, hash) = (text.get(..20)?.parse().ok()?, text.get(21..85)?.parse().ok()?);
    let signature = text.as_bytes().get(86..86 + SIGNATURE)?.try_into().ok()?;
    (slot(seq, hash, signature).as_bytes() == line).then_some(Said { seq, hash, signature, torn: false })
}

/// Reads a head file; `None` when there is none.
pub(crate) fn read(dir: &Path) -> io::Result<Option<Result<Said, Damaged>>> {
    let mut outcome = Err(Damaged);
    for _ in 0..READS {
        let bytes = match std::fs::read(dir.join(NAME)) {
            Ok(bytes) => bytes,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(why),
        };
        outcome = said(&bytes);
        if outcome.is_ok_and(|said| !said.torn) {
            break;
        }
    }
    Ok(Some(outcome))
}

/// No line of a head file is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damaged;

fn said(bytes: &[u8]) -> Result<Said, Damaged> {
    if bytes.len() != 2 * SLOT {
        return Err(Damaged);
    }
    let (first, second) = bytes.split_at(SLOT);
    match (parse(first), parse(second)) {
        (Some(first), Some(second)) => Ok(if first.seq > second.seq { first } else { second }),
        (Some(said), None) | (None, Some(said)) => Ok(Said { torn: true, ..said }),
        (None, None) => Err(Damaged),
    }
}

impl HeadFile {
    /// Makes the file of a chain that has no record: all of it or nothing is there after a crash.
    pub(crate) fn create(dir: &Path) -> io::Result<()> {
        let new = dir.join("head.new");
        let start = slot(0, Hash::NONE, UNSIGNED);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all_at(format!("{start}{start}").as_bytes(), 0)?;
        file.sync_all()?;
        std::fs::rename(new, dir.join(NAME))
    }

    /// Opens the file and makes both of its lines whole.
    pub(crate) fn open(dir: &Path, signer: Option<Signer>, seq: Seq, hash: Hash) -> io::Result<HeadFile> {
        let file = OpenOptions::new().write(true).open(dir.join(NAME))?;
        let mut head = HeadFile { file, signer, next: 0 };
        // The one that is surely whole is overwritten last: it may be either, so the disk has the first before the second is begun.
        let said = std::fs::read(dir.join(NAME))?;
        head.next = u64::from(said.get(..SLOT).and_then(parse).is_some());
        head.write(seq, hash)?;
        head.sync()?;
        head.write(seq, hash)?;
        head.sync()?;
        Ok(head)
    }

    /// Says that the chain has reached a record, which is durable.
    pub(crate) fn write(&mut self, seq: Seq, hash: Hash) -> io::Result<()> {
        let signature = self.signer.as_ref().map(|signer| signer.sign(&statement(seq, hash)));
        // A signature has 64 bytes, which are 88 characters.
        let signature = signature.and_then(|text| text.into_bytes().try_into().ok()).unwrap_or(UNSIGNED);
        self.file.write_all_at(slot(seq, hash, signature).as_bytes(), self.next * SLOT as u64)?;
        self.next ^= 1;
        Ok(())
    }

    /// Makes what was said durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_whole_line_is_enough_and_the_later_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        HeadFile::create(dir.path()).unwrap();
        let mut head = HeadFile::open(dir.path(), None, 3, Hash::of(b"3")).unwrap();
        for seq in 4..9 {
            head.write(seq, Hash::of(&[9])).unwrap();
            let said = read(dir.path()).unwrap().unwrap().unwrap();
            assert_eq!((said.seq, said.hash, said.torn), (seq, Hash::of(&[9]), false));
        }
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            let said = said(&bytes).unwrap();
            assert!(said.torn && (7..=8).contains(&said.seq), "byte {at}: {said:?}");
        }
        for length in 0..whole.len() {
            assert_eq!(said(&whole[..length]), Err(Damaged));
        }
        // Opened again, both lines are whole, whichever was torn.
        for torn in [0, SLOT] {
            let mut bytes = whole.clone();
            bytes[torn] = 0;
            std::fs::write(&path, &bytes).unwrap();
            HeadFile::open(dir.path(), None, 9, Hash::NONE).unwrap();
            let whole = Said { seq: 9, hash: Hash::NONE, signature: UNSIGNED, torn: false };
            assert_eq!(read(dir.path()).unwrap().unwrap(), Ok(whole));
        }
    }
}
