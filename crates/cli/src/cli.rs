//! The command line: what can be asked for, and how the process is set up before it is done.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::client::{Address, Client};
use crate::commands::{
    agents, backup, bench, checkpoints, completions, cp, demo, doctor, egress, environments, exec, forward, images,
    keys, live, preview, ps, run, sandbox, server, sessions, ssh, up, vault, worker,
};
use crate::output::{Failure, Format, Outcome, Output};
use crate::secret::Source;

/// The exit code of a command line that cannot be understood (`EX_USAGE`); 2 is an outcome of `run`.
const USAGE: u8 = 64;

/// Run Claude Managed Agents inside your own perimeter.
///
/// `palisade demo` shows a whole session on this machine, with no key and no network.
/// `palisade up` starts the control plane and a worker for it; then `palisade run "…"` talks to them.
#[derive(Debug, Parser)]
#[command(
    name = "palisade",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done; 1 failed, with the reason on standard error; 64 a command line that cannot be \
                  understood. `run` and `demo` have more, see their help.\n\
                  NO_COLOR=1 writes no colours."
)]
pub(crate) struct Cli {
    /// How results are written: text for people, or one JSON object per line.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT", env = "PALISADE_OUTPUT")]
    pub(crate) output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start both planes in one process: the server, an environment "local" and a worker for it.
    Up(up::UpArgs),
    /// Start the control plane: the Managed Agents API, the agent loop and the work queue.
    Server(server::ServerArgs),
    /// Start the execution plane: claim sessions of one environment and run their tools in sandboxes.
    Worker(worker::WorkerArgs),
    /// Show a whole session on this machine, and what its sandbox refuses: no key, no network.
    Demo(demo::DemoArgs),
    /// Give an agent one prompt and follow it to the end of its turn.
    Run(run::RunArgs),
    /// List, show, create and archive agents.
    #[command(subcommand)]
    Agents(agents::AgentsCommand),
    /// List, show, create and archive environments.
    #[command(subcommand)]
    Environments(environments::EnvironmentsCommand),
    /// List, show, create, follow, talk to, interrupt, archive and delete sessions.
    #[command(subcommand)]
    Sessions(sessions::SessionsCommand),
    /// Run a command in a session's sandbox.
    Exec(exec::ExecArgs),
    /// Listen to a command of a session's sandbox, and type to it when it has a terminal.
    Attach(exec::AttachArgs),
    /// Copy a file or a tree into a session's sandbox, or out of it.
    Cp(cp::CpArgs),
    /// List the sessions that a worker serves, or the processes of one's sandbox.
    Ps(ps::PsArgs),
    /// Watch what sessions use, or the processes of one's sandbox.
    Top(ps::TopArgs),
    /// Lead a port of this machine's loopback device to one inside a session's sandbox.
    Forward(forward::ForwardArgs),
    /// Show a page that a session's sandbox serves to a browser of this machine.
    Preview(preview::PreviewArgs),
    /// Open an SSH connection into a session's sandbox, with the system's own ssh.
    Ssh(ssh::SshArgs),
    /// Create, list and revoke API keys and environment keys.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Get, list, show and remove the images that sandboxes may run in.
    #[command(subcommand)]
    Image(images::ImagesCommand),
    /// Copy the server's database to a new file, while the server runs or not.
    Backup(backup::BackupArgs),
    /// List, show, compare, move, prune and verify the checkpoints of this machine.
    #[command(subcommand)]
    Checkpoints(checkpoints::CheckpointsCommand),
    /// Take a checkpoint of a live session's workspace.
    Checkpoint(live::CheckpointArgs),
    /// Bring a live session's workspace back to a checkpoint.
    Restore(live::RestoreArgs),
    /// Create sessions that start from the state of a live one.
    Fork(live::ForkArgs),
    /// Stop everything in a live session's sandbox where it is.
    Pause(live::PauseArgs),
    /// Let a paused session go on.
    Resume(live::ResumeArgs),
    /// Check whether this machine can run sandboxes, and say what to change where it cannot.
    Doctor(doctor::DoctorArgs),
    /// Check what may leave sandboxes, and see what has left.
    #[command(subcommand)]
    Egress(egress::EgressCommand),
    /// Keep secrets in a sealed file, try out where others come from, and take them from live sessions.
    #[command(subcommand)]
    Vault(vault::VaultCommand),
    /// Attack sandboxes of this machine, and say which guarantees hold.
    #[command(subcommand)]
    Sandbox(sandbox::SandboxCommand),
    /// Measure this machine, side by side with the official workers where they are installed.
    Bench(bench::BenchArgs),
    /// Print a completion script for a shell.
    Completions(completions::CompletionsArgs),
}

