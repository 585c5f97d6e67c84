//! Tests of the secret sources at its boundary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod config;
mod credentials;
mod identity;
mod keeping;
mod local;
mod rig;
mod sealed;
mod servers;
