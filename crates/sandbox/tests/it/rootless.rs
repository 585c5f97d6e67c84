//! The same without root: nobody runs the worker, and the guarantees hold.

use std::process::Stdio;

use crate::rig::again_through;

/// What attacks the boundary itself; the rest of the tests is about what is the same for every user.
const AGAIN: &[&str] = &[
    "bombs::descriptors_locks_and_signals_without_end",
    "bombs::forks_without_end",
    "bombs::places_in_memory_have_a_size",
    "calls::nobody_has_a_capability_or_gets_one",
    "calls::the_cell_survives_what_is_done_to_it",
    "calls::the_sandbox_has_every_namespace_of_its_own",
    "egress::every_connection_leads_to_the_worker",
    "egress::nothing_else_leads_anywhere",
    "egress::what_is_given_is_read_and_no_more",
    "lifecycle::a_command_begins_with_the_signals_that_everybody_expects",
    "lifecycle::a_command_runs_as_nobody_special",
    "lifecycle::the_cell_runs_in_an_empty_root",
    "lifecycle::the_end_leaves_nothing",
    "lifecycle::the_workspace_outlives_its_sandbox",
    "network::nothing_reaches_the_host_or_the_world",
    "network::two_sandboxes_share_nothing",
    "nursery::cells_outlive_their_nursery_and_another_takes_its_place",
    "nursery::what_the_worker_keeps_to_itself_is_its_own_affair",
    "pool::nothing_waits_after_the_end",
    "pool::one_that_died_is_not_handed_out",
    "pool::one_that_waits_is_taken_and_replaced",
    "secrets::a_command_inherits_three_descriptors_and_no_more",
    "secrets::links_lead_nowhere_outside",
    "secrets::the_cell_cannot_be_looked_into",
    "secrets::the_host_is_not_to_be_seen_in_the_file_system",
    "secrets::what_is_read_only_stays_as_it_is",
];

#[test]
fn the_guarantees_hold_without_root() {
    without_root(AGAIN);
}

#[test]
fn the_hostile_suite_gets_nowhere_without_root() {
    without_root(&["hostile::nothing_gets_through", "hostile::the_judges_see_what_gets_through"]);
}

/// Runs these tests once more as nobody.
fn without_root(names: &[&str]) {
    if !rustix::process::geteuid().is_root() {
        // Then all tests have run without it.
        return;
    }
    // The program and its directories must be within the other user's reach.
    let place =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let scratch = place.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    std::fs::set_permissions(&scratch, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    let program = place.path().join("it");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let nobody = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut failures = Vec::new();
    for name in names {
        let child = again_through(&nobody, &program, name)
            .env("TMPDIR", &scratch)
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        if !child.status.success() || !said.contains("1 passed") {
            failures.push(format!("{name}: {said}{}", String::from_utf8_lossy(&child.stderr)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
