//! Files into a sandbox and out of it, and archives that were made to do harm.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use palisade_sandbox::{Output, archive};

use crate::rig::Rig;

/// Sends an archive in: the exit status and what was said.
async fn put(rig: &Rig, path: &str, archive: &[u8]) -> (Option<i32>, String) {
    let exec = rig.sandbox.copy_in(path).await.unwrap();
    exec.write(archive).await.unwrap();
    exec.close_stdin().await.unwrap();
    let (status, _, said) = exec.wait().await.unwrap();
    (status.code, String::from_utf8(said).unwrap())
}

/// Fetches an archive.
async fn get(rig: &Rig, path: &str) -> Result<Vec<u8>, String> {
    let mut exec = rig.sandbox.copy_out(path).await.unwrap();
    let (mut archive, mut said) = (Vec::new(), Vec::new());
    while let Some(output) = exec.next().await.unwrap() {
        match output {
            Output::Stdout(bytes) => archive.extend(bytes),
            Output::Stderr(bytes) => said.extend(bytes),
            Output::Lost(_) => panic!("an archive has no gaps"),
        }
    }
    match exec.status().unwrap().code {
        Some(0) => Ok(archive),
        _ => Err(String::from_utf8(said).unwrap()),
    }
}

/// One entry, whatever its path.
fn entry(path: &str, kind: tar::EntryType, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o6755);
    header.set_mtime(1_000_000_000);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive_of(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend([0; 1024]);
    bytes
}

#[tokio::test]
async fn a_tree_goes_in_and_comes_back_as_it_was() {
    let rig = Rig::new().await;
    let from = tempfile::tempdir().unwrap();
    let tree = from.path().join("tree");
    std::fs::create_dir_all(tree.join("deep/er")).unwrap();
    std::fs::write(tree.join("run"), "#!/bin/sh\necho ran\n").unwrap();
    std::fs::set_permissions(tree.join("run"), std::fs::Permissions::from_mode(0o751)).unwrap();
    std::fs::write(tree.join(format!("deep/er/{}", "n".repeat(180))), vec![7; 3_000_000]).unwrap();
    symlink("../run", tree.join("deep/link")).unwrap();
    symlink("/etc/passwd", tree.join("out")).unwrap();
    let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_234_567_890);
    std::fs::File::options().append(true).open(tree.join("run")).unwrap().set_modified(then).unwrap();
    let mut packed = Vec::new();
    let moved = archive::pack(&tree, &mut packed).unwrap();
    assert_eq!((moved.entries, moved.bytes), (7, 3_000_019));
    assert_eq!(put(&rig, "/workspace", &packed).await, (Some(0), String::new()));
    assert_eq!(
        rig.bash("tree/run; stat -c '%a %Y' tree/run; readlink tree/out tree/deep/link").await,
        "ran\n751 1234567890\n/etc/passwd\n../run"
    );
    // Under a name that is not there yet, and over what is.
    assert_eq!(put(&rig, "other", &packed).await.0, Some(0));
    assert_eq!(put(&rig, "/workspace", &packed).await.0, Some(0));
    assert_eq!(rig.bash("diff -r --no-dereference tree other && ls -A").await, "other\ntree");
    let back = get(&rig, "other").await.unwrap();
    let to = tempfile::tempdir().unwrap();
    archive::unpack(&back[..], to.path()).unwrap();
    let mut same = std::process::Command::new("diff");
    same.args(["-r", "--no-dereference"]).arg(&tree).arg(to.path().join("other"));
    assert!(same.status().unwrap().success());
    assert_eq!(std::fs::metadata(to.path().join("other/run")).unwrap().modified().unwrap(), then);
    assert!(get(&rig, "/no/such").await.unwrap_err().contains("No such file"));
    assert!(put(&rig, "/no/such/place", &packed).await.1.contains("No such file"));
}

