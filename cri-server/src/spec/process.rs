//! The process of a container, and further ones of an exec.

use std::path::{Component, Path, PathBuf};

use bulkhead_runtime::users::{GroupsPolicy, Identity, UserChoice, UserSpec};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    LinuxCapabilities, LinuxSeccomp, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process,
    User,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::config::Rlimits;
use crate::failure::{Doing as _, Failure};
use crate::request::ContainerRequest;
use crate::request::security::UserName;

/// Where programs are looked for when neither request nor image says; the peers' value.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file mode mask of every container: the conventional one, whatever the daemon's (threat E7).
const UMASK: u32 = 0o022;

/// What decides the process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessInputs<'a> {
    /// The request.
    pub request: &'a ContainerRequest,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// Whom to run as.
    pub identity: &'a Identity,
    /// The host name inside.
    pub hostname: &'a str,
    /// Open files, the node's setting.
    pub rlimits: Rlimits,
}

/// Whom to run as, to be looked up in the image's files.
pub fn user_spec(request: &ContainerRequest, image: &ImageConfiguration) -> UserSpec {
    let user = &request.security.user;
    let of_image = image.config().as_ref().and_then(|c| c.user().clone());
    UserSpec {
        user: match &user.user {
            Some(UserName::Id(uid)) => UserChoice::Uid(*uid),
            Some(UserName::Name(name)) => UserChoice::Name(name.clone()),
            None => UserChoice::Image(of_image.unwrap_or_default()),
        },
        group: user.group,
        supplemental: user.supplemental_groups.clone(),
        policy: if user.strict_groups {
            GroupsPolicy::Strict
        } else {
            GroupsPolicy::Merge
        },
    }
}

/// The container's first process.
pub fn init(
    inputs: &ProcessInputs<'_>,
    capabilities: LinuxCapabilities,
    apparmor: Option<String>,
) -> Result<Process, Failure> {
    let request = inputs.request;
    let mut user = User::default();
    user.set_uid(inputs.identity.uid)
        .set_gid(inputs.identity.gid)
        .set_umask(Some(UMASK))
        .set_additional_gids(Some(inputs.identity.groups.clone()))
        .set_username(None);
    let mut process = Process::default();
    process
        .set_terminal(Some(request.tty))
        .set_console_size(None)
        .set_user(user)
        .set_args(Some(arguments(request, inputs.image)?))
        .set_command_line(None)
        .set_env(Some(environment(inputs)?))
        .set_cwd(directory(request, inputs.image)?)
        .set_capabilities(Some(capabilities))
        .set_rlimits(Some(vec![open_files(inputs.rlimits)]))
        .set_no_new_privileges(Some(request.security.no_new_privs))
        .set_apparmor_profile(apparmor)
        .set_oom_score_adj(Some(request.resources.oom_score_adj))
        .set_selinux_label(None)
        .set_io_priority(None)
        .set_scheduler(None)
        .set_exec_cpu_affinity(None);
    Ok(process)
}

/// What a further process takes from the OCI spec of its container, read in one pass.
#[derive(Debug, Deserialize)]
pub struct OfSpec {
    process: Process,
    #[serde(default)]
    linux: Option<LinuxPart>,
}

#[derive(Debug, Deserialize)]
struct LinuxPart {
    #[serde(default)]
    seccomp: Option<LinuxSeccomp>,
}

/// Reads what a further process needs of the container's OCI spec.
pub fn of_spec(spec: &str) -> Result<OfSpec, Failure> {
    serde_json::from_str(spec).doing("read the process of an OCI spec")
}

impl OfSpec {
    /// Takes out the container's seccomp profile.
    pub fn take_seccomp(&mut self) -> Option<LinuxSeccomp> {
        self.linux.take().and_then(|linux| linux.seccomp)
    }

    /// A further process: everything but command and terminal is the container's.
    pub fn exec(self, command: Vec<String>, tty: bool) -> Result<Box<RawValue>, Failure> {
        let mut process = self.process;
        process
            .set_args(Some(command))
            .set_terminal(Some(tty))
            .set_console_size(None);
        if tty {
            let mut env = Environment(process.env().clone().unwrap_or_default());
            env.default("TERM", "xterm");
            process.set_env(Some(env.0));
        }
        serde_json::value::to_raw_value(&process).doing("write the process of an exec")
    }
}

