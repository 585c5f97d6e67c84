//! Tests of the egress proxy at its boundary.

mod dns;
mod git;
mod names;
mod proxy;
mod proxy_hostile;
mod proxy_world;
