//! The hostile suite: nothing gets through, and its judges see what would.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use palisade_sandbox::hostile::{self, Options, Verdict};
use palisade_sandbox::{Native, Options as NativeOptions};

use crate::rig::again;

/// Attempts that do no harm to a machine that lets them through.
const HARMLESS: &[&str] = &[
    "capabilities.filters",
    "capabilities.new-privileges",
    "capabilities.set-id-mode",
    "cores.limit",
    "devices.others",
    "files.machine-identity",
    "kernel.bpf-map",
    "kernel.clone-user",
    "kernel.clone3-user",
    "kernel.compare",
    "kernel.handle-name",
    "kernel.io-uring",
    "kernel.key-add",
    "kernel.keyring-session",
    "kernel.openat2",
    "kernel.perf",
    "kernel.ptrace-child",
    "kernel.ptrace-traceme",
    "kernel.read-memory",
    "kernel.seccomp-undo",
    "kernel.steal-descriptor",
    "kernel.unshare-user",
    "kernel.userfaultfd",
    "kernel.write-memory",
    "links.by-name",
    "links.dots",
    "links.leaked-directories",
    "links.marker",
    "links.own-root",
    "links.symbolic",
    "machine.interrupts",
    "machine.modules-list",
    "machine.personality",
    "neighbours.host-process-files",
    "neighbours.host-process-kill",
    "network.host-abstract-socket",
    "network.host-datagram",
    "network.host-loopback",
    "network.host-socket-file",
    "network.netlink-filter",
    "network.netlink-route",
    "secrets.arguments",
    "secrets.descriptor-numbers",
    "secrets.descriptors",
    "secrets.environment",
];
/// Of these at least so many get through where nothing keeps them in, on any machine and as any user.
const THROUGH: usize = 25;

/// The test once more, in a process that has the worker's variable from its beginning.
fn in_worker(name: &str) -> Option<Command> {
    let mut command = again(name);
    command.env(hostile::VARIABLE, "a-marker-that-must-not-be-seen");
    std::env::var_os(hostile::VARIABLE).is_none().then_some(command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_gets_through() {
    if let Some(mut worker) = in_worker("hostile::nothing_gets_through") {
        assert!(worker.status().unwrap().success());
        return;
    }
    let driver = Arc::new(Native::new(NativeOptions::default()));
    let outcomes = hostile::run(driver, &Options::default(), |_| {}).await.unwrap();
    let mut bad = Vec::new();
    for outcome in &outcomes {
        match &outcome.verdict {
            Verdict::Refused(_) => {}
            Verdict::NotRun(reason) => println!("not run: {}: {reason}", outcome.attempt.name),
            verdict => bad.push(format!("{}: {verdict}", outcome.attempt.name)),
        }
    }
    let slowest = outcomes.iter().filter_map(|outcome| Some((outcome.answered?, outcome.attempt.name))).max();
    println!("{} attempts, slowest answer {slowest:?}", outcomes.len());
    assert!(bad.is_empty(), "{} of {}:\n{}", bad.len(), outcomes.len(), bad.join("\n"));
    // All of the table was there, and hardly any of it was left out.
    let run = outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Refused(_))).count();
    assert!(run >= 300, "{run} attempts were made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_judges_see_what_gets_through() {
    if let Some(mut worker) = in_worker("hostile::the_judges_see_what_gets_through") {
        assert!(worker.status().unwrap().success());
        return;
    }
    let outcomes = hostile::run_bare(HARMLESS).await.unwrap();
    assert_eq!(outcomes.len(), HARMLESS.len(), "each of them is in the table");
    let through = |outcome: &&hostile::Outcome| matches!(outcome.verdict, Verdict::Through(_));
    let count = outcomes.iter().filter(through).count();
    let said: Vec<String> =
        outcomes.iter().map(|outcome| format!("{}: {}", outcome.attempt.name, outcome.verdict)).collect();
    println!("{count} of {} got through", outcomes.len());
    assert!(count >= THROUGH, "{count}:\n{}", said.join("\n"));
    // What depends on neither kernel nor user.
    for name in [
        "cores.limit",
        "links.by-name",
        "links.leaked-directories",
        "links.marker",
        "neighbours.host-process-kill",
        "network.host-abstract-socket",
        "network.host-datagram",
        "network.host-loopback",
        "secrets.descriptors",
        "secrets.environment",
    ] {
        let outcome = outcomes.iter().find(|outcome| outcome.attempt.name == name).unwrap();
        assert!(through(&outcome), "{name}: {}", outcome.verdict);
    }
}

#[test]
fn the_table_and_the_program_name_the_same_attempts() {
    let attempts = || hostile::guarantees().iter().flat_map(|guarantee| guarantee.attempts);
    let names: BTreeSet<&str> = attempts().map(|attempt| attempt.name).collect();
    assert_eq!(names.len(), attempts().count(), "each name is given once");
    for guarantee in hostile::guarantees() {
        for attempt in guarantee.attempts {
            let own = attempt.name.strip_prefix(guarantee.name).is_some_and(|rest| rest.starts_with('.'));
            assert!(own, "{} is below {}", attempt.name, guarantee.name);
        }
    }
    let list = Command::new(env!("PALISADE_HOSTILE")).arg("list").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    for known in list.lines() {
        // Parts of other attempts, and somebody to aim at.
        let part = ["links.race", "neighbours.victim", "streams.flood"];
        assert!(names.contains(known) || part.contains(&known), "{known} is not in the table");
    }
    assert!(list.lines().count() > 300);
}

/// The page's table, as it must be.
fn table() -> String {
    let mut table = "| Guarantee | Mechanism in `native` | Attempts | `native` |\n|---|---|---|---|\n".to_owned();
    for guarantee in hostile::guarantees() {
        let count = guarantee.attempts.len();
        let references: BTreeSet<&str> = guarantee
            .attempts
            .iter()
            .flat_map(|attempt| attempt.reference.split(", "))
            .filter(|it| !it.is_empty())
            .collect();
        let mut attempts = format!("`{}.*`: {count}", guarantee.name);
        if !references.is_empty() {
            let references: Vec<&str> = references.into_iter().collect();
            attempts.push_str(&format!("; after {}", references.join(", ")));
        }
        table.push_str(&format!("| {} | {} | {attempts} | holds |\n", guarantee.title, guarantee.mechanism));
    }
    table
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_page_has_every_guarantee() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/security/sandbox.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once("<!-- guarantees -->\n").expect("the page marks where its table begins");
    let (found, _) = rest.split_once("<!-- end -->").expect("the page marks where its table ends");
    assert!(found == table(), "put this between the marks of docs/security/sandbox.md:\n{}", table());
}
