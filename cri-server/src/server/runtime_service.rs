//! RuntimeService: pods and containers. Each method is parse → operation → render.

use std::time::Duration;

use bulkhead_proto::runtime::v1::runtime_service_server::RuntimeService;
use bulkhead_proto::runtime::v1::*;
use prost::Message as _;
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::observe::{self, rpc};
use super::unserved::unserved;
use super::{Service, fits};
use crate::clock::now;
use crate::container;
use crate::failure::{Failure, gone_is_done};
use crate::pod;
use crate::records::ContainerKey;
use crate::render;
use crate::request::exec::{attach, exec, exec_sync, port_forward};
use crate::request::filter::{ContainerFilter, ContainerView, SandboxFilter, SandboxView};
use crate::stats;
use crate::{info, request};

type Answered<M> = Result<Response<M>, Status>;
type NoStream<M> = Empty<Result<M, Status>>;

/// The longest grace period honoured, in seconds; more would overflow clocks somewhere.
const LONGEST_GRACE: i64 = 1 << 31;

impl Service {
    fn limit(&self) -> usize {
        self.node.config.limits.message_bytes
    }

    /// The full id of a pod a client names.
    fn pod_id(&self, id: &str) -> Result<String, Failure> {
        let id = self.node.records.snapshot().find_pod(id)?.id.clone();
        observe::pod(&id);
        Ok(id)
    }

    /// The full id of a container a client names.
    fn container_id(&self, id: &str) -> Result<String, Failure> {
        let snapshot = self.node.records.snapshot();
        let container = snapshot.find_container(id)?;
        observe::pod(&container.pod);
        observe::container(&container.id);
        Ok(container.id.clone())
    }

    /// One ending (a stop or removal) at a time per object; a twin joins it.
    async fn ending<F>(&self, verb: &'static str, id: &str, work: F) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.node
            .endings
            .run(verb, format!("{verb} {id}"), Vec::new(), work)
            .await
    }

    async fn run_pod(&self, request: RunPodSandboxRequest) -> Result<String, Failure> {
        let wire = request.encode_to_vec();
        let config = request.config.unwrap_or_default();
        let parsed = request::sandbox::parse(&config, &request.runtime_handler)?;
        self.check_handler(&parsed.handler)?;
        let key = parsed.key.clone();
        let work = pod::run::run(self.node.clone(), parsed, config);
        let id = self.node.runs.run("RunPodSandbox", key, wire, work).await?;
        observe::pod(&id);
        Ok(id)
    }

    fn check_handler(&self, handler: &str) -> Result<(), Failure> {
        if handler.is_empty()
            || self
                .node
                .config
                .handlers
                .iter()
                .any(|known| known == handler)
        {
            return Ok(());
        }
        Err(Failure::invalid(format!(
            "runtime_handler: {handler:?} is not known here; known are {:?} and \"\"",
            self.node.config.handlers
        )))
    }

    async fn create_container(&self, request: CreateContainerRequest) -> Result<String, Failure> {
        let wire = request.encode_to_vec();
        let pod = self.pod_id(&request.pod_sandbox_id)?;
        let config = request.config.unwrap_or_default();
        let metadata = config.metadata.clone().unwrap_or_default();
        let key = ContainerKey {
            pod: pod.clone(),
            name: metadata.name,
            attempt: metadata.attempt,
        };
        let work = container::create::create(self.node.clone(), pod, config);
        let id = self
            .node
            .creations
            .run("CreateContainer", key, wire, work)
            .await?;
        observe::container(&id);
        Ok(id)
    }

    /// Runs `work` as a task of its own, whatever becomes of the client.
    async fn detached<F>(&self, name: &'static str, work: F) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.node
            .tasks
            .spawn(name, work)
            .await
            .map_err(|error| Failure::internal(format!("{name}: {error}")))?
    }

    fn image_name(&self, container: &crate::records::ContainerRecord) -> Option<String> {
        let image = self.node.images.find(&container.image_id).ok().flatten()?;
        image.repo_tags.first().cloned()
    }

