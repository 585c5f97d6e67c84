//! `palisade doctor`: what this machine allows.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use palisade_engine::{Clock as _, SystemClock};
use palisade_sandbox::{Probe, probe, probe_place};
use rustix::process::{Resource, getrlimit};
use serde_json::json;

use crate::cli::{StateDir, block_on};
use crate::output::{GREEN, Outcome, Output, RED, YELLOW};

/// Room that a state directory should have, in bytes.
const ROOM: u64 = 1 << 30;
/// A clock before this is not set: 2025-01-01, in seconds.
const EPOCH: i64 = 1_735_689_600;
/// Files that a server of many streams has open.
const FILES: u64 = 16_384;

/// Check whether this machine can run sandboxes, and say what to change where it cannot.
#[derive(Debug, Args)]
#[command(after_help = "Exit code 1 when sandboxes cannot be made here.")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    state: StateDir,
}

struct Finding {
    what: String,
    available: bool,
    required: bool,
    detail: String,
    fix: Option<String>,
}

impl From<Probe> for Finding {
    fn from(probe: Probe) -> Finding {
        Finding {
            what: probe.facility.to_owned(),
            available: probe.available,
            required: probe.required,
            detail: probe.detail,
            fix: probe.fix.map(str::to_owned),
        }
    }
}

pub(crate) fn run(args: &DoctorArgs, out: Output) -> Outcome {
    let state_dir = args.state.path()?;
    let tried = block_on(probe_place(&state_dir))?;
    let mut findings: Vec<Finding> = probe().into_iter().chain(tried).map(Finding::from).collect();
    findings.push(room(&state_dir));
    findings.push(clock());
    findings.push(files());
    let mut possible = true;
    let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    for finding in &findings {
        possible &= finding.available || !finding.required;
        let (mark, style) = match (finding.available, finding.required) {
            (true, _) => ("ok  ", GREEN),
            (false, false) => ("warn", YELLOW),
            (false, true) => ("FAIL", RED),
        };
        let fix = match &finding.fix {
            Some(fix) if !finding.available => format!(": {fix}"),
            _ => String::new(),
        };
        let value = json!({
            "type": "probe", "facility": finding.what, "available": finding.available, "required": finding.required,
            "detail": finding.detail, "fix": if finding.available { None } else { finding.fix.as_ref() },
        });
        out.either(&value, format!("{} {:width$}  {}{fix}", out.paint(style, mark), finding.what, finding.detail));
    }
    out.object(&json!({"type": "verdict", "sandboxes": possible}));
    out.line(if possible { "sandboxes can be made here" } else { "sandboxes cannot be made here" });
    Ok(if possible { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Room where the state directory is or would be.
fn room(state_dir: &Path) -> Finding {
    let place = state_dir.ancestors().find(|place| place.exists()).map_or_else(|| PathBuf::from("/"), Path::to_owned);
    let finding = |available, detail| Finding {
        what: "disk".to_owned(),
        available,
        required: false,
        detail,
        fix: Some("free at least 1 GiB there, or name another directory with --state-dir".to_owned()),
    };
    match rustix::fs::statvfs(&place) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            finding(free >= ROOM, format!("{} MiB free at {}", free >> 20, place.display()))
        }
        Err(why) => finding(false, format!("{}: {why}", place.display())),
    }
}

fn clock() -> Finding {
    let now = SystemClock::default().now();
    Finding {
        what: "clock".to_owned(),
        available: now.as_micros() / 1_000_000 >= EPOCH,
        required: false,
        detail: now.to_string(),
        fix: Some("set the clock: leases, tokens and certificates depend on it".to_owned()),
    }
}

fn files() -> Finding {
    let limit = getrlimit(Resource::Nofile).maximum;
    Finding {
        what: "open files".to_owned(),
        available: limit.is_none_or(|limit| limit >= FILES),
        required: false,
        detail: limit.map_or_else(|| "no limit".to_owned(), |limit| format!("hard limit {limit}")),
        fix: Some(format!("raise the hard limit to {FILES} (`ulimit -Hn`, LimitNOFILE=): each stream is an open file")),
    }
}
