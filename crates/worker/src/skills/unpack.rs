//! Unpacking a skill's archive, which is untrusted, into a workspace, which is untrusted, too.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Cursor, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, lchown};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

/// What one skill may unpack to (the upload limit is 30 MB), in bytes and in members.
const LARGEST: u64 = 256 * 1024 * 1024;
const MEMBERS: usize = 10_000;

/// What a member's path may have: without a limit its parents would be made by a recursion of any depth.
const DEEPEST: usize = 64;

/// How much of a member's path an error shows, in characters.
const SHOWN: usize = 200;

/// Why an archive is not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("the workspace already has something at skills/{0} that is not from a skill")]
    Occupied(String),
    #[error("its archive is neither a zip nor a tar or tar.gz archive")]
    Format,
    #[error("its archive holds a member outside itself: {0:?}")]
    Escape(String),
    #[error("its archive holds a member more than {DEEPEST} directories deep: {0:?}")]
    TooDeep(String),
    #[error("its archive holds {0:?} twice")]
    Twice(String),
    #[error("its archive is larger than {LARGEST} bytes or {MEMBERS} members unpacked")]
    TooLarge,
    #[error("its archive cannot be read: {0}")]
    Archive(io::Error),
    #[error("it cannot be written to the workspace: {0}")]
    Write(io::Error),
}

/// Whether there is a directory, and not a link to one.
pub(crate) fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

struct Member {
    path: PathBuf,
    executable: bool,
    /// `None`: a directory.
    content: Option<Vec<u8>>,
}

/// Unpacks an archive into `skills/<name>` of a workspace.
pub(crate) fn unpack(archive: &Bytes, workspace: &Path, name: &str, ours: &[String]) -> Result<(), UnpackError> {
    let mut members = members(archive)?;
    strip_wrapping(&mut members);
    let skills = workspace.join("skills");
    if !is_directory(&skills) {
        // Fails on anything else that is there, a link included.
        DirBuilder::new().mode(0o755).create(&skills).map_err(UnpackError::Write)?;
    }
    let place = skills.join(name);
    if fs::symlink_metadata(&place).is_ok() {
        if !ours.iter().any(|known| known == name) || !is_directory(&place) {
            return Err(UnpackError::Occupied(name.to_owned()));
        }
        fs::remove_dir_all(&place).map_err(UnpackError::Write)?;
    }
    // The sandbox's user owns the workspace; with root that is not the worker's own.
    let owner = fs::metadata(workspace).map_err(UnpackError::Write)?;
    let owner = (owner.uid(), owner.gid());
    give(&skills, owner)?;
    let written = write(&place, &members, owner);
    if written.is_err() {
        let _ = fs::remove_dir_all(&place);
    }
    written
}

type Owner = (u32, u32);

/// Gives a directory to its owner, unless it has it already.
fn give(path: &Path, (user, group): Owner) -> Result<(), UnpackError> {
    let found = fs::symlink_metadata(path).map_err(UnpackError::Write)?;
    if (found.uid(), found.gid()) == (user, group) {
        return Ok(());
    }
    lchown(path, Some(user), Some(group)).map_err(UnpackError::Write)
}

/// Makes a directory below `place`, and what is missing above it.
fn directory(place: &Path, path: &Path, owner: Owner) -> Result<(), UnpackError> {
    if path != place
        && let Some(parent) = path.parent()
    {
        directory(place, parent, owner)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => give(path, owner),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_directory(path) => Ok(()),
        Err(error) => Err(UnpackError::Write(error)),
    }
}

fn write(place: &Path, members: &[Member], owner: Owner) -> Result<(), UnpackError> {
    directory(place, place, owner)?;
    for member in members {
        let target = place.join(&member.path);
        let Some(content) = &member.content else {
            directory(place, &target, owner)?;
            continue;
        };
        if let Some(parent) = target.parent() {
            directory(place, parent, owner)?;
        }
        let mode = if member.executable { 0o755 } else { 0o644 };
        // Never through something that is there: the directory is new and holds only what this loop made.
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&target);
        let mut file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => UnpackError::Twice(member.path.display().to_string()),
            _ => UnpackError::Write(error),
        })?;
        file.write_all(content).map_err(UnpackError::Write)?;
        give(&target, owner)?;
    }
    Ok(())
}

fn members(archive: &Bytes) -> Result<Vec<Member>, UnpackError> {
    if archive.starts_with(b"PK\x03\x04") || archive.starts_with(b"PK\x05\x06") {
        return from_zip(archive);
    }
    if archive.starts_with(b"\x1f\x8b") {
        return from_tar(flate2::read::GzDecoder::new(archive.as_ref()));
    }
    if archive.get(257..262) == Some(b"ustar".as_slice()) {
        return from_tar(archive.as_ref());
    }
    Err(UnpackError::Format)
}

