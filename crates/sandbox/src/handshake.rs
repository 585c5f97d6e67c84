//! What every driver says first to the cell inside walls that are not the cell's own.

use std::io;

use palisade_cell::{Place, Ready, Setup, encode};
use tokio::io::AsyncWriteExt;

use crate::native::{self, START};
use crate::sandbox::{Sink, Source, ready};
use crate::{Error, Spec};

/// A cell that is up.
#[derive(Debug)]
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

/// The setup of a cell that finds its walls built. `own_users` says whether the kernel counts the sandbox's processes apart
/// from those of others.
pub(crate) fn given(spec: &Spec, own_users: bool) -> Result<Setup, Error> {
    let mut setup = native::setup(spec, native::environment(spec), Vec::new(), Vec::new(), Vec::new())?;
    setup.place = Place::Given;
    if !own_users {
        // It would count every process of this user on the host.
        setup.rlimits.retain(|(resource, _)| *resource != libc::RLIMIT_NPROC);
    }
    Ok(setup)
}

/// Hands a cell its setup and waits until it is up.
pub(crate) async fn greet(reader: &mut Source, writer: &mut Sink, setup: &Setup) -> Result<Up, Error> {
    let frame = encode(setup, &[]).map_err(Error::Protocol)?;
    let talk = async {
        writer.write_all(&frame).await.map_err(|_| Error::Ended)?;
        writer.flush().await.map_err(|_| Error::Ended)?;
        ready(reader).await
    };
    match tokio::time::timeout(START, talk).await.map_err(|_| Error::Timeout(START.as_secs()))?? {
        Ready::Up { landlock_abi, seccomp, filtered, notes } => Ok(Up { landlock_abi, seccomp, filtered, notes }),
        Ready::Failed { step, errno, detail } => {
            Err(Error::Build { step, detail, cause: io::Error::from_raw_os_error(errno) })
        }
    }
}
