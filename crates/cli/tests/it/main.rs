//! The built binary, as people and programs see it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answers;
mod checkpoints;
mod demo;
mod egress_bypass;
mod errors;
mod heavy;
mod help;
mod images;
mod keys;
mod lifecycle;
mod live;
mod rig;
mod sandbox;
mod sandboxes;
mod sessions;
mod vault;
