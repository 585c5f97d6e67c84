//! Sessions that are alive in this process.

mod actor;
mod sampling;

pub(crate) use actor::{Actor, Message};
