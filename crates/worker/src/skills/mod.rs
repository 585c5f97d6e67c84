//! Skills: archives of instructions and scripts, unpacked into `skills/<name>` of the workspace before the first call.
//!
//! An archive is untrusted. Only regular files and directories are taken from it, names that leave it refuse it as a whole,
//! and its size is counted while it is unpacked. The workspace is untrusted, too: an earlier call may have left links in
//! it. Nothing of the session runs while skills are installed (the journal's lock is held, no call has started), so what
//! is checked here stays as it was checked.

mod unpack;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::client::{CallError, Client, Credential};
use crate::hands::Place;
use crate::wire::SkillRef;
use unpack::{is_directory, unpack};

pub(crate) use unpack::UnpackError;

/// Why a skill is not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SkillError {
    #[error("it could not be looked up: {0}")]
    Version(CallError),
    #[error("it could not be downloaded: {0}")]
    Content(CallError),
    #[error("its name {0:?} cannot be a directory's")]
    Name(String),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
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
            return Err(UnpackError::Occupied(skill.name.clone()));
        }
        unpack(&skill.archive, &place.upper, &skill.name, &ours)?;
        // Nothing of an earlier version that a checkpoint brought back shows through.
        let made = place.upper.join("skills").join(&skill.name);
        rustix::fs::setxattr(made, "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
            .map_err(|why| UnpackError::Write(why.into()))
    })
    .await;
    Ok(unpacked.map_err(|error| UnpackError::Write(io::Error::other(error)))??)
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
