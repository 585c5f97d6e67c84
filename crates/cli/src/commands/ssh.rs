//! `palisade ssh`: the system's own ssh into a live session, with a certificate that is good for this once.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use crate::commands::sandboxes::{WorkerAt, failed};
use crate::output::{Context as _, Outcome};

/// Open an SSH connection into a session's sandbox, with the system's own ssh.
#[derive(Debug, Args)]
#[command(
    after_help = "The worker must have been started with --ssh. It issues a key and a certificate that is good for five \
                        minutes, for this session only. Words behind -- are given to ssh: options, or a command.\n\
                        Exit codes are ssh's: the command's own, or 255."
)]
pub(crate) struct SshArgs {
    /// The session's id.
    session: String,
    #[command(flatten)]
    worker: WorkerAt,
    /// Options for ssh, and a command.
    #[arg(last = true, value_name = "WORDS")]
    words: Vec<String>,
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.trim_end().as_bytes())?;
    file.write_all(b"\n")
}

pub(crate) async fn run(args: &SshArgs) -> Outcome {
    let client = args.worker.client()?;
    let issued = client.ssh_certificate(&args.session).await;
    let issued = issued.map_err(|why| failed("there is no way in by SSH", &why))?;
    // Only its owner can enter it, and it is removed with all that is in it.
    let private = tempfile::Builder::new().prefix("palisade-ssh-").tempdir();
    let private = private.context("a directory for the key cannot be made")?;
    let key = private.path().join("key");
    let known = private.path().join("known_hosts");
    let host = format!("[{}]:{} {}", issued.address.ip(), issued.address.port(), issued.host_key);
    for (path, text) in
        [(&key, &issued.private_key), (&private.path().join("key-cert.pub"), &issued.certificate), (&known, &host)]
    {
        write(path, text).context("the key cannot be written")?;
    }
    // Options come before the destination, a command behind it.
    let (options, command) = split(&args.words);
    let mut ssh = tokio::process::Command::new("ssh");
    ssh.args(["-F", "none", "-p", &issued.address.port().to_string(), "-l", &args.session, "-i"])
        .arg(&key)
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .args(["-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes"])
        .args(["-o", "PreferredAuthentications=publickey"])
        .args(options)
        // The key alone would be refused, after a second. OpenSSH before 8.5 calls this otherwise, and tries it.
        .args(["-o", "IgnoreUnknown=PubkeyAcceptedAlgorithms"])
        .args(["-o", "PubkeyAcceptedAlgorithms=ssh-ed25519-cert-v01@openssh.com"])
        .arg(issued.address.ip().to_string())
        .args(command);
    let status = ssh.status().await.context("ssh cannot be run; is the OpenSSH client installed?")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(255)))
}

/// Options of ssh(1) that take a word of their own.
const WITH_WORD: &str = "BbcDEeFIiJLlmOoPpQRSWw";

/// Parts options of ssh from a command.
fn split(words: &[String]) -> (&[String], &[String]) {
    let mut at = 0;
    while let Some(option) = words.get(at).and_then(|word| word.strip_prefix('-')) {
        let alone = option.chars().last().is_none_or(|last| !WITH_WORD.contains(last)) || option.chars().count() > 1;
        at += if alone { 1 } else { 2 };
    }
    words.split_at(at.min(words.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_told_from_a_command() {
        let parts = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            split(&words).0.len()
        };
        assert_eq!(parts("ls -l"), 0);
        assert_eq!(parts("-t -L 1:localhost:2 -oA=b -v make -j 4"), 5);
        assert_eq!(parts("-N"), 1);
        assert_eq!(parts("-L"), 1);
        assert_eq!(parts(""), 0);
    }
}
