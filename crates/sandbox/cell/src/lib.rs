//! The cell's protocol, which the sandbox crate and PID 1 of a sandbox speak, and the archives in which files cross.

pub mod archive;
pub mod egress;
mod protocol;

pub use protocol::*;
