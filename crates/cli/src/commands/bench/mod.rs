//! `palisade bench`: what this machine makes of it.

mod checkpoint;
mod dispatch;
mod egress;
mod events;
mod figure;
mod memory;
mod rig;
mod sandbox;
mod sse;
mod tool_call;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Subcommand};

use crate::local;
use crate::output::{Context as _, Failure, Outcome, Output, note};

/// Measure this machine, side by side with the official workers where they are installed.
#[derive(Debug, Args)]
#[command(
    disable_help_subcommand = true,
    after_long_help = "\
How each figure is measured. Medians unless it says otherwise; what comes first, while caches fill, is left out. Server and \
workers are child processes, started as an operator would, and speak HTTP over loopback; the database is SQLite with \
synchronous=FULL. Peers of the sandbox are measured turn by turn in one loop, slow ones in fewer rounds; one that is not \
installed or does not work here is left out, and a note says why.

sandbox.cold_p50_ms: from asking the native driver for a sandbox to the first byte that `echo` in it prints. \
with_end_p50_ms counts the sandbox's end too. Peers, each until the first byte: `bwrap --unshare-all`, which has no cgroup, \
no seccomp filter and no Landlock; crun, runc and gVisor's runsc on a root file system made of the host's own programs, with \
limits of memory and processes; `docker run` of an image of the same, by an engine of its own that is started for it and \
ended. All but bwrap as root only.

sandbox.pool_p50_ms: the same from asking a driver whose pool is full. claim_p50_ms is the part until the sandbox is the \
session's; bash_p50_ms is to the answer of its shell instead.

sandbox.burst_p50_ms: a hundred asked for at once, 32 of them waiting in the pool; each from then to its own first byte, \
max_ms the last one. no_pool_p50_ms is without a pool.

sandbox.exec_p50_ms: `true` in a sandbox that is up, from asking to its end. Peers: `nsenter` into the namespaces of `unshare`, \
and the `exec` of the runtimes above. sandbox.bash_p50_us: a call of the tool `bash` with `:`, in the session's shell.

sandbox.grep_ratio: the tool `grep` on 100,000 files, 200 of which match, as a multiple of `rg --no-ignore` outside on the \
same tree; both with warm caches. sandbox.glob_ms: the tool `glob` for 100 of them.

sandbox.idle_mib: what a sandbox with an idle shell adds to private memory, of its cell and of this process, without the shell \
itself; beside it the kernel's, as its memory cgroup and the whole machine count it. Root only.

sandbox.density: as many idle sandboxes with a shell as --live says, then 1,000 a minute that come and go beside them for as \
long as --soak-minutes says. What is left when all have ended is counted: mounts, cgroups, open files, processes, threads.

checkpoint.capture_ms: 500 files of 12 KB changed and 100 removed by a session over a base of 11,700 files and 233 MB; from \
before the sandbox is frozen until it goes on. checkpoint.restore_ms: from the checkpoint's name to the first byte that a new \
sandbox reads of it, its layer not there yet; materialise_ms is the layer alone, layer_there_ms the next one. \
checkpoint.fork10_ms: ten such sandboxes at once. For scale: `cp -a` of the base.

tool_call.p50_ms: one session whose scripted model asks for `true` again and again, in a warm sandbox with a warm shell. \
From `agent.tool_use` to the first sight of its `user.tool_result`, both as they arrive on a stream of a third party. \
Peers: the official Python and TypeScript workers, on the same server with the same script, in three rounds of \
sessions by turns. They run commands without a sandbox.

dispatch.first_result_p50_ms: from sending `create session` with a message to the sight of the first `user.tool_result` \
on the session's stream: model request, claim, cold sandbox, cold shell and posting included. Sessions one after the other, \
each with a sandbox of its own.

events.durable_per_s: that many sessions commit to the store at the same time, each one batch after the other: its record \
of 1.5 KB and 4 events of 400 bytes. Events that were acknowledged as durable, by second. No HTTP.

