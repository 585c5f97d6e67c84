//! Workspaces and roots that are made of layers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use palisade_sandbox::{Rootfs, Workspace};
use serde_json::json;

use crate::rig::Rig;

/// Copies programs and the libraries that they are linked with into a root file system.
fn copy_programs(root: &Path, programs: &[&str]) {
    let mut files: Vec<String> = programs.iter().map(|&program| program.to_owned()).collect();
    for program in programs {
        let said = Command::new("ldd").arg(program).output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        files.extend(said.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    for file in files {
        let to = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&file, &to).unwrap();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

async fn layered(lower: Vec<PathBuf>, upper: &Path) -> Rig {
    fs::create_dir_all(upper).unwrap();
    Rig::with(|spec| spec.workspace = Workspace::Layered { lower, upper: upper.to_owned() }).await
}

#[tokio::test]
async fn a_layered_workspace_is_written_in_its_uppermost_layer_only() {
    let home = tempfile::tempdir().unwrap();
    let (base, upper) = (home.path().join("base"), home.path().join("layer"));
    fs::create_dir_all(base.join("deep")).unwrap();
    for (name, text) in [("kept", "kept\n"), ("changed", "old"), ("removed", "gone"), ("deep/file", "deep")] {
        fs::write(base.join(name), text).unwrap();
    }
    // Whoever made the base: its files are the agent's inside.
    for owner in if is_root() { vec![0, 1000, 54321] } else { vec![rustix::process::getuid().as_raw()] } {
        for name in ["", "deep", "kept", "changed", "removed", "deep/file"] {
            if is_root() {
                chown(base.join(name), Some(owner), Some(owner)).unwrap();
            }
        }
        let upper = upper.with_extension(owner.to_string());
        let rig = layered(vec![base.clone()], &upper).await;
        if owner == 0 {
            // Root's own files are only read.
            let said = rig.bash("cat kept; echo new > changed").await;
            assert!(said.starts_with("kept\n") && said.contains("denied"), "{said}");
            continue;
        }
        let said =
            rig.bash("cat kept; echo new > changed; rm removed; echo more >> deep/file; mv kept moved; ls").await;
        assert_eq!(said, "kept\nchanged\ndeep\nmoved", "{owner}");
        assert_eq!(rig.call("read", json!({"file_path": "changed"})).await.0, "new\n");
        rig.sandbox.destroy().await.unwrap();
        assert_eq!(fs::read_to_string(base.join("changed")).unwrap(), "old");
        assert!(base.join("removed").exists());
        let top = upper.join("upper");
        assert_eq!(fs::read_to_string(top.join("changed")).unwrap(), "new\n");
        assert!(fs::symlink_metadata(top.join("removed")).unwrap().file_type().is_char_device());
        if is_root() {
            assert_eq!(fs::metadata(top.join("changed")).unwrap().uid(), 1000);
        }
        // Another sandbox, another host user, the same files.
        let again = layered(vec![base.clone()], &upper).await;
        assert_eq!(
            again.bash("cat changed deep/file; echo third >> changed; cat changed").await,
            "new\ndeepmore\nnew\nthird"
        );
    }
}

#[tokio::test]
async fn layers_in_the_middle_are_shared_and_never_written() {
    let home = tempfile::tempdir().unwrap();
    let (base, middle) = (home.path().join("base"), home.path().join("middle"));
    for layer in [&base, &middle] {
        fs::create_dir(layer).unwrap();
        if is_root() {
            chown(layer, Some(1000), Some(1000)).unwrap();
        }
    }
    fs::write(base.join("below"), "below").unwrap();
    fs::write(middle.join("between"), "between").unwrap();
    if is_root() {
        chown(middle.join("between"), Some(1000), Some(1000)).unwrap();
    }
    let lower = vec![middle.clone(), base.clone()];
    let one = layered(lower.clone(), &home.path().join("one")).await;
    let other = layered(lower, &home.path().join("other")).await;
    assert_eq!(one.bash("cat below between; echo; echo one > mine; rm between; ls").await, "belowbetween\nbelow\nmine");
    assert_eq!(other.bash("ls; echo other > between; cat between").await, "below\nbetween\nother");
    assert_eq!(fs::read_to_string(middle.join("between")).unwrap(), "between");
}

#[tokio::test]
async fn an_agent_cannot_pass_for_the_file_system() {
    let home = tempfile::tempdir().unwrap();
    let base = home.path().join("base");
    fs::create_dir_all(base.join("dir")).unwrap();
    fs::write(base.join("dir/secret"), "below").unwrap();
    if is_root() {
        for name in ["", "dir", "dir/secret"] {
            chown(base.join(name), Some(1000), Some(1000)).unwrap();
        }
    }
    let upper = home.path().join("layer");
    let rig = layered(vec![base], &upper).await;
    // Marks that overlayfs reads on its layers, set by whoever can write files.
    let said = rig
        .perl(
            "my @set = ('user.overlay.opaque', 'user.overlay.redirect', 'user.overlay.whiteout', 'user.overlay.metacopy'); \
             my @at = ('/workspace/made', '/workspace/dir'); mkdir $at[0]; \
             for my $d (@at) { for my $n (@set) { my $v = '/'; syscall(NUMBER, $d, $n, $v, 1, 0) } } \
             my $h = '/workspace/hole'; syscall(MKNOD, -100, $h, 0020666, 0) == 0 and print 'hole'; print 'end'"
                .replace("NUMBER", &libc::SYS_setxattr.to_string())
                .replace("MKNOD", &libc::SYS_mknodat.to_string())
                .as_str(),
        )
        .await;
    assert_eq!(said, "end");
    rig.sandbox.destroy().await.unwrap();
    let mut names = vec![0; 4096];
    for name in ["made", "dir"] {
        let path = upper.join("upper").join(name);
        if let Ok(length) = rustix::fs::listxattr(&path, &mut names[..]) {
            let text = String::from_utf8_lossy(&names[..length]).into_owned();
            let marks = ["opaque", "redirect", "whiteout", "metacopy"];
            let real = text.split('\0').filter_map(|name| name.strip_prefix("user.overlay."));
            assert!(!real.clone().any(|name| marks.contains(&name) && name != "opaque"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_root_of_layers_is_read_only_and_has_what_every_sandbox_has() {
    let home = tempfile::tempdir().unwrap();
    let (lower, upper) = (home.path().join("lower"), home.path().join("upper"));
    copy_programs(&lower, &["/bin/bash", "/bin/ls", "/bin/cat", "/usr/bin/id", "/usr/bin/touch"]);
    fs::create_dir_all(lower.join("etc")).unwrap();
    fs::write(lower.join("etc/passwd"), "root:x:0:0::/:/bin/bash\n").unwrap();
    fs::write(lower.join("etc/only-below"), "x").unwrap();
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/release"), "two layers\n").unwrap();
    // The image has links where the sandbox has places of its own.
    std::os::unix::fs::symlink("/etc", lower.join("workspace")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.join("etc/only-below"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
    let rig = Rig::with(|spec| spec.rootfs = Rootfs::Layers(vec![upper, lower.clone()])).await;
    assert_eq!(
        rig.bash("cat /etc/release; ls /etc; id -un").await,
        "two layers\ngroup\nhostname\nhosts\npasswd\nrelease\nagent"
    );
    assert_eq!(
        rig.bash("touch /etc/x /x /bin/x 2>&1 | { n=0; while read -r line; do n=$((n+1)); done; echo $n; }").await,
        "3"
    );
    assert_eq!(rig.bash("touch /workspace/x /tmp/x ~/x /mnt/session/outputs/x && ls /workspace").await, "x");
    assert!(!lower.join("etc/x").exists());
}
