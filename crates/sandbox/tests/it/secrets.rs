//! What belongs to the worker and to the host stays there.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;

use palisade_sandbox::MemoryMount;
use serde_json::json;

use crate::rig::{Rig, again, is_again};

const MARKER: &str = "a-marker-that-must-not-be-seen";

/// Everything that a process can find out about others, searched for the marker.
const SEARCH: &str = r#"
    for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/maps; do tr '\0' '\n' < $f; done 2>/dev/null
    for f in /proc/[0-9]*/fd/*; do l=$(readlink $f); echo $l; case $l in pipe:*|anon*) ;; *) head -c 4096 $f;; esac; done 2>/dev/null
    for n in 3 4 5 6 7 8 10 11 12 13 14 15 20 30 40 41 50 63 100 200; do timeout 1 head -c 100 <&$n; done 2>/dev/null
    env; true"#;

#[tokio::test]
async fn variables_and_descriptors_of_the_worker_stay_outside() {
    if !is_again() {
        let mut child = again("secrets::variables_and_descriptors_of_the_worker_stay_outside");
        let status = child.env("WORKER_SECRET", MARKER).status().unwrap();
        assert!(status.success());
        return;
    }
    assert_eq!(std::env::var("WORKER_SECRET").unwrap(), MARKER);
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("open"), MARKER).unwrap();
    // A descriptor that whoever opened it forgot to close on execution.
    let leaky = fs::File::open(home.path().join("open")).unwrap();
    let leaky = rustix::io::fcntl_dupfd_cloexec(&leaky, 40).unwrap();
    rustix::io::fcntl_setfd(&leaky, rustix::io::FdFlags::empty()).unwrap();
    assert!(leaky.as_raw_fd() >= 40);
    let rig = Rig::new().await;
    for found in [rig.bash(SEARCH).await, rig.run(&["/bin/bash", "-c", SEARCH]).await.1] {
        assert!(found.contains("PATH="), "the search itself must work: {found}");
        assert!(!found.contains(MARKER), "{found}");
        assert!(!found.contains("WORKER_SECRET"), "{found}");
    }
}

#[tokio::test]
async fn a_command_inherits_three_descriptors_and_no_more() {
    let rig = Rig::new().await;
    let list =
        "opendir D, '/proc/self/fd'; print join ' ', sort { $a <=> $b } grep { /^\\d+$/ && $_ != fileno(D) } readdir D";
    assert_eq!(rig.perl(list).await, "0 1 2");
    assert_eq!(rig.bash(&format!("perl -e \"{}\"", list.replace('$', "\\$"))).await, "0 1 2");
    // The socket to the worker is the one thing of the cell's that would be worth having.
    let sockets = "for f in /proc/[0-9]*/fd/*; do readlink $f; done 2>/dev/null | grep -c socket";
    assert_eq!(rig.run(&["/bin/bash", "-c", sockets]).await.1, "0");
}

#[tokio::test]
async fn the_cell_cannot_be_looked_into() {
    let rig = Rig::new().await;
    for file in
        ["environ", "mem", "maps", "fd/3", "exe", "root/etc/shadow", "cwd/x", "stack", "syscall", "auxv", "map_files"]
    {
        let (status, said) = rig.run(&["/bin/cat", &format!("/proc/1/{file}")]).await;
        assert_ne!(status.code, Some(0), "{file}: {said}");
    }
    assert_eq!(rig.run(&["/bin/ls", "/proc/1/fd"]).await.0.code, Some(2));
    // Nor is its program there to be written, by that name or any other.
    let overwrite =
        "open F, '+<', '/proc/1/exe' and print 'open'; open F, '>', '/proc/1/mem' and print 'open'; print 'done'";
    assert_eq!(rig.perl(overwrite).await, "done");
    assert_eq!(rig.bash("cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c PALISADE").await, "0");
}

#[tokio::test]
async fn links_lead_nowhere_outside() {
    let rig = Rig::new().await;
    let secret = rig.home.path().join("secret");
    fs::write(&secret, MARKER).unwrap();
    let secret = secret.to_str().unwrap().to_owned();
    // What a repository that was checked out outside can hold.
    symlink(&secret, rig.workspace().join("link")).unwrap();
    symlink("/", rig.workspace().join("top")).unwrap();
    symlink("../secret", rig.workspace().join("up")).unwrap();
    symlink("/proc/self/root", rig.workspace().join("root")).unwrap();
    symlink("loop", rig.workspace().join("loop")).unwrap();
    for path in ["link", "up", "../secret", &secret, &format!("top/{secret}"), &format!("root/{secret}"), "loop"] {
        for tool in ["read", "edit", "write", "grep"] {
            let input = json!({
                "file_path": path, "path": path, "pattern": "marker", "content": "overwritten",
                "old_string": "marker", "new_string": "overwritten",
            });
            let (text, is_error) = rig.call(tool, input).await;
            assert!(is_error && !text.contains(MARKER), "{tool} {path}: {text}");
        }
        let (status, text) = rig.run(&["/bin/cat", path]).await;
        assert!(status.code == Some(1) && !text.contains(MARKER), "{path}: {text}");
    }
    for way in ["/proc/self/root", "/proc/1/root", "/proc/self/cwd/..", "/proc/thread-self/root/..", "/.."] {
        assert!(!rig.bash(&format!("cat {way}{secret}; cat {way}/etc/shadow; ls {way}/root")).await.contains(MARKER));
    }
    let hard = rig.bash(&format!("ln {secret} hard; ln /etc/passwd hard2; ln /proc/1/exe hard3; ls")).await;
    assert!(!hard.lines().any(|line| line.starts_with("hard")), "{hard}");
    assert_eq!(fs::read_to_string(&secret).unwrap(), MARKER);
}

#[tokio::test]
async fn the_host_is_not_to_be_seen_in_the_file_system() {
    let rig = Rig::new().await;
    let top = rig.bash("ls -A / | tr '\\n' ' '").await;
    for name in ["root", "boot", "srv", "var", "sys", "media"] {
        assert!(!top.split_whitespace().any(|entry| entry == name), "{name} in {top}");
    }
    // tidy: place allowed: the sandbox must not show what these name
    for path in ["/root", "/etc/shadow", "/etc/ssl/private", "/var/run/docker.sock", "/sys/kernel"] {
        let (status, said) = rig.run(&["/bin/ls", path]).await;
        assert_eq!(status.code, Some(2), "{path}: {said}");
    }
    // The host's keys and settings for SSH are not there; what a session may have of its own is empty.
    assert_eq!(rig.bash("ls /etc/ssh; wc -c < /etc/ssh/ssh_config").await, "ssh_config\n0");
    assert_eq!(rig.bash("cat /etc/passwd | wc -l").await, "3");
    let processes = rig.bash("ls /proc | grep -c '^[0-9]'").await.parse::<u32>().unwrap();
    assert!(processes < 10, "{processes}");
}

#[tokio::test]
async fn what_is_read_only_stays_as_it_is() {
    let memory = tempfile::tempdir().unwrap();
    fs::write(memory.path().join("note"), "kept").unwrap();
    let host = memory.path().to_owned();
    let rig = Rig::with(|spec| spec.memory.push(MemoryMount { host, name: "notes".to_owned(), read_only: true })).await;
    let places = "/x /etc/x /etc/passwd /usr/x /usr/bin/env /bin/x /lib/x /dev/x /dev/null/x /proc/x /proc/sys/kernel/hostname \
                  /proc/sys/kernel/core_pattern /proc/sys/vm/overcommit_memory /proc/sysrq-trigger /proc/1/oom_score_adj \
                  /mnt/x /mnt/memory/x /mnt/memory/notes/note /mnt/memory/notes/x";
    for place in places.split_whitespace() {
        let (status, said) = rig.run(&["/bin/bash", "-c", &format!("echo h > {place}")]).await;
        assert_ne!(status.code, Some(0), "{place}: {said}");
    }
    assert_eq!(
        rig.bash("cat /mnt/memory/notes/note; rm -f /mnt/memory/notes/note /usr/bin/env 2>/dev/null; echo").await,
        "kept"
    );
    assert_eq!(fs::read_to_string(memory.path().join("note")).unwrap(), "kept");
    let (text, is_error) = rig.call("write", json!({"file_path": "/mnt/memory/notes/note", "content": "x"})).await;
    assert!(is_error && text.contains("read-only"), "{text}");
}

#[tokio::test]
async fn a_directory_swapped_for_a_link_gives_nothing_of_the_host_away() {
    // Only with root are directories given to another user.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), MARKER).unwrap();
    fs::hard_link(outside.path().join("file"), outside.path().join("other")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let (workspace, outputs) = (home.path().join("workspace"), home.path().join("outputs"));
    fs::create_dir_all(workspace.join("sub")).unwrap();
    fs::create_dir(&outputs).unwrap();
    symlink(outside.path(), workspace.join("sub/link")).unwrap();
    fs::hard_link(outside.path().join("file"), workspace.join("sub/hard")).unwrap();
    let rig = Rig::with(|spec| (spec.workspace, spec.outputs) = (workspace.into(), outputs)).await;
    let denied = rig.bash("echo x > sub/hard; echo x > sub/link/file; touch sub/own && echo mine").await;
    assert!(denied.contains("mine"), "{denied}");
    assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), MARKER);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(outside.path().join("file")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(outside.path()).unwrap().uid(), 0);
}
