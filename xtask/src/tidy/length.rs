//! A source file past the limit has two subjects.

use super::Finding;
use crate::workspace::TextFile;

const LIMIT: usize = 800;

/// Reports source files that are too long.
pub(super) fn check(file: &TextFile, findings: &mut Vec<Finding>) {
    let lines = file.text.lines().count();
    if lines > LIMIT && matches!(file.extension(), "rs" | "py" | "ts") {
        findings.push(Finding {
            path: file.path.clone(),
            line: LIMIT + 1,
            what: format!("{lines} lines; the limit is {LIMIT}"),
            fix: "split it by subject: a file this long has two".to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_sources_are_reported() {
        let count = |path: &str, lines: usize| {
            let mut findings = Vec::new();
            check(&TextFile { path: path.to_owned(), text: "x\n".repeat(lines) }, &mut findings);
            findings.len()
        };
        assert_eq!(count("a.rs", LIMIT), 0);
        assert_eq!(count("a.rs", LIMIT + 1), 1);
        assert_eq!(count("a.ts", LIMIT + 1), 1);
        assert_eq!(count("a.md", LIMIT + 1), 0);
    }
}
