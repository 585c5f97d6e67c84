//! Real sandboxes, attacked.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod bombs;
mod calls;
mod copy;
mod disk;
mod drivers;
mod egress;
mod exec;
mod heavy;
mod hostile;
mod layers;
mod lifecycle;
mod network;
mod nursery;
mod pool;
mod protocol;
mod rig;
mod rootless;
mod search;
mod secrets;
mod shell;
mod tools;
