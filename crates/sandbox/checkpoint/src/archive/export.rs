//! Writing a checkpoint as a tar archive.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use tar::{EntryType, Header};

use super::header::{record, time};
use super::{OPAQUE, WHITEOUT, key};
use crate::error::At as _;
use crate::store::Store;
use crate::store::index::Index;
use crate::tree::{Content, Dir, Extent, Meta, Node};
use crate::{Error, Id, LayerPath, Result};

/// What kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Our own, from which the same checkpoint is imported.
    Own,
    /// A layer of an OCI image, for `docker`, `podman` and registries.
    OciLayer,
}

impl Store {
    /// Writes a checkpoint as an archive: whiteouts as `.wh.` files, times and attributes as pax records, holes as GNU's
    /// sparse format 1.0. Compressing it is the caller's.
    pub fn export(&self, id: &Id, format: Format, out: impl Write) -> Result<()> {
        let _lock = self.shared()?;
        self.show(id)?;
        let index = self.fresh_index()?;
        let tree = self.tree(&index, id)?;
        let mut export = Export { store: self, index: &index, format, out, linked: HashMap::new() };
        if format == Format::Own {
            let mut global = Vec::new();
            record(&mut global, key::BASE, tree.base.as_bytes());
            export.extended(EntryType::XGlobalHeader, &global)?;
        }
        let mut waiting = vec![(0, LayerPath::default())];
        while let Some((place, path)) = waiting.pop() {
            let dir = &tree.dirs[place];
            export.directory(&path, dir)?;
            for (name, node) in &dir.entries {
                if let Node::Directory(child) = node {
                    waiting.push((*child, path.join(name)));
                } else {
                    export.entry(&path, name, node)?;
                }
            }
        }
        export.put(&[0; 1024])?;
        export.out.flush().at("writing", Path::new("the archive"))
    }
}

struct Export<'s, W> {
    store: &'s Store,
    index: &'s Index,
    format: Format,
    out: W,
    /// The first path of files with several.
    linked: HashMap<u32, LayerPath>,
}

