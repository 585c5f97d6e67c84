//! The cell's protocol: what the sandbox crate and PID 1 of a sandbox say to each other.

mod protocol;

pub use protocol::*;
