//! The way out of a sandbox.
//!
//! A sandbox has a loopback device and nothing else. What it opens arrives here, on sockets that were made in its own network
//! namespace: who calls is known by the socket, never by what is said on it. [`policy`] decides, [`broker`] puts credentials in
//! and takes them out of answers, [`proxy`] carries.

pub mod broker;
pub mod dns;
pub mod git;
mod name;
pub mod policy;
pub mod proxy;
mod seam;
pub mod ssh;

pub use name::{Authority, Host, Name, NameError};
pub use seam::{Entry, Outcome, Supply, SupplyError, Trail, TrailError};
