//! Capturing a layer: the upper directory of a sandbox's overlay becomes a checkpoint.

mod cache;
mod walk;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::ingest::{Ingest, Scratch};
use crate::store::{Checkpoint, Store};
use crate::{Error, Id, LayerPath, Result, tree};
use cache::Cache;

/// Whose the files of a layer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// Owners are recorded as they are found, and given back: for root, whose layers hold the owners inside the sandbox.
    #[default]
    Kept,
    /// Everything on disk is the caller's, who is not root: these are recorded, and nothing is given away.
    Flat {
        /// The user that is recorded.
        uid: u32,
        /// The group that is recorded.
        gid: u32,
    },
}

/// How a layer is captured.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// The name of the directory below the layer. Only checkpoints over the same base can be merged and compared.
    pub base: String,
    /// The checkpoint whose layer is between the two, when the session was started from one.
    pub parent: Option<Id>,
    /// When this is.
    pub created: SystemTime,
    /// What it is called.
    pub label: Option<String>,
    /// Whose the files are.
    pub ownership: Ownership,
    /// A file beside the session's layer, in which to note what need not be read again at the next capture.
    pub cache: Option<PathBuf>,
}

impl CaptureOptions {
    /// A capture of a layer directly over `base`.
    pub fn new(base: impl Into<String>, created: SystemTime) -> CaptureOptions {
        CaptureOptions {
            base: base.into(),
            parent: None,
            created,
            label: None,
            ownership: Ownership::Kept,
            cache: None,
        }
    }
}

/// What a capture did.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Files of the layer whose content was read.
    pub read: u64,
    /// Files whose content was known from the capture before.
    pub reused: u64,
    /// By how many bytes the store grew.
    pub grown: u64,
    /// How many sockets and named pipes were left out: they have no content.
    pub skipped: u64,
    /// The first hundred of them.
    pub skipped_paths: Vec<LayerPath>,
}

impl Store {
    /// Captures an upper directory. The sandbox must be frozen before this is called and stay so until it returns: what
    /// changes meanwhile is an error where it is noticed, and torn where it is not.
    ///
    /// Links are not followed. A device is an error; a socket or a named pipe is left out and reported.
    pub fn capture(&self, upper: &Path, options: &CaptureOptions) -> Result<Captured> {
        let _lock = self.shared()?;
        let index = self.fresh_index()?;
        let lower = match &options.parent {
            None => None,
            Some(parent) => {
                let record = self.show(parent)?;
                if record.base != options.base {
                    return Err(Error::Bases(record.base, options.base.clone()));
                }
                Some(self.tree(&index, parent)?)
            }
        };
        let ingest = Ingest::new(self, index)?;
        let old = options.cache.as_deref().map(|path| Cache::load(path, upper)).unwrap_or_default();
        let mut walked = walk::walk(upper, options, &ingest, &old)?;
        walked.tree.base.clone_from(&options.base);
        let tree = match lower {
            Some(lower) => tree::merge(walked.tree, &lower),
            None => {
                walked.tree.normalise();
                walked.tree
            }
        };
        let (id, grown) = ingest.finish(&tree, &mut Scratch::new())?;
        let parent = options.parent.filter(|parent| *parent != id);
        let record = Checkpoint::of(id, &tree, parent, options.created, options.label.clone());
        let checkpoint = self.write_record(record)?;
        self.remember(id, tree.into());
        if let Some(path) = &options.cache {
            // Only time is lost without it, and the checkpoint is made.
            let _ = walked.cache.save(path, upper);
        }
        Ok(Captured {
            checkpoint,
            read: walked.read,
            reused: walked.reused,
            grown,
            skipped: walked.skipped,
            skipped_paths: walked.skipped_paths,
        })
    }
}
