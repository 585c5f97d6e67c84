//! File tools on a large tree.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use palisade_sandbox::{Native, Sandbox};
use serde_json::json;
use tokio::process::Command;

use super::{GLOB, GREP, Home, end, start, tool};
use crate::commands::bench::figure::{Figure, Samples};
use crate::commands::bench::{Plan, measured};
use crate::output::{Context as _, Failure, Outcome, note};

const WARM_UP: usize = 1;
const DIRECTORIES: usize = 1000;
const IN_EACH: usize = 100;
/// One file in so many has the word that is looked for …
const WITH_WORD: usize = 500;
/// … and one directory in so many has a file of the kind that is looked for.
const WITH_KIND: usize = 10;
const WORD: &str = "needle_[0-9]+";
const KIND: &str = "**/*.rs";

pub(super) async fn measure(plan: &Plan) -> Outcome<Vec<Figure>> {
    let home = Home::make(&plan.place)?;
    let tree = home.workspace();
    let made = {
        let tree = tree.clone();
        tokio::task::spawn_blocking(move || make(&tree)).await
    };
    made.context("the tree cannot be made")?.context("the tree cannot be made")?;
    let sandbox = start(&Native::default(), home.spec()).await?;
    let mut figures = Vec::new();
    if plan.wants(GREP) {
        figures.extend(grep(plan, &sandbox, &tree).await?);
    }
    if plan.wants(GLOB) {
        figures.push(glob(plan, &sandbox, &tree).await?);
    }
    end(sandbox).await?;
    Ok(figures)
}

/// A hundred thousand files of some lines each.
fn make(tree: &Path) -> std::io::Result<()> {
    for directory in 0..DIRECTORIES {
        let path = tree.join(format!("part-{}", directory / 25)).join(format!("module-{directory}"));
        std::fs::create_dir_all(&path)?;
        for place in 0..IN_EACH {
            let number = directory * IN_EACH + place;
            let mut text = format!("// file {number}\n");
            for line in 0..8 {
                text.push_str(&format!("let value_{line} = compute({number}, {line}); // nothing to see\n"));
            }
            if number.is_multiple_of(WITH_WORD) {
                text.push_str(&format!("let needle_{number} = found();\n"));
            }
            let kind = if place == 0 && directory.is_multiple_of(WITH_KIND) { "rs" } else { "txt" };
            std::fs::write(path.join(format!("file-{place}.{kind}")), text)?;
        }
    }
    Ok(())
}

async fn grep(plan: &Plan, sandbox: &Sandbox, tree: &Path) -> Outcome<Option<Figure>> {
    let (mut ours, mut theirs, mut alone) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..plan.pick(11, 3) + WARM_UP {
        let begun = Instant::now();
        let text = tool(sandbox, "grep", json!({"pattern": WORD})).await?;
        ours.add(begun.elapsed());
        // Without its lists of what to ignore, which the tool does not have; neither looks into hidden files.
        let Some((took, lines)) = rg(&["--no-ignore", "--line-number", WORD], tree).await? else {
            note(format!("note: {GREP} is left out: rg is not installed"));
            return Ok(None);
        };
        theirs.add(took);
        if let Some((took, _)) = rg(&["--no-ignore", "--threads=1", "--line-number", WORD], tree).await? {
            alone.add(took);
        }
        if text.lines().count() != lines {
            let why = format!("grep has found {} lines, rg {lines}", text.lines().count());
            return Err(Failure::new(format!("{GREP} cannot be measured")).why(why));
        }
    }
    let at = |samples: Samples| measured(samples.without_first(WARM_UP).percentile_ms(50), GREP);
    let (ours, theirs) = (at(ours)?, at(theirs)?);
    Ok(Some(
        Figure::new(GREP, ours / theirs, "× rg")
            .with_number("grep_ms", ours)
            .with_number("rg_ms", theirs)
            .with_number("rg_one_thread_ms", at(alone)?)
            .with("files", DIRECTORIES * IN_EACH)
            .with("matches", (DIRECTORIES * IN_EACH).div_ceil(WITH_WORD)),
    ))
}

async fn glob(plan: &Plan, sandbox: &Sandbox, tree: &Path) -> Outcome<Figure> {
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..plan.pick(11, 3) + WARM_UP {
        let begun = Instant::now();
        let text = tool(sandbox, "glob", json!({"pattern": KIND})).await?;
        ours.add(begun.elapsed());
        let found = text.lines().count();
        if found != DIRECTORIES / WITH_KIND {
            return Err(Failure::new(format!("{GLOB} cannot be measured")).why(format!("it has found {found} files")));
        }
        if let Some((took, _)) = rg(&["--files", "--no-ignore", "--glob", KIND], tree).await? {
            theirs.add(took);
        }
    }
    let ours = ours.without_first(WARM_UP);
    let figure = Figure::new(GLOB, measured(ours.percentile_ms(50), GLOB)?, "ms")
        .with_number("max_ms", measured(ours.percentile_ms(100), GLOB)?)
        .with("files", DIRECTORIES * IN_EACH)
        .with("matches", DIRECTORIES / WITH_KIND);
    Ok(match theirs.without_first(WARM_UP).percentile_ms(50) {
        Some(value) => figure.beside("rg --files", value),
        None => figure,
    })
}

/// ripgrep on the same tree, outside: how long it took and how many lines it gave; none where it is not installed.
async fn rg(arguments: &[&str], tree: &Path) -> Outcome<Option<(Duration, usize)>> {
    let mut command = Command::new("rg");
    command.arg("--no-config").args(arguments).arg(tree).stdin(Stdio::null()).kill_on_drop(true);
    let begun = Instant::now();
    match command.output().await {
        Ok(done) => Ok(Some((begun.elapsed(), memchr::memchr_iter(b'\n', &done.stdout).count()))),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(Failure::new("rg cannot be run").why(why)),
    }
}
