//! `bulkhead down`: ends played pods and removes what they kept, by name or by manifest.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use bulkhead_proto::runtime::v1;
use clap::Args;
use futures_util::future::join_all;

use super::client::{Asking as _, Client, block_on};
use super::play::{self, Folder, GRACE};
use super::pods::{self, Pod};
use super::terminal::{safe, say};

#[derive(Args, Debug)]
pub(super) struct DownArgs {
    /// Pods by name or namespace/name, or manifests they were played from
    #[arg(required_unless_present = "all", value_name = "POD|FILE")]
    pods: Vec<String>,
    /// End every pod that was played
    #[arg(long, conflicts_with = "pods")]
    all: bool,
    /// Seconds to wait before killing, instead of the manifest's
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u32>,
}

pub(super) fn run(args: &DownArgs, socket: &Path, root: &Path) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut client = Client::connect(socket).await?;
        let mut found = pods::list(&mut client).await?;
        if !args.all {
            let names: Vec<_> = args
                .pods
                .iter()
                .map(|text| name(text))
                .collect::<Result<_, _>>()?;
            found = pods::select(found, &names)?;
        }
        for pod in found {
            end(&client, &pod, root, args.grace.map(i64::from)).await?;
            say(&format!(
                "{}/{} is down",
                safe(pod.namespace()),
                safe(pod.name())
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A manifest stands for the pod it describes.
fn name(text: &str) -> anyhow::Result<String> {
    let file = PathBuf::from(text);
    let is_file = file
        .extension()
        .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    if !is_file {
        return Ok(text.to_owned());
    }
    let (namespace, name) = play::names(&file)?;
    Ok(format!("{namespace}/{name}"))
}

/// Stops the containers together, each within the pod's grace, then removes the pod.
pub(super) async fn end(
    client: &Client,
    pod: &Pod,
    root: &Path,
    grace: Option<i64>,
) -> anyhow::Result<()> {
    let asked = pod
        .sandbox
        .annotations
        .get(GRACE)
        .and_then(|text| text.parse().ok());
    let timeout = grace.or(asked).unwrap_or(0);
    let stops = pod.containers.iter().map(|container| {
        let mut client = client.clone();
        let container_id = container.id.clone();
        async move {
            let request = v1::StopContainerRequest {
                container_id,
                timeout,
            };
            let stopped = client.runtime.stop_container(request).await;
            stopped.asking(|| "stop a container".to_owned())
        }
    });
    let failed: Vec<_> = join_all(stops)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    // Stopping the pod kills what did not stop, so a failure here only costs the grace.
    for error in failed {
        eprintln!("bulkhead: {}", safe(&format!("{error:#}")));
    }
    remove(client, &pod.sandbox.id, pod.uid(), root)
        .await
        .with_context(|| format!("end pod {}", pod.name()))
}

/// Removes the sandbox and then what was kept for it.
pub(super) async fn remove(
    client: &Client,
    sandbox: &str,
    uid: &str,
    root: &Path,
) -> anyhow::Result<()> {
    let mut client = client.clone();
    let pod_sandbox_id = sandbox.to_owned();
    let request = v1::StopPodSandboxRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
    };
    let stopped = client.runtime.stop_pod_sandbox(request).await;
    stopped.asking(|| "stop the sandbox".to_owned())?;
    let request = v1::RemovePodSandboxRequest { pod_sandbox_id };
    let removed = client.runtime.remove_pod_sandbox(request).await;
    removed.asking(|| "remove the sandbox".to_owned())?;
    // The uid names a folder below our root, so it has to be one of ours.
    let plain = uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    ensure!(
        plain && uid.len() == 36,
        "the pod's uid {uid:?} is none that play gives"
    );
    play::remove_folder(&Folder::of(root, uid))
}
