//! Words that must not appear: names that say nothing, work left undone, and paths of one machine.

use super::Finding;
use crate::lex;
use crate::workspace::TextFile;

/// Parts of names that say nothing about the thing named; in files and modules their plurals too.
const EMPTY_NAMES: [&str; 5] = ["Manager", "Helper", "Util", "Utils", "Impl"];
const EMPTY_MODULES: [&str; 7] = ["manager", "managers", "helper", "helpers", "util", "utils", "impl"];
/// What a definition begins with.
const DEFINITIONS: [&str; 6] = ["struct", "enum", "trait", "type", "union", "mod"];

/// Marks of work left undone; split so that this file does not report itself.
const MARKS: [&str; 2] = [concat!("FIX", "ME"), concat!("XX", "X")];
/// Where one developer's files are; split for the same reason.
const PLACES: [&str; 5] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/Us", "ers/"),
    concat!("shared/des", "ign/"),
    concat!("shared/refer", "ence/"),
];
/// The API has a path segment with the name of the first place; what follows tells them apart.
const API_TAILS: [&str; 10] = ["{", "$", ":", "<", "*", "%", "poll", "stats", "work_", "sesn_"];
/// A line with this, and a reason after it, may name a place: a test may ask for a path because it must be refused.
const PLACE_ALLOWED: &str = "tidy: place allowed:";

/// Reports forbidden words in a file.
pub(super) fn check(file: &TextFile, findings: &mut Vec<Finding>) {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    // Checksums are random text, and nobody writes these files.
    if name.ends_with(".lock") || name == "package-lock.json" {
        return;
    }
    let mut report = |line: usize, what: String, fix: &str| {
        findings.push(Finding { path: file.path.clone(), line, what, fix: fix.to_owned() });
    };
    for mark in MARKS {
        for at in lex::words(&file.text, mark) {
            let fix = "finish it now, or open an issue and leave no mark";
            report(lex::line_of(&file.text, at), format!("`{mark}` marks work left undone"), fix);
        }
    }
    for (number, line) in file.text.lines().enumerate() {
        if let Some(place) = place(line) {
            let fix = format!(
                "use a path relative to the repository or a temporary folder; a test that asks for it to be refused \
                 says so on the line: `{PLACE_ALLOWED} reason`"
            );
            report(number + 1, format!("`{place}` is a place on one machine"), &fix);
        }
    }
    if file.extension() != "rs" {
        return;
    }
    let module = file.path.trim_end_matches("/mod.rs").trim_end_matches(".rs").rsplit('/').next().unwrap_or_default();
    if EMPTY_MODULES.contains(&module) {
        report(1, format!("the file name `{module}` says nothing"), "name it for what is in it");
    }
    let code = lex::code_only(&file.text);
    for (at, what, fix) in code_findings(&code) {
        report(lex::line_of(&code, at), what, fix);
    }
}

/// Offsets in code with what is wrong there and what to do.
fn code_findings(code: &str) -> Vec<(usize, String, &'static str)> {
    let mut found = Vec::new();
    for name in ["todo", "unimplemented"] {
        for at in lex::words(code, name) {
            if code[at + name.len()..].starts_with("!(") {
                found.push((
                    at,
                    format!("`{name}!` is work left undone"),
                    "write it, or return an error that says why",
                ));
            }
        }
    }
    for at in lex::words(code, "ignore") {
        let before = code[..at].trim_end();
        if before.ends_with("#[") || (before.ends_with(',') && open_attribute(before).contains("cfg_attr")) {
            found.push((at, "an ignored test tests nothing".to_owned(), "make it pass, or remove it"));
        }
    }
    for at in lex::words(code, "dead_code") {
        let list = code[..at].rfind('(').map_or("", |open| code[..open].trim_end());
        if list.ends_with("allow") {
            found.push((at, "dead code is kept".to_owned(), "remove the code that nothing uses"));
        }
    }
    for keyword in DEFINITIONS {
        for at in lex::words(code, keyword) {
            let rest = code[at + keyword.len()..].trim_start();
            let end = rest.find(|it: char| !it.is_alphanumeric() && it != '_').unwrap_or(rest.len());
            let name = &rest[..end];
            let empty = match keyword {
                "mod" => name.split('_').any(|part| EMPTY_MODULES.contains(&part)),
                _ => parts(name).any(|part| EMPTY_NAMES.contains(&part)),
            };
            if empty {
                let fix = "name it for what it is: the API's noun or the field's term";
                found.push((at, format!("the name `{name}` says nothing"), fix));
            }
        }
    }
    found
}