/// A member's path inside the archive; an absolute one or one with `..` refuses the archive.
fn inside(path: &Path) -> Result<PathBuf, UnpackError> {
    let shown = || path.display().to_string().chars().take(SHOWN).collect();
    let refuse = || UnpackError::Escape(shown());
    if path.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, 0 | b'\\')) {
        return Err(refuse());
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(refuse()),
        }
    }
    if clean.components().count() > DEEPEST { Err(UnpackError::TooDeep(shown())) } else { Ok(clean) }
}

/// Reads a member, counting what the whole archive unpacks to: sizes that an archive states are not believed.
fn content(reader: &mut dyn Read, total: &mut u64) -> Result<Vec<u8>, UnpackError> {
    let mut content = Vec::new();
    reader.take(LARGEST - *total + 1).read_to_end(&mut content).map_err(UnpackError::Archive)?;
    *total += content.len() as u64;
    if *total > LARGEST { Err(UnpackError::TooLarge) } else { Ok(content) }
}

fn from_zip(archive: &Bytes) -> Result<Vec<Member>, UnpackError> {
    let broken = |error: zip::result::ZipError| UnpackError::Archive(io::Error::other(error));
    let mut zip = zip::ZipArchive::new(Cursor::new(archive.as_ref())).map_err(broken)?;
    if zip.len() > MEMBERS {
        return Err(UnpackError::TooLarge);
    }
    let (mut members, mut total) = (Vec::new(), 0);
    for index in 0..zip.len() {
        let mut file = zip.by_index(index).map_err(broken)?;
        let path = inside(Path::new(file.name().map_err(broken)?.as_ref()))?;
        let mode = file.unix_mode().unwrap_or(0);
        let executable = mode & 0o111 != 0;
        // A link or a device, by the mode that Unix archivers store.
        let special = !matches!(mode & 0o170_000, 0 | 0o100_000 | 0o040_000);
        if path.as_os_str().is_empty() || special {
            continue;
        }
        let content = if file.is_dir() { None } else { Some(content(&mut file, &mut total)?) };
        members.push(Member { path, executable, content });
    }
    Ok(members)
}

fn from_tar(reader: impl Read) -> Result<Vec<Member>, UnpackError> {
    let mut tar = tar::Archive::new(reader.take(2 * LARGEST));
    let (mut members, mut total) = (Vec::new(), 0);
    for entry in tar.entries().map_err(UnpackError::Archive)? {
        let mut entry = entry.map_err(UnpackError::Archive)?;
        if members.len() >= MEMBERS {
            return Err(UnpackError::TooLarge);
        }
        let path = inside(&entry.path().map_err(UnpackError::Archive)?)?;
        let executable = entry.header().mode().unwrap_or(0) & 0o111 != 0;
        let kind = entry.header().entry_type();
        if path.as_os_str().is_empty() || !(kind.is_file() || kind.is_dir()) {
            continue;
        }
        let content = if kind.is_dir() { None } else { Some(content(&mut entry, &mut total)?) };
        members.push(Member { path, executable, content });
    }
    Ok(members)
}

/// Bundles wrap everything in one directory; it is taken off.
fn strip_wrapping(members: &mut Vec<Member>) {
    let Some(first) = members.first().and_then(|member| member.path.components().next()) else { return };
    let wrapping = PathBuf::from(first.as_os_str());
    let all = members
        .iter()
        .all(|member| member.path.starts_with(&wrapping) && (member.content.is_none() || member.path != wrapping));
    if !all {
        return;
    }
    for member in members.iter_mut() {
        if let Ok(rest) = member.path.strip_prefix(&wrapping) {
            member.path = rest.to_owned();
        }
    }
    members.retain(|member| !member.path.as_os_str().is_empty());
}

