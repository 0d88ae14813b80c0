//! The security fields of a container's spec that belong together: capabilities, seccomp,
//! AppArmor, SELinux, masks.

use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp};

use super::NodeFacts;
use crate::config::{CapabilitySet as DefaultSet, SeccompWhenUnset};
use crate::failure::{Class, Failure};
use crate::request::SandboxRequest;
use crate::request::security::ContainerSecurity;
use crate::security::apparmor;
use crate::security::capabilities::{self, CapabilitySet};
use crate::security::seccomp::{self, SeccompChoice};

/// The node's settings these depend on.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The capabilities of containers that ask for no change.
    pub capabilities: DefaultSet,
    /// What an absent seccomp field means.
    pub seccomp_when_unset: SeccompWhenUnset,
}

/// What was decided.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The five sets.
    pub capabilities: LinuxCapabilities,
    /// The filter.
    pub seccomp: Option<LinuxSeccomp>,
    /// Names in a profile's file that no system call has here.
    pub unknown_syscalls: Vec<String>,
    /// The AppArmor profile.
    pub apparmor: Option<String>,
    /// Hidden paths.
    pub masked_paths: Option<Vec<String>>,
    /// Read-only paths.
    pub readonly_paths: Option<Vec<String>>,
}

/// Decides for a container of `sandbox`. `seccomp_file` is the content of the file that
/// [`seccomp::choose`] names.
pub fn decide(
    security: &ContainerSecurity,
    sandbox: &SandboxRequest,
    seccomp_file: Option<&[u8]>,
    node: &NodeFacts,
    settings: Settings,
) -> Result<Decided, Failure> {
    let sets = capabilities::decide(
        &security.capabilities,
        security.privileged,
        CapabilitySet::default_of(settings.capabilities),
        node.last_capability,
        CapabilitySet::from_mask(match sandbox.namespaces.user {
            // All of them are had in a user namespace, relative to it (user_namespaces(7)).
            Some(_) => u64::MAX,
            None => node.held_capabilities,
        }),
    )?;
    let apparmor = apparmor::decide(
        security.apparmor.as_ref(),
        security.privileged,
        node.apparmor.as_ref(),
    )?;
    if node.selinux && (security.selinux.is_some() || sandbox.selinux.is_some()) {
        return Err(Failure::new(
            Class::Unsupported,
            "linux.security_context.selinux_options: SELinux labels are not provided by this \
             version; leave seLinuxOptions unset",
        ));
    }
    let choice = seccomp::choose(
        security.seccomp.as_ref(),
        security.privileged,
        settings.seccomp_when_unset,
    );
    let (seccomp, unknown_syscalls) = profile(&choice, seccomp_file, sets.base, node)?;
    // A privileged container sees everything, whatever is sent.
    let paths = |list: &[std::path::PathBuf]| {
        let paths: Vec<_> = list
            .iter()
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        (!paths.is_empty() && !security.privileged).then_some(paths)
    };
    Ok(Decided {
        capabilities: sets.to_oci(),
        seccomp,
        unknown_syscalls,
        apparmor,
        masked_paths: paths(&security.masked_paths),
        readonly_paths: paths(&security.readonly_paths),
    })
}

fn profile(
    choice: &SeccompChoice,
    file: Option<&[u8]>,
    bounding: CapabilitySet,
    node: &NodeFacts,
) -> Result<(Option<LinuxSeccomp>, Vec<String>), Failure> {
    if *choice != SeccompChoice::Unconfined && !node.seccomp {
        return Err(Failure::precondition(
            "linux.security_context.seccomp: this node's kernel has no seccomp filters; \
             choose Unconfined",
        ));
    }
    match (choice, file) {
        (SeccompChoice::Unconfined, _) => Ok((None, Vec::new())),
        (SeccompChoice::RuntimeDefault, _) => {
            Ok((Some(seccomp::default_profile(bounding)), Vec::new()))
        }
        (SeccompChoice::Localhost(path), Some(text)) => {
            let parsed = seccomp::parse_json(path, text, bounding, node.kernel)?;
            Ok((Some(parsed.profile), parsed.unknown))
        }
        (SeccompChoice::Localhost(path), None) => Err(Failure::internal(format!(
            "seccomp profile {path} was not read"
        ))),
    }
}
