//! RunPodSandbox: `PodSandboxConfig` → [`SandboxRequest`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use bulkhead_proto::runtime::v1;

use super::namespaces::{Namespaces, Of, Sharing};
use super::security::{self, Profile, SelinuxOptions};
use super::{Resources, enumeration, invalid, sysctl, text};
use crate::failure::Failure;
use crate::network::{HostPort, Protocol};

/// The longest host name the kernel takes (`__NEW_UTS_LEN`, sethostname(2)).
const HOSTNAME: usize = 64;

/// What identifies a pod sandbox among those that exist. Never part of a path (threat I4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxKey {
    /// The pod's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// How many sandboxes of it failed before.
    pub attempt: u32,
}

impl std::fmt::Display for SandboxKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "pod {}/{} attempt {} (uid {})",
            self.namespace, self.name, self.attempt, self.uid
        )
    }
}

/// A pod sandbox to run. Two requests that are equal mean the same sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxRequest {
    /// Its key.
    pub key: SandboxKey,
    /// The runtime handler's name, "" for the default. Whether it exists is the caller's to check.
    pub handler: String,
    /// The host name; none with the node's network.
    pub hostname: Option<String>,
    /// Where containers log; none discards their output.
    pub log_directory: Option<PathBuf>,
    /// DNS; none is a copy of the node's `resolv.conf`.
    pub dns: Option<Dns>,
    /// Host ports; those without one are left out.
    pub ports: Vec<HostPort>,
    /// Labels, verbatim.
    pub labels: BTreeMap<String, String>,
    /// Annotations, verbatim. None has a meaning to us (threat I3).
    pub annotations: BTreeMap<String, String>,
    /// The parent of the pod's cgroup; none is the daemon's own.
    pub cgroup_parent: Option<String>,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// Sysctls by dotted name.
    pub sysctls: BTreeMap<String, String>,
    /// Whether containers may be privileged.
    pub privileged: bool,
    /// Over the pod's generated SELinux label.
    pub selinux: Option<SelinuxOptions>,
    /// The pod's overhead; information, the kubelet owns the pod's cgroup.
    pub overhead: Option<Resources>,
    /// The sum of the containers' limits; information.
    pub resources: Option<Resources>,
}

/// The content of a pod's `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl Dns {
    /// The file's text (resolv.conf(5)), in the order containers expect.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// Reads the request. `handler` is `RunPodSandboxRequest.runtime_handler`.
pub fn parse(config: &v1::PodSandboxConfig, handler: &str) -> Result<SandboxRequest, Failure> {
    let linux_absent = v1::LinuxPodSandboxConfig::default();
    let linux = config.linux.as_ref().unwrap_or(&linux_absent);
    let context_absent = v1::LinuxSandboxSecurityContext::default();
    let context = linux.security_context.as_ref().unwrap_or(&context_absent);
    check_context(context)?;
    let namespaces = Namespaces::parse(
        "linux.security_context.namespace_options",
        context.namespace_options.as_ref(),
        Of::Sandbox,
    )?;
    Ok(SandboxRequest {
        key: key(config.metadata.as_ref())?,
        handler: text::plain("runtime_handler", handler, text::NAME)?,
        hostname: hostname(&config.hostname, namespaces.network)?,
        log_directory: log_directory(&config.log_directory)?,
        dns: dns(config.dns_config.as_ref())?,
        ports: ports(&config.port_mappings)?,
        labels: text::map("labels", &config.labels)?,
        annotations: text::map("annotations", &config.annotations)?,
        cgroup_parent: cgroup_parent(&linux.cgroup_parent)?,
        sysctls: sysctl::parse(
            "linux.sysctls",
            &linux.sysctls,
            namespaces.network == Sharing::Pod,
            namespaces.ipc == Sharing::Pod,
        )?,
        namespaces,
        privileged: context.privileged,
        selinux: security::selinux(
            "linux.security_context.selinux_options",
            context.selinux_options.as_ref(),
        )?,
        overhead: information("linux.overhead", linux.overhead.as_ref())?,
        resources: information("linux.resources", linux.resources.as_ref())?,
    })
}

/// Fields of the sandbox's own process. There is none here, or a pause process of ours that runs no
/// code of the pod: they are checked, so that nonsense is refused, and have nothing to act on.
fn check_context(context: &v1::LinuxSandboxSecurityContext) -> Result<(), Failure> {
    let at = |name: &str| format!("linux.security_context.{name}");
    if let Some(uid) = &context.run_as_user {
        security::id(&at("run_as_user"), uid.value)?;
    }
    if let Some(gid) = &context.run_as_group {
        security::id(&at("run_as_group"), gid.value)?;
        if context.run_as_user.is_none() {
            return Err(invalid(&at("run_as_group"), "needs run_as_user"));
        }
    }
    security::groups(
        "linux.security_context",
        &context.supplemental_groups,
        context.supplemental_groups_policy,
    )?;
    let profile = |name: &str, message, old_name: &str, old| -> Result<Option<Profile>, Failure> {
        security::profile(&at(name), message, &at(old_name), old)
    };
    let seccomp = profile(
        "seccomp",
        context.seccomp.as_ref(),
        "seccomp_profile_path",
        old_seccomp(context),
    )?;
    security::seccomp_path(&at("seccomp"), &seccomp)?;
    profile("apparmor", context.apparmor.as_ref(), "apparmor", "")?;
    Ok(())
}

