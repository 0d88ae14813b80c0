//! The pod network: connects a pod's network namespace to the node and the world.
//!
//! What serves is the embedded network (`embedded/`): one bridge, addresses from the pod CIDR,
//! masquerade and host ports by netlink and nftables, no plugin processes. CNI is the other mode
//! operators know; it isn't served yet, and a node configured for it says so.
//!
//! Blocking work runs on tokio's blocking threads, all in the node's namespace; what has to happen
//! inside a pod's runs on a thread of its own (`netns::inside`).

mod cidr;
mod embedded;
mod hostport;
mod netlink;
pub mod netns;
mod ports;
mod stats;

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::cidr::{Cidr, parse_pod_cidr};
use self::embedded::Embedded;
pub use self::hostport::{HostPort, Protocol};
pub use self::stats::{Counters, InterfaceStats, interface_stats};
use crate::config;
pub use crate::config::NetworkMode;
use crate::failure::{Class, Doing as _, Failure};

/// How the pod network is to be.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// Who connects pods.
    pub mode: NetworkMode,
    /// Where leases are kept (made, 0700). They outlive the daemon, and need not outlive a reboot;
    /// the pod CIDR the kubelet gave, also kept here, is given again by it after one.
    pub state_dir: PathBuf,
    /// The bridge's name.
    pub bridge: String,
    /// Where pods' addresses come from until the kubelet says otherwise; one network a family.
    pub pod_cidr: Vec<Cidr>,
    /// The MTU of the bridge and the pods' interfaces; `None` takes that of the node's default route.
    pub mtu: Option<u32>,
    /// Whether pods may have host ports.
    pub host_ports: bool,
    /// Destinations that see pods' own addresses (routed pod networks of other nodes).
    pub unmasqueraded: Vec<Cidr>,
    /// Where CNI configuration would be; only looked at to tell the operator it isn't used.
    pub cni_config_dir: PathBuf,
}

impl NetworkSettings {
    /// As configured, with leases in `state_dir`.
    pub fn from_config(config: &config::Network, state_dir: PathBuf) -> Self {
        let ranges = |cidrs: &[config::Cidr]| {
            cidrs
                .iter()
                .filter_map(|cidr| Cidr::new(cidr.address, cidr.prefix))
                .collect()
        };
        Self {
            mode: config.mode,
            state_dir,
            bridge: config.bridge.clone(),
            pod_cidr: ranges(&config.pod_cidrs),
            mtu: config.mtu,
            host_ports: config.host_ports,
            unmasqueraded: ranges(&config.unmasqueraded_cidrs),
            cni_config_dir: PathBuf::from("/etc/cni/net.d"),
        }
    }

    /// The defaults, with leases in `state_dir`.
    pub fn new(state_dir: PathBuf) -> Self {
        Self::from_config(&config::Network::default(), state_dir)
    }

    fn validate(&self) -> Result<(), Failure> {
        let name = &self.bridge;
        // The kernel's rule (`dev_valid_name`), and nothing that means something in a path.
        let fine = (1..16).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !matches!(name.as_str(), "." | ".." | "all" | "default");
        if !fine {
            return Err(Failure::invalid(format!(
                "network.bridge: \"{name}\" is no name for a link (1 to 15 of a-z A-Z 0-9 - _ .)"
            )));
        }
        if self.pod_cidr.is_empty() {
            return Err(Failure::invalid("network.pod-cidrs: no network given"));
        }
        // The same rules as for the kubelet's.
        let text: Vec<String> = self.pod_cidr.iter().map(Cidr::to_string).collect();
        parse_pod_cidr(&text.join(",")).map_err(|failure| failure.context("network.pod-cidrs"))?;
        if self.mtu.is_some_and(|mtu| !(1280..=65_535).contains(&mtu)) {
            return Err(Failure::invalid("network.mtu: must be 1280 to 65535"));
        }
        Ok(())
    }
}

/// A pod to connect.
#[derive(Debug)]
pub struct AttachRequest {
    /// The pod's id.
    pub pod_id: String,
    /// Its network namespace.
    pub netns: OwnedFd,
    /// Ports of the node that are to lead to it.
    pub host_ports: Vec<HostPort>,
}

/// How a pod is connected. Recorded by the daemon; nothing in it is needed to detach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The interface in the pod.
    pub interface: String,
    /// Its other end on the node.
    pub host_interface: String,
    /// Its hardware address, `02:62:…`.
    pub hardware_address: String,
    /// Its addresses, IPv4 first, with the length of the pod CIDR's prefix.
    pub addresses: Vec<Cidr>,
    /// The default gateway of each family.
    pub gateways: Vec<IpAddr>,
}

