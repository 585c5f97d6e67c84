//! `palisade completions`: completion scripts.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use crate::output::Outcome;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "For bash: palisade completions bash > ~/.local/share/bash-completion/completions/palisade")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs, command: &mut clap::Command) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "palisade", &mut script);
    // A reader that has gone is no failure of ours.
    let _ = std::io::stdout().write_all(&script);
    Ok(ExitCode::SUCCESS)
}
