//! The runtimes Bulkhead is compared with: containerd and runc as built by `peers/build`.
//!
//! A peer gets scratch folders, a unix socket and a bridge of its own, pods without masquerade
//! (its plugin would need iptables; leaving it out only makes the peer faster), and is ended with
//! all its shims. Any other runtime takes part by its socket.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bulkhead_proto::runtime::v1 as cri;
use bulkhead_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use rustix::process::{Pid, Signal};

use crate::node::{self, channel};
use crate::registry::Registry;

const START: Duration = Duration::from_secs(30);
const BRIDGE: &str = "bhpeer0";

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    root: PathBuf,
    child: Child,
}

impl Containerd {
    /// Starts containerd from `programs` on scratch folders; the registry stands for `hosts`.
    pub async fn start(programs: &Path, registry: &Registry, hosts: &[&str]) -> Result<Self> {
        let programs = programs.canonicalize().with_context(|| {
            format!("{} is missing: `make peers` builds it", programs.display())
        })?;
        let root = PathBuf::from(format!("/var/tmp/bh-peer-{}", std::process::id()));
        fs::create_dir_all(root.join("cni"))?;
        registry.mirrors(&root.join("certs.d"), hosts)?;
        fs::write(root.join("config.toml"), configuration(&root, &programs))?;
        fs::write(root.join("cni/10-bridge.conflist"), network(&root))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(root.join("daemon.log"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new(programs.join("containerd"))
            .arg("--config")
            .arg(root.join("config.toml"))
            .env("PATH", format!("{}:{path}", programs.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("start containerd")?;
        let mut peer = Self { root, child };
        peer.wait().await?;
        Ok(peer)
    }

    /// Its CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("containerd.sock")
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its scratch folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    async fn wait(&mut self) -> Result<()> {
        let mut client = RuntimeServiceClient::new(channel(&self.socket())?);
        let begin = Instant::now();
        loop {
            let answer = client.version(cri::VersionRequest::default()).await;
            if answer.is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "containerd ended with {status}; see {}",
                    self.root.display()
                );
            }
            if begin.elapsed() > START {
                bail!(
                    "containerd does not answer: {answer:?}; see {}",
                    self.root.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Containerd {
    /// Ends containerd, then what is left of its shims and pods: processes that name our folder.
    fn drop(&mut self) {
        node::signal(self.child.id(), Signal::TERM).ok();
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.kill().ok();
        self.child.wait().ok();
        for pid in processes_of(&self.root) {
            rustix::process::kill_process(pid, Signal::KILL).ok();
        }
        node::unmount_below(&self.root).ok();
        Command::new("ip")
            .args(["link", "delete", BRIDGE])
            .stderr(Stdio::null())
            .status()
            .ok();
        if let Err(error) = fs::remove_dir_all(&self.root) {
            eprintln!("peer: remove {}: {error}", self.root.display());
        }
    }
}

fn processes_of(root: &Path) -> Vec<Pid> {
    let wanted = root.display().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&wanted)
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| u32::try_from(*pid).is_ok_and(|pid| pid != std::process::id()))
        .filter_map(Pid::from_raw)
        .collect()
}

fn configuration(root: &Path, programs: &Path) -> String {
    let (root, programs) = (root.display(), programs.display());
    format!(
        r#"version = 3
root = "{root}/lib"
state = "{root}/state"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.blockfile"]
[grpc]
  address = "{root}/containerd.sock"
[ttrpc]
  address = "{root}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "registry.k8s.io/pause:3.9"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{root}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "{programs}/runc"
        Root = "{root}/runc"
        SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{programs}"]
    conf_dir = "{root}/cni"
"#
    )
}

fn network(root: &Path) -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "bulkhead-bench",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": root.join("ipam"),
                "ranges": [[{"subnet": "10.232.0.0/21"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
    .to_string()
}
