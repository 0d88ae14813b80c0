//! `bulkhead config print|check`.

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print the configuration in force, with the meaning and origin of each key
    Print,
    /// Read and check the configuration; says nothing when it is right
    Check,
}

pub(super) fn run(command: ConfigCommand, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    let loaded = super::load(file)?;
    if let ConfigCommand::Print = command {
        super::terminal::say(loaded.print()?.trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}
