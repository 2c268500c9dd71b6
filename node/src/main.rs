//! The `quire` program.

use clap::Parser;
use quire_node::args::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    match quire_node::cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("quire: {error:#}");
            ExitCode::FAILURE
        }
    }
}
