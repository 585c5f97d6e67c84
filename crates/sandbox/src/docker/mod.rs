//! The `docker` driver: containers of Docker Engine, or of Podman through the same interface.
//!
//! The engine is asked for a hardened container, and then for what it has made: what differs is removed and refused. The cell
//! looks at its own privileges once more. It is spoken to through the stream that is attached to its standard input and
//! output, which the engine closes when this process goes, and with it ends the container.

mod engine;
mod order;
mod verify;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use palisade_cell::egress::Sockets;
use palisade_cell::{Claim, Setup};

use self::engine::Engine;
use self::order::Order;
use crate::handshake::{self, Up};
use crate::lead;
use crate::native::{self, INSIDE};
use crate::sandbox::{Body, Sink, Source};
use crate::scratch::{self, Scratch};
use crate::within;
use crate::{Capabilities, Driver, Error, Facility, Limits, Report, Rootfs, Sandbox, Spec, Status, Usage, Workspace};

/// Which engine makes containers, and out of what.
#[derive(Debug, Clone, Default)]
pub struct DockerOptions {
    /// The engine's socket, as a path or as `unix://` and a path. `/var/run/docker.sock` unless told.
    pub socket: Option<String>,
    /// The image of every sandbox, by digest: `name@sha256:…`, or the id of one that is there.
    pub image: String,
    /// The engine's runtime, where it has several: `runsc` or `kata`, say.
    pub runtime: Option<String>,
    /// How the engine maps users, in its own words; as it is set up unless told.
    pub userns: Option<String>,
    /// A directory for what containers are made of, which the engine must see under the same path; one of the worker's
    /// state directory unless told.
    pub scratch: Option<PathBuf>,
}

/// Makes sandboxes by a container engine.
#[derive(Debug)]
pub struct Docker {
    engine: Engine,
    options: DockerOptions,
    /// The image's own id, which never changes.
    image: String,
    scratch: Arc<Scratch>,
}

impl Docker {
    /// A driver. Containers that earlier processes have left behind are removed.
    ///
    /// # Errors
    /// When the engine cannot be reached, when the image is not named by digest or is not there, or when the directory cannot
    /// be used.
    pub async fn connect(options: DockerOptions) -> Result<Docker, Error> {
        let engine = Engine::connect(options.socket.as_deref().unwrap_or("/var/run/docker.sock")).await?;
        let image = engine.image(&options.image).await?;
        let base = options.scratch.clone().unwrap_or_else(scratch::base);
        let mut abandoned = Vec::new();
        let scratch = Scratch::open(&base, "docker", |path| {
            abandoned.push(path.to_owned());
            false
        })?;
        let owner = scratch.path().display().to_string();
        engine.sweep(&base, &owner, &abandoned).await?;
        for path in abandoned {
            // Somebody else may have been faster.
            let _ = std::fs::remove_dir_all(path);
        }
        order::write_profile(&scratch, order::own_users(&options))?;
        Ok(Docker { engine, options, image, scratch: Arc::new(scratch) })
    }

