//! `palisade egress`: what may leave sandboxes, and what has left.

mod archive;
mod check;
mod tail;
mod test;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use clap::Subcommand;
use palisade_egress::policy::Policies;
use palisade_vault::{Surroundings, SystemClock};
use palisade_worker::{Credentials, IdentityConfig};

use crate::cli::block_on;
use crate::output::{Context as _, Failure, Outcome, Output};

/// Look at what may leave sandboxes, and at what has left.
#[derive(Debug, Subcommand)]
pub(crate) enum EgressCommand {
    /// Read a policy, and say what it decides about a request.
    Check(check::CheckArgs),
    /// Show what a session's sandboxes sent and were refused, from the audit trail.
    Tail(tail::TailArgs),
    /// Check that nothing in the audit trail was changed, removed or added.
    Verify(tail::VerifyArgs),
    /// Move what is old out of the audit trail, which goes on.
    Archive(archive::ArchiveArgs),
    /// Try to get past the egress service of this machine, and say what holds.
    Test(test::TestArgs),
    /// What sandboxes of the test run.
    #[command(hide = true)]
    Attempt(test::AttemptArgs),
}

pub(crate) fn run(command: &EgressCommand, out: Output) -> Outcome {
    match command {
        EgressCommand::Check(args) => check::run(args, out),
        EgressCommand::Tail(args) => tail::run(args, out),
        EgressCommand::Verify(args) => tail::verify(args, out),
        EgressCommand::Archive(args) => block_on(archive::run(args, out))?,
        EgressCommand::Test(args) => test::run(args, out),
        EgressCommand::Attempt(args) => test::attempt(args),
    }
}

/// The policies of a file.
pub(super) fn policies(path: &Path) -> Outcome<Policies> {
    let what = || format!("the egress policy {} cannot be used", path.display());
    let text = std::fs::read_to_string(path).map_err(|why| Failure::new(what()).why(why))?;
    Policies::parse(&text).map_err(|why| Failure::new(what()).why(why))
}

/// The credentials of a file, or none.
pub(super) fn credentials(path: Option<&Path>) -> Outcome<Credentials> {
    let (surroundings, clock) = (Surroundings::of_process(), Arc::new(SystemClock::new()));
    let Some(path) = path else {
        return Credentials::none(&surroundings, clock).context("the vault cannot be opened");
    };
    let what = || format!("the credentials in {} cannot be used", path.display());
    let text = std::fs::read_to_string(path).map_err(|why| Failure::new(what()).why(why))?;
    Credentials::parse(&text, &surroundings, clock).map_err(|why| Failure::new(what()).why(why))
}

/// Who signs identities, as a file says.
pub(super) fn identity(path: &Path) -> Outcome<IdentityConfig> {
    let what = || format!("the identities in {} cannot be used", path.display());
    let text = std::fs::read_to_string(path).map_err(|why| Failure::new(what()).why(why))?;
    serde_yaml_ng::from_str(&text).map_err(|why| Failure::new(what()).why(why))
}

/// The time of records and certificates.
#[expect(clippy::disallowed_methods, reason = "this is the clock that is handed in")]
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}

/// What these commands do went as it should.
const DONE: ExitCode = ExitCode::SUCCESS;
