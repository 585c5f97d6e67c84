//! Storage that refuses: a test starts another of its program in a place where writes fail.

use std::path::PathBuf;
use std::process::Command;

/// Names the place to the other half.
const PLACE: &str = "PALISADE_TEST_STORAGE";

/// Where the half that is started works; none when it was not started by one of these, and then there is nothing for it to do.
pub fn place() -> Option<PathBuf> {
    std::env::var_os(PLACE).map(PathBuf::from)
}

/// Runs the test `half` of this program in a mount namespace whose [`place`] is a file system of so many MiB, and gives what it printed.
///
/// # Panics
/// When it cannot be started, or fails.
pub fn on_a_small_disk(half: &str, mebibytes: u32) -> String {
    // A mount namespace of its own needs root, or a user namespace that has one.
    let namespaces = if rustix::process::geteuid().is_root() { "-m" } else { "-Urm" };
    let mount = format!(r#"mount -t tmpfs -o size={mebibytes}m,mode=700 none "${PLACE}""#);
    let mut command = Command::new("unshare");
    command.args([namespaces, "sh", "-c", &format!("{mount} && {}", again(half))]);
    run(command, "unshare (util-linux) makes the small disk of this test")
}

/// Runs the test `half` of this program so that a write beyond the limit of a file's size is an error, not its end.
///
/// # Panics
/// When it cannot be started, or fails.
pub fn with_short_files(half: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("trap '' XFSZ; {}", again(half))]);
    run(command, "there is a shell")
}

fn again(half: &str) -> String {
    format!(r#"exec "$0" --exact {half} --nocapture"#)
}

fn run(mut command: Command, needs: &str) -> String {
    let place = tempfile::tempdir().expect("a place for the test");
    command.arg(std::env::current_exe().expect("this program has a path")).env(PLACE, place.path());
    let output = command.output().expect(needs);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    out.into_owned()
}
