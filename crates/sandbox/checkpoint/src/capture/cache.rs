//! What need not be read again: files that have not changed since the capture before.
//!
//! The kernel stamps a change with a clock that ticks every few milliseconds. A file that was changed in the tick in which it was
//! captured could change once more and look the same, so what is that young is not noted.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::store::{Durable, boot_id, write_whole};
use crate::tree::{self, Content, Reader, Xattrs};
use crate::{Error, Result, seal};

const MAGIC: &[u8] = b"palisade captured files 1\n";

/// How a file looks from outside. The times are of its content and of anything about it, as seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) changed: (i64, u32),
    pub(super) modified: (i64, u32),
}

/// What the files of a layer held.
#[derive(Debug, Default)]
pub(super) struct Cache {
    pub(super) files: HashMap<Stamp, (Content, Xattrs)>,
}

/// What the notes are about: a layer, until the machine starts again.
fn subject(upper: &Path) -> Option<Vec<u8>> {
    let stat = std::fs::symlink_metadata(upper).ok()?;
    let boot = boot_id();
    let mut bytes = Vec::new();
    tree::number(&mut bytes, stat.dev());
    tree::number(&mut bytes, stat.ino());
    tree::text(&mut bytes, boot.as_bytes());
    (!boot.is_empty()).then_some(bytes)
}

impl Cache {
    /// Reads the notes of the capture before. Whatever is wrong with them, they are only missed.
    pub(super) fn load(path: &Path, upper: &Path) -> Cache {
        let read = || {
            let bytes = std::fs::read(path).ok()?;
            let mut reader = Reader::new(seal::open(&bytes)?.strip_prefix(MAGIC)?);
            if reader.text().ok()? != subject(upper)? {
                return None;
            }
            let mut files = HashMap::new();
            while reader.end().is_err() {
                let stamp = stamp(&mut reader).ok()?;
                let content = tree::content_of(&mut reader).ok()?;
                files.insert(stamp, (content, tree::xattrs_of(&mut reader).ok()?));
            }
            Some(Cache { files })
        };
        read().unwrap_or_default()
    }

    /// Writes the notes for the next capture.
    pub(super) fn save(&self, path: &Path, upper: &Path) -> Result<()> {
        let Some(subject) = subject(upper) else { return Ok(()) };
        let mut bytes = MAGIC.to_vec();
        tree::text(&mut bytes, &subject);
        for (stamp, (content, xattrs)) in &self.files {
            for number in [stamp.device, stamp.inode, stamp.size] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            for (seconds, nanos) in [stamp.changed, stamp.modified] {
                bytes.extend_from_slice(&seconds.to_le_bytes());
                bytes.extend_from_slice(&nanos.to_le_bytes());
            }
            tree::content(&mut bytes, content);
            tree::xattrs(&mut bytes, xattrs);
        }
        let name = path.file_name().and_then(|name| std::str::from_utf8(name.as_bytes()).ok());
        let (Some(dir), Some(name)) = (path.parent(), name) else {
            return Err(Error::io("writing", path, std::io::Error::other("it is no name of a file")));
        };
        write_whole(dir, name, &seal::close(bytes), Durable::No)
    }
}

fn stamp(reader: &mut Reader<'_>) -> Result<Stamp, &'static str> {
    let mut number = || reader.array().map(u64::from_le_bytes);
    let (device, inode, size) = (number()?, number()?, number()?);
    let mut time = || Ok::<_, &'static str>((i64::from_le_bytes(reader.array()?), u32::from_le_bytes(reader.array()?)));
    Ok(Stamp { device, inode, size, changed: time()?, modified: time()? })
}
