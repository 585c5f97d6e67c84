//! `palisade vault`: where secrets come from, and taking them back.

mod live;
mod sealed;
mod sources;
mod value;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::cli::block_on;
use crate::output::{Failure, Outcome, Output};

/// Keep secrets in a sealed file, try out where others come from, and take them from live sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum VaultCommand {
    /// Make a sealed file, and a key for it where there is none.
    Init(sealed::InitArgs),
    /// Add a secret to the sealed file; its value comes from standard input, a prompt or a file.
    Add(sealed::PutArgs),
    /// List the names in the sealed file. Values are not shown by any command.
    List(sealed::Place),
    /// Give a secret of the sealed file a new value; workers use it from the next request on.
    Rotate(sealed::PutArgs),
    /// Remove a secret from the sealed file; workers refuse it from the next request on.
    Remove(sealed::RemoveArgs),
    /// Encrypt the sealed file to a new key.
    Rekey(sealed::RekeyArgs),
    /// Read a file of credentials and say what is in it. No source is asked.
    Check(sources::CheckArgs),
    /// Fetch what a file of credentials names and say whether it can be had. Values are not shown.
    Test(sources::TestArgs),
    /// Take a secret from all sessions of a live worker, from the next request on, and revoke its leases.
    Revoke(live::ChangeArgs),
    /// Undo `revoke`.
    Allow(live::ChangeArgs),
    /// Show a live worker's credentials, what is revoked, and how the sources fare.
    Status(live::StatusArgs),
}

pub(crate) fn run(command: &VaultCommand, out: Output) -> Outcome {
    crate::local::harden();
    match command {
        VaultCommand::Init(args) => sealed::init(args, out),
        VaultCommand::Add(args) => sealed::add(args, out),
        VaultCommand::List(place) => sealed::list(place, out),
        VaultCommand::Rotate(args) => sealed::rotate(args, out),
        VaultCommand::Remove(args) => sealed::remove(args, out),
        VaultCommand::Rekey(args) => sealed::rekey(args, out),
        VaultCommand::Check(args) => sources::check(args, out),
        VaultCommand::Test(args) => block_on(sources::test(args, out))?,
        VaultCommand::Revoke(args) => block_on(live::revoke(args, out))?,
        VaultCommand::Allow(args) => block_on(live::allow(args, out))?,
        VaultCommand::Status(args) => block_on(live::status(args, out))?,
    }
}

/// What these commands do went as it should.
const DONE: ExitCode = ExitCode::SUCCESS;

/// Words where a value would stand if one could be given there. They are taken so that the refusal does not repeat them, as that
/// of the command line's own parser would.
#[derive(Debug, Args)]
pub(crate) struct NoValue {
    #[arg(hide = true, num_args = 0..)]
    words: Vec<OsString>,
}

impl NoValue {
    fn check(&self) -> Outcome<()> {
        if self.words.is_empty() {
            return Ok(());
        }
        Err(Failure::new("a value is never given on the command line")
            .why("every process of this machine can read it there, and shells keep it in their history")
            .fix(
                "give it on standard input, at the prompt, or with --from-file; if what you wrote was a secret, replace it where \
                 it is used",
            ))
    }
}
