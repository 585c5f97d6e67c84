//! The processes that cells are copies of.
//!
//! There is at most one of each kind, started when it is first needed: one that stays on the host, for roots that the cell
//! puts together itself, and, with root, one that has the host's programs as its root already. They end with this process.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use palisade_cell::egress::Sockets;
use palisade_cell::{
    BIRTH, BIRTH_IN_GROUP, BIRTH_WITH_GROUPS, Nursery as Frame, Ready, Root, VERSION, check_length, decode, encode,
};
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::root::Sources;
use super::{Base, START, identity, launch, program, root};
use crate::{Error, Rootfs};

/// A process that makes cells.
#[derive(Debug)]
pub(super) struct Nursery {
    /// Whether its cells have their root already.
    pub(super) has_root: bool,
    /// Whether the first thing that is heard of its cells is where their network leads to.
    pub(super) egress: bool,
    /// One birth at a time. Gone once an answer was missed: the next one could be another's.
    line: Mutex<Option<UnixStream>>,
    process: Mutex<std::process::Child>,
    /// What its root was made of, by the directories that tell of a change.
    seen: Vec<Seen>,
}

/// A directory, and what tells of a change: of its entries, or of the directory that has this name.
pub(super) type Seen = (PathBuf, Option<[u64; 4]>);

/// Those that there are, by whether they have a root and a network that leads somewhere.
static KNOWN: Mutex<BTreeMap<[bool; 2], Arc<Nursery>>> = Mutex::new(BTreeMap::new());

/// The nursery for sandboxes of this kind; another one than `dead`, which turned out to have ended.
pub(super) fn of(base: &Base, dead: Option<&Arc<Nursery>>) -> Result<Arc<Nursery>, Error> {
    let has_root = identity::is_root() && base.rootfs == Rootfs::Host && base.gpus.is_empty();
    let kind = [has_root, base.egress];
    let mut known = lock(&KNOWN);
    if let Some(nursery) = known.get(&kind)
        && dead.is_none_or(|dead| !Arc::ptr_eq(dead, nursery))
        && nursery.is_fresh()
    {
        return Ok(nursery.clone());
    }
    // What was born in the old one is not affected by its end.
    known.remove(&kind);
    let nursery = Arc::new(Nursery::start(kind)?);
    known.insert(kind, nursery.clone());
    Ok(nursery)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that starts nurseries, and is thereby the parent of all that they make. The kernel ends them, as they ask it
/// to, when this thread ends, so it never does.
fn parent() -> &'static SyncSender<Job> {
    static PARENT: OnceLock<SyncSender<Job>> = OnceLock::new();
    PARENT.get_or_init(|| {
        let (sender, jobs) = sync_channel::<Job>(16);
        let thread = std::thread::Builder::new().name("launcher".to_owned()).stack_size(256 << 10);
        // Without this thread no sandbox can be made, which every caller is told by its job not being answered.
        let _ = thread.spawn(move || {
            while let Ok(job) = jobs.recv() {
                job();
            }
        });
        sender
    })
}

impl Nursery {
    fn start([has_root, egress]: [bool; 2]) -> Result<Nursery, Error> {
        let program = program::cell().map_err(Error::Program)?;
        let root = if has_root {
            // Everything in it is a path that root can reach.
            Some(root::plan(&Rootfs::Host, &[], egress, &mut Sources::new(None))?)
        } else {
            None
        };
        let seen = seen(&root.iter().flat_map(origins).collect::<Vec<_>>());
        let (ours, theirs) = UnixStream::pair().map_err(Error::Socket)?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command
            .arg0("palisade-cell")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let (answer, made) = sync_channel(1);
        let job: Job = Box::new(move || _ = answer.send(command.spawn()));
        parent().send(job).map_err(|_| Error::Ended)?;
        let process = made.recv().map_err(|_| Error::Ended)?.map_err(Error::Program)?;
        let nursery = Nursery { has_root, egress, line: Mutex::new(Some(ours)), process: Mutex::new(process), seen };
        nursery.come_up(root)?;
        Ok(nursery)
    }

    fn come_up(&self, root: Option<Root>) -> Result<(), Error> {
        let mut line = lock(&self.line);
        let line = line.as_mut().ok_or(Error::Ended)?;
        line.set_read_timeout(Some(START)).map_err(Error::Socket)?;
        let frame = encode(&Frame { version: VERSION, root, egress: self.egress }, &[]).map_err(Error::Protocol)?;
        line.write_all(&frame).map_err(Error::Socket)?;
        match launch::answer(line)? {
            Ready::Built { .. } => Ok(()),
            other => Err(launch::failed(other)),
        }
    }

    /// Makes a cell that will be heard through `socket`; `meanwhile` is done while the kernel makes it.
    pub(super) fn birth(
        &self,
        socket: &UnixStream,
        group: Option<&fs::File>,
        groups: bool,
        meanwhile: impl FnOnce(),
    ) -> Result<(i32, OwnedFd), Error> {
        let mut word = BIRTH;
        let mut descriptors = vec![socket.as_fd()];
        if let Some(group) = group {
            word |= BIRTH_IN_GROUP;
            descriptors.push(group.as_fd());
        }
        if groups {
            word |= BIRTH_WITH_GROUPS;
        }
        let mut held = lock(&self.line);
        let line = held.as_ref().ok_or(Error::Ended)?;
        let asked = send(line, &[word], &descriptors).map_err(Error::Socket);
        meanwhile();
        let made = asked.and_then(|_| Nursery::answer(line));
        if let Err(Error::Socket(_) | Error::Ended) = made {
            *held = None;
        }
        made
    }

