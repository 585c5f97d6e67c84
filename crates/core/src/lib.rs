//! The control plane's state machines.
//!
//! Everything here is pure: a state, a command and the time go in; events, mutations and effects come out. There is no
//! await, no clock, no randomness and no I/O, so that every decision can be replayed and tested on its own.

pub mod batch;
pub mod session;
pub mod work;
