//! What the sandbox crate and the cell say to each other.
//!
//! A frame is a length (u32, little-endian) that counts what follows, the length of the header (u32), the header as JSON,
//! and raw bytes. Cells are born in a nursery, whose first frame is [`Nursery`]: after its answer every byte that it hears,
//! with a socket, is the wish for one more cell. Where the walls are not the cell's own it is a program by itself, told so
//! by [`STDIO`]. The first frame to the cell is [`Setup`], the second [`Claim`]; it answers each with [`Ready`]. From then on frames carry [`Request`]s one way and [`Reply`]s the other.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Raised with every change of a frame; both ends are built together, so they must be equal.
pub const VERSION: u32 = 8;
/// The argument of a cell that is not born in a nursery: it speaks through standard input and output, as a container runtime
/// passes nothing else on.
pub const STDIO: &str = "stdio";
/// The longest frame: a document of 20 MiB in base64, and room.
pub const MAX_FRAME: usize = 32 << 20;

/// Output of one command that may be under way before the receiver must have taken some.
pub const OUTPUT_WINDOW: u64 = 1 << 20;
/// Input of one command that may be under way before the cell must have taken some.
pub const INPUT_WINDOW: u64 = 256 << 10;
/// What the smallest frame of output costs of its window: without it, single bytes would make frames without number.
pub const LEAST_CHARGE: u64 = 256;

/// How much of a command's output is kept for those who attach later, in bytes; what is older falls out.
pub const KEPT_OUTPUT: usize = 256 << 10;
/// Commands of one sandbox that run at the same time; as many that have ended are remembered.
pub const MAX_COMMANDS: usize = 64;
/// Who may be attached to one command at the same time.
pub const MAX_ATTACHED: usize = 16;

/// What a frame of output costs of its window.
pub fn charge(bytes: usize) -> u64 {
    (bytes as u64).max(LEAST_CHARGE)
}

/// The first frame to a nursery, which answers it with [`Ready::Built`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Nursery {
    /// [`VERSION`].
    pub version: u32,
    /// What all cells of this nursery find built when they are born; without it they see the host, and build their own.
    pub root: Option<Root>,
    /// Whether its cells have a network that leads to sockets: see [`crate::egress`]. Before anything else that is heard of
    /// such a cell comes [`Ready::Led`].
    pub egress: bool,
}

/// What a nursery is asked: one byte, with the cell's socket and, if it says so, the control group that it is born in. The
/// answer is the new process's number, or what the system said as a negative number, as an `i32` in little-endian order,
/// with a descriptor of the process. The cell waits for one byte on its socket, which says that its user is mapped.
pub const BIRTH: u8 = 1;
/// In the byte: the second descriptor is a control group.
pub const BIRTH_IN_GROUP: u8 = 2;
/// In the byte: the cell has groups to give up.
pub const BIRTH_WITH_GROUPS: u8 = 4;

/// What of a sandbox's root is the same for every session.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Root {
    /// Layers, topmost first; with none of them the root is empty and in memory.
    pub layers: Vec<Source>,
    /// What is mounted where, in order.
    pub binds: Vec<Bind>,
    /// Symbolic links: name and target.
    pub links: Vec<(String, String)>,
    /// Files to write: path and content.
    pub files: Vec<(String, String)>,
}

/// The first frame: all that does not depend on whose sandbox it will be. Its raw bytes are the filter that holds from then
/// on, as [`filter_bytes`] writes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// [`VERSION`].
    pub version: u32,
    /// Whose walls the sandbox has.
    pub place: Place,
    /// The root to build; none where the nursery has one, or where the walls are not the cell's own.
    pub root: Option<Root>,
    /// Size of `/tmp` and of the home directory, each, in bytes.
    pub tmp_bytes: u64,
    /// Size of `/dev/shm`, in bytes.
    pub shm_bytes: u64,
    /// Resource limits: the number of the resource and its limit. Only ever lowered.
    pub rlimits: Vec<(u32, u64)>,
    /// Whether to apply Landlock.
    pub landlock: bool,
    /// Whether everything that a [`Claim`] mounts comes as a descriptor, so that the host can be left at once.
    pub leave_early: bool,
    /// Whether the cell enters a user namespace of its own where a container runtime gave it none.
    pub own_users: bool,
}

/// Whose walls a sandbox has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The cell builds them: mounts, links, files and the host name are its work.
    Own,
    /// A container runtime has built them. The cell checks that it was left no privilege, and adds the filters that it
    /// can.
    Given,
    /// There are none: the cell is a plain process among others.
    Bare,
}

/// The second frame: whose sandbox it is. Its raw bytes are the filter that takes the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claim {
    /// What is mounted where, in order.
    pub binds: Vec<Bind>,
    /// Layered places.
    pub overlays: Vec<Overlay>,
    /// The host name.
    pub hostname: String,
    /// The environment of commands.
    pub env: Vec<(String, String)>,
    /// The working directory of commands and tools.
    pub workdir: String,
    /// Roots that the file tools may use, with whether they may write there.
    pub roots: Vec<(String, bool)>,
}

