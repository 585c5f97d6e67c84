//! `write`: a whole file, atomically.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde_json::Value;

use super::path::{For, Roots, explain};
use super::text;

pub(super) fn write(roots: &Roots, input: &Value) -> Result<String, String> {
    let given = text(input, "write", "file_path")?;
    let content = text(input, "write", "content")?;
    let path = roots.resolve("write", given, For::Writing)?;
    match fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_dir() => return Err(format!("write: {given}: is a directory")),
        Ok(meta) if !meta.is_file() => return Err(format!("write: {given} is not a regular file")),
        _ => {}
    }
    replace(&path, content.as_bytes()).map_err(|why| explain("write", given, &why))?;
    Ok(format!("wrote {} bytes to {given}", content.len()))
}

/// Puts a file into place in one step: a reader sees the old one or the new one, and a full disk leaves the old one.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    let mode = fs::metadata(path).map_or(0o644, |meta| meta.mode() & 0o777);
    let mut counter = 0;
    let (temporary, mut file) = loop {
        counter += 1;
        let name = format!(".palisade-{}-{counter}.tmp", std::process::id());
        let temporary = parent.join(name);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        match opened {
            Ok(file) => break (temporary, file),
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists && counter < 10_000 => {}
            Err(why) => return Err(why),
        }
    };
    let done = file
        .write_all(content)
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        // The first error is what matters.
        let _ = fs::remove_file(&temporary);
    }
    done
}
