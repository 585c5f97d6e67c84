//! Tests that need the machine to themselves.

mod crash;
mod density;
