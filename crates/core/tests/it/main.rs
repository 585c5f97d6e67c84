//! The state machines, driven by hand.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod rig;
mod turn;
mod waiting;
mod work;
