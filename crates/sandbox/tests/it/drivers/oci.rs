//! The `oci` driver, with each runtime that is here.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use palisade_sandbox::{
    Driver, Error, ExecRequest, Facility, Oci, OciOptions, Output, Rootfs, Spec, Status, ToolCall, Workspace,
};
use serde_json::json;

use super::suite::{self, Subject};
use super::{has, is_root, root};

/// The drivers' directory, for a worker that is to be killed.
const SCRATCH: &str = "PALISADE_TEST_SCRATCH";

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
    // As the worker's state directory is.
    fs::set_permissions(keep.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let scratch = std::env::var_os(SCRATCH).map_or_else(|| keep.path().join("scratch"), Into::into);
    let image = keep.path().join("image");
    root::build(&image);
    let arguments = if runtime == "runsc" { vec!["--platform=ptrace".to_owned()] } else { Vec::new() };
    let options = OciOptions { runtime: runtime.into(), arguments, scratch: Some(scratch.clone()) };
    let driver = Arc::new(Oci::new(options).unwrap());
    let own = std::process::id();
    Some(Subject {
        driver,
        rootfs: Rootfs::Directory(image),
        bare: false,
        enforces,
        left: Box::new(move || left(&scratch, own)),
        _keep: Box::new(keep),
    })
}

/// Bundles, state, mounts and control groups.
fn left(scratch: &Path, pid: u32) -> Vec<String> {
    let mut left = Vec::new();
    let own = format!("palisade-{pid}-");
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

async fn death(runtime: &str, enforces: &'static [Facility], test: &str) {
    if crate::rig::is_again() {
        return suite::live(subject(runtime, enforces).unwrap()).await;
    }
    if !has(runtime) || !is_root() {
        return;
    }
    for frozen in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let variable = (SCRATCH, scratch.path().to_str().unwrap());
        let options =
            OciOptions { runtime: runtime.into(), scratch: Some(scratch.path().into()), ..OciOptions::default() };
        let next = async || Oci::new(options).unwrap();
        suite::dies_with_its_worker(test, variable, frozen, |pid| left(scratch.path(), pid), next).await;
    }
}

#[tokio::test]
async fn what_is_missing_is_named() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let options = |runtime: &str| OciOptions {
        runtime: runtime.into(),
        scratch: Some(scratch.path().into()),
        ..OciOptions::default()
    };
    let refused = Oci::new(options("no-such-runtime")).unwrap_err();
    assert!(refused.to_string().starts_with("no-such-runtime cannot be run"), "{refused}");
    // One that says what is wrong is quoted, and nothing is left of the attempt.
    let broken = scratch.path().join("broken");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'no such luck' >&2\nexit 1\n";
    fs::write(&broken, script).unwrap();
    fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let driver = Oci::new(options(broken.to_str().unwrap())).unwrap();
    let (_home, workspace, outputs) = suite::home();
    let refused = driver.create(Spec::new(workspace, outputs)).await.unwrap_err();
    assert_eq!(refused.to_string(), "broken run: no such luck");
    assert_eq!(left(scratch.path(), std::process::id()), Vec::<String>::new());
}

#[tokio::test]
async fn a_runtime_that_is_stuck_is_not_waited_for() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let stuck = scratch.path().join("stuck");
    // It begins a container that says nothing, and then removes none.
    let script = "#!/bin/sh\n\
        [ \"$1\" = --version ] && exit 0\n\
        [ \"$3\" = delete ] && exec sleep 1000\n\
        mkdir \"$2/$8\"\n\
        sleep 1000 <&- >&- &\n\
        echo $! > \"$5\"\n\
        exec >&-\n\
        wait\n\
        exec sleep 1000\n";
    fs::write(&stuck, script).unwrap();
    fs::set_permissions(&stuck, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let options = OciOptions { runtime: stuck, scratch: Some(scratch.path().into()), ..OciOptions::default() };
    let driver = Oci::new(options).unwrap();
    let (_home, workspace, outputs) = suite::home();
    let create = tokio::time::timeout(Duration::from_secs(60), driver.create(Spec::new(workspace, outputs))).await;
    assert!(create.expect("it ends").is_err());
}