    fn container_status(
        &self,
        container: &crate::records::ContainerRecord,
    ) -> bulkhead_proto::runtime::v1::ContainerStatus {
        render::container::status(container, self.image_name(container).as_deref())
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _request: Request<VersionRequest>) -> Answered<VersionResponse> {
        rpc("Version", async { Ok(info::version()) }).await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Answered<RunPodSandboxResponse> {
        rpc("RunPodSandbox", async {
            let pod_sandbox_id = self.run_pod(request.into_inner()).await?;
            Ok(RunPodSandboxResponse { pod_sandbox_id })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answered<StopPodSandboxResponse> {
        rpc("StopPodSandbox", async {
            let result = async {
                let id = self.pod_id(&request.into_inner().pod_sandbox_id)?;
                let work = pod::stop::stop(self.node.clone(), id.clone());
                self.ending("StopPodSandbox", &id, work).await
            };
            gone_is_done(result.await)?;
            Ok(StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answered<RemovePodSandboxResponse> {
        rpc("RemovePodSandbox", async {
            let result = async {
                let id = self.pod_id(&request.into_inner().pod_sandbox_id)?;
                let work = pod::remove::remove(self.node.clone(), id.clone());
                self.ending("RemovePodSandbox", &id, work).await
            };
            gone_is_done(result.await)?;
            Ok(RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answered<PodSandboxStatusResponse> {
        rpc("PodSandboxStatus", async {
            let request = request.into_inner();
            let snapshot = self.node.records.snapshot();
            let pod = snapshot.find_pod(&request.pod_sandbox_id)?;
            observe::pod(&pod.id);
            let containers_statuses = snapshot
                .containers_of(&pod.id)
                .filter(|container| container.is_visible())
                .map(|container| self.container_status(container))
                .collect();
            let mut response = PodSandboxStatusResponse {
                status: Some(render::sandbox::status(pod)),
                info: Default::default(),
                containers_statuses,
                timestamp: now(),
            };
            if request.verbose {
                response.info.insert("info".to_owned(), info::pod(pod));
            }
            fits(response, self.limit())
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answered<ListPodSandboxResponse> {
        rpc("ListPodSandbox", async {
            let filter = SandboxFilter::parse(request.into_inner().filter.as_ref())?;
            let items = self
                .node
                .records
                .snapshot()
                .pods()
                .filter(|pod| pod.is_visible())
                .filter(|pod| {
                    filter.matches(SandboxView {
                        id: &pod.id,
                        ready: pod.is_ready(),
                        labels: &pod.config.labels,
                    })
                })
                .map(|pod| render::sandbox::item(pod))
                .collect();
            fits(ListPodSandboxResponse { items }, self.limit())
        })
        .await
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answered<CreateContainerResponse> {
        rpc("CreateContainer", async {
            let container_id = Self::create_container(self, request.into_inner()).await?;
            Ok(CreateContainerResponse { container_id })
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answered<StartContainerResponse> {
        rpc("StartContainer", async {
            let id = self.container_id(&request.into_inner().container_id)?;
            let work = container::start::start(self.node.clone(), id);
            self.detached("StartContainer", work).await?;
            Ok(StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Answered<StopContainerResponse> {
        rpc("StopContainer", async {
            let request = request.into_inner();
            let seconds = request.timeout.clamp(0, LONGEST_GRACE);
            let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            let result = async {
                let id = self.container_id(&request.container_id)?;
                container::stop::stop(self.node.clone(), id, grace).await
            };
            gone_is_done(result.await)?;
            Ok(StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answered<RemoveContainerResponse> {
        rpc("RemoveContainer", async {
            let result = async {
                let id = self.container_id(&request.into_inner().container_id)?;
                let work = container::remove::remove(self.node.clone(), id.clone());
                self.ending("RemoveContainer", &id, work).await
            };
            gone_is_done(result.await)?;
            Ok(RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answered<ListContainersResponse> {
        rpc("ListContainers", async {
            let filter = ContainerFilter::parse(request.into_inner().filter.as_ref())?;
            let containers = self
                .node
                .records
                .snapshot()
                .containers()
                .filter(|container| container.is_visible())
                .filter(|container| filter.matches(view(container)))
                .map(|container| render::container::item(container))
                .collect();
            fits(ListContainersResponse { containers }, self.limit())
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answered<ContainerStatusResponse> {
        rpc("ContainerStatus", async {
            let request = request.into_inner();
            let snapshot = self.node.records.snapshot();
            let container = snapshot.find_container(&request.container_id)?;
            observe::container(&container.id);
            let mut response = ContainerStatusResponse {
                status: Some(Self::container_status(self, container)),
                info: Default::default(),
            };
            if request.verbose {
                let spec = self.node.records.spec(&container.id)?;
                response
                    .info
                    .insert("info".to_owned(), info::container(container, &spec));
            }
            fits(response, self.limit())
        })
        .await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answered<UpdateContainerResourcesResponse> {
        rpc("UpdateContainerResources", async {
            let request = request.into_inner();
            let id = self.container_id(&request.container_id)?;
            let work = container::update::update(self.node.clone(), id, request);
            self.detached("UpdateContainerResources", work).await?;
            Ok(UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answered<ReopenContainerLogResponse> {
        rpc("ReopenContainerLog", async {
            let id = self.container_id(&request.into_inner().container_id)?;
            container::log::reopen(&self.node, &id).await?;
            Ok(ReopenContainerLogResponse {})
        })
        .await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answered<ExecSyncResponse> {
        rpc("ExecSync", async {
            let request = exec_sync(&request.into_inner())?;
            let id = self.container_id(&request.container)?;
            let output =
                container::exec::exec_sync(&self.node, &id, request.command, request.timeout)
                    .await?;
            Ok(ExecSyncResponse {
                stdout: output.stdout,
                stderr: output.stderr,
                exit_code: output.exit_code,
            })
        })
        .await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answered<ExecResponse> {
        rpc("Exec", async {
            let mut request = exec(&request.into_inner())?;
            request.container = container::stream::check_exec(&self.node, &request)?;
            observe::container(&request.container);
            let url = self.node.streaming.exec(request)?;
            Ok(ExecResponse { url })
        })
        .await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answered<AttachResponse> {
        rpc("Attach", async {
            let mut request = attach(&request.into_inner())?;
            request.container = container::stream::check_attach(&self.node, &request)?;
            observe::container(&request.container);
            let url = self.node.streaming.attach(request)?;
            Ok(AttachResponse { url })
        })
        .await
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Answered<PortForwardResponse> {
        rpc("PortForward", async {
            let (sandbox, ports) = port_forward(&request.into_inner())?;
            let pod = pod::forward::check(&self.node, &sandbox)?;
            observe::pod(&pod);
            let url = self.node.streaming.port_forward(pod, ports)?;
            Ok(PortForwardResponse { url })
        })
        .await
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answered<ContainerStatsResponse> {
        rpc("ContainerStats", async {
            let snapshot = self.node.records.snapshot();
            let container = snapshot.find_container(&request.into_inner().container_id)?;
            observe::container(&container.id);
            let usage = stats::usage(&self.node, container).await?;
            let stats = self.render_stats(container, usage.as_ref());
            Ok(ContainerStatsResponse { stats: Some(stats) })
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answered<ListContainerStatsResponse> {
        rpc("ListContainerStats", async {
            let filter = ContainerFilter::parse_stats(request.into_inner().filter.as_ref())?;
            let containers: Vec<_> = self
                .node
                .records
                .snapshot()
                .containers()
                .filter(|container| container.is_visible() && filter.matches(view(container)))
                .cloned()
                .collect();
            let usages = stats::usages(&self.node, containers.clone()).await?;
            let stats = containers
                .iter()
                .map(|container| self.render_stats(container, usages.get(&container.id)))
                .collect();
            fits(ListContainerStatsResponse { stats }, self.limit())
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        _request: Request<PodSandboxStatsRequest>,
    ) -> Answered<PodSandboxStatsResponse> {
        Err(unserved("PodSandboxStats"))
    }

    async fn list_pod_sandbox_stats(
        &self,
        _request: Request<ListPodSandboxStatsRequest>,
    ) -> Answered<ListPodSandboxStatsResponse> {
        Err(unserved("ListPodSandboxStats"))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answered<UpdateRuntimeConfigResponse> {
        rpc("UpdateRuntimeConfig", async {
            let cidr = request
                .into_inner()
                .runtime_config
                .and_then(|config| config.network_config)
                .map(|network| network.pod_cidr)
                .unwrap_or_default();
            if !cidr.is_empty() {
                let network = self.node.network.clone();
                let work = async move { network.update_pod_cidr(&cidr).await };
                self.detached("UpdateRuntimeConfig", work).await?;
            }
            Ok(UpdateRuntimeConfigResponse {})
        })
        .await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answered<StatusResponse> {
        rpc("Status", async {
            Ok(info::status(&self.node, request.into_inner().verbose).await)
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        _request: Request<CheckpointContainerRequest>,
    ) -> Answered<CheckpointContainerResponse> {
        Err(unserved("CheckpointContainer"))
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<ListMetricDescriptorsRequest>,
    ) -> Answered<ListMetricDescriptorsResponse> {
        Err(unserved("ListMetricDescriptors"))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<ListPodSandboxMetricsRequest>,
    ) -> Answered<ListPodSandboxMetricsResponse> {
        Err(unserved("ListPodSandboxMetrics"))
    }

    async fn runtime_config(
        &self,
        _request: Request<RuntimeConfigRequest>,
    ) -> Answered<RuntimeConfigResponse> {
        rpc("RuntimeConfig", async {
            Ok(info::runtime_config(&self.node))
        })
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answered<UpdatePodSandboxResourcesResponse> {
        rpc("UpdatePodSandboxResources", async {
            let request = request.into_inner();
            let id = self.pod_id(&request.pod_sandbox_id)?;
            pod::update::record_resources(&self.node, id, request).await?;
            Ok(UpdatePodSandboxResourcesResponse {})
        })
        .await
    }

    async fn checkpoint_pod(
        &self,
        _request: Request<CheckpointPodRequest>,
    ) -> Answered<CheckpointPodResponse> {
        Err(unserved("CheckpointPod"))
    }

    async fn restore_pod(
        &self,
        _request: Request<RestorePodRequest>,
    ) -> Answered<RestorePodResponse> {
        Err(unserved("RestorePod"))
    }

    type GetContainerEventsStream = NoStream<ContainerEventResponse>;
    type StreamPodSandboxesStream = NoStream<StreamPodSandboxesResponse>;
    type StreamContainersStream = NoStream<StreamContainersResponse>;
    type StreamContainerStatsStream = NoStream<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = NoStream<StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = NoStream<StreamPodSandboxMetricsResponse>;

    async fn get_container_events(
        &self,
        _request: Request<GetEventsRequest>,
    ) -> Answered<Self::GetContainerEventsStream> {
        Err(unserved("GetContainerEvents"))
    }

    async fn stream_pod_sandboxes(
        &self,
        _request: Request<StreamPodSandboxesRequest>,
    ) -> Answered<Self::StreamPodSandboxesStream> {
        Err(unserved("StreamPodSandboxes"))
    }

    async fn stream_containers(
        &self,
        _request: Request<StreamContainersRequest>,
    ) -> Answered<Self::StreamContainersStream> {
        Err(unserved("StreamContainers"))
    }

    async fn stream_container_stats(
        &self,
        _request: Request<StreamContainerStatsRequest>,
    ) -> Answered<Self::StreamContainerStatsStream> {
        Err(unserved("StreamContainerStats"))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        _request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answered<Self::StreamPodSandboxStatsStream> {
        Err(unserved("StreamPodSandboxStats"))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _request: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answered<Self::StreamPodSandboxMetricsStream> {
        Err(unserved("StreamPodSandboxMetrics"))
    }
}

impl Service {
    fn render_stats(
        &self,
        container: &crate::records::ContainerRecord,
        usage: Option<&stats::Usage>,
    ) -> bulkhead_proto::runtime::v1::ContainerStats {
        let writable = self
            .node
            .images
            .writable_usage(&container.id)
            .unwrap_or_default();
        let mountpoint = self.node.images.fs_info().mountpoint;
        let layer = render::stats::writable_layer(&mountpoint, writable, now());
        render::stats::container(container, usage, Some(layer))
    }
}

fn view(container: &crate::records::ContainerRecord) -> ContainerView<'_> {
    ContainerView {
        id: &container.id,
        sandbox: &container.pod,
        state: render::container::state(container),
        labels: &container.config.labels,
    }
}
