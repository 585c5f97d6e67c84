//! The palisade command.

mod cli;
mod client;
mod commands;
mod follow;
mod local;
mod output;
mod secret;
mod terminal;

fn main() -> std::process::ExitCode {
    cli::main()
}
