//! The `process` driver, which keeps nothing in: what it refuses, and that tools and commands work.

use std::sync::Arc;

use palisade_sandbox::{Bare, BareOptions, Driver, Error, Facility, Rootfs, Spec};

use super::suite::{Subject, home, until};
use crate::rig::began;

fn options() -> BareOptions {
    BareOptions { development: true, allow_root: true }
}

fn subject() -> Option<Subject> {
    Some(Subject {
        driver: Arc::new(Bare::new(options()).unwrap()),
        rootfs: Rootfs::Host,
        bare: true,
        enforces: &[],
        left: Box::new(Vec::new),
        _keep: Box::new(()),
    })
}

super::conforms!(
    subject(),
    [
        the_six_tools_work,
        commands_have_input_output_and_an_end,
        a_terminal_has_a_size,
        a_terminal_has_jobs,
        files_go_in_and_come_back,
        a_detached_command_is_listed_and_heard_again,
        a_port_inside_is_reached,
        a_command_gets_what_the_spec_says_and_no_more,
        the_network_leads_to_the_worker_or_is_refused,
        what_is_written_is_the_hosts,
        the_end_leaves_nothing,
        what_is_required_is_there_or_refused,
    ]
);

#[tokio::test]
async fn it_is_refused_unless_it_is_wanted() {
    let refused = Bare::new(BareOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("development only"), "{refused}");
    if rustix::process::geteuid().is_root() {
        let refused = Bare::new(BareOptions { allow_root: false, ..options() }).unwrap_err();
        assert!(refused.to_string().contains("root"), "{refused}");
    }
    let (_home, workspace, outputs) = home();
    let sandbox = Bare::new(options()).unwrap().create(Spec::new(&workspace, &outputs)).await.unwrap();
    assert!(Facility::ALL.iter().all(|facility| !sandbox.report().enforces(*facility)));
    assert!(sandbox.report().notes[0].contains("NO ISOLATION"));
    let mut spec = Spec::new(workspace, outputs);
    spec.require = vec![Facility::Namespaces];
    let refused = Bare::new(options()).unwrap().create(spec).await.unwrap_err();
    assert!(matches!(refused, Error::Required { driver: "process", .. }), "{refused}");
}

#[tokio::test]
async fn what_was_started_ends_and_nothing_else() {
    // A process of this user that is none of the sandbox's.
    let mut other = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let place = subject().unwrap().place().await;
    let started = place.bash("(setsid sleep 1000 & echo $!)").await;
    let started = started.parse().unwrap();
    let born = began(started);
    assert!(born.is_some(), "{started}");
    assert_eq!(place.call("bash", serde_json::json!({"restart": true, "command": "echo again"})).await.0, "again");
    place.sandbox.destroy().await.unwrap();
    until("the orphan has ended", || began(started) != born).await;
    assert!(other.try_wait().unwrap().is_none());
    other.kill().unwrap();
    other.wait().unwrap();
}
