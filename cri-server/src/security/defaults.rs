//! What the container world hides and protects when nothing else is said.
//!
//! The CRI has no default for these: the kubelet sends the lists, and an empty one means procMount
//! Unmasked. They are here for callers that make requests themselves (`bulkhead play`).

/// Files that leak the node's state or keys, and directories of them (threat A8); from the
/// kubelet's own lists and the peers', with the newer entries for interrupts and power counters.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Knobs of the node.
pub const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];
