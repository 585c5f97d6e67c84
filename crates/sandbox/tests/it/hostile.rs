//! The hostile suite: nothing gets through, and its judges see what would.

use std::sync::Arc;

use palisade_sandbox::hostile::{self, Options, Verdict};
use palisade_sandbox::{Native, Options as NativeOptions};

use crate::rig::{again, is_again};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_gets_through() {
    const NAME: &str = "hostile::nothing_gets_through";
    // The worker's variable must be there from the beginning of the process.
    if std::env::var_os(hostile::VARIABLE).is_none() {
        let status = again(NAME).env(hostile::VARIABLE, "a-marker-that-must-not-be-seen").status().unwrap();
        assert!(status.success());
        return;
    }
    assert!(is_again());
    let driver = Arc::new(Native::new(NativeOptions::default()));
    let only = std::env::var("PALISADE_HOSTILE_ONLY").unwrap_or_default();
    let options = Options { only, ..Options::default() };
    let outcomes = hostile::run(driver, &options, |_| {}).await.unwrap();
    let mut bad = Vec::new();
    for outcome in &outcomes {
        match &outcome.verdict {
            Verdict::Refused(_) => {}
            Verdict::NotRun(reason) => println!("not run: {}: {reason}", outcome.attempt.name),
            verdict => bad.push(format!("{}: {verdict}", outcome.attempt.name)),
        }
    }
    let slowest = outcomes.iter().filter_map(|outcome| Some((outcome.answered?, outcome.attempt.name))).max();
    println!("{} attempts; slowest answer {slowest:?}", outcomes.len());
    let mut by_time: Vec<_> = outcomes.iter().map(|outcome| (outcome.took, outcome.attempt.name)).collect();
    by_time.sort();
    println!("longest: {:?}", &by_time[by_time.len().saturating_sub(12)..]);
    assert!(bad.is_empty(), "{} of {}:\n{}", bad.len(), outcomes.len(), bad.join("\n"));
}
