//! The built binary, as people and programs see it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answers;
mod demo;
mod errors;
mod heavy;
mod help;
mod keys;
mod lifecycle;
mod rig;
mod sandboxes;
mod sessions;
