//! `bulkhead play`: a Pod manifest run on this machine through the daemon's own CRI socket.
//!
//! `manifest` reads it strictly, `plan` maps it to CRI (both pure), `pull`, `volumes` and `run`
//! carry it out, `follow` stays with it. What the pod keeps is below `<root>/play/<uid>`.

mod backoff;
mod document;
mod follow;
mod log;
mod manifest;
mod node;
mod plan;
mod pull;
mod quantity;
mod run;
mod volumes;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;

use super::client::{Client, block_on};
use super::terminal::{safe, say};
use super::{down, pods};
use document::Problem;
use manifest::Manifest;

pub(super) use log::{LogReader, Screen};
pub(super) use plan::{CONTAINER_NAME, Folder, GRACE, PLAYED, POD_NAME, POD_NAMESPACE};
pub(super) use volumes::remove as remove_folder;

/// No sane manifest is larger.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Args, Debug)]
pub(super) struct PlayArgs {
    /// A Kubernetes Pod manifest; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Stay: show the logs, start containers again as restartPolicy says
    #[arg(long, short)]
    follow: bool,
    /// End a pod of the same name first
    #[arg(long)]
    replace: bool,
    /// Only check the manifest
    #[arg(long, conflicts_with_all = ["follow", "replace"])]
    check: bool,
}

pub(super) fn run(args: &PlayArgs, socket: &Path, root: &Path) -> anyhow::Result<ExitCode> {
    let node = node::probe()?;
    let manifest = read(&args.file)?;
    let plan = match plan::plan(&manifest, &node) {
        Ok(plan) => plan,
        Err(problems) => return Err(report(&args.file, &problems)),
    };
    if args.check {
        return Ok(ExitCode::SUCCESS);
    }
    block_on(async {
        let mut client = Client::connect(socket).await?;
        let name = format!("{}/{}", plan.namespace, plan.name);
        for pod in pods::list(&mut client)
            .await?
            .iter()
            .filter(|pod| pod.is(&name))
        {
            if !args.replace {
                bail!("pod {name} is there already: `bulkhead down {name}` ends it, --replace too");
            }
            down::end(&client, pod, root, None).await?;
        }
        let images = pull::all(&client, &plan).await?;
        let mut running = run::start(&client, &plan, &node, root, images).await?;
        say(&format!("{} runs", safe(&name)))?;
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        Ok(match follow::follow(&mut running).await? {
            follow::End::Done { well: true } => ExitCode::SUCCESS,
            follow::End::Done { well: false } => ExitCode::FAILURE,
            follow::End::Detached => {
                eprintln!(
                    "\n`bulkhead logs {name}` shows its logs, `bulkhead down {name}` ends it"
                );
                ExitCode::SUCCESS
            }
        })
    })
}

/// Namespace and name of the pod a manifest describes.
pub(super) fn names(file: &Path) -> anyhow::Result<(String, String)> {
    let metadata = read(file)?.pod.metadata;
    let name = metadata
        .name
        .with_context(|| format!("{}: no metadata.name", file.display()))?;
    Ok((
        metadata.namespace.unwrap_or_else(|| "default".to_owned()),
        name,
    ))
}

fn read(file: &Path) -> anyhow::Result<Manifest> {
    let mut text = String::new();
    let source: Box<dyn std::io::Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(file).with_context(|| format!("open {}", file.display()))?)
    };
    let mut bounded = source.take(MAX_BYTES + 1);
    bounded
        .read_to_string(&mut text)
        .with_context(|| format!("read {}", file.display()))?;
    if bounded.limit() == 0 {
        bail!("{} is larger than 1 MiB", file.display());
    }
    Manifest::parse(&text).map_err(|problems| report(file, &problems))
}

/// All problems on standard error, each with its line; the error that sums them up.
fn report(file: &Path, problems: &[Problem]) -> anyhow::Error {
    let shown = file.display().to_string();
    for problem in problems {
        eprintln!("{}:{}: {}", safe(&shown), problem.line, safe(&problem.text));
    }
    anyhow::anyhow!(
        "{shown} can't be played: {} found",
        match problems.len() {
            1 => "1 problem".to_owned(),
            many => format!("{many} problems"),
        }
    )
}
