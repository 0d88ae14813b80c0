//! The gRPC server on its unix socket: each RPC is parse → operation → render.

mod image_service;
pub mod listen;
mod observe;
mod runtime_service;
pub mod status;
mod unserved;

use std::os::unix::net::UnixListener;
use std::time::Duration;

use bulkhead_proto::runtime::v1::image_service_server::ImageServiceServer;
use bulkhead_proto::runtime::v1::runtime_service_server::RuntimeServiceServer;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::failure::{Class, Doing, Failure};
use crate::node::NodeHandle;

/// Requests one connection may have open at once; hyper's 200 is little for a kubelet with 110
/// pods and their probes.
const STREAMS_PER_CONNECTION: u32 = 1000;

/// Streams reset before they were answered that end a connection (rapid reset, CVE-2023-44487).
const PENDING_RESETS: usize = 50;

/// The RPCs, over the node they act on.
#[derive(Clone, Debug)]
struct Service {
    node: NodeHandle,
}

/// Serves until the daemon stops.
///
/// # Errors
/// When the listener can't be used.
pub async fn serve(node: NodeHandle, listener: UnixListener) -> Result<(), Failure> {
    let listener = tokio::net::UnixListener::from_std(listener).doing("listen")?;
    let limit = node.config.limits.message_bytes;
    let service = Service { node: node.clone() };
    Server::builder()
        .max_concurrent_streams(Some(STREAMS_PER_CONNECTION))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .add_service(
            RuntimeServiceServer::new(service.clone())
                .max_decoding_message_size(limit)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(
            ImageServiceServer::new(service)
                .max_decoding_message_size(limit)
                .max_encoding_message_size(usize::MAX),
        )
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            node.tasks.stopping().await;
        })
        .await
        .doing("serve")
}

/// Refuses an answer the client would refuse: with the code and the way out it expects.
fn fits<M: prost::Message>(message: M, limit: usize) -> Result<M, Failure> {
    let length = message.encoded_len();
    if length > limit {
        return Err(Failure::new(
            Class::Exhausted,
            format!(
                "the answer has {length} bytes, more than the {limit} clients accept; ask with a filter"
            ),
        ));
    }
    Ok(message)
}
