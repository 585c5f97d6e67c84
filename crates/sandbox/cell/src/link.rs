//! The way back to the worker.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use palisade_cell::{Reply, write_frame};

use crate::tools::Output;

/// Where the worker hears. Frames of different threads do not mix.
pub(crate) struct Link(Mutex<File>);

impl Link {
    pub(crate) fn new(to: File) -> Link {
        Link(Mutex::new(to))
    }

    /// Sends a frame; without a worker there is nobody to hear it, and this process is about to end.
    pub(crate) fn send(&self, reply: &Reply, raw: &[u8]) {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = write_frame(&mut *to, reply, raw);
    }

    /// Says that nothing more will be said, and says nothing until `woken` returns; threads that have something to say wait.
    pub(crate) fn rest(&self, id: u64, woken: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&mut *to, &Reply::Resting { id }, &[])?;
        woken()?;
        write_frame(&mut *to, &Reply::Awake, &[])
    }

    /// Answers a call of a tool.
    pub(crate) fn answer(&self, id: u64, output: Output, cpu_us: Option<u64>) {
        self.send(&Reply::Tool { id, content: output.content, is_error: output.is_error, cpu_us }, &[]);
    }
}
