//! The configuration's types and defaults. What each key means to an operator stands in `keys.rs`,
//! which a test keeps equal to the fields here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything the daemon reads at start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    pub root: PathBuf,
    pub state: PathBuf,
    pub handlers: Vec<String>,
    pub socket: Socket,
    pub monitor: Monitor,
    pub log: Log,
    pub telemetry: Telemetry,
    pub network: Network,
    pub images: Images,
    pub seccomp: Seccomp,
    pub capabilities: Capabilities,
    pub cdi: Cdi,
    pub cgroup: Cgroup,
    pub user_namespaces: UserNamespaces,
    pub rlimits: Rlimits,
    pub stats: Stats,
    pub streaming: Streaming,
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/bulkhead"),
            state: PathBuf::from("/run/bulkhead"),
            handlers: vec!["bulkhead".to_owned()],
            socket: Socket::default(),
            monitor: Monitor::default(),
            log: Log::default(),
            telemetry: Telemetry::default(),
            network: Network::default(),
            images: Images::default(),
            seccomp: Seccomp::default(),
            capabilities: Capabilities::default(),
            cdi: Cdi::default(),
            cgroup: Cgroup::default(),
            user_namespaces: UserNamespaces::default(),
            rlimits: Rlimits::default(),
            stats: Stats::default(),
            streaming: Streaming::default(),
            limits: Limits::default(),
        }
    }
}

/// The CRI socket; one inherited from the service manager (`LISTEN_FDS`) goes before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Socket {
    pub path: PathBuf,
    pub mode: Mode,
    pub owner: u32,
    pub group: u32,
}

impl Default for Socket {
    fn default() -> Self {
        Self {
            path: PathBuf::from(DEFAULT_SOCKET),
            mode: Mode(0o660),
            owner: 0,
            group: 0,
        }
    }
}

/// Where the daemon listens and the command line connects unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/bulkhead/bulkhead.sock";

/// Permission bits, written as a string of octal digits: TOML's own integers would print decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(pub u32);

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u32::from_str_radix(&text, 8) {
            Ok(bits) if bits <= 0o777 => Ok(Self(bits)),
            _ => Err(format!(
                "{text:?} is no file mode: three octal digits such as \"0660\" are"
            )),
        }
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        format!("{:04o}", mode.0)
    }
}

/// The per-pod monitor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Monitor {
    pub path: Option<PathBuf>,
}

/// The daemon's own log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Human,
        }
    }
}

/// For whom log lines are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text for people.
    Human,
    /// One JSON object per line.
    Json,
}

/// Traces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Telemetry {
    pub otlp_endpoint: Option<String>,
}

/// How pods are connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Network {
    pub mode: NetworkMode,
    pub bridge: String,
    pub pod_cidrs: Vec<Cidr>,
    pub unmasqueraded_cidrs: Vec<Cidr>,
    pub mtu: Option<u32>,
    pub host_ports: bool,
}

/// Who connects pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// The daemon itself.
    #[default]
    Embedded,
    /// CNI plugins; not served yet, and reported so.
    Cni,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            mode: NetworkMode::default(),
            bridge: "bulkhead0".to_owned(),
            pod_cidrs: vec![
                Cidr {
                    address: IpAddr::from([10, 87, 0, 0]),
                    prefix: 16,
                },
                Cidr {
                    address: IpAddr::from([0xfd00, 0x10, 0x87, 0, 0, 0, 0, 0]),
                    prefix: 64,
                },
            ],
            unmasqueraded_cidrs: Vec::new(),
            mtu: None,
            host_ports: true,
        }
    }
}

