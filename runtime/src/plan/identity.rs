//! Who a process is: ids, capability sets, limits, labels, and where in that order seccomp is loaded.

use std::ffi::CString;

use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, PosixRlimit, PosixRlimitType, Process, User,
};
use rustix::process::{Resource, Rlimit};

use crate::error::{Error, ErrorKind, Result};
use crate::features::Features;
use crate::idmap::IdMaps;

/// The umask where the spec has none, as the peers' (0022).
const DEFAULT_UMASK: u32 = 0o022;

/// Credentials, ready to be put on.
#[derive(Clone, Debug)]
pub(crate) struct IdentityPlan {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<rustix::process::Gid>,
    pub(crate) umask: u32,
    pub(crate) capabilities: CapabilityPlan,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: SeccompOrder,
    pub(crate) limits: Vec<Limit>,
    pub(crate) oom_score_adj: Option<Vec<u8>>,
    /// A file below procfs and what to write there for the next execve.
    pub(crate) label: Option<(CString, Vec<u8>)>,
    /// A terminal is asked for; its size in columns and rows, where given.
    pub(crate) terminal: Option<Option<(u16, u16)>>,
}

/// The five sets as bit masks (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CapabilityPlan {
    pub(crate) bounding: u64,
    pub(crate) permitted: u64,
    pub(crate) effective: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// When the filter is loaded. Without no_new_privs that takes CAP_SYS_ADMIN, so it comes before the
/// capabilities are dropped; with it, last, so that the filter need not allow what comes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeccompOrder {
    /// Before the last capset: the filter must allow capset, prctl and execve.
    BeforeCapabilities,
    /// Just before execve.
    Last,
}

/// A resource limit; clamped to the present hard limit where raising it is not permitted.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) resource: Resource,
    pub(crate) limit: Rlimit,
    pub(crate) name: &'static str,
}

pub(crate) fn plan(process: &Process, features: &Features) -> Result<IdentityPlan> {
    let user = process.user();
    let no_new_privileges = process.no_new_privileges() == Some(true);
    let known = known_mask(features.last_capability);
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    if groups.contains(&u32::MAX) || groups.len() > 65536 {
        return Err(Error::invalid(
            "process.user.additionalGids: an invalid id, or more than 65536",
        ));
    }
    Ok(IdentityPlan {
        uid: user.uid(),
        gid: user.gid(),
        groups: groups
            .iter()
            .map(|gid| rustix::process::Gid::from_raw(*gid))
            .collect(),
        umask: user.umask().unwrap_or(DEFAULT_UMASK),
        capabilities: at_execve(
            capabilities(process.capabilities().as_ref(), known)?,
            user.uid() != 0 && no_new_privileges,
        ),
        no_new_privileges,
        seccomp: if no_new_privileges {
            SeccompOrder::Last
        } else {
            SeccompOrder::BeforeCapabilities
        },
        limits: process.rlimits().iter().flatten().map(limit).collect(),
        oom_score_adj: oom_score_adj(process.oom_score_adj())?,
        label: label(process, features)?,
        terminal: terminal(process)?,
    })
}

/// Refuses ids that a user namespace doesn't have, by name.
pub(crate) fn check_mapped(user: &User, maps: &IdMaps) -> Result<()> {
    let refuse = |field: &str, id: u32| {
        Err(Error::invalid(format!(
            "process.user.{field}: {id} is not mapped in the container's user namespace"
        )))
    };
    if maps.outside_uid(user.uid()).is_none() {
        return refuse("uid", user.uid());
    }
    if maps.outside_gid(user.gid()).is_none() {
        return refuse("gid", user.gid());
    }
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    match groups.iter().find(|gid| maps.outside_gid(**gid).is_none()) {
        Some(gid) => refuse("additionalGids", *gid),
        None => Ok(()),
    }
}

fn known_mask(last: u32) -> u64 {
    if last >= 63 {
        u64::MAX
    } else {
        (1 << (last + 1)) - 1
    }
}

/// No `capabilities` in the spec means none. What the kernel doesn't know is left out, as the
/// specification allows.
fn capabilities(sets: Option<&LinuxCapabilities>, known: u64) -> Result<CapabilityPlan> {
    let Some(sets) = sets else {
        return Ok(CapabilityPlan::default());
    };
    let mask = |set: &Option<Capabilities>| {
        set.iter()
            .flatten()
            .fold(0, |mask, capability| mask | 1 << number(*capability))
            & known
    };
    let plan = CapabilityPlan {
        bounding: mask(sets.bounding()),
        permitted: mask(sets.permitted()),
        effective: mask(sets.effective()),
        inheritable: mask(sets.inheritable()),
        ambient: mask(sets.ambient()),
    };
    for (inner, outer, rule) in [
        (
            plan.effective,
            plan.permitted,
            "effective holds what permitted lacks",
        ),
        (
            plan.ambient,
            plan.permitted & plan.inheritable,
            "ambient holds what permitted or inheritable lacks",
        ),
    ] {
        if inner & !outer != 0 {
            return Err(Error::invalid(format!("process.capabilities: {rule}")));
        }
    }
    Ok(plan)
}

