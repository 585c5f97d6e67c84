//! The engine's tests.

#![expect(clippy::unwrap_used, reason = "a test binary unwraps")]

mod model;
mod session;
