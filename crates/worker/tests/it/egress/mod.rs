//! What sandboxes reach, with the programs that people use and servers that people run.
//!
//! Nothing here leaves the machine but for the installation of a few clients from the usual registries, which are kept.

mod agent;
mod clients;
mod exchange;
mod failing;
mod git;
mod packages;
mod prepared;
mod runtimes;
mod secrets;
mod sessions;
mod ssh;
mod world;
