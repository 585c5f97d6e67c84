//! Checkpoints, from outside: what is captured comes back, whatever happens on the way.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should end")]
#![expect(clippy::print_stderr, reason = "a test says what it could not try on this machine")]

mod heavy;
mod hostile;
mod merge;
mod prune;
mod rig;
mod round_trip;
