//! The smallest root file system that the peers' containers need, made of the host's own programs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use serde_json::json;

const PROGRAMS: [&str; 4] = ["/bin/echo", "/bin/true", "/bin/sleep", "/bin/bash"];

/// Copies the programs and the libraries that they are linked with.
pub(super) fn make(root: &Path) -> io::Result<()> {
    for directory in ["dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    let mut files: BTreeSet<String> = PROGRAMS.map(str::to_owned).into();
    for program in PROGRAMS {
        let said = Command::new("ldd").arg(program).output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        files.extend(said.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    for file in files {
        let to = root.join(file.trim_start_matches('/'));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(&file, &to)?;
    }
    Ok(())
}

/// What an OCI runtime starts `argv` from: namespaces, no capability, limits of memory and of processes.
pub(super) fn bundle(at: &Path, root: &Path, argv: &[&str]) -> io::Result<()> {
    fs::create_dir_all(at)?;
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({"type": kind}));
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": argv,
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {},
        },
        "root": {"path": root, "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": {"memory": {"limit": 2_u64 << 30}, "pids": {"limit": 512}},
        },
    });
    fs::write(at.join("config.json"), config.to_string())
}
