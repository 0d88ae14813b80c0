//! The command line: what can be asked for, and who answers it. Parse, call, print.
//!
//! Exit codes: 0 done, 1 failed or (for `check`) something needed is missing, 2 misused.

mod check;
mod client;
mod config;
mod down;
mod exec;
mod logs;
mod play;
mod pods;
mod port_forward;
mod ps;
mod serve;
mod session;
mod target;
mod terminal;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::{DEFAULT_FILE, Loaded};

/// Bulkhead, a Kubernetes CRI runtime.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, propagate_version = true)]
pub struct Cli {
    /// Configuration file; drop-ins are read from config.d beside it
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    config: Option<PathBuf>,
    /// The daemon's socket, instead of the configuration's
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help_heading = "Global options"
    )]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve,
    /// Show or check the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Report what this node offers, what is used, and what it would take to have the rest
    Check,
    /// Run a Kubernetes Pod manifest on this machine
    Play(play::PlayArgs),
    /// End played pods
    Down(down::DownArgs),
    /// List played pods and their containers
    Ps,
    /// Show what a played pod's containers wrote
    Logs(logs::LogsArgs),
    /// Run a command in a container
    Exec(exec::ExecArgs),
    /// Join the streams of a running container
    Attach(exec::AttachArgs),
    /// Lead local ports to ports of a pod
    PortForward(port_forward::PortForwardArgs),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command; says on standard error why it failed.
pub fn main(cli: Cli) -> ExitCode {
    match run(cli) {
        Ok(code) => code,
        // Whoever read our output has read enough.
        Err(error) if terminal::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead: {}", terminal::safe(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let file = cli.config.as_deref();
    let daemon = || -> anyhow::Result<(PathBuf, PathBuf)> {
        let config = load(file)?.config;
        Ok((cli.socket.unwrap_or(config.socket.path), config.root))
    };
    match cli.command {
        Command::Serve => serve::run(load(file)?.config).map(|()| ExitCode::SUCCESS),
        Command::Config(command) => config::run(command, file),
        Command::Check => check::run(&load(file)?.config),
        Command::Play(args) => daemon().and_then(|(socket, root)| play::run(&args, &socket, &root)),
        Command::Down(args) => daemon().and_then(|(socket, root)| down::run(&args, &socket, &root)),
        Command::Ps => daemon().and_then(|(socket, _)| ps::run(&socket)),
        Command::Logs(args) => daemon().and_then(|(socket, _)| logs::run(&args, &socket)),
        Command::Exec(args) => daemon().and_then(|(socket, _)| exec::exec(args, &socket)),
        Command::Attach(args) => daemon().and_then(|(socket, _)| exec::attach(args, &socket)),
        Command::PortForward(args) => {
            daemon().and_then(|(socket, _)| port_forward::run(&args, &socket))
        }
        Command::Version => {
            terminal::say(concat!("bulkhead ", env!("CARGO_PKG_VERSION")))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bulkhead", &mut script);
            terminal::say(String::from_utf8_lossy(&script).trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The configuration. The default file may be missing, one that was named may not.
fn load(file: Option<&Path>) -> anyhow::Result<Loaded> {
    if let Some(file) = file {
        ensure!(file.is_file(), "--config {}: no such file", file.display());
    }
    Loaded::read(file.unwrap_or(Path::new(DEFAULT_FILE))).context("configuration")
}
