//! What a configured command prints.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Pid;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use crate::error::FetchError;
use crate::program::Group;
use crate::source::{Content, Document, MAX_SECRET_BYTES, Source};
use crate::surroundings::text;

/// One command under `exec:`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecConfig {
    /// The program, as an absolute path, and its arguments. No shell sees them.
    pub command: Vec<String>,
    /// The whole environment that it gets; nothing of the worker's is passed on. Not for secrets.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Its working directory; `/` by default.
    pub directory: Option<PathBuf>,
    /// Seconds until it is killed; 10 by default.
    pub timeout: Option<u64>,
    /// Seconds that its answer is used; 60 by default.
    pub keep: Option<u64>,
}

// Arguments and environment are not meant for secrets; somebody will put one there all the same.
impl fmt::Debug for ExecConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecConfig")
            .field("program", &self.command.first())
            .field("arguments", &self.command.len().saturating_sub(1))
            .field("environment", &self.environment.keys())
            .field("timeout", &self.timeout)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct Exec {
    name: String,
    config: ExecConfig,
}

impl Exec {
    pub(crate) fn new(name: &str, config: ExecConfig) -> Self {
        Self { name: name.to_owned(), config }
    }
}

#[async_trait]
impl Source for Exec {
    fn description(&self) -> String {
        format!("the command `{}` (exec:{})", self.config.command.first().map_or("", String::as_str), self.name)
    }

    fn keep(&self) -> Duration {
        Duration::from_secs(self.config.keep.unwrap_or(60))
    }

    async fn fetch(&self, _path: &str) -> Result<Document, FetchError> {
        let (place, config) = (self.description(), &self.config);
        let (program, arguments) =
            config.command.split_first().ok_or_else(|| FetchError::local(&place, "its `command` is empty"))?;
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(&config.environment)
            .current_dir(config.directory.as_deref().unwrap_or(Path::new("/")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // It may print anything there, the secret too.
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(|error| FetchError::local(&place, format!("`{program}` cannot be started: {error}")))?;
        // Also what it has started itself ends with it, however this ends.
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let mut output = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 1));
        let seconds = config.timeout.unwrap_or(10);
        let work = async {
            if let Some(stdout) = child.stdout.take() {
                stdout.take(MAX_SECRET_BYTES as u64 + 1).read_to_end(&mut output).await?;
            }
            if output.len() > MAX_SECRET_BYTES {
                return Ok(None);
            }
            child.wait().await.map(Some)
        };
        let ended = tokio::time::timeout(Duration::from_secs(seconds), work)
            .await
            .map_err(|_| FetchError::unavailable(&place, format!("it was killed after {seconds} s")))?;
        let status = match ended {
            Ok(Some(status)) => status,
            Ok(None) => return Err(FetchError::TooLarge { place, limit: MAX_SECRET_BYTES }),
            Err(error) => return Err(FetchError::unavailable(&place, format!("its output cannot be read: {error}"))),
        };
        group.0 = None;
        if !status.success() {
            return Err(FetchError::unavailable(&place, format!("it failed ({status}); run it by hand to see why")));
        }
        let value = text(&output).ok_or_else(|| FetchError::malformed(&place, "what it printed is not valid UTF-8"))?;
        if value.is_blank() {
            return Err(FetchError::not_found(&place, "it printed nothing on standard output"));
        }
        Ok(Document::plain(Content::single(value)))
    }
}
