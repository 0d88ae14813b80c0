//! `bulkhead ps`: played pods and their containers in a table.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_proto::runtime::v1;
use comfy_table::{ContentArrangement, Table, presets};

use super::client::{Asking as _, Client, block_on};
use super::pods::{self, Pod, container_name};
use super::terminal::{safe, say};

pub(super) fn run(socket: &Path) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut client = Client::connect(socket).await?;
        let mut rows = Vec::new();
        for pod in pods::list(&mut client).await? {
            rows.extend(of_pod(&mut client, &pod).await?);
        }
        say(&table(rows).trim_fmt())?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn of_pod(client: &mut Client, pod: &Pod) -> anyhow::Result<Vec<Vec<String>>> {
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod.sandbox.id.clone(),
        verbose: false,
    };
    let status = match client.runtime.pod_sandbox_status(request).await {
        // It went away meanwhile.
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(Vec::new()),
        answer => {
            answer
                .asking(|| format!("ask for pod {}", pod.name()))?
                .status
        }
    };
    let address = status
        .and_then(|status| status.network)
        .map(|network| network.ip);
    let pod_name = format!("{}/{}", pod.namespace(), pod.name());
    let mut rows = Vec::new();
    for container in &pod.containers {
        let request = v1::ContainerStatusRequest {
            container_id: container.id.clone(),
            verbose: false,
        };
        let Some(status) = (match client.runtime.container_status(request).await {
            Err(status) if status.code() == tonic::Code::NotFound => continue,
            answer => {
                answer
                    .asking(|| format!("ask for {}", container_name(container)))?
                    .status
            }
        }) else {
            continue;
        };
        rows.push(vec![
            pod_name.clone(),
            container_name(container).to_owned(),
            state(&status, now()),
            restarts(container),
            image(&status),
            address.clone().unwrap_or_default(),
            container.id.chars().take(12).collect(),
        ]);
    }
    if rows.is_empty() {
        let state = match pod.sandbox.state() {
            v1::PodSandboxState::SandboxReady => "no containers",
            v1::PodSandboxState::SandboxNotready => "stopped",
        };
        rows.push(vec![pod_name, "-".to_owned(), state.to_owned()]);
    }
    Ok(rows)
}

fn table(rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "POD",
        "CONTAINER",
        "STATE",
        "RESTARTS",
        "IMAGE",
        "ADDRESS",
        "ID",
    ]);
    for row in rows {
        table.add_row(row.iter().map(|cell| safe(cell)));
    }
    table
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn restarts(container: &v1::Container) -> String {
    container
        .metadata
        .as_ref()
        .map_or(0, |metadata| metadata.attempt)
        .to_string()
}

/// The image as the manifest names it.
fn image(status: &v1::ContainerStatus) -> String {
    let spec = status.image.clone().unwrap_or_default();
    if spec.user_specified_image.is_empty() {
        spec.image
    } else {
        spec.user_specified_image
    }
}

/// `running 5m`, `exited 1 (Error) 2h ago`.
fn state(status: &v1::ContainerStatus, now: Duration) -> String {
    let since = |ns: i64| {
        let then = Duration::from_nanos(u64::try_from(ns).unwrap_or(0));
        age(now.saturating_sub(then))
    };
    match status.state() {
        v1::ContainerState::ContainerCreated => "created".to_owned(),
        v1::ContainerState::ContainerRunning => format!("running {}", since(status.started_at)),
        v1::ContainerState::ContainerExited => format!(
            "exited {} ({}) {} ago",
            status.exit_code,
            status.reason,
            since(status.finished_at)
        ),
        v1::ContainerState::ContainerUnknown => "unknown".to_owned(),
    }
}

fn age(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=59 => format!("{seconds}s"),
        seconds @ 60..=3599 => format!("{}m", seconds / 60),
        seconds @ 3600..=86_399 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_as_people_say_them() {
        let at = |seconds: i64| seconds * 1_000_000_000;
        for (state_, finished, shown) in [
            (v1::ContainerState::ContainerCreated, 0, "created"),
            (v1::ContainerState::ContainerRunning, 0, "running 5m"),
            (
                v1::ContainerState::ContainerExited,
                at(390),
                "exited 1 (Error) 10s ago",
            ),
            // A clock that was set back is no reason to fail.
            (
                v1::ContainerState::ContainerExited,
                at(900),
                "exited 1 (Error) 0s ago",
            ),
        ] {
            let status = v1::ContainerStatus {
                state: state_.into(),
                started_at: at(100),
                finished_at: finished,
                exit_code: 1,
                reason: "Error".to_owned(),
                ..Default::default()
            };
            assert_eq!(state(&status, Duration::from_secs(400)), shown);
        }
    }

    #[test]
    fn a_table_holds_no_control_characters() {
        let row = vec!["a\u{1b}[2J".to_owned(), "b\nc".to_owned()];
        let text = table(vec![row]).trim_fmt();
        assert!(!text.contains('\u{1b}'));
        assert_eq!(text.lines().count(), 2);
    }
}
