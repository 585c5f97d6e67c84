//! `palisade egress test`: attempts to get past the egress service, on this machine, with sandboxes and upstreams of its own.

mod attempt;
mod client;
mod echo;
mod outside;
mod scene;
mod table;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use palisade_sandbox::Options as NativeOptions;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::attempt::Attempt;
use self::outside::Outside;
use self::scene::{Made, Verdict};
use crate::cli::block_on;
use crate::commands::drivers::DriverArgs;
use crate::output::{Context as _, Failure, Format, GREEN, Outcome, Output, RED, note};

/// Attempts that are made at a time.
const AT_ONCE: usize = 4;

/// Try to get past the egress service of this machine, and say what holds.
#[derive(Debug, Args)]
#[command(
    after_help = "Each attempt is made in a sandbox and a session of its own, against upstreams on this machine: nothing \
                  leaves it. Controls show that the same ways lead out where the policy allows it.\n\
                  Exit code 1 when anything got through, when an end is unclear, or when a control fails."
)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    driver: DriverArgs,
    /// Only attempts whose names begin with this, such as `dns` or `smuggling.two-lengths`. Controls of that name only.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    only: String,
    /// The image of the engine's sandboxes, by digest or id.
    #[arg(long, value_name = "IMAGE", help_heading = "Driver")]
    image: Option<String>,
    /// List the attempts, and make none.
    #[arg(long)]
    list: bool,
}

/// What a sandbox of the suite runs.
#[derive(Debug, Args)]
pub(crate) struct AttemptArgs {
    /// The attempt.
    name: String,
}

/// Makes one attempt, inside.
pub(super) fn attempt(args: &AttemptArgs) -> Outcome {
    client::note_inherited().context("the descriptors of this program cannot be listed")?;
    let fix = "it is started by `palisade egress test`, in a sandbox";
    let facts = std::env::var(client::FACTS)
        .map_err(|why| Failure::new("there is nothing to attempt anything with").why(why).fix(fix))?;
    let mut facts: BTreeMap<String, String> =
        serde_json::from_str(&facts).context("what was told of the attempt cannot be read")?;
    facts.extend(scene::long());
    let attempt = table::all().iter().find(|attempt| attempt.name == args.name);
    let attempt = attempt.ok_or_else(|| Failure::new(format!("there is no attempt {:?}", args.name)).fix(fix))?;
    let mut failed = None;
    block_on(client::attempt(&attempt.acts, &facts, |heard| match serde_json::to_string(heard) {
        Ok(line) => Output::new(Format::Text).line(line),
        Err(why) => failed = Some(why),
    }))?;
    failed.map_or(Ok(ExitCode::SUCCESS), |why| Err(why).context("what was heard cannot be told"))
}

pub(super) fn run(args: &TestArgs, out: Output) -> Outcome {
    let selected: Vec<&Attempt> = table::all().iter().filter(|attempt| attempt.name.starts_with(&args.only)).collect();
    if selected.is_empty() {
        let failure = Failure::new(format!("no attempt's name begins with {:?}", args.only));
        return Err(failure.fix("see `palisade egress test --list`"));
    }
    if args.list {
        list(&selected, out);
        return Ok(ExitCode::SUCCESS);
    }
    block_on(async {
        let driver = args.driver.open(NativeOptions::default(), args.image.as_deref(), None).await?;
        let program = std::env::current_exe().context("this program cannot be shown to sandboxes")?;
        let outside = Arc::new(Outside::new().await?);
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let mut running = JoinSet::new();
        for attempt in selected {
            let (room, driver, outside, program) = (room.clone(), driver.clone(), outside.clone(), program.clone());
            running.spawn(async move {
                // Nobody closes it.
                let _room = room.acquire().await;
                Box::pin(scene::make(attempt, &outside, &*driver, &program)).await
            });
        }
        let mut made = Vec::new();
        while let Some(ended) = running.join_next().await {
            let ended = ended.context("an attempt was broken off")?;
            if !out.is_json() && !matches!(ended.verdict, Verdict::Held(_)) {
                note(format!("{}: {}: {}", ended.attempt.name, ended.verdict.word(), ended.verdict.detail()));
            } else if !out.is_json() && (made.len() + 1) % 50 == 0 {
                note(format!("{} attempts made", made.len() + 1));
            }
            made.push(ended);
        }
        made.sort_by_key(|made| table::all().iter().position(|it| it.name == made.attempt.name));
        Ok(show(&made, out))
    })?
}

fn list(selected: &[&Attempt], out: Output) {
    let mut rows = Vec::new();
    for attempt in selected {
        let (layer, evidence) = (attempt.layer.title(), attempt.shown.evidence());
        out.object(&json!({
            "type": "attempt", "name": attempt.name, "tries": attempt.tries, "layer": layer, "shown_by": evidence,
            "control": attempt.shown.is_control(),
        }));
        rows.push(vec![attempt.name.clone(), attempt.tries.to_owned(), layer.to_owned(), evidence]);
    }
    out.table(&["attempt", "tries to", "refused by", "shown by"], &rows);
}

/// Shows group by group what became of the attempts.
fn show(made: &[Made], out: Output) -> ExitCode {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut groups: Vec<&str> = made.iter().map(|made| made.attempt.group()).collect();
    groups.dedup();
    for made in made {
        out.object(&json!({
            "type": "attempt", "name": made.attempt.name, "tries": made.attempt.tries,
            "layer": made.attempt.layer.title(), "control": made.attempt.shown.is_control(),
            "result": made.verdict.word(), "detail": made.verdict.detail(), "trail": made.kept,
            "took_ms": made.took.as_secs_f64() * 1000.0,
        }));
    }
    for group in groups {
        let own: Vec<&Made> = made.iter().filter(|made| made.attempt.group() == group).collect();
        let count = |word: &str| own.iter().filter(|made| made.verdict.word() == word).count();
        let (held, through, unclear) = (count("held"), count("through"), count("unclear"));
        let (style, word) = match (through, unclear) {
            (0, 0) => (GREEN, "holds"),
            (0, _) => (RED, "not shown"),
            _ => (RED, "BROKEN"),
        };
        let mut layers: Vec<&str> = own.iter().map(|made| made.attempt.layer.title()).collect();
        layers.dedup();
        layers.sort_unstable();
        layers.dedup();
        let [own, held, through, unclear] = [own.len(), held, through, unclear].map(|count| count.to_string());
        rows.push(vec![group.to_owned(), own, held, through, unclear, out.paint(style, word), layers.join(", ")]);
    }
    out.table(&["attempts", "", "held", "through", "unclear", "", "refused by"], &rows);
    let (controls, attempts): (Vec<&Made>, Vec<&Made>) = made.iter().partition(|made| made.attempt.shown.is_control());
    let held = |list: &[&Made]| list.iter().filter(|made| made.verdict.word() == "held").count();
    let through = attempts.iter().filter(|made| made.verdict.word() == "through").count();
    let holds = held(&attempts) == attempts.len() && held(&controls) == controls.len();
    out.object(&json!({
        "type": "verdict", "attempts": attempts.len(), "held": held(&attempts), "through": through,
        "controls": controls.len(), "controls_held": held(&controls), "holds": holds,
    }));
    out.line(format!(
        "{} attempts, {through} got through; {} of {} controls work",
        attempts.len(),
        held(&controls),
        controls.len()
    ));
    if holds { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
