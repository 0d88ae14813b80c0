//! A daemon that pretends: it keeps pods and containers in memory, writes logs, and ends containers
//! as their environment says. Every method is written out by a macro, as the services have forty.

#![expect(
    clippy::unwrap_used,
    reason = "what goes wrong in the fake fails its test"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bulkhead_proto::runtime::v1::image_service_server::{ImageService, ImageServiceServer};
use bulkhead_proto::runtime::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use bulkhead_proto::runtime::v1::*;
use tonic::{Request, Response, Status};

/// What the daemon holds, and the mutating requests it had.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub calls: Vec<String>,
    pub sandboxes: BTreeMap<String, (PodSandboxConfig, i64)>,
    pub containers: BTreeMap<String, Fake>,
    next: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Fake {
    pub sandbox: String,
    pub config: ContainerConfig,
    state: ContainerState,
    exit_code: i32,
    created: i64,
    log: PathBuf,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Daemon(Arc<Mutex<State>>);

impl Daemon {
    /// Serves on the socket until the process ends.
    pub(crate) fn serve(&self, socket: &Path) {
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (one, two) = (self.clone(), self.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                tonic::transport::Server::builder()
                    .add_service(RuntimeServiceServer::new(one))
                    .add_service(ImageServiceServer::new(two))
                    .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener))
                    .await
                    .unwrap();
            });
        });
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn tick(&mut self) -> i64 {
        self.next += 1;
        self.next
    }

    fn run_pod(&mut self, config: PodSandboxConfig) -> Result<String, Status> {
        let created = self.tick();
        let id = format!("{created:064x}");
        self.sandboxes.insert(id.clone(), (config, created));
        Ok(id)
    }

    fn create(&mut self, request: CreateContainerRequest) -> Result<String, Status> {
        let created = self.tick();
        let id = format!("{created:064x}");
        let config = request.config.unwrap_or_default();
        let (sandbox, _) = &self.sandboxes[&request.pod_sandbox_id];
        let log = Path::new(&sandbox.log_directory).join(&config.log_path);
        let fake = Fake {
            sandbox: request.pod_sandbox_id,
            config,
            state: ContainerState::ContainerCreated,
            exit_code: 0,
            created,
            log,
        };
        self.containers.insert(id.clone(), fake);
        Ok(id)
    }

    /// Writes the log; ends at once with the code in `EXIT`, a list of one per attempt.
    fn start(&mut self, id: &str) -> Result<(), Status> {
        let fake = self.containers.get_mut(id).unwrap();
        let text = |name: &str| {
            let found = fake
                .config
                .envs
                .iter()
                .find(|variable| variable.key == name);
            found.map(|variable| String::from_utf8_lossy(&variable.value).into_owned())
        };
        if let Some(message) = text("REFUSE") {
            fake.state = ContainerState::ContainerExited;
            return Err(Status::internal(message));
        }
        let lines = text("SAY").unwrap_or_default();
        let record = format!("2026-01-01T00:00:00.000000000Z stdout F {lines}\n");
        fs::create_dir_all(fake.log.parent().unwrap()).unwrap();
        fs::write(&fake.log, record).unwrap();
        let attempt = fake
            .config
            .metadata
            .as_ref()
            .map_or(0, |metadata| metadata.attempt);
        let codes = text("EXIT");
        let code = codes
            .as_deref()
            .and_then(|codes| codes.split(',').nth(attempt as usize));
        fake.state = ContainerState::ContainerRunning;
        if let Some(code) = code {
            fake.state = ContainerState::ContainerExited;
            fake.exit_code = code.parse().unwrap();
        }
        Ok(())
    }

    fn sandbox_list(&self) -> Vec<PodSandbox> {
        let item = |(id, (config, created)): (&String, &(PodSandboxConfig, i64))| PodSandbox {
            id: id.clone(),
            metadata: config.metadata.clone(),
            created_at: *created,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ..Default::default()
        };
        self.sandboxes.iter().map(item).collect()
    }

    fn container_list(&self) -> Vec<Container> {
        let item = |(id, fake): (&String, &Fake)| Container {
            id: id.clone(),
            pod_sandbox_id: fake.sandbox.clone(),
            metadata: fake.config.metadata.clone(),
            state: fake.state.into(),
            created_at: fake.created,
            labels: fake.config.labels.clone(),
            ..Default::default()
        };
        self.containers.iter().map(item).collect()
    }

    fn container(&self, id: &str) -> Result<ContainerStatus, Status> {
        let fake = self
            .containers
            .get(id)
            .ok_or_else(|| Status::not_found("no such container"))?;
        let ended = fake.state == ContainerState::ContainerExited;
        Ok(ContainerStatus {
            id: id.to_owned(),
            metadata: fake.config.metadata.clone(),
            state: fake.state.into(),
            created_at: fake.created,
            started_at: fake.created,
            finished_at: if ended { fake.created + 1 } else { 0 },
            exit_code: fake.exit_code,
            image: fake.config.image.clone(),
            reason: if fake.exit_code == 0 {
                "Completed"
            } else {
                "Error"
            }
            .to_owned(),
            log_path: fake.log.to_string_lossy().into_owned(),
            ..Default::default()
        })
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Later<'a, T> = Pin<Box<dyn Future<Output = Answer<T>> + Send + 'a>>;

/// Methods as `name(Request) -> Response { |state, request| … }`; without a body they refuse.
macro_rules! methods {
    ($($name:ident($request:ty) -> $response:ty $({ $work:expr })?;)*) => {
        $(fn $name<'a, 'b>(&'a self, request: Request<$request>) -> Later<'b, $response>
        where
            'a: 'b,
            Self: 'b,
        {
            let request = request.into_inner();
            Box::pin(async move { methods!(@answer self, $name, request: $request $(, $work)?) })
        })*
    };
    (@answer $self:ident, $name:ident, $request:ident: $type:ty) => {{
        let _: (&Daemon, _) = ($self, $request);
        Err(Status::unimplemented(stringify!($name)))
    }};
    (@answer $self:ident, $name:ident, $request:ident: $type:ty, $work:expr) => {{
        let mut state = $self.state();
        let work: fn(&mut State, $type) -> Result<_, Status> = $work;
        work(&mut state, $request).map(Response::new)
    }};
}

type Never<T> = tokio_stream::Empty<Result<T, Status>>;

impl RuntimeService for Daemon {
    type StreamPodSandboxesStream = Never<StreamPodSandboxesResponse>;
    type StreamContainersStream = Never<StreamContainersResponse>;
    type StreamContainerStatsStream = Never<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Never<StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = Never<ContainerEventResponse>;
    type StreamPodSandboxMetricsStream = Never<StreamPodSandboxMetricsResponse>;

    methods! {
        status(StatusRequest) -> StatusResponse { |_, _| Ok(StatusResponse::default()) };
        run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse { |state, request| {
            state.calls.push("run".to_owned());
            let pod_sandbox_id = state.run_pod(request.config.unwrap_or_default())?;
            Ok(RunPodSandboxResponse { pod_sandbox_id })
        }};
        stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse { |state, _| {
            state.calls.push("stop pod".to_owned());
            Ok(StopPodSandboxResponse {})
        }};
        remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse { |state, request| {
            state.calls.push("remove pod".to_owned());
            state.sandboxes.remove(&request.pod_sandbox_id);
            state.containers.retain(|_, fake| fake.sandbox != request.pod_sandbox_id);
            Ok(RemovePodSandboxResponse {})
        }};
        pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse { |_, request| {
            let network = PodSandboxNetworkStatus { ip: "10.0.0.9".to_owned(), ..Default::default() };
            let status = PodSandboxStatus {
                id: request.pod_sandbox_id,
                network: Some(network),
                ..Default::default()
            };
            Ok(PodSandboxStatusResponse { status: Some(status), ..Default::default() })
        }};
        list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse { |state, _| {
            Ok(ListPodSandboxResponse { items: state.sandbox_list() })
        }};
        create_container(CreateContainerRequest) -> CreateContainerResponse { |state, request| {
            let metadata = request.config.as_ref().and_then(|config| config.metadata.clone());
            let metadata = metadata.unwrap_or_default();
            state.calls.push(format!("create {} {}", metadata.name, metadata.attempt));
            let container_id = state.create(request)?;
            Ok(CreateContainerResponse { container_id })
        }};
        start_container(StartContainerRequest) -> StartContainerResponse { |state, request| {
            state.start(&request.container_id)?;
            Ok(StartContainerResponse {})
        }};
        stop_container(StopContainerRequest) -> StopContainerResponse { |state, request| {
            let fake = state.containers.get_mut(&request.container_id).unwrap();
            fake.state = ContainerState::ContainerExited;
            let name = fake.config.metadata.clone().unwrap_or_default().name;
            state.calls.push(format!("stop {name} {}", request.timeout));
            Ok(StopContainerResponse {})
        }};
        list_containers(ListContainersRequest) -> ListContainersResponse { |state, _| {
            Ok(ListContainersResponse { containers: state.container_list() })
        }};
        container_status(ContainerStatusRequest) -> ContainerStatusResponse { |state, request| {
            let status = Some(state.container(&request.container_id)?);
            Ok(ContainerStatusResponse { status, ..Default::default() })
        }};
        version(VersionRequest) -> VersionResponse;
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> Never<StreamPodSandboxesResponse>;
        remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        stream_containers(StreamContainersRequest) -> Never<StreamContainersResponse>;
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        exec_sync(ExecSyncRequest) -> ExecSyncResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        stream_container_stats(StreamContainerStatsRequest) -> Never<StreamContainerStatsResponse>;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> Never<StreamPodSandboxStatsResponse>;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
        restore_pod(RestorePodRequest) -> RestorePodResponse;
        get_container_events(GetEventsRequest) -> Never<ContainerEventResponse>;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> Never<StreamPodSandboxMetricsResponse>;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    }
}

impl ImageService for Daemon {
    type StreamImagesStream = Never<StreamImagesResponse>;

    methods! {
        image_status(ImageStatusRequest) -> ImageStatusResponse { |_, request| {
            let name = request.image.unwrap_or_default().image;
            let image = Image {
                id: "sha256:0a".to_owned(),
                username: if name.contains("named") { "www".to_owned() } else { String::new() },
                ..Default::default()
            };
            let image = (!name.contains("absent")).then_some(image);
            Ok(ImageStatusResponse { image, ..Default::default() })
        }};
        pull_image(PullImageRequest) -> PullImageResponse { |state, request| {
            let name = request.image.unwrap_or_default().image;
            state.calls.push(format!("pull {name}"));
            if name.contains("absent") {
                return Err(Status::not_found("no such image\u{1b}[2J"));
            }
            Ok(PullImageResponse { image_ref: "sha256:0a".to_owned() })
        }};
        list_images(ListImagesRequest) -> ListImagesResponse;
        stream_images(StreamImagesRequest) -> Never<StreamImagesResponse>;
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }
}
