//! The rules that no compiler checks. Each finding names a place and what to do about it.

mod direction;
mod length;
mod members;
mod unsafety;
mod words;

use std::fmt;

use crate::codegen;
use crate::workspace::Workspace;

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) path: String,
    /// From one.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}:{}: {}\n    fix: {}", self.path, self.line, self.what, self.fix)
    }
}

/// Runs every check; findings come in order of place.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<Finding>, String> {
    let mut findings = Vec::new();
    for member in &workspace.crates {
        let manifest = workspace.text(&member.manifest).unwrap_or_default();
        direction::check(member, &workspace.crates, manifest, &mut findings);
        members::check(&member.manifest, manifest, &mut findings);
    }
    for file in &workspace.files {
        length::check(file, &mut findings);
        words::check(file, &mut findings);
        unsafety::check(file, &mut findings);
    }
    codegen::check(workspace, &mut findings)?;
    findings.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    Ok(findings)
}
