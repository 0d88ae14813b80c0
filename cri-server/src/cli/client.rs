//! The daemon, seen from the command line: its CRI socket, like any other client's.

use std::future::Future;
use std::path::Path;

use anyhow::Context as _;
use bulkhead_proto::runtime::v1::image_service_client::ImageServiceClient;
use bulkhead_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

/// What the daemon may answer at most; it sends no more than 16 MiB.
const MESSAGE_BYTES: usize = 16 << 20;

/// Both services. Cloning shares the connection.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) runtime: RuntimeServiceClient<Channel>,
    pub(super) images: ImageServiceClient<Channel>,
}

impl Client {
    /// Connects to the socket.
    pub(super) async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let channel = Endpoint::from_shared(format!("unix://{path}"))
            .context("the socket's path")?
            .connect()
            .await
            .map_err(|error| anyhow::anyhow!("{}", root_cause(&error)))
            .with_context(|| format!("no daemon at {path} (`bulkhead serve` is one)"))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES),
        })
    }
}

/// The transport wraps what matters ("connection refused") several times.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// A refusal by the daemon, as people read it.
pub(super) fn refused(status: &tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unimplemented => anyhow::anyhow!("the daemon can't: {}", status.message()),
        _ => anyhow::anyhow!("{}", status.message()),
    }
}

/// Adds what was asked to the daemon's refusal.
pub(super) trait Asking<T> {
    fn asking(self, what: impl FnOnce() -> String) -> anyhow::Result<T>;
}

impl<T> Asking<T> for Result<tonic::Response<T>, tonic::Status> {
    fn asking(self, what: impl FnOnce() -> String) -> anyhow::Result<T> {
        match self {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(refused(&status)).with_context(what),
        }
    }
}

/// Runs a command's own conversation; one thread is enough for it.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the asynchronous runtime")?
        .block_on(work)
}