    fn answer(line: &UnixStream) -> Result<(i32, OwnedFd), Error> {
        let mut answer = [0; 4];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [io::IoSliceMut::new(&mut answer)];
        let read = retry_on_intr(|| recvmsg(line, parts, &mut control, RecvFlags::CMSG_CLOEXEC))
            .map_err(|why| Error::Socket(why.into()))?;
        if read.bytes != answer.len() {
            return Err(Error::Ended);
        }
        let pidfd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        match (i32::from_le_bytes(answer), pidfd) {
            (pid @ 1.., Some(pidfd)) => Ok((pid, pidfd)),
            (errno, _) => Err(Error::Clone(io::Error::from_raw_os_error(-errno))),
        }
    }

    /// Whether it lives, and another would be the same.
    fn is_fresh(&self) -> bool {
        // One that is busy is not given up.
        let given_up = self.line.try_lock().is_ok_and(|line| line.is_none());
        !given_up && matches!(lock(&self.process).try_wait(), Ok(None)) && self.is_current()
    }

    /// Whether what its root was made of is still what is there.
    pub(super) fn is_current(&self) -> bool {
        self.seen.iter().all(|(path, then)| changed(path) == *then)
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        let mut process = lock(&self.process);
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// Directories whose entries are parts of a root: a file that is replaced there is another file.
fn origins(root: &Root) -> Vec<PathBuf> {
    let paths = root.binds.iter().filter_map(|bind| match &bind.source {
        palisade_cell::Source::Path(path) if !bind.devices => Path::new(path).parent().map(Path::to_owned),
        _ => None,
    });
    let mut paths: Vec<PathBuf> = paths.collect();
    paths.sort();
    paths.dedup();
    paths
}

fn changed(path: &Path) -> Option<[u64; 4]> {
    let meta = fs::metadata(path).ok()?;
    Some([meta.dev(), meta.ino(), meta.ctime().cast_unsigned(), meta.ctime_nsec().cast_unsigned()])
}

/// The directories of a base, as they are now.
pub(super) fn seen<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Vec<Seen> {
    paths.into_iter().map(|path| (path.clone(), changed(path))).collect()
}

/// Sends bytes with descriptors, all at once or what there is room for; says how much.
pub(super) fn send(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[std::os::fd::BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = vec![std::mem::MaybeUninit::uninit(); 64 + 8 * (descriptors.len() + 8)];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many mounts in one sandbox"));
    }
    Ok(retry_on_intr(|| sendmsg(stream, &[io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?)
}

/// Where a new cell's network leads to: the first that is heard of it.
pub(super) fn led(stream: &mut UnixStream) -> Result<Sockets, Error> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(Sockets::COUNT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut length = [0; 4];
    let parts = &mut [io::IoSliceMut::new(&mut length)];
    // A stream that was never read has all four bytes or none.
    let read = retry_on_intr(|| recvmsg(&*stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC))
        .map_err(|why| launch::wrong(why.into()))?;
    if read.bytes != length.len() {
        return Err(Error::Ended);
    }
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    let mut frame = vec![0; check_length(length).map_err(Error::Protocol)?];
    io::Read::read_exact(stream, &mut frame).map_err(launch::wrong)?;
    match (decode(&frame).map_err(Error::Protocol)?.0, sockets.try_into()) {
        (Ready::Led, Ok(sockets)) => Ok(Sockets::from_array(sockets)),
        (other, _) => Err(launch::failed(other)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::Shutdown;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;
    use crate::native::identity::Identity;

    fn frame(header: &str) -> Vec<u8> {
        let length = u32::try_from(header.len()).unwrap();
        [&(length + 4).to_le_bytes()[..], &length.to_le_bytes(), header.as_bytes()].concat()
    }

    #[test]
    fn a_cell_that_is_told_nonsense_ends() {
        let nursery = Nursery::start([false; 2]).unwrap();
        let version = format!(r#"{{"version":{VERSION}}}"#);
        for bytes in [
            b"".to_vec(),
            b"\x01".to_vec(),
            vec![0; 64],
            vec![0xff; 64],
            vec![16, 0, 0, 0, 255, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
            frame("{}"),
            frame(&"[".repeat(100_000)),
            frame(r#"{"version":1}"#),
            frame(&version),
            // Another kind of frame.
            encode(&Frame { version: VERSION, root: None, egress: false }, &[]).unwrap(),
        ] {
            let identity = Identity::take().unwrap();
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let (pid, pidfd) = nursery.birth(&theirs, None, identity.own(), || {}).unwrap();
            drop(theirs);
            launch::map_user(pid, &identity).unwrap();
            ours.write_all(&[1]).unwrap();
            // It may have seen enough before it has been told all.
            let _ = ours.write_all(&bytes);
            let _ = ours.shutdown(Shutdown::Write);
            let mut said = Vec::new();
            let _ = ours.read_to_end(&mut said);
            let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
            assert_eq!((ended.exit_status(), said.as_slice()), (Some(2), &b""[..]), "{bytes:02x?}");
        }
        // It made them all, and goes on.
        assert!(nursery.is_fresh());
    }
}