impl Attachment {
    /// The pod's address, as CRI's `network.ip`: the first IPv4 one, else the first.
    pub fn primary(&self) -> Option<IpAddr> {
        embedded::primary(&self.addresses)
    }

    /// The other addresses, as CRI's `network.additional_ips`.
    pub fn additional(&self) -> impl Iterator<Item = IpAddr> {
        let primary = self.primary();
        self.addresses
            .iter()
            .map(Cidr::address)
            .filter(move |address| Some(*address) != primary)
    }
}

/// CRI's condition `NetworkReady`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Whether pods can be connected.
    pub ready: bool,
    /// Empty when ready, else `NetworkPluginNotReady`.
    pub reason: String,
    /// What is wrong and what to do, for people.
    pub message: String,
}

/// The pod network of the node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network {
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    Embedded(Arc<Embedded>),
    /// None, and why: configured for CNI, or a kernel that lacks the means.
    Unserved(Failure),
}

impl Network {
    /// Reads what is remembered and sets the node up for pods. Blocks for some milliseconds; to be
    /// called on a thread in the node's network namespace, with a tokio runtime whose threads are too.
    ///
    /// # Errors
    /// Settings that make no sense, or a state directory that cannot be used. A kernel that lacks
    /// something is not an error: [`Network::status`] reports it.
    pub fn open(settings: NetworkSettings) -> Result<Self, Failure> {
        settings.validate()?;
        let backend = match settings.mode {
            NetworkMode::Cni => Backend::Unserved(cni_unserved()),
            NetworkMode::Embedded => {
                note_unused_cni(&settings.cni_config_dir);
                match netlink::probe() {
                    Ok(()) => Backend::Embedded(Arc::new(Embedded::open(settings)?)),
                    Err(failure) => {
                        tracing::warn!(%failure, "pods cannot be connected, only host-network pods run");
                        Backend::Unserved(failure)
                    }
                }
            }
        };
        Ok(Self { backend })
    }

    /// Runs `work` with the embedded network on a blocking thread. It runs to its end even if the
    /// caller goes away.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Embedded) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let embedded = match &self.backend {
            Backend::Embedded(embedded) => Arc::clone(embedded),
            Backend::Unserved(failure) => return Err(failure.clone()),
        };
        tokio::task::spawn_blocking(move || work(&embedded))
            .await
            .doing("network operation")?
    }

    /// Connects a pod: loopback up, `eth0` with addresses and routes, host ports. When this returns
    /// the pod is reachable; when it fails nothing of it is left.
    ///
    /// # Errors
    /// A host port that is taken ([`Class::Precondition`], naming the holder), no free address
    /// ([`Class::Exhausted`]), a node that cannot be set up ([`Class::Unavailable`]).
    pub async fn attach(&self, request: AttachRequest) -> Result<Attachment, Failure> {
        self.blocking(move |embedded| {
            let AttachRequest {
                pod_id,
                netns,
                host_ports,
            } = request;
            embedded
                .attach(&pod_id, netns.as_fd(), &host_ports)
                .map_err(|failure| failure.context("pod network"))
        })
        .await
    }

    /// Disconnects a pod. Idempotent, and works when its namespace is gone. The links themselves are
    /// deleted a moment later ([`Network::settle`]).
    ///
    /// # Errors
    /// Something that leads to the pod could not be removed: call again.
    pub async fn detach(&self, pod_id: &str) -> Result<(), Failure> {
        if matches!(self.backend, Backend::Unserved(_)) {
            return Ok(());
        }
        let pod_id = pod_id.to_owned();
        self.blocking(move |embedded| embedded.detach(&pod_id))
            .await
    }

    /// Waits until the links of all detached pods have gone (before a clean exit).
    ///
    /// # Errors
    /// Only if the blocking thread panicked.
    pub async fn settle(&self) -> Result<(), Failure> {
        if matches!(self.backend, Backend::Unserved(_)) {
            return Ok(());
        }
        self.blocking(|embedded| {
            embedded.settle();
            Ok(())
        })
        .await
    }

    /// Sets the loopback of a namespace up; [`Network::attach`] does that too.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub async fn loopback_up(&self, netns: OwnedFd) -> Result<(), Failure> {
        tokio::task::spawn_blocking(move || embedded::loopback_up(netns.as_fd()))
            .await
            .doing("network operation")?
    }

    /// Takes the kubelet's pod CIDR (UpdateRuntimeConfig): one network, or `v4,v6`. Kept over
    /// restarts. Pods keep the addresses they have. Empty changes nothing.
    ///
    /// # Errors
    /// Malformed, or the node could not be set up for it.
    pub async fn update_pod_cidr(&self, text: &str) -> Result<(), Failure> {
        if text.is_empty() || matches!(self.backend, Backend::Unserved(_)) {
            return Ok(());
        }
        let ranges = parse_pod_cidr(text)?;
        self.blocking(move |embedded| embedded.update_pod_cidr(&ranges))
            .await
    }

    /// Whether pods can be connected now.
    pub async fn status(&self) -> NetworkStatus {
        match self.blocking(Embedded::check).await {
            Ok(()) => NetworkStatus {
                ready: true,
                reason: String::new(),
                message: "the embedded network is ready".to_owned(),
            },
            Err(failure) => NetworkStatus {
                ready: false,
                reason: "NetworkPluginNotReady".to_owned(),
                message: failure.message().to_owned(),
            },
        }
    }

    /// Removes leases, rules and links of pods that are not among `live`. At start, before requests.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub async fn gc(&self, live: HashSet<String>) -> Result<(), Failure> {
        if matches!(self.backend, Backend::Unserved(_)) {
            return Ok(());
        }
        self.blocking(move |embedded| embedded.gc(&live)).await
    }
}

