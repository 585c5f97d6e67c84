//! A file of credentials: what is in it, and whether its sources give what it names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use palisade_api::Timestamp;
use palisade_vault::{Probe, Reference, SourceState, VaultError};
use palisade_worker::{Credentials, Described};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::DONE;
use crate::output::{Failure, GREEN, Outcome, Output, RED, note, plain};

/// How many references are tried at a time.
const AT_ONCE: usize = 8;

/// Read a file of credentials and say what is in it.
#[derive(Debug, Args)]
#[command(after_help = "Exit code 1 when the file cannot be used, or a reference names no source.")]
pub(crate) struct CheckArgs {
    /// The file, as `palisade worker --credentials` takes it.
    #[arg(long, value_name = "FILE")]
    credentials: PathBuf,
}

/// Fetch what a file of credentials names and say whether it can be had.
#[derive(Debug, Args)]
#[command(
    after_help = "Leases that the trial is given are revoked at once. Exit code 1 when anything cannot be had.\n\
                        Run it as the worker's user and with its environment: that is what sources know it by."
)]
pub(crate) struct TestArgs {
    /// The file, as `palisade worker --credentials` takes it.
    #[arg(long, value_name = "FILE")]
    credentials: PathBuf,
    /// Only this: a reference to any secret of a configured source, or a credential's name.
    reference: Option<String>,
}

fn open(path: &std::path::Path) -> Outcome<Credentials> {
    crate::client::install_crypto();
    crate::commands::egress::credentials(Some(path))
}

fn source_name(source: &SourceState) -> String {
    if source.name.is_empty() { source.kind.to_string() } else { format!("{}:{}", source.kind, source.name) }
}

pub(super) fn check(args: &CheckArgs, out: Output) -> Outcome {
    let credentials = open(&args.credentials)?;
    let vault = credentials.vault();
    let sources = vault.sources();
    for source in &sources {
        let (kind, name) = (source.kind.word(), &source.name);
        out.object(&json!({"type": "source", "kind": kind, "name": name, "description": source.description}));
    }
    let row = |source: &SourceState| vec![source_name(source), plain(&source.description).into_owned()];
    out.table(&["source", "is"], &sources.iter().map(row).collect::<Vec<_>>());
    out.line("");
    let mut lost = 0;
    let mut rows = Vec::new();
    for Described { name, variable, kind, hosts, vaults, from } in credentials.described() {
        let why = vault.check(from).err().map(|why| why.to_string());
        lost += usize::from(why.is_some());
        out.object(&json!({
            "type": "credential", "name": name, "variable": variable, "as": kind, "allowed_hosts": hosts, "vaults": vaults,
            "reference": from, "ok": why.is_none(), "why": why,
        }));
        rows.push(vec![
            plain(name).into_owned(),
            variable.unwrap_or("-").to_owned(),
            kind.to_owned(),
            hosts.map_or_else(|| "any that the policy allows".to_owned(), |hosts| hosts.join(" ")),
            plain(&from.to_string()).into_owned(),
            why.map_or_else(|| out.paint(GREEN, "ok"), |why| out.paint(RED, plain(&why))),
        ]);
    }
    out.table(&["credential", "variable", "as", "hosts", "reference", ""], &rows);
    Ok(if lost == 0 { DONE } else { ExitCode::FAILURE })
}

pub(super) async fn test(args: &TestArgs, out: Output) -> Outcome {
    let credentials = open(&args.credentials)?;
    let mut wanted: BTreeMap<Reference, Vec<String>> = BTreeMap::new();
    for (name, reference) in credentials.references() {
        wanted.entry(reference.clone()).or_default().push(name.to_owned());
    }
    if let Some(text) = &args.reference {
        wanted.retain(|reference, names| names.contains(text) || reference.to_string() == *text);
        if wanted.is_empty() {
            let reference: Reference = text.parse().map_err(|why| {
                Failure::new("there is nothing to test")
                    .why(format!("no credential of the file has that name, and it is no reference: {why}"))
                    .fix("`palisade vault check` shows the names and references")
            })?;
            wanted.insert(reference, Vec::new());
        }
    }
    if wanted.is_empty() {
        note("the file has no credentials, so there is nothing to test");
        return Ok(DONE);
    }
    let vault = credentials.vault();
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for (reference, names) in wanted {
        let (vault, permits) = (vault.clone(), permits.clone());
        running.spawn(async move {
            let _permit = permits.acquire_owned().await;
            let began = Instant::now();
            let probed = vault.probe(&reference).await;
            (reference, names, probed, began.elapsed())
        });
    }
    let mut tried = Vec::new();
    while let Some(one) = running.join_next().await {
        tried.push(one.map_err(|why| Failure::new("a test broke off").why(why))?);
    }
    tried.sort_by(|one, other| one.0.cmp(&other.0));
    let mut failed = 0;
    for (reference, names, probed, took) in &tried {
        failed += usize::from(probed.is_err());
        tell(reference, names, probed, *took, out);
    }
    for left in vault.close().await {
        note(format!(
            "warning: a lease of {} could not be revoked: {}",
            plain(&left.of),
            plain(&left.error.to_string())
        ));
    }
    Ok(if failed == 0 { DONE } else { ExitCode::FAILURE })
}

fn tell(reference: &Reference, names: &[String], probed: &Result<Probe, VaultError>, took: Duration, out: Output) {
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let shown = plain(&reference.to_string()).into_owned();
    match probed {
        Ok(Probe { lease, expires }) => {
            let (lease, expires) = (lease.map(|lease| lease.as_secs()), expires.map(Timestamp::from));
            let mut text = format!("{} {shown} ({ms} ms)", out.paint(GREEN, "ok"));
            if let Some(lease) = lease {
                text.push_str(&format!(", a lease of {lease} s"));
            }
            if let Some(expires) = &expires {
                text.push_str(&format!(", ends at {expires}"));
            }
            let told = json!({
                "type": "tested", "reference": reference, "credentials": names, "ok": true, "lease_s": lease,
                "expires_at": expires, "took_ms": ms, "why": null, "retry_helps": false,
            });
            out.either(&told, text);
        }
        Err(why) => {
            let told = json!({
                "type": "tested", "reference": reference, "credentials": names, "ok": false, "lease_s": null,
                "expires_at": null, "took_ms": ms, "why": why.to_string(), "retry_helps": why.is_transient(),
            });
            out.either(&told, format!("{} {shown}: {}", out.paint(RED, "failed"), plain(&why.to_string())));
        }
    }
}
