//! What programs of a sandbox find of SSH: an agent that has the keys, and the hosts that they are for.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use palisade_egress::broker::Hosts;
use palisade_egress::ssh::SshKey;
use palisade_sandbox::Given;

use super::trust::INSIDE;

const AGENT: &str = "ssh-agent";
const HOSTS: &str = "known_hosts";
const CONFIG: &str = "ssh_config";
/// Where OpenSSH reads what holds for all users; covered where it exists.
const SYSTEM: &str = "/etc/ssh/ssh_config";

/// What one sandbox is given.
pub(super) struct Ssh {
    pub(super) agent: UnixListener,
    pub(super) given: Vec<Given>,
    pub(super) env: Vec<(String, String)>,
}

/// Prepares it in the directory that the sandbox finds as [`INSIDE`].
pub(super) fn prepare(directory: &Path, keys: &[SshKey]) -> io::Result<Ssh> {
    let mut hosts = String::new();
    for key in keys {
        let Hosts::Limited(patterns) = &key.hosts else { continue };
        let names: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        let names = names.join(",");
        for host_key in &key.host_keys {
            let _ = writeln!(hosts, "{names} {}", host_key.text());
        }
    }
    fs::write(directory.join(HOSTS), hosts)?;
    let config = format!(
        "Host *\n    IdentityAgent {INSIDE}/{AGENT}\n    GlobalKnownHostsFile {INSIDE}/{HOSTS}\n    ForwardAgent no\n"
    );
    fs::write(directory.join(CONFIG), config)?;
    let given = vec![Given { host: directory.join(CONFIG), target: SYSTEM.to_owned(), over: true }];
    let env = vec![("SSH_AUTH_SOCK".to_owned(), format!("{INSIDE}/{AGENT}"))];
    Ok(Ssh { agent: listen(directory)?, given, env })
}

/// Listens where the sandbox alone has access.
fn listen(directory: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(directory.join(AGENT)) {
        // An earlier sandbox of the session.
        Ok(()) => {}
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => return Err(why),
    }
    // By the descriptor, as the path may be longer than an address may.
    let opened = File::open(directory)?;
    let agent = UnixListener::bind(format!("/proc/self/fd/{}/{AGENT}", opened.as_raw_fd()))?;
    // Its users inside are others than the worker's; the directories above keep everybody else out.
    fs::set_permissions(directory.join(AGENT), Permissions::from_mode(0o666))?;
    Ok(agent)
}
