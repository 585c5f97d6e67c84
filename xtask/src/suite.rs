//! `cargo xtask test`: every stage runs, so that one look shows everything there is to repair.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::prerequisites;
use crate::tidy;
use crate::workspace::{self, Workspace};

/// Where the tests that drive the shipped program find it.
const BINARY: &str = "PALISADE_BIN";

/// How a stage ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    /// Not a failure, but never silent.
    NotRun(String),
}

struct Stage {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

/// Runs everything that a change must pass. An error is a one-line summary; the details are printed before it.
pub(crate) fn run(quick: bool) -> Result<(), String> {
    let root = workspace::root()?;
    let missing = prerequisites::missing(quick);
    if !missing.is_empty() {
        for line in &missing {
            eprintln!("missing: {line}");
        }
        return Err(format!("{} missing on this machine; nothing was run", missing.len()));
    }
    let mut stages = Vec::new();
    let mut stage = |name: &'static str, work: &mut dyn FnMut() -> Outcome| {
        println!("\n=== {name}");
        let start = Instant::now();
        let outcome = work();
        match &outcome {
            Outcome::Passed => {}
            Outcome::Failed(why) => println!("=== {name} FAILED: {why}"),
            Outcome::NotRun(why) => println!("=== {name} was not run: {why}"),
        }
        stages.push(Stage { name, outcome, took: start.elapsed() });
    };

    if !quick {
        stage("format", &mut || status(cargo(&root, &["fmt", "--all", "--check"])));
        let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        stage("clippy", &mut || status(cargo(&root, &clippy)));
    }
    stage("tidy", &mut tidy_stage);
    let mut binary = None;
    stage("build", &mut || match build(&root) {
        Ok(path) => {
            println!("built {}", path.strip_prefix(&root).unwrap_or(&path).display());
            binary = Some(path);
            Outcome::Passed
        }
        Err(why) => Outcome::Failed(why),
    });
    let with_binary = |mut command: Command| {
        if let Some(binary) = &binary {
            command.env(BINARY, binary);
        }
        command
    };
    stage("tests", &mut || status(with_binary(tests(&root))));
    stage("doc tests", &mut || status(with_binary(cargo(&root, &["test", "--workspace", "--doc", "--locked"]))));
    stage("compat", &mut || {
        let driver = root.join("compat/run.sh");
        if !driver.is_file() {
            return Outcome::NotRun("there is no compat/run.sh".to_owned());
        }
        if binary.is_none() {
            return Outcome::Failed("it needs the binary, which was not built".to_owned());
        }
        let mut command = Command::new("bash");
        command.arg(&driver).current_dir(&root);
        status(with_binary(command))
    });
    stage("kernel", &mut || {
        if quick {
            return Outcome::NotRun("it takes minutes; `cargo xtask test` has it".to_owned());
        }
        if binary.is_none() {
            return Outcome::Failed("it needs the binary, which was not built".to_owned());
        }
        let mut command = Command::new("bash");
        command.arg(root.join("compat/kernel/run.sh")).current_dir(&root);
        emulated(with_binary(command))
    });
    stage("dependencies", &mut || {
        if prerequisites::has_subcommand("deny") {
            status(cargo(&root, &["deny", "check", "bans", "licenses", "sources"]))
        } else {
            Outcome::NotRun("cargo-deny is not installed (cargo install --locked cargo-deny)".to_owned())
        }
    });

    print!("{}", table(&stages));
    let failed: Vec<&str> =
        stages.iter().filter(|it| matches!(it.outcome, Outcome::Failed(_))).map(|it| it.name).collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = workspace::cargo(root);
    command.args(arguments);
    command
}

/// The tests under nextest, which keeps each in its own process and bounds its time; else under cargo itself.
fn tests(root: &Path) -> Command {
    if !prerequisites::has_subcommand("nextest") {
        println!(
            "cargo-nextest is not installed, so the limits in .config/nextest.toml do not apply; using cargo test"
        );
        return cargo(root, &["test", "--workspace", "--all-targets", "--locked", "--no-fail-fast"]);
    }
    let mut command = cargo(root, &["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
    if std::env::var_os("CI").is_some() {
        command.args(["--profile", "ci"]);
    }
    command
}

fn tidy_stage() -> Outcome {
    let findings = match Workspace::load().and_then(|workspace| tidy::check(&workspace)) {
        Ok(findings) => findings,
        Err(why) => return Outcome::Failed(why),
    };
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {} findings", findings.len());
    if findings.is_empty() { Outcome::Passed } else { Outcome::Failed(format!("{} findings", findings.len())) }
}

fn status(mut command: Command) -> Outcome {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Outcome::Passed,
        Ok(status) => Outcome::Failed(status.to_string()),
        Err(error) => Outcome::Failed(format!("{program} did not start: {error}")),
    }
}

/// The same for what says with its exit code that it cannot be had on this machine.
fn emulated(mut command: Command) -> Outcome {
    const UNABLE: i32 = 3;
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.code() == Some(UNABLE) => Outcome::NotRun("see above for what is missing".to_owned()),
        Ok(status) if status.success() => Outcome::Passed,
        Ok(status) => Outcome::Failed(status.to_string()),
        Err(error) => Outcome::Failed(format!("bash did not start: {error}")),
    }
}

/// Builds the shipped binary and says where it is.
fn build(root: &Path) -> Result<PathBuf, String> {
    let mut command = cargo(root, &["build", "--release", "--locked", "--package", "palisade-cli"]);
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = command.output().map_err(|error| format!("cargo did not start: {error}"))?;
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    executable(&output.stdout).ok_or_else(|| "cargo names no executable called palisade".to_owned())
}

/// The path of the program in cargo's messages.
fn executable(messages: &[u8]) -> Option<PathBuf> {
    messages
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "palisade")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

fn table(stages: &[Stage]) -> String {
    use std::fmt::Write as _;
    let mut text = format!("\n{:<14}{:<9}{:>8}\n", "stage", "result", "seconds");
    for stage in stages {
        let (result, why) = match &stage.outcome {
            Outcome::Passed => ("passed", ""),
            Outcome::Failed(why) => ("FAILED", why.as_str()),
            Outcome::NotRun(why) => ("not run", why.as_str()),
        };
        let seconds = stage.took.as_secs_f64();
        let line = format!("{:<14}{result:<9}{seconds:>8.1}  {why}", stage.name);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_in_cargos_messages() {
        let messages = b"{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"serde\"},\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"palisade\"},\"executable\":\"/t/palisade\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/palisade")));
        assert_eq!(executable(b"\n"), None);
    }

    #[test]
    fn the_table_says_what_was_not_run_and_why() {
        let took = Duration::from_millis(1500);
        let stages = [
            Stage { name: "tidy", outcome: Outcome::Passed, took },
            Stage { name: "compat", outcome: Outcome::NotRun("no driver".into()), took },
        ];
        let text = table(&stages);
        assert!(text.contains("tidy          passed        1.5\n"), "{text}");
        assert!(text.contains("compat        not run       1.5  no driver\n"), "{text}");
    }

    #[test]
    fn a_failing_command_fails_its_stage() {
        assert_eq!(status(Command::new("true")), Outcome::Passed);
        assert!(matches!(status(Command::new("false")), Outcome::Failed(_)));
        assert!(matches!(status(Command::new("palisade-no-such-command")), Outcome::Failed(_)));
    }
}
