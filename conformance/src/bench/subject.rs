//! One runtime under measurement, through the same client whichever it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bulkhead_proto::runtime::v1 as cri;
use bulkhead_proto::runtime::v1::image_service_client::ImageServiceClient;
use bulkhead_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

use super::memory;
use super::samples::Samples;
use crate::images::catalog;
use crate::node::{self, channel};

/// Obeys SIGTERM although it is PID 1.
const OBEDIENT: [&str; 3] = [
    "sh",
    "-c",
    "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done",
];
const MESSAGE_LIMIT: usize = 16 << 20;

/// Where a pod's network comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A namespace of its own.
    Pod,
    /// The node's.
    Host,
}

/// A runtime by its socket.
#[derive(Debug)]
pub struct Subject {
    /// Its name in the results.
    pub name: String,
    pub(super) runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    daemon: u32,
    logs: PathBuf,
    next: u32,
}

pub(super) fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

impl Subject {
    /// Connects and pulls what the measurements use.
    pub async fn connect(name: &str, socket: PathBuf) -> Result<Self> {
        let channel = channel(&socket)?;
        let mut subject = Self {
            name: name.to_owned(),
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel),
            daemon: memory::daemon(&socket)?,
            logs: PathBuf::from(format!("/var/tmp/bh-bench-{}-{name}", std::process::id())),
            next: 0,
        };
        for image in [catalog::BUSYBOX, catalog::PROBE] {
            let image = cri::ImageSpec {
                image: image.to_owned(),
                ..Default::default()
            };
            let request = cri::PullImageRequest {
                image: Some(image),
                ..Default::default()
            };
            subject
                .images
                .pull_image(request)
                .await
                .with_context(|| format!("{name}: pull"))?;
        }
        Ok(subject)
    }

    pub(super) fn pod_config(&mut self, network: Network) -> cri::PodSandboxConfig {
        self.next += 1;
        let name = format!("bench-{}", self.next);
        let mode = match network {
            Network::Pod => cri::NamespaceMode::Pod,
            Network::Host => cri::NamespaceMode::Node,
        };
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.clone(),
                uid: format!("{name}-{}", std::process::id()),
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            hostname: if network == Network::Pod {
                name
            } else {
                String::new()
            },
            log_directory: self.logs.join(self.next.to_string()).display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("/bulkhead-bench-{}", self.name),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(node::pods::namespaces(mode)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(super) async fn run(&mut self, config: &cri::PodSandboxConfig) -> Result<String> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        };
        Ok(self
            .runtime
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    pub(super) async fn create(
        &mut self,
        pod: &str,
        pod_config: &cri::PodSandboxConfig,
        config: &cri::ContainerConfig,
    ) -> Result<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(node::pods::fitting(config, pod_config)),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self
            .runtime
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    pub(super) async fn start(&mut self, id: &str) -> Result<()> {
        let request = cri::StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime.start_container(request).await?;
        Ok(())
    }

    pub(super) async fn end(&mut self, pod: &str) -> Result<()> {
        let stop = cri::StopPodSandboxRequest {
            pod_sandbox_id: pod.to_owned(),
        };
        self.runtime.stop_pod_sandbox(stop).await?;
        let remove = cri::RemovePodSandboxRequest {
            pod_sandbox_id: pod.to_owned(),
        };
        self.runtime.remove_pod_sandbox(remove).await?;
        Ok(())
    }

    /// One pod's life, each step timed.
    pub async fn lifecycle(&mut self, network: Network, samples: &mut Samples) -> Result<()> {
        let suffix = match network {
            Network::Pod => "podnet",
            Network::Host => "hostnet",
        };
        let name = self.name.clone();
        let mut took = |op: &str, value| samples.add(&name, op, "ms", value);
        let pod_config = self.pod_config(network);
        let config = node::pods::container("main", catalog::BUSYBOX, &OBEDIENT);

        let begin = Instant::now();
        let pod = self.run(&pod_config).await?;
        took(&format!("run_sandbox_{suffix}"), ms(begin));
        let creating = Instant::now();
        let id = self.create(&pod, &pod_config, &config).await?;
        took("create_container", ms(creating));
        let starting = Instant::now();
        self.start(&id).await?;
        took("start_container", ms(starting));
        took("create_start", ms(creating));
        took(&format!("run_create_start_{suffix}"), ms(begin));

        for _ in 0..3 {
            let exec = Instant::now();
            let request = cri::ExecSyncRequest {
                container_id: id.clone(),
                cmd: vec!["true".to_owned()],
                timeout: 10,
            };
            self.runtime.exec_sync(request).await?;
            took("exec_sync", ms(exec));
        }
        let stop = Instant::now();
        let request = cri::StopContainerRequest {
            container_id: id.clone(),
            timeout: 10,
        };
        self.runtime.stop_container(request).await?;
        took("stop_container", ms(stop));
        let remove = Instant::now();
        let request = cri::RemoveContainerRequest { container_id: id };
        self.runtime.remove_container(request).await?;
        took("remove_container", ms(remove));
        let stop = Instant::now();
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: pod.clone(),
        };
        self.runtime.stop_pod_sandbox(request).await?;
        took(&format!("stop_sandbox_{suffix}"), ms(stop));
        let remove = Instant::now();
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: pod,
        };
        self.runtime.remove_pod_sandbox(request).await?;
        took(&format!("remove_sandbox_{suffix}"), ms(remove));
        Ok(())
    }

    /// Resident memory of a daemon that has no pods.
    pub fn idle(&self, samples: &mut Samples) {
        samples.add(&self.name, "idle_rss", "MB", memory::rss(self.daemon));
    }

    /// With `count` pods: memory a pod beside its container's, lists, and rest.
    pub async fn crowd(&mut self, count: u32, rest: Duration, samples: &mut Samples) -> Result<()> {
        let before = memory::processes();
        let daemon_before = memory::pss(self.daemon);
        let config = node::pods::container("main", catalog::PROBE, &[]);
        let (mut pods, mut own) = (Vec::new(), before.clone());
        for _ in 0..count {
            let pod_config = self.pod_config(Network::Pod);
            let pod = self.run(&pod_config).await?;
            let id = self.create(&pod, &pod_config, &config).await?;
            self.start(&id).await?;
            pods.push(pod);
            own.extend(memory::family(self.init(&id).await?));
        }
        let helpers: Vec<u32> = memory::processes().difference(&own).copied().collect();
        let helpers: Vec<u32> = helpers
            .into_iter()
            .filter(|pid| memory::pss(*pid) > 0.0)
            .collect();
        let grown = memory::pss(self.daemon) - daemon_before;
        let total: f64 = helpers.iter().map(|pid| memory::pss(*pid)).sum();
        let name = self.name.clone();
        samples.add(
            &name,
            "pss_per_pod",
            "MB",
            (total + grown) / f64::from(count),
        );
        samples.add(&name, "helpers_per_pod", "processes", {
            u32::try_from(helpers.len()).map_or(0.0, f64::from) / f64::from(count)
        });
        for _ in 0..20 {
            self.lists(count, samples).await?;
        }
        let busy = |pids: &[u32]| -> f64 { pids.iter().map(|pid| memory::cpu(*pid)).sum() };
        let all: Vec<u32> = helpers.iter().copied().chain([self.daemon]).collect();
        let begin = busy(&all);
        tokio::time::sleep(rest).await;
        let minute = (busy(&all) - begin) * 60.0 / rest.as_secs_f64();
        samples.add(
            &name,
            &format!("cpu_at_rest_{count}_pods"),
            "ms/min",
            minute,
        );
        for pod in pods {
            self.end(&pod).await?;
        }
        Ok(())
    }

    async fn lists(&mut self, count: u32, samples: &mut Samples) -> Result<()> {
        let name = self.name.clone();
        let mut took = |op: &str, since| {
            samples.add(&name, &format!("{op}_{count}"), "ms", ms(since));
        };
        let begin = Instant::now();
        self.runtime
            .list_containers(cri::ListContainersRequest::default())
            .await?;
        took("list_containers", begin);
        let begin = Instant::now();
        self.runtime
            .list_pod_sandbox(cri::ListPodSandboxRequest::default())
            .await?;
        took("list_pod_sandbox", begin);
        let begin = Instant::now();
        self.runtime
            .list_container_stats(cri::ListContainerStatsRequest::default())
            .await?;
        took("list_container_stats", begin);
        Ok(())
    }

    async fn init(&mut self, id: &str) -> Result<u32> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        let info: BTreeMap<String, String> = self
            .runtime
            .container_status(request)
            .await?
            .into_inner()
            .info;
        node::info_pid(&info)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.logs).ok();
    }
}