impl<W: Write> Export<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).at("writing", Path::new("the archive"))
    }

    fn pad(&mut self, len: u64) -> Result<()> {
        let rest = (len % 512) as usize;
        if rest == 0 { Ok(()) } else { self.put(&[0; 512][rest..]) }
    }

    fn extended(&mut self, kind: EntryType, records: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(records.len() as u64);
        header.as_mut_bytes()[..b"pax".len()].copy_from_slice(b"pax");
        header.set_cksum();
        self.put(header.as_bytes())?;
        self.put(records)?;
        self.pad(records.len() as u64)
    }

    /// Writes the header of an entry, with what does not fit into it before it.
    fn head(
        &mut self,
        kind: EntryType,
        path: &[u8],
        link: &[u8],
        meta: &Meta,
        size: u64,
        mut records: Vec<u8>,
    ) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        let plain = |bytes: &[u8]| bytes.len() <= 100 && bytes.is_ascii() && !bytes.contains(&b'\n');
        let mut whole = |place: std::ops::Range<usize>, key: &str, bytes: &[u8]| {
            if !plain(bytes) {
                record(&mut records, key, bytes);
            }
            let short = &bytes[..bytes.len().min(100)];
            header.as_mut_bytes()[place.start..place.start + short.len()].copy_from_slice(short);
        };
        whole(0..100, "path", path);
        whole(157..257, "linkpath", link);
        let mut number = |key: &str, value: u64, most: u64| {
            if value > most {
                record(&mut records, key, value.to_string().as_bytes());
                return 0;
            }
            value
        };
        header.set_uid(number("uid", u64::from(meta.uid), 0o7_777_777));
        header.set_gid(number("gid", u64::from(meta.gid), 0o7_777_777));
        header.set_size(number("size", size, 0o77_777_777_777));
        header.set_mtime(u64::try_from(meta.mtime.0).unwrap_or(0).min(0o77_777_777_777));
        if meta.mtime.1 != 0 || !(0..=0o77_777_777_777).contains(&meta.mtime.0) {
            record(&mut records, "mtime", time(meta.mtime).as_bytes());
        }
        for (name, value) in &meta.xattrs {
            // A key of a pax record is UTF-8 without an equals sign.
            let name = std::str::from_utf8(name).ok().filter(|name| !name.contains('='));
            let name =
                name.ok_or_else(|| Error::Archive("an extended attribute's name cannot be in an archive".to_owned()))?;
            record(&mut records, &format!("{}{name}", key::XATTR), value);
        }
        if !records.is_empty() {
            self.extended(EntryType::XHeader, &records)?;
        }
        header.set_cksum();
        self.put(header.as_bytes())
    }

    fn directory(&mut self, path: &LayerPath, dir: &Dir) -> Result<()> {
        let name = if path.0.is_empty() { b"./".to_vec() } else { [&path.0[..], b"/"].concat() };
        let records = self.literal(path)?;
        self.head(EntryType::Directory, &name, b"", &dir.meta, 0, records)?;
        if dir.opaque {
            self.mark(&path.join(OPAQUE), Vec::new())?;
        }
        Ok(())
    }

    fn mark(&mut self, path: &LayerPath, records: Vec<u8>) -> Result<()> {
        let meta = Meta { mode: 0o644, ..Meta::default() };
        self.head(EntryType::Regular, &path.0, b"", &meta, 0, records)
    }

    /// The record that keeps a name from being read as a whiteout, where that is needed.
    fn literal(&self, path: &LayerPath) -> Result<Vec<u8>> {
        let mut records = Vec::new();
        if path.0.rsplit(|byte| *byte == b'/').next().is_some_and(|name| name.starts_with(WHITEOUT)) {
            if self.format == Format::OciLayer {
                return Err(Error::Inexpressible(path.clone()));
            }
            record(&mut records, key::LITERAL, b"1");
        }
        Ok(records)
    }

    fn entry(&mut self, dir: &LayerPath, name: &[u8], node: &Node) -> Result<()> {
        let path = dir.join(name);
        match node {
            Node::Directory(_) => Ok(()),
            Node::Whiteout => {
                if name.len() + WHITEOUT.len() > 255 && self.format == Format::OciLayer {
                    return Err(Error::Inexpressible(path));
                }
                let mut records = Vec::new();
                if name.starts_with(WHITEOUT) {
                    if self.format == Format::OciLayer {
                        return Err(Error::Inexpressible(path));
                    }
                    record(&mut records, key::LITERAL, b"whiteout");
                }
                self.mark(&dir.join(&[WHITEOUT, name].concat()), records)
            }
            Node::Symlink { meta, target } => {
                let records = self.literal(&path)?;
                self.head(EntryType::Symlink, &path.0, target, meta, 0, records)
            }
            Node::File(file) => {
                let mut records = self.literal(&path)?;
                if let Some(link) = file.link {
                    if let Some(first) = self.linked.get(&link).cloned() {
                        return self.head(EntryType::Link, &path.0, &first.0, &file.meta, 0, records);
                    }
                    self.linked.insert(link, path.clone());
                }
                let extents = match &file.content {
                    Content::Inline(bytes) => {
                        self.head(EntryType::Regular, &path.0, b"", &file.meta, bytes.len() as u64, records)?;
                        self.put(bytes)?;
                        return self.pad(bytes.len() as u64);
                    }
                    Content::Extents(extents) => extents,
                };
                let size = file.content.size();
                let map = map(extents, size);
                let data = extents.iter().filter(|it| matches!(it, Extent::Chunk { .. })).map(Extent::len).sum::<u64>();
                let mut stored_path = path.0.clone();
                if map.is_some() {
                    record(&mut records, key::SPARSE_MAJOR, b"1");
                    record(&mut records, key::SPARSE_MINOR, b"0");
                    record(&mut records, key::SPARSE_NAME, &path.0);
                    record(&mut records, key::SPARSE_SIZE, size.to_string().as_bytes());
                    // Whoever does not know the format sees that the file is not whole.
                    stored_path = dir.join(b"GNUSparseFile.0").join(name).0;
                }
                let map = map.unwrap_or_default();
                let len = map.len() as u64 + data;
                self.head(EntryType::Regular, &stored_path, b"", &file.meta, len, records)?;
                self.put(&map)?;
                for extent in extents {
                    if let Extent::Chunk { id, .. } = extent {
                        let raw = self.store.read(self.index, id)?;
                        self.put(&raw)?;
                    }
                }
                self.pad(len)
            }
        }
    }
}

/// Where a file's data is, when it has holes: in decimal, one number a line, filled to a whole block.
fn map(extents: &[Extent], size: u64) -> Option<Vec<u8>> {
    let mut stretches: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    let mut holes = false;
    let mut new = true;
    for extent in extents {
        match (extent, stretches.last_mut()) {
            (Extent::Hole { .. }, _) => {
                holes = true;
                new = true;
            }
            (Extent::Chunk { len, .. }, Some(last)) if !new => last.1 += u64::from(*len),
            (Extent::Chunk { len, .. }, _) => {
                stretches.push((at, u64::from(*len)));
                new = false;
            }
        }
        at += extent.len();
    }
    if !holes {
        return None;
    }
    if stretches.last().is_none_or(|(start, len)| start + len < size) {
        // The end of the file is a stretch of nothing.
        stretches.push((size, 0));
    }
    let mut map = format!("{}\n", stretches.len()).into_bytes();
    for (start, len) in stretches {
        map.extend_from_slice(format!("{start}\n{len}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(512), 0);
    Some(map)
}
