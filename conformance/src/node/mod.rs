//! A daemon on scratch folders: started, stopped, killed, restarted, and checked for leftovers.
//!
//! One daemon runs at a time on a machine (a lock file sees to it, across test programs too),
//! because bridges, nftables tables and cgroups are the machine's. Everything a node owns lies
//! below `/var/tmp/bh-…` (storage) and `/run/bh-…` (state, socket). The latter is as long as a
//! clone's folder in somebody's home may be: with a pod's id below it, longer than the 107 bytes
//! that the path of a unix socket holds.

mod calls;
mod clock;
pub mod leaks;
mod log;
pub mod pods;
mod process;
mod streams;

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bulkhead_proto::runtime::v1::image_service_client::ImageServiceClient;
use bulkhead_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

pub use self::calls::{Exec, info_pid};
use self::clock::Clock;
use self::leaks::Snapshot;
pub use self::leaks::unmount_below;
pub use self::log::Log;
pub use self::process::{Limits, bulkhead_path, monitor_of, monitor_path, signal, target};
pub use self::streams::Streams;
use crate::registry::Registry;

/// How long a daemon may take from exec to its first answer, on a busy machine.
const START: Duration = Duration::from_secs(20);
/// The bridge of the node's own network.
const BRIDGE: &str = "bhtest0";
/// What a kubelet accepts and a list of many pods needs.
const MESSAGE_LIMIT: usize = 16 << 20;

/// How a node is set up.
#[derive(Debug)]
pub struct Options {
    /// RLIMIT_NOFILE of the daemon, soft and hard; the rig's own if absent.
    pub files: Option<Limits>,
    /// The socket is bound by the rig and handed over, as a service manager does.
    pub activated: bool,
    /// The daemon's clocks can be moved ([`Node::move_clock`], [`Node::put_forward`]).
    pub movable_clock: bool,
    /// The ranges of the embedded network, as the configuration spells them.
    pub pod_cidrs: &'static str,
    /// TOML appended to the configuration.
    pub config: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            files: None,
            activated: false,
            movable_clock: false,
            pod_cidrs: "\"10.231.0.0/22\", \"fd00:b0b0:1::/112\"",
            config: String::new(),
        }
    }
}

/// The daemon, its folders and clients for both of its services.
#[derive(Debug)]
pub struct Node {
    root: PathBuf,
    state: PathBuf,
    options: Options,
    listener: Option<UnixListener>,
    clock: Option<Clock>,
    child: Option<Child>,
    /// The runtime service.
    pub runtime: RuntimeServiceClient<Channel>,
    /// The image service.
    pub images: ImageServiceClient<Channel>,
    before: Snapshot,
    _only_one: File,
}

impl Node {
    /// Starts a daemon with the default options; `registry` stands for `hosts` and for itself.
    pub async fn start(registry: &Registry, hosts: &[&str]) -> Result<Self> {
        Self::start_with(registry, hosts, Options::default()).await
    }

    /// Starts a daemon.
    pub async fn start_with(registry: &Registry, hosts: &[&str], options: Options) -> Result<Self> {
        let only_one = process::lock().await?;
        let tag = process::unique();
        let root = PathBuf::from(format!("/var/tmp/bh-{tag}"));
        let state = PathBuf::from(format!("/run/bh-{tag}-as-long-as-a-clone-in-a-home"));
        fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        fs::create_dir_all(&state).with_context(|| format!("make {}", state.display()))?;
        registry.mirrors(&root.join("certs.d"), hosts)?;
        fs::write(
            root.join("config.toml"),
            configuration(&root, &state, &options),
        )?;
        let clock = match options.movable_clock {
            true => Some(Clock::make(&root)?),
            false => None,
        };
        let socket = state.join("bulkhead.sock");
        let listener = match options.activated {
            true => Some(UnixListener::bind(&socket).context("bind the activation socket")?),
            false => None,
        };
        let channel = channel(&socket)?;
        let mut node = Self {
            root,
            state,
            options,
            listener,
            clock,
            child: None,
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
            before: Snapshot::take()?,
            _only_one: only_one,
        };
        node.launch().await?;
        Ok(node)
    }

