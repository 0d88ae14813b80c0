//! One container: image, command, and the parts the sibling files map. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_proto::runtime::v1;
use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::env::{self, Source};
use super::resources::{self, Qos};
use super::volumes::{self, MountPlan};
use super::{
    CONTAINER_NAME, Checker, Facts, Node, PLAYED, POD_NAME, POD_NAMESPACE, POD_UID, Volume,
};
use super::{Restart, security};

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::play) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// Starts among the init containers and goes on beside the main ones.
    Sidecar,
    Main,
}

/// When the registry is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::play) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// A container, ready to be asked for.
#[derive(Clone, Debug)]
pub(in crate::cli::play) struct ContainerPlan {
    pub(in crate::cli::play) name: String,
    pub(in crate::cli::play) role: Role,
    pub(in crate::cli::play) image: String,
    pub(in crate::cli::play) pull: PullPolicy,
    /// Whether an image that would run as root is refused.
    pub(in crate::cli::play) non_root: bool,
    pub(in crate::cli::play) mounts: Vec<MountPlan>,
    env: Vec<(String, Source)>,
    /// All that doesn't depend on what is known later; command and args not yet expanded.
    template: v1::ContainerConfig,
}

/// Init containers, then main ones.
pub(super) fn plan_all(
    spec: &PodSpec,
    qos: Qos,
    node: &Node,
    volumes: &[Volume],
    checker: &mut Checker<'_>,
) -> Vec<ContainerPlan> {
    if spec.containers.is_empty() {
        checker.wrong("spec.containers", "is empty");
    }
    let mut names = BTreeSet::new();
    let mut plans = Vec::new();
    let inits = spec.init_containers.iter().flatten().enumerate();
    let inits = inits.map(|(i, c)| (format!("spec.initContainers[{i}]"), c, true));
    let mains = spec.containers.iter().enumerate();
    let mains = mains.map(|(i, c)| (format!("spec.containers[{i}]"), c, false));
    for (path, container, init) in inits.chain(mains) {
        if !super::is_name(&container.name, 63, false) {
            checker.wrong(
                &format!("{path}.name"),
                "has to be at most 63 lower-case letters, digits and -",
            );
        }
        if !names.insert(&container.name) {
            checker.wrong(
                &format!("{path}.name"),
                format!("is a second {:?}", container.name),
            );
        }
        let role = role(container, init, &path, checker);
        let resources = resources::container(container, qos, node, &path, checker);
        plans.push(plan(
            spec, container, role, resources, volumes, &path, checker,
        ));
    }
    plans
}

fn role(container: &Container, init: bool, path: &str, checker: &mut Checker<'_>) -> Role {
    match (init, container.restart_policy.as_deref()) {
        (false, None) => Role::Main,
        (true, None) => Role::Init,
        (true, Some("Always")) => Role::Sidecar,
        (_, Some(_)) => {
            checker.wrong(
                &format!("{path}.restartPolicy"),
                "can only be Always, and only in init containers",
            );
            Role::Main
        }
    }
}

fn plan(
    spec: &PodSpec,
    container: &Container,
    role: Role,
    resources: v1::LinuxContainerResources,
    volumes: &[Volume],
    path: &str,
    checker: &mut Checker<'_>,
) -> ContainerPlan {
    let image = container.image.clone().unwrap_or_default();
    if image.is_empty() || image.contains(char::is_whitespace) {
        checker.wrong(&format!("{path}.image"), "has to name an image");
    }
    let (security_context, non_root) = security::container(spec, container, path, checker);
    let tty = container.tty == Some(true);
    let stdin = container.stdin == Some(true);
    ContainerPlan {
        name: container.name.clone(),
        role,
        pull: pull_policy(container, &image, path, checker),
        image,
        non_root,
        mounts: volumes::mounts(container, volumes, path, checker),
        env: env::plan(container, path, checker),
        template: v1::ContainerConfig {
            command: container.command.clone().unwrap_or_default(),
            args: container.args.clone().unwrap_or_default(),
            working_dir: container.working_dir.clone().unwrap_or_default(),
            stdin,
            stdin_once: stdin && container.stdin_once == Some(true),
            tty,
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(resources),
                security_context: Some(security_context),
            }),
            ..Default::default()
        },
    }
}

