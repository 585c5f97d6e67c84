//! What processes hold in memory, as the kernel counts it.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::output::{Context as _, Failure, Outcome};

/// What a process holds.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// What is resident, shared pages included, in MiB.
    pub(super) resident: f64,
    /// What would be free without it: resident pages that no other process maps, in MiB.
    pub(super) private: f64,
    /// Its name.
    pub(super) name: String,
}

fn file(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn kib(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is resident of a process, in MiB. Anyone may ask this.
pub(super) fn resident(pid: u32) -> Outcome<f64> {
    status(pid, "VmRSS")
}

/// The most that was ever resident of a process, in MiB. Anyone may ask this.
pub(super) fn peak(pid: u32) -> Outcome<f64> {
    status(pid, "VmHWM")
}

fn status(pid: u32, field: &str) -> Outcome<f64> {
    let what = || format!("the memory of process {pid} cannot be read");
    let status = std::fs::read_to_string(file(pid, "status")).context(what())?;
    let kib = kib(&status, field).ok_or_else(|| Failure::new(what()).why("the process has ended"))?;
    Ok(kib / 1024.0)
}

/// What a process holds. Palisade's own processes tell this to nobody but root.
pub(super) fn held(pid: u32) -> Outcome<Held> {
    let what = || format!("the memory of process {pid} cannot be read");
    let rollup = std::fs::read_to_string(file(pid, "smaps_rollup"))
        .map_err(|why| Failure::new(what()).why(why).fix("run this figure as root"))?;
    let name = std::fs::read_to_string(file(pid, "comm")).context(what())?.trim().to_owned();
    let mib = |field| kib(&rollup, field).unwrap_or_default() / 1024.0;
    let private = mib("Private_Clean") + mib("Private_Dirty") + mib("Private_Hugetlb");
    Ok(Held { resident: mib("Rss"), private, name })
}

/// Every process that descends from this one, itself left out.
pub(super) fn descendants(of: u32) -> Outcome<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").context("the processes cannot be listed")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has ended meanwhile is no descendant any more.
        let Ok(stat) = std::fs::read_to_string(file(pid, "stat")) else { continue };
        // The name may hold anything; the state and the parent come after its last parenthesis.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![of];
    while let Some(pid) = next.pop() {
        let own = children.remove(&pid).unwrap_or_default();
        next.extend(&own);
        found.extend(own);
    }
    Ok(found)
}
