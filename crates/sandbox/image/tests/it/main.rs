//! Images from the boundary that users see: pulled, imported, run, attacked and pruned.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod damage;
mod fuzz;
mod hostile;
mod make;
mod prune;
mod pull;
mod registry;
mod rig;
mod signed;
mod unpacked;
