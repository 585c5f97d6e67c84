//! Real sandboxes, attacked.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod hostile;
mod lifecycle;
mod rig;
mod tools;
