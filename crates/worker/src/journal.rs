//! What must not be forgotten about a session's calls: an append-only file, one JSON line per record.
//!
//! *A finished result is posted again, never recomputed; a call whose end is unknown is never run again.* `started` is
//! written before a call with effects begins, `result` before it is posted, `settled` when the control plane has it.
//! A written record survives the end of the process at any instant; [`Journal::sync`] makes it survive the machine's.
//! A call that begins less than a few milliseconds before the machine loses power may thus be run again afterwards.
//!
//! Architecture invariant: the file is held under an exclusive lock for as long as a work item of the session is served,
//! so that two items of one session, in this process or another on this host, never share a workspace at one time.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Nothing is ever cut from a file smaller than this.
const ROOM: u64 = 4 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record<'a> {
    Started {
        call: String,
    },
    Result {
        call: String,
        #[serde(borrow)]
        event: &'a RawValue,
    },
    Settled {
        call: String,
    },
}

/// What an earlier run of the worker left about a call that has no accepted result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trace {
    /// It began; how far it came is unknown.
    Started,
    /// Its result event, ready to be posted.
    Finished(String),
}

/// Why the journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("cannot open the result journal {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot lock the result journal {path}: {source}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("cannot read the result journal {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
}

#[derive(Debug)]
struct Inner {
    file: File,
    length: u64,
    open_calls: usize,
}

/// The journal of one session.
#[derive(Debug, Clone)]
pub(crate) struct Journal(Arc<Mutex<Inner>>);

/// An opened journal and what it held.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) journal: Journal,
    pub(crate) traces: HashMap<String, Trace>,
    /// A record could not be read: any call may have been started.
    pub(crate) damaged: bool,
}

impl Journal {
    /// Opens the journal, waiting for an earlier item of the same session to let go of it.
    pub(crate) async fn open(path: &Path) -> Result<Opened, JournalError> {
        let fail = |source| JournalError::Open { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(fail)?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(std::fs::TryLockError::Error(source)) => {
                    return Err(JournalError::Lock { path: path.to_owned(), source });
                }
            }
        }
        Self::recover(file).map_err(|source| JournalError::Read { path: path.to_owned(), source })
    }

    fn recover(mut file: File) -> io::Result<Opened> {
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut text)?;
        // A last line without its end was being written when the process died: it announced nothing to anyone.
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let mut traces = HashMap::new();
        let mut damaged = false;
        for line in text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(Record::Started { call }) => {
                    traces.entry(call).or_insert(Trace::Started);
                }
                Ok(Record::Result { call, event }) => {
                    traces.insert(call, Trace::Finished(event.get().to_owned()));
                }
                Ok(Record::Settled { call }) => {
                    traces.remove(&call);
                }
                Err(_) => damaged = true,
            }
        }
        let keep = if traces.is_empty() && !damaged { 0 } else { whole as u64 };
        if keep < text.len() as u64 {
            file.set_len(keep)?;
        }
        let inner = Inner { file, length: keep, open_calls: traces.len() };
        Ok(Opened { journal: Self(Arc::new(Mutex::new(inner))), traces, damaged })
    }

    /// Records that a call with effects is about to begin. If this fails the call must not begin.
    pub(crate) fn started(&self, call: &str) -> io::Result<()> {
        self.append(&Record::Started { call: call.to_owned() }, 1)
    }

    /// Records a call's result event, which must be JSON.
    pub(crate) fn result(&self, call: &str, event: &str) -> io::Result<()> {
        let event: &RawValue = serde_json::from_str(event)?;
        self.append(&Record::Result { call: call.to_owned(), event }, 0)
    }

    /// Records that the control plane has an answer to the call; nothing about it is needed any more.
    pub(crate) fn settled(&self, call: &str) -> io::Result<()> {
        self.append(&Record::Settled { call: call.to_owned() }, -1)
    }

    /// Forces everything written so far to the disk.
    pub(crate) async fn sync(&self) -> io::Result<()> {
        let file = self.lock().file.try_clone()?;
        tokio::task::spawn_blocking(move || file.sync_data()).await.map_err(io::Error::other)?
    }

    fn append(&self, record: &Record<'_>, open_calls: isize) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let mut inner = self.lock();
        if let Err(error) = inner.file.write_all(&line) {
            // A torn line in the middle would make what follows unreadable.
            let length = inner.length;
            let _ = inner.file.set_len(length);
            return Err(error);
        }
        inner.length += line.len() as u64;
        inner.open_calls = inner.open_calls.saturating_add_signed(open_calls);
        if inner.open_calls == 0 && inner.length > ROOM {
            inner.file.set_len(0)?;
            inner.length = 0;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn remembers_what_is_open_and_forgets_what_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let opened = Journal::open(&path).await.unwrap();
        for call in ["a", "b", "c"] {
            opened.journal.started(call).unwrap();
        }
        opened.journal.result("b", r#"{"x": 1}"#).unwrap();
        opened.journal.result("c", "{}").unwrap();
        opened.journal.settled("c").unwrap();
        opened.journal.sync().await.unwrap();
        drop(opened);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"started\":{\"call\":\"to").unwrap();

        let opened = Journal::open(&path).await.unwrap();
        assert!(!opened.damaged);
        assert_eq!(opened.traces.len(), 2);
        assert_eq!(opened.traces["a"], Trace::Started);
        assert_eq!(opened.traces["b"], Trace::Finished(r#"{"x": 1}"#.into()));
        opened.journal.settled("a").unwrap();
        opened.journal.settled("b").unwrap();
        drop(opened);
        assert!(Journal::open(&path).await.unwrap().traces.is_empty());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    #[tokio::test]
    async fn a_damaged_record_is_told_and_the_lock_excludes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        std::fs::write(&path, "{\"started\":{\"call\":\"a\"}}\n\0\0\0\n").unwrap();
        let opened = Journal::open(&path).await.unwrap();
        assert!(opened.damaged);
        let second = tokio::time::timeout(Duration::from_millis(200), Journal::open(&path)).await;
        assert!(second.is_err(), "the lock is held");
        drop(opened);
        Journal::open(&path).await.unwrap();
    }
}
