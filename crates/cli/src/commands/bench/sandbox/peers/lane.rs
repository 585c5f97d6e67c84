//! A shell that waits for commands: what a command costs is then its own, not the way it is started.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// No command that is measured takes longer than this.
const LIMIT: Duration = Duration::from_secs(60);
/// After a command's output: no command prints it.
const MARK: u8 = 1;

/// It ends when it is dropped.
pub(super) struct Lane {
    _shell: Child,
    input: ChildStdin,
    output: ChildStdout,
}

struct Done {
    first: Duration,
    output: String,
    status: String,
}

impl Lane {
    /// Starts a shell that reads commands, by a command line of plain words.
    pub(super) fn open(shell: &str) -> std::io::Result<Lane> {
        let mut words = shell.split(' ');
        let mut child = Command::new(words.next().unwrap_or("sh"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Lane { _shell: child, input, output }),
            _ => Err(std::io::Error::other("the shell has no pipes")),
        }
    }

    /// How long a command takes to its first byte of output, or to its end if it has none.
    pub(super) async fn run(&mut self, command: &str) -> Result<Duration, String> {
        let done = self.say(&format!("{command} </dev/null")).await?;
        if done.status == "0" { Ok(done.first) } else { Err(format!("it has ended with status {}", done.status)) }
    }

    /// Runs it and tells what it said, also on standard error.
    pub(super) async fn attempt(&mut self, command: &str) -> Result<String, String> {
        let done = self.say(&format!("{{ {command} ; }} </dev/null 2>&1")).await?;
        if done.status == "0" {
            return Ok(done.output);
        }
        let mut lines = done.output.lines().rev().filter(|line| !line.trim().is_empty());
        // Hints of how to call it may follow the error.
        let error = lines.clone().find(|line| line.to_ascii_lowercase().contains("error"));
        let last = error.or_else(|| lines.next()).unwrap_or("it says nothing");
        Err(format!("it does not work here: {}", last.trim()))
    }

    async fn say(&mut self, command: &str) -> Result<Done, String> {
        let said = tokio::time::timeout(LIMIT, self.exchange(command)).await;
        match said {
            Ok(done) => done.map_err(|why| format!("its shell has ended: {why}")),
            Err(_) => Err(format!("it takes more than {} s", LIMIT.as_secs())),
        }
    }

    async fn exchange(&mut self, command: &str) -> std::io::Result<Done> {
        let line = format!("{command}\nprintf '\\001%d\\n' $?\n");
        let begun = Instant::now();
        self.input.write_all(line.as_bytes()).await?;
        let (mut all, mut first) = (Vec::new(), None);
        loop {
            if self.output.read_buf(&mut all).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let first = *first.get_or_insert_with(|| begun.elapsed());
            if all.ends_with(b"\n")
                && let Some(mark) = memchr::memrchr(MARK, &all)
            {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let status = text(&all[mark + 1..]).trim().to_owned();
                return Ok(Done { first, output: text(&all[..mark]), status });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lane_tells_output_status_and_why() {
        let mut lane = Lane::open("sh").unwrap();
        assert_eq!(lane.attempt("echo one; echo two").await.unwrap(), "one\ntwo\n");
        assert!(lane.run("true").await.unwrap() > Duration::ZERO);
        assert_eq!(lane.run("(exit 3)").await.unwrap_err(), "it has ended with status 3");
        assert_eq!(lane.attempt("echo reason >&2; false").await.unwrap_err(), "it does not work here: reason");
        assert_eq!(
            lane.attempt("echo Error: reason; echo hint; echo; false").await.unwrap_err(),
            "it does not work here: Error: reason"
        );
        assert!(lane.run("exit").await.unwrap_err().starts_with("its shell has ended"));
    }
}
