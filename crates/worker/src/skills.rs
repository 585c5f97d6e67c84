//! Skills: archives of instructions and scripts, unpacked into `skills/<name>` of the workspace before the first call.
//!
//! An archive is untrusted. Only regular files and directories are taken from it, names that leave it refuse it as a whole,
//! and its size is counted while it is unpacked. The workspace is untrusted, too: an earlier call may have left links in
//! it. Nothing of the session runs while skills are installed (the journal's lock is held, no call has started), so what
//! is checked here stays as it was checked.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Cursor, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, lchown};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::client::{CallError, Client, Credential};
use crate::hands::Place;
use crate::wire::SkillRef;

/// What one skill may unpack to (the upload limit is 30 MB), in bytes and in members.
const LARGEST: u64 = 256 * 1024 * 1024;
const MEMBERS: usize = 10_000;

/// Why a skill is not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SkillError {
    #[error("it could not be looked up: {0}")]
    Version(CallError),
    #[error("it could not be downloaded: {0}")]
    Content(CallError),
    #[error("its name {0:?} cannot be a directory's")]
    Name(String),
    #[error("the workspace already has something at skills/{0} that is not from a skill")]
    Occupied(String),
    #[error("its archive is neither a zip nor a tar or tar.gz archive")]
    Format,
    #[error("its archive holds a member outside itself: {0:?}")]
    Escape(String),
    #[error("its archive holds {0:?} twice")]
    Twice(String),
    #[error("its archive is larger than {LARGEST} bytes or {MEMBERS} members unpacked")]
    TooLarge,
    #[error("its archive cannot be read: {0}")]
    Archive(io::Error),
    #[error("it cannot be written to the workspace: {0}")]
    Write(io::Error),
}

/// A downloaded skill.
pub(crate) struct Skill {
    /// Its directory's name under `skills/`.
    pub(crate) name: String,
    archive: Bytes,
}

/// Downloads one skill.
pub(crate) async fn fetch(client: &Client, credential: &Credential, skill: &SkillRef) -> Result<Skill, SkillError> {
    let version = skill.version.as_deref().filter(|version| !version.is_empty()).unwrap_or("latest");
    let found = client.skill_version(credential, &skill.skill_id, version).await.map_err(SkillError::Version)?;
    let name = found.name.rsplit('/').next().unwrap_or_default().to_owned();
    let name = if name.is_empty() { skill.skill_id.clone() } else { name };
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(plain) {
        return Err(SkillError::Name(name));
    }
    let archive = client.skill_content(credential, &skill.skill_id, &found.id).await.map_err(SkillError::Content)?;
    Ok(Skill { name, archive })
}

/// Unpacks a skill into the layer of a workspace that no sandbox has. `ours` are the names that earlier items installed; they
/// may be replaced.
pub(crate) async fn install(skill: Skill, place: Place, ours: Vec<String>) -> Result<(), SkillError> {
    let unpacked = tokio::task::spawn_blocking(move || {
        let below = |layer: &PathBuf| fs::symlink_metadata(layer.join("skills").join(&skill.name)).is_ok();
        if place.lower.iter().any(below) && !ours.contains(&skill.name) {
            return Err(SkillError::Occupied(skill.name.clone()));
        }
        unpack(&skill.archive, &place.upper, &skill.name, &ours)?;
        // Nothing of an earlier version that a checkpoint brought back shows through.
        let made = place.upper.join("skills").join(&skill.name);
        rustix::fs::setxattr(made, "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
            .map_err(|why| SkillError::Write(why.into()))
    })
    .await;
    unpacked.map_err(|error| SkillError::Write(io::Error::other(error)))?
}

/// Takes installed skills out of the layer of a workspace that no sandbox has.
pub(crate) fn remove(workspace: &Path, names: &[String]) {
    let skills = workspace.join("skills");
    if !is_directory(&skills) {
        return;
    }
    for name in names {
        let place = skills.join(name);
        // Does not follow links, neither at `place` nor below it.
        let removed = if is_directory(&place) { fs::remove_dir_all(&place) } else { Ok(()) };
        if let Err(error) = removed {
            tracing::warn!(path = %place.display(), %error, "a skill could not be removed from the workspace");
        }
    }
    // Only succeeds when nothing else is in it.
    let _ = fs::remove_dir(&skills);
}

/// Whether there is a directory, and not a link to one.
fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

struct Member {
    path: PathBuf,
    executable: bool,
    /// `None`: a directory.
    content: Option<Vec<u8>>,
}

fn unpack(archive: &Bytes, workspace: &Path, name: &str, ours: &[String]) -> Result<(), SkillError> {
    let mut members = members(archive)?;
    strip_wrapping(&mut members);
    let skills = workspace.join("skills");
    if !is_directory(&skills) {
        // Fails on anything else that is there, a link included.
        DirBuilder::new().mode(0o755).create(&skills).map_err(SkillError::Write)?;
    }
    let place = skills.join(name);
    if fs::symlink_metadata(&place).is_ok() {
        if !ours.iter().any(|known| known == name) || !is_directory(&place) {
            return Err(SkillError::Occupied(name.to_owned()));
        }
        fs::remove_dir_all(&place).map_err(SkillError::Write)?;
    }
    // The sandbox's user owns the workspace; with root that is not the worker's own.
    let owner = fs::metadata(workspace).map_err(SkillError::Write)?;
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
fn give(path: &Path, (user, group): Owner) -> Result<(), SkillError> {
    let found = fs::symlink_metadata(path).map_err(SkillError::Write)?;
    if (found.uid(), found.gid()) == (user, group) {
        return Ok(());
    }
    lchown(path, Some(user), Some(group)).map_err(SkillError::Write)
}

/// Makes a directory below `place`, and what is missing above it.
fn directory(place: &Path, path: &Path, owner: Owner) -> Result<(), SkillError> {
    if path != place
        && let Some(parent) = path.parent()
    {
        directory(place, parent, owner)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => give(path, owner),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_directory(path) => Ok(()),
        Err(error) => Err(SkillError::Write(error)),
    }
}

fn write(place: &Path, members: &[Member], owner: Owner) -> Result<(), SkillError> {
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
            io::ErrorKind::AlreadyExists => SkillError::Twice(member.path.display().to_string()),
            _ => SkillError::Write(error),
        })?;
        file.write_all(content).map_err(SkillError::Write)?;
        give(&target, owner)?;
    }
    Ok(())
}

