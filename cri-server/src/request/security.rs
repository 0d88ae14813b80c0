//! The security context of pods and containers: profiles, labels, identities.

use std::path::PathBuf;

use bulkhead_proto::runtime::v1;

use super::namespaces::Namespaces;
use super::{enumeration, invalid, text};
use crate::failure::Failure;

/// A seccomp or AppArmor profile as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The runtime's default.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A seccomp file's path, or the name of a loaded AppArmor profile.
    Localhost(String),
}

/// The profile of a `SecurityProfile` message, or else of the older string (`runtime/default`,
/// `docker/default`, `unconfined`, `localhost/<ref>`); none if neither is set.
///
/// Kubelets before 1.27 sent both, with the same meaning: the message wins.
pub(super) fn profile(
    field: &str,
    message: Option<&v1::SecurityProfile>,
    old_field: &str,
    old: &str,
) -> Result<Option<Profile>, Failure> {
    let Some(message) = message else {
        return old_profile(old_field, old);
    };
    let reference = format!("{field}.localhost_ref");
    let localhost = text::plain(&reference, &message.localhost_ref, text::PATH)?;
    // Some clients (critest) write the older string's prefix here too, and the peers take it.
    let localhost = match localhost.strip_prefix("localhost/") {
        Some(name) => name.to_owned(),
        None => localhost,
    };
    let chosen = match enumeration(&format!("{field}.profile_type"), message.profile_type)? {
        v1::security_profile::ProfileType::RuntimeDefault => Profile::RuntimeDefault,
        v1::security_profile::ProfileType::Unconfined => Profile::Unconfined,
        v1::security_profile::ProfileType::Localhost if localhost.is_empty() => {
            return Err(invalid(&reference, "Localhost needs it"));
        }
        v1::security_profile::ProfileType::Localhost => {
            return Ok(Some(Profile::Localhost(localhost)));
        }
    };
    if !localhost.is_empty() {
        return Err(invalid(
            &reference,
            "is meant only with profile_type Localhost",
        ));
    }
    Ok(Some(chosen))
}

fn old_profile(field: &str, value: &str) -> Result<Option<Profile>, Failure> {
    match value {
        "" => Ok(None),
        "runtime/default" | "docker/default" => Ok(Some(Profile::RuntimeDefault)),
        "unconfined" => Ok(Some(Profile::Unconfined)),
        other => {
            match other.strip_prefix("localhost/") {
                Some(reference) if !reference.is_empty() => Ok(Some(Profile::Localhost(
                    text::plain(field, reference, text::PATH)?,
                ))),
                _ => Err(invalid(
                    field,
                    "is none of runtime/default, unconfined, localhost/<profile>",
                )),
            }
        }
    }
}

/// Refuses a localhost seccomp reference that is no absolute path.
pub(super) fn seccomp_path(field: &str, profile: &Option<Profile>) -> Result<(), Failure> {
    match profile {
        Some(Profile::Localhost(path)) if !path.starts_with('/') => Err(invalid(
            field,
            format_args!("\"{path}\" must be the absolute path of a profile"),
        )),
        _ => Ok(()),
    }
}

/// Parts of an SELinux label that replace those of the generated one. Empty parts are left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelinuxOptions {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type (of the process).
    pub r#type: String,
    /// Level, such as `s0:c1,c2`.
    pub level: String,
}

/// Absent, or with all parts empty: none.
pub(super) fn selinux(
    field: &str,
    options: Option<&v1::SeLinuxOption>,
) -> Result<Option<SelinuxOptions>, Failure> {
    let Some(options) = options else {
        return Ok(None);
    };
    let part = |name: &str, value: &str| text::plain(&format!("{field}.{name}"), value, text::NAME);
    let parsed = SelinuxOptions {
        user: part("user", &options.user)?,
        role: part("role", &options.role)?,
        r#type: part("type", &options.r#type)?,
        level: part("level", &options.level)?,
    };
    Ok((parsed != SelinuxOptions::default()).then_some(parsed))
}

/// A user or group id: 0 to 2³² − 2; the last one means "unchanged" to the kernel (threat E1).
pub(super) fn id(field: &str, value: i64) -> Result<u32, Failure> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| invalid(field, format_args!("{value} is no user or group id")))
}

/// Who the container's first process is, as far as the request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user; absent is the image's.
    pub user: Option<UserName>,
    /// The primary group; absent is the user's in `/etc/passwd`, else 0.
    pub group: Option<u32>,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// The user's groups in the image's `/etc/group` are left out (policy Strict).
    pub strict_groups: bool,
}