#[tokio::test]
async fn layers_are_what_they_are_elsewhere() {
    for runtime in ["runc", "crun", "runsc"] {
        let Some(mut subject) = subject(runtime, WALLS) else { continue };
        let Rootfs::Directory(image) = subject.rootfs.clone() else { panic!("a directory") };
        let layers = tempfile::tempdir().unwrap();
        let at = |name: &str| layers.path().join(name);
        fs::create_dir_all(at("top/etc")).unwrap();
        fs::write(at("top/etc/marker"), "of the upper layer").unwrap();
        fs::create_dir_all(at("lower/deep")).unwrap();
        fs::write(at("lower/deep/kept"), "kept").unwrap();
        fs::create_dir(at("upper")).unwrap();
        for open in ["lower/deep", "lower"] {
            fs::set_permissions(at(open), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        }
        subject.rootfs = Rootfs::Layers(vec![at("top"), image]);
        let workspace = Workspace::Layered { lower: vec![at("lower")], upper: at("upper") };
        let place = subject.place_with(|spec| spec.workspace = workspace).await;
        assert_eq!(place.bash("cat /etc/marker").await, "of the upper layer", "{runtime}");
        assert_eq!(place.bash("cat deep/kept; echo new > deep/more; cat deep/more").await, "keptnew", "{runtime}");
        place.sandbox.destroy().await.unwrap();
        assert_eq!(fs::read_to_string(at("upper/upper/deep/more")).unwrap(), "new\n");
        assert!(!at("lower/deep/more").exists());
        assert_eq!((subject.left)(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn what_a_session_keeps_is_limited() {
    for runtime in ["runc", "crun", "runsc"] {
        let Some(subject) = subject(runtime, WALLS) else { continue };
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        for name in ["base", "layer"] {
            fs::create_dir(at(name)).unwrap();
        }
        let limit = |spec: &mut Spec| {
            spec.workspace = Workspace::Layered { lower: vec![at("base")], upper: at("layer") };
            spec.limits.disk_bytes = Some(32 << 20);
        };
        let place = subject.place_with(limit).await;
        if let Status::Unavailable(why) = &place.sandbox.report().facilities[&Facility::DiskLimit] {
            return eprintln!("not run here: {why}");
        }
        // One that begins later must not keep the disk when this one ends.
        let other = subject.place().await;
        for directory in ["/workspace", "/mnt/session/outputs"] {
            let fill = format!("head -c 100000000 /dev/zero > {directory}/fill");
            assert_ne!(place.run(&["/bin/bash", "-c", &fill]).await.0.code, Some(0), "{runtime}: {directory}");
        }
        assert!(place.sandbox.usage().await.unwrap().disk_bytes > Some(40 << 20), "{runtime}");
        place.sandbox.destroy().await.unwrap();
        let image = palisade_sandbox::disk::image_of(&at("layer"));
        let loops = fs::read_dir("/sys/block").unwrap().flatten();
        let mut files = loops.filter_map(|it| fs::read_to_string(it.path().join("loop/backing_file")).ok());
        assert!(!files.any(|file| Path::new(file.trim()) == image), "{runtime}");
        assert_eq!(left(home.path(), 0), Vec::<String>::new(), "{runtime}");
        let again = subject.place_with(limit).await;
        assert_eq!(again.bash("rm fill && echo room > room && cat room").await, "room", "{runtime}");
        drop(other);
    }
}

#[tokio::test]
async fn the_hosts_programs_will_do() {
    for runtime in ["runc", "crun", "runsc"] {
        let Some(mut subject) = subject(runtime, WALLS) else { continue };
        subject.rootfs = Rootfs::Host;
        let place = subject.place().await;
        assert_eq!(
            place.bash("/usr/bin/env printf through; cat /etc/passwd | grep -c agent").await,
            "through1",
            "{runtime}"
        );
        assert_ne!(place.run(&["/bin/cat", "/etc/shadow"]).await.0.code, Some(0));
    }
}

/// Everything of a sandbox goes on from where it was: the shell's variables, what runs in the background, a call under way, its
/// clock, and files in memory.
#[tokio::test]
async fn processes_sleep_on_disk() {
    let Some(subject) = subject("runsc", GVISOR) else { return };
    assert!(subject.driver.capabilities().hibernate);
    let place = Arc::new(subject.place().await);
    place
        .bash(
            "x=kept; echo in memory > /tmp/note; echo on disk > file; (while :; do echo . >> beats; sleep 0.1; done) &",
        )
        .await;
    let detached = ExecRequest { detach: true, ..suite::argv(&["/bin/bash", "-c", "echo first; read; sleep 1000"]) };
    let mut detached = place.sandbox.exec(ExecRequest { stdin: true, ..detached }).await.unwrap();
    assert_eq!(detached.next().await.unwrap(), Some(Output::Stdout(b"first\n".to_vec())));
    // It may take two seconds, and sleeps three in the meantime.
    let call = {
        let place = place.clone();
        let input =
            json!({"command": "touch begun; for i in {1..10}; do sleep 0.1; done; echo done", "timeout_ms": 2500});
        tokio::spawn(async move { place.call("bash", input).await })
    };
    let begun = place.workspace().join("begun");
    suite::until("the call runs", || begun.exists()).await;
    let asleep = tempfile::tempdir().unwrap();
    place.sandbox.hibernate(asleep.path()).await.unwrap();
    assert!(place.sandbox.is_asleep());
    assert_eq!((subject.left)(), Vec::<String>::new());
    let beats = || fs::metadata(place.workspace().join("beats")).unwrap().len();
    let before = beats();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(beats(), before);
    assert!(matches!(place.sandbox.hibernate(asleep.path()).await, Err(Error::Ended)));
    assert!(!call.is_finished());

    let spec = subject.spec(&place.home);
    let woken = subject.driver.wake(spec, asleep.path()).await.unwrap();
    place.sandbox.wake(woken).await.unwrap();
    assert_eq!(call.await.unwrap(), ("done\n".trim().to_owned(), false));
    assert_eq!(place.bash("echo $x; cat /tmp/note file").await, "kept\nin memory\non disk");
    suite::until("the job goes on", || beats() > before).await;
    let names: Vec<_> = place.sandbox.processes().await.unwrap().into_iter().filter_map(|process| process.id).collect();
    assert_eq!(names, [detached.process()]);
    detached.signal(15).await.unwrap();
    assert_eq!(detached.next().await.unwrap(), None);
    place.sandbox.destroy().await.unwrap();
    assert_eq!((subject.left)(), Vec::<String>::new());
}

/// As after a restart of the worker: who waited is gone, and the driver is another.
#[tokio::test]
async fn another_worker_wakes_them() {
    let (Some(subject), Some(other)) = (subject("runsc", GVISOR), subject("runsc", GVISOR)) else { return };
    let keep = tempfile::tempdir().unwrap();
    let at = |name: &str| keep.path().join(name);
    for name in ["base", "layer", "asleep"] {
        fs::create_dir(at(name)).unwrap();
    }
    let layered = |spec: &mut Spec| {
        spec.workspace = Workspace::Layered { lower: vec![at("base")], upper: at("layer") };
        spec.limits.disk_bytes = Some(64 << 20);
    };
    let place = subject.place_with(layered).await;
    place.bash("echo changed > file").await;
    let more =
        ExecRequest { detach: true, ..suite::argv(&["/bin/bash", "-c", "echo one; sleep 1; echo two; sleep 1000"]) };
    let mut heard = place.sandbox.exec(more).await.unwrap();
    assert_eq!(heard.next().await.unwrap(), Some(Output::Stdout(b"one\n".to_vec())));
    let given_up = place.sandbox.exec(suite::argv(&["/bin/sleep", "777"])).await.unwrap();
    let input = json!({"command": "echo begun > begun; sleep 777"});
    let call = ToolCall { name: "bash".to_owned(), input, timeout: Duration::from_secs(1000) };
    let mut call = Box::pin(place.sandbox.tool(call));
    let begun = at("layer/upper/begun");
    tokio::select! {
        said = &mut call => panic!("{said:?}"),
        () = suite::until("the call runs", || begun.exists()) => {}
    }
    place.sandbox.hibernate(&at("asleep")).await.unwrap();
    let process = heard.process();
    drop((heard, given_up));
    drop(call);
    let home = place.home;
    drop(place.sandbox);

    let mut spec = Spec { rootfs: subject.rootfs.clone(), ..other.spec(&home) };
    layered(&mut spec);
    let sandbox = other.driver.wake(spec, &at("asleep")).await.unwrap().into_sandbox();
    let place = suite::Place::of(sandbox, home);
    assert_eq!(place.bash("cat file").await, "changed");
    let given_up = async || {
        let all = place.sandbox.processes().await.unwrap();
        all.iter().all(|process| !process.argv.iter().any(|word| word.contains("777")))
    };
    let look = async {
        while !given_up().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), look).await.expect("what nobody waits for is given up");
    let mut heard = place.sandbox.attach(process, Some(4), true).await.unwrap();
    assert_eq!(heard.next().await.unwrap(), Some(Output::Stdout(b"two\n".to_vec())));
    let report = place.sandbox.report();
    assert!(GVISOR.iter().all(|facility| report.enforces(*facility)), "{report:?}");
    place.sandbox.destroy().await.unwrap();
    assert_eq!([(subject.left)(), (other.left)()].concat(), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_sleep_or_wake_is_refused() {
    let Some(subject) = subject("runsc", GVISOR) else { return };
    let (keep, asleep) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = subject.place().await;
    place.bash("x=kept").await;
    // There is no such directory, or the runtime cannot write there: the sandbox goes on.
    let nowhere = place.sandbox.hibernate(&keep.path().join("missing")).await.unwrap_err();
    assert!(matches!(nowhere, Error::Scratch { .. }), "{nowhere}");
    fs::write(keep.path().join("asleep.json"), "").unwrap();
    fs::create_dir(keep.path().join("image")).unwrap();
    fs::create_dir(keep.path().join("image/checkpoint.img")).unwrap();
    let refused = place.sandbox.hibernate(keep.path()).await.unwrap_err();
    assert!(matches!(refused, Error::Scratch { .. }), "{refused}");
    assert!(!place.sandbox.is_asleep());
    assert_eq!(place.bash("echo $x").await, "kept");
    place.sandbox.hibernate(asleep.path()).await.unwrap();

    let note = asleep.path().join("asleep.json");
    let written = fs::read_to_string(&note).unwrap();
    let wake = async |driver: &Arc<dyn Driver>| {
        driver.wake(subject.spec(&place.home), asleep.path()).await.map(drop).unwrap_err().to_string()
    };
    if let Some(runc) = self::subject("runc", WALLS) {
        let why = wake(&runc.driver).await;
        assert!(why.contains("cannot be woken: they are gVisor's, and this driver's runtime is runc"), "{why}");
        let other = runc.place().await;
        let refused = other.sandbox.hibernate(keep.path()).await.unwrap_err();
        assert!(matches!(refused, Error::Awake), "{refused}");
        assert_eq!(other.bash("echo here").await, "here");
    }
    for (text, wanted) in [
        ("{", "asleep.json: EOF"),
        (&*written.replace("\"cell\":", "\"cell\":1,\"was\":"), "another version of palisade"),
        (&*written.replace("runsc version", "runsc version other"), "written with runsc version other"),
    ] {
        fs::write(&note, text).unwrap();
        let why = wake(&subject.driver).await;
        assert!(why.contains(wanted), "{why}");
    }
    fs::write(&note, &written).unwrap();
    // Half of it is none of it.
    let image = asleep.path().join("image/checkpoint.img");
    let whole = fs::read(&image).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"", &[&whole[..whole.len() - 100], &[7; 100][..]].concat()] {
        fs::write(&image, damaged).unwrap();
        let why = wake(&subject.driver).await;
        assert!(why.starts_with("runsc restore"), "{why}");
    }
    fs::write(&image, &whole).unwrap();
    let woken = subject.driver.wake(subject.spec(&place.home), asleep.path()).await.unwrap();
    place.sandbox.wake(woken).await.unwrap();
    assert_eq!(place.bash("echo $x").await, "kept");
    place.sandbox.destroy().await.unwrap();
    assert_eq!((subject.left)(), Vec::<String>::new());
}

macro_rules! runtime {
    ($module:ident, $program:literal, $enforces:expr, $bomb:ident $(, $more:ident)*) => {
        mod $module {
            #[tokio::test]
            async fn it_dies_with_its_worker() {
                let test = concat!("drivers::oci::", stringify!($module), "::it_dies_with_its_worker");
                super::death($program, $enforces, test).await;
            }

            crate::drivers::conforms!(
                super::subject($program, $enforces),
                [
                    the_six_tools_work,
                    commands_have_input_output_and_an_end,
                    a_terminal_has_a_size,
                    files_go_in_and_come_back,
                    a_detached_command_is_listed_and_heard_again,
                    a_port_inside_is_reached,
                    a_command_gets_what_the_spec_says_and_no_more,
                    what_is_written_is_the_hosts,
                    nobody_has_a_privilege,
                    there_is_no_network,
                    the_network_leads_to_the_worker_or_is_refused,
                    $bomb,
                $($more,)*
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

runtime!(
    runc,
    "runc",
    super::WALLS,
    limits_hold,
    the_cell_cannot_be_killed,
    a_terminal_has_jobs,
    what_is_counted_for_users_is_limited,
    names_in_memory_are_limited,
    the_machine_tells_little_about_itself
);
runtime!(
    crun,
    "crun",
    super::WALLS,
    limits_hold,
    the_cell_cannot_be_killed,
    a_terminal_has_jobs,
    what_is_counted_for_users_is_limited,
    names_in_memory_are_limited,
    the_machine_tells_little_about_itself
);
runtime!(gvisor, "runsc", super::GVISOR, a_bomb_ends_the_sandbox_at_most, no_other_signal_ends_the_cell);
