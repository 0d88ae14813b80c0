//! The command line of the rig; the Makefile's recipes call it.

#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bulkhead_conformance::bench;
use bulkhead_conformance::critest::{self, Groups, HOSTS, Run};
use bulkhead_conformance::demo;
use bulkhead_conformance::images::{catalog, layout};
use bulkhead_conformance::node::{self, Node};
use bulkhead_conformance::peers::Containerd;
use bulkhead_conformance::registry::Registry;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Test images, a registry, critest and benchmarks for Bulkhead")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the test images if they are not there, and prints their folder.
    Images,
    /// Prints the digest that takes the place of critest's.
    Digest,
    /// Serves the test images on loopback until ended.
    Serve {
        /// Where to write the hosts.toml files that lead to it.
        #[arg(long)]
        certs_d: PathBuf,
    },
    /// Starts a daemon, a registry and a pod (`make run`).
    Up {
        /// The demo's folder.
        #[arg(long)]
        root: PathBuf,
        /// The Pod manifest.
        #[arg(long)]
        manifest: PathBuf,
    },
    /// Ends what `up` started (`make stop`).
    Down {
        /// The demo's folder.
        #[arg(long)]
        root: PathBuf,
    },
    /// Measures Bulkhead beside the floor and its peers.
    Bench {
        /// The folder with containerd, runc and the CNI plugins.
        #[arg(long)]
        peers_dir: Option<PathBuf>,
        /// One more runtime, as NAME=unix:///SOCKET; may be repeated.
        #[arg(long = "peer", value_parser = named_socket)]
        others: Vec<(String, PathBuf)>,
        /// Samples of each lifecycle step.
        #[arg(long, default_value_t = 20)]
        samples: u32,
        /// Pods for memory, lists and rest.
        #[arg(long, default_value_t = 20)]
        pods: u32,
        /// Leaves Bulkhead out.
        #[arg(long)]
        without_bulkhead: bool,
        /// Every sample, as JSON.
        #[arg(long)]
        json: PathBuf,
        /// The Markdown table.
        #[arg(long)]
        table: Option<PathBuf>,
    },
    /// Runs critest.
    Critest {
        /// Which specs.
        #[arg(long, value_enum, default_value = "required")]
        groups: Groups,
        /// A regular expression that narrows them.
        #[arg(long, default_value = "")]
        only: String,
        /// Another runtime's socket instead of a fresh Bulkhead node.
        #[arg(long)]
        socket: Option<PathBuf>,
        /// The peer whose programs are in this folder instead of a fresh Bulkhead node.
        #[arg(long, conflicts_with = "socket")]
        peer: Option<PathBuf>,
        /// The JSON report.
        #[arg(long)]
        report: PathBuf,
        /// The report of another machine, for what is skipped on this one.
        #[arg(long)]
        more: Option<PathBuf>,
        /// The Markdown table.
        #[arg(long)]
        table: Option<PathBuf>,
    },
}

fn named_socket(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once("=unix://") {
        Some((name, path)) if path.starts_with('/') => Ok((name.to_owned(), path.into())),
        _ => Err(format!("{text:?} is no NAME=unix:///SOCKET")),
    }
}

fn main() -> ExitCode {
    let done = tokio::runtime::Runtime::new()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(Arguments::parse().command)));
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Images => println!("{}", layout::ensure(&node::target())?.display()),
        Command::Digest => println!("{}", catalog::by_digest()?.manifest.digest),
        Command::Serve { certs_d } => demo::serve(&certs_d)?,
        Command::Up { root, manifest } => demo::up(&root, &manifest)?,
        Command::Down { root } => demo::down(&root)?,
        Command::Bench {
            peers_dir,
            others,
            samples,
            pods,
            without_bulkhead,
            json,
            table,
        } => {
            let plan = bench::Plan {
                samples,
                pods,
                peers: peers_dir,
                others,
                bulkhead: !without_bulkhead,
            };
            let measured = bench::run(&plan).await?;
            measured.write(&json)?;
            let text = measured.table();
            println!("{text}");
            if let Some(path) = table {
                std::fs::write(&path, text)?;
            }
        }
        Command::Critest {
            groups,
            only,
            socket,
            peer,
            report,
            more,
            table,
        } => {
            let subject = Subject { socket, peer };
            let files = Files {
                report,
                more,
                table,
            };
            return run_critest(subject, groups, only, files).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What critest runs against; a fresh node if neither is given.
struct Subject {
    socket: Option<PathBuf>,
    peer: Option<PathBuf>,
}

/// What critest's run is written to and merged with.
struct Files {
    report: PathBuf,
    more: Option<PathBuf>,
    table: Option<PathBuf>,
}

async fn run_critest(
    subject: Subject,
    groups: Groups,
    only: String,
    files: Files,
) -> Result<ExitCode> {
    let registry = Registry::start()?;
    registry.add_layout(layout::read(&layout::ensure(&node::target())?)?);
    let mut own = None;
    let mut peer = None;
    let socket = if let Some(socket) = subject.socket {
        socket
    } else if let Some(programs) = subject.peer {
        peer.insert(Containerd::start(&programs, &registry, HOSTS).await?)
            .socket()
    } else {
        own.insert(Node::start(&registry, HOSTS).await?).socket()
    };
    let again = groups != Groups::WebSocket && only.is_empty();
    let websocket = Run {
        socket: socket.clone(),
        groups: Groups::WebSocket,
        only: String::new(),
        report: files.report.with_extension("websocket.json"),
    };
    let mut result = critest::run(&Run {
        socket,
        groups,
        only,
        report: files.report,
    })?;
    if again {
        result.specs.extend(critest::run(&websocket)?.specs);
    }
    if let Some(more) = files.more {
        let bytes = std::fs::read(&more).with_context(|| format!("read {}", more.display()))?;
        result.merge(&critest::report::Report::parse(&bytes)?);
    }
    drop(peer);
    for spec in &result.specs {
        if let critest::report::Outcome::Failed(why) = &spec.outcome {
            println!("FAILED {}: {why}", spec.name);
        }
    }
    if let Some(path) = files.table {
        std::fs::write(&path, result.table())?;
    }
    let (passed, failed, skipped) = result.counts();
    println!("critest, seed {}:", result.seed);
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if let Some(node) = own {
        node.finish().await?;
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
