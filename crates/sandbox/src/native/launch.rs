//! From a spec to a process in namespaces of its own.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use async_trait::async_trait;
use palisade_cell::encode;

use super::cgroup::Cgroups;
use super::identity::Identity;
use super::idmap::Idmap;
use super::root::{Session, Sources};
use super::{Base, nursery, root, seccomp, setup};
use crate::sandbox::Body;
use crate::{Error, Spec, Usage};

/// A sandbox's first process, with all that belongs to it outside.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: OwnedFd,
    pid: i32,
    cgroups: Option<Cgroups>,
    identity: Identity,
    reaped: bool,
}

/// Makes a sandbox of what does not depend on the session, and returns before its cell has built it.
pub(super) async fn launch(base: Base) -> Result<(Process, UnixStream), Error> {
    tokio::task::spawn_blocking(move || start(&base)).await.map_err(|_| Error::Ended)?
}

/// Hands the sandbox to its session.
pub(super) async fn claim(process: Process, stream: UnixStream, spec: Spec) -> Result<(Process, UnixStream), Error> {
    let claimed = tokio::task::spawn_blocking(move || {
        let mut stream = stream;
        hand_over(&process, &mut stream, &spec)?;
        Ok((process, stream))
    });
    claimed.await.map_err(|_| Error::Ended)?
}

/// Both at once.
pub(super) async fn launch_for(base: Base, spec: Spec) -> Result<(Process, UnixStream), Error> {
    let made = tokio::task::spawn_blocking(move || {
        let (process, mut stream) = start(&base)?;
        hand_over(&process, &mut stream, &spec)?;
        Ok((process, stream))
    });
    made.await.map_err(|_| Error::Ended)?
}

fn start(base: &Base) -> Result<(Process, UnixStream), Error> {
    let identity = Identity::take()?;
    let nursery = nursery::of(base)?;
    let (ours, theirs) = UnixStream::pair().map_err(Error::Socket)?;
    let mut cgroups = Cgroups::birthplace()?;
    let born = cgroups.is_born();
    let mut filled = Ok(());
    let made = cgroups
        .descriptor()
        .and_then(|group| nursery.birth(theirs.into(), group, identity.own(), || filled = cgroups.fill(&base.limits)));
    let (pid, pidfd) = match made {
        Ok(made) => made,
        Err(why) => {
            cgroups.remove();
            return Err(why);
        }
    };
    // From here on a failure drops the process, which ends it.
    let process = Process { pidfd, pid, cgroups: Some(cgroups), identity, reaped: false };
    filled?;
    map_user(pid, &process.identity)?;
    let mut stream = ours;
    stream.write_all(&[1]).map_err(Error::Socket)?;
    let mut sources = Sources::new(None);
    let root = if nursery.has_root {
        None
    } else {
        sources = process.sources()?;
        Some(root::plan(&base.rootfs, &base.gpus, &mut sources)?)
    };
    let frame = encode(&setup(base, root), seccomp::base()).map_err(Error::Protocol)?;
    send(&mut stream, &frame, &sources.descriptors).map_err(Error::Socket)?;
    // While the cell builds its walls.
    process.cgroups()?.add(pid, born)?;
    Ok((process, stream))
}

fn hand_over(process: &Process, stream: &mut UnixStream, spec: &Spec) -> Result<(), Error> {
    let mut sources = process.sources()?;
    let session = Session::plan(spec, &mut sources)?;
    let frame = encode(&super::claim(spec, session), seccomp::seal()).map_err(Error::Protocol)?;
    send(stream, &frame, &sources.descriptors).map_err(Error::Socket)
}

fn map_user(pid: i32, identity: &Identity) -> Result<(), Error> {
    let write = |name: &str, content: &str| fs::write(format!("/proc/{pid}/{name}"), content).map_err(Error::UserMap);
    if !identity.own() {
        // Required of those who map their own group.
        write("setgroups", "deny")?;
    }
    let [users, groups] = identity.maps();
    write("uid_map", &users)?;
    write("gid_map", &groups)
}

/// Sends a frame with its descriptors.
fn send(stream: &mut UnixStream, frame: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let sent = nursery::send(stream, frame, &borrowed)?;
    stream.write_all(&frame[sent..])
}

/// Whether this kernel has time namespaces (Linux 5.6, when configured).
pub(super) fn has_time_namespace() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| fs::symlink_metadata("/proc/self/ns/time").is_ok())
}

impl Process {
    /// Where its mounts come from.
    fn sources(&self) -> Result<Sources<'_>, Error> {
        let idmap = self.identity.own().then(|| Idmap::of(&self.identity, self.pid)).transpose()?;
        Ok(Sources::new(idmap))
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its control groups, which it has until it is buried.
    pub(crate) fn cgroups(&self) -> Result<&Cgroups, Error> {
        self.cgroups.as_ref().ok_or(Error::Ended)
    }

    fn kill(&self) {
        let signal = rustix::process::Signal::KILL;
        // Gone already is what is wanted.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// Ends it, once, and waits until it is gone.
    fn bury(&mut self) {
        if std::mem::replace(&mut self.reaped, true) {
            return;
        }
        self.kill();
        // A frozen process does not die before it goes on.
        if let Some(cgroups) = self.cgroups.as_ref().filter(|cgroups| cgroups.can_freeze()) {
            let _ = cgroups.thaw();
        }
        let options = rustix::process::WaitIdOptions::EXITED;
        let _ = rustix::process::waitid(rustix::process::WaitId::PidFd(self.pidfd.as_fd()), options);
        if let Some(cgroups) = self.cgroups.take() {
            cgroups.remove();
        }
    }
}

#[async_trait]
impl Body for Process {
    fn pid(&self) -> Option<i32> {
        Some(self.pid)
    }

    async fn freeze(&self) -> Result<(), Error> {
        self.cgroups()?.freeze()
    }

    async fn thaw(&self) -> Result<(), Error> {
        self.cgroups()?.thaw()
    }

    async fn usage(&self) -> Result<Usage, Error> {
        Ok(self.cgroups()?.usage())
    }

    async fn end(mut self: Box<Self>) -> Result<(), Error> {
        tokio::task::spawn_blocking(move || self.bury()).await.map_err(|_| Error::Ended)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.bury();
    }
}