    async fn start(&self, spec: Spec) -> Result<Sandbox, Error> {
        let began = Instant::now();
        native::check(&spec)?;
        if spec.rootfs != Rootfs::Host {
            let why = "the docker driver's root file system is its image; give that to the driver".to_owned();
            return Err(Error::Spec(why));
        }
        if !spec.gpus.is_empty() {
            return Err(Error::Spec("the docker driver passes no GPU on".to_owned()));
        }
        if let Workspace::Layered { .. } = spec.workspace {
            return Err(Error::Spec("the docker driver has no workspaces in layers".to_owned()));
        }
        let mut frames = handshake::given(&spec, false);
        frames.0.own_users = order::own_users(&self.options);
        let order = Order::new(&spec, &self.options, &self.image, &self.scratch, self.engine.is_podman())?;
        let (limits, require, egress) = (spec.limits.clone(), spec.require.clone(), spec.egress);
        let given = tokio::task::spawn_blocking(move || give(&spec)).await;
        given.map_err(|_| Error::Ended)??;
        let id = self.engine.create(&order).await?;
        let container = Container {
            engine: self.engine.clone(),
            id,
            frozen: AtomicBool::new(false),
            ended: false,
            _scratch: self.scratch.clone(),
        };
        match self.enter(&container, &order, &frames).await {
            Ok((mut up, reader, writer)) => {
                up.notes.extend(self.limit(&container, &limits).await);
                let network = match if egress { self.lead(&container).await.map(Some) } else { Ok(None) } {
                    Ok(network) => network,
                    Err(why) => {
                        Box::new(container).end().await?;
                        return Err(why);
                    }
                };
                let mut report = self.report(&limits, up);
                report.startup = began.elapsed();
                if let Err(why) = report.demand(&require, self.name()) {
                    Box::new(container).end().await?;
                    return Err(why);
                }
                Ok(Sandbox::new(Box::new(container), reader, writer, report).leading_to(network))
            }
            Err(why) => {
                // What went wrong first is what matters.
                let _ = Box::new(container).end().await;
                Err(why)
            }
        }
    }

    async fn enter(
        &self,
        container: &Container,
        order: &Order,
        frames: &(Setup, Claim),
    ) -> Result<(Up, Source, Sink), Error> {
        let (mut reader, mut writer) = self.engine.attach(&container.id).await?;
        self.engine.start(&container.id).await?;
        verify::verify(order, &self.engine.inspect(&container.id).await?, self.engine.is_podman())?;
        let up = handshake::greet(&mut reader, &mut writer, frames).await?;
        if !up.filtered {
            let wanted = "a system-call profile".to_owned();
            return Err(Error::Hardening { field: "SecurityOpt", wanted, found: "none".to_owned() });
        }
        Ok((up, reader, writer))
    }

    /// The container's first process, on the engine's machine.
    async fn first(&self, container: &Container) -> Result<i32, Error> {
        let inspected = self.engine.inspect(&container.id).await?;
        let pid = inspected.pointer("/State/Pid").and_then(serde_json::Value::as_i64).filter(|&pid| pid > 0);
        pid.and_then(|pid| i32::try_from(pid).ok()).ok_or(Error::Ended)
    }

    /// Sets the limits that the engine has no words for: with root, and an engine on this machine. What could not be set.
    async fn limit(&self, container: &Container, limits: &Limits) -> Vec<String> {
        let (counts, names) = (order::own_users(&self.options), self.engine.is_podman());
        if !counts && !names {
            return Vec::new();
        }
        let places = order::places(limits);
        let set = async {
            if !native::is_root() {
                return Err(io::Error::other("the worker is not root"));
            }
            let pid = self.first(container).await.map_err(io::Error::other)?;
            let set = tokio::task::spawn_blocking(move || {
                within::is_cell(pid)?;
                let counted = if counts { within::limit_counts(pid) } else { Ok(()) };
                let named = if names { within::limit_names(pid, &places) } else { Ok(()) };
                let what = ["inotify instances and watches", "the number of files in memory"]
                    .into_iter()
                    .zip([counted, named]);
                Ok(what.filter_map(|(what, set)| Some(format!("no limit of {what}: {}", set.err()?))).collect())
            });
            set.await.map_err(io::Error::other)?
        };
        set.await.unwrap_or_else(|why| vec![format!("no limits but the engine's own: {why}")])
    }

    /// Leads the container's network to sockets: with root, and an engine on this machine.
    async fn lead(&self, container: &Container) -> Result<Sockets, Error> {
        let pid = self.first(container).await?;
        tokio::task::spawn_blocking(move || lead::lead(pid)).await.map_err(|_| Error::Ended)?
    }