fn cni_unserved() -> Failure {
    Failure::new(
        Class::Unsupported,
        "network.mode is \"cni\", which this version does not serve: set it to \"embedded\"",
    )
}

/// Says that a CNI configuration is there and isn't used, for whoever wonders.
fn note_unused_cni(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    let configuration = entries.flatten().map(|entry| entry.path()).find(|path| {
        path.extension()
            .is_some_and(|end| end == "conf" || end == "conflist" || end == "json")
    });
    if let Some(path) = configuration {
        tracing::warn!(
            path = %path.display(),
            "a CNI configuration is present, but this version serves only the embedded network"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        let good = NetworkSettings::new(PathBuf::from("/nowhere"));
        good.validate().unwrap();
        type Change = fn(&mut NetworkSettings);
        let table: [(Change, &str); 6] = [
            (|s| s.bridge = "a/b".to_owned(), "network.bridge"),
            (
                |s| s.bridge = "0123456789abcdef".to_owned(),
                "network.bridge",
            ),
            (|s| s.bridge = "..".to_owned(), "network.bridge"),
            (|s| s.pod_cidr.clear(), "network.pod-cidrs"),
            (
                |s| s.pod_cidr = vec!["127.0.0.0/8".parse().unwrap()],
                "network.pod-cidrs",
            ),
            (|s| s.mtu = Some(100), "network.mtu"),
        ];
        for (change, named) in table {
            let mut settings = good.clone();
            change(&mut settings);
            let failure = settings.validate().unwrap_err();
            assert!(failure.message().starts_with(named), "{failure}");
        }
    }

    #[test]
    fn a_node_configured_for_cni_says_that_it_is_not_served() {
        let mut settings = NetworkSettings::new(PathBuf::from("/nowhere"));
        settings.mode = NetworkMode::Cni;
        let network = Network::open(settings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let status = runtime.block_on(network.status());
        assert_eq!(
            (status.ready, status.reason.as_str()),
            (false, "NetworkPluginNotReady")
        );
        assert!(status.message.contains("network.mode"), "{status:?}");
        runtime.block_on(network.detach("aaaa")).unwrap();
    }

    #[test]
    fn the_pods_address_is_the_first_ipv4_one() {
        let attachment = |addresses: &[&str]| Attachment {
            interface: "eth0".to_owned(),
            host_interface: "bh1".to_owned(),
            hardware_address: String::new(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            gateways: Vec::new(),
        };
        for (addresses, primary) in [
            (&["fd00::2/64", "10.0.0.2/24"][..], Some("10.0.0.2")),
            (&["fd00::2/64"][..], Some("fd00::2")),
            (&[][..], None),
        ] {
            let attachment = attachment(addresses);
            assert_eq!(
                attachment.primary(),
                primary.map(|text| text.parse().unwrap())
            );
            let primaries = usize::from(primary.is_some());
            assert_eq!(attachment.additional().count(), addresses.len() - primaries);
        }
    }
}
