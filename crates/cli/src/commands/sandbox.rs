//! `palisade sandbox`: what sandboxes on this machine keep in.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use palisade_sandbox::hostile::{self, Guarantee, Outcome as Made, Verdict};
use palisade_sandbox::{Options as NativeOptions, Rootfs};
use serde_json::json;

use crate::cli::block_on;
use crate::commands::drivers::DriverArgs;
use crate::output::{Context as _, DIM, Failure, GREEN, Outcome, Output, RED, YELLOW, note};

/// Look at sandboxes.
#[derive(Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// Attack sandboxes of this machine, and say which guarantees hold.
    Test(TestArgs),
}

/// Attack sandboxes of this machine, and say which guarantees hold.
#[derive(Debug, Args)]
#[command(
    after_help = "Each attempt is made in a sandbox of its own, by a program that does no harm where it gets through.\n\
                        Exit code 1 when anything got through, when an end is unclear, or when nothing could be tried \
                        against a guarantee."
)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    driver: DriverArgs,
    /// A root file system for them, instead of the host's own programs.
    #[arg(long, value_name = "DIR", help_heading = "Driver")]
    rootfs: Option<PathBuf>,
    /// The image of the engine's sandboxes, by digest or id.
    #[arg(long, value_name = "IMAGE", help_heading = "Driver")]
    image: Option<String>,
    /// Only attempts whose names begin with this, such as `network` or `kernel.unshare-user`.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    only: String,
    /// List the attempts, and make none.
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(command: &SandboxCommand, out: Output) -> Outcome {
    match command {
        SandboxCommand::Test(args) if args.list => list(args, out),
        SandboxCommand::Test(args) => test(args, out),
    }
}

fn selected<'a>(guarantee: &'a Guarantee, only: &'a str) -> impl Iterator<Item = &'static hostile::Attempt> + 'a {
    guarantee.attempts.iter().filter(move |attempt| attempt.name.starts_with(only))
}

/// Fails when nothing is selected: a typing error must not pass for a success.
fn check_selection(only: &str) -> Outcome<()> {
    if hostile::guarantees().iter().any(|guarantee| selected(guarantee, only).next().is_some()) {
        return Ok(());
    }
    Err(Failure::new(format!("no attempt's name begins with {only:?}")).fix("see `palisade sandbox test --list`"))
}

fn list(args: &TestArgs, out: Output) -> Outcome {
    check_selection(&args.only)?;
    let mut rows = Vec::new();
    for guarantee in hostile::guarantees() {
        for attempt in selected(guarantee, &args.only) {
            out.object(&json!({
                "type": "attempt", "name": attempt.name, "guarantee": guarantee.title, "tries": attempt.tries,
                "reference": attempt.reference,
            }));
            rows.push(vec![attempt.name.to_owned(), attempt.tries.to_owned(), attempt.reference.to_owned()]);
        }
    }
    out.table(&["attempt", "tries to", "after"], &rows);
    Ok(ExitCode::SUCCESS)
}

fn test(args: &TestArgs, out: Output) -> Outcome {
    check_selection(&args.only)?;
    // One of the attempts looks for a variable of this process, which must have it from the beginning.
    if std::env::var_os(hostile::VARIABLE).is_none() {
        return again();
    }
    let rootfs = args.rootfs.clone().map_or(Rootfs::Host, Rootfs::Directory);
    let options = hostile::Options { only: args.only.clone(), rootfs };
    block_on(async {
        let driver = args.driver.open(NativeOptions::default(), args.image.as_deref(), None).await?;
        let mut done = 0;
        let made = hostile::run(driver.clone(), &options, |made| {
            done += 1;
            if !out.is_json() && !matches!(made.verdict, Verdict::Refused(_)) {
                note(format!("{}: {}", made.attempt.name, made.verdict));
            } else if !out.is_json() && done % 50 == 0 {
                note(format!("{done} attempts made"));
            }
        });
        let made = made.await.context("the attempts cannot be made")?;
        Ok(show(driver.name(), &made, out))
    })?
}

/// This command once more, with the variable.
fn again() -> Outcome {
    let failed = "this command cannot be started again with the variable that attempts look for";
    let program = std::env::current_exe().context(failed)?;
    let status = std::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(hostile::VARIABLE, "looked for inside, and not to be found")
        .status()
        .context(failed)?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Shows guarantee by guarantee what became of the attempts.
fn show(driver: &str, made: &[Made], out: Output) -> ExitCode {
    let mut rows = Vec::new();
    let mut holds = true;
    for guarantee in hostile::guarantees() {
        let own: Vec<&Made> =
            made.iter().filter(|made| guarantee.attempts.iter().any(|it| it.name == made.attempt.name)).collect();
        if own.is_empty() {
            continue;
        }
        let count = |word: &str| own.iter().filter(|made| made.verdict.word() == word).count();
        let (refused, through, unclear) = (count("refused"), count("through"), count("unclear"));
        let held = through == 0 && unclear == 0 && refused > 0;
        holds &= held;
        for made in &own {
            out.object(&json!({
                "type": "attempt", "driver": driver, "name": made.attempt.name, "tries": made.attempt.tries,
                "reference": made.attempt.reference, "result": made.verdict.word(), "detail": made.verdict.detail(),
                "answered_ms": made.answered.map(|answered| answered.as_secs_f64() * 1000.0),
                "took_ms": made.took.as_secs_f64() * 1000.0,
            }));
        }
        let reasons: Vec<&str> =
            own.iter().filter(|made| made.verdict.word() == "not run").map(|made| made.verdict.detail()).collect();
        out.object(&json!({
            "type": "guarantee", "driver": driver, "name": guarantee.name, "title": guarantee.title, "holds": held,
            "attempts": own.len(), "refused": refused, "through": through, "unclear": unclear, "not_run": reasons.len(),
        }));
        let (style, word) = match (held, reasons.is_empty()) {
            (true, true) => (GREEN, "holds"),
            (true, false) => (YELLOW, "holds"),
            (false, _) if through > 0 => (RED, "BROKEN"),
            (false, _) => (RED, "not shown"),
        };
        let mut rest = through.to_string();
        if unclear > 0 {
            rest.push_str(&format!(", {unclear} unclear"));
        }
        let not_run = reasons.first().map_or_else(String::new, |reason| format!("{} not run: {reason}", reasons.len()));
        rows.push(vec![
            guarantee.title.to_owned(),
            own.len().to_string(),
            refused.to_string(),
            rest,
            out.paint(style, word),
            not_run,
        ]);
    }
    out.table(&["guarantee", "attempts", "refused", "through", driver, ""], &rows);
    let slowest = made.iter().filter_map(|made| Some((made.answered?, made.attempt.name))).max();
    let through = made.iter().filter(|made| made.verdict.word() == "through").count();
    out.object(&json!({
        "type": "verdict", "driver": driver, "attempts": made.len(), "through": through, "holds": holds,
        "slowest_answer_ms": slowest.map(|(answered, _)| answered.as_secs_f64() * 1000.0),
    }));
    out.line(format!("{} attempts, {through} got through", made.len()));
    if let Some((answered, name)) = slowest {
        let text =
            format!("slowest answer to the worker meanwhile: {:.1} ms ({name})", answered.as_secs_f64() * 1000.0);
        out.line(out.paint(DIM, text));
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