/// A mount. Sources are read-only unless they say otherwise.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bind {
    /// Where it comes from.
    pub source: Source,
    /// Where it goes, absolute inside the sandbox.
    pub target: String,
    /// Whether it may be written.
    pub writable: bool,
    /// Whether it is a directory.
    pub directory: bool,
    /// Whether it is left out when the source is missing.
    pub optional: bool,
    /// Whether it is left out when there is nothing at its target that it would cover.
    pub over: bool,
    /// Whether device nodes on it work.
    pub devices: bool,
}

/// A mount of layers of which the uppermost is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overlay {
    /// What is only read, topmost first.
    pub lower: Vec<Source>,
    /// A directory with `upper` and `work` in it.
    pub upper: Source,
    /// Where it goes.
    pub target: String,
}

/// Where a mount comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A path of the host that the sandbox's own user can reach.
    Path(String),
    /// The n-th descriptor that came with the frame: a detached mount with all its attributes.
    Descriptor(usize),
}

/// What the cell says before it takes requests: twice when all goes well.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// The network leads to the sockets that come with this, in the order of [`crate::egress::Sockets::from_array`].
    Led,
    /// The walls are there: the answer to [`Setup`].
    Built {
        /// What could not be done and was not required.
        notes: Vec<String>,
    },
    /// The sandbox is sealed and up: the answer to [`Claim`].
    Up {
        /// The Landlock ABI in force; zero when there is none.
        landlock_abi: i32,
        /// Whether the system-call filters are in force.
        seccomp: bool,
        /// Whether others were before them: those of a container runtime.
        filtered: bool,
        /// What could not be done and was not required.
        notes: Vec<String>,
    },
    /// A step failed.
    Failed {
        /// The step.
        step: String,
        /// The system's error number.
        errno: i32,
        /// What was being done.
        detail: String,
    },
}

/// A classic BPF program as raw bytes: eight for each instruction, as the kernel lays it out in `struct sock_filter`.
pub fn filter_bytes(program: &[(u16, u8, u8, u32)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for &(code, jt, jf, k) in program {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[jt, jf]);
        bytes.extend_from_slice(&k.to_ne_bytes());
    }
    bytes
}

/// What the cell is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Run a tool.
    Tool {
        /// Names the call in its reply.
        id: u64,
        /// The tool.
        name: String,
        /// Its input.
        input: Value,
        /// The most time it may take, in milliseconds.
        timeout_ms: u64,
    },
    /// Run a command.
    Exec(Box<Wanted>),
    /// Listen to a command that was started by another request, and write to it.
    Attach {
        /// Names this listener in replies and requests.
        id: u64,
        /// The command: the id of the request that started it.
        process: u64,
        /// The offset of the first byte of output that is wanted; none for all that is kept.
        from: Option<u64>,
        /// Whether the command waits while this listener does not keep up; else the listener loses output.
        hold: bool,
    },
    /// Connect to a TCP port of the sandbox's loopback device. Answered like a command whose output and input are the
    /// connection's; an empty frame of output says that it is made.
    Connect {
        /// Names the connection in its replies.
        id: u64,
        /// The port.
        port: u16,
    },
    /// Which processes there are.
    Processes {
        /// Names the request in its reply.
        id: u64,
    },
    /// More input for a command, as the frame's raw bytes; none closes it.
    Stdin {
        /// The command.
        id: u64,
    },
    /// A new size for a command's terminal.
    Resize {
        /// The command, or somebody attached to it.
        id: u64,
        /// The size.
        size: Size,
    },
    /// A signal for a command's process group, and for the group in the foreground of its terminal.
    Signal {
        /// The command.
        id: u64,
        /// Its number.
        signal: i32,
    },
    /// More output may be sent: frames of this charge have been taken.
    Window {
        /// The command.
        id: u64,
        /// How many.
        bytes: u64,
    },
    /// Give up a call, a command or an attachment. A command that is detached goes on.
    Cancel {
        /// Which.
        id: u64,
    },
    /// Everything stood still for so long, which counts for no limit of time.
    Stood {
        /// Milliseconds.
        ms: u64,
    },
    /// The processes are about to be written to disk: nothing is said any more after the answer, until [`Request::Wake`].
    Rest {
        /// Names the request in its reply.
        id: u64,
    },
    /// Go on, through streams that may be others. How long it rested counts for no limit of time.
    Wake,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// A command that is to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Names the command in its replies.
    pub id: u64,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Whether the program is the cell's own: `argv` is then what it is told.
    pub own: bool,
    /// Variables on top of the sandbox's own.
    pub env: Vec<(String, String)>,
    /// The working directory; the sandbox's own when it is empty.
    pub cwd: String,
    /// Whether its standard input is a pipe; else it is empty.
    pub stdin: bool,
    /// The terminal that it gets; its input and output then are the terminal's.
    pub tty: Option<Size>,
    /// Whether it goes on without whoever started it.
    pub detach: bool,
    /// What people call it.
    pub label: String,
    /// The user that it is to run as, which can only be the sandbox's own.
    pub uid: Option<u32>,
    /// The most time it may take, in milliseconds; zero for no limit.
    pub timeout_ms: u64,
    /// The most that it may write, in bytes; zero for no limit.
    pub output_bytes: u64,
}

