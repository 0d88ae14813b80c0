//! Capability sets (capabilities(7)): the defaults, and what a request makes of them.

use std::str::FromStr as _;

use caps::Capability;
use oci_spec::runtime as oci;

use crate::config::CapabilitySet as DefaultSet;
use crate::failure::Failure;
use crate::request::security::CapabilityChanges;

/// Any number of capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CapabilitySet(u64);

/// The smallest conventional default (CRI-O's).
const RESTRICTED: [Capability; 9] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_KILL,
];

/// What Docker and containerd have over [`RESTRICTED`].
const CONVENTIONAL_MORE: [Capability; 5] = [
    Capability::CAP_MKNOD,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETFCAP,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_AUDIT_WRITE,
];

impl CapabilitySet {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// All those the running kernel knows, which has `last` as its highest number, and the daemon
    /// holds: it can't give what it hasn't (a nested node may lack CAP_SYS_RESOURCE).
    pub fn all(last: u32, held: Self) -> Self {
        caps::all()
            .into_iter()
            .filter(|capability| u32::from(capability.index()) <= last)
            .filter(|capability| held.contains(*capability))
            .collect()
    }

    /// Those of a mask as in `/proc/<pid>/status`.
    pub fn from_mask(mask: u64) -> Self {
        Self(mask)
    }

    /// A default set.
    pub fn default_of(set: DefaultSet) -> Self {
        let more: &[Capability] = match set {
            DefaultSet::Restricted => &[],
            DefaultSet::Conventional => &CONVENTIONAL_MORE,
        };
        RESTRICTED.iter().chain(more).copied().collect()
    }

    /// Whether it holds the capability.
    pub fn contains(self, capability: Capability) -> bool {
        self.0 & capability.bitmask() != 0
    }

    /// Of the names in an OCI set; those without a name here are left out.
    pub fn from_oci(set: &oci::Capabilities) -> Self {
        set.iter()
            .filter_map(|capability| Capability::from_str(&format!("CAP_{capability}")).ok())
            .collect()
    }

    /// As the OCI specification has it.
    pub fn to_oci(self) -> oci::Capabilities {
        caps::all()
            .into_iter()
            .filter(|capability| self.contains(*capability))
            .filter_map(|capability| {
                let name = capability.to_string();
                oci::Capability::from_str(name.strip_prefix("CAP_").unwrap_or(&name)).ok()
            })
            .collect()
    }

    fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl FromIterator<Capability> for CapabilitySet {
    fn from_iter<I: IntoIterator<Item = Capability>>(capabilities: I) -> Self {
        Self(
            capabilities
                .into_iter()
                .fold(0, |bits, capability| bits | capability.bitmask()),
        )
    }
}

/// The sets of a process. Bounding, permitted and effective are one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    /// Bounding, permitted and effective.
    pub base: CapabilitySet,
    /// Ambient, and inheritable, which the kernel wants for it. Nothing else is inheritable: file
    /// capabilities would otherwise be gained by it (CVE-2022-24769; the proto's text is older).
    pub ambient: CapabilitySet,
}

impl Sets {
    /// As the OCI specification has it. A user other than root loses the effective and permitted
    /// ones that aren't ambient at execve(2), as expected.
    pub fn to_oci(self) -> oci::LinuxCapabilities {
        let mut sets = oci::LinuxCapabilities::default();
        sets.set_bounding(Some(self.base.to_oci()))
            .set_permitted(Some(self.base.to_oci()))
            .set_effective(Some(self.base.to_oci()))
            .set_inheritable(Some(self.ambient.to_oci()))
            .set_ambient(Some(self.ambient.to_oci()));
        sets
    }
}

/// What `changes` make of `default`: add ALL first, then drop ALL, then single additions, then
/// single removals, so that the last word is a removal's. A privileged container has all, whatever
/// its changes say, as with the peers.
pub fn decide(
    changes: &CapabilityChanges,
    privileged: bool,
    default: CapabilitySet,
    last: u32,
    held: CapabilitySet,
) -> Result<Sets, Failure> {
    let add = Named::read("add_capabilities", &changes.add, last, held)?;
    let drop = Named::read(
        "drop_capabilities",
        &changes.drop,
        last,
        CapabilitySet::from_mask(u64::MAX),
    )?;
    let ambient = Named::read("add_ambient_capabilities", &changes.add_ambient, last, held)?;
    let all = CapabilitySet::all(last, held);
    if privileged {
        let ambient = if ambient.all { all } else { ambient.set };
        return Ok(Sets { base: all, ambient });
    }
    let mut base = if add.all { all } else { default };
    if drop.all {
        base = CapabilitySet::EMPTY;
    }
    let ambient = if ambient.all { all } else { ambient.set };
    Ok(Sets {
        base: base.union(add.set).union(ambient).minus(drop.set),
        ambient: ambient.minus(drop.set),
    })
}

/// A list of names: whether ALL is in it, and the others.
struct Named {
    all: bool,
    set: CapabilitySet,
}

