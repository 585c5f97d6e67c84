//! Wire shapes, against examples.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod golden;
mod limits;
