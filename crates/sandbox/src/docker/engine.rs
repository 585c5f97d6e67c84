//! The engine's interface.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as Refusal;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, KillContainerOptions, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StatsOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker as Client};
use futures::StreamExt;
use serde_json::Value;
use tokio_util::io::StreamReader;

use super::order::{OWNER, Order};
use crate::sandbox::{Sink, Source};
use crate::{Error, Usage};

/// An engine that answers.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    client: Client,
    socket: String,
    name: String,
}

/// The most that one request may take, in seconds.
const PATIENCE: u64 = 60;

impl Engine {
    pub(super) async fn connect(socket: &str) -> Result<Engine, Error> {
        let socket = socket.strip_prefix("unix://").unwrap_or(socket).to_owned();
        let wrong = |why: Refusal| refused(&socket, "connecting", why);
        if !socket.starts_with('/') {
            let said = "only Unix sockets are spoken to: give an absolute path, or unix:// and one".to_owned();
            return Err(Error::Engine { socket, step: "connecting", said });
        }
        let client = Client::connect_with_unix(&socket, PATIENCE, API_DEFAULT_VERSION).map_err(wrong)?;
        let client = client.negotiate_version().await.map_err(wrong)?;
        let version = client.version().await.map_err(wrong)?;
        let components = version.components.unwrap_or_default();
        let podman = components.iter().any(|component| component.name.starts_with("Podman"));
        let name = if podman { PODMAN } else { "Docker Engine" };
        let name = format!("{name} {}", version.version.unwrap_or_default());
        Ok(Engine { client, socket, name })
    }

    /// Its name and version.
    pub(super) fn version(&self) -> &str {
        &self.name
    }

    pub(super) fn is_podman(&self) -> bool {
        self.name.starts_with(PODMAN)
    }

