//! The protocol and the archives against bytes that mean harm or nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod archive;
mod chance;
mod egress;
mod protocol;
