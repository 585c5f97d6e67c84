//! What changed, as a table and as a patch.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use palisade_checkpoint::{Change, ChangeKind, EntryKind};

use crate::rig::{Rig, set_xattr, whiteout};
use crate::round_trip::noise;

fn table(changes: &[Change]) -> Vec<String> {
    let kind = |kind: ChangeKind| format!("{kind:?}").to_lowercase();
    let size =
        |version: Option<palisade_checkpoint::Version>| version.map_or(String::from("-"), |it| it.size.to_string());
    changes.iter().map(|it| format!("{} {} {} {}", kind(it.kind), it.path, size(it.before), size(it.after))).collect()
}

fn base(rig: &Rig) -> std::path::PathBuf {
    let base = rig.make("base");
    fs::create_dir_all(base.join("d/sub")).unwrap();
    fs::write(base.join("d/sub/deep"), "one\ntwo\nthree\n").unwrap();
    fs::write(base.join("d/same"), noise(3, 90_000)).unwrap();
    fs::write(base.join("gone"), "gone\n").unwrap();
    fs::write(base.join("kind"), "file\n").unwrap();
    fs::write(base.join("script"), "#!/bin/sh\n").unwrap();
    fs::write(base.join("binary"), [0, 1, 2]).unwrap();
    base
}

fn upper(rig: &Rig) -> std::path::PathBuf {
    let upper = rig.make("upper");
    fs::create_dir_all(upper.join("d/sub")).unwrap();
    fs::write(upper.join("d/sub/deep"), "one\n2\nthree\n").unwrap();
    // Copied up and not changed.
    fs::write(upper.join("d/same"), noise(3, 90_000)).unwrap();
    whiteout(&upper.join("gone"));
    symlink("d/same", upper.join("kind")).unwrap();
    fs::write(upper.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(upper.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(upper.join("binary"), [0, 1, 3]).unwrap();
    fs::write(upper.join("new"), "new\n").unwrap();
    upper
}

#[test]
fn a_checkpoint_against_its_base() {
    let rig = Rig::new();
    let (base, upper) = (base(&rig), upper(&rig));
    let id = rig.capture(&upper).checkpoint.id;
    let changes = rig.store.diff(None, &id, Some(&base)).unwrap();
    assert_eq!(
        table(&changes),
        [
            "modified binary 3 3",
            "modified d/sub/deep 14 12",
            "removed gone 5 -",
            "type kind 5 6",
            "added new - 4",
            "mode script 10 10",
        ]
    );
    let kinds = changes[3].before.zip(changes[3].after).unwrap();
    assert_eq!((kinds.0.kind, kinds.1.kind), (EntryKind::File, EntryKind::Symlink));
    let patch = String::from_utf8(rig.store.patch(None, &id, Some(&base)).unwrap()).unwrap();
    for part in [
        "-two\n+2\n",
        "deleted file mode 100644\n--- a/gone\n+++ /dev/null",
        "Binary files a/binary and b/binary differ",
        "old mode 100644\nnew mode 100755",
    ] {
        assert!(patch.contains(part), "{part:?} in {patch}");
    }
    assert!(!patch.contains("d/same b/d/same"), "{patch}");
    // Without the base all that is known is what the layer has.
    let changes = rig.store.diff(None, &id, None).unwrap();
    assert_eq!(table(&changes).iter().filter(|it| it.starts_with("added")).count(), 8);
    assert!(table(&changes).contains(&"removed gone - -".to_owned()), "{changes:?}");
}

#[test]
fn two_checkpoints() {
    let rig = Rig::new();
    let (base, upper) = (base(&rig), upper(&rig));
    let first = rig.capture(&upper).checkpoint.id;
    assert_eq!(rig.store.diff(Some(&first), &first, Some(&base)).unwrap(), []);
    // What was hidden is back, what was changed is hidden, a directory hides all that the base had there.
    fs::remove_file(upper.join("gone")).unwrap();
    fs::remove_file(upper.join("new")).unwrap();
    fs::remove_dir_all(upper.join("d")).unwrap();
    fs::create_dir(upper.join("d")).unwrap();
    set_xattr(&upper.join("d"), "user.overlay.opaque", b"y");
    fs::write(upper.join("d/same"), b"other").unwrap();
    let second = rig.capture(&upper).checkpoint.id;
    let changes = rig.store.diff(Some(&first), &second, Some(&base)).unwrap();
    assert_eq!(
        table(&changes),
        [
            "modified d/same 90000 5",
            "removed d/sub 0 -",
            "removed d/sub/deep 12 -",
            "added gone - 5",
            "removed new 4 -"
        ]
    );
    let back = rig.store.diff(Some(&second), &first, Some(&base)).unwrap();
    assert_eq!(back.len(), changes.len());
    // Only in the base and hidden by the second.
    fs::write(base.join("d/only-base"), b"x").unwrap();
    let changes = table(&rig.store.diff(Some(&first), &second, Some(&base)).unwrap());
    assert!(changes.contains(&"removed d/only-base 1 -".to_owned()), "{changes:?}");
}

#[test]
fn git_applies_the_patch() {
    let rig = Rig::new();
    let (base, upper) = (base(&rig), upper(&rig));
    // A patch for a binary only says so.
    fs::remove_file(upper.join("binary")).unwrap();
    fs::write(upper.join("näme \"x\""), "odd\n").unwrap();
    fs::write(upper.join("no end"), "no line end").unwrap();
    fs::write(upper.join("empty"), "").unwrap();
    let id = rig.capture(&upper).checkpoint.id;
    let patch = rig.store.patch(None, &id, Some(&base)).unwrap();
    let file = rig.dir.path().join("patch");
    fs::write(&file, &patch).unwrap();
    let applied = match Command::new("git").args(["apply", "--unsafe-paths"]).arg(&file).current_dir(&base).output() {
        Ok(applied) => applied,
        Err(why) => {
            eprintln!("not tried: git cannot be run: {why}");
            return;
        }
    };
    assert!(
        applied.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&applied.stderr),
        String::from_utf8_lossy(&patch)
    );
    let text = |name: &str| fs::read_to_string(base.join(name)).unwrap();
    assert_eq!(
        (text("d/sub/deep"), text("new"), text("näme \"x\""), text("no end")),
        ("one\n2\nthree\n".into(), "new\n".into(), "odd\n".into(), "no line end".into())
    );
    assert_eq!((fs::read_link(base.join("kind")).unwrap().as_path(), text("empty").len()), (Path::new("d/same"), 0));
    assert!(!base.join("gone").exists());
    assert_eq!(fs::metadata(base.join("script")).unwrap().permissions().mode() & 0o777, 0o755);
}
