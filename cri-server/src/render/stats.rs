//! Resource usage as the CRI shows it: nanoseconds, bytes, counts.

use std::path::Path;

use bulkhead_proto::runtime::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage,
    MemoryUsage, SwapUsage, UInt64Value,
};

use crate::image::Usage as LayerUsage;
use crate::records::ContainerRecord;
use crate::stats::Usage;

/// One container's usage; an exited one has only its writable layer.
pub fn container(
    container: &ContainerRecord,
    usage: Option<&Usage>,
    writable: Option<FilesystemUsage>,
) -> ContainerStats {
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: container.id.clone(),
            metadata: container.config.metadata.clone(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
        }),
        cpu: usage.map(cpu),
        memory: usage.map(memory),
        writable_layer: writable,
        swap: usage.map(swap),
        io: None,
    }
}

/// A container's writable layer, on the file system ImageFsInfo names.
pub fn writable_layer(mountpoint: &Path, usage: LayerUsage, now: i64) -> FilesystemUsage {
    FilesystemUsage {
        // Measured in the background; before the first time it is empty as of now.
        timestamp: if usage.timestamp_ns > 0 {
            usage.timestamp_ns
        } else {
            now
        },
        fs_id: Some(FilesystemIdentifier {
            mountpoint: mountpoint.to_string_lossy().into_owned(),
        }),
        used_bytes: value(usage.bytes),
        inodes_used: value(usage.inodes),
    }
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn cpu(usage: &Usage) -> CpuUsage {
    CpuUsage {
        timestamp: usage.timestamp,
        usage_core_nano_seconds: value(usage.cgroup.cpu_usage_ns),
        usage_nano_cores: usage.nano_cores.and_then(value),
        psi: None,
    }
}

/// What the kubelet evicts by is the working set: usage without inactive file pages, never below 0.
fn memory(usage: &Usage) -> MemoryUsage {
    let stats = &usage.cgroup;
    let working_set = stats.memory_usage.saturating_sub(stats.inactive_file);
    MemoryUsage {
        timestamp: usage.timestamp,
        working_set_bytes: value(working_set),
        available_bytes: value(
            stats
                .memory_limit
                .map_or(0, |limit| limit.saturating_sub(working_set)),
        ),
        usage_bytes: value(stats.memory_usage),
        rss_bytes: value(stats.rss),
        page_faults: value(stats.page_faults),
        major_page_faults: value(stats.major_page_faults),
        psi: None,
    }
}

fn swap(usage: &Usage) -> SwapUsage {
    let stats = &usage.cgroup;
    SwapUsage {
        timestamp: usage.timestamp,
        swap_available_bytes: value(
            stats
                .swap_limit
                .map_or(0, |limit| limit.saturating_sub(stats.swap_usage)),
        ),
        swap_usage_bytes: value(stats.swap_usage),
    }
}