/// How a command ended, and what it and those of its children that it had waited for have used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether its time had run out.
    pub timed_out: bool,
    /// Whether it had written more than it may.
    pub output_exceeded: bool,
    /// From its start to its end, in microseconds.
    pub wall_us: u64,
    /// Processor time spent in programs, in microseconds.
    pub user_us: u64,
    /// Processor time spent in the kernel, in microseconds.
    pub system_us: u64,
    /// The most memory that one process held, in KiB.
    pub max_rss_kib: u64,
}

/// A process of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The command that it is, if it was started as one.
    pub id: Option<u64>,
    /// What people call that command.
    pub label: String,
    /// Its number inside the sandbox; zero when it has ended.
    pub pid: i32,
    /// The number of its parent.
    pub parent: i32,
    /// Program and arguments, the beginning of them.
    pub argv: Vec<String>,
    /// Its state as `/proc` has it: `R`, `S`, `D`, `T`, `Z`; empty when it has ended.
    pub state: String,
    /// Its terminal, when it has one: the number below `/dev/pts`.
    pub tty: Option<u32>,
    /// Whether it goes on without whoever started it.
    pub detached: bool,
    /// How long ago it was started, in milliseconds.
    pub age_ms: u64,
    /// Processor time so far, in milliseconds.
    pub cpu_ms: u64,
    /// Memory in use, in KiB.
    pub rss_kib: u64,
    /// The offset of the next byte that it will write, when it is a command.
    pub written: u64,
    /// How it ended, when it has.
    pub end: Option<End>,
}

/// What the cell answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Reply {
    /// A tool is done.
    Tool {
        /// The call.
        id: u64,
        /// Blocks of content, as the API has them.
        content: Vec<Value>,
        /// Whether it failed.
        is_error: bool,
        /// Processor time of the shell and its children, in microseconds, in steps of a hundredth of a second; none where
        /// it is not known.
        cpu_us: Option<u64>,
    },
    /// Output of a command, as the frame's raw bytes.
    Output {
        /// The command.
        id: u64,
        /// Whether it is standard error.
        stderr: bool,
        /// How much the command had written before, both streams together. What is missing between two frames fell out.
        offset: u64,
    },
    /// So much of a command's input has been taken, and as much more may be sent.
    Taken {
        /// The command.
        id: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// A command has ended, and all its output has been sent.
    Exit {
        /// The command.
        id: u64,
        /// How.
        end: End,
    },
    /// The processes of the sandbox.
    Processes {
        /// The request.
        id: u64,
        /// Commands first.
        processes: Vec<Process>,
    },
    /// Nothing is said after this, and nothing is on its way.
    Resting {
        /// The request.
        id: u64,
    },
    /// The first word after a rest.
    Awake,
    /// A command could not be started.
    ExecFailed {
        /// The command.
        id: u64,
        /// Why.
        message: String,
    },
}

/// Encodes a frame.
///
/// # Errors
/// When the header cannot be encoded or the frame is too long.
pub fn encode(header: &impl Serialize, raw: &[u8]) -> io::Result<Vec<u8>> {
    let header = serde_json::to_vec(header)?;
    let total = 4 + header.len() + raw.len();
    if total > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut frame = Vec::with_capacity(4 + total);
    frame.extend_from_slice(&u32::try_from(total).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend_from_slice(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(raw);
    Ok(frame)
}

/// Splits what follows a frame's first length into header and raw bytes.
///
/// # Errors
/// When the frame is malformed.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> io::Result<(T, &[u8])> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let (length, rest) = frame.split_first_chunk::<4>().ok_or_else(|| wrong("short frame"))?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > rest.len() {
        return Err(wrong("header longer than its frame"));
    }
    let (header, raw) = rest.split_at(length);
    Ok((serde_json::from_slice(header)?, raw))
}

/// Checks a frame's announced length.
///
/// # Errors
/// When it is out of range.
pub fn check_length(length: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(length) as usize;
    if !(4..=MAX_FRAME).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame length out of range"));
    }
    Ok(length)
}

/// Reads one frame; none at the end of the stream.
///
/// # Errors
/// When the stream fails or the frame is malformed.
pub fn read_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(why) => return Err(why),
    }
    let mut frame = vec![0; check_length(length)?];
    from.read_exact(&mut frame)?;
    Ok(Some(frame))
}

/// Writes one frame.
///
/// # Errors
/// When the stream fails or the frame is too long.
pub fn write_frame(to: &mut impl Write, header: &impl Serialize, raw: &[u8]) -> io::Result<()> {
    to.write_all(&encode(header, raw)?)
}
