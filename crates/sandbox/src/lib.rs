//! Linux isolation: one hardened sandbox per session.
//!
//! [`Native`] makes sandboxes out of namespaces, mounts, seccomp, Landlock, capabilities and cgroups, with or without root;
//! [`Oci`] has them made by a container runtime, [`Docker`] by a container engine; [`Bare`] makes none, for development.
//! Inside, PID 1 is the cell: it runs tools and commands and speaks with this crate over one stream.
//!
//! Architecture invariant: nothing of the worker crosses into a sandbox but the [`Spec`]: no descriptor, no variable, no
//! memory. What cannot be enforced on a machine is said in the [`Report`], and refused when the spec requires it.

#![allow(unsafe_code, reason = "isolation is made of system calls; each block says why it is sound")]

pub mod disk;
mod docker;
mod error;
mod handshake;
pub mod hostile;
mod lead;
mod native;
mod oci;
mod pool;
mod probe;
mod process;
mod registry;
mod remove;
mod sandbox;
mod scratch;
mod spec;
mod within;

pub use docker::{Docker, DockerOptions};
pub use error::Error;
pub use native::{Native, Options};
pub use oci::{Oci, OciOptions};
pub use palisade_cell::egress::{CAUGHT, PROXY, RESOLVER, Sockets};
pub use palisade_cell::{End, Process, Size, archive};
pub use pool::PoolOptions;
pub use probe::{Probe, probe, probe_place};
pub use process::{Bare, BareOptions};
pub use registry::{DRIVERS, DriverOptions, driver};
pub use remove::{Temporary, remove_tree};
pub use sandbox::{
    CommandUsage, Connection, Exec, ExecRequest, ExitStatus, Input, Output, Sandbox, ToolCall, ToolOutput, ToolUsage,
    Woken, within,
};
pub use spec::{Capabilities, Facility, Given, Limits, MemoryMount, Report, Rootfs, Spec, Status, Usage, Workspace};

use std::path::Path;

use async_trait::async_trait;

/// Something that makes sandboxes.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Makes a sandbox.
    ///
    /// # Errors
    /// The step that failed; nothing is left behind.
    async fn create(&self, spec: Spec) -> Result<Sandbox, Error>;

    /// Brings back the processes that [`Sandbox::hibernate`] has written to `from`. The spec must be the one of that sandbox,
    /// and what is in its directories too. What is in `from` is only read, and must be woken once at most: whatever the
    /// processes have done since then they would do again.
    ///
    /// # Errors
    /// When the driver cannot do it, or what is there cannot be brought back here.
    async fn wake(&self, spec: Spec, from: &Path) -> Result<Woken, Error> {
        let _ = (spec, from);
        Err(Error::Awake)
    }
}
