//! Checkpoints, from outside: what is captured comes back, whatever happens on the way.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod archive;
mod diff;
mod heavy;
mod hostile;
mod merge;
mod prune;
#[cfg(feature = "remote")]
mod remote;
mod rig;
mod round_trip;
