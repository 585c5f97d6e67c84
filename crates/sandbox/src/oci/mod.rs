//! The `oci` driver: containers made by an OCI runtime's program: runc, crun, gVisor's runsc, or one that takes the same
//! arguments.
//!
//! The runtime builds the walls, this driver says which, and puts all of it into control groups of its own, so that limits,
//! freezing and figures are the same whatever the runtime. Layers and workspaces are mounted in a mount namespace that only
//! the runtime sees: nothing has to be unmounted at the end, however it comes.

mod bundle;
mod config;
mod runtime;
mod seccomp;

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use palisade_cell::egress::Sockets;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::process::{ChildStdin, ChildStdout};

use self::bundle::Bundle;
use self::runtime::{Kind, PATIENCE, Runtime};
use crate::disk::Disks;
use crate::handshake::{self, Up};
use crate::lead;
use crate::native::{self, Cgroups, Identity};
use crate::sandbox::{Body, Sink, Source, Streams, Told, Woken};
use crate::scratch::{self, Scratch};
use crate::within;
use crate::{Capabilities, Driver, Error, Facility, Limits, Report, Sandbox, Spec, Status, Usage};

pub(crate) use bundle::CELL;
pub(crate) use config::{MASKED, READ_ONLY};
pub(crate) use seccomp::profile;

/// How containers are made.
#[derive(Debug, Clone)]
pub struct OciOptions {
    /// The runtime's program, by name or path. `runc` unless told.
    pub runtime: PathBuf,
    /// Arguments for every call of it, before the verb: `--platform=ptrace` for gVisor, say.
    pub arguments: Vec<String>,
    /// A directory for what containers are made of; one of the worker's state directory unless told. Its file system must
    /// allow programs to be executed.
    pub scratch: Option<PathBuf>,
}

impl Default for OciOptions {
    fn default() -> OciOptions {
        OciOptions { runtime: PathBuf::from("runc"), arguments: Vec::new(), scratch: None }
    }
}

/// Makes sandboxes by an OCI runtime. Works with root only.
#[derive(Debug)]
pub struct Oci {
    runtime: Runtime,
    scratch: Arc<Scratch>,
}

impl Oci {
    /// A driver. What earlier processes have left behind is removed.
    ///
    /// # Errors
    /// Without root, when the runtime cannot be run, or when the directory cannot be used.
    pub fn new(options: OciOptions) -> Result<Oci, Error> {
        if !native::is_root() {
            let why = "it needs root; run the worker as root, or use the driver native or docker".to_owned();
            return Err(Error::Driver { driver: "oci".to_owned(), why });
        }
        // Asked before anything is made.
        let runtime = Runtime::find(&options.runtime, options.arguments)?;
        native::sweep_again();
        let base = options.scratch.unwrap_or_else(scratch::base);
        let scratch = Scratch::open(&base, "oci", sweep)?;
        let wrong = |cause| Error::Scratch { path: scratch.path().to_owned(), cause };
        let state = scratch.path().join("state");
        fs::create_dir(&state).map_err(wrong)?;
        let runtime = runtime.at(state);
        fs::write(scratch.path().join("runtime"), runtime.record()).map_err(wrong)?;
        Ok(Oci { runtime, scratch: Arc::new(scratch) })
    }

