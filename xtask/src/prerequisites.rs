//! What the test command needs on the machine besides cargo, asked for before an hour of work depends on it.

use std::path::Path;
use std::process::{Command, Stdio};

const PYTHON: (u32, u32) = (3, 9);
const NODE: (u32, u32) = (20, 0);

/// Everything that is missing, each as one line that says how to get it.
pub(crate) fn missing(quick: bool) -> Vec<String> {
    let mut missing = Vec::new();
    if !cfg!(target_os = "linux") {
        missing.push(
            "Linux: the sandbox is made of its kernel's facilities; use a Linux machine or virtual machine".into(),
        );
    }
    if answer("git", &["--version"]).is_none() {
        missing.push("git: install it (Debian and Ubuntu: apt-get install git)".into());
    }
    match answer("cc", &["-print-file-name=libc.a"]) {
        None => missing.push(
            "a C compiler as `cc`, for SQLite and the cryptography (Debian and Ubuntu: apt-get install build-essential)"
                .into(),
        ),
        // The compiler repeats the bare name when it has no such file.
        Some(path) if !Path::new(path.trim()).is_absolute() => missing.push(
            "the static C library, because the binary is static (Debian and Ubuntu: apt-get install libc6-dev; \
             Fedora: dnf install glibc-static)"
                .into(),
        ),
        Some(_) => {}
    }
    let version = "import sys; print('%d.%d' % sys.version_info[:2])";
    match answer("python3", &["-c", version]) {
        None => missing.push("python3 3.9 or later (Debian and Ubuntu: apt-get install python3 python3-venv)".into()),
        Some(found) if !at_least(&found, PYTHON) => {
            missing.push(format!("python3 3.9 or later; the one on PATH is {}", found.trim()));
        }
        Some(_) => {
            if answer("python3", &["-c", "import venv, ensurepip"]).is_none() {
                missing.push("python3's venv and pip modules (Debian and Ubuntu: apt-get install python3-venv)".into());
            }
        }
    }
    match answer("node", &["--version"]) {
        None => missing.push("node 20 or later, with npm (https://nodejs.org/en/download)".into()),
        Some(found) if !at_least(&found, NODE) => {
            missing.push(format!(
                "node 20 or later; the one on PATH is {} (https://nodejs.org/en/download)",
                found.trim()
            ));
        }
        Some(_) => {}
    }
    if answer("npm", &["--version"]).is_none() {
        missing.push("npm (it comes with node from https://nodejs.org; Debian and Ubuntu: apt-get install npm)".into());
    }
    if !quick {
        for (command, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
            if answer(command, &["--version"]).is_none() {
                missing.push(format!("{component}: rustup component add {component}"));
            }
        }
    }
    missing
}

/// Whether cargo has this subcommand.
pub(crate) fn has_subcommand(name: &str) -> bool {
    answer(&format!("cargo-{name}"), &[name, "--version"]).is_some()
}

/// What a command prints, when it is there and succeeds.
fn answer(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a version such as `v20.11.1` or `3.9` is at least that.
fn at_least(version: &str, least: (u32, u32)) -> bool {
    let mut parts = version.trim().trim_start_matches('v').split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        for (version, enough) in
            [("3.9\n", true), ("3.11", true), ("3.8", false), ("2.7", false), ("4.0", true), ("", false)]
        {
            assert_eq!(at_least(version, PYTHON), enough, "{version:?}");
        }
        assert!(at_least("v20.0.0", NODE) && at_least("v22.1.0\n", NODE) && !at_least("v9.9.9", NODE));
    }

    #[test]
    fn a_command_that_is_not_there_has_no_answer() {
        assert_eq!(answer("palisade-no-such-command", &[]), None);
    }
}
