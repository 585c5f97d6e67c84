//! `palisade sandbox test`: the suite itself is the sandbox crate's; this is what is said about it.

use crate::rig::{Rig, objects};

#[test]
fn attempts_are_listed_and_made() {
    let rig = Rig::new();
    let listed = rig.objects(&["sandbox", "test", "--list"]);
    assert!(listed.len() >= 100 && listed.iter().all(|attempt| attempt["tries"].is_string()), "{}", listed.len());
    let output = rig.run(&["sandbox", "test", "--only", "cores", "--output", "json"]);
    let made = objects(&String::from_utf8(output.stdout).unwrap());
    let (verdict, rest) = made.split_last().unwrap();
    assert_eq!((&verdict["holds"], &verdict["through"]), (&true.into(), &0.into()), "{made:?}");
    assert!(output.status.success());
    let results: Vec<&str> = rest.iter().filter_map(|made| made["result"].as_str()).collect();
    assert_eq!(results, ["refused", "refused"]);
}

#[test]
fn what_is_not_there_is_said() {
    let rig = Rig::new();
    for (args, code, said) in [
        (["--only", "nonsense"], 1, "no attempt's name begins with"),
        (["--driver", "none"], 64, "possible values: native, oci, docker, process"),
        (["--driver", "docker"], 1, "needs an image"),
        (["--driver", "process"], 1, "development"),
    ] {
        let output = rig.run(&[&["sandbox", "test"], args.as_slice()].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && error.contains(said), "{error}");
    }
}