/// How a command finds its server.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// The server's address; otherwise the server that runs on the state directory.
    #[arg(long, value_name = "URL", env = "PALISADE_BASE_URL", help_heading = "Connection")]
    base_url: Option<String>,
    /// A file that holds the API key; otherwise the key that the server's first start left in its state directory.
    #[arg(long, value_name = "FILE", conflicts_with = "api_key_env", help_heading = "Connection")]
    api_key_file: Option<PathBuf>,
    /// The environment variable that holds the API key.
    #[arg(long, value_name = "NAME", help_heading = "Connection")]
    api_key_env: Option<String>,
    /// Certificates (PEM) to trust besides the system's.
    #[arg(long, value_name = "FILE", help_heading = "Connection")]
    ca_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: StateDir,
}

/// Where the server keeps everything.
#[derive(Debug, Clone, Args)]
pub(crate) struct StateDir {
    /// The server's state directory [default: ~/.local/state/palisade].
    #[arg(long, value_name = "DIR", env = "PALISADE_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

impl StateDir {
    /// The one that the environment names, for commands that have an option of this name for another.
    pub(crate) fn of_environment() -> StateDir {
        StateDir { state_dir: std::env::var_os("PALISADE_STATE_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from) }
    }

    /// The directory that is meant; it need not exist.
    pub(crate) fn path(&self) -> Outcome<PathBuf> {
        if let Some(path) = &self.state_dir {
            return Ok(path.clone());
        }
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        set("XDG_STATE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".local/state")))
            .map(|state| state.join("palisade"))
            .ok_or_else(|| {
                Failure::new("no state directory is known")
                    .why("neither HOME nor XDG_STATE_HOME is set")
                    .fix("name one with --state-dir")
            })
    }
}

impl Connection {
    /// A client of the server that is meant.
    pub(crate) fn client(&self) -> Outcome<Client> {
        Client::find(&Address {
            base_url: self.base_url.clone(),
            key: Source::named(self.api_key_file.as_deref(), self.api_key_env.as_deref()),
            ca_file: self.ca_file.clone(),
            state_dir: self.state.path()?,
        })
    }

    /// Whether the server was named, rather than found by its state directory.
    pub(crate) fn is_explicit(&self) -> bool {
        self.base_url.is_some()
    }
}

/// The whole program.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that has gone is no failure of ours.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let output = Output::new(cli.output);
    match dispatch(cli.command, output) {
        Ok(code) => code,
        Err(failure) => failure.report(cli.output),
    }
}

fn dispatch(command: Command, out: Output) -> Outcome {
    match command {
        Command::Up(args) => up::run(&args, out),
        Command::Server(args) => server::run(&args, out),
        Command::Worker(args) => worker::run(&args, out),
        Command::Demo(args) => demo::run(&args, out),
        Command::Run(args) => block_on(run::run(&args, out))?,
        Command::Agents(command) => block_on(agents::run(&command, out))?,
        Command::Environments(command) => block_on(environments::run(&command, out))?,
        Command::Sessions(command) => block_on(sessions::run(&command, out))?,
        Command::Exec(args) => block_on(exec::exec(&args, out))?,
        Command::Attach(args) => block_on(exec::attach(&args))?,
        Command::Cp(args) => block_on(cp::run(&args))?,
        Command::Ps(args) => block_on(ps::ps(&args, out))?,
        Command::Top(args) => block_on(ps::top(&args, out))?,
        Command::Forward(args) => block_on(forward::run(&args, out))?,
        Command::Preview(args) => block_on(preview::run(&args, out))?,
        Command::Ssh(args) => block_on(ssh::run(&args))?,
        Command::Keys(command) => block_on(keys::run(&command, out))?,
        Command::Image(command) => block_on(images::run(&command, out))?,
        Command::Backup(args) => backup::run(&args, out),
        Command::Checkpoints(command) => block_on(checkpoints::run(&command, out))?,
        Command::Checkpoint(args) => block_on(live::checkpoint(&args, out))?,
        Command::Restore(args) => block_on(live::restore(&args, out))?,
        Command::Fork(args) => block_on(live::fork(&args, out))?,
        Command::Pause(args) => block_on(live::pause(&args, out))?,
        Command::Resume(args) => block_on(live::resume(&args, out))?,
        Command::Doctor(args) => doctor::run(&args, out),
        Command::Egress(command) => egress::run(&command, out),
        Command::Vault(command) => vault::run(&command, out),
        Command::Sandbox(command) => sandbox::run(&command, out),
        Command::Bench(args) => block_on(bench::run(&args, out))?,
        Command::Completions(args) => completions::run(&args, &mut Cli::command()),
    }
}

/// Runs one command's future on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Stacks count against the memory of an idle worker as soon as they have been used once.
        .thread_stack_size(1024 * 1024)
        .enable_all()
        .build()
        .map_err(|why| Failure::new("the runtime cannot be started").why(why).fix("check `ulimit -u`"))?;
    let result = runtime.block_on(future);
    // Everything of ours has been joined; what is left is a blocked read of standard input, if anything.
    runtime.shutdown_background();
    Ok(result)
}
