//! What every driver says first to the cell inside walls that are not the cell's own.

use std::io;

use palisade_cell::{Claim, Ready, Reply, Request, Setup, check_length, decode, encode};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::native::{self, START};
use crate::sandbox::{Sink, Source};
use crate::{Error, Spec};

/// A cell that is up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Up {
    /// The Landlock ABI in force; zero without.
    pub(crate) landlock_abi: i32,
    /// Whether the cell's own filters are in force.
    pub(crate) seccomp: bool,
    /// Whether those of a runtime were before them.
    pub(crate) filtered: bool,
    /// What could not be done.
    pub(crate) notes: Vec<String>,
}

/// The frames for a cell that finds its walls built. `own_users` says whether the kernel counts the sandbox's processes
/// apart from those of others.
pub(crate) fn given(spec: &Spec, own_users: bool) -> (Setup, Claim) {
    let (mut setup, claim) = native::frames(spec);
    if !own_users {
        // It would count every process of this user on the host.
        setup.rlimits.retain(|(resource, _)| *resource != libc::RLIMIT_NPROC);
    }
    (setup, claim)
}

/// Hands a cell its frames and waits until it is up.
pub(crate) async fn greet(reader: &mut Source, writer: &mut Sink, frames: &(Setup, Claim)) -> Result<Up, Error> {
    let bytes = native::encoded(frames)?;
    let talk = async {
        writer.write_all(&bytes).await.map_err(|_| Error::Ended)?;
        writer.flush().await.map_err(|_| Error::Ended)?;
        loop {
            match ready(reader).await? {
                Ready::Led | Ready::Built { .. } => {}
                Ready::Up { landlock_abi, seccomp, filtered, notes } => {
                    return Ok(Up { landlock_abi, seccomp, filtered, notes });
                }
                failed @ Ready::Failed { .. } => return Err(native::failed(failed)),
            }
        }
    };
    tokio::time::timeout(START, talk).await.map_err(|_| Error::Timeout(START.as_secs()))?
}

/// Has a cell that was at rest go on.
pub(crate) async fn wake(reader: &mut Source, writer: &mut Sink) -> Result<(), Error> {
    let wake = encode(&Request::Wake, &[]).map_err(Error::Protocol)?;
    writer.write_all(&wake).await.map_err(|_| Error::Ended)?;
    writer.flush().await.map_err(|_| Error::Ended)?;
    let heard = frame(reader).await.map_err(ended)?;
    match decode(&heard).map_err(Error::Protocol)? {
        (Reply::Awake, _) => Ok(()),
        _ => Err(Error::Protocol(io::ErrorKind::InvalidData.into())),
    }
}

/// The cell's next word.
async fn ready(reader: &mut Source) -> Result<Ready, Error> {
    let frame = frame(reader).await.map_err(ended)?;
    let (ready, _) = decode(&frame).map_err(Error::Protocol)?;
    Ok(ready)
}

/// The next frame of a cell.
pub(crate) async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let mut frame = vec![0; check_length(length)?];
    from.read_exact(&mut frame).await?;
    Ok(frame)
}

fn ended(why: io::Error) -> Error {
    if why.kind() == io::ErrorKind::UnexpectedEof { Error::Ended } else { Error::Protocol(why) }
}