/// A user by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserName {
    /// A uid, which need not be in the image's `/etc/passwd`.
    Id(u32),
    /// A name, which must be.
    Name(String),
}

impl User {
    /// The identity fields of a container's security context.
    pub(super) fn parse(
        field: &str,
        context: &v1::LinuxContainerSecurityContext,
    ) -> Result<Self, Failure> {
        let at = |name: &str| format!("{field}.{name}");
        let name = text::plain(&at("run_as_username"), &context.run_as_username, text::NAME)?;
        let user = match (&context.run_as_user, name.is_empty()) {
            (Some(_), false) => {
                return Err(invalid(
                    &at("run_as_username"),
                    "excludes run_as_user: send one of the two",
                ));
            }
            (Some(uid), true) => Some(UserName::Id(id(&at("run_as_user"), uid.value)?)),
            (None, false) => Some(UserName::Name(name)),
            (None, true) => None,
        };
        let group = match &context.run_as_group {
            Some(gid) => Some(id(&at("run_as_group"), gid.value)?),
            None => None,
        };
        if group.is_some() && user.is_none() {
            return Err(invalid(
                &at("run_as_group"),
                "needs run_as_user or run_as_username",
            ));
        }
        let (supplemental_groups, strict_groups) = groups(
            field,
            &context.supplemental_groups,
            context.supplemental_groups_policy,
        )?;
        Ok(Self {
            user,
            group,
            supplemental_groups,
            strict_groups,
        })
    }
}

/// Supplemental groups and whether the policy is Strict.
pub(super) fn groups(field: &str, gids: &[i64], policy: i32) -> Result<(Vec<u32>, bool), Failure> {
    let list = format!("{field}.supplemental_groups");
    text::bounded(&list, gids)?;
    let gids = gids
        .iter()
        .map(|gid| id(&list, *gid))
        .collect::<Result<_, _>>()?;
    let strict = match enumeration(&format!("{field}.supplemental_groups_policy"), policy)? {
        v1::SupplementalGroupsPolicy::Merge => false,
        v1::SupplementalGroupsPolicy::Strict => true,
    };
    Ok((gids, strict))
}

/// Capabilities to add and drop, by name as sent; their meaning is `security::capabilities`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapabilityChanges {
    /// Added to the default set.
    pub add: Vec<String>,
    /// Taken away after the additions.
    pub drop: Vec<String>,
    /// Put into all five sets.
    pub add_ambient: Vec<String>,
}

impl CapabilityChanges {
    pub(super) fn parse(field: &str, message: Option<&v1::Capability>) -> Result<Self, Failure> {
        let Some(message) = message else {
            return Ok(Self::default());
        };
        let names = |name: &str, list: &[String]| text::list(&format!("{field}.{name}"), list, 64);
        Ok(Self {
            add: names("add_capabilities", &message.add_capabilities)?,
            drop: names("drop_capabilities", &message.drop_capabilities)?,
            add_ambient: names(
                "add_ambient_capabilities",
                &message.add_ambient_capabilities,
            )?,
        })
    }
}

/// The security context of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSecurity {
    /// Namespaces.
    pub namespaces: Namespaces,
    /// Everything the node has, but user, root file system mode, mounts and limits as asked.
    pub privileged: bool,
    /// Changes to the default capabilities.
    pub capabilities: CapabilityChanges,
    /// Over the generated SELinux label.
    pub selinux: Option<SelinuxOptions>,
    /// Who runs.
    pub user: User,
    /// The root file system can't be written.
    pub readonly_rootfs: bool,
    /// No privilege by execve(2).
    pub no_new_privs: bool,
    /// Hidden paths; empty hides nothing (procMount Unmasked).
    pub masked_paths: Vec<PathBuf>,
    /// Read-only paths; empty makes nothing read-only.
    pub readonly_paths: Vec<PathBuf>,
    /// Seccomp; absent is unconfined unless the node says otherwise.
    pub seccomp: Option<Profile>,
    /// AppArmor; absent is the default.
    pub apparmor: Option<Profile>,
}

