//! What programs of the operator's print.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use palisade_api::Secret;
use rustix::process::{Pid, Signal, kill_process_group};
use zeroize::Zeroizing;

use crate::surroundings::{check_private, read_bytes, text};

/// How long one may take that says where a key is: a TPM is slow, and may be asked by others too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Kills a group of processes when dropped, unless its leader has ended: then its number may be another's.
pub(crate) struct Group(pub(crate) Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// What a program prints, which nobody but its owner and root may have written. It gets no argument and no environment. Blocks.
/// The error says what is wrong and the fix.
pub(crate) fn printed(path: &Path) -> Result<Secret, String> {
    let shown = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| format!("`{shown}` cannot be opened: {error}"))?;
    check_private(&file, &shown, true)?;
    let mut command = Command::new(path);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
    // It may print anything there, the secret too.
    command.stderr(Stdio::null()).process_group(0);
    let until = Instant::now() + PATIENCE;
    let mut child = command.spawn().map_err(|error| format!("`{shown}` cannot be started: {error}"))?;
    // Also what it has started itself ends with it, however this ends.
    let mut group = Group(Pid::from_raw(child.id().cast_signed()));
    let output = child.stdout.take();
    let (tell, told) = mpsc::sync_channel(1);
    let name = shown.clone();
    let reader = std::thread::Builder::new().name("program".to_owned()).spawn(move || {
        let read = output.map_or_else(|| Ok(Zeroizing::default()), |output| read_bytes(output, &name));
        let _ = tell.send(read);
    });
    let reader = reader.map_err(|error| format!("`{shown}` cannot be listened to: {error}"))?;
    let late = || format!("`{shown}` was killed after {} s", PATIENCE.as_secs());
    let read = told.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(late()));
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if read.is_ok() && Instant::now() < until => std::thread::park_timeout(Duration::from_millis(1)),
            Ok(None) => break Err(late()),
            Err(error) => break Err(format!("`{shown}` cannot be waited for: {error}")),
        }
    };
    if status.is_ok() {
        group.0 = None;
    }
    drop(group);
    if status.is_err() {
        let _ = child.wait();
    }
    let _ = reader.join();
    let output = read?;
    let status = status?;
    if !status.success() {
        return Err(format!("`{shown}` failed ({status}); run it by hand to see why"));
    }
    text(&output).ok_or_else(|| format!("what `{shown}` prints is not valid UTF-8; print text, or binary as base64"))
}