/// An address range, `address/prefix`, without bits below the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?} is no address range: {why}");
        let (address, prefix) = text
            .split_once('/')
            .ok_or_else(|| wrong("the form is address/prefix, such as 10.87.0.0/16"))?;
        let address: IpAddr = address.parse().map_err(|_| wrong("the address is none"))?;
        let prefix: u8 = prefix
            .parse()
            .map_err(|_| wrong("the prefix is no number"))?;
        let (bits, width) = match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        if prefix == 0 || prefix > width {
            return Err(wrong(&format!("the prefix has to be 1 to {width}")));
        }
        if bits.checked_shl(u32::from(prefix)).unwrap_or(0) != 0 {
            return Err(wrong("bits are set below the prefix"));
        }
        Ok(Self { address, prefix })
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        format!("{}/{}", cidr.address, cidr.prefix)
    }
}

/// Pulling and keeping images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Images {
    pub certs_d: Vec<PathBuf>,
    pub token_hosts: Vec<String>,
    pub max_layer_bytes: u64,
    pub max_layer_entries: u64,
    pub concurrent_layers: usize,
    pub progress_timeout_seconds: u64,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            certs_d: vec![
                PathBuf::from("/etc/bulkhead/certs.d"),
                PathBuf::from("/etc/containerd/certs.d"),
            ],
            token_hosts: Vec::new(),
            max_layer_bytes: 64 << 30,
            max_layer_entries: 2_000_000,
            concurrent_layers: 4,
            progress_timeout_seconds: 300,
        }
    }
}

/// System call filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Seccomp {
    pub when_unset: SeccompWhenUnset,
}

/// What a container gets whose request has no seccomp field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompWhenUnset {
    /// No filter: the meaning CRI gives an absent field, which critest checks.
    #[default]
    Unconfined,
    /// The default profile.
    RuntimeDefault,
}

/// Capabilities of containers that ask for no change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Capabilities {
    pub default: CapabilitySet,
}

/// The two conventional default sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapabilitySet {
    /// Nine, as CRI-O's.
    #[default]
    Restricted,
    /// Fourteen, as containerd's and Docker's.
    Conventional,
}

/// Control groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cgroup {
    pub driver: CgroupDriver,
    pub parent: String,
}

impl Default for Cgroup {
    fn default() -> Self {
        Self {
            driver: CgroupDriver::Cgroupfs,
            parent: "/bulkhead/pods".to_owned(),
        }
    }
}

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CgroupDriver {
    /// The daemon, in the cgroup file system.
    Cgroupfs,
    /// systemd makes a scope per pod, over D-Bus; the daemon what is below it.
    Systemd,
}

/// Ids of the node that pods' user namespaces may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct UserNamespaces {
    pub first_id: u32,
    pub ids: u32,
}

impl Default for UserNamespaces {
    fn default() -> Self {
        // Above the node's system accounts, as critest asks for ids from 1000 on, and below the last
        // block of 65,536, where some systems keep theirs.
        Self {
            first_id: 1000,
            ids: 4_294_900_760,
        }
    }
}

/// Where vendors say what their devices need (Container Device Interface).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cdi {
    pub directories: Vec<PathBuf>,
}

impl Default for Cdi {
    fn default() -> Self {
        // The specification's two, in its order.
        Self {
            directories: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).to_vec(),
        }
    }
}

/// Resource limits of containers' processes; never the daemon's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rlimits {
    pub nofile_soft: u64,
    pub nofile_hard: u64,
}

impl Default for Rlimits {
    fn default() -> Self {
        // systemd's pair since v240, which services are therefore used to.
        Self {
            nofile_soft: 1024,
            nofile_hard: 524_288,
        }
    }
}

/// Usage figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Stats {
    pub period_seconds: u64,
}

impl Default for Stats {
    fn default() -> Self {
        Self { period_seconds: 10 }
    }
}

/// Where clients of exec, attach and port-forward connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Streaming {
    pub address: SocketAddr,
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub idle_seconds: u64,
    pub creation_seconds: u64,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls_certificate: None,
            tls_key: None,
            idle_seconds: 4 * 3600,
            creation_seconds: 30,
        }
    }
}

/// Bounds on what clients may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    pub message_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 16 << 20,
        }
    }
}
