//! The hostile program: `palisade-hostile NAME [FACT=VALUE]…` makes one attempt to get out of a sandbox, or to use more than
//! it was given, and says in one line how that ended.
//!
//! Architecture invariant: an attempt that succeeds does no harm. It reads a canary, writes a marker, or takes a stated
//! amount of something and gives it back; what it could have done is for the reader to imagine.

#![allow(unsafe_code, reason = "attacks are made of system calls; each block says why it is sound")]

mod bombs;
mod cell;
mod devices;
mod endings;
mod files;
mod kernel;
mod machine;
mod mounts;
mod neighbours;
mod privileges;
mod races;
mod said;
mod sockets;
mod sys;

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;

pub(crate) use said::Said;

/// What an attempt knows of the host and of its limits.
pub(crate) struct Facts(HashMap<String, String>);

impl Facts {
    /// A fact; empty when it was not told.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A fact that is a number; zero when it was not told.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }
}

/// A name, and what it does.
pub(crate) type Attempt = (&'static str, fn(&Facts) -> Said);

const GROUPS: &[&[Attempt]] = &[
    bombs::ATTEMPTS,
    cell::ATTEMPTS,
    devices::ATTEMPTS,
    endings::ATTEMPTS,
    files::ATTEMPTS,
    kernel::ATTEMPTS,
    machine::ATTEMPTS,
    mounts::ATTEMPTS,
    neighbours::ATTEMPTS,
    privileges::ATTEMPTS,
    races::ATTEMPTS,
    sockets::ATTEMPTS,
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let facts = arguments.filter_map(|fact| fact.split_once('=').map(|(name, value)| (name.into(), value.into())));
    let facts = Facts(facts.collect());
    let all = || GROUPS.iter().copied().flatten();
    if name == "list" {
        let mut out = std::io::stdout();
        return match all().try_for_each(|(name, _)| writeln!(out, "{name}")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let said = match all().find(|(known, _)| *known == name) {
        Some((_, attempt)) => attempt(&facts),
        None => Said::Unclear("there is no such attempt".to_owned()),
    };
    said.tell()
}