    async fn start(&self, spec: Spec, from: Option<&Path>) -> Result<Started, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let began = Instant::now();
        native::check(&spec)?;
        let disks = Disks::of(&spec).await?;
        if self.runtime.kind == Kind::Gvisor && spec.egress {
            let why = "gVisor has a network of its own, which cannot be led to the egress service; use runc or crun, or no egress";
            return Err(Error::Spec(why.to_owned()));
        }
        if !spec.gpus.is_empty() {
            return Err(Error::Spec("the oci driver passes no GPU on".to_owned()));
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let frames = handshake::given(&spec, self.runtime.kind != Kind::Gvisor);
        let (limits, require, egress) = (spec.limits.clone(), spec.require.clone(), spec.egress);
        let (runtime, scratch) = (self.runtime.clone(), self.scratch.clone());
        let asleep = from.map(|from| Asleep::read(from, &self.runtime)).transpose()?;
        let image = from.map(|from| from.join(IMAGE));
        let made =
            tokio::task::spawn_blocking(move || Container::start(&spec, runtime, scratch, number, image.as_deref()));
        let (mut container, stdin, stdout) = made.await.map_err(|_| Error::Ended)??;
        let mut reader: Source = Box::new(ChildStdout::from_std(stdout).map_err(Error::Socket)?);
        let mut writer: Sink = Box::new(ChildStdin::from_std(stdin).map_err(Error::Socket)?);
        let up = match &asleep {
            None => handshake::greet(&mut reader, &mut writer, &frames).await,
            Some(asleep) => {
                let wake = handshake::wake(&mut reader, &mut writer);
                let woken = tokio::time::timeout(runtime::IMAGES, wake).await;
                let woken = woken.unwrap_or(Err(Error::Timeout(runtime::IMAGES.as_secs())));
                woken.map(|()| asleep.up.clone())
            }
        };
        let mut up = match up {
            Ok(up) => up,
            Err(why) => {
                drop((reader, writer));
                let ended = matches!(why, Error::Ended);
                let autopsy = tokio::task::spawn_blocking(move || if ended { container.autopsy() } else { why }).await;
                return Err(autopsy.unwrap_or(Error::Ended));
            }
        };
        container.adopt().await?;
        if let (Some((pid, _)), true) = (&container.first, self.runtime.kind != Kind::Gvisor) {
            let pid = *pid;
            let limited =
                tokio::task::spawn_blocking(move || within::limit_counts(pid)).await.map_err(|_| Error::Ended)?;
            if let Err(why) = limited {
                up.notes.push(format!("inotify instances and watches are those of all sandboxes together: {why}"));
            }
        }
        let network = match &container.first {
            // Nothing but the cell runs in there yet, and it does nothing unasked.
            &Some((pid, _)) if egress => {
                let led = tokio::task::spawn_blocking(move || lead::lead(pid)).await;
                Some(led.map_err(|_| Error::Ended)??)
            }
            _ => None,
        };
        if !up.filtered && self.runtime.kind != Kind::Gvisor {
            let (field, found) = ("linux.seccomp", "none".to_owned());
            return Err(Error::Hardening { field, wanted: "a system-call profile".to_owned(), found });
        }
        container.up = Some(up.clone());
        let mut report = self.report(&limits, &container, up)?;
        report.facilities.insert(Facility::DiskLimit, disks.status.clone());
        report.startup = began.elapsed();
        report.demand(&require, self.name())?;
        let body = disks.around(Box::new(container));
        let told = asleep.map(|asleep| asleep.told).unwrap_or_default();
        Ok((Woken { body, streams: Streams { reader, writer }, report, told }, network))
    }

    fn report(&self, limits: &Limits, container: &Container, up: Up) -> Result<Report, Error> {
        let mut report = Report { notes: up.notes, ..Report::default() };
        let name = &self.runtime.name;
        let gvisor = self.runtime.kind == Kind::Gvisor;
        let mut say = |facility, status| {
            report.facilities.insert(facility, status);
        };
        let by = if gvisor { "an application kernel of its own" } else { "user, mount, pid, net, ipc, uts, cgroup" };
        say(Facility::Namespaces, Status::Enforced(format!("{by}, by {name}")));
        say(Facility::Capabilities, Status::Enforced("none in any set, no_new_privs".to_owned()));
        say(
            Facility::Seccomp,
            if up.seccomp && gvisor {
                Status::Enforced("the cell's own filters, by gVisor's kernel".to_owned())
            } else if up.seccomp {
                Status::Enforced(format!("the profile of {name} and the cell's own filters"))
            } else {
                Status::Unavailable("the cell's filters were refused; see the notes".to_owned())
            },
        );
        say(
            Facility::Landlock,
            match up.landlock_abi {
                0 if gvisor => Status::Unavailable("gVisor's kernel has no Landlock".to_owned()),
                0 => Status::Unavailable("this kernel has no Landlock".to_owned()),
                abi => Status::Enforced(format!("ABI {abi}")),
            },
        );
        say(
            Facility::DistinctUser,
            if gvisor {
                Status::Unavailable(
                    "gVisor's kernel is the host's nobody in every sandbox; files are distinct".to_owned(),
                )
            } else {
                container.identity.status()
            },
        );
        container.cgroups()?.report(limits, &mut say);
        if gvisor {
            report.notes.push("gVisor: memory and processes of its kernel count as the sandbox's own".to_owned());
        }
        Ok(report)
    }
}

#[async_trait]
impl Driver for Oci {
    fn name(&self) -> &'static str {
        "oci"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            snapshot: true,
            freeze: true,
            user_namespaces: true,
            network_isolation: true,
            egress: self.runtime.kind != Kind::Gvisor,
            resource_limits: true,
            hibernate: self.runtime.kind == Kind::Gvisor,
            ..Capabilities::default()
        }
    }

    async fn create(&self, spec: Spec) -> Result<Sandbox, Error> {
        let (started, network) = self.start(spec, None).await?;
        Ok(started.into_sandbox().leading_to(network))
    }

    async fn wake(&self, spec: Spec, from: &Path) -> Result<Woken, Error> {
        self.start(spec, Some(from)).await.map(|(woken, _)| woken)
    }
}

