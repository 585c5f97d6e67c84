//! One file per transition. Each takes the state and says what became of it.

mod advance;
mod complete;
mod end;
mod fail;
mod ingest;
mod update;
mod work;

pub use advance::{advance, resume};
pub(crate) use advance::{denial, is_input};
pub use complete::{Ended, Part, PartContent, Reply, complete};
pub use end::{archive, may_delete};
pub use fail::{Failure, FailureKind, fail};
pub use ingest::ingest;
pub(crate) use update::ChangedFields;
pub use update::{Change, update};
pub use work::work_ended;
