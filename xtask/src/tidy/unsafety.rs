//! Unsafe code lives where Linux isolation is, and each block says why it is sound.

use super::Finding;
use crate::lex;
use crate::workspace::TextFile;

const HOME: &str = "crates/sandbox/";

/// Reports unsafe code outside its home, and blocks there without their reason.
pub(super) fn check(file: &TextFile, findings: &mut Vec<Finding>) {
    if file.extension() != "rs" {
        return;
    }
    let code = lex::code_only(&file.text);
    let lines: Vec<&str> = file.text.lines().collect();
    for at in lex::words(&code, "unsafe") {
        let line = lex::line_of(&code, at);
        let after = code[at + "unsafe".len()..].trim_start();
        let needs_reason = after.starts_with('{') || lex::words(after, "impl").next() == Some(0);
        if !file.path.starts_with(HOME) {
            findings.push(Finding {
                path: file.path.clone(),
                line,
                what: format!("unsafe code outside {HOME}"),
                fix: format!("use a safe call, or give {HOME} a safe function that does it"),
            });
        } else if needs_reason && !has_reason(&lines, line) {
            findings.push(Finding {
                path: file.path.clone(),
                line,
                what: "an unsafe block without its reason".to_owned(),
                fix: "say right above it, in a `// SAFETY:` comment, why it is sound".to_owned(),
            });
        }
    }
}

/// Whether a `// SAFETY:` comment stands right above the statement that the line, from one, belongs to.
fn has_reason(lines: &[&str], line: usize) -> bool {
    let mut in_comment = false;
    for above in lines[..line - 1].iter().rev() {
        let above = above.trim();
        if let Some(comment) = above.strip_prefix("//") {
            if comment.trim_start().starts_with("SAFETY:") {
                return true;
            }
            in_comment = true;
        } else if in_comment || above.is_empty() || above.ends_with([';', '{', '}']) {
            return false;
        }
        // An attribute, or the statement began further up: go on.
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check(&TextFile { path: path.to_owned(), text: text.to_owned() }, &mut findings);
        findings.into_iter().map(|it| format!("{}: {}", it.line, it.what)).collect()
    }

    #[test]
    fn unsafe_code_stays_at_home() {
        assert_eq!(
            whats("crates/api/src/lib.rs", "fn f() {\n    unsafe { g() }\n}\n"),
            ["2: unsafe code outside crates/sandbox/"]
        );
        assert_eq!(whats("crates/api/src/lib.rs", "// unsafe { }\nconst X: &str = \"unsafe { }\";\n"), [""; 0]);
        assert_eq!(whats("crates/api/src/lib.rs", "#![deny(unsafe_code)]\n"), [""; 0]);
    }

    #[test]
    fn each_block_has_its_reason() {
        let path = "crates/sandbox/cell/src/lib.rs";
        for good in [
            "// SAFETY: sound.\nunsafe { g() }\n",
            "// SAFETY: sound,\n// very.\nlet x =\n    unsafe { g() };\n",
            "// SAFETY: sound.\n#[expect(x)]\nunsafe { g() };\n",
            "// SAFETY: sound.\nunsafe impl Send for X {}\n",
            "unsafe extern \"C\" fn f();\n",
        ] {
            assert_eq!(whats(path, good), [""; 0], "{good}");
        }
        for bad in [
            "g();\nunsafe { g() }\n",
            "// SAFETY: of another.\nlet y = 1;\nunsafe { g() }\n",
            "// Sound.\nunsafe { g() }\n",
            "// SAFETY: too far away.\n\nunsafe { g() }\n",
        ] {
            assert_eq!(whats(path, bad).len(), 1, "{bad}");
        }
    }
}