/// A container that has come up, and where its network leads to.
type Started = (Woken, Option<Sockets>);

/// What is written beside a container's processes.
#[derive(Debug, Serialize, Deserialize)]
struct Asleep {
    /// Of which program the cell among the processes is: [`program`].
    cell: u64,
    /// What the runtime says of its version.
    version: String,
    up: Up,
    told: Told,
}

/// The runtime's own part of what is written of a container.
const IMAGE: &str = "image";
/// [`Asleep`], as JSON.
const ASLEEP: &str = "asleep.json";

impl Asleep {
    /// What is in a directory, for a runtime of the same version.
    fn read(from: &Path, runtime: &Runtime) -> Result<Asleep, Error> {
        let wrong = |why: String| Error::Asleep { path: from.to_owned(), why };
        let text = fs::read(from.join(ASLEEP)).map_err(|why| wrong(format!("{ASLEEP}: {why}")))?;
        let asleep: Asleep = serde_json::from_slice(&text).map_err(|why| wrong(format!("{ASLEEP}: {why}")))?;
        if runtime.kind != Kind::Gvisor {
            return Err(wrong(format!("they are gVisor's, and this driver's runtime is {}", runtime.name)));
        }
        if asleep.version != runtime.version {
            return Err(wrong(format!("they were written with {}, and here is {}", asleep.version, runtime.version)));
        }
        if asleep.cell != program() {
            return Err(wrong("they were written by another version of palisade".to_owned()));
        }
        Ok(asleep)
    }
}

/// What tells one cell's program from another: a process that is woken must find the one that it was.
fn program() -> u64 {
    static PROGRAM: OnceLock<u64> = OnceLock::new();
    *PROGRAM.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        native::CELL.hash(&mut hasher);
        hasher.finish()
    })
}

/// Removes the containers of a process that is gone; says whether all of them are. Their cells have ended with it, unless they
/// were frozen.
fn sweep(path: &Path) -> bool {
    let record = fs::read_to_string(path.join("runtime")).unwrap_or_default();
    let mut lines = record.lines().map(ToOwned::to_owned);
    // It had not come to making any.
    let Some(program) = lines.next() else { return true };
    let Ok(runtime) = Runtime::find(Path::new(&program), lines.collect()) else { return false };
    let runtime = runtime.at(path.join("state"));
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(PREFIX));
    let left = ids.filter(|id| runtime.delete(id).is_err()).count();
    left == 0
}

/// What containers' names begin with; the control groups that a runtime makes by itself have the same names, and the owner's
/// process id in them is what tells abandoned ones.
const PREFIX: &str = "palisade-";

/// A container from outside.
#[derive(Debug)]
struct Container {
    runtime: Runtime,
    id: String,
    /// The runtime's process, which ends with the container.
    child: Child,
    first: Option<(i32, OwnedFd)>,
    bundle: Bundle,
    cgroups: Option<Cgroups>,
    identity: Identity,
    /// How it was started.
    verb: &'static str,
    /// What its cell has said of itself, once it is up.
    up: Option<Up>,
    /// Kept until the container is gone: it holds the cell's program.
    _scratch: Arc<Scratch>,
    buried: bool,
}

type Pipes = (std::process::ChildStdin, std::process::ChildStdout);

impl Container {
    fn start(
        spec: &Spec,
        runtime: Runtime,
        scratch: Arc<Scratch>,
        number: u64,
        image: Option<&Path>,
    ) -> Result<(Container, std::process::ChildStdin, std::process::ChildStdout), Error> {
        let identity = Identity::take()?;
        let id = format!("{PREFIX}{}-o{number}", std::process::id());
        let mut cgroups = Cgroups::birthplace()?;
        if let Err(why) = cgroups.fill(&spec.limits) {
            cgroups.clear();
            return Err(why);
        }
        let imitated = runtime.kind == Kind::Gvisor;
        let written = Bundle::write(scratch.path().join(&id), spec, &identity, &scratch.cell(), imitated);
        let made = written.and_then(|mut bundle| {
            let image = image.map(|image| bundle.show("image", image)).transpose();
            match image.and_then(|image| runtime.run(&id, &mut bundle, &cgroups, image.as_deref())) {
                Ok(child) => Ok((bundle, child)),
                Err(why) => {
                    bundle.remove();
                    Err(why)
                }
            }
        });
        let (bundle, mut child) = match made {
            Ok(made) => made,
            Err(why) => {
                cgroups.clear();
                return Err(why);
            }
        };
        let pipes: Option<Pipes> = child.stdin.take().zip(child.stdout.take());
        let cgroups = Some(cgroups);
        let container = Container {
            runtime,
            id,
            child,
            first: None,
            bundle,
            cgroups,
            identity,
            verb: runtime::start(image),
            up: None,
            _scratch: scratch,
            buried: false,
        };
        let (stdin, stdout) = pipes.ok_or(Error::Ended)?;
        Ok((container, stdin, stdout))
    }