sse.p99_ms: so many open streams, ten on each session; clients send events to idle sessions, so that the server emits \
`events_per_s` events in a second, each to ten streams (`deliveries_per_s`). From before the client's request is written to \
the arrival at each stream; what shares the machine, the readers too, counts. sse.rss_mib: resident memory of the server \
then, the streams and their sessions included.

worker.idle_rss_mib: resident memory of a worker that waits for work. worker.session_rss_mib: what 20 sessions that have \
each run a command and are idle add to the private memory of the worker and all processes of its sandboxes, by session; \
bash_mib, cell_mib and worker_mib are its parts. Pages that processes share (programs, libraries) are not counted. Root \
only.

egress: the service runs in a process of its own, with a trail on the disk as a worker has it; the client and the upstream \
are in this one, all on loopback over TLS 1.3 and on the same cores. without_trail is a service that keeps nothing.

egress.added_p50_us: a request of HTTP/1.1 for 1 KiB on a connection that is kept, opened by the service and carried on; less \
the same request sent directly, turn by turn. added_p99_us is the difference of the 99th percentiles. with_credential_us has \
a value put in, so that each request waits until the disk has its record.

egress.requests_per_s: such requests on 32 connections at a time, all of this machine's cores for service, client and \
upstream together; by turns with mitmproxy's mitmdump, and with nginx as a reverse proxy that keeps upstream connections, has \
a process for each core and writes no log. Of these more is better.

egress.fresh_connection_p50_ms: from the client's connect through CONNECT and the handshake to the end of the first answer.

egress.pass_gbit_s, egress.intercept_gbit_s: 512 MiB on one connection, carried unread and opened; grown_mib is what the \
service's memory grew by at most. egress.sandbox_added_ms: a cold sandbox as in sandbox.cold_p50_ms whose network leads to \
the service, less one whose network leads nowhere; with_authority_ms also makes and serves the session's certificate \
authority. egress.sessions_1000_mib: resident memory of the service while each of 1,000 sessions has a connection open, \
inside and outside; every other session has a credential."
)]
pub(crate) struct BenchArgs {
    /// Only the figures whose names begin so, such as `sandbox,sse.p99`.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    only: Vec<String>,
    /// Fewer rounds: a first look in under a minute.
    #[arg(long)]
    quick: bool,
    /// Sandboxes that are live for `sandbox.density` [default: 1000, with --quick 50].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    live: Option<u32>,
    /// How long sandboxes come and go beside them; with 0 for 20 seconds.
    #[arg(long, value_name = "M", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1440))]
    soak_minutes: u64,
    /// Where databases and files are put; must be a real disk [default: target, or the current directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the programs are that start the official workers.
    #[arg(long, value_name = "DIR", default_value = "compat")]
    compat: PathBuf,
    /// The Python that the official SDK is installed for.
    #[arg(
        long,
        value_name = "PROGRAM",
        env = "PALISADE_BENCH_PYTHON",
        default_value = "target/compat/venv/bin/python"
    )]
    python: PathBuf,
    /// The program that mitmproxy from PyPI has for use without a terminal.
    #[arg(
        long,
        value_name = "PROGRAM",
        env = "PALISADE_BENCH_MITMDUMP",
        default_value = "target/bench/venv/bin/mitmdump"
    )]
    mitmdump: PathBuf,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What a measurement runs in processes of their own.
#[derive(Debug, Subcommand)]
enum Part {
    /// The egress service.
    #[command(hide = true)]
    EgressService(egress::ServiceArgs),
}

/// What is to be measured, and where.
#[derive(Debug, Clone)]
struct Plan {
    only: Vec<String>,
    quick: bool,
    live: Option<usize>,
    soak_minutes: u64,
    place: PathBuf,
    compat: PathBuf,
    python: PathBuf,
    mitmdump: PathBuf,
}

impl Plan {
    fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|prefix| figure.starts_with(prefix.as_str()))
    }

    /// The one for a full run, or the one for a quick one.
    fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// The figures, in the order in which they are measured.
