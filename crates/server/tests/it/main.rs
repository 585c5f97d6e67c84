//! The server as its clients see it: over real sockets, with a scripted model.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod auth;
mod lists;
mod rig;
mod sessions;
mod streams;
mod work;
