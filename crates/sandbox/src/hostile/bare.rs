//! Attempts without a sandbox: what shows that the judges see.

use std::io;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;

use super::host::Host;
use super::ways::read_line;
use super::{Outcome, Verdict, guarantees};

/// The most time that an attempt may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the program on the host, as it is, and reads its line.
pub(super) async fn line(host: &Host, name: &str, more: &[String]) -> Verdict {
    let mut command = Command::new(host.program());
    command
        .arg(name)
        .args(host.facts())
        .args(more)
        .current_dir(host.place())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => read_line(String::from_utf8_lossy(&output.stdout).trim(), host.secret()),
        Ok(Err(why)) => Verdict::Unclear(why.to_string()),
        Err(_) => Verdict::Unclear("it took too long".to_owned()),
    }
}

/// Makes these attempts with no sandbox at all, as the current user. Name only those that do no harm to the machine: most of
/// them get through.
///
/// # Errors
/// When the host's side cannot be set up.
pub async fn run_bare(names: &[&str]) -> io::Result<Vec<Outcome>> {
    let host = Host::new()?;
    let mut outcomes = Vec::new();
    for attempt in guarantees().iter().flat_map(|guarantee| guarantee.attempts) {
        if !names.contains(&attempt.name) {
            continue;
        }
        let began = Instant::now();
        let verdict = line(&host, attempt.name, &[]).await;
        let verdict = host.harm().map_or(verdict, Verdict::Through);
        outcomes.push(Outcome { attempt, verdict, answered: None, took: began.elapsed() });
    }
    Ok(outcomes)
}
