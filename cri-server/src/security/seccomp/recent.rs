//! System calls newer than Linux 5.17, by name and number.
//!
//! Debian 12's libseccomp (2.5.4) knows none of them. From number 424 on (Linux 5.1) a call has one
//! number on all architectures we build for (`scripts/syscall.tbl`, `arch/x86/entry/syscalls`), so one table
//! serves.

/// The newest call that every supported libseccomp knows: set_mempolicy_home_node, Linux 5.17.
pub(super) const COMMON_NEWEST: u32 = 450;

/// Name, number, and in the comment the first release.
const CALLS: [(&str, u32); 19] = [
    ("cachestat", 451),         // 6.5
    ("fchmodat2", 452),         // 6.6
    ("map_shadow_stack", 453),  // 6.6
    ("futex_wake", 454),        // 6.7
    ("futex_wait", 455),        // 6.7
    ("futex_requeue", 456),     // 6.7
    ("statmount", 457),         // 6.8
    ("listmount", 458),         // 6.8
    ("lsm_get_self_attr", 459), // 6.8
    ("lsm_set_self_attr", 460), // 6.8
    ("lsm_list_modules", 461),  // 6.8
    ("mseal", 462),             // 6.10
    ("setxattrat", 463),        // 6.13
    ("getxattrat", 464),        // 6.13
    ("listxattrat", 465),       // 6.13
    ("removexattrat", 466),     // 6.13
    ("open_tree_attr", 467),    // 6.15
    ("file_getattr", 468),      // 6.17
    ("file_setattr", 469),      // 6.17
];

/// The number of a recent call.
pub(super) fn number(name: &str) -> Option<u32> {
    CALLS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}
