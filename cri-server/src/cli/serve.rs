//! `bulkhead serve`: opens the stores, meets the pods that are there, serves until a signal.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_runtime::cgroup::Hierarchies;
use bulkhead_runtime::features::Features;
use bulkhead_runtime::user_namespace;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::{CgroupDriver, Config};
use crate::container::stop::Stops;
use crate::image::{ImageSettings, ImageStore};
use crate::monitor::{Monitors, Notice};
use crate::network::{Network, NetworkSettings};
use crate::node::{Node, NodeHandle};
use crate::ops::inflight::Inflight;
use crate::ops::tasks::Tasks;
use crate::ops::turns::Turns;
use crate::pod::{scope, supervise};
use crate::records::Records;
use crate::security::apparmor::load::AppArmor;
use crate::security::seccomp::SeccompCache;
use crate::server::{self, listen};
use crate::stats::{self, StatsCache};
use crate::streaming::{self, Streaming};
use crate::{recover, telemetry};

/// How long work in flight may take to end after the signal; the next start settles the rest.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Notices of monitors that may wait to be recorded.
const NOTICES: usize = 1024;

/// Runs the daemon until a signal ends it.
pub(super) fn run(config: Config) -> anyhow::Result<()> {
    let telemetry = telemetry::start(&config)?;
    // Failing only means that another one was installed before, which serves as well.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("bulkhead")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    telemetry.stop();
    result
}

async fn serve(config: Config) -> anyhow::Result<()> {
    make_directories(&config)?;
    // Bound first, so that clients wait in its backlog; accepted only once all is settled.
    let listener = listen::open(&listen::SocketFile {
        path: config.socket.path.clone(),
        mode: config.socket.mode.0,
        uid: config.socket.owner,
        gid: config.socket.group,
    })?;
    let socket = config.socket.path.clone();
    let (sender, notices) = mpsc::channel(NOTICES);
    let (clients, streaming) = streaming::Listener::bind(&config.streaming).await?;
    let node = open(config, streaming, sender).await?;
    recover::recover(&node).await?;
    let tasks = node.tasks.clone();
    drop(tasks.spawn("supervise", supervise::listen(node.clone(), notices)));
    let period = Duration::from_secs(node.config.stats.period_seconds.max(1));
    drop(tasks.spawn("sample usage", stats::sample(node.clone(), period)));
    drop(tasks.spawn("serve streams", streaming::serve(node.clone(), clients)));
    let serving = tasks.spawn("serve", server::serve(node.clone(), listener));
    tracing::info!(socket = %socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    until_signal().await?;
    tracing::info!("stopping; pods go on");
    let left = tasks.stop(STOP_LIMIT).await;
    if left > 0 {
        tracing::warn!(
            left,
            "operations were still running; the next start settles them"
        );
    } else if let Ok(Err(failure)) = serving.await {
        return Err(failure.into());
    }
    Ok(())
}

async fn open(
    config: Config,
    streaming: Streaming,
    notices: mpsc::Sender<(String, Notice)>,
) -> anyhow::Result<NodeHandle> {
    let tasks = Tasks::default();
    let features = Features::probe()?;
    let hierarchies = Hierarchies::probe()?;
    if config.cgroup.driver == CgroupDriver::Systemd {
        scope::check(&hierarchies).await?;
    }
    let records = Records::open(&config.root.join("records.redb"))?;
    let images = ImageStore::open(image_settings(&config))?;
    let network = Network::open(NetworkSettings::from_config(
        &config.network,
        config.root.join("network"),
    ))?;
    let monitors = Monitors::new(
        &monitor_path(&config)?,
        &hierarchies,
        tasks.clone(),
        notices,
    )?;
    let no_user_namespaces = no_user_namespaces(&features, &config);
    if let Some(why) = &no_user_namespaces {
        tracing::warn!(why, "pods with user namespaces are refused");
    }
    Ok(Arc::new(Node {
        apparmor: AppArmor::start(&features).await,
        features,
        no_user_namespaces,
        hierarchies,
        records,
        images,
        network,
        monitors,
        runs: Inflight::new(tasks.clone()),
        creations: Inflight::new(tasks.clone()),
        stops: Stops::default(),
        turns: Turns::default(),
        endings: Inflight::new(tasks.clone()),
        seccomp: SeccompCache::default(),
        stats: StatsCache::default(),
        streaming,
        boot_id: boot_id()?,
        tasks,
        config,
    }))
}

/// Root and state are ours alone, whatever the umask and whoever made them (threat O1).
fn make_directories(config: &Config) -> anyhow::Result<()> {
    for directory in [&config.root, &config.state] {
        let doing = || format!("make {}", directory.display());
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(doing)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
            .with_context(doing)?;
    }
    Ok(())
}

/// Layers and writable layers lie below the root, the pods' files below the state: both have to be
/// id-mappable, or a pod with a user namespace would start and then lack half of its files.
fn no_user_namespaces(features: &Features, config: &Config) -> Option<String> {
    if !features.user_namespaces {
        return Some(
            "the kernel has no user namespaces, or sysctl user.max_user_namespaces is 0".to_owned(),
        );
    }
    [&config.root, &config.state]
        .into_iter()
        .find_map(|directory| user_namespace::probe(directory).err())
        .map(|error| error.to_string())
}

fn image_settings(config: &Config) -> ImageSettings {
    let mut settings = ImageSettings::new(config.root.join("images"));
    settings.certs_d = config.images.certs_d.clone();
    settings.token_hosts = config.images.token_hosts.clone();
    settings.limits.bytes = config.images.max_layer_bytes;
    settings.limits.entries = config.images.max_layer_entries;
    settings.concurrent_layers = config.images.concurrent_layers;
    settings.no_progress = Duration::from_secs(config.images.progress_timeout_seconds);
    settings
}

/// Beside the daemon's own executable unless configured; never searched for (threat P2).
fn monitor_path(config: &Config) -> anyhow::Result<PathBuf> {
    if let Some(path) = &config.monitor.path {
        return Ok(path.clone());
    }
    let own = std::env::current_exe().context("find the daemon's own executable")?;
    Ok(own
        .parent()
        .unwrap_or(Path::new("/"))
        .join("bulkhead-monitor"))
}

fn boot_id() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(path)
        .context(path)?
        .trim()
        .to_owned())
}

async fn until_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
