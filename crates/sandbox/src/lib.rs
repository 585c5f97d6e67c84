//! Linux isolation: one hardened sandbox per session.
//!
//! [`Native`] makes sandboxes out of namespaces, mounts, seccomp, Landlock, capabilities and cgroups, with or without root.
//! Inside, PID 1 is the cell: it runs tools and commands and speaks with this crate over one socket.
//!
//! Architecture invariant: nothing of the worker crosses into a sandbox but the [`Spec`]: no descriptor, no variable, no
//! memory. What cannot be enforced on a machine is said in the [`Report`], and refused when the spec requires it.

#![allow(unsafe_code, reason = "isolation is made of system calls; each block says why it is sound")]

pub mod disk;
mod error;
pub mod hostile;
mod native;
mod pool;
mod probe;
mod sandbox;
mod spec;

pub use error::Error;
pub use native::{Native, Options};
pub use palisade_cell::{End, Process, Size, archive};
pub use pool::PoolOptions;
pub use probe::{Probe, probe, probe_place};
pub use sandbox::{
    CommandUsage, Connection, Exec, ExecRequest, ExitStatus, Input, Output, Sandbox, ToolCall, ToolOutput, ToolUsage,
};
pub use spec::{Capabilities, Facility, Limits, MemoryMount, Report, Rootfs, Spec, Status, Usage, Workspace};

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
}
