//! Moves files between a stream and the sandbox's file system: the cell's program as a command, under the sandbox's own user
//! and behind its walls, so that a path means what it means to the agent.

use std::ffi::{OsStr, OsString};
use std::io;
use std::process::ExitCode;

use palisade_cell::archive;

/// Does what the word says: `pack` a path to standard output, or `unpack` standard input there.
pub(crate) fn run(word: &OsStr, path: Option<OsString>) -> ExitCode {
    // Where it was started is the sandbox's working directory.
    let path = std::env::current_dir().unwrap_or_default().join(path.unwrap_or_default());
    let moved = match word.to_str() {
        Some("pack") => archive::pack(&path, io::stdout().lock()).map_err(|why| why.to_string()),
        Some("unpack") => archive::unpack(io::stdin().lock(), &path).map_err(|why| why.to_string()),
        _ => return ExitCode::from(2),
    };
    match moved {
        Ok(moved) => {
            for name in moved.skipped {
                say(&format!("left out, as it is neither a file, a directory nor a link: {name}"));
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            say(&why);
            ExitCode::from(1)
        }
    }
}

#[expect(clippy::print_stderr, reason = "this is a command, and its errors are read by whoever started it")]
fn say(line: &str) {
    eprintln!("{line}");
}