/// What is held when the program is executed. Another user than root keeps no more than the ambient set,
/// but a file's capabilities: with no_new_privs as far as they are held already
/// (cap_bprm_creds_from_file of security/commoncap.c), so then nothing may be held (S8).
fn at_execve(sets: CapabilityPlan, gains_nothing: bool) -> CapabilityPlan {
    if !gains_nothing {
        return sets;
    }
    CapabilityPlan {
        permitted: sets.permitted & sets.ambient,
        effective: sets.effective & sets.ambient,
        ..sets
    }
}

/// The kernel's number (linux/capability.h).
fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

fn limit(limit: &PosixRlimit) -> Limit {
    let (resource, name) = match limit.typ() {
        PosixRlimitType::RlimitCpu => (Resource::Cpu, "RLIMIT_CPU"),
        PosixRlimitType::RlimitFsize => (Resource::Fsize, "RLIMIT_FSIZE"),
        PosixRlimitType::RlimitData => (Resource::Data, "RLIMIT_DATA"),
        PosixRlimitType::RlimitStack => (Resource::Stack, "RLIMIT_STACK"),
        PosixRlimitType::RlimitCore => (Resource::Core, "RLIMIT_CORE"),
        PosixRlimitType::RlimitRss => (Resource::Rss, "RLIMIT_RSS"),
        PosixRlimitType::RlimitNproc => (Resource::Nproc, "RLIMIT_NPROC"),
        PosixRlimitType::RlimitNofile => (Resource::Nofile, "RLIMIT_NOFILE"),
        PosixRlimitType::RlimitMemlock => (Resource::Memlock, "RLIMIT_MEMLOCK"),
        PosixRlimitType::RlimitAs => (Resource::As, "RLIMIT_AS"),
        PosixRlimitType::RlimitLocks => (Resource::Locks, "RLIMIT_LOCKS"),
        PosixRlimitType::RlimitSigpending => (Resource::Sigpending, "RLIMIT_SIGPENDING"),
        PosixRlimitType::RlimitMsgqueue => (Resource::Msgqueue, "RLIMIT_MSGQUEUE"),
        PosixRlimitType::RlimitNice => (Resource::Nice, "RLIMIT_NICE"),
        PosixRlimitType::RlimitRtprio => (Resource::Rtprio, "RLIMIT_RTPRIO"),
        PosixRlimitType::RlimitRttime => (Resource::Rttime, "RLIMIT_RTTIME"),
    };
    let value = |number: u64| (number != u64::MAX).then_some(number); // RLIM_INFINITY
    Limit {
        resource,
        limit: Rlimit {
            current: value(limit.soft()),
            maximum: value(limit.hard()),
        },
        name,
    }
}

fn oom_score_adj(score: Option<i32>) -> Result<Option<Vec<u8>>> {
    match score {
        Some(score) if !(-1000..=1000).contains(&score) => Err(Error::invalid(format!(
            "process.oomScoreAdj: {score} is not within -1000 and 1000"
        ))),
        Some(score) => Ok(Some(score.to_string().into_bytes())),
        None => Ok(None),
    }
}

/// Where the label for the next execve is written: AppArmor's own file since Linux 5.8 where
/// modules are stacked, `attr/exec` before; SELinux' is `attr/exec`.
fn label(process: &Process, features: &Features) -> Result<Option<(CString, Vec<u8>)>> {
    let asked = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
    match (
        asked(process.apparmor_profile()),
        asked(process.selinux_label()),
    ) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Error::invalid(
            "process: both an AppArmor profile and an SELinux label",
        )),
        (Some(_), None) if !features.apparmor => {
            Err(lsm_absent("process.apparmorProfile", "AppArmor"))
        }
        (Some(profile), None) => {
            let file = if features.kernel >= (5, 8) {
                c"thread-self/attr/apparmor/exec"
            } else {
                c"thread-self/attr/exec"
            };
            Ok(Some((
                file.to_owned(),
                format!("exec {profile}").into_bytes(),
            )))
        }
        (None, Some(_)) if !features.selinux => Err(lsm_absent("process.selinuxLabel", "SELinux")),
        (None, Some(label)) => Ok(Some((
            c"thread-self/attr/exec".to_owned(),
            label.into_bytes(),
        ))),
    }
}

/// A label was asked for that this node can't apply: an error, never ignored (CVE-2023-2431).
pub(crate) fn lsm_absent(field: &str, module: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("{field}: {module} is not enabled on this node"),
    )
}

