//! A root file system out of the host's own programs: small, made in a moment, without a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the suite runs. Everything else is Bash's own.
const PROGRAMS: &[&str] = &[
    "bash", "cat", "env", "grep", "head", "id", "kill", "ls", "mkdir", "perl", "rm", "sleep", "stty", "tail", "touch",
];

/// Builds it in a directory.
pub(crate) fn build(at: &Path) {
    // `/run` as distributions have it: only its owner may write there.
    for directory in ["bin", "etc", "usr/bin", "run"] {
        fs::create_dir_all(at.join(directory)).unwrap();
    }
    for name in PROGRAMS {
        let program = ["/bin", "/usr/bin"].iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
        let program = program.unwrap_or_else(|| panic!("{name} is needed in /bin or /usr/bin"));
        fs::copy(&program, at.join("bin").join(name)).unwrap();
        for library in libraries(&program) {
            let target = at.join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            if !target.exists() {
                fs::copy(&library, &target).unwrap();
            }
        }
    }
    fs::write(at.join("etc/passwd"), "root:x:0:0::/:/bin/false\nagent:x:1000:1000::/home/agent:/bin/bash\n").unwrap();
    fs::write(at.join("etc/group"), "root:x:0:\nagent:x:1000:\n").unwrap();
    fs::write(at.join("etc/marker"), "of the image").unwrap();
}

fn libraries(program: &Path) -> Vec<PathBuf> {
    let said = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
