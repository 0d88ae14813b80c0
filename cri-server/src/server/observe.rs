//! A span and an outcome for every RPC.

use std::future::Future;
use std::time::Instant;

use tonic::{Response, Status};
use tracing::{Instrument, field};

use crate::failure::{Class, Failure};

/// Runs one RPC in its span. Fields `pod` and `container` are recorded when they are known.
pub(super) async fn rpc<M>(
    name: &'static str,
    work: impl Future<Output = Result<M, Failure>>,
) -> Result<Response<M>, Status> {
    let span = tracing::info_span!(
        "rpc",
        otel.name = name,
        rpc = name,
        pod = field::Empty,
        container = field::Empty
    );
    async {
        let begun = Instant::now();
        let result = work.await;
        let took = begun.elapsed();
        match &result {
            Ok(_) => tracing::debug!(?took, "done"),
            Err(failure) if failure.class() == Class::NotFound => {
                tracing::debug!(?took, %failure, "not found");
            }
            Err(failure) => tracing::warn!(?took, class = ?failure.class(), %failure, "failed"),
        }
        result.map(Response::new).map_err(Status::from)
    }
    .instrument(span)
    .await
}

/// Says in the current span which pod it is about.
pub(super) fn pod(id: &str) {
    tracing::Span::current().record("pod", id);
}

/// Says in the current span which container it is about.
pub(super) fn container(id: &str) {
    tracing::Span::current().record("container", id);
}