const FAMILIES: [(&str, &[&str]); 8] = [
    ("sandbox", &sandbox::FIGURES),
    ("checkpoint", &checkpoint::FIGURES),
    ("tool_call", &["tool_call.p50_ms"]),
    ("dispatch", &["dispatch.first_result_p50_ms"]),
    ("events", &["events.durable_per_s"]),
    ("sse", &["sse.p99_ms", "sse.rss_mib"]),
    ("worker", &["worker.idle_rss_mib", "worker.session_rss_mib"]),
    ("egress", &egress::FIGURES),
];

pub(crate) async fn run(args: &BenchArgs, out: Output) -> Outcome {
    // Thousands of streams are as many open files.
    local::harden();
    if let Some(Part::EgressService(service)) = &args.part {
        return egress::serve(service, out).await;
    }
    let place = args.dir.clone().unwrap_or_else(|| {
        let target = PathBuf::from("target");
        if target.is_dir() { target } else { PathBuf::from(".") }
    });
    let place = place.canonicalize().context(format!("the directory {} cannot be used", place.display()))?;
    warn_of_memory(&place);
    let plan = Plan {
        only: args.only.clone(),
        quick: args.quick,
        live: args.live.map(|live| live as usize),
        soak_minutes: args.soak_minutes,
        place,
        compat: args.compat.clone(),
        python: args.python.clone(),
        mitmdump: args.mitmdump.clone(),
    };
    let known =
        |prefix: &String| FAMILIES.iter().flat_map(|(_, names)| *names).any(|name| name.starts_with(prefix.as_str()));
    if let Some(unknown) = plan.only.iter().find(|prefix| !known(prefix)) {
        let names: Vec<_> = FAMILIES.iter().flat_map(|(_, names)| *names).copied().collect();
        return Err(Failure::new("nothing can be measured")
            .why(format!("no figure's name begins with {unknown:?}"))
            .fix(format!("choose from {}", names.join(", "))));
    }
    if cfg!(debug_assertions) {
        note("note: this is a debug build; its figures say nothing about a release");
    }
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (family, names) in FAMILIES {
        if !names.iter().any(|name| plan.wants(name)) {
            continue;
        }
        let begun = Instant::now();
        note(format!("measuring {family} …"));
        let figures = match family {
            "sandbox" => sandbox::measure(&plan).await,
            "checkpoint" => checkpoint::measure(&plan).await,
            "tool_call" => tool_call::measure(&plan).await,
            "dispatch" => dispatch::measure(&plan).await,
            "events" => events::measure(&plan).await,
            "sse" => sse::measure(&plan).await,
            "worker" => worker::measure(&plan).await,
            _ => egress::measure(&plan).await,
        };
        match figures {
            Ok(figures) => rows.extend(figures.iter().filter(|f| plan.wants(f.name())).map(|f| f.show(out))),
            // The others can be measured all the same.
            Err(failure) => {
                failure.report_as_warning();
                failed.push(family);
            }
        }
        note(format!("measured {family} in {:.1} s", begun.elapsed().as_secs_f64()));
    }
    out.table(&["figure", "value", "unit", "peer", "better", "of which"], &rows);
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(format!("not everything could be measured: {} is missing", failed.join(", ")))
        .why("see the warnings above")
        .fix("`palisade doctor` checks this machine"))
}

/// The value of a figure that cannot be without one.
fn measured(value: Option<f64>, figure: &str) -> Outcome<f64> {
    value.ok_or_else(|| Failure::new(format!("{figure} cannot be measured")).why("nothing came to its end"))
}

/// Says when what is called durable would only be in memory.
fn warn_of_memory(place: &Path) {
    /// `TMPFS_MAGIC` of linux/magic.h.
    const TMPFS: u64 = 0x0102_1994;
    if rustix::fs::statfs(place).is_ok_and(|found| found.f_type.cast_unsigned() == TMPFS) {
        note(format!("warning: {} is in memory; name a disk with --dir or no figure means anything", place.display()));
    }
}
