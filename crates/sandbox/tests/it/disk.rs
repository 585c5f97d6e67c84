//! Workspaces that may hold so much and no more.

use std::fs;
use std::path::Path;

use palisade_sandbox::{Error, Facility, Status, Workspace};
use serde_json::json;

use crate::rig::Rig;

async fn limited(home: &Path, mib: u64) -> Rig {
    let (base, layer) = (home.join("base"), home.join("layer"));
    for place in [&base, &layer] {
        fs::create_dir_all(place).unwrap();
    }
    Rig::with(|spec| {
        spec.workspace = Workspace::Layered { lower: vec![base], upper: layer };
        (spec.limits.disk_bytes, spec.limits.disk_inodes) = (Some(mib << 20), Some(2000));
    })
    .await
}

fn why_not(rig: &Rig) -> Option<String> {
    match &rig.sandbox.report().facilities[&Facility::DiskLimit] {
        Status::Unavailable(why) => Some(why.clone()),
        Status::Enforced(_) => None,
        Status::Unused => panic!("a limit was asked for"),
    }
}

#[tokio::test]
async fn a_full_workspace_is_a_matter_of_its_own_session() {
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (rig, other) = (limited(homes[0].path(), 32).await, limited(homes[1].path(), 32).await);
    if let Some(why) = why_not(&rig) {
        return eprintln!("not run here: {why}");
    }
    for place in ["/workspace", "/mnt/session/outputs"] {
        let said = rig.bash(&format!("head -c 100M /dev/zero > {place}/fill; stat -c %s {place}/fill")).await;
        assert!(said.contains("No space left") || said.contains("quota exceeded"), "{place}: {said}");
        let size: u64 = said.lines().last().unwrap().parse().unwrap();
        assert!((20 << 20..=32 << 20).contains(&size), "{place}: {size}");
    }
    assert!(rig.sandbox.usage().await.unwrap().disk_bytes > Some(40 << 20));
    // It is told so, it is answered, and it can make room.
    let (text, is_error) = rig.call("write", json!({"file_path": "more", "content": "x".repeat(100_000)})).await;
    assert!(is_error, "{text}");
    let (text, is_error) = rig.call("bash", json!({"command": "rm fill; echo room"})).await;
    assert_eq!((text.as_str(), is_error), ("room", false));
    let names = "use POSIX; my $n = 0; while (open my $f, '>', \"f$n\") { $n++ } print $n > 5000 ? $n : $!";
    let said = rig.perl(names).await;
    assert!(["No space left on device", "Disk quota exceeded"].contains(&said.as_str()), "{said}");
    rig.bash("head -c 100M /dev/zero > f0").await;
    assert_eq!(other.bash("head -c 10M /dev/zero > fill && stat -c %s fill").await, "10485760");
    let left = homes[0].path().join("layer");
    rig.sandbox.destroy().await.unwrap();
    // Nothing stays mounted, and what it wrote comes back with it.
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(left.to_str().unwrap()));
    let again = limited(homes[0].path(), 32).await;
    assert_eq!(why_not(&again), None);
    assert_eq!(again.bash("rm f? f??; echo room > room; cat room; ls f100").await, "room\nf100");
}

#[tokio::test]
async fn a_limit_that_is_required_and_cannot_be_had_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (workspace, outputs) = (home.path().join("workspace"), home.path().join("outputs"));
    for place in [&workspace, &outputs] {
        fs::create_dir(place).unwrap();
    }
    let mut spec = palisade_sandbox::Spec::new(workspace, outputs);
    spec.require = vec![Facility::DiskLimit];
    let driver = palisade_sandbox::Native::default();
    let create = palisade_sandbox::Driver::create;
    let refused = create(&driver, spec.clone()).await;
    assert!(matches!(refused, Err(Error::Required { facility: Facility::DiskLimit, .. })), "{refused:?}");
    // Smaller than any file system, in a directory of somebody's own.
    spec.limits.disk_bytes = Some(1 << 20);
    match create(&driver, spec).await {
        Err(Error::Required { facility: Facility::DiskLimit, reason, .. }) => assert!(!reason.is_empty()),
        Ok(sandbox) => assert!(sandbox.report().enforces(Facility::DiskLimit)),
        Err(why) => panic!("{why}"),
    }
}
