//! The daemon's configuration: `config.toml`, then `config.d/*.toml` in the order of their names,
//! merged as tables (a later value replaces an earlier one, arrays whole), typed and checked.
//!
//! Unknown keys, wrong types and values that contradict each other are refused with the file and
//! the line; a misspelt key with the one meant. `bulkhead config check` runs the same code.

mod keys;
mod print;
mod schema;
mod source;

use std::path::Path;

pub use schema::{
    CapabilitySet, Cgroup, CgroupDriver, Cidr, Config, DEFAULT_SOCKET, Images, Limits, LogFormat,
    Mode, Network, NetworkMode, Rlimits, SeccompWhenUnset, Socket, Streaming, UserNamespaces,
};
pub use source::Origins;

use crate::failure::Failure;
use crate::spec::cgroup::slice_path;

/// Where the configuration is read from unless told otherwise.
pub const DEFAULT_FILE: &str = "/etc/bulkhead/config.toml";

/// A configuration and where each of its values was set.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub origins: Origins,
}

impl Config {
    /// Reads `file` and the drop-ins in `config.d` beside it. Either may be missing: what nothing
    /// sets has its default.
    pub fn load(file: &Path) -> Result<Self, Failure> {
        Ok(Loaded::read(file)?.config)
    }
}

impl Loaded {
    /// As [`Config::load`], keeping where each value came from.
    pub fn read(file: &Path) -> Result<Self, Failure> {
        let merged = source::read(file)?;
        let config: Config = merged.table.try_into().map_err(|error: toml::de::Error| {
            Failure::invalid(format!("configuration: {}", error.message()))
        })?;
        check(&config, &merged.origins)?;
        Ok(Self {
            config,
            origins: merged.origins,
        })
    }

    /// The configuration in force as TOML, each key with its meaning and where it was set.
    pub fn print(&self) -> Result<String, Failure> {
        print::render(&self.config, &self.origins)
    }
}

/// What the types can't say. Names the key, where it was set, and what would be right.
fn check(config: &Config, origins: &Origins) -> Result<(), Failure> {
    let wrong = |key: &str, why: String| {
        Err(Failure::invalid(match origins.get(key) {
            Some(place) => format!("{place}: {key} {why}"),
            None => format!("{key} {why}"),
        }))
    };
    let paths = [
        ("root", Some(&config.root)),
        ("state", Some(&config.state)),
        ("socket.path", Some(&config.socket.path)),
        ("monitor.path", config.monitor.path.as_ref()),
        (
            "streaming.tls-certificate",
            config.streaming.tls_certificate.as_ref(),
        ),
        ("streaming.tls-key", config.streaming.tls_key.as_ref()),
    ];
    for (key, path) in paths {
        if let Some(path) = path.filter(|path| !path.is_absolute()) {
            return wrong(key, format!("is {path:?}: an absolute path is needed"));
        }
    }
    // sockaddr_un.sun_path holds 108 bytes with the closing NUL (unix(7)).
    let length = config.socket.path.as_os_str().len();
    if length > 107 {
        return wrong(
            "socket.path",
            format!("has {length} bytes: a socket's path has at most 107"),
        );
    }
    if let Some(dir) = config.images.certs_d.iter().find(|dir| !dir.is_absolute()) {
        return wrong(
            "images.certs-d",
            format!("holds {dir:?}: absolute paths are needed"),
        );
    }
    check_handlers(&config.handlers).or_else(|why| wrong("handlers", why))?;
    check_network(&config.network).or_else(|(key, why)| wrong(key, why))?;
    check_streaming(&config.streaming).or_else(|(key, why)| wrong(key, why))?;
    check_cgroup(&config.cgroup).or_else(|why| wrong("cgroup.parent", why))?;
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log.level) {
        return wrong("log.level", format!("is {:?}: {error}", config.log.level));
    }
    if let Some(endpoint) = &config.telemetry.otlp_endpoint
        && endpoint
            .parse::<http::Uri>()
            .ok()
            .and_then(|uri| uri.scheme().cloned())
            .is_none()
    {
        return wrong(
            "telemetry.otlp-endpoint",
            format!("is {endpoint:?}: an address such as http://127.0.0.1:4317 is needed"),
        );
    }
    let Rlimits {
        nofile_soft,
        nofile_hard,
    } = config.rlimits;
    if nofile_soft > nofile_hard {
        return wrong(
            "rlimits.nofile-soft",
            format!("is {nofile_soft}, above rlimits.nofile-hard, {nofile_hard}"),
        );
    }
    let ranges: [(&str, u64, u64, u64); 9] = [
        // A program that closes "all" descriptors spins through the soft limit.
        ("rlimits.nofile-soft", nofile_soft, 64, 1 << 20),
        (
            "images.max-layer-bytes",
            config.images.max_layer_bytes,
            1 << 20,
            1 << 44,
        ),
        (
            "images.max-layer-entries",
            config.images.max_layer_entries,
            1000,
            1 << 32,
        ),
        (
            "images.concurrent-layers",
            as_u64(config.images.concurrent_layers),
            1,
            64,
        ),
        (
            "images.progress-timeout-seconds",
            config.images.progress_timeout_seconds,
            1,
            86_400,
        ),
        ("stats.period-seconds", config.stats.period_seconds, 1, 3600),
        (
            "streaming.idle-seconds",
            config.streaming.idle_seconds,
            1,
            30 * 86_400,
        ),
        (
            "streaming.creation-seconds",
            config.streaming.creation_seconds,
            1,
            600,
        ),
        (
            "limits.message-bytes",
            as_u64(config.limits.message_bytes),
            4 << 20,
            1 << 30,
        ),
    ];
    for (key, value, least, most) in ranges {
        if !(least..=most).contains(&value) {
            return wrong(key, format!("is {value}: it has to be {least} to {most}"));
        }
    }
    Ok(())
}

