//! What the engine is asked for.

use std::fs;
use std::path::Path;

use palisade_cell::STDIO;
use rustix::process::{Resource, getrlimit};
use serde_json::{Map, Value, json};

use super::DockerOptions;
use crate::native::INSIDE;
use crate::oci::{CELL, MASKED, READ_ONLY, profile};
use crate::scratch::Scratch;
use crate::{Error, Limits, Spec};

/// The label that names the directory of the process that a container belongs to.
pub(super) const OWNER: &str = "dev.palisade.owner";

/// A container that is ordered.
#[derive(Debug)]
pub(super) struct Order {
    /// The body of the request.
    pub(super) body: Value,
    /// What is mounted from the host: source, place and whether it may be written.
    pub(super) binds: Vec<(String, String, bool)>,
}

/// Writes the system-call profile for engines that read it from a file.
pub(super) fn write_profile(scratch: &Scratch, own_users: bool) -> Result<(), Error> {
    let path = scratch.path().join("seccomp.json");
    fs::write(&path, profile(own_users).to_string()).map_err(|cause| Error::Scratch { path, cause })
}

impl Order {
    pub(super) fn new(
        spec: &Spec,
        options: &DockerOptions,
        image: &str,
        scratch: &Scratch,
        podman: bool,
    ) -> Result<Order, Error> {
        let mut binds = vec![
            (text(&scratch.cell())?, CELL.to_owned(), false),
            (text(spec.workspace.written())?, "/workspace".to_owned(), true),
            (text(&spec.outputs)?, "/mnt/session/outputs".to_owned(), true),
        ];
        for mount in &spec.memory {
            binds.push((text(&mount.host)?, format!("/mnt/memory/{}", mount.name), !mount.read_only));
        }
        // What would cover something of the image's is left out: nobody here knows what is in it.
        for given in spec.given.iter().filter(|given| !given.over) {
            binds.push((text(&given.host)?, given.target.clone(), false));
        }
        let words = binds
            .iter()
            .map(|(source, place, writable)| format!("{source}:{place}:{}", if *writable { "rw" } else { "ro" }));
        let mut host = json!({
            "Binds": words.collect::<Vec<_>>(),
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges", seccomp(scratch, options, podman)],
            "ReadonlyRootfs": true,
            "Privileged": false,
            "NetworkMode": "none",
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "Init": false,
            "AutoRemove": true,
            // The conversation with the cell is nobody's log.
            "LogConfig": {"Type": "none"},
            "ShmSize": spec.limits.shm_bytes,
            "Tmpfs": tmpfs(&spec.limits, podman),
            "Ulimits": ulimits(spec),
        });
        let masked: Vec<&str> = MASKED.iter().copied().chain(["/sys"]).collect();
        if podman {
            // It has options of its own for that, and what may only be read is the same.
            let mask = format!("mask={}", masked.join(":"));
            host["SecurityOpt"].as_array_mut().into_iter().for_each(|all| all.push(Value::from(mask.clone())));
        } else {
            host["MaskedPaths"] = json!(masked);
            host["ReadonlyPaths"] = json!(READ_ONLY);
        }
        let limits = &spec.limits;
        let mut set = |name: &str, value: Option<Value>| {
            if let (Some(value), Some(host)) = (value, host.as_object_mut()) {
                host.insert(name.to_owned(), value);
            }
        };
        set("Memory", limits.memory_bytes.map(Value::from));
        // Memory and swap together: no swap.
        set("MemorySwap", limits.memory_bytes.map(Value::from));
        set("PidsLimit", limits.pids.map(Value::from));
        set("NanoCpus", limits.cpu_millis.map(|millis| Value::from(millis * 1_000_000)));
        // 100 is the usual weight here, 1024 there.
        set("CpuShares", limits.cpu_weight.map(|weight| Value::from((u64::from(weight) * 1024 / 100).max(2))));
        set("Runtime", options.runtime.clone().map(Value::from));
        set("UsernsMode", options.userns.clone().map(Value::from));
        let user = format!("{INSIDE}:{INSIDE}");
        let body = json!({
            "Image": image,
            "Hostname": spec.hostname,
            "User": user,
            "Entrypoint": [CELL],
            "Cmd": [STDIO],
            "Env": [],
            "WorkingDir": "/",
            "Tty": false,
            "AttachStdin": true,
            "AttachStdout": true,
            "AttachStderr": false,
            "OpenStdin": true,
            // It is closed when this process goes: then the cell ends, and the container with it.
            "StdinOnce": true,
            "NetworkDisabled": true,
            "Labels": {OWNER: scratch.path().display().to_string()},
            "HostConfig": host,
        });
        Ok(Order { body, binds })
    }
}

