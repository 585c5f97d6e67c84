//! The `oci` driver, with each runtime that is here.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use palisade_sandbox::{Facility, Oci, OciOptions, Rootfs};

use super::suite::Subject;
use super::{has, is_root, root};

const WALLS: &[Facility] = &[
    Facility::Namespaces,
    Facility::Capabilities,
    Facility::Seccomp,
    Facility::DistinctUser,
    Facility::MemoryLimit,
    Facility::PidLimit,
    Facility::Freeze,
];
const GVISOR: &[Facility] =
    &[Facility::Namespaces, Facility::Capabilities, Facility::MemoryLimit, Facility::PidLimit, Facility::Freeze];

fn subject(runtime: &str, enforces: &'static [Facility]) -> Option<Subject> {
    if !has(runtime) || !is_root() {
        return None;
    }
    let keep = tempfile::tempdir().unwrap();
    let (image, scratch) = (keep.path().join("image"), keep.path().join("scratch"));
    root::build(&image);
    let arguments = if runtime == "runsc" { vec!["--platform=ptrace".to_owned()] } else { Vec::new() };
    let options = OciOptions { runtime: runtime.into(), arguments, scratch: Some(scratch.clone()) };
    let driver = Arc::new(Oci::new(options).unwrap());
    Some(Subject {
        driver,
        rootfs: Rootfs::Directory(image),
        bare: false,
        enforces,
        left: Box::new(move || left(&scratch)),
        _keep: Box::new(keep),
    })
}

/// Bundles, state, mounts and control groups.
fn left(scratch: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let own = format!("palisade-{}-", std::process::id());
    for driver in fs::read_dir(scratch).into_iter().flatten().flatten() {
        for place in [driver.path(), driver.path().join("state")] {
            let names = fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.file_name());
            left.extend(names.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.starts_with(&own)));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    left.extend(mounts.lines().filter(|line| line.contains(&*scratch.to_string_lossy())).map(ToOwned::to_owned));
    left.extend(groups(&own));
    left
}

/// Control groups whose names begin so.
pub(super) fn groups(prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut places = vec!["/sys/fs/cgroup".into()];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    found.push(entry.path().display().to_string());
                }
                places.push(entry.path());
            }
        }
    }
    found
}

macro_rules! runtime {
    ($module:ident, $program:literal, $enforces:expr, $bomb:ident) => {
        mod $module {
            crate::drivers::conforms!(
                super::subject($program, $enforces),
                [
                    the_six_tools_work,
                    commands_have_input_output_and_an_end,
                    a_command_gets_what_the_spec_says_and_no_more,
                    what_is_written_is_the_hosts,
                    nobody_has_a_privilege,
                    there_is_no_network,
                    $bomb,
                    memory_is_limited,
                    it_freezes_and_thaws,
                    usage_is_told,
                    the_end_leaves_nothing,
                    what_is_required_is_there_or_refused,
                ]
            );
        }
    };
}

runtime!(runc, "runc", super::WALLS, limits_hold);
runtime!(crun, "crun", super::WALLS, limits_hold);
runtime!(gvisor, "runsc", super::GVISOR, a_bomb_ends_the_sandbox_at_most);