impl Named {
    fn read(list: &str, names: &[String], last: u32, held: CapabilitySet) -> Result<Self, Failure> {
        let mut named = Self {
            all: false,
            set: CapabilitySet::EMPTY,
        };
        for name in names {
            let upper = name.to_ascii_uppercase();
            if upper == "ALL" {
                named.all = true;
                continue;
            }
            let fault = |why: &str| {
                Failure::invalid(format!(
                    "linux.security_context.capabilities.{list}: \"{name}\" {why}"
                ))
            };
            let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
            let capability = Capability::from_str(&format!("CAP_{short}"))
                .map_err(|_| fault("is no capability"))?;
            if u32::from(capability.index()) > last {
                return Err(fault("is newer than this node's kernel"));
            }
            if !held.contains(capability) {
                return Err(fault(
                    "can't be given: the daemon itself doesn't hold it on this node",
                ));
            }
            named.set = named.set.union([capability].into_iter().collect());
        }
        Ok(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Highest number on a current kernel: CAP_CHECKPOINT_RESTORE.
    const LAST: u32 = 40;

    /// A daemon that lacks nothing.
    const HELD: CapabilitySet = CapabilitySet(u64::MAX);

    fn names(set: CapabilitySet) -> Vec<String> {
        let mut names: Vec<_> = caps::all()
            .into_iter()
            .filter(|c| set.contains(*c))
            .map(|c| c.to_string().trim_start_matches("CAP_").to_owned())
            .collect();
        names.sort();
        names
    }

    fn changes(add: &[&str], drop: &[&str], ambient: &[&str]) -> CapabilityChanges {
        let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        CapabilityChanges {
            add: owned(add),
            drop: owned(drop),
            add_ambient: owned(ambient),
        }
    }

    #[test]
    fn the_defaults_are_the_conventional_nine_and_fourteen() {
        let nine = CapabilitySet::default_of(DefaultSet::Restricted);
        assert_eq!(
            names(nine).join(" "),
            "CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETGID SETPCAP SETUID"
        );
        let fourteen = CapabilitySet::default_of(DefaultSet::Conventional);
        assert_eq!(
            names(fourteen.minus(nine)).join(" "),
            "AUDIT_WRITE MKNOD NET_RAW SETFCAP SYS_CHROOT"
        );
    }

    #[test]
    fn additions_and_removals_make_the_sets_as_tabled() {
        let default = CapabilitySet::default_of(DefaultSet::Restricted);
        for (add, drop, ambient, expected, expected_ambient) in [
            (&["NET_ADMIN"][..], &["ALL"][..], &[][..], "NET_ADMIN", ""),
            (&[], &["ALL"], &[], "", ""),
            (
                &["cap_net_admin", "Cap_Chown"],
                &["all"],
                &[],
                "CHOWN NET_ADMIN",
                "",
            ),
            (&["CHOWN"], &["ALL", "CHOWN"], &[], "", ""),
            (&["ALL", "CHOWN"], &["ALL"], &[], "CHOWN", ""),
            (&[], &["ALL"], &["NET_RAW"], "NET_RAW", "NET_RAW"),
            (
                &[],
                &["ALL", "NET_RAW"],
                &["NET_RAW", "KILL"],
                "KILL",
                "KILL",
            ),
        ] {
            let sets = decide(&changes(add, drop, ambient), false, default, LAST, HELD).unwrap();
            assert_eq!(names(sets.base).join(" "), expected, "{add:?} {drop:?}");
            assert_eq!(names(sets.ambient).join(" "), expected_ambient);
            let oci = sets.to_oci();
            assert_eq!(oci.inheritable(), oci.ambient());
            assert_eq!(
                CapabilitySet::from_oci(oci.bounding().as_ref().unwrap()),
                sets.base
            );
        }
        let all = decide(
            &changes(&["ALL"], &["SYS_ADMIN"], &[]),
            false,
            default,
            LAST,
            HELD,
        )
        .unwrap();
        assert_eq!(names(all.base).len(), 40);
        let none = decide(&changes(&[], &[], &[]), false, default, LAST, HELD).unwrap();
        assert_eq!(none.base, default);
        assert_eq!(none.ambient, CapabilitySet::EMPTY);
    }

    #[test]
    fn a_privileged_container_has_all_the_kernel_knows() {
        let sets = decide(
            &changes(&[], &["ALL"], &[]),
            true,
            CapabilitySet::EMPTY,
            37,
            HELD,
        )
        .unwrap();
        assert_eq!(names(sets.base).len(), 38);
        assert_eq!(sets.ambient, CapabilitySet::EMPTY);
    }

    #[test]
    fn what_the_daemon_lacks_is_left_out_of_all_and_refused_by_name() {
        let held = HELD.minus([Capability::CAP_SYS_RESOURCE].into_iter().collect());
        for (add, privileged) in [(&["ALL"][..], false), (&[][..], true)] {
            let changes = changes(add, &[], &[]);
            let sets = decide(&changes, privileged, CapabilitySet::EMPTY, LAST, held).unwrap();
            assert!(!sets.base.contains(Capability::CAP_SYS_RESOURCE));
            assert_eq!(names(sets.base).len(), 40);
        }
        let asked = changes(&["SYS_RESOURCE"], &[], &[]);
        let refused = decide(&asked, false, CapabilitySet::EMPTY, LAST, held).unwrap_err();
        assert!(refused.message().contains("doesn't hold it"), "{refused}");
        let dropped = changes(&[], &["SYS_RESOURCE"], &[]);
        assert!(decide(&dropped, false, CapabilitySet::EMPTY, LAST, held).is_ok());
    }

    #[test]
    fn unknown_and_too_new_names_are_refused() {
        for (add, last) in [
            ("NONSENSE", LAST),
            ("", LAST),
            ("CAP_CAP_CHOWN", LAST),
            ("BPF", 38),
        ] {
            let failure = decide(
                &changes(&[add], &[], &[]),
                false,
                CapabilitySet::EMPTY,
                last,
                HELD,
            );
            let failure = failure.unwrap_err();
            assert!(
                failure.message().contains("capabilities.add_capabilities"),
                "{failure}"
            );
        }
    }
}