    fn refused(&self, step: &'static str) -> impl FnOnce(Refusal) -> Error + '_ {
        move |why| refused(&self.socket, step, why)
    }

    /// The id of an image that is named by digest or id, and by nothing that can change.
    pub(super) async fn image(&self, name: &str) -> Result<String, Error> {
        let wrong = |why: String| Error::Image { image: name.to_owned(), why };
        if name.is_empty() {
            return Err(wrong("none is given; name one by its digest, name@sha256:…".to_owned()));
        }
        let digest = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let fixed = match name.rsplit_once("sha256:") {
            Some((before, hash)) => digest(hash) && (before.is_empty() || before.ends_with('@')),
            None => digest(name),
        };
        let found = match self.client.inspect_image(name).await {
            Ok(found) => found,
            Err(Refusal::DockerResponseServerError { status_code: 404, .. }) if fixed => {
                return Err(wrong("the engine does not have it; pull it by this digest".to_owned()));
            }
            Err(Refusal::DockerResponseServerError { status_code: 404, .. }) => {
                return Err(wrong(
                    "a tag can change, and the engine does not have it; pull it, and name it by its digest".to_owned(),
                ));
            }
            Err(why) => return Err(refused(&self.socket, "looking for the image", why)),
        };
        let id = found.id.unwrap_or_default();
        let id = if id.starts_with("sha256:") { id } else { format!("sha256:{id}") };
        if fixed {
            return Ok(id);
        }
        let now = found.repo_digests.unwrap_or_default().into_iter().next().unwrap_or(id);
        Err(wrong(format!("a tag can change; it is {now} now: name it so")))
    }

    /// Makes the container, under a name of the engine's choice: what it belongs to is in its label.
    pub(super) async fn create(&self, order: &Order) -> Result<String, Error> {
        let body: ContainerCreateBody = serde_json::from_value(order.body.clone())
            .map_err(|why| Error::Spec(format!("the order for the container engine: {why}")))?;
        let made = self.client.create_container(None::<CreateContainerOptions>, body).await;
        Ok(made.map_err(self.refused("creating the container"))?.id)
    }

    /// The container's standard output and input. Closing them closes its input.
    pub(super) async fn attach(&self, id: &str) -> Result<(Source, Sink), Error> {
        let options = AttachContainerOptions { stream: true, stdin: true, stdout: true, ..Default::default() };
        let attached = self.client.attach_container(id, Some(options)).await;
        let attached = attached.map_err(self.refused("attaching to the container"))?;
        let output = attached.output.filter_map(|piece| async {
            match piece {
                Ok(LogOutput::StdOut { message }) => Some(Ok(message)),
                Ok(_) => None,
                Err(why) => Some(Err(std::io::Error::other(why))),
            }
        });
        Ok((Box::new(StreamReader::new(Box::pin(output))), Box::new(attached.input)))
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), Error> {
        self.client.start_container(id, None).await.map_err(self.refused("starting the container"))
    }

    /// What the engine says that it has made.
    pub(super) async fn inspect(&self, id: &str) -> Result<Value, Error> {
        let found = self.client.inspect_container(id, None).await.map_err(self.refused("inspecting the container"))?;
        serde_json::to_value(found).map_err(|why| Error::Spec(format!("the container engine's answer: {why}")))
    }

    /// On cgroup v1 runc gives up on processes that are never at a place where they can be stopped while it looks, thaws them and
    /// fails; its makers leave it to the caller to try again (opencontainers/runc#4388).
    pub(super) async fn pause(&self, id: &str) -> Result<(), Error> {
        let mut tries = 0..20;
        loop {
            match self.client.pause_container(id).await {
                Err(bollard::errors::Error::DockerResponseServerError { status_code: 500, .. })
                    if tries.next().is_some() =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                paused => return paused.map_err(self.refused("pausing the container")),
            }
        }
    }

    pub(super) async fn unpause(&self, id: &str) -> Result<(), Error> {
        self.client.unpause_container(id).await.map_err(self.refused("unpausing the container"))
    }

    pub(super) async fn usage(&self, id: &str) -> Result<Usage, Error> {
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let mut stats = std::pin::pin!(self.client.stats(id, Some(options)));
        let stats = stats.next().await.ok_or(Error::Ended)?.map_err(self.refused("asking for figures"))?;
        let cpu = stats.cpu_stats.and_then(|cpu| cpu.cpu_usage).and_then(|cpu| cpu.total_usage);
        let memory = stats.memory_stats.unwrap_or_default();
        Ok(Usage {
            cpu: cpu.map(Duration::from_nanos),
            memory_bytes: memory.usage,
            memory_peak_bytes: memory.max_usage,
            processes: stats.pids_stats.and_then(|pids| pids.current),
            oom_kills: None,
            disk_bytes: None,
        })
    }

    /// Kills and removes a container, and waits until the engine does not know it any more.
    pub(super) async fn end(&self, id: &str, frozen: bool) -> Result<(), Error> {
        if frozen {
            // It may have been thawed behind our back; if it is still frozen the next step says so.
            let _ = self.client.unpause_container(id).await;
        }
        // Most often this alone makes the engine remove it.
        let _ = self.client.kill_container(id, None::<KillContainerOptions>).await;
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.client.remove_container(id, Some(options)).await {
            // Gone, or about to go.
            Ok(()) | Err(Refusal::DockerResponseServerError { status_code: 404 | 409, .. }) => {}
            Err(why) => return Err(refused(&self.socket, "removing the container", why)),
        }
        let gone = async {
            loop {
                match self.client.inspect_container(id, None).await {
                    Err(Refusal::DockerResponseServerError { status_code: 404, .. }) => return Ok(()),
                    Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(why) => return Err(refused(&self.socket, "removing the container", why)),
                }
            }
        };
        let late = || Error::Engine {
            socket: self.socket.clone(),
            step: "removing the container",
            said: format!("{id} is still there after {PATIENCE} s"),
        };
        tokio::time::timeout(Duration::from_secs(PATIENCE), gone).await.unwrap_or_else(|_| Err(late()))
    }

    /// Removes the containers of processes that are gone: their directories are among the abandoned ones, or are not there.
    pub(super) async fn sweep(&self, base: &Path, own: &str, abandoned: &[PathBuf]) -> Result<(), Error> {
        let filters = std::collections::HashMap::from([("label".to_owned(), vec![OWNER.to_owned()])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.client.list_containers(Some(options)).await.map_err(self.refused("listing containers"))?;
        for container in found {
            let owner = container.labels.as_ref().and_then(|labels| labels.get(OWNER)).map(PathBuf::from);
            let (Some(owner), Some(id)) = (owner, container.id) else { continue };
            // Other machines and workers with another directory look after their own.
            let ours = owner.parent() == Some(base) && owner != Path::new(own);
            if ours && (abandoned.contains(&owner) || std::fs::symlink_metadata(&owner).is_err()) {
                self.end(&id, true).await?;
            }
        }
        Ok(())
    }
}

const PODMAN: &str = "Podman";

fn refused(socket: &str, step: &'static str, why: Refusal) -> Error {
    let said = match why {
        Refusal::SocketNotFoundError(_) => "there is no such socket; start the engine, or name its socket".to_owned(),
        Refusal::DockerResponseServerError { message, .. } => message,
        Refusal::HyperLegacyError { err } => {
            format!("{}; start the engine, or name its socket", innermost(&err))
        }
        why => why.to_string(),
    };
    Error::Engine { socket: socket.to_owned(), step, said }
}

fn innermost(why: &dyn std::error::Error) -> String {
    let mut cause = why;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
