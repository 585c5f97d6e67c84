//! `palisade backup`: a consistent copy of the database, online.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::cli::StateDir;
use crate::local;
use crate::output::{Failure, Outcome, Output};

/// Copy the server's database to a new file, while the server runs or not.
///
/// To restore it: stop the server, put the file at STATE_DIR/palisade.db, remove palisade.db-wal and palisade.db-shm beside
/// it, and start the server.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The file to write; it must not exist.
    file: PathBuf,
    #[command(flatten)]
    state: StateDir,
}

pub(crate) fn run(args: &BackupArgs, out: Output) -> Outcome {
    let database = local::database(&args.state.path()?);
    if !database.is_file() {
        return Err(Failure::new("cannot back up")
            .why(format!("there is no database at {}", database.display()))
            .fix("name the server's state directory with --state-dir"));
    }
    palisade_store::backup_file(&database, &args.file).map_err(|why| {
        Failure::new("cannot back up").why(why).fix("name a file that does not exist, in a directory with enough room")
    })?;
    let bytes = std::fs::metadata(&args.file).map(|file| file.len()).unwrap_or_default();
    out.either(
        &json!({"type": "backup", "path": args.file.display().to_string(), "bytes": bytes}),
        format!("wrote {} ({bytes} bytes)", args.file.display()),
    );
    Ok(ExitCode::SUCCESS)
}