impl ContainerSecurity {
    /// Of an absent context: everything at its default.
    pub(super) fn parse(
        field: &str,
        context: Option<&v1::LinuxContainerSecurityContext>,
        namespaces: Namespaces,
    ) -> Result<Self, Failure> {
        let absent = v1::LinuxContainerSecurityContext::default();
        let context = context.unwrap_or(&absent);
        let at = |name: &str| format!("{field}.{name}");
        let paths = |name: &str, list: &[String]| {
            text::bounded(&at(name), list)?;
            list.iter()
                .enumerate()
                .map(|(i, path)| text::container_path(&format!("{field}.{name}[{i}]"), path))
                .collect::<Result<Vec<_>, _>>()
        };
        let seccomp = profile(
            &at("seccomp"),
            context.seccomp.as_ref(),
            &at("seccomp_profile_path"),
            old_seccomp(context),
        )?;
        seccomp_path(&at("seccomp"), &seccomp)?;
        Ok(Self {
            namespaces,
            privileged: context.privileged,
            capabilities: CapabilityChanges::parse(
                &at("capabilities"),
                context.capabilities.as_ref(),
            )?,
            selinux: selinux(&at("selinux_options"), context.selinux_options.as_ref())?,
            user: User::parse(field, context)?,
            readonly_rootfs: context.readonly_rootfs,
            no_new_privs: context.no_new_privs,
            masked_paths: paths("masked_paths", &context.masked_paths)?,
            readonly_paths: paths("readonly_paths", &context.readonly_paths)?,
            seccomp,
            apparmor: profile(
                &at("apparmor"),
                context.apparmor.as_ref(),
                &at("apparmor_profile"),
                old_apparmor(context),
            )?,
        })
    }
}

#[expect(
    deprecated,
    reason = "the field older kubelets send instead of the message"
)]
fn old_seccomp(context: &v1::LinuxContainerSecurityContext) -> &str {
    &context.seccomp_profile_path
}

#[expect(
    deprecated,
    reason = "the field older kubelets send instead of the message"
)]
fn old_apparmor(context: &v1::LinuxContainerSecurityContext) -> &str {
    &context.apparmor_profile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_come_from_the_message_first_and_from_the_old_string_else() {
        use Profile::{Localhost, RuntimeDefault, Unconfined};
        let message = |kind, reference: &str| v1::SecurityProfile {
            profile_type: kind,
            localhost_ref: reference.to_owned(),
        };
        for (new, old, expected) in [
            (None, "", Ok(None)),
            (None, "runtime/default", Ok(Some(RuntimeDefault))),
            (None, "docker/default", Ok(Some(RuntimeDefault))),
            (None, "unconfined", Ok(Some(Unconfined))),
            (
                None,
                "localhost//p.json",
                Ok(Some(Localhost("/p.json".to_owned()))),
            ),
            (None, "localhost/", Err(())),
            (None, "Unconfined", Err(())),
            (Some(message(0, "")), "unconfined", Ok(Some(RuntimeDefault))),
            (Some(message(1, "")), "", Ok(Some(Unconfined))),
            (
                Some(message(2, "/p")),
                "",
                Ok(Some(Localhost("/p".to_owned()))),
            ),
            (Some(message(2, "")), "", Err(())),
            (Some(message(0, "/p")), "", Err(())),
            (Some(message(1, "/p")), "", Err(())),
            (Some(message(3, "")), "", Err(())),
        ] {
            let found = profile("p", new.as_ref(), "old", old).map_err(|_| ());
            assert_eq!(found, expected, "{new:?} {old:?}");
        }
    }

    #[test]
    fn identities_are_exclusive_bounded_and_complete() {
        let value = |value| Some(v1::Int64Value { value });
        for (uid, name, gid, groups, policy, good) in [
            (None, "", None, vec![], 0, true),
            (value(0), "", None, vec![], 0, true),
            (value(1000), "", value(0), vec![3000], 1, true),
            (None, "app", value(5), vec![], 0, true),
            (value(1), "app", None, vec![], 0, false),
            (None, "", value(5), vec![], 0, false),
            (value(-1), "", None, vec![], 0, false),
            (value(4_294_967_295), "", None, vec![], 0, false),
            (value(4_294_967_294), "", None, vec![], 0, true),
            (value(1), "", value(1 << 33), vec![], 0, false),
            (None, "", None, vec![-1], 0, false),
            (None, "", None, vec![], 2, false),
            (None, "a\nb", None, vec![], 0, false),
        ] {
            let context = v1::LinuxContainerSecurityContext {
                run_as_user: uid,
                run_as_username: name.to_owned(),
                run_as_group: gid,
                supplemental_groups: groups,
                supplemental_groups_policy: policy,
                ..Default::default()
            };
            let parsed = User::parse("s", &context);
            assert_eq!(parsed.is_ok(), good, "{context:?}");
        }
    }
}
