//! The server as its clients see it: over real sockets, with a scripted model.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod auth;
mod bad_input;
mod lists;
mod objects;
mod rig;
mod serving;
mod sessions;
mod streams;
mod work;
