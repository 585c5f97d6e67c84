//! The sources, one to a file.

pub(crate) mod aws;
pub(crate) mod azure;
mod bearer;
pub(crate) mod env;
pub(crate) mod exec;
pub(crate) mod file;
pub(crate) mod google;
pub(crate) mod hashicorp;
pub(crate) mod onepassword;
pub(crate) mod sealed;
