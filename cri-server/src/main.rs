//! The `bulkhead` executable: parses, calls, and turns the end into an exit code.

use std::process::ExitCode;

use bulkhead_cri_server::cli;
use clap::Parser as _;

fn main() -> ExitCode {
    cli::main(cli::Cli::parse())
}