    /// Takes hold of the first process, which is up and has started nothing yet.
    async fn adopt(&mut self) -> Result<(), Error> {
        let path = self.bundle.pid_file();
        let began = Instant::now();
        // Some runtimes write it when the process is under way already.
        let pid = loop {
            let pid = fs::read_to_string(&path).and_then(|text| text.trim().parse::<i32>().map_err(io::Error::other));
            match pid {
                Ok(pid) => break pid,
                Err(_) if began.elapsed() < native::START => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(cause) => return Err(Error::Scratch { path, cause }),
            }
        };
        let number = Pid::from_raw(pid).ok_or(Error::Ended)?;
        let pidfd =
            pidfd_open(number, PidfdFlags::empty()).map_err(|cause| Error::Scratch { path, cause: cause.into() })?;
        self.first = Some((pid, pidfd));
        if !self.runtime.waits_inside() {
            self.cgroups()?.add(pid, false)?;
        }
        Ok(())
    }

    /// The first process, if the runtime has said which it is.
    fn begun(&self) -> Option<(i32, OwnedFd)> {
        let pid = fs::read_to_string(self.bundle.pid_file()).ok()?.trim().parse().ok()?;
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // It may have ended long ago, and its number be somebody else's.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok();
        (parent == Some(self.child.id())).then_some((pid, pidfd))
    }

    fn cgroups(&self) -> Result<&Cgroups, Error> {
        self.cgroups.as_ref().ok_or(Error::Ended)
    }

    /// Why there was no word from the cell.
    fn autopsy(mut self) -> Error {
        // It has ended, or is about to: its end of the pipe is closed.
        self.wait(PATIENCE);
        let why = self.runtime.autopsy(&self.bundle, self.verb);
        let _ = self.bury();
        why
    }

    /// Ends everything, once, and waits until nothing is left.
    fn bury(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.buried, true) {
            return Ok(());
        }
        if self.first.is_none() {
            // One that never came up: what the runtime does to remove it may wait for its start.
            self.first = self.begun();
        }
        if let Some((_, pidfd)) = &self.first {
            // Gone already is what is wanted.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        // A frozen process does not die before it goes on.
        if let Some(cgroups) = self.cgroups.as_ref().filter(|cgroups| cgroups.can_freeze()) {
            let _ = cgroups.thaw();
        }
        // Without a process to kill it ends when the cell finds that nobody talks to it.
        let patience = if self.first.is_some() { PATIENCE } else { PATIENCE / 5 };
        let mut done = Ok(());
        if !self.wait(patience) {
            done = self.runtime.delete(&self.id);
            if !self.wait(PATIENCE) {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        let left = self.runtime.delete(&self.id);
        if let Some(cgroups) = self.cgroups.take() {
            cgroups.clear();
        }
        self.bundle.remove();
        done.and(left)
    }

    /// Waits for the runtime's process; says whether it has ended in time.
    fn wait(&mut self, patience: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < patience {
            match self.child.try_wait() {
                Ok(None) => std::thread::park_timeout(Duration::from_millis(1)),
                _ => return true,
            }
        }
        false
    }
}

#[async_trait]
impl Body for Container {
    fn pid(&self) -> Option<i32> {
        self.first.as_ref().map(|(pid, _)| *pid)
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

    async fn hibernate(&self, to: &Path, told: Told) -> Result<(), Error> {
        let up = self.up.clone().filter(|_| self.runtime.kind == Kind::Gvisor).ok_or(Error::Awake)?;
        let (runtime, id, to) = (self.runtime.clone(), self.id.clone(), to.to_owned());
        let write = move || {
            let wrong = |path: &Path| {
                let path = path.to_owned();
                move |cause| Error::Scratch { path, cause }
            };
            let asleep = Asleep { cell: program(), version: runtime.version.clone(), up, told };
            let (image, note) = (to.join(IMAGE), to.join(ASLEEP));
            fs::write(&note, serde_json::to_vec(&asleep).unwrap_or_default()).map_err(wrong(&note))?;
            fs::create_dir(&image).map_err(wrong(&image))?;
            runtime.checkpoint(&id, &image)
        };
        tokio::task::spawn_blocking(write).await.map_err(|_| Error::Ended)?
    }

    async fn end(mut self: Box<Self>) -> Result<(), Error> {
        tokio::task::spawn_blocking(move || self.bury()).await.map_err(|_| Error::Ended)?
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Whoever wants to know how it went ends it instead.
        let _ = self.bury();
    }
}
