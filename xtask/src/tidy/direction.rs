//! Which crate may depend on which. The control plane's layers point one way, and the worker stays a remote client.

use super::Finding;
use crate::manifest;
use crate::workspace::{Crate, Kind};

const TESTKIT: &str = "palisade-testkit";

/// What each crate may depend on inside the workspace. Besides, each may have the test support as a dev-dependency.
const ALLOWED: &[(&str, &[&str])] = &[
    ("palisade-api", &[]),
    ("palisade-core", &["palisade-api"]),
    ("palisade-store", &["palisade-api", "palisade-core"]),
    ("palisade-engine", &["palisade-api", "palisade-core", "palisade-store"]),
    ("palisade-server", &["palisade-api", "palisade-core", "palisade-store", "palisade-engine"]),
    ("palisade-cell", &[]),
    ("palisade-checkpoint", &[]),
    ("palisade-hostile", &[]),
    ("palisade-sandbox", &["palisade-api", "palisade-cell"]),
    ("palisade-image", &["palisade-api"]),
    ("palisade-audit", &["palisade-api"]),
    ("palisade-egress", &["palisade-api"]),
    ("palisade-vault", &["palisade-api"]),
    // Never the store, the core, the engine or the server: it talks to any control plane, and only over the wire.
    (
        "palisade-worker",
        &[
            "palisade-api",
            "palisade-audit",
            "palisade-checkpoint",
            "palisade-egress",
            "palisade-image",
            "palisade-sandbox",
            "palisade-vault",
        ],
    ),
    (
        "palisade-cli",
        &[
            "palisade-api",
            "palisade-core",
            "palisade-store",
            "palisade-engine",
            "palisade-server",
            "palisade-cell",
            "palisade-checkpoint",
            "palisade-sandbox",
            "palisade-image",
            "palisade-audit",
            "palisade-egress",
            "palisade-vault",
            "palisade-worker",
        ],
    ),
    (TESTKIT, &["palisade-api"]),
    ("xtask", &[]),
];

/// Reports dependencies that the table above does not have.
pub(super) fn check(member: &Crate, members: &[Crate], manifest: &str, findings: &mut Vec<Finding>) {
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == member.name) else {
        findings.push(Finding {
            path: member.manifest.clone(),
            line: 1,
            what: format!("{} has no place in the dependency order", member.name),
            fix: "add it, with what it may depend on, to the table in xtask/src/tidy/direction.rs".to_owned(),
        });
        return;
    };
    let entries = manifest::entries(manifest);
    for dependency in &member.dependencies {
        let inside = members.iter().any(|it| it.name == dependency.name);
        let support = dependency.kind == Kind::Dev && dependency.name == TESTKIT && member.name != TESTKIT;
        if !inside || support || allowed.contains(&dependency.name.as_str()) {
            continue;
        }
        let table = match dependency.kind {
            Kind::Normal => "dependencies",
            Kind::Dev => "dev-dependencies",
            Kind::Build => "build-dependencies",
        };
        let line = entries
            .iter()
            .find(|it| {
                it.dependency().is_some_and(|(name, _)| name == dependency.name)
                    && it.section.split('.').any(|part| part == table)
            })
            .map_or(1, |it| it.line);
        let fix = if dependency.name == TESTKIT {
            format!("move {TESTKIT} to [dev-dependencies]: test support is never shipped")
        } else if allowed.is_empty() {
            format!("{} depends on no other crate of the workspace; move the code to where it is used", member.name)
        } else {
            format!(
                "{} may depend on {} only; move the code to where both may reach it",
                member.name,
                allowed.join(", ")
            )
        };
        findings.push(Finding {
            path: member.manifest.clone(),
            line,
            what: format!("{} must not depend on {} ([{table}])", member.name, dependency.name),
            fix,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn findings(name: &str, dependency: &str, kind: Kind, manifest: &str) -> Vec<Finding> {
        let named = |name: &str| Crate { name: name.to_owned(), ..Crate::default() };
        let mut member = named(name);
        member.dependencies.push(Dependency { name: dependency.to_owned(), kind });
        let members: Vec<Crate> = ALLOWED.iter().map(|(name, _)| named(name)).collect();
        let mut findings = Vec::new();
        check(&member, &members, manifest, &mut findings);
        findings
    }

    #[test]
    fn the_worker_never_links_the_control_plane() {
        for name in ["palisade-core", "palisade-store", "palisade-engine", "palisade-server"] {
            for kind in [Kind::Normal, Kind::Dev, Kind::Build] {
                assert_eq!(findings("palisade-worker", name, kind, "").len(), 1, "{name} {kind:?}");
            }
        }
    }

    #[test]
    fn a_finding_names_the_line_of_the_right_table() {
        let manifest = "[dev-dependencies]\npalisade-testkit.workspace = true\n\
                        [dependencies]\npalisade-testkit.workspace = true\n";
        let found = findings("palisade-api", TESTKIT, Kind::Normal, manifest);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 4);
        assert!(found[0].fix.contains("[dev-dependencies]"));
    }

    #[test]
    fn what_the_order_allows_passes() {
        assert_eq!(findings("palisade-store", "palisade-core", Kind::Normal, ""), []);
        assert_eq!(findings("palisade-core", TESTKIT, Kind::Dev, ""), []);
        assert_eq!(findings("palisade-core", "serde", Kind::Normal, ""), []);
        assert_eq!(findings("palisade-core", "palisade-store", Kind::Dev, "").len(), 1);
        assert_eq!(findings("palisade-cli", TESTKIT, Kind::Build, "").len(), 1);
    }

    #[test]
    fn a_new_crate_needs_a_place() {
        let found = findings("palisade-novelty", "serde", Kind::Normal, "");
        assert!(found[0].what.contains("no place"), "{found:?}");
    }
}
