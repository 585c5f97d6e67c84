//! `palisade exec` and `palisade attach`: commands in a session's sandbox.

use std::process::ExitCode;

use clap::Args;
use palisade_worker::perimeter::{ExecBody, ExitBody, Frame, Kind, Stream};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};

use crate::commands::sandboxes::{WorkerAt, failed};
use crate::output::{Context as _, Failure, Outcome, Output, note};
use crate::terminal::{self, Escape, Raw};

/// The exit code when the command could not be run; its own are those below.
const NOT_RUN: u8 = 125;
/// The exit code when its time or its output ran out, as timeout(1) has it.
const RAN_OUT: u8 = 124;

/// Run a command in a session's sandbox.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: the command's own; 128+N when signal N ended it; 124 when its time or its output ran \
                        out; 125 when it could not be run.\n\
                        With -t, control-p control-q leaves a command that was started with --detach to itself."
)]
pub(crate) struct ExecArgs {
    /// The session's id.
    session: String,
    /// Pass standard input on.
    #[arg(long, short)]
    interactive: bool,
    /// Give it a terminal.
    #[arg(long, short)]
    tty: bool,
    /// A variable for it, NAME=VALUE; may be given again.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Its working directory [default: /workspace].
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<String>,
    /// The most seconds that it may take.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
    /// The most bytes that it may write.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    output_limit: Option<u64>,
    /// Leave it running: print its number, by which `palisade attach` finds it, or with -i or -t stay until it is let go.
    #[arg(long, short)]
    detach: bool,
    /// What `palisade ps` calls it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
    /// The user inside; only the sandbox's own is possible.
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Start a sandbox when the session has none.
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    worker: WorkerAt,
    /// The command.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Listen to a command of a session's sandbox, and type to it when it has a terminal.
#[derive(Debug, Args)]
#[command(after_help = "Control-p control-q lets go of it. Exit codes are those of `palisade exec`.")]
pub(crate) struct AttachArgs {
    /// The session's id.
    session: String,
    /// The command's number, as `palisade ps` shows it.
    process: u64,
    /// Only what it writes behind this byte of its output.
    #[arg(long, value_name = "OFFSET")]
    from: Option<u64>,
    /// Have the command wait when this reader does not keep up, instead of leaving output out.
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    worker: WorkerAt,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("use NAME=VALUE".to_owned()),
    }
}

fn not_run(failure: Failure) -> Failure {
    failure.code(NOT_RUN)
}

