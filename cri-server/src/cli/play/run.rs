//! A pod brought up: sandbox, init containers in order, sidecars beside them, then the rest.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bulkhead_proto::runtime::v1;

use super::backoff::Backoff;
use super::plan::{ContainerPlan, Facts, Folder, Node, Plan, Role};
use super::pull::Images;
use super::volumes;
use crate::cli::client::{Asking as _, Client};
use crate::cli::down;
use crate::cli::terminal::safe;

/// How often a container's end is looked for.
const PERIOD: Duration = Duration::from_millis(200);

/// A pod that runs.
#[derive(Debug)]
pub(super) struct Running<'a> {
    pub(super) plan: &'a Plan,
    pub(super) folder: Folder,
    client: Client,
    uid: String,
    node_name: String,
    recursive_read_only: bool,
    images: Images,
    sandbox_id: String,
    config: v1::PodSandboxConfig,
    addresses: Vec<String>,
}

/// Brings the pod up. What fails half-way is taken down again.
pub(super) async fn start<'a>(
    client: &Client,
    plan: &'a Plan,
    node: &Node,
    root: &Path,
    images: Images,
) -> anyhow::Result<Running<'a>> {
    for container in &plan.containers {
        check_user(container, &images)?;
    }
    let uid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("make a uid")?;
    let uid = uid.trim().to_owned();
    let folder = Folder::of(root, &uid);
    let recursive_read_only = recursive_read_only(client, &plan.handler).await?;
    let mut running = Running {
        config: plan.sandbox(&uid, &folder),
        plan,
        folder,
        client: client.clone(),
        uid,
        node_name: node.name.clone(),
        recursive_read_only,
        images,
        sandbox_id: String::new(),
        addresses: Vec::new(),
    };
    match running.bring_up().await {
        Ok(()) => Ok(running),
        Err(error) => {
            if let Err(also) = running.take_down(root).await {
                eprintln!("bulkhead: {}", safe(&format!("after a failure: {also:#}")));
            }
            Err(error)
        }
    }
}

/// What runAsNonRoot forbids and only the image tells.
fn check_user(container: &ContainerPlan, images: &Images) -> anyhow::Result<()> {
    let image = images
        .get(&container.image)
        .context("an image was not pulled")?;
    let Some(user) = container.user_of(image) else {
        return Ok(());
    };
    let name = &container.name;
    ensure!(
        user.is_some_and(|uid| uid != 0),
        "container {name} has runAsNonRoot, but its image's user is {}",
        match user {
            Some(_) => "root".to_owned(),
            None => format!("{:?}, which may be root: set runAsUser", image.username),
        }
    );
    Ok(())
}

/// Whether the daemon is ready, and what the pod's handler can do.
async fn recursive_read_only(client: &Client, handler: &str) -> anyhow::Result<bool> {
    let mut client = client.clone();
    let request = v1::StatusRequest { verbose: false };
    let status = client
        .runtime
        .status(request)
        .await
        .asking(|| "ask for the status".to_owned())?;
    for condition in status.status.unwrap_or_default().conditions {
        let needed = condition.r#type == "RuntimeReady";
        ensure!(
            condition.status || !needed,
            "the daemon is not ready: {}",
            condition.message
        );
    }
    let handlers = status.runtime_handlers.into_iter();
    let features = handlers
        .filter(|h| h.name == handler)
        .find_map(|h| h.features);
    Ok(features.is_some_and(|features| features.recursive_read_only_mounts))
}