/// Kubernetes' default: always for the tag `latest`, which moves; else only if it is missing.
fn pull_policy(
    container: &Container,
    image: &str,
    path: &str,
    checker: &mut Checker<'_>,
) -> PullPolicy {
    let name = image.rsplit('/').next().unwrap_or(image);
    let moving = !image.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
    let default = if moving { "Always" } else { "IfNotPresent" };
    checker
        .choice(
            &format!("{path}.imagePullPolicy"),
            container.image_pull_policy.as_deref().unwrap_or(default),
            &[
                ("Always", PullPolicy::Always),
                ("IfNotPresent", PullPolicy::IfNotPresent),
                ("Never", PullPolicy::Never),
            ],
        )
        .unwrap_or(PullPolicy::IfNotPresent)
}

impl ContainerPlan {
    /// Whether it is started again after an end with this code.
    pub(in crate::cli::play) fn restarts(&self, pod: Restart, exit_code: i32) -> bool {
        match (self.role, pod) {
            (Role::Sidecar, _) => true,
            // An init container that did its work is done, whatever the policy.
            (Role::Init, Restart::Always | Restart::OnFailure) => exit_code != 0,
            (Role::Main, Restart::Always) => true,
            (Role::Main, Restart::OnFailure) => exit_code != 0,
            (Role::Init | Role::Main, Restart::Never) => false,
        }
    }

    /// For a container that must not run as root and leaves its user to the image: that user's id,
    /// if it is numeric. Nothing to check otherwise.
    #[expect(
        clippy::option_option,
        reason = "the outer says whether there is a question"
    )]
    pub(in crate::cli::play) fn user_of(&self, image: &v1::Image) -> Option<Option<i64>> {
        let context = self.template.linux.as_ref()?.security_context.as_ref()?;
        if !self.non_root || context.run_as_user.is_some() {
            return None;
        }
        if image.username.is_empty() {
            // No user in the image is root.
            return Some(Some(image.uid.map_or(0, |uid| uid.value)));
        }
        Some(None)
    }

    /// The log below the pod's log directory, named as the kubelet names it.
    pub(in crate::cli::play) fn log(name: &str, attempt: u32) -> String {
        format!("{name}/{attempt}.log")
    }

    /// The whole configuration of one attempt, with the image it resolved to.
    pub(in crate::cli::play) fn config(
        &self,
        sandbox: &v1::PodSandboxConfig,
        facts: &Facts<'_>,
        image: &v1::Image,
        attempt: u32,
    ) -> v1::ContainerConfig {
        let env = env::resolve(&self.env, sandbox, facts);
        let known: BTreeMap<&str, &str> = env
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let expand = |texts: &[String]| {
            let lookup = |name: &str| known.get(name).map(|value| (*value).to_owned());
            texts.iter().map(|text| env::expand(text, lookup)).collect()
        };
        let mut config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: self.name.clone(),
                attempt,
            }),
            image: Some(v1::ImageSpec {
                image: image.id.clone(),
                user_specified_image: self.image.clone(),
                ..Default::default()
            }),
            command: expand(&self.template.command),
            args: expand(&self.template.args),
            envs: env
                .iter()
                .map(|(key, value)| v1::KeyValue {
                    key: key.clone(),
                    value: value.clone().into_bytes(),
                })
                .collect(),
            mounts: self.mounts.iter().map(|mount| mount.mount(facts)).collect(),
            labels: self.labels(sandbox),
            annotations: BTreeMap::from([(
                "io.kubernetes.container.restartCount".to_owned(),
                attempt.to_string(),
            )]),
            log_path: Self::log(&self.name, attempt),
            ..self.template.clone()
        };
        user(&mut config, image);
        config
    }

    fn labels(&self, sandbox: &v1::PodSandboxConfig) -> BTreeMap<String, String> {
        let of_pod = [POD_NAME, POD_NAMESPACE, POD_UID, PLAYED];
        let of_pod = of_pod
            .iter()
            .filter_map(|key| sandbox.labels.get_key_value(*key));
        let mut labels: BTreeMap<_, _> = of_pod
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        labels.insert(CONTAINER_NAME.to_owned(), self.name.clone());
        labels
    }
}

/// A group needs a user beside it in CRI; where the manifest gives only the group, the user is the
/// image's (as in the kubelet's `pkg/kubelet/kuberuntime/security_context.go`). Otherwise the
/// image's own `user:group` is left to the runtime.
fn user(config: &mut v1::ContainerConfig, image: &v1::Image) {
    let context = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    let Some(context) = context else { return };
    if context.run_as_group.is_some() && context.run_as_user.is_none() {
        if image.username.is_empty() {
            context.run_as_user = Some(image.uid.unwrap_or_default());
        } else {
            context.run_as_username = image.username.clone();
        }
    }
}
