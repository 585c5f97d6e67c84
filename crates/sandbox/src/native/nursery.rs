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

use palisade_cell::{BIRTH, BIRTH_IN_GROUP, BIRTH_WITH_GROUPS, Nursery as Frame, Ready, Root, VERSION, encode};
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
    /// One birth at a time.
    line: Mutex<UnixStream>,
    process: Mutex<std::process::Child>,
    /// What its root was made of, by the directories that tell of a change.
    seen: Vec<Seen>,
}

/// A directory, and what tells of a change: of its entries, or of the directory that has this name.
pub(super) type Seen = (PathBuf, Option<[u64; 4]>);

/// Those that there are, by whether they have a root.
static KNOWN: Mutex<BTreeMap<bool, Arc<Nursery>>> = Mutex::new(BTreeMap::new());

/// The nursery for sandboxes of this kind.
pub(super) fn of(base: &Base) -> Result<Arc<Nursery>, Error> {
    let has_root = identity::is_root() && base.rootfs == Rootfs::Host && base.gpus.is_empty();
    let mut known = lock(&KNOWN);
    if let Some(nursery) = known.get(&has_root)
        && nursery.is_fresh()
    {
        return Ok(nursery.clone());
    }
    // What was born in the old one is not affected by its end.
    known.remove(&has_root);
    let nursery = Arc::new(Nursery::start(has_root)?);
    known.insert(has_root, nursery.clone());
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
    fn start(has_root: bool) -> Result<Nursery, Error> {
        let program = program::cell().map_err(Error::Program)?;
        let root = if has_root {
            // Everything in it is a path that root can reach.
            Some(root::plan(&Rootfs::Host, &[], &mut Sources::new(None))?)
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
        let nursery = Nursery { has_root, line: Mutex::new(ours), process: Mutex::new(process), seen };
        nursery.come_up(root)?;
        Ok(nursery)
    }

    fn come_up(&self, root: Option<Root>) -> Result<(), Error> {
        let mut line = lock(&self.line);
        line.set_read_timeout(Some(START)).map_err(Error::Socket)?;
        let frame = encode(&Frame { version: VERSION, root }, &[]).map_err(Error::Protocol)?;
        line.write_all(&frame).map_err(Error::Socket)?;
        match launch::answer(&mut line)? {
            Ready::Built { .. } => Ok(()),
            other => Err(launch::failed(other)),
        }
    }

    /// Makes a cell that will be heard through `socket`; `meanwhile` is done while the kernel makes it.
    pub(super) fn birth(
        &self,
        socket: OwnedFd,
        group: Option<fs::File>,
        groups: bool,
        meanwhile: impl FnOnce(),
    ) -> Result<(i32, OwnedFd), Error> {
        let mut word = BIRTH;
        let mut descriptors = vec![socket.as_fd()];
        if let Some(group) = &group {
            word |= BIRTH_IN_GROUP;
            descriptors.push(group.as_fd());
        }
        if groups {
            word |= BIRTH_WITH_GROUPS;
        }
        let line = lock(&self.line);
        send(&line, &[word], &descriptors).map_err(Error::Socket)?;
        meanwhile();
        self.answer(&line)
    }

    fn answer(&self, line: &UnixStream) -> Result<(i32, OwnedFd), Error> {
        let mut answer = [0; 4];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [io::IoSliceMut::new(&mut answer)];
        let read =
            recvmsg(line, parts, &mut control, RecvFlags::CMSG_CLOEXEC).map_err(|why| Error::Socket(why.into()))?;
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
        matches!(lock(&self.process).try_wait(), Ok(None)) && self.is_current()
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
    Ok(sendmsg(stream, &[io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}