/// `command` replaces entry point and command of the image, `args` the latter (Kubernetes, "Define a
/// Command and Arguments for a Container"; case M4). A lone empty string is no entry point.
fn arguments(
    request: &ContainerRequest,
    image: &ImageConfiguration,
) -> Result<Vec<String>, Failure> {
    let config = image.config().as_ref();
    let of_image = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let mut entrypoint = of_image(config.and_then(|c| c.entrypoint().as_ref()));
    if entrypoint == [""] {
        entrypoint.clear();
    }
    let (first, rest) = if !request.command.is_empty() {
        (request.command.clone(), request.args.clone())
    } else if !request.args.is_empty() {
        (entrypoint, request.args.clone())
    } else {
        (entrypoint, of_image(config.and_then(|c| c.cmd().as_ref())))
    };
    let all: Vec<String> = first.into_iter().chain(rest).collect();
    if all.is_empty() {
        return Err(Failure::invalid(
            "command, args: no command specified, and the image has none",
        ));
    }
    if all.iter().any(|argument| argument.contains('\0')) {
        return Err(Failure::invalid("the image's command holds a NUL byte"));
    }
    Ok(all)
}

/// The image's variables, then the request's over them, then what is still missing. Entries of an
/// image that are no assignment are left out (case M5).
fn environment(inputs: &ProcessInputs<'_>) -> Result<Vec<String>, Failure> {
    let config = inputs.image.config().as_ref();
    let mut env = Environment(Vec::new());
    for entry in config.and_then(|c| c.env().as_ref()).into_iter().flatten() {
        if let Some((name, value)) = entry.split_once('=')
            && !name.is_empty()
            && !entry.contains('\0')
        {
            env.set(name, value);
        }
    }
    for variable in &inputs.request.envs {
        env.set(&variable.name, &variable.value);
    }
    env.default("PATH", DEFAULT_PATH);
    env.default("HOSTNAME", inputs.hostname);
    if inputs.request.tty {
        env.default("TERM", "xterm");
    }
    env.default("HOME", &home(inputs.identity)?);
    Ok(env.0)
}

/// From the image's passwd file, which anybody may have written (threat E8); else the root, as the
/// peers have it.
fn home(identity: &Identity) -> Result<String, Failure> {
    let Some(home) = &identity.home else {
        return Ok("/".to_owned());
    };
    match home.to_str() {
        Some(home) if !home.chars().any(char::is_control) => Ok(home.to_owned()),
        _ => Err(Failure::invalid(
            "the home directory in the image's /etc/passwd holds a control character or is not UTF-8",
        )),
    }
}

/// `NAME=VALUE`, each name once, at the place where it first stood.
struct Environment(Vec<String>);

impl Environment {
    fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|entry| {
            entry
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        })
    }

    fn set(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        match self.position(name).and_then(|at| self.0.get_mut(at)) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }

    fn default(&mut self, name: &str, value: &str) {
        if self.position(name).is_none() {
            self.set(name, value);
        }
    }
}

/// The request's, the image's (a relative one is meant from the root), or the root.
fn directory(request: &ContainerRequest, image: &ImageConfiguration) -> Result<PathBuf, Failure> {
    if let Some(directory) = &request.working_dir {
        return Ok(directory.clone());
    }
    let config = image.config().as_ref();
    let Some(directory) = config.and_then(|c| c.working_dir().as_ref()) else {
        return Ok(PathBuf::from("/"));
    };
    let mut path = PathBuf::from("/");
    for part in Path::new(directory).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => {
                return Err(Failure::invalid(format!(
                    "the image's working directory {directory:?} holds \"..\""
                )));
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(path)
}

/// Never the daemon's own limit (case S4).
fn open_files(rlimits: Rlimits) -> PosixRlimit {
    // The builder has a default for every field, so it can't fail.
    PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .hard(rlimits.nofile_hard)
        .soft(rlimits.nofile_soft)
        .build()
        .unwrap_or_default()
}
