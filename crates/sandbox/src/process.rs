//! The `process` driver: no isolation at all, for development on machines that allow nothing else.
//!
//! Commands are plain processes of the worker's user, in the workspace as it is, and can do whatever that user can.
//! `/workspace`, `/mnt/session/outputs` and `/mnt/memory` do not exist: tools are told the real paths.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use palisade_cell::{Claim, Place, STDIO, Setup};

use crate::handshake::{self, greet};
use crate::sandbox::{Body, Sink, Source};
use crate::{Capabilities, Driver, Error, Facility, Report, Rootfs, Sandbox, Spec, Status, Usage, Workspace, native};

/// What the driver must be told before it makes anything.
#[derive(Debug, Clone, Default)]
pub struct BareOptions {
    /// That this is a machine for development, and that nothing on it must be kept from an agent.
    pub development: bool,
    /// That agents may be root.
    pub allow_root: bool,
}

/// Makes sandboxes that are none.
#[derive(Debug, Clone)]
pub struct Bare(());

/// What every report says.
const LOUD: &str = "NO ISOLATION: commands run as plain processes of the worker's user, with its files and its network; use \
                    this driver for development only";

impl Bare {
    /// A driver.
    ///
    /// # Errors
    /// Unless it is told that this is for development; as root unless that is allowed too.
    pub fn new(options: BareOptions) -> Result<Bare, Error> {
        let refused = |why: &str| Err(Error::Driver { driver: "process".to_owned(), why: why.to_owned() });
        if !options.development {
            return refused("it isolates nothing and is for development only; use the driver native, oci or docker");
        }
        if native::is_root() && !options.allow_root {
            return refused("agents would be root on this machine; run the worker as a user of its own");
        }
        Ok(Bare(()))
    }
}

#[async_trait]
impl Driver for Bare {
    fn name(&self) -> &'static str {
        "process"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { rootless: true, ..Capabilities::default() }
    }

    async fn create(&self, spec: Spec) -> Result<Sandbox, Error> {
        let began = Instant::now();
        native::check(&spec)?;
        native::without_egress(&spec, self.name())?;
        let mut report = Report { notes: vec![LOUD.to_owned()], ..Report::default() };
        for facility in Facility::ALL {
            report.facilities.insert(facility, Status::Unavailable("the process driver isolates nothing".to_owned()));
        }
        report.demand(&spec.require, self.name())?;
        let frames = frames(&spec)?;
        let (body, stream) = tokio::task::spawn_blocking(start).await.map_err(|_| Error::Ended)??;
        stream.set_nonblocking(true).map_err(Error::Socket)?;
        let (reader, writer) = tokio::net::UnixStream::from_std(stream).map_err(Error::Socket)?.into_split();
        let (mut reader, mut writer): (Source, Sink) = (Box::new(reader), Box::new(writer));
        let up = greet(&mut reader, &mut writer, &frames).await?;
        report.notes.extend(up.notes);
        report.startup = began.elapsed();
        Ok(Sandbox::new(Box::new(body), reader, writer, report))
    }
}

fn frames(spec: &Spec) -> Result<(Setup, Claim), Error> {
    let (Workspace::Directory(workspace), Rootfs::Host) = (&spec.workspace, &spec.rootfs) else {
        return Err(Error::Spec("the process driver has no layers and no root file system but the host's".to_owned()));
    };
    let (mut setup, mut claim) = handshake::given(spec, false);
    setup.place = Place::Bare;
    setup.landlock = false;
    setup
        .rlimits
        .retain(|(resource, _)| matches!(*resource, libc::RLIMIT_NOFILE | libc::RLIMIT_FSIZE | libc::RLIMIT_CORE));
    // As the tools see them: with every link followed.
    let real = |path: &Path| {
        let wrong = |cause| Error::Directory { path: path.to_owned(), cause };
        let real = fs::canonicalize(path).map_err(wrong)?;
        real.into_os_string().into_string().map_err(|_| wrong(io::Error::other("the path must be valid UTF-8")))
    };
    claim.workdir = real(workspace)?;
    claim.roots = vec![(claim.workdir.clone(), true), (real(&spec.outputs)?, true)];
    for mount in &spec.memory {
        claim.roots.push((real(&mount.host)?, !mount.read_only));
    }
    for (name, value) in &mut claim.env {
        if name == "HOME" && !spec.env.iter().any(|(given, _)| given == "HOME") {
            *value = claim.workdir.clone();
        }
    }
    Ok((setup, claim))
}

fn start() -> Result<(Plain, UnixStream), Error> {
    let program = native::cell().map_err(Error::Program)?;
    let (ours, theirs) = UnixStream::pair().map_err(Error::Socket)?;
    let other = theirs.try_clone().map_err(Error::Socket)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg0("palisade-cell").arg(STDIO).env_clear().process_group(0);
    command.stdin(OwnedFd::from(theirs)).stdout(OwnedFd::from(other)).stderr(Stdio::null());
    let child = command.spawn().map_err(Error::Program)?;
    let ending = ours.try_clone().map_err(Error::Socket)?;
    Ok((Plain { child, ending, buried: false }, ours))
}

/// The cell as a child.
#[derive(Debug)]
struct Plain {
    child: Child,
    /// Another handle of the conversation: when it is shut down, the cell ends all that it has started, and itself.
    ending: UnixStream,
    buried: bool,
}

impl Plain {
    fn bury(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        if std::mem::replace(&mut self.buried, true) {
            return;
        }
        let _ = self.ending.shutdown(Shutdown::Both);
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(None) => std::thread::park_timeout(Duration::from_millis(1)),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[async_trait]
impl Body for Plain {
    fn pid(&self) -> Option<i32> {
        i32::try_from(self.child.id()).ok()
    }

    async fn freeze(&self) -> Result<(), Error> {
        Err(Error::Unfrozen)
    }

    async fn thaw(&self) -> Result<(), Error> {
        Err(Error::Unfrozen)
    }

    async fn usage(&self) -> Result<Usage, Error> {
        Ok(Usage::default())
    }

    async fn end(mut self: Box<Self>) -> Result<(), Error> {
        tokio::task::spawn_blocking(move || self.bury()).await.map_err(|_| Error::Ended)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.bury();
    }
}
