//! From a spec to a process in namespaces of its own.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use palisade_cell::egress::Sockets;
use palisade_cell::{Ready, decode, encode, read_frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::cgroup::Cgroups;
use super::identity::Identity;
use super::idmap::Idmap;
use super::nursery::{Nursery, Seen};
use super::root::{Session, Sources};
use super::{Base, START, nursery, root, seccomp, setup};
use crate::handshake::frame;
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

/// A sandbox that waits for its session.
#[derive(Debug)]
pub(super) struct Waiting {
    process: Process,
    stream: UnixStream,
    notes: Vec<String>,
    nursery: Arc<Nursery>,
    network: Option<Sockets>,
    sources: Vec<Seen>,
}

/// A sandbox that is up.
pub(super) struct Live {
    pub(super) process: Process,
    pub(super) stream: tokio::net::UnixStream,
    pub(super) notes: Vec<String>,
    pub(super) landlock_abi: i32,
    pub(super) network: Option<Sockets>,
}

/// Makes a sandbox that waits. Blocks.
pub(super) fn make(base: &Base) -> Result<Waiting, Error> {
    // Looked at before they are used: a change in between is seen.
    let sources = base.sources();
    let Started { process, mut stream, nursery, network } = start(base)?;
    let notes = match answer(&mut stream)? {
        Ready::Built { notes } => notes,
        other => return Err(failed(other)),
    };
    Ok(Waiting { process, stream, notes, nursery, network, sources })
}

impl Waiting {
    /// Whether it lives, and another made now would be the same.
    pub(super) fn is_good(&self, base: &Base) -> bool {
        self.process.is_alive() && self.nursery.is_current() && self.sources == base.sources()
    }

    /// Hands it to its session, for which all is prepared.
    pub(super) async fn claim(mut self, spec: &Spec) -> Result<Live, Error> {
        hand_over(&self.process, &mut self.stream, spec)?;
        self.stream.set_nonblocking(true).map_err(Error::Socket)?;
        let mut stream = tokio::net::UnixStream::from_std(self.stream).map_err(Error::Socket)?;
        let answered = tokio::time::timeout(START, frame(&mut stream)).await;
        let frame = answered.map_err(|_| Error::Timeout(START.as_secs()))?.map_err(wrong)?;
        let answer = decode(&frame).map_err(Error::Protocol)?.0;
        up(self.process, stream, self.notes, self.network, answer)
    }
}

/// Makes a sandbox for a session, for which all is prepared. Blocks.
pub(super) fn make_for(base: &Base, spec: &Spec) -> Result<Live, Error> {
    let Started { process, mut stream, network, .. } = start(base)?;
    // Both frames are on their way before the first is answered.
    hand_over(&process, &mut stream, spec)?;
    let notes = match answer(&mut stream)? {
        Ready::Built { notes } => notes,
        other => return Err(failed(other)),
    };
    let answer = answer(&mut stream)?;
    stream.set_nonblocking(true).map_err(Error::Socket)?;
    up(process, tokio::net::UnixStream::from_std(stream).map_err(Error::Socket)?, notes, network, answer)
}

fn up(
    process: Process,
    stream: tokio::net::UnixStream,
    notes: Vec<String>,
    network: Option<Sockets>,
    answer: Ready,
) -> Result<Live, Error> {
    match answer {
        Ready::Up { landlock_abi, .. } => Ok(Live { process, stream, notes, landlock_abi, network }),
        other => Err(failed(other)),
    }
}

/// The cell's next word. Blocks, though not for ever.
pub(super) fn answer(stream: &mut UnixStream) -> Result<Ready, Error> {
    let frame = read_frame(stream).map_err(wrong)?.ok_or(Error::Ended)?;
    Ok(decode(&frame).map_err(Error::Protocol)?.0)
}

pub(super) fn wrong(why: io::Error) -> Error {
    match why.kind() {
        io::ErrorKind::WouldBlock => Error::Timeout(START.as_secs()),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Error::Ended,
        _ => Error::Protocol(why),
    }
}

/// What an answer means that is not the one that was waited for.
pub(crate) fn failed(answer: Ready) -> Error {
    match answer {
        Ready::Failed { step, errno, detail } => {
            Error::Build { step, detail, cause: io::Error::from_raw_os_error(errno) }
        }
        Ready::Led | Ready::Built { .. } | Ready::Up { .. } => Error::Protocol(io::ErrorKind::InvalidData.into()),
    }
}

/// A process that builds its walls.
struct Started {
    process: Process,
    stream: UnixStream,
    nursery: Arc<Nursery>,
    network: Option<Sockets>,
}

fn start(base: &Base) -> Result<Started, Error> {
    let identity = Identity::take()?;
    let mut cgroups = Cgroups::birthplace()?;
    let born = cgroups.is_born();
    let mut filled = None;
    let Born { pid, pidfd, mut stream, nursery } = match birth(base, &identity, &mut cgroups, &mut filled) {
        Ok(made) => made,
        Err(why) => {
            cgroups.remove();
            return Err(why);
        }
    };
    // From here on a failure drops the process, which ends it.
    let process = Process { pidfd, pid, cgroups: Some(cgroups), identity, reaped: false };
    filled.unwrap_or(Ok(()))?;
    map_user(pid, &process.identity)?;
    stream.write_all(&[1]).map_err(Error::Socket)?;
    let mut sources = Sources::new(None);
    let root = if nursery.has_root {
        None
    } else {
        sources = process.sources()?;
        Some(root::plan(&base.rootfs, &base.gpus, base.egress, &mut sources)?)
    };
    let frame = encode(&setup(base, root), seccomp::base()).map_err(Error::Protocol)?;
    send(&mut stream, &frame, &sources.descriptors).map_err(Error::Socket)?;
    // While the cell builds its walls.
    process.cgroups()?.add(pid, born)?;
    let network = nursery.egress.then(|| nursery::led(&mut stream)).transpose()?;
    Ok(Started { process, stream, nursery, network })
}

struct Born {
    pid: i32,
    pidfd: OwnedFd,
    stream: UnixStream,
    nursery: Arc<Nursery>,
}

/// Has the process made, and its control groups meanwhile.
fn birth(
    base: &Base,
    identity: &Identity,
    cgroups: &mut Cgroups,
    filled: &mut Option<Result<(), Error>>,
) -> Result<Born, Error> {
    let group = cgroups.descriptor()?;
    let mut dead = None;
    loop {
        let nursery = nursery::of(base, dead.as_ref())?;
        // One for each try: a cell whose nursery ended before it could say so hears that nobody is there.
        let (stream, theirs) = UnixStream::pair().map_err(Error::Socket)?;
        stream.set_read_timeout(Some(START)).map_err(Error::Socket)?;
        let made = nursery.birth(&theirs, group.as_ref(), identity.own(), || {
            filled.get_or_insert_with(|| cgroups.fill(&base.limits));
        });
        match made {
            Ok((pid, pidfd)) => return Ok(Born { pid, pidfd, stream, nursery }),
            // It may have ended since it was looked at; the next one is new, so that only one can.
            Err(Error::Ended | Error::Socket(_)) if dead.is_none() => dead = Some(nursery),
            Err(why) => return Err(why),
        }
    }
}

fn hand_over(process: &Process, stream: &mut UnixStream, spec: &Spec) -> Result<(), Error> {
    let mut sources = process.sources()?;
    let session = Session::plan(spec, &mut sources)?;
    let frame = encode(&super::claim(spec, session), seccomp::seal()).map_err(Error::Protocol)?;
    send(stream, &frame, &sources.descriptors).map_err(Error::Socket)
}

pub(super) fn map_user(pid: i32, identity: &Identity) -> Result<(), Error> {
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

    fn is_alive(&self) -> bool {
        let mut watched = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // Readable means that it has ended.
        matches!(poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
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
        self.cgroups()?.freeze().await
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
