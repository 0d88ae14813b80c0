//! `bulkhead logs`: what a played pod's containers wrote, in colour by container.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bulkhead_proto::runtime::v1;
use clap::Args;

use super::client::{Asking as _, Client, block_on};
use super::play::{LogReader, Screen};
use super::pods::{self, Pod, container_name};

/// How often followed logs are looked at.
const PERIOD: Duration = Duration::from_millis(200);

#[derive(Args, Debug)]
pub(super) struct LogsArgs {
    /// The pod, by name or namespace/name
    #[arg(value_name = "POD")]
    pod: String,
    /// Only this container
    #[arg(long, short)]
    container: Option<String>,
    /// Go on as more is written, until the containers end or an interrupt
    #[arg(long, short)]
    follow: bool,
}

pub(super) fn run(args: &LogsArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut client = Client::connect(socket).await?;
        let mut readers = Vec::new();
        let pod = find(&mut client, args).await?;
        let screen = Screen::new(pod.containers.iter().map(container_name));
        for (index, container) in pod.containers.iter().enumerate() {
            let name = container_name(container);
            let path = log_path(&mut client, container).await?;
            readers.push(LogReader::new(&screen, name, index, Path::new(&path)));
        }
        loop {
            let ended = !args.follow || !any_running(&find(&mut client, args).await?);
            for reader in &mut readers {
                reader.drain()?;
            }
            if ended {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
    })
}

/// The pod, with the containers asked for.
async fn find(client: &mut Client, args: &LogsArgs) -> anyhow::Result<Pod> {
    let pods = pods::select(pods::list(client).await?, std::slice::from_ref(&args.pod))?;
    let mut pod = pods.into_iter().next().context("the pod is gone")?;
    if let Some(wanted) = &args.container {
        pod.containers
            .retain(|container| container_name(container) == wanted);
        ensure!(
            !pod.containers.is_empty(),
            "pod {} has no container {wanted}",
            args.pod
        );
    }
    Ok(pod)
}

fn any_running(pod: &Pod) -> bool {
    pod.containers
        .iter()
        .any(|c| c.state() == v1::ContainerState::ContainerRunning)
}

async fn log_path(client: &mut Client, container: &v1::Container) -> anyhow::Result<String> {
    let request = v1::ContainerStatusRequest {
        container_id: container.id.clone(),
        verbose: false,
    };
    let answer = client.runtime.container_status(request).await;
    let answer = answer.asking(|| format!("ask for container {}", container_name(container)))?;
    Ok(answer.status.unwrap_or_default().log_path)
}