fn members(archive: &Bytes) -> Result<Vec<Member>, SkillError> {
    if archive.starts_with(b"PK\x03\x04") || archive.starts_with(b"PK\x05\x06") {
        return from_zip(archive);
    }
    if archive.starts_with(b"\x1f\x8b") {
        return from_tar(flate2::read::GzDecoder::new(archive.as_ref()));
    }
    if archive.get(257..262) == Some(b"ustar".as_slice()) {
        return from_tar(archive.as_ref());
    }
    Err(SkillError::Format)
}

/// A member's path inside the archive; an absolute one or one with `..` refuses the archive.
fn inside(path: &Path) -> Result<PathBuf, SkillError> {
    let refuse = || SkillError::Escape(path.display().to_string());
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
    Ok(clean)
}

/// Reads a member, counting what the whole archive unpacks to: sizes that an archive states are not believed.
fn content(reader: &mut dyn Read, total: &mut u64) -> Result<Vec<u8>, SkillError> {
    let mut content = Vec::new();
    reader.take(LARGEST - *total + 1).read_to_end(&mut content).map_err(SkillError::Archive)?;
    *total += content.len() as u64;
    if *total > LARGEST { Err(SkillError::TooLarge) } else { Ok(content) }
}

fn from_zip(archive: &Bytes) -> Result<Vec<Member>, SkillError> {
    let broken = |error: zip::result::ZipError| SkillError::Archive(io::Error::other(error));
    let mut zip = zip::ZipArchive::new(Cursor::new(archive.as_ref())).map_err(broken)?;
    if zip.len() > MEMBERS {
        return Err(SkillError::TooLarge);
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

fn from_tar(reader: impl Read) -> Result<Vec<Member>, SkillError> {
    let mut tar = tar::Archive::new(reader.take(2 * LARGEST));
    let (mut members, mut total) = (Vec::new(), 0);
    for entry in tar.entries().map_err(SkillError::Archive)? {
        let mut entry = entry.map_err(SkillError::Archive)?;
        if members.len() >= MEMBERS {
            return Err(SkillError::TooLarge);
        }
        let path = inside(&entry.path().map_err(SkillError::Archive)?)?;
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
            assert!(matches!(unpack(&archive, dir.path(), "s", &[]), Err(SkillError::Escape(_))), "{path}");
        }
        let twice = tarball(&[("a", Regular, b"1", 0o644), ("a", Regular, b"2", 0o644)]);
        assert!(matches!(unpack(&twice, dir.path(), "s", &[]), Err(SkillError::Twice(_))));
        assert!(!dir.path().join("skills/s").exists());
        assert!(matches!(unpack(&Bytes::from_static(b"BZh9"), dir.path(), "s", &[]), Err(SkillError::Format)));

        let good = tarball(&[("a", Regular, b"1", 0o644)]);
        fs::create_dir(dir.path().join("skills/mine")).unwrap();
        assert!(matches!(unpack(&good, dir.path(), "mine", &[]), Err(SkillError::Occupied(_))));
        let elsewhere = tempfile::tempdir().unwrap();
        let linked = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), linked.path().join("skills")).unwrap();
        assert!(unpack(&good, linked.path(), "s", &[]).is_err());
        remove(linked.path(), &["s".into()]);
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}
