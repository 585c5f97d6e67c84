//! Clients that no distribution has, installed once for all tests from the registries that the machine is set up for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs an installation unless it was run: `name` says what it installs, versions and all.
fn once(name: &str, install: impl FnOnce(&Path) -> Command) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("egress-clients");
    std::fs::create_dir_all(&place).unwrap();
    let lock = File::create(place.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let done = place.join(name);
    if done.exists() {
        return done;
    }
    let partial = place.join(format!("{name}.partial"));
    let _ = std::fs::remove_dir_all(&partial);
    std::fs::create_dir(&partial).unwrap();
    let output = install(&partial).output().expect("the program that installs it is there");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{name} cannot be installed from its registry:\n{out}\n{err}");
    std::fs::rename(&partial, &done).unwrap();
    done
}

/// Python's requests, in `python`.
pub(super) fn requests() -> PathBuf {
    once("requests-2.32.5", |to| {
        let mut command = Command::new("sh");
        // The interpreter that is in sandboxes; a virtual environment has pip wherever there is `venv`.
        let script = r#"set -e; python=/usr/bin/python3; [ -x $python ] || python=python3
            $python -m venv "$1.venv"; trap 'rm -rf "$1.venv"' EXIT
            "$1.venv/bin/python" -m pip install --retries 10 --timeout 30 --quiet --disable-pip-version-check --target "$1/python" requests==2.32.5"#;
        command.args(["-c", script, "sh"]).arg(to);
        command
    })
}

/// A client that is a static program of Go's, `get`: its standard library resolves names and speaks TLS by itself.
pub(super) fn go() -> PathBuf {
    const GET: &str = r#"
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	answer, err := http.Get(os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	body, _ := io.ReadAll(answer.Body)
	fmt.Println(answer.Proto, string(body))
}
"#;
    once("go-get-1", |to| {
        std::fs::write(to.join("get.go"), GET).unwrap();
        let mut command = Command::new("sh");
        // Nothing of the user's settings, and no network.
        let script = r#"set -e; cd "$1"; trap 'rm -rf "$1/cache"' EXIT
            GOCACHE="$1/cache" GOENV=off GOPROXY=off GO111MODULE=off CGO_ENABLED=0 go build -trimpath -o get get.go"#;
        command.args(["-c", script, "sh"]).arg(to);
        command
    })
}

fn npm(name: &str, packages: &[&str]) -> PathBuf {
    once(name, |to| {
        let mut command = Command::new("npm");
        command.args([
            "install",
            "--fetch-retries=5",
            "--fetch-timeout=30000",
            "--omit=optional",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--prefix",
        ]);
        command.arg(to).args(packages);
        command
    })
}

/// A coding agent, in a release that Node 20 runs; newer ones ask for Node 22.
pub(super) fn coding_agent() -> PathBuf {
    npm("claude-code-2.0.76", &["@anthropic-ai/claude-code@2.0.76"])
}

/// The official SDK.
pub(super) fn sdk() -> PathBuf {
    npm("sdk-1.11.0", &["@anthropic-ai/sdk@1.11.0"])
}
