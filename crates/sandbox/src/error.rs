//! What can go wrong with a sandbox; a failed start names its step.

use std::io;
use std::path::PathBuf;

use crate::Facility;

/// Why a sandbox could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec asks for something that cannot be.
    #[error("the sandbox cannot be made: {0}")]
    Spec(String),
    /// A directory of the spec cannot be used.
    #[error("{path}: {cause}: the directory must exist and be the caller's", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The cell's program could not be prepared.
    #[error("preparing the cell's program: {0}")]
    Program(io::Error),
    /// The socket to the cell could not be made.
    #[error("making the socket to the cell: {0}")]
    Socket(io::Error),
    /// The namespaces could not be made.
    #[error("making namespaces: {0}: see `palisade doctor` for what this machine allows")]
    Clone(io::Error),
    /// The user could not be mapped.
    #[error("mapping the sandbox's user: {0}")]
    UserMap(io::Error),
    /// The owners of a directory could not be translated.
    #[error(
        "translating the owners of {path}: {cause}: its file system must support idmapped mounts (ext4, xfs and btrfs do, \
         tmpfs since Linux 6.3); or run the worker without root",
        path = path.display()
    )]
    Idmap {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// No host user could be claimed for the sandbox.
    #[error("claiming a host user for the sandbox: {0}")]
    Identity(io::Error),
    /// The disk could not be limited.
    #[error(transparent)]
    Disk(#[from] crate::disk::Error),
    /// A control group could not be set up.
    #[error("setting up the control group {path}: {cause}", path = path.display())]
    Cgroup {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The sandbox cannot be stopped as a whole.
    #[error(
        "the sandbox cannot be frozen: no control group that freezes can be made here; run the worker as root, or under \
         systemd with Delegate=yes"
    )]
    Unfrozen,
    /// The driver cannot write processes to disk.
    #[error("the processes cannot be written to disk: of the drivers only oci can, with gVisor's runsc")]
    Awake,
    /// What was written of a sandbox cannot be woken.
    #[error("the processes in {path} cannot be woken: {why}", path = path.display())]
    Asleep {
        /// Where they are.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The system-call filters could not be compiled.
    #[error("compiling the system-call filters: {0}")]
    Seccomp(String),
    /// A step failed inside the sandbox.
    #[error("building the sandbox: {step} ({detail}): {cause}")]
    Build {
        /// The step.
        step: String,
        /// What it was about.
        detail: String,
        /// What the system said.
        cause: io::Error,
    },
    /// Something that must be enforced is not.
    #[error("{facility} is required and the {driver} driver does not have it here: {reason}")]
    Required {
        /// What.
        facility: Facility,
        /// The driver.
        driver: &'static str,
        /// Why not.
        reason: String,
    },
    /// A driver cannot be had, or not with these options.
    #[error("the {driver} driver: {why}")]
    Driver {
        /// Its name.
        driver: String,
        /// Why not, and what to do.
        why: String,
    },
    /// A driver's own directory cannot be used.
    #[error("preparing the driver's directory {path}: {cause}", path = path.display())]
    Scratch {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A container runtime could not be run.
    #[error("{runtime} cannot be run: {cause}: install it, or name the runtime by its path")]
    NoRuntime {
        /// The program.
        runtime: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A container runtime refused.
    #[error("{runtime} {step}: {said}")]
    Runtime {
        /// The program.
        runtime: String,
        /// What it was told to do.
        step: &'static str,
        /// What it said.
        said: String,
    },
    /// A container engine cannot be reached, or refused.
    #[error("{step} through the container engine at {socket}: {said}")]
    Engine {
        /// Its socket.
        socket: String,
        /// What it was asked for.
        step: &'static str,
        /// What it said.
        said: String,
    },
    /// An image is not named by its digest, or is not there.
    #[error("the image {image}: {why}")]
    Image {
        /// What was given.
        image: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A container is not as it was ordered. It has been removed.
    #[error(
        "the container was not made with {field} as asked: {wanted} was asked for and {found} is in force; it has been removed"
    )]
    Hardening {
        /// The field of the runtime's or the engine's interface.
        field: &'static str,
        /// What was asked for.
        wanted: String,
        /// What is in force.
        found: String,
    },
    /// The cell did not come up, or answer, in time.
    #[error("the sandbox did not answer within {0} s")]
    Timeout(u64),
    /// The sandbox has ended.
    #[error("the sandbox has ended")]
    Ended,
    /// A command could not be started.
    #[error("the command could not be started: {0}")]
    Exec(String),
    /// Nobody answers at a port of the sandbox.
    #[error("nothing answers at port {port} of the sandbox: {reason}")]
    Connect {
        /// The port.
        port: u16,
        /// What the system said.
        reason: String,
    },
    /// The cell said something that it should not have.
    #[error("talking to the cell: {0}")]
    Protocol(io::Error),
}