/// The attribute that is still open at the end of a text, or nothing.
fn open_attribute(before: &str) -> &str {
    before.rfind("#[").map_or("", |start| &before[start..])
}

/// The parts of a name in camel case.
fn parts(name: &str) -> impl Iterator<Item = &str> {
    let mut starts: Vec<usize> = name.char_indices().filter(|(_, it)| it.is_uppercase()).map(|(at, _)| at).collect();
    starts.push(name.len());
    starts.windows(2).map(|pair| &name[pair[0]..pair[1]]).collect::<Vec<_>>().into_iter()
}

/// A place on one machine that a line names.
fn place(line: &str) -> Option<&'static str> {
    if line.split_once(PLACE_ALLOWED).is_some_and(|(_, reason)| !reason.trim().is_empty()) {
        return None;
    }
    PLACES.into_iter().find(|place| {
        line.match_indices(place).any(|(at, _)| {
            // A path begins here, it does not go on: `{base}/…` and `a/…` are somewhere else.
            let begins = match line[..at].chars().next_back() {
                Some(before) => !(before.is_alphanumeric() || "})]>_-.$*%/".contains(before)),
                None => true,
            };
            let rest = &line[at + place.len()..];
            let api = *place == PLACES[0] && API_TAILS.iter().any(|tail| rest.starts_with(tail));
            (begins || !place.starts_with('/')) && !api
        })
    })
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
    fn empty_names_are_reported_where_they_are_defined() {
        for (text, name) in [
            ("\npub struct SessionManager;", "SessionManager"),
            ("\nenum UtilKind {}", "UtilKind"),
            ("\ntrait StoreImpl<T> {}", "StoreImpl"),
            ("\nmod utils;", "utils"),
            ("\npub(crate) mod test_helpers {}", "test_helpers"),
        ] {
            assert_eq!(whats("a.rs", text), [format!("2: the name `{name}` says nothing")]);
        }
        for fine in ["struct Utilisation;", "use x::FooManager;", "// struct FooManager", "impl Foo {}", "mod implied;"]
        {
            assert_eq!(whats("a.rs", fine), [""; 0], "{fine}");
        }
        assert_eq!(whats("src/utils.rs", ""), ["1: the file name `utils` says nothing"]);
        assert_eq!(whats("src/helpers/mod.rs", ""), ["1: the file name `helpers` says nothing"]);
    }

    #[test]
    fn undone_work_is_reported() {
        for bad in [
            "fn f() { todo!() }",
            "fn f() { unimplemented!(\"x\") }",
            "#[ignore]",
            "#[ignore = \"slow\"]",
            "#[cfg_attr(miri, ignore)]",
            "#![allow(dead_code)]",
            "#[allow(unused, dead_code)]",
        ] {
            assert_eq!(whats("a.rs", bad).len(), 1, "{bad}");
        }
        for fine in ["let todo = 1;", "// todo!(", "#[expect(dead_code)]", "ignore(x)", "f(a, ignore)"] {
            assert_eq!(whats("a.rs", fine), [""; 0], "{fine}");
        }
        assert_eq!(whats("a.md", &format!("x\n{}: later", MARKS[0])).len(), 1);
        assert_eq!(whats("a.sh", &format!("mktemp -d t.{}{}", MARKS[1], MARKS[1])), [""; 0]);
        assert_eq!(whats("Cargo.lock", MARKS[0]), [""; 0]);
    }

    #[test]
    fn places_of_one_machine_are_reported() {
        let (first, second) = (PLACES[0], PLACES[1]);
        for bad in [
            format!("cd {first}main"),
            format!("\"{second}x\""),
            format!("a={second}x"),
            format!("see ../{}x.md", PLACES[3]),
            format!("\"{second}x\" // {PLACE_ALLOWED} "),
        ] {
            assert_eq!(whats("a.md", &bad).len(), 1, "{bad}");
        }
        for fine in [
            format!("/v1/environments/e{first}poll"),
            format!("\"{first}{{work_id}}/ack\""),
            format!("{{base}}{second}x"),
            format!("target{second}x"),
            format!("\"{second}x\" // {PLACE_ALLOWED} it must be refused"),
            "/workspace/x".to_owned(),
        ] {
            assert_eq!(whats("a.md", &fine), [""; 0], "{fine}");
        }
    }
}