impl Running<'_> {
    async fn bring_up(&mut self) -> anyhow::Result<()> {
        volumes::prepare(self.plan, &self.folder)?;
        let request = v1::RunPodSandboxRequest {
            config: Some(self.config.clone()),
            runtime_handler: self.plan.handler.clone(),
        };
        let made = self.client.runtime.run_pod_sandbox(request).await;
        self.sandbox_id = made
            .asking(|| format!("run pod {}", self.plan.name))?
            .pod_sandbox_id;
        self.addresses = self.ask_addresses().await?;
        let plan = self.plan;
        for container in &plan.containers {
            match container.role {
                Role::Init => self.run_init(container).await?,
                Role::Sidecar | Role::Main => {
                    self.launch(container, 0).await?;
                }
            }
        }
        Ok(())
    }

    async fn ask_addresses(&mut self) -> anyhow::Result<Vec<String>> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: self.sandbox_id.clone(),
            verbose: false,
        };
        let answer = self.client.runtime.pod_sandbox_status(request).await;
        let status = answer
            .asking(|| "ask for the pod's addresses".to_owned())?
            .status;
        let network = status.unwrap_or_default().network.unwrap_or_default();
        let first = Some(network.ip).filter(|ip| !ip.is_empty());
        Ok(first
            .into_iter()
            .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
            .collect())
    }

    /// Runs an init container to its end, again after failures where the policy says so.
    async fn run_init(&mut self, container: &ContainerPlan) -> anyhow::Result<()> {
        let mut backoff = Backoff::default();
        for attempt in 0.. {
            let id = self.launch(container, attempt).await?;
            let status = self.wait(&id).await?;
            if status.exit_code == 0 {
                return Ok(());
            }
            let ended = format!("init container {} {}", container.name, ended(&status));
            if !container.restarts(self.plan.restart, status.exit_code) {
                bail!("{ended}{}", self.last_words(&container.name, attempt));
            }
            let wait = backoff.next(ran(&status));
            eprintln!("{}; again in {} s", safe(&ended), wait.as_secs());
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// Creates and starts one attempt of a container.
    pub(super) async fn launch(
        &mut self,
        container: &ContainerPlan,
        attempt: u32,
    ) -> anyhow::Result<String> {
        volumes::bind_sub_paths(container, &self.folder)
            .with_context(|| format!("container {}", container.name))?;
        let image = self
            .images
            .get(&container.image)
            .context("an image was not pulled")?;
        let facts = Facts {
            uid: &self.uid,
            addresses: &self.addresses,
            node_name: &self.node_name,
            folder: &self.folder,
            recursive_read_only: self.recursive_read_only,
        };
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.sandbox_id.clone(),
            config: Some(container.config(&self.config, &facts, image, attempt)),
            sandbox_config: Some(self.config.clone()),
        };
        let created = self.client.runtime.create_container(request).await;
        let id = created
            .asking(|| format!("create container {}", container.name))?
            .container_id;
        let request = v1::StartContainerRequest {
            container_id: id.clone(),
        };
        let started = self.client.runtime.start_container(request).await;
        started.asking(|| format!("start container {}", container.name))?;
        Ok(id)
    }

    /// The container's end.
    async fn wait(&mut self, id: &str) -> anyhow::Result<v1::ContainerStatus> {
        loop {
            let status = self.status(id).await?;
            if status.state() != v1::ContainerState::ContainerRunning {
                return Ok(status);
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    pub(super) async fn status(&mut self, id: &str) -> anyhow::Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.client.runtime.container_status(request).await;
        let status = answer.asking(|| "ask for a container".to_owned())?.status;
        status.context("the daemon sent an empty status")
    }

    /// The pod's containers as the daemon lists them, newest attempts only.
    pub(super) async fn containers(&mut self) -> anyhow::Result<Vec<v1::Container>> {
        let pods = crate::cli::pods::list(&mut self.client).await?;
        let own = pods
            .into_iter()
            .find(|pod| pod.sandbox.id == self.sandbox_id);
        Ok(own.map(|pod| pod.containers).unwrap_or_default())
    }

    /// Ends what goes on by itself once the main containers are done.
    pub(super) async fn stop(&mut self, id: &str) -> anyhow::Result<()> {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: self.plan.grace_seconds,
        };
        let stopped = self.client.runtime.stop_container(request).await;
        stopped.asking(|| "stop a sidecar".to_owned()).map(drop)
    }

    pub(super) fn log_path(&self, name: &str, attempt: u32) -> std::path::PathBuf {
        self.folder.logs().join(ContainerPlan::log(name, attempt))
    }

    /// The end of a failed container's log, as its folder is about to go.
    fn last_words(&self, name: &str, attempt: u32) -> String {
        const LINES: usize = 5;
        let text = std::fs::read(self.log_path(name, attempt)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<_> = text
            .lines()
            .rev()
            .take(LINES)
            .filter_map(|line| line.splitn(4, ' ').nth(3))
            .collect();
        lines.reverse();
        if lines.is_empty() {
            String::new()
        } else {
            format!("; its last words: {}", lines.join(" / "))
        }
    }

    async fn take_down(&mut self, root: &Path) -> anyhow::Result<()> {
        if self.sandbox_id.is_empty() {
            return volumes::remove(&self.folder);
        }
        down::remove(&self.client, &self.sandbox_id, &self.uid, root).await
    }
}

/// How a container ended, for people.
pub(super) fn ended(status: &v1::ContainerStatus) -> String {
    let message = if status.message.is_empty() {
        String::new()
    } else {
        format!(": {}", status.message)
    };
    format!(
        "ended with code {} ({}){message}",
        status.exit_code, status.reason
    )
}

/// How long a container ran.
pub(super) fn ran(status: &v1::ContainerStatus) -> Duration {
    let nanos = status.finished_at.saturating_sub(status.started_at);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}