#[tokio::test]
async fn no_archive_writes_outside_its_place() {
    use tar::EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let rig = Rig::new().await;
    rig.bash("mkdir place; echo safe > /tmp/target; ln -s /tmp planted; ln -s /tmp place/inside; ln -s /tmp/target place/file").await;
    for (name, entries) in [
        ("up", vec![entry("../escaped", Regular, "", b"x")]),
        ("deep up", vec![entry("a/../../escaped", Regular, "", b"x")]),
        ("absolute", vec![entry("/tmp/escaped", Regular, "", b"x")]),
        ("through a link of its own", vec![entry("l", Symlink, "/tmp", b""), entry("l/escaped", Regular, "", b"x")]),
        ("through a link that was there", vec![entry("inside/escaped", Regular, "", b"x")]),
        (
            "a directory that is a link",
            vec![entry("inside", Directory, "", b""), entry("inside/escaped", Regular, "", b"x")],
        ),
        ("a hard link up", vec![entry("h", Link, "../../tmp/target", b""), entry("h", Regular, "", b"x")]),
        ("a hard link through a link", vec![entry("h", Link, "inside/target", b"")]),
        ("a device", vec![entry("d", Char, "", b"")]),
        ("a disk", vec![entry("d", Block, "", b"")]),
        ("a pipe", vec![entry("d", Fifo, "", b"")]),
        (
            "deep",
            vec![
                entry(&"d/".repeat(49), Regular, "", b""),
                entry(&format!("{}/x", "a/".repeat(40)), Regular, "", &[0; 3]),
            ],
        ),
    ] {
        let (status, said) = put(&rig, "/workspace/place", &archive_of(&entries)).await;
        if name != "deep" {
            assert_eq!(status, Some(1), "{name}: {said}");
            assert!(said.contains("refused"), "{name}: {said}");
        }
        let found = rig
            .bash("find / -xdev -name escaped 2>/dev/null; find /tmp /workspace -name escaped; cat /tmp/target")
            .await;
        assert_eq!(found, "safe", "{name}");
    }
    // A file in place of a link replaces the link, not what it points to; set-user-id is not taken on.
    let (status, said) = put(&rig, "/workspace/place", &archive_of(&[entry("file", Regular, "", b"new")])).await;
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(rig.bash("cat /tmp/target; cat place/file; echo; stat -c %a place/file").await, "safe\nnew\n755");
    // Garbage, and an end that comes too soon.
    let whole = archive_of(&[entry("part", Regular, "", &[1; 100_000])]);
    for broken in [&b"nonsense".repeat(1000)[..], &whole[..50_000], &[0xff; 4096]] {
        let (status, said) = put(&rig, "/workspace/place", broken).await;
        assert_eq!(status, Some(1), "{said}");
    }
    assert!(!rig.bash("ls -A place; cat /tmp/target").await.contains("palisade-"));
    assert_eq!(rig.bash("ls place/part 2>&1 | grep -c 'No such'").await, "1", "no file is there in part");
}

#[tokio::test]
async fn a_link_inside_leads_nowhere_but_inside() {
    let rig = Rig::new().await;
    // The host's own file of this name does not have this line.
    rig.bash("ln -s /etc x; ln -s /etc/hostname y; ln -s / root").await;
    let said = get(&rig, "/workspace/y").await.unwrap();
    let to = tempfile::tempdir().unwrap();
    archive::unpack(&said[..], to.path()).unwrap();
    assert_eq!(
        std::fs::read_link(to.path().join("y")).unwrap(),
        Path::new("/etc/hostname"),
        "the link, not its target"
    );
    let (status, said) =
        put(&rig, "/workspace/x/new", &archive_of(&[entry("new", tar::EntryType::Regular, "", b"x")])).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(!Path::new("/etc/new").exists());
    // What is neither file nor link is said to be left out.
    rig.bash("mkdir odd; mkfifo odd/pipe; echo > odd/file").await;
    let mut exec = rig.sandbox.copy_out("odd").await.unwrap();
    let mut said = Vec::new();
    while let Some(output) = exec.next().await.unwrap() {
        if let Output::Stderr(bytes) = output {
            said.extend(bytes);
        }
    }
    assert!(String::from_utf8(said).unwrap().contains("left out") && exec.status().unwrap().code == Some(0));
}
