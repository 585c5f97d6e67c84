//! The bodies of requests and responses.

use std::path::PathBuf;

use palisade_checkpoint::Checkpoint;
use palisade_sandbox::{ExitStatus, Size, Usage};
use serde::{Deserialize, Serialize};

/// A session that the worker serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionBody {
    /// The session's id.
    pub id: String,
    /// What makes its sandbox.
    pub driver: String,
    /// For how long the worker has served it, in milliseconds.
    pub served_ms: u64,
    /// Whether its sandbox is up.
    pub sandbox: bool,
    /// Whether nothing of it goes on until it is resumed.
    #[serde(default)]
    pub paused: bool,
    /// Processor time of all its processes, in milliseconds, where it is known.
    pub cpu_ms: Option<u64>,
    /// Memory now, in bytes, where it is known.
    pub memory_bytes: Option<u64>,
    /// The most memory at a time, in bytes, where it is known.
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads now, where it is known.
    pub processes: Option<u64>,
}

impl SessionBody {
    pub(crate) fn measured(mut self, usage: &Usage) -> SessionBody {
        self.cpu_ms = usage.cpu.map(|cpu| u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX));
        self.memory_bytes = usage.memory_bytes;
        self.memory_peak_bytes = usage.memory_peak_bytes;
        self.processes = usage.processes;
        self
    }
}

/// A session that was put to disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HibernatedBody {
    /// Its files.
    #[serde(flatten)]
    pub checkpoint: Checkpoint,
    /// Whether its processes are on disk too; else they have ended.
    pub processes_kept: bool,
}

/// A session that goes on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ResumedBody {
    /// Whether its processes go on. False when they were on disk and could not be brought back: the worker's log says why. None
    /// when there are none, or none until it is served again.
    pub processes_kept: Option<bool>,
}

/// Which part of the audit trail goes where.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveBody {
    /// Records that are younger stay.
    pub older_than_seconds: u64,
    /// The directory, as an absolute path.
    pub to: PathBuf,
}

/// What was moved out of the audit trail.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ArchivedBody {
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The last record in them; none when nothing was old enough.
    pub through: Option<u64>,
}

/// The credentials of a worker, and how the sources of their values fare.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CredentialsBody {
    /// The sources.
    pub sources: Vec<SourceBody>,
    /// The credentials, without their values.
    pub credentials: Vec<CredentialBody>,
    /// References that were revoked here.
    pub revoked: Vec<String>,
}

/// A source of secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceBody {
    /// Its kind, as references begin.
    pub kind: String,
    /// Its name; empty where there is one of the kind.
    pub name: String,
    /// What it is and where.
    pub description: String,
    /// Why it is left alone now; none when it is not.
    pub down: Option<DownBody>,
}

/// Why a source is left alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DownBody {
    /// What happened.
    pub why: String,
    /// When it is asked next, in milliseconds.
    pub retry_ms: u64,
}

/// A credential without its value.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CredentialBody {
    /// How records name it.
    pub name: String,
    /// Where its value comes from.
    pub reference: String,
    /// Whether it was revoked here.
    pub revoked: bool,
}

/// What is revoked or allowed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceBody {
    /// A reference, with or without a field, or a credential as records name it.
    pub reference: String,
}

/// What was revoked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RevokedBody {
    /// The references.
    pub revoked: Vec<String>,
    /// Whether it holds when the worker starts anew. If not, its log says why.
    pub kept: bool,
    /// Leases that their source has not taken back. It is tried again until they end.
    pub leases_left: Vec<LeaseBody>,
}

/// A lease that could not be revoked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseBody {
    /// What it is a lease of.
    pub of: String,
    /// Why it could not be revoked.
    pub why: String,
    /// When it ends by itself at the latest, in milliseconds.
    pub ends_ms: u64,
}

/// What is allowed again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AllowedBody {
    /// The references.
    pub allowed: Vec<String>,
}

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

impl From<TerminalSize> for Size {
    fn from(size: TerminalSize) -> Size {
        Size { rows: size.rows, cols: size.cols }
    }
}

/// A command to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecBody {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables on top of the sandbox's own.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The working directory; `/workspace` unless told.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Whether it gets input.
    #[serde(default)]
    pub stdin: bool,
    /// A terminal for it.
    #[serde(default)]
    pub tty: Option<TerminalSize>,
    /// Whether it goes on when the connection ends.
    #[serde(default)]
    pub detach: bool,
    /// What people call it.
    #[serde(default)]
    pub label: String,
    /// The user that it is to run as; only the sandbox's own is possible.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The most time it may take, in milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// The most that it may write, in bytes.
    #[serde(default)]
    pub output_limit: Option<u64>,
    /// Whether a sandbox is started when the session has none.
    #[serde(default)]
    pub start: bool,
}

/// Whom to listen to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttachBody {
    pub(crate) process: u64,
    #[serde(default)]
    pub(crate) from: Option<u64>,
    /// Whether the command waits for this listener.
    #[serde(default)]
    pub(crate) hold: bool,
}

/// What a connection to a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A port of this machine that leads there.
    Forward,
    /// A page for a browser; only where the worker allows it.
    Preview,
}

/// Where to connect to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectBody {
    /// The port of the sandbox's loopback device.
    pub port: u16,
    /// What for.
    pub purpose: Purpose,
}

/// A signal for a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalBody {
    /// The command.
    pub process: u64,
    /// The signal's number.
    pub signal: i32,
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitBody {
    /// Its exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether its time had run out.
    pub timed_out: bool,
    /// Whether it had written more than it was allowed to.
    pub output_exceeded: bool,
    /// From its start to its end, in microseconds.
    pub wall_us: u64,
    /// Processor time, in microseconds.
    pub cpu_us: u64,
    /// The most memory that one process held, in KiB.
    pub max_rss_kib: u64,
}

impl From<ExitStatus> for ExitBody {
    fn from(status: ExitStatus) -> ExitBody {
        let us = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        ExitBody {
            code: status.code,
            signal: status.signal,
            timed_out: status.timed_out,
            output_exceeded: status.output_exceeded,
            wall_us: us(status.usage.wall),
            cpu_us: us(status.usage.user + status.usage.system),
            max_rss_kib: status.usage.max_rss_kib,
        }
    }
}

/// A checkpoint that is to be taken.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointBody {
    /// What it is called.
    #[serde(default)]
    pub label: Option<String>,
}

/// The checkpoint that a session's workspace is to be brought back to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreBody {
    /// Its name.
    pub checkpoint: String,
}
