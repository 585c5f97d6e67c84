//! The worker against a fake control plane, with real sandboxes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calls;
mod checkpoints;
mod egress;
mod faults;
mod lease;
mod perimeter;
mod queue;
mod restart;
mod rig;
mod secrets;
mod webhook;
