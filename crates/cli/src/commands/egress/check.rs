//! `palisade egress check`: what a policy decides, before anybody depends on it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use palisade_egress::Authority;
use palisade_egress::policy::{Mode, Request, Scheme, Subject, Verdict};
use reqwest::Url;
use serde_json::json;

use super::DONE;
use crate::output::{Failure, GREEN, Outcome, Output, RED, YELLOW};

/// Read a policy, and say what it decides about a request.
#[derive(Debug, Args)]
#[command(after_help = "Nothing is sent. Exit code 1 when the file cannot be used, or the request would be refused.")]
pub(crate) struct CheckArgs {
    /// The policy.
    policy: PathBuf,
    /// A request that is asked about; without it only the file is checked.
    url: Option<String>,
    /// Its method.
    #[arg(long, default_value = "GET", requires = "url")]
    method: String,
    /// The environment of the session that asks.
    #[arg(long, value_name = "ENVIRONMENT_ID", default_value = "")]
    environment: String,
    /// The agent of the session that asks, by id or name.
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
}

pub(super) fn run(args: &CheckArgs, out: Output) -> Outcome {
    let policies = super::policies(&args.policy)?;
    let agent = args.agent.as_deref();
    let policy = policies.for_session(&Subject { environment: &args.environment, agent, agent_name: agent });
    let Some(url) = &args.url else {
        let rules: Vec<String> = policy.rules().map(|rule| rule.to_string()).collect();
        let mode = match policy.mode() {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
        };
        let value = json!({"type": "policy", "mode": mode, "rules": rules, "none": policy.is_none()});
        let line = if policy.is_none() {
            "the file is in order; nothing may leave such a session".to_owned()
        } else {
            format!("the file is in order; {} rules for such a session, mode {mode}: {}", rules.len(), rules.join(", "))
        };
        out.either(&value, line);
        return Ok(DONE);
    };
    let asked = || format!("{url:?} cannot be asked about");
    let parsed = Url::parse(url).map_err(|why| Failure::new(asked()).why(why))?;
    let scheme = match parsed.scheme() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => return Err(Failure::new(asked()).why(format!("{other} is neither http nor https"))),
    };
    // The name as it was written: the address bar's idea of it is not the service's.
    let written = url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or(""));
    let authority = Authority::parse(written, Some(scheme.default_port()));
    let authority = authority.map_err(|why| Failure::new(asked()).why(why))?;
    let path = match parsed.query() {
        Some(query) => format!("{}?{query}", parsed.path()),
        None => parsed.path().to_owned(),
    };
    let request =
        Request { scheme, authority: &authority, method: &args.method, path: &path, upgrade: None, body_bytes: None };
    let verdict = policy.request(&request);
    let (value, line) = match &verdict {
        Verdict::Allowed { rule, observed, .. } => {
            let (style, word) = if observed.is_some() { (YELLOW, "observed") } else { (GREEN, "allowed") };
            let reason = observed.as_ref().map(|refusal| refusal.reason.code());
            let why = observed.as_ref().map_or_else(String::new, |refusal| format!(": {refusal}"));
            (
                json!({"type": "verdict", "allowed": true, "rule": rule.to_string(), "observed": reason}),
                format!("{} by {rule}{why}", out.paint(style, word)),
            )
        }
        Verdict::Refused(refusal) => (
            json!({
                "type": "verdict", "allowed": false, "reason": refusal.reason.code(),
                "rule": refusal.rule.as_ref().map(ToString::to_string), "message": refusal.message,
            }),
            format!("{} ({}): {}", out.paint(RED, "refused"), refusal.reason.code(), refusal.message),
        ),
    };
    out.either(&value, line);
    Ok(if verdict.refusal().is_some() { ExitCode::FAILURE } else { DONE })
}