fn terminal(process: &Process) -> Result<Option<Option<(u16, u16)>>> {
    if process.terminal() != Some(true) {
        return Ok(None);
    }
    let Some(size) = process.console_size() else {
        return Ok(Some(None));
    };
    match (u16::try_from(size.width()), u16::try_from(size.height())) {
        (Ok(columns), Ok(rows)) => Ok(Some(Some((columns, rows)))),
        _ => Err(Error::invalid("process.consoleSize: more than 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::features;

    fn process(json: serde_json::Value) -> Process {
        let mut whole =
            serde_json::json!({"user": {"uid": 1, "gid": 2}, "cwd": "/", "args": ["x"]});
        whole
            .as_object_mut()
            .unwrap()
            .extend(json.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn with_no_new_privs_another_user_than_root_holds_nothing_at_execve_but_the_ambient_set() {
        let sets = serde_json::json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
            "effective": ["CAP_CHOWN"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]
        });
        for (uid, privileges, permitted, effective) in [
            (0, true, 0b10_0001, 0b1),
            (0, false, 0b10_0001, 0b1),
            (1, false, 0b10_0001, 0b1),
            (1, true, 0b10_0000, 0),
        ] {
            let json = serde_json::json!({
                "user": {"uid": uid, "gid": 0}, "noNewPrivileges": privileges, "capabilities": sets
            });
            let held = plan(&process(json), &features()).unwrap().capabilities;
            assert_eq!(
                (held.bounding, held.permitted, held.effective, held.ambient),
                (0b10_0001, permitted, effective, 0b10_0000),
                "{uid} {privileges}"
            );
        }
    }

    #[test]
    fn ids_that_are_not_mapped_are_refused_by_name() {
        let range = |length| crate::idmap::IdRange {
            inside: 0,
            outside: 100,
            length,
        };
        let maps = IdMaps {
            uids: vec![range(10)],
            gids: vec![range(20)],
        };
        for (user, fault) in [
            (
                serde_json::json!({"uid": 9, "gid": 19, "additionalGids": [0, 19]}),
                None,
            ),
            (serde_json::json!({"uid": 10, "gid": 0}), Some("uid: 10 ")),
            (serde_json::json!({"uid": 0, "gid": 20}), Some("gid: 20 ")),
            (
                serde_json::json!({"uid": 0, "gid": 0, "additionalGids": [19, 20]}),
                Some("additionalGids: 20 "),
            ),
        ] {
            let process = process(serde_json::json!({"user": user}));
            let error = check_mapped(process.user(), &maps).err();
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            match fault {
                Some(fault) => assert!(error.contains(fault), "{error}"),
                None => assert_eq!(error, ""),
            }
        }
    }

    #[test]
    fn seccomp_is_loaded_by_the_value_of_no_new_privileges_not_its_presence() {
        for (json, wanted) in [
            (serde_json::json!({}), SeccompOrder::BeforeCapabilities),
            (
                serde_json::json!({"noNewPrivileges": false}),
                SeccompOrder::BeforeCapabilities,
            ),
            (
                serde_json::json!({"noNewPrivileges": true}),
                SeccompOrder::Last,
            ),
        ] {
            let plan = plan(&process(json.clone()), &features()).unwrap();
            assert_eq!(plan.seccomp, wanted, "{json}");
            assert_eq!(plan.no_new_privileges, wanted == SeccompOrder::Last);
        }
    }

    #[test]
    fn capability_sets_are_exactly_as_asked() {
        let json = serde_json::json!({"capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"], "permitted": ["CAP_CHOWN"],
            "effective": ["CAP_CHOWN"], "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"]}});
        let mut node = features();
        node.last_capability = 39;
        let wanted = CapabilityPlan {
            bounding: 1,
            permitted: 1,
            effective: 1,
            inheritable: 1,
            ambient: 1,
        };
        let found = plan(&process(json), &node).unwrap();
        assert_eq!(
            found.capabilities, wanted,
            "one beyond the kernel's last is left out"
        );
        let none = plan(&process(serde_json::json!({})), &node).unwrap();
        assert_eq!(
            none.capabilities,
            CapabilityPlan::default(),
            "no sets are empty sets"
        );
    }

    #[test]
    fn these_are_refused() {
        for (json, named) in [
            (
                serde_json::json!({"capabilities": {"effective": ["CAP_KILL"]}}),
                "effective",
            ),
            (
                serde_json::json!({"capabilities": {"ambient": ["CAP_KILL"], "permitted": ["CAP_KILL"]}}),
                "ambient",
            ),
            (serde_json::json!({"oomScoreAdj": 1001}), "oomScoreAdj"),
            (serde_json::json!({"apparmorProfile": "x"}), "AppArmor"),
            (serde_json::json!({"selinuxLabel": "x"}), "SELinux"),
            (
                serde_json::json!({"terminal": true, "consoleSize": {"width": 65536, "height": 1}}),
                "consoleSize",
            ),
        ] {
            let error = plan(&process(json), &features()).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn every_capability_has_the_kernels_number() {
        for capability in caps::all() {
            let ours: Capability = serde_json::from_value(capability.to_string().into()).unwrap();
            assert_eq!(number(ours), u32::from(capability.index()), "{capability}");
        }
    }
}
