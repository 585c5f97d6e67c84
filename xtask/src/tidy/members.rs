//! Versions, features and lint levels are decided once, in the workspace's manifest.

use super::Finding;
use crate::manifest::{self, Entry};

const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];
/// What only the workspace's table may say about a dependency.
const DECIDED_ABOVE: [&str; 10] =
    ["version", "path", "git", "branch", "tag", "rev", "registry", "features", "default-features", "package"];

/// Reports what a member's manifest decides by itself.
pub(super) fn check(path: &str, text: &str, findings: &mut Vec<Finding>) {
    let entries = manifest::entries(text);
    let mut report = |line: usize, what: String, fix: String| {
        findings.push(Finding { path: path.to_owned(), line, what, fix });
    };
    if !entries.iter().any(|it| it.section == "lints" && it.key == "workspace" && it.value == "true") {
        report(1, "lint levels are not those of the workspace".into(), "add `[lints]` with `workspace = true`".into());
    }
    for entry in entries.iter().filter(|it| it.section.starts_with("lints.")) {
        report(
            entry.line,
            format!("`{}` has a lint level of its own here", entry.key),
            "set it in [workspace.lints], or put #[expect(…, reason = \"…\")] where it is needed".into(),
        );
    }
    for key in INHERITED {
        let inherited = format!("{key}.workspace");
        if !entries.iter().any(|it| it.section == "package" && it.key == inherited && it.value == "true") {
            let line = entries.iter().find(|it| it.section == "package" && it.key == key).map_or(1, |it| it.line);
            report(line, format!("`{key}` is not the workspace's"), format!("write `{inherited} = true`"));
        }
    }
    for entry in &entries {
        if let Some(name) = decides(entry) {
            report(
                entry.line,
                format!("`{name}` is specified here"),
                format!("specify it in [workspace.dependencies] and write `{name}.workspace = true`"),
            );
        }
    }
}

/// The dependency about which an entry says what only the workspace may.
fn decides(entry: &Entry) -> Option<&str> {
    let (name, key) = entry.dependency()?;
    let decided = match key {
        "" => {
            let table = entry.value.trim_matches(['{', '}']);
            let keys = table.split(',').filter_map(|pair| pair.split_once('=')).map(|(key, _)| key.trim());
            let mut inherits = false;
            let mut decided = false;
            for key in keys {
                inherits |= key == "workspace";
                decided |= DECIDED_ABOVE.contains(&key);
            }
            !inherits || decided
        }
        key => DECIDED_ABOVE.contains(&key),
    };
    decided.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"a\"\nversion.workspace = true\nedition.workspace = true\n\
        rust-version.workspace = true\nlicense.workspace = true\npublish.workspace = true\n\
        [lints]\nworkspace = true\n[dependencies]\nserde.workspace = true\n\
        tokio = { workspace = true, optional = true }\n";

    fn whats(text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check("Cargo.toml", text, &mut findings);
        findings.into_iter().map(|it| format!("{}: {}", it.line, it.what)).collect()
    }

    #[test]
    fn what_is_inherited_passes() {
        assert_eq!(whats(GOOD), [""; 0]);
    }

    #[test]
    fn what_a_member_decides_is_reported() {
        for (extra, expected) in [
            ("rand = \"1\"\n", "13: `rand` is specified here"),
            ("rand = { workspace = true, features = [\"x\"] }\n", "13: `rand` is specified here"),
            ("rand = { path = \"../rand\" }\n", "13: `rand` is specified here"),
            ("[dev-dependencies.rand]\nversion = \"1\"\n", "14: `rand` is specified here"),
            ("[lints.rust]\nunsafe_code = \"allow\"\n", "14: `unsafe_code` has a lint level of its own here"),
        ] {
            assert_eq!(whats(&format!("{GOOD}{extra}")), [expected], "{extra}");
        }
        let own = GOOD.replace("version.workspace = true\nedition", "version = \"1.0.0\"\nedition");
        assert_eq!(whats(&own), ["3: `version` is not the workspace's"]);
        let lax = GOOD.replace("[lints]\nworkspace = true\n", "");
        assert_eq!(whats(&lax), ["1: lint levels are not those of the workspace"]);
    }
}
