//! The store's tests: one suite for every back-end, and what only a durable one must show.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;
mod crash;
mod equivalence;
mod fixture;
mod full;
mod sqlite;

use std::sync::Arc;

use palisade_store::{Memory, Sqlite, Store};

conformance::suite!(memory, || Opened { store: Arc::new(Memory::new()), _directory: None });

conformance::suite!(sqlite_file, || {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&directory.path().join("palisade.db")).unwrap();
    Opened { store: Arc::new(store), _directory: Some(directory) }
});

/// A store for one case; the directory outlives it.
struct Opened {
    store: Arc<dyn Store>,
    _directory: Option<tempfile::TempDir>,
}
