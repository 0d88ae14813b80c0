//! `make bench`: Bulkhead beside the floor and its peers, alternating, in one session.

pub mod memory;
pub mod samples;
mod streams;
pub mod subject;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::samples::Samples;
use self::subject::{Network, Subject};
use crate::critest::HOSTS;
use crate::images::{catalog, layout};
use crate::node::{self, Node};
use crate::peers::Containerd;
use crate::registry::Registry;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Samples of each lifecycle step.
    pub samples: u32,
    /// Pods for the figures of many.
    pub pods: u32,
    /// Where containerd and runc are; none without.
    pub peers: Option<PathBuf>,
    /// Other runtimes, by name and socket.
    pub others: Vec<(String, PathBuf)>,
    /// Whether Bulkhead itself takes part; without it the peers' figures alone are had.
    pub bulkhead: bool,
}

const WARM_UP: u32 = 2;
const REST: Duration = Duration::from_secs(20);

/// Runs the plan.
pub async fn run(plan: &Plan) -> Result<Samples> {
    let registry = Registry::start()?;
    registry.add_layout(layout::read(&layout::ensure(&node::target())?)?);
    let mut hosts = HOSTS.to_vec();
    hosts.push("bulkhead.test");
    let mut subjects = Vec::new();
    let node = match plan.bulkhead {
        true => Some(Node::start(&registry, &hosts).await?),
        false => None,
    };
    if let Some(node) = &node {
        subjects.push(Subject::connect("bulkhead", node.socket()).await?);
    }
    let containerd = match &plan.peers {
        Some(programs) => Some(Containerd::start(programs, &registry, &hosts).await?),
        None => None,
    };
    if let Some(peer) = &containerd {
        subjects.push(Subject::connect("containerd", peer.socket()).await?);
    }
    for (name, socket) in &plan.others {
        subjects.push(Subject::connect(name, socket.clone()).await?);
    }

    let mut samples = Samples::default();
    for subject in &subjects {
        subject.idle(&mut samples);
    }
    for round in 0..plan.samples + WARM_UP {
        for subject in &mut subjects {
            for network in [Network::Pod, Network::Host] {
                let mut kept = Samples::default();
                let into = if round < WARM_UP {
                    &mut kept
                } else {
                    &mut samples
                };
                let name = subject.name.clone();
                subject
                    .lifecycle(network, into)
                    .await
                    .with_context(|| name)?;
            }
        }
    }
    for subject in &mut subjects {
        let name = subject.name.clone();
        let streamed = subject.streams(plan.samples, &mut samples).await;
        streamed.with_context(|| name)?;
    }
    for subject in &mut subjects {
        let name = subject.name.clone();
        subject
            .crowd(plan.pods, REST, &mut samples)
            .await
            .with_context(|| name)?;
    }
    floor(plan.samples, &mut samples)?;
    drop(subjects);
    drop(containerd);
    if let Some(node) = node {
        node.finish().await?;
    }
    Ok(samples)
}

/// The bare system calls, without and with a network namespace.
fn floor(samples: u32, into: &mut Samples) -> Result<()> {
    let folder = node::target().join("images/floor");
    catalog::compile_probe(&folder)?;
    let beside = std::env::current_exe()?;
    let program = beside.parent().unwrap_or(Path::new(".")).join("floor");
    for (op, flags) in [
        ("run_create_start_hostnet", &[][..]),
        ("run_create_start_podnet", &["--network"]),
    ] {
        let output = Command::new(&program)
            .arg(folder.join("probe"))
            .arg(samples.to_string())
            .args(flags)
            .output()
            .with_context(|| format!("start {}", program.display()))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {errors}", program.display());
        let times: Vec<f64> = serde_json::from_slice(&output.stdout).context("floor's samples")?;
        for time in times {
            into.add("floor", op, "ms", time);
        }
    }
    Ok(())
}