#[expect(
    deprecated,
    reason = "the field older kubelets send instead of the message"
)]
fn old_seccomp(context: &v1::LinuxSandboxSecurityContext) -> &str {
    &context.seccomp_profile_path
}

fn key(metadata: Option<&v1::PodSandboxMetadata>) -> Result<SandboxKey, Failure> {
    let metadata = metadata.ok_or_else(|| invalid("metadata", "is required"))?;
    Ok(SandboxKey {
        name: text::required("metadata.name", &metadata.name, text::NAME)?,
        namespace: text::plain("metadata.namespace", &metadata.namespace, text::NAME)?,
        uid: text::plain("metadata.uid", &metadata.uid, text::NAME)?,
        attempt: metadata.attempt,
    })
}

/// Kept to what a host name is made of: it goes into files others parse (threat E8). Empty is
/// meant with the node's network only (the pod then has the node's), and elsewhere taken as unset.
fn hostname(value: &str, network: Sharing) -> Result<Option<String>, Failure> {
    if value.is_empty() || network == Sharing::Node {
        text::plain("hostname", value, HOSTNAME)?;
        return Ok(None);
    }
    let name = text::plain("hostname", value, HOSTNAME)?;
    let good = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if !good {
        return Err(invalid(
            "hostname",
            "is made of letters, digits, \"-\", \".\" and \"_\"",
        ));
    }
    Ok(Some(name))
}

fn log_directory(value: &str) -> Result<Option<PathBuf>, Failure> {
    let path = text::host_path("log_directory", value)?;
    if value.split('/').any(|part| part == "..") {
        return Err(invalid("log_directory", "holds \"..\""));
    }
    Ok(path)
}

fn dns(config: Option<&v1::DnsConfig>) -> Result<Option<Dns>, Failure> {
    let Some(config) = config else {
        return Ok(None);
    };
    let words = |name: &str, list: &[String]| -> Result<Vec<String>, Failure> {
        let field = format!("dns_config.{name}");
        let list = text::list(&field, list, 253)?;
        match list
            .iter()
            .find(|word| word.is_empty() || word.chars().any(char::is_whitespace))
        {
            Some(word) => Err(invalid(&field, format_args!("\"{word}\" is not one word"))),
            None => Ok(list),
        }
    };
    let dns = Dns {
        servers: words("servers", &config.servers)?,
        searches: words("searches", &config.searches)?,
        options: words("options", &config.options)?,
    };
    for server in &dns.servers {
        // A zone follows a link-local address: fe80::1%eth0.
        let address = server.split('%').next().unwrap_or_default();
        address.parse::<IpAddr>().map_err(|_| {
            invalid(
                "dns_config.servers",
                format_args!("\"{server}\" is no address"),
            )
        })?;
    }
    // The kubelet sends an empty message for "none": the file is then empty, as asked.
    Ok(Some(dns))
}

fn ports(mappings: &[v1::PortMapping]) -> Result<Vec<HostPort>, Failure> {
    text::bounded("port_mappings", mappings)?;
    let mut ports = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        let at = |name: &str| format!("port_mappings[{index}].{name}");
        let protocol = match enumeration(&at("protocol"), mapping.protocol)? {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        };
        let host_ip = match text::plain(&at("host_ip"), &mapping.host_ip, text::NAME)?.as_str() {
            "" => None,
            address => Some(address.parse().map_err(|_| {
                invalid(&at("host_ip"), format_args!("\"{address}\" is no address"))
            })?),
        };
        // 0 and below mean "none", never a port of our choice.
        if mapping.host_port <= 0 {
            continue;
        }
        let port = |name: &str, value: i32| {
            u16::try_from(value)
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| invalid(&at(name), format_args!("{value} is no port")))
        };
        ports.push(HostPort {
            protocol,
            container_port: port("container_port", mapping.container_port)?,
            host_port: port("host_port", mapping.host_port)?,
            host_ip,
        });
    }
    Ok(ports)
}

/// A cgroup path of plain parts, or a systemd slice (threat I2). Which of the two fits the node's
/// driver is for `spec::sandbox`.
fn cgroup_parent(value: &str) -> Result<Option<String>, Failure> {
    const FIELD: &str = "linux.cgroup_parent";
    if value.is_empty() {
        return Ok(None);
    }
    let path = text::plain(FIELD, value, text::PATH)?;
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let plain = |part: &str| {
        part != "." && part != ".." && part.len() <= 255 && part.bytes().all(in_cgroup_name)
    };
    if parts.is_empty() {
        return Err(invalid(FIELD, "the root cgroup is the node's"));
    }
    if !parts.iter().all(|part| plain(part)) {
        return Err(invalid(
            FIELD,
            format_args!("\"{path}\" holds \"..\" or a character no cgroup is named with"),
        ));
    }
    Ok(Some(path))
}

/// Letters, digits and the signs systemd.unit(5) allows, `\` among them (it escapes with it).
fn in_cgroup_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.:@\\".contains(&byte)
}

fn information(
    field: &str,
    resources: Option<&v1::LinuxContainerResources>,
) -> Result<Option<Resources>, Failure> {
    resources
        .map(|resources| Resources::parse(field, Some(resources)))
        .transpose()
}

#[cfg(test)]
mod tests;
