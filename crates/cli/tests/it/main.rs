//! The built binary, as people and programs see it.

mod answers;
mod demo;
mod errors;
mod help;
mod keys;
mod lifecycle;
mod rig;
mod sessions;