    /// Starts the daemon's process on the node's folders and waits until it answers.
    pub async fn launch(&mut self) -> Result<()> {
        let config = self.root.join("config.toml");
        let log = self.root.join("daemon.log");
        self.child = Some(process::spawn(
            &config,
            &log,
            self.options.files,
            self.listener.as_ref(),
            self.clock.as_ref(),
        )?);
        let begin = Instant::now();
        loop {
            match self.version().await {
                Ok(_) => break,
                Err(error) if begin.elapsed() > START => {
                    bail!(
                        "no answer after {START:?}: {error}; its log:\n{}",
                        self.log_tail()
                    )
                }
                Err(_) => {}
            }
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().transpose())
            {
                bail!(
                    "the daemon ended with {:?}; its log:\n{}",
                    status?,
                    self.log_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Its storage folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.state.join("bulkhead.sock")
    }

    /// A folder for things a test mounts into containers.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join("scratch").join(name);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// SIGTERM and the wait for the end; the pods go on.
    pub async fn stop(&mut self) -> Result<()> {
        match self.child.take() {
            Some(child) => process::terminate(child).await,
            None => Ok(()),
        }
    }

    /// SIGKILL; the pods go on.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("kill the daemon")?;
            child.wait().context("reap the daemon")?;
        }
        Ok(())
    }

    /// Replaces the limits the daemon will be started with.
    pub fn set_files(&mut self, limits: Limits) {
        self.options.files = Some(limits);
    }

    /// Moves the daemon's wall clock to that many seconds before or after the true time.
    pub fn move_clock(&self, seconds: i64) -> Result<()> {
        self.clock()?.set_wall(seconds)
    }

    /// Lets that much time pass for the daemon, counted from its start and not from the last call.
    pub fn put_forward(&self, seconds: u32) -> Result<()> {
        self.clock()?.set_monotonic(seconds)
    }

    fn clock(&self) -> Result<&Clock> {
        let clock = self.clock.as_ref();
        clock.context("the node was started without movable clocks")
    }

    /// The last lines of the daemon's log.
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.root.join("daemon.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Removes all pods and images, stops the daemon, and fails if anything is left on the machine.
    pub async fn finish(mut self) -> Result<()> {
        self.remove_everything()
            .await
            .with_context(|| format!("log:\n{}", self.log_tail()))?;
        self.before.compare_until_equal(self.emptied()?).await?;
        self.stop().await?;
        self.before.compare_until_equal(Vec::new()).await?;
        Ok(())
    }

    /// The folder of an image store's part: `layers`, `staging`, `trash` or `writable`.
    pub fn store(&self, part: &str) -> PathBuf {
        self.root.join("lib/images").join(part)
    }

    /// Folders that hold nothing once all pods and images are removed.
    fn emptied(&self) -> Result<Vec<PathBuf>> {
        let parts = ["layers", "staging", "trash", "writable"].map(|part| self.store(part));
        if let Some(moved) = parts.iter().find(|part| !part.is_dir()) {
            bail!(
                "{} is not there: the check would see nothing",
                moved.display()
            );
        }
        Ok(parts.into_iter().chain([self.state.join("pods")]).collect())
    }
}

impl Drop for Node {
    /// A test that failed midway leaves a daemon and pods: end them by their cgroups and folders.
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("node: {error:#}");
        }
        self.before.sweep(&self.root, &self.state);
        if std::env::var_os("BULKHEAD_KEEP").is_none() {
            for folder in [&self.root, &self.state] {
                if let Err(error) = fs::remove_dir_all(folder) {
                    eprintln!("node: remove {}: {error}", folder.display());
                }
            }
        }
    }
}

fn configuration(root: &Path, state: &Path, options: &Options) -> String {
    let (root, state) = (root.display(), state.display());
    let monitor = process::monitor_path();
    format!(
        "root = \"{root}/lib\"\n\
         state = \"{state}\"\n\
         [socket]\n\
         path = \"{state}/bulkhead.sock\"\n\
         [monitor]\n\
         path = \"{}\"\n\
         [log]\n\
         level = \"info,bulkhead=debug,bulkhead_cri_server=debug\"\n\
         [network]\n\
         bridge = \"{BRIDGE}\"\n\
         pod-cidrs = [{}]\n\
         [images]\n\
         certs-d = [\"{root}/certs.d\"]\n\
         {}\n",
        monitor.display(),
        options.pod_cidrs,
        options.config,
    )
}

/// A channel over a unix socket that connects on first use and again after a restart.
pub fn channel(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    // The address is required by the type and used for nothing but the authority header.
    let endpoint = Endpoint::from_static("http://localhost");
    Ok(
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(TokioIo::new)
            }
        })),
    )
}
