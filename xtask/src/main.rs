//! `cargo xtask`: the checks, the code generation and the test command of this repository.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for developers speaks to the terminal")]

mod codegen;
mod lex;
mod manifest;
mod prerequisites;
mod suite;
mod tidy;
mod workspace;

use std::process::ExitCode;

use workspace::Workspace;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [--quick]  everything a change must pass, in one go; --quick leaves out formatting, clippy and the emulated kernel
  tidy            the rules of the repository that no compiler checks
  codegen         write the generated files
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test"] => suite::run(false),
        ["test", "--quick"] => suite::run(true),
        ["tidy"] => run_tidy(),
        ["codegen"] => Workspace::load().and_then(|workspace| codegen::write(&workspace)),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run_tidy() -> Result<(), String> {
    let workspace = Workspace::load()?;
    let findings = tidy::check(&workspace)?;
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("tidy: {} files, {} crates, nothing to report", workspace.files.len(), workspace.crates.len());
            Ok(())
        }
        count => Err(format!("tidy found {count} to fix; each line above says how")),
    }
}
