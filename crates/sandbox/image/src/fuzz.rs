//! Doors for fuzzers: what strangers' bytes reach, one function for each kind of bytes. None of them panics, and none
//! touches anything outside the directory that it is given.

use std::io::{Seek as _, Write as _};
use std::path::Path;

use crate::archive::Files;
use crate::layout::{Layout, LayoutError};
use crate::manifest;
use crate::policy::{Limits, Platform};
use crate::reference::{LocalFormat, LocalReference};
use crate::unpack::{self, Ownership, UnpackError};

/// Unpacks bytes as a layer into an empty directory.
///
/// # Errors
/// When the layer is refused; then the directory may hold a part of it.
pub fn layer(bytes: &[u8], into: &Path, scratch: &Path, limits: &Limits) -> Result<(), UnpackError> {
    let file = scratch.join("layer");
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(file);
    let written = file.and_then(|mut file| {
        file.write_all(bytes)?;
        file.rewind()?;
        Ok(file)
    });
    let file = written.map_err(UnpackError::Archive)?;
    unpack::unpack(file, into, None, Ownership::possible(), limits).map(drop)
}

/// Reads bytes as an index or manifest and as a configuration; says whether they are either.
pub fn documents(bytes: &[u8]) -> bool {
    let platform = Platform::default();
    let document = manifest::document(bytes);
    let fits = match &document {
        Ok(manifest::Document::Index(entries)) => manifest::choose(entries, &platform).is_ok(),
        Ok(manifest::Document::Image(manifest)) => manifest.check(&Limits::default()).is_ok(),
        Err(_) => false,
    };
    fits || manifest::configuration(bytes, &platform, 1).is_ok()
}

/// Looks for the members of an archive at a path.
///
/// # Errors
/// When it is no archive.
pub fn archive(path: &Path, scratch: &Path, limits: &Limits) -> std::io::Result<()> {
    let unpacked = || {
        let file = scratch.join("archive");
        std::fs::File::options().read(true).write(true).create(true).truncate(true).open(file)
    };
    let files = Files::open(path, unpacked, limits)?;
    files.read("manifest.json", limits.document_bytes).map(drop)
}

/// Looks for an image in an archive at a path, taken for each of the forms that an archive can have.
///
/// # Errors
/// What the last of them is refused for.
pub fn layout(path: &Path, scratch: &Path, limits: &Limits) -> Result<(), LayoutError> {
    let open = |format| {
        let reference = LocalReference { format, path: path.to_owned(), name: None, digest: None };
        let unpacked = || {
            let file = scratch.join("archive");
            std::fs::File::options().read(true).write(true).create(true).truncate(true).open(file)
        };
        let layout = Layout::open(&reference, unpacked, limits)?;
        let (digest, _) = layout.top(&reference)?;
        layout.signatures(digest).map(drop)
    };
    // What the archive seems to be decides only between the two.
    let _ = Layout::format(path, limits);
    open(LocalFormat::OciArchive).or_else(|_| open(LocalFormat::DockerArchive))
}