#[cfg(test)]
mod tests {
    use super::super::remove;
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn tarball(entries: &[(&str, tar::EntryType, &[u8], u32)]) -> Bytes {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, data, mode) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_size(data.len() as u64);
            // Written past the crate's own checks, as a hostile archive is.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            if *kind == tar::EntryType::Symlink {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            builder.append(&header, *data).unwrap();
        }
        builder.into_inner().unwrap().into()
    }

    #[test]
    fn a_wrapped_archive_is_unpacked_without_its_links() {
        use tar::EntryType::{Directory, Regular, Symlink};
        let dir = tempfile::tempdir().unwrap();
        let archive = tarball(&[
            ("pdf/", Directory, b"", 0o755),
            ("pdf/SKILL.md", Regular, b"# pdf", 0o600),
            ("pdf/bin/run", Regular, b"#!/bin/sh", 0o700),
            ("pdf/link", Symlink, b"", 0o777),
        ]);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&archive).unwrap();
        for (name, archive) in [("plain", archive), ("packed", gz.finish().unwrap().into())] {
            unpack(&archive, dir.path(), name, &[]).unwrap();
            let place = dir.path().join("skills").join(name);
            assert_eq!(fs::read_to_string(place.join("SKILL.md")).unwrap(), "# pdf");
            assert_eq!(fs::metadata(place.join("bin/run")).unwrap().permissions().mode() & 0o777, 0o755);
            assert!(fs::symlink_metadata(place.join("link")).is_err());
        }
        remove(dir.path(), &["plain".into(), "packed".into()]);
        assert!(!dir.path().join("skills").exists());
    }

    #[test]
    fn hostile_archives_and_places_are_refused() {
        use tar::EntryType::Regular;
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a/../../x", "a\\..\\x"] {
            let archive = tarball(&[(path, Regular, b"x", 0o644)]);
            assert!(matches!(unpack(&archive, dir.path(), "s", &[]), Err(UnpackError::Escape(_))), "{path}");
        }
        let twice = tarball(&[("a", Regular, b"1", 0o644), ("a", Regular, b"2", 0o644)]);
        assert!(matches!(unpack(&twice, dir.path(), "s", &[]), Err(UnpackError::Twice(_))));
        assert!(!dir.path().join("skills/s").exists());
        assert!(matches!(unpack(&Bytes::from_static(b"BZh9"), dir.path(), "s", &[]), Err(UnpackError::Format)));

        let good = tarball(&[("a", Regular, b"1", 0o644)]);
        fs::create_dir(dir.path().join("skills/mine")).unwrap();
        assert!(matches!(unpack(&good, dir.path(), "mine", &[]), Err(UnpackError::Occupied(_))));
        let elsewhere = tempfile::tempdir().unwrap();
        let linked = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), linked.path().join("skills")).unwrap();
        assert!(unpack(&good, linked.path(), "s", &[]).is_err());
        remove(linked.path(), &["s".into()]);
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn depth_costs_no_stack() {
        let dir = tempfile::tempdir().unwrap();
        // As deep as each kind of archive can say.
        let path = "a/".repeat(30_000);
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file(format!("{path}f"), zip::write::SimpleFileOptions::default()).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_pax_extensions([("path", "a/".repeat(300_000).as_bytes())]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
        for archive in [zip.finish().unwrap().into_inner(), tar.into_inner().unwrap()] {
            let refused = unpack(&archive.into(), dir.path(), "s", &[]).unwrap_err();
            assert!(matches!(refused, UnpackError::TooDeep(_)), "{refused}");
            assert!(refused.to_string().len() < 1000);
        }
        let deepest = "a/".repeat(DEEPEST - 1) + "f";
        unpack(&tarball(&[("f", tar::EntryType::Regular, b"x", 0o644)]), dir.path(), "s", &[]).unwrap();
        assert_eq!(inside(Path::new(&deepest)).unwrap().components().count(), DEEPEST);
    }

    /// Bytes of good archives, changed: whatever comes of them, nothing outside the skill's own directory.
    #[test]
    fn changed_archives_stay_inside() {
        use tar::EntryType::{Directory, Regular, Symlink};
        let tar = tarball(&[
            ("s/", Directory, b"", 0o755),
            ("s/SKILL.md", Regular, b"# s", 0o644),
            ("s/l", Symlink, b"", 0o777),
            ("s/bin/run", Regular, b"run", 0o755),
        ]);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&tar).unwrap();
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for name in ["s/a", "s/b/c"] {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(&[7; 300]).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("canary"), "alive").unwrap();
        let workspace = dir.path().join("workspace");
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        // A generator with a seed (xorshift), so that every run is the same.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        for good in [tar.to_vec(), gz.finish().unwrap(), zip.finish().unwrap().into_inner()] {
            for _ in 0..300 {
                let mut bad = good.clone();
                for _ in 0..=next(6) {
                    let at = next(bad.len());
                    bad[at] = [0, b'/', b'.', b'2', 0xff, u8::try_from(next(256)).unwrap()][next(6)];
                }
                // Most changes of headers would only break their checksums.
                for bytes in bad.chunks_exact_mut(512).filter(|it| &it[257..262] == b"ustar") {
                    let mut header = tar::Header::from_byte_slice(bytes).clone();
                    header.set_cksum();
                    bytes.copy_from_slice(header.as_bytes());
                }
                fs::create_dir(&workspace).unwrap();
                let _ = unpack(&bad.into(), &workspace, "s", &[]);
                assert_eq!(names(dir.path()), ["canary", "workspace"]);
                assert!(names(&workspace).iter().all(|name| name == "skills"));
                fs::remove_dir_all(&workspace).unwrap();
            }
        }
        assert_eq!(fs::read_to_string(dir.path().join("canary")).unwrap(), "alive");
    }
}