fn as_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// The parent of pods that name none, in the form of the driver.
fn check_cgroup(cgroup: &Cgroup) -> Result<(), String> {
    let parent = &cgroup.parent;
    let path = Path::new(parent);
    let plain = |part| matches!(part, std::path::Component::Normal(_));
    match cgroup.driver {
        CgroupDriver::Cgroupfs if !path.is_absolute() || !path.components().skip(1).all(plain) => {
            Err(format!(
                "is {parent:?}: an absolute path without .. is needed"
            ))
        }
        CgroupDriver::Systemd if slice_path(parent).is_err() => Err(format!(
            "is {parent:?}: with cgroup.driver systemd a slice is needed, such as \
             bulkhead-pods.slice"
        )),
        CgroupDriver::Cgroupfs | CgroupDriver::Systemd => Ok(()),
    }
}

fn check_handlers(handlers: &[String]) -> Result<(), String> {
    if handlers.is_empty() {
        return Err("is empty: the default handler needs a name".to_owned());
    }
    for (index, name) in handlers.iter().enumerate() {
        // A RuntimeClass's handler is a DNS label (Kubernetes validates it as such).
        let label = !name.is_empty()
            && name.len() <= 63
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !label {
            return Err(format!(
                "holds {name:?}: lower-case letters, digits and hyphens are allowed"
            ));
        }
        if handlers.iter().take(index).any(|other| other == name) {
            return Err(format!("holds {name:?} twice"));
        }
    }
    Ok(())
}

fn check_network(network: &Network) -> Result<(), (&'static str, String)> {
    let bridge = &network.bridge;
    // IFNAMSIZ is 16 with the closing NUL; the kernel refuses '/', ':' and white space.
    let usable = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    if bridge.is_empty()
        || bridge.len() > 15
        || bridge.starts_with('.')
        || !bridge.chars().all(usable)
    {
        return Err((
            "network.bridge",
            format!("is {bridge:?}: an interface name has 1 to 15 letters, digits or hyphens"),
        ));
    }
    let count = |v6: bool| {
        network
            .pod_cidrs
            .iter()
            .filter(|c| c.address.is_ipv6() == v6)
            .count()
    };
    if network.pod_cidrs.is_empty() || count(false) > 1 || count(true) > 1 {
        return Err((
            "network.pod-cidrs",
            "has to hold one IPv4 range, one IPv6 range, or one of each".to_owned(),
        ));
    }
    if let Some(mtu) = network.mtu.filter(|mtu| !(1280..=65_535).contains(mtu)) {
        return Err((
            "network.mtu",
            format!("is {mtu}: it has to be 1280 to 65535"),
        ));
    }
    Ok(())
}

/// URLs name the address, so it has to be one; and what goes over a network is to be encrypted,
/// since a token seen there could be used by whoever saw it (threats J2, J4).
fn check_streaming(streaming: &Streaming) -> Result<(), (&'static str, String)> {
    let address = streaming.address;
    if address.ip().is_unspecified() {
        return Err((
            "streaming.address",
            format!("is {address}: clients are sent to it, so one of the node's own is needed"),
        ));
    }
    match (&streaming.tls_certificate, &streaming.tls_key) {
        (None, None) if !address.ip().is_loopback() => Err((
            "streaming.address",
            format!("is {address}: off loopback streaming.tls-certificate and tls-key are needed"),
        )),
        (Some(_), None) => Err((
            "streaming.tls-certificate",
            "is set without streaming.tls-key".to_owned(),
        )),
        (None, Some(_)) => Err((
            "streaming.tls-key",
            "is set without streaming.tls-certificate".to_owned(),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