    fn report(&self, limits: &Limits, up: Up) -> Report {
        let mut report = Report { notes: up.notes, ..Report::default() };
        let by = self.engine.version();
        let mut say = |facility, status| {
            report.facilities.insert(facility, status);
        };
        say(Facility::Namespaces, Status::Enforced(format!("mount, pid, net, ipc, uts, cgroup, by {by}")));
        say(Facility::Capabilities, Status::Enforced("none in any set, no_new_privs".to_owned()));
        say(
            Facility::Seccomp,
            if up.seccomp {
                Status::Enforced("the engine's profile and the cell's own filters".to_owned())
            } else {
                Status::Unavailable("the cell's filters were refused; see the notes".to_owned())
            },
        );
        say(
            Facility::Landlock,
            match up.landlock_abi {
                0 => Status::Unavailable("the engine's kernel has no Landlock, or its profile refuses it".to_owned()),
                abi => Status::Enforced(format!("ABI {abi}")),
            },
        );
        let shared = "every container's user is the same on the engine's machine, unless the engine maps users";
        say(Facility::DistinctUser, Status::Unavailable(shared.to_owned()));
        let mut limit = |facility, limit: Option<String>| {
            say(facility, limit.map_or(Status::Unused, Status::Enforced));
        };
        limit(Facility::MemoryLimit, limits.memory_bytes.map(|bytes| format!("{} MiB", bytes >> 20)));
        limit(Facility::PidLimit, limits.pids.map(|count| format!("{count} processes")));
        limit(Facility::CpuLimit, limits.cpu_millis.map(|millis| format!("{millis} thousandths of a core")));
        say(Facility::DiskLimit, limits.without_disk("docker"));
        say(Facility::Freeze, Status::Enforced(format!("every process at once, by {by}")));
        report.notes.push(format!("the root file system is the image {}", self.image));
        report
    }
}

#[async_trait]
impl Driver for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            rootless: true,
            freeze: true,
            network_isolation: true,
            egress: native::is_root(),
            resource_limits: true,
            ..Capabilities::default()
        }
    }

    async fn create(&self, spec: Spec) -> Result<Sandbox, Error> {
        self.start(spec).await
    }
}

/// Makes what the sandbox may write its user's: the engine maps nobody unless it is set up so.
fn give(spec: &Spec) -> Result<(), Error> {
    if !native::is_root() {
        return Ok(());
    }
    let memory = spec.memory.iter().filter(|mount| !mount.read_only).map(|mount| mount.host.as_path());
    for path in [spec.workspace.written(), &spec.outputs].into_iter().chain(memory) {
        native::give(path, INSIDE).map_err(|cause| Error::Directory { path: path.to_owned(), cause: cause.into() })?;
    }
    Ok(())
}

/// A container, from the engine's side.
#[derive(Debug)]
struct Container {
    engine: Engine,
    id: String,
    frozen: AtomicBool,
    ended: bool,
    /// Kept until the container is gone: it holds the cell's program.
    _scratch: Arc<Scratch>,
}

#[async_trait]
impl Body for Container {
    /// The engine may be on another machine.
    fn pid(&self) -> Option<i32> {
        None
    }

    async fn freeze(&self) -> Result<(), Error> {
        self.engine.pause(&self.id).await?;
        self.frozen.store(true, Ordering::Release);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), Error> {
        self.engine.unpause(&self.id).await?;
        self.frozen.store(false, Ordering::Release);
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, Error> {
        self.engine.usage(&self.id).await
    }

    async fn end(mut self: Box<Self>) -> Result<(), Error> {
        self.ended = true;
        self.engine.end(&self.id, self.frozen.load(Ordering::Acquire)).await
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Without a runtime the process is about to go, and the container with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (engine, id, frozen) = (self.engine.clone(), self.id.clone(), self.frozen.load(Ordering::Acquire));
            let scratch = self._scratch.clone();
            runtime.spawn(async move {
                let _ = engine.end(&id, frozen).await;
                drop(scratch);
            });
        }
    }
}
