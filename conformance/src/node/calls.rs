//! The requests tests make, one line each at the place of use.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::runtime::v1 as cri;
use tonic::Status;

use super::{Log, Node};

/// What a command in a container did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Its exit code.
    pub code: i32,
    /// What it wrote, as text.
    pub stdout: String,
    /// What it wrote to stderr, as text.
    pub stderr: String,
}

/// How long a test waits for something that should take milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

fn spec(image: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    })
}

impl Node {
    /// Version.
    pub async fn version(&self) -> Result<cri::VersionResponse, Status> {
        let request = cri::VersionRequest {
            version: "0.1.0".to_owned(),
        };
        Ok(self.runtime.clone().version(request).await?.into_inner())
    }

    /// PullImage without credentials; the image's id.
    pub async fn pull(&self, image: &str) -> Result<String, Status> {
        self.pull_with(image, None).await
    }

    /// PullImage with credentials.
    pub async fn pull_with(
        &self,
        image: &str,
        auth: Option<cri::AuthConfig>,
    ) -> Result<String, Status> {
        let request = cri::PullImageRequest {
            image: spec(image),
            auth,
            sandbox_config: None,
        };
        Ok(self
            .images
            .clone()
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }

    /// ImageStatus.
    pub async fn image(&self, image: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest {
            image: spec(image),
            verbose: false,
        };
        Ok(self
            .images
            .clone()
            .image_status(request)
            .await?
            .into_inner()
            .image)
    }

    /// ListImages, all of them.
    pub async fn list_images(&self) -> Result<Vec<cri::Image>, Status> {
        let request = cri::ListImagesRequest { filter: None };
        Ok(self
            .images
            .clone()
            .list_images(request)
            .await?
            .into_inner()
            .images)
    }

    /// RemoveImage.
    pub async fn remove_image(&self, image: &str) -> Result<(), Status> {
        let request = cri::RemoveImageRequest { image: spec(image) };
        self.images.clone().remove_image(request).await.map(|_| ())
    }

    /// RunPodSandbox with the default handler; the pod's id.
    pub async fn run_pod(&self, config: &cri::PodSandboxConfig) -> Result<String, Status> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        Ok(self
            .runtime
            .clone()
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime
            .clone()
            .stop_pod_sandbox(request)
            .await
            .map(|_| ())
    }

    /// RemovePodSandbox.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime
            .clone()
            .remove_pod_sandbox(request)
            .await
            .map(|_| ())
    }

    /// PodSandboxStatus.
    pub async fn pod_status(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let answer = self
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        answer.status.context("PodSandboxStatus without status")
    }

    /// ListPodSandbox, all of them.
    pub async fn list_pods(&self) -> Result<Vec<cri::PodSandbox>, Status> {
        let request = cri::ListPodSandboxRequest { filter: None };
        Ok(self
            .runtime
            .clone()
            .list_pod_sandbox(request)
            .await?
            .into_inner()
            .items)
    }

    /// CreateContainer; its id.
    pub async fn create(
        &self,
        pod: &str,
        pod_config: &cri::PodSandboxConfig,
        config: &cri::ContainerConfig,
    ) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self
            .runtime
            .clone()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    /// StartContainer.
    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime
            .clone()
            .start_container(request)
            .await
            .map(|_| ())
    }

    /// CreateContainer and StartContainer; the id.
    pub async fn launch_container(
        &self,
        pod: &str,
        pod_config: &cri::PodSandboxConfig,
        config: &cri::ContainerConfig,
    ) -> Result<String, Status> {
        let id = self.create(pod, pod_config, config).await?;
        self.start_container(&id).await?;
        Ok(id)
    }

    /// Runs a container to its end: its last status and its log as (stdout, stderr).
    pub async fn run_to_end(
        &self,
        pod: &str,
        pod_config: &cri::PodSandboxConfig,
        config: &cri::ContainerConfig,
    ) -> Result<(cri::ContainerStatus, Log)> {
        let id = self.launch_container(pod, pod_config, config).await?;
        let status = self.wait_exit(&id).await?;
        let log = Log::read(&status.log_path)?;
        Ok((status, log))
    }

    /// StopContainer.
    pub async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        self.runtime
            .clone()
            .stop_container(request)
            .await
            .map(|_| ())
    }

    /// RemoveContainer.
    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime
            .clone()
            .remove_container(request)
            .await
            .map(|_| ())
    }

    /// ContainerStatus.
    pub async fn status(&self, id: &str) -> Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self
            .runtime
            .clone()
            .container_status(request)
            .await?
            .into_inner();
        answer.status.context("ContainerStatus without status")
    }

    /// The init process of a container, from its verbose status.
    pub async fn init_pid(&self, id: &str) -> Result<u32> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        let info = self
            .runtime
            .clone()
            .container_status(request)
            .await?
            .into_inner()
            .info;
        info_pid(&info)
    }

    /// ListContainers, all of them.
    pub async fn list_containers(&self) -> Result<Vec<cri::Container>, Status> {
        let request = cri::ListContainersRequest { filter: None };
        Ok(self
            .runtime
            .clone()
            .list_containers(request)
            .await?
            .into_inner()
            .containers)
    }

    /// Waits until a container has exited.
    pub async fn wait_exit(&self, id: &str) -> Result<cri::ContainerStatus> {
        let begin = Instant::now();
        loop {
            let status = self.status(id).await?;
            if status.state() == cri::ContainerState::ContainerExited {
                return Ok(status);
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "{id} has not exited: {status:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// ExecSync with a time-out of ten seconds.
    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<Exec, Status> {
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 10,
        };
        let answer = self.runtime.clone().exec_sync(request).await?.into_inner();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Exec {
            code: answer.exit_code,
            stdout: text(&answer.stdout),
            stderr: text(&answer.stderr),
        })
    }

    /// The output of a command that must succeed.
    pub async fn output(&self, id: &str, command: &[&str]) -> Result<String> {
        let done = self.exec(id, command).await?;
        ensure!(done.code == 0, "{command:?} in {id}: {done:?}");
        Ok(done.stdout)
    }

    /// Removes every pod and every image.
    pub async fn remove_everything(&self) -> Result<()> {
        for pod in self.list_pods().await? {
            self.stop_pod(&pod.id)
                .await
                .with_context(|| format!("stop {}", pod.id))?;
            self.remove_pod(&pod.id)
                .await
                .with_context(|| format!("remove {}", pod.id))?;
        }
        let left = self.list_containers().await?;
        ensure!(left.is_empty(), "containers outlive their pods: {left:?}");
        for image in self.list_images().await? {
            self.remove_image(&image.id)
                .await
                .with_context(|| format!("remove {}", image.id))?;
        }
        Ok(())
    }
}

/// `pid` in the JSON under `info` of a verbose answer, which node software reads.
pub fn info_pid(info: &BTreeMap<String, String>) -> Result<u32> {
    let text = info.get("info").context("a verbose answer without info")?;
    let value: serde_json::Value = serde_json::from_str(text).context("info is no JSON")?;
    let pid = value["pid"].as_u64().context("info without pid")?;
    Ok(u32::try_from(pid)?)
}