fn seccomp(scratch: &Scratch, options: &DockerOptions, podman: bool) -> String {
    if podman {
        format!("seccomp={}", scratch.path().join("seccomp.json").display())
    } else {
        format!("seccomp={}", profile(own_users(options)))
    }
}

/// Whether the cell is to enter a user namespace of its own, as the engine gives it none: where its kernel is the host's.
pub(super) fn own_users(options: &DockerOptions) -> bool {
    options.runtime.as_deref().is_none_or(|name| name.contains("runc") || name.contains("crun"))
}

/// The places in memory, with how many names each may hold.
pub(super) fn places(limits: &Limits) -> [(&'static str, u64); 5] {
    let names = |bytes: u64| (bytes >> 12).max(1024);
    // The last is Podman's own idea.
    [
        ("/tmp", names(limits.tmp_bytes)),
        ("/home/agent", names(limits.tmp_bytes)),
        ("/run", 4096),
        ("/dev/shm", names(limits.shm_bytes)),
        ("/var/tmp", names(limits.tmp_bytes)),
    ]
}

fn tmpfs(limits: &Limits, podman: bool) -> Map<String, Value> {
    // Nobody else is inside, so modes keep nobody out. A directory of the image's lends its place its own mode, though, which may let
    // its owner write only.
    places(limits)
        .into_iter()
        .zip([limits.tmp_bytes, limits.tmp_bytes, 16 << 20, limits.shm_bytes])
        .map(|((at, names), size)| {
            let names = if podman { String::new() } else { format!(",nr_inodes={names},uid={INSIDE},gid={INSIDE}") };
            (at.to_owned(), Value::from(format!("rw,nosuid,nodev,exec,mode=1777,size={size}{names}")))
        })
        .collect()
}

/// Processes of the sandbox's user on the engine's machine, in all sandboxes together: no more than what engines give
/// themselves, as what is above that may be refused. The limit of one sandbox is another.
const PROCESSES: u64 = 1 << 15;

/// Engines set limits of their own unless told, and fail where they may not raise them.
fn ulimits(spec: &Spec) -> Value {
    let most = |resource| getrlimit(resource).maximum;
    let number = |limit: Option<u64>| limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(-1);
    let files = match (spec.limits.open_files, most(Resource::Nofile)) {
        (Some(wanted), Some(most)) => Some(wanted.min(most)),
        (wanted, most) => wanted.or(most),
    };
    let processes = most(Resource::Nproc).map_or(PROCESSES, |most| most.min(PROCESSES));
    let (files, processes) = (number(files), number(Some(processes)));
    json!([
        {"Name": "nofile", "Soft": files, "Hard": files},
        {"Name": "nproc", "Soft": processes, "Hard": processes},
    ])
}

fn text(path: &Path) -> Result<String, Error> {
    let wrong = |why: &str| Error::Directory { path: path.to_owned(), cause: std::io::Error::other(why.to_owned()) };
    let text = path.to_str().ok_or_else(|| wrong("the path must be valid UTF-8"))?;
    // It separates the parts of a bind.
    if text.contains(':') { Err(wrong("a container engine takes no path with a colon")) } else { Ok(text.to_owned()) }
}
