//! One suite for all drivers. Each driver's file is a list of calls to it, and what is the driver's alone.

mod docker;
mod oci;
mod process;
mod root;
mod suite;

/// Makes a test of each of the suite's parts that are named.
macro_rules! conforms {
    ($subject:expr, [$($part:ident),* $(,)?]) => {
        $(
            #[tokio::test]
            async fn $part() {
                if let Some(subject) = $subject {
                    crate::drivers::suite::$part(subject).await;
                }
            }
        )*
    };
}
pub(crate) use conforms;

/// Whether a program is here; says so when it is not, which is a failure where everything should be installed.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]);
    let found = known.into_iter().any(|directory| directory.join(program).is_file());
    found || not_run(&format!("{program} is not installed"))
}

/// Whether this is root, as above.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root() || not_run("this is not root")
}

#[expect(clippy::print_stdout, reason = "a test that is not run says why")]
fn not_run(why: &str) -> bool {
    println!("not run: {why}");
    assert!(std::env::var_os("CI").is_none(), "not run: {why}");
    false
}
