//! The hostile suite: attempts to get out of a sandbox or to use more than it was given, on this machine, against any driver.
//!
//! An attempt is judged by what it says and by what the host sees: canaries, listeners, settings, processes, and whether the
//! worker is still answered. Its program goes into the sandbox through the workspace and needs nothing that is there.

mod bare;
mod host;
mod scene;
mod table;
mod ways;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use bare::run_bare;
pub use table::guarantees;

use crate::{Driver, Rootfs};
use host::Host;
use ways::Way;

/// The variable that the caller of [`run`] sets for its own process, so that attempts can look for it inside.
pub const VARIABLE: &str = "PALISADE_CANARY";

/// Attempts that load nothing but themselves run so many at a time.
const AT_ONCE: usize = 3;

/// Something that a sandbox guarantees.
#[derive(Debug)]
pub struct Guarantee {
    /// Its short name, the first part of its attempts' names.
    pub name: &'static str,
    /// The guarantee, as a sentence.
    pub title: &'static str,
    /// What it rests on in the `native` driver.
    pub mechanism: &'static str,
    /// The attempts against it.
    pub attempts: &'static [Attempt],
}

/// One attempt against a guarantee.
#[derive(Debug)]
pub struct Attempt {
    /// `guarantee.attempt`.
    pub name: &'static str,
    /// What it tries, in one line.
    pub tries: &'static str,
    /// The vulnerability or requirement that it follows; may be empty.
    pub reference: &'static str,
    way: Way,
}

impl Attempt {
    const fn new(name: &'static str, tries: &'static str) -> Attempt {
        Attempt { name, tries, reference: "", way: Way::Program }
    }

    const fn after(self, reference: &'static str) -> Attempt {
        Attempt { reference, ..self }
    }

    const fn by(self, way: Way) -> Attempt {
        Attempt { way, ..self }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was refused, and how.
    Refused(String),
    /// It got through, with what.
    Through(String),
    /// It could not be made here, and why: something that it needs is missing.
    NotRun(String),
    /// It was made, and nothing can be told from its end. Counts as a failure of the suite.
    Unclear(String),
}

impl Verdict {
    /// One word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Refused(_) => "refused",
            Verdict::Through(_) => "through",
            Verdict::NotRun(_) => "not run",
            Verdict::Unclear(_) => "unclear",
        }
    }

    /// How, with what, or why.
    pub fn detail(&self) -> &str {
        let (Verdict::Refused(text) | Verdict::Through(text) | Verdict::NotRun(text) | Verdict::Unclear(text)) = self;
        text
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word(), self.detail())
    }
}

/// An attempt with its end.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The attempt.
    pub attempt: &'static Attempt,
    /// How it ended.
    pub verdict: Verdict,
    /// The longest that the worker waited for an answer of this sandbox while the attempt ran or right after it.
    pub answered: Option<Duration>,
    /// From the request for a sandbox to its end.
    pub took: Duration,
}

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What the sandboxes' file systems are.
    pub rootfs: Rootfs,
    /// Only attempts whose names begin with this; empty for all.
    pub only: String,
}

/// Attempts in the order of the table, of those that `only` selects.
fn selected(only: &str) -> Vec<&'static Attempt> {
    let all = guarantees().iter().flat_map(|guarantee| guarantee.attempts);
    all.filter(|attempt| attempt.name.starts_with(only)).collect()
}

/// Makes the attempts, in sandboxes of their own, and tells each end as it comes. What comes back is in the order of the table.
///
/// # Errors
/// When the host's side cannot be set up: a temporary directory, listeners on loopback, a process to aim at.
pub async fn run(
    driver: Arc<dyn Driver>,
    options: &Options,
    mut progress: impl FnMut(&Outcome),
) -> io::Result<Vec<Outcome>> {
    let host = Arc::new(Host::new()?);
    let (alone, together): (Vec<_>, Vec<_>) =
        selected(&options.only).into_iter().partition(|attempt| attempt.way.is_heavy());
    let mut outcomes = Vec::new();
    for (attempts, at_once) in [(together, AT_ONCE), (alone, 1)] {
        let room = Arc::new(Semaphore::new(at_once));
        let mut running = JoinSet::new();
        for attempt in attempts {
            let (room, driver, host) = (room.clone(), driver.clone(), host.clone());
            let rootfs = options.rootfs.clone();
            running.spawn(async move {
                // Nobody closes it.
                let _room = room.acquire().await;
                one(attempt, driver, rootfs, host).await
            });
        }
        while let Some(outcome) = running.join_next().await {
            let outcome = outcome.map_err(io::Error::other)?;
            progress(&outcome);
            outcomes.push(outcome);
        }
    }
    let place = |outcome: &Outcome| selected("").iter().position(|it| it.name == outcome.attempt.name);
    outcomes.sort_by_cached_key(place);
    Ok(outcomes)
}

/// How often an attempt is made whose end tells nothing: the machine may have stood still.
const TRIES: u32 = 3;

async fn one(attempt: &'static Attempt, driver: Arc<dyn Driver>, rootfs: Rootfs, host: Arc<Host>) -> Outcome {
    let (mut tried, mut slowest) = (1, None);
    loop {
        let mut outcome = once(attempt, driver.clone(), rootfs.clone(), host.clone()).await;
        slowest = slowest.max(outcome.answered);
        outcome.answered = slowest;
        if tried == TRIES || !matches!(outcome.verdict, Verdict::Unclear(_)) {
            return outcome;
        }
        tried += 1;
    }
}

async fn once(attempt: &'static Attempt, driver: Arc<dyn Driver>, rootfs: Rootfs, host: Arc<Host>) -> Outcome {
    let began = Instant::now();
    let mut scene = match scene::Scene::new(driver, rootfs, host.clone()) {
        Ok(scene) => scene,
        Err(why) => {
            let verdict = Verdict::Unclear(format!("preparing the workspace: {why}"));
            return Outcome { attempt, verdict, answered: None, took: began.elapsed() };
        }
    };
    let verdict = ways::attempt(attempt, &mut scene).await.unwrap_or_else(|early| early);
    // Whatever the program believes: what has happened to the host counts.
    let verdict = match host.harm() {
        Some(harm) => Verdict::Through(harm),
        None => verdict,
    };
    Outcome { attempt, verdict, answered: scene.answered(), took: began.elapsed() }
}