pub(crate) async fn exec(args: &ExecArgs, out: Output) -> Outcome {
    let client = args.worker.client()?;
    let stay = !args.detach || args.interactive || args.tty;
    let body = ExecBody {
        argv: args.command.clone(),
        env: args.env.clone(),
        cwd: args.cwd.clone(),
        stdin: args.interactive,
        tty: args.tty.then(terminal::size),
        detach: args.detach,
        label: args.label.clone(),
        uid: args.uid,
        timeout_ms: args.timeout.map(|seconds| u64::from(seconds) * 1000),
        output_limit: args.output_limit,
        start: args.start,
    };
    let stream = client.exec(&args.session, &body).await;
    let mut stream = stream.map_err(|why| not_run(failed("the command was not run", &why)))?;
    if stay {
        return carry(stream, args.interactive, args.tty).await;
    }
    let mut process = None;
    // The first word of the command itself, or its end, says that it has been started or why not; quiet ones say neither.
    while let Some(frame) = stream.next().await.context("the worker does not answer")? {
        match frame.kind {
            Kind::Started => {
                process = serde_json::from_slice::<u64>(&frame.payload).ok();
                // The cell answers in order: once it has listed its processes the start is decided.
                let listed = client.processes(&args.session).await.map_err(|why| failed("it may not run", &why))?;
                if listed.iter().any(|listed| listed.id == process) {
                    break;
                }
            }
            Kind::Failed => return Err(not_run(Failure::new("the command was not run").why(said(&frame)))),
            _ => break,
        }
    }
    let process = process.ok_or_else(|| Failure::new("the worker did not say which process it is"))?;
    out.either(&json!({"process": process}), process);
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn attach(args: &AttachArgs) -> Outcome {
    let client = args.worker.client()?;
    let processes = client.processes(&args.session).await.map_err(|why| failed("nothing can be listened to", &why))?;
    let tty = processes.iter().any(|process| process.id == Some(args.process) && process.tty.is_some());
    let stream = client.attach(&args.session, args.process, args.from, args.hold || tty).await;
    let stream = stream.map_err(|why| failed("it cannot be listened to", &why))?;
    carry(stream, tty, tty).await
}

fn said(frame: &Frame) -> String {
    String::from_utf8_lossy(&frame.payload).into_owned()
}

/// What comes from this side.
enum Typed {
    Input(Vec<u8>),
    LetGo,
}

/// Carries a command's streams until it ends or is let go.
async fn carry(stream: Stream, input: bool, tty: bool) -> Outcome {
    let raw = (tty && terminal::is_interactive()).then(Raw::begin);
    let done = carry_raw(stream, input || tty, tty).await;
    drop(raw);
    match done? {
        Ended::Exit(exit) => Ok(ExitCode::from(code(&exit))),
        Ended::LetGo => {
            note("let go; it goes on if it was started with --detach");
            Ok(ExitCode::SUCCESS)
        }
        Ended::Failed(why) => Err(not_run(Failure::new("the command did not run to its end").why(why))),
    }
}

enum Ended {
    Exit(ExitBody),
    LetGo,
    Failed(String),
}

fn code(exit: &ExitBody) -> u8 {
    if exit.timed_out || exit.output_exceeded {
        return RAN_OUT;
    }
    let signal = exit.signal.map(|signal| 128 + signal);
    u8::try_from(exit.code.or(signal).unwrap_or(1)).unwrap_or(1)
}

async fn carry_raw(stream: Stream, input: bool, tty: bool) -> Outcome<Ended> {
    let Stream { mut reader, mut writer } = stream;
    let (typed, mut typing) = tokio::sync::mpsc::channel(8);
    if input {
        tokio::spawn(read_input(typed, tty));
    }
    let mut resized = signal(SignalKind::window_change()).context("signals cannot be waited for")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("signals cannot be waited for")?;
    let mut terminated = signal(SignalKind::terminate()).context("signals cannot be waited for")?;
    let inwards = async {
        let mut open = input;
        loop {
            let frame = tokio::select! {
                typed = typing.recv(), if open => match typed {
                    Some(Typed::Input(bytes)) => Frame::new(Kind::Stdin, bytes),
                    Some(Typed::LetGo) => return Ok::<Ended, std::io::Error>(Ended::LetGo),
                    None => {
                        open = false;
                        Frame::new(Kind::Stdin, Vec::new())
                    }
                },
                _ = resized.recv(), if tty => Frame::json(Kind::Resize, &terminal::size()),
                _ = interrupted.recv() => Frame::json(Kind::Signal, &2),
                _ = terminated.recv() => Frame::json(Kind::Signal, &15),
            };
            // A worker that is gone says so where its words are read.
            if frame.write(&mut writer).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let outwards = async {
        let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
        while let Some(frame) = Frame::read(&mut reader).await? {
            match frame.kind {
                Kind::Stdout => {
                    out.write_all(&frame.payload).await?;
                    out.flush().await?;
                }
                Kind::Stderr => {
                    err.write_all(&frame.payload).await?;
                    err.flush().await?;
                }
                Kind::Lost => note(format!("warning: {} bytes of output are not kept any more", said(&frame))),
                Kind::Exit => return Ok(Ended::Exit(serde_json::from_slice(&frame.payload)?)),
                Kind::Failed => return Ok(Ended::Failed(said(&frame))),
                _ => {}
            }
        }
        Ok(Ended::Failed("the worker has gone".to_owned()))
    };
    let done = tokio::select! {
        done = inwards => done,
        done = outwards => done,
    };
    match done {
        // A reader that has gone is no failure of ours.
        Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => Ok(Ended::LetGo),
        done => done.context("talking to the worker"),
    }
}

async fn read_input(typed: tokio::sync::mpsc::Sender<Typed>, tty: bool) {
    let mut stdin = tokio::io::stdin();
    let mut escape = Escape::default();
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = stdin.read(&mut buffer).await {
        let (bytes, let_go) = if tty { escape.typed(&buffer[..read]) } else { (buffer[..read].to_vec(), false) };
        if !bytes.is_empty() && typed.send(Typed::Input(bytes)).await.is_err() {
            return;
        }
        if let_go {
            let _ = typed.send(Typed::LetGo).await;
            return;
        }
    }
}
