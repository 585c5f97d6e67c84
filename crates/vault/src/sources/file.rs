//! Files below a configured directory, such as what an orchestrator mounts.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::Deserialize;

use crate::error::FetchError;
use crate::source::{Content, Document, Source, Stamp};
use crate::surroundings::{check_private, read_text};

/// One directory under `file:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The directory; an absolute path. Links within it that stay within it are followed.
    pub directory: PathBuf,
    /// Takes files that others can read too, though never ones that others can write. For mounts whose mode cannot be chosen.
    #[serde(default)]
    pub readable_by_others: bool,
}

#[derive(Debug)]
pub(crate) struct Files {
    name: String,
    config: FileConfig,
}

impl Files {
    pub(crate) fn new(name: &str, config: FileConfig) -> Self {
        Self { name: name.to_owned(), config }
    }

    /// Opens a file without ever leaving the directory.
    fn open(&self, path: &str) -> Result<std::fs::File, FetchError> {
        let place = self.description();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        // Opened anew each time: a mount may be replaced as a whole.
        let directory: OwnedFd =
            rustix::fs::openat(CWD, &self.config.directory, flags | OFlags::DIRECTORY, Mode::empty())
                .map_err(|error| FetchError::local(&place, format!("the directory cannot be opened: {error}")))?;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        let file = loop {
            match rustix::fs::openat2(&directory, path, flags | OFlags::NONBLOCK, Mode::empty(), within) {
                // Something was renamed meanwhile; the kernel asks to try again.
                Err(Errno::AGAIN) if tries < 16 => tries += 1,
                other => break other,
            }
        };
        match file {
            Ok(file) => Ok(std::fs::File::from(file)),
            Err(Errno::NOENT) => Err(FetchError::not_found(&place, format!("there is no file `{path}`"))),
            Err(Errno::XDEV | Errno::LOOP) => {
                Err(FetchError::denied(&place, format!("`{path}` leads out of the directory; copy the file into it")))
            }
            Err(error) => Err(FetchError::local(&place, format!("`{path}` cannot be opened: {error}"))),
        }
    }

    fn read(&self, path: &str) -> Result<Document, FetchError> {
        let place = self.description();
        let file = self.open(path)?;
        let local = |why| FetchError::local(&place, why);
        let facts = check_private(&file, path, self.config.readable_by_others).map_err(local)?;
        let value = read_text(file, path).map_err(local)?;
        // Taken before reading: a change while reading shows in the next look.
        Ok(Document { stamp: stamp(&facts), ..Document::plain(Content::single(value)) })
    }
}

/// What changes when a file does.
pub(crate) fn stamp(facts: &std::fs::Metadata) -> Stamp {
    Stamp(vec![
        facts.dev(),
        facts.ino(),
        facts.size(),
        facts.mtime().cast_unsigned(),
        facts.mtime_nsec().cast_unsigned(),
        facts.ctime().cast_unsigned(),
        facts.ctime_nsec().cast_unsigned(),
    ])
}

#[async_trait]
impl Source for Files {
    fn description(&self) -> String {
        format!("the directory `{}` (file:{})", self.config.directory.display(), self.name)
    }

    fn keep(&self) -> Duration {
        Duration::MAX
    }

    fn unchanged(&self, path: &str, before: &Stamp) -> bool {
        self.open(path).ok().and_then(|file| file.metadata().ok()).is_some_and(|facts| stamp(&facts) == *before)
    }

    async fn fetch(&self, path: &str) -> Result<Document, FetchError> {
        let (files, path) = (Self { name: self.name.clone(), config: self.config.clone() }, path.to_owned());
        match tokio::task::spawn_blocking(move || files.read(&path)).await {
            Ok(read) => read,
            Err(_) => Err(FetchError::unavailable(&self.description(), "the runtime is stopping")),
        }
    }
}
