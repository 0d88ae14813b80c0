//! CreateContainer: `ContainerConfig` → [`ContainerRequest`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use bulkhead_proto::runtime::v1;

use super::image::ImageRequest;
use super::mount::{DeviceRequest, MountRequest, Propagation};
use super::namespaces::{Namespaces, Of, Pid, Sharing};
use super::security::ContainerSecurity;
use super::{Resources, SandboxRequest, Signal, invalid, text};
use crate::cdi::DeviceName;
use crate::failure::Failure;

/// What identifies a container within its sandbox. Never part of a path (threat I4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerKey {
    /// The container's name.
    pub name: String,
    /// How many of that name came before.
    pub attempt: u32,
}

/// A container to create. Two requests that are equal mean the same container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRequest {
    /// Its key.
    pub key: ContainerKey,
    /// The image.
    pub image: ImageRequest,
    /// Replaces the image's entry point and command.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    /// The working directory; none is the image's.
    pub working_dir: Option<PathBuf>,
    /// Over the image's environment, in order, each name once.
    pub envs: Vec<EnvVar>,
    /// Mounts as asked, in the order sent.
    pub mounts: Vec<MountRequest>,
    /// Devices as asked.
    pub devices: Vec<DeviceRequest>,
    /// Devices by the names of vendors' files.
    pub cdi_devices: Vec<DeviceName>,
    /// Labels, verbatim.
    pub labels: BTreeMap<String, String>,
    /// Annotations, verbatim. None has a meaning to us (threat I3).
    pub annotations: BTreeMap<String, String>,
    /// The log file, below the sandbox's log directory; none discards the output.
    pub log_path: Option<PathBuf>,
    /// Keep stdin open; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Close stdin when the first attached client's ends.
    pub stdin_once: bool,
    /// A terminal.
    pub tty: bool,
    /// Over the image's.
    pub stop_signal: Option<Signal>,
    /// Limits.
    pub resources: Resources,
    /// The security context.
    pub security: ContainerSecurity,
}

/// An environment variable. Printing one for debugging leaves the value out (threat G2).
#[derive(Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// The name: not empty, without `=` and NUL.
    pub name: String,
    /// The value: without NUL.
    pub value: String,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=<{} bytes>", self.name, self.value.len())
    }
}

/// Reads the request for a container of `sandbox`, whose stored request is the one that counts.
pub fn parse(
    config: &v1::ContainerConfig,
    sandbox: &SandboxRequest,
) -> Result<ContainerRequest, Failure> {
    let linux_absent = v1::LinuxContainerConfig::default();
    let linux = config.linux.as_ref().unwrap_or(&linux_absent);
    let context = linux.security_context.as_ref();
    let security = ContainerSecurity::parse(
        "linux.security_context",
        context,
        namespaces(
            context.and_then(|context| context.namespace_options.as_ref()),
            sandbox,
        )?,
    )?;
    if security.privileged && !sandbox.privileged {
        return Err(invalid(
            "linux.security_context.privileged",
            "the pod sandbox was not made for privileged containers",
        ));
    }
    let image = config
        .image
        .as_ref()
        .ok_or_else(|| invalid("image", "is required"))?;
    Ok(ContainerRequest {
        key: key(config.metadata.as_ref())?,
        image: ImageRequest::parse("image", image)?,
        command: arguments("command", &config.command)?,
        args: arguments("args", &config.args)?,
        working_dir: match config.working_dir.as_str() {
            "" => None,
            directory => Some(text::container_path("working_dir", directory)?),
        },
        envs: envs(&config.envs)?,
        mounts: mounts(&config.mounts, sandbox)?,
        devices: devices(&config.devices)?,
        cdi_devices: cdi_devices(config)?,
        labels: text::map("labels", &config.labels)?,
        annotations: text::map("annotations", &config.annotations)?,
        log_path: text::relative_path("log_path", &config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal: Signal::from_cri("stop_signal", config.stop_signal)?,
        resources: Resources::parse("linux.resources", linux.resources.as_ref())?,
        security,
    })
}

/// What only the sandbox allows, and what of it the container can't change. Network and IPC are
/// the sandbox's: POD, the enum's zero, says so or says nothing, and comes out as what the sandbox
/// has; absent options are the sandbox's altogether.
fn namespaces(
    options: Option<&v1::NamespaceOption>,
    sandbox: &SandboxRequest,
) -> Result<Namespaces, Failure> {
    const FIELD: &str = "linux.security_context.namespace_options";
    let pod = &sandbox.namespaces;
    let Some(options) = options else {
        return Ok(pod.clone());
    };
    let asked = Namespaces::parse(FIELD, Some(options), Of::Container)?;
    for (name, asked, pod) in [
        ("network", asked.network, pod.network),
        ("ipc", asked.ipc, pod.ipc),
    ] {
        if asked == Sharing::Node && pod == Sharing::Pod {
            return Err(invalid(
                &format!("{FIELD}.{name}"),
                "NODE, but the pod sandbox was made with its own, which its containers share",
            ));
        }
    }
    if asked.pid == Pid::Pod && pod.pid != Pid::Pod {
        return Err(invalid(
            &format!("{FIELD}.pid"),
            "POD, but the pod sandbox was made without a PID namespace to share",
        ));
    }
    if options.userns_options.is_some() && asked.user != pod.user {
        return Err(invalid(
            &format!("{FIELD}.userns_options"),
            "differs from the pod sandbox's, whose user namespace its containers are in",
        ));
    }
    if pod.user.is_some() && asked.pid == Pid::Node {
        return Err(invalid(
            &format!("{FIELD}.pid"),
            "NODE can't be combined with the pod's user namespace",
        ));
    }
    Ok(Namespaces {
        network: pod.network,
        ipc: pod.ipc,
        user: pod.user.clone(),
        pid: asked.pid,
    })
}

/// The container whose PID namespace is joined (TARGET), of a request that was read before.
pub fn pid_target(config: &v1::ContainerConfig) -> Option<String> {
    let context = config.linux.as_ref()?.security_context.as_ref()?;
    let options = context.namespace_options.as_ref()?;
    (options.pid() == v1::NamespaceMode::Target).then(|| options.target_id.clone())
}

fn key(metadata: Option<&v1::ContainerMetadata>) -> Result<ContainerKey, Failure> {
    let metadata = metadata.ok_or_else(|| invalid("metadata", "is required"))?;
    Ok(ContainerKey {
        name: text::required("metadata.name", &metadata.name, text::NAME)?,
        attempt: metadata.attempt,
    })
}

/// Arguments may hold any character but NUL, which execve(2) can't carry.
pub(super) fn arguments(field: &str, list: &[String]) -> Result<Vec<String>, Failure> {
    text::bounded(field, list)?;
    for (index, argument) in list.iter().enumerate() {
        if argument.contains('\0') {
            return Err(invalid(&format!("{field}[{index}]"), "holds a NUL byte"));
        }
        if argument.len() > text::ARGUMENT {
            return Err(invalid(
                &format!("{field}[{index}]"),
                format_args!(
                    "argument list too long: {} bytes, the kernel takes {} in one string",
                    argument.len(),
                    text::ARGUMENT
                ),
            ));
        }
    }
    Ok(list.to_vec())
}

/// The last of several values of a name counts, at the place of the first.
fn envs(list: &[v1::KeyValue]) -> Result<Vec<EnvVar>, Failure> {
    text::bounded("envs", list)?;
    let mut envs: Vec<EnvVar> = Vec::with_capacity(list.len());
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, given) in list.iter().enumerate() {
        let at = |name: &str| format!("envs[{index}].{name}");
        let name = given.key.as_str();
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(invalid(
                &at("key"),
                format_args!(
                    "{:?} is no variable's name: it holds \"=\" or NUL, or nothing",
                    shown(name)
                ),
            ));
        }
        let value = std::str::from_utf8(&given.value).map_err(|_| {
            invalid(
                &at("value"),
                format_args!(
                    "{name} is not UTF-8, which the OCI runtime specification can't carry"
                ),
            )
        })?;
        if value.contains('\0') {
            return Err(invalid(
                &at("value"),
                format_args!("{} holds a NUL byte", shown(name)),
            ));
        }
        let bytes = name.len() + 1 + value.len();
        if bytes > text::ARGUMENT {
            return Err(invalid(
                &at("value"),
                format_args!(
                    "argument list too long: {} and its value are {bytes} bytes, the kernel takes {} \
                     in one string",
                    shown(name),
                    text::ARGUMENT
                ),
            ));
        }
        let env = EnvVar {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        match places.get(name) {
            Some(place) => envs[*place] = env,
            None => {
                places.insert(name, envs.len());
                envs.push(env);
            }
        }
    }
    Ok(envs)
}

fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

fn mounts(list: &[v1::Mount], sandbox: &SandboxRequest) -> Result<Vec<MountRequest>, Failure> {
    text::bounded("mounts", list)?;
    let mut mounts: Vec<MountRequest> = Vec::with_capacity(list.len());
    for (index, mount) in list.iter().enumerate() {
        let field = format!("mounts[{index}]");
        let mount = MountRequest::parse(&field, mount)?;
        let own_maps = mount.image.is_some() && mount.id_maps.is_some();
        if own_maps && mount.id_maps != sandbox.namespaces.user {
            return Err(invalid(
                &format!("{field}.uidMappings"),
                "an image has the ids of the pod's user namespace: send those mappings or none",
            ));
        }
        if sandbox.namespaces.user.is_some() && mount.propagation == Propagation::Bidirectional {
            return Err(invalid(
                &format!("{field}.propagation"),
                "BIDIRECTIONAL would let the pod's root mount on the node; not with a user namespace",
            ));
        }
        if mounts
            .iter()
            .any(|other| other.container_path == mount.container_path)
        {
            return Err(invalid(
                &format!("{field}.container_path"),
                format_args!("{} is mounted twice", mount.container_path.display()),
            ));
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

fn devices(list: &[v1::Device]) -> Result<Vec<DeviceRequest>, Failure> {
    text::bounded("devices", list)?;
    list.iter()
        .enumerate()
        .map(|(index, device)| DeviceRequest::parse(&format!("devices[{index}]"), device))
        .collect()
}

/// Names in the field, each once. Annotations with devices of it come along from some device plugins
/// and say nothing new; one that names others is refused, because annotations widen nothing (I3).
fn cdi_devices(config: &v1::ContainerConfig) -> Result<Vec<DeviceName>, Failure> {
    const ANNOTATION: &str = "cdi.k8s.io/";
    text::bounded("CDI_devices", &config.cdi_devices)?;
    let mut names: Vec<DeviceName> = Vec::new();
    for (index, device) in config.cdi_devices.iter().enumerate() {
        let field = format!("CDI_devices[{index}].name");
        let name = text::plain(&field, &device.name, text::NAME)?;
        let name = DeviceName::parse(&name)
            .map_err(|why| invalid(&field, format_args!("\"{name}\" {why}")))?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for (key, value) in &config.annotations {
        if !key.starts_with(ANNOTATION) {
            continue;
        }
        let known =
            |part: &str| DeviceName::parse(part.trim()).is_ok_and(|device| names.contains(&device));
        if !value.split(',').all(known) {
            return Err(invalid(
                &format!("annotations[\"{}\"]", shown(key)),
                "names CDI devices that CDI_devices doesn't: only those are used",
            ));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
