//! Tests of the egress proxy at its boundary.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broker;
mod broker_answers;
mod broker_keys;
mod dns;
mod git;
mod names;
mod policy;
mod proxy;
mod proxy_hostile;
mod proxy_world;
