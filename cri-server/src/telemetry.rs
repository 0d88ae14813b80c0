//! Logs for people or machines, and traces to an OTLP endpoint when one is configured.
//!
//! The exporter has a thread and a runtime of its own: exporting and shutting down block, and on
//! the daemon's workers that deadlocks when none is free (opentelemetry-rust#2802). Its own
//! transport is kept out of what it exports, or it would feed itself.

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Config, LogFormat};
use crate::failure::{Doing, Failure};

/// How long the last spans may take to leave at the end.
const FLUSH: Duration = Duration::from_secs(3);

/// Libraries the exporter itself works with.
const TRANSPORT: [&str; 5] = ["h2", "hyper", "tonic", "tower", "reqwest"];

/// Keeps the exporter alive; [`Telemetry::stop`] sends what is left.
#[derive(Debug, Default)]
pub struct Telemetry {
    exporter: Option<(SdkTracerProvider, tokio::runtime::Runtime)>,
}

/// Begins logging to standard error and, if configured, exporting spans.
///
/// # Errors
/// When the level can't be read or the exporter can't be made.
pub fn start(config: &Config) -> Result<Telemetry, Failure> {
    let level = EnvFilter::try_new(&config.log.level)
        .map_err(|error| Failure::invalid(format!("log.level {:?}: {error}", config.log.level)))?;
    let exporter = config
        .telemetry
        .otlp_endpoint
        .as_deref()
        .map(exporter)
        .transpose()?;
    let spans = exporter.as_ref().map(|(provider, _)| {
        let ours = filter_fn(|meta| {
            !TRANSPORT
                .iter()
                .any(|library| meta.target().starts_with(library))
        });
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("bulkhead"))
            .with_filter(ours)
    });
    let log = match config.log.format {
        LogFormat::Human => fmt::layer().with_writer(std::io::stderr).boxed(),
        LogFormat::Json => fmt::layer().json().with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry()
        .with(log.with_filter(level))
        .with(spans)
        .try_init()
        .doing("begin logging")?;
    Ok(Telemetry { exporter })
}

fn exporter(endpoint: &str) -> Result<(SdkTracerProvider, tokio::runtime::Runtime), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("otlp")
        .enable_all()
        .build()
        .doing("start the OTLP exporter")?;
    let _inside = runtime.enter();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .doing(format!("telemetry.otlp-endpoint {endpoint:?}"))?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name("bulkhead").build())
        .build();
    drop(_inside);
    Ok((provider, runtime))
}

impl Telemetry {
    /// Sends what is left, within a bound. Blocks; not on a worker.
    pub fn stop(self) {
        if let Some((provider, runtime)) = self.exporter {
            if let Err(error) = provider.shutdown_with_timeout(FLUSH) {
                tracing::debug!(%error, "the last spans were not exported");
            }
            runtime.shutdown_timeout(FLUSH);
        }
    }
}
