//! Checkpoints from the command line.

use std::fs;

use serde_json::Value;

use crate::rig::Rig;

/// A tar archive of one file.
fn archive(name: &str, text: &str) -> Vec<u8> {
    let mut header = [0u8; 512];
    let mut put = |place: usize, text: &str| header[place..place + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0001750\0");
    put(116, "0001750\0");
    put(124, &format!("{:011o}\0", text.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    bytes
}

fn objects(rig: &Rig, args: &[&str]) -> Vec<Value> {
    let said = rig.text(&[&["--output", "json"], args].concat());
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_checkpoint_goes_out_and_comes_back() {
    let rig = Rig::new();
    fs::write(rig.path("one.tar"), archive("file", "one\n")).unwrap();
    fs::write(rig.path("two.tar"), archive("file", "two\n")).unwrap();
    let import = |file: &str, label: &str| {
        objects(&rig, &["checkpoints", "import", file, "--base", "b", "--label", label])[0]["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (one, two) = (import("one.tar", "first"), import("two.tar", "second"));
    assert_eq!(objects(&rig, &["checkpoints", "list"]).len(), 2);
    assert_eq!(objects(&rig, &["checkpoints", "show", "first"])[0]["id"], one.as_str());
    assert!(rig.text(&["checkpoints", "list"]).contains(&two));
    let changes = objects(&rig, &["checkpoints", "diff", "first", &two[..12]]);
    assert_eq!((changes.len(), &changes[0]["kind"], &changes[0]["path"]), (1, &"modified".into(), &"file".into()));
    let patch = rig.text(&["checkpoints", "diff", "first", "second", "--patch"]);
    assert!(patch.contains("-one\n+two\n"), "{patch}");

    rig.text(&["checkpoints", "export", "first", "out.tar"]);
    assert_eq!(crate::rig::mode(&rig.path("out.tar")), 0o600);
    assert_eq!(
        rig.run(&["checkpoints", "export", "first", "out.tar"]).status.code(),
        Some(1),
        "an export replaces nothing"
    );
    let again = objects(&rig, &["checkpoints", "import", "out.tar", "--store", "other"]);
    assert_eq!(again[0]["id"], one.as_str());
    rig.text(&["checkpoints", "push", "second", "remote"]);
    assert_eq!(crate::rig::mode(&rig.path("remote")), 0o700);
    rig.text(&["checkpoints", "pull", &two, "remote", "--store", "other"]);
    assert_eq!(objects(&rig, &["checkpoints", "verify", "--store", "other"])[0]["checkpoints"], 2);

    let pruned = &objects(&rig, &["checkpoints", "prune", "--keep-last", "1", "--labelled"])[0];
    assert_eq!(pruned["checkpoints"].as_array().unwrap().len(), 1);
    // What is broken is named, and the command fails.
    let pack = fs::read_dir(rig.path("other/packs")).unwrap().next().unwrap().unwrap().path();
    fs::write(&pack, b"broken").unwrap();
    let output = rig.run(&["checkpoints", "verify", "--store", "other"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(pack.file_name().unwrap().to_str().unwrap()), "{said}");
    let missing = rig.run(&["checkpoints", "show", "nothing"]);
    assert!(String::from_utf8(missing.stderr).unwrap().contains("there is no checkpoint nothing"));
}
