//! `palisade cp`: files into a sandbox and out of it.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use palisade_sandbox::archive;
use tokio_util::io::SyncIoBridge;

use crate::commands::sandboxes::{WorkerAt, failed};
use crate::output::{Context as _, Failure, Outcome, note, plain};

/// Copy a file or a tree into a session's sandbox, or out of it.
#[derive(Debug, Args)]
#[command(
    after_help = "One of the two is SESSION:PATH, the other a path of this machine. A path inside is one of the \
                        sandbox, below /workspace when it is not absolute. Into a directory that is there the copy goes \
                        under its own name, otherwise under the destination's. Modes, times and links are kept, owners \
                        are not; devices, pipes and sockets are left out."
)]
pub(crate) struct CpArgs {
    /// What is copied.
    source: String,
    /// Where to.
    destination: String,
    #[command(flatten)]
    worker: WorkerAt,
}

/// `SESSION:PATH`, unless it is a path of this machine.
fn inside(text: &str) -> Option<(&str, &str)> {
    let (session, path) = text.split_once(':')?;
    (!session.is_empty() && !session.contains('/')).then_some((session, path))
}

pub(crate) async fn run(args: &CpArgs) -> Outcome {
    let client = args.worker.client()?;
    match (inside(&args.source), inside(&args.destination)) {
        (None, Some((session, path))) => {
            let source = Path::new(&args.source).to_owned();
            std::fs::symlink_metadata(&source).context(format!("{} cannot be copied", args.source))?;
            let (reader, writer) = tokio::io::duplex(256 << 10);
            let packing = tokio::task::spawn_blocking(move || archive::pack(&source, SyncIoBridge::new(writer)));
            let sent = client.copy_in(session, path, reader).await;
            let packed = packing.await.context("the files could not be read")?;
            // Whoever refuses stops listening: its reason comes before the broken pipe that follows.
            sent.map_err(|why| failed("the copy was not made", &why))?;
            let moved = packed.context("the files could not be read")?;
            tell(&moved);
        }
        (Some((session, path)), None) => {
            let destination = Path::new(&args.destination).to_owned();
            let (reader, writer) = tokio::io::duplex(256 << 10);
            let bridge = SyncIoBridge::new(reader);
            let unpacking = tokio::task::spawn_blocking(move || archive::unpack(bridge, &destination));
            let received = client.copy_out(session, path, writer).await;
            let unpacked = unpacking.await.context("the files could not be written")?;
            match (received, unpacked) {
                (Err(why @ palisade_worker::perimeter::ClientError::Refused { .. }), _) => {
                    return Err(failed("the copy was not made", &why));
                }
                (_, Err(why)) => return Err(Failure::new("the copy was not made whole").why(why)),
                (Err(why), Ok(_)) => return Err(failed("the copy was not made whole", &why)),
                (Ok(()), Ok(moved)) => tell(&moved),
            }
        }
        _ => {
            return Err(Failure::new("nothing was copied")
                .why("one of the two paths must be in a sandbox, and one must not")
                .fix("write SESSION:PATH for the one in the sandbox"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(moved: &archive::Moved) {
    for name in &moved.skipped {
        note(format!("left out, as it is neither a file, a directory nor a link: {}", plain(name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_this_machine_is_not_a_session() {
        assert_eq!(inside("sesn_1:/a:b"), Some(("sesn_1", "/a:b")));
        assert_eq!(inside("sesn_1:"), Some(("sesn_1", "")));
        for path in ["./a:b", "/a:b", "a", ":a"] {
            assert_eq!(inside(path), None, "{path}");
        }
    }
}
