//! `palisade egress tail` and `verify`: what left sandboxes, from the audit trail, while the worker writes it or afterwards.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use palisade_audit::{Filter, Record};
use serde_json::{Value, json};

use super::DONE;
use crate::cli::{StateDir, block_on};
use crate::local;
use crate::output::{Context as _, Failure, GREEN, Outcome, Output, RED, YELLOW, plain};

/// How often new records are looked for.
const LOOK: Duration = Duration::from_millis(200);

/// Where the trail is.
#[derive(Debug, Args)]
pub(crate) struct TrailDir {
    /// The trail's directory; otherwise that of `palisade up`. A worker's is `audit` in its state directory.
    #[arg(long, value_name = "DIR")]
    trail: Option<PathBuf>,
    #[command(flatten)]
    state: StateDir,
}

impl TrailDir {
    fn path(&self) -> Outcome<PathBuf> {
        match &self.trail {
            Some(path) => Ok(path.clone()),
            None => Ok(self.state.path()?.join("worker/audit")),
        }
    }
}

/// Show what a session's sandboxes sent and were refused, from the audit trail.
#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    /// The session; all of them when it is left out.
    session: Option<String>,
    /// Go on with what comes, until SIGINT.
    #[arg(long, short)]
    follow: bool,
    /// Only what was refused.
    #[arg(long)]
    refused: bool,
    #[command(flatten)]
    trail: TrailDir,
}

/// Check that nothing in the audit trail was changed, removed or added.
#[derive(Debug, Args)]
#[command(after_help = "Exit code 1 when it does not verify.")]
pub(crate) struct VerifyArgs {
    /// Together with what `archive` has moved there.
    #[arg(long, value_name = "DIR")]
    archive: Option<PathBuf>,
    #[command(flatten)]
    trail: TrailDir,
}

pub(super) fn run(args: &TailArgs, out: Output) -> Outcome {
    let path = args.trail.path()?;
    let filter = Filter { session: args.session.clone(), kinds: vec!["egress.".to_owned()], ..Filter::default() };
    let what = "the audit trail cannot be read";
    let mut records = palisade_audit::read(&path, filter).context(what)?;
    let mut begun: HashMap<u64, Value> = HashMap::new();
    block_on(async {
        let asked = local::asked_to_end();
        tokio::pin!(asked);
        loop {
            for record in records.by_ref() {
                tell(&record.context(what)?, args.refused, &mut begun, out);
            }
            if !args.follow {
                return Ok(DONE);
            }
            tokio::select! {
                asked = &mut asked => return asked.map(|()| DONE),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    })?
}

/// One line for what was refused, and one for what has ended.
fn tell(record: &Record, refused: bool, begun: &mut HashMap<u64, Value>, out: Output) {
    let body: Value = serde_json::from_str(record.body.get()).unwrap_or_default();
    let session = record.session.as_deref().unwrap_or("-");
    let entry = match record.kind.as_str() {
        "egress.begin" if body["allowed"] == true => {
            begun.extend(body["entry"].as_u64().map(|entry| (entry, body)));
            return;
        }
        "egress.end" => match body["entry"].as_u64().and_then(|entry| begun.remove(&entry)) {
            Some(entry) if !refused => entry,
            _ => return,
        },
        _ => body.clone(),
    };
    let word = |name: &str| plain(entry[name].as_str().unwrap_or_default()).into_owned();
    let allowed = entry["allowed"] == true;
    let verdict = match (allowed, entry["observed"] == true) {
        (true, false) => out.paint(GREEN, "allowed"),
        (true, true) => out.paint(YELLOW, "observed"),
        (false, _) => out.paint(RED, "refused"),
    };
    let mut line = format!("{} {session} {verdict} {} {}", record.time, word("protocol"), word("to"));
    for (name, label) in [("method", ""), ("path", ""), ("reason", ""), ("rule", "rule ")] {
        let text = word(name);
        if !text.is_empty() {
            line.push_str(&format!(" {label}{text}"));
        }
    }
    if allowed {
        let number = |name: &str| body[name].as_u64().unwrap_or_default();
        if let Some(status) = body["status"].as_u64() {
            line.push_str(&format!(" status {status}"));
        }
        line.push_str(&format!(" sent {} received {}", number("sent"), number("received")));
        if let Some(error) = body["error"].as_str() {
            line.push_str(&format!(" {}", out.paint(RED, plain(error))));
        }
    }
    let credentials: Vec<&str> =
        entry["credentials"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !credentials.is_empty() {
        line.push_str(&format!(" credentials {}", plain(&credentials.join(","))));
    }
    if entry["alert"] == true {
        line.push_str(&format!(" {}", out.paint(RED, "ALERT")));
    }
    let outcome = allowed.then_some(&body);
    let value = json!({
        "type": "egress", "seq": record.seq, "time": record.time, "session": session, "entry": entry, "outcome": outcome,
    });
    out.either(&value, line);
}

pub(super) fn verify(args: &VerifyArgs, out: Output) -> Outcome {
    let path = args.trail.path()?;
    let report = match &args.archive {
        None => palisade_audit::verify(&path),
        Some(archive) => palisade_audit::verify_archived(&path, archive),
    };
    let report = report.context("the audit trail cannot be read")?;
    let first = report.first.as_ref().map(|first| first.seq);
    let last = report.last.as_ref().map(|last| json!({"seq": last.seq, "time": last.time, "hash": last.hash}));
    let value = json!({
        "type": "trail", "intact": report.intact(), "records": report.records, "segments": report.segments, "first": first, "last": last,
        "broken": report.broken.as_ref().map(ToString::to_string),
    });
    if let Some(broken) = &report.broken {
        if out.is_json() {
            out.object(&value);
        }
        return Err(Failure::new("the audit trail does not verify")
            .why(broken)
            .fix("keep the directory as it is: what comes before that place is proved, what follows it is not"));
    }
    let end = report.last.as_ref().map_or_else(String::new, |last| format!(", the last with hash {}", last.hash));
    let begin = match first {
        Some(first) if first > 1 => format!(", from record {first} on: what came before was archived"),
        _ => String::new(),
    };
    out.either(&value, format!("{} records in {} segments verify{begin}{end}", report.records, report.segments));
    Ok(ExitCode::SUCCESS)
}
