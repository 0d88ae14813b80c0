//! From OCI resources to the files of a control group and what to write into them. Pure.
//!
//! Owns every conversion between the OCI fields (which speak v1: shares, quotas, memory+swap) and
//! the files of v1 and v2, and every refusal that needs no kernel. Writing is `cgroup/apply.rs`.
//!
//! Sources: OCI runtime-spec `config-linux.md` §Control groups; the kernel's
//! `admin-guide/cgroup-v1/*` and `admin-guide/cgroup-v2`. A value of 0 (or absent) means "leave
//! it", −1 means "no limit", as the CRI has it.

mod cpu;
mod io;
mod memory;

use oci_spec::runtime::{LinuxHugepageLimit, LinuxResources};

use crate::error::{Error, ErrorKind, Result};

/// The controllers that have a job here. `net_cls`, `net_prio`, `perf_event` and `misc` have none:
/// no CRI field leads to them, and each v1 hierarchy costs every start of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPU time: weight and bandwidth.
    Cpu,
    /// CPU time used, v1 only; v2 counts it in every group (`cpu.stat`).
    Cpuacct,
    /// Which CPUs and memory nodes.
    Cpuset,
    /// Memory and swap.
    Memory,
    /// Number of tasks.
    Pids,
    /// Block I/O; `blkio` on v1.
    Io,
    /// Huge pages.
    Hugetlb,
    /// RDMA handles.
    Rdma,
    /// Device access, v1 only; v2 has eBPF programs instead.
    Devices,
    /// Stopping all tasks, v1 only; v2 has it in every group.
    Freezer,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Cpu,
        Self::Cpuacct,
        Self::Cpuset,
        Self::Memory,
        Self::Pids,
        Self::Io,
        Self::Hugetlb,
        Self::Rdma,
        Self::Devices,
        Self::Freezer,
    ];

    /// The name in a v1 mount's options.
    pub fn v1_name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "blkio",
            Self::Hugetlb => "hugetlb",
            Self::Rdma => "rdma",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
        }
    }

    /// The name in `cgroup.controllers`; `None` where v2 has no such controller.
    pub fn v2_name(self) -> Option<&'static str> {
        match self {
            Self::Io => Some("io"),
            Self::Cpuacct | Self::Devices | Self::Freezer => None,
            other => Some(other.v1_name()),
        }
    }
}

/// Where a controller is to be had on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a v1 hierarchy.
    V1,
    /// In the v2 hierarchy.
    V2,
    /// Nowhere.
    Missing,
}

/// What the plan must know about the node.
pub trait Placement {
    /// Where a controller is.
    fn place(&self, controller: Controller) -> Place;

    /// Every controller is in the v2 hierarchy; only then `unified` has a meaning.
    fn is_unified(&self) -> bool;
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// This text.
    Text(String),
    /// `cpu.max` with the quota it has and this period: v2 can't set the period alone.
    KeepQuota(u64),
    /// v1's two memory limits, whose order of writing depends on what they are (case Q1): after
    /// every single write memory must not exceed memory+swap.
    MemoryPair {
        /// `memory.limit_in_bytes`; `None` leaves it.
        limit: Option<Limit>,
        /// `memory.memsw.limit_in_bytes`; `None` leaves it.
        memsw: Option<Limit>,
    },
}

/// A limit in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// This many bytes.
    Bytes(u64),
    /// No limit; larger than every number.
    Max,
}

impl Limit {
    /// From an OCI value: 0 and absent leave the limit as it is, negative removes it.
    fn parse(value: Option<i64>) -> Option<Self> {
        match value {
            None | Some(0) => None,
            Some(bytes) => Some(u64::try_from(bytes).map_or(Self::Max, Self::Bytes)),
        }
    }

    /// The text v1 wants.
    pub fn v1(self) -> String {
        match self {
            Self::Bytes(bytes) => bytes.to_string(),
            Self::Max => "-1".to_owned(),
        }
    }

    /// The text v2 wants.
    pub fn v2(self) -> String {
        match self {
            Self::Bytes(bytes) => bytes.to_string(),
            Self::Max => "max".to_owned(),
        }
    }
}

/// What it means that a file isn't there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// An error that names the file: the request can't be honoured.
    Error,
    /// The kernel lacks the feature and the value asks for nothing that it would have to enforce.
    Skip,
}

/// One file of a control group and its new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The controller the file belongs to; `None` for `unified`, whose files lie in the v2 group.
    pub controller: Option<Controller>,
    /// The file's name.
    pub file: String,
    /// What to write.
    pub value: Value,
    /// What a missing file means.
    pub absent: Absent,
    /// EINVAL may come from the order of two files: try again after all others.
    pub again: bool,
}

impl Setting {
    fn new(controller: Controller, file: impl Into<String>, text: impl ToString) -> Self {
        Self {
            controller: Some(controller),
            file: file.into(),
            value: Value::Text(text.to_string()),
            absent: Absent::Error,
            again: false,
        }
    }

    fn optional(mut self) -> Self {
        self.absent = Absent::Skip;
        self
    }

    fn again(mut self) -> Self {
        self.again = true;
        self
    }
}

/// The most entries of `unified`, huge page sizes, RDMA devices or block devices one request has.
const MAX_ENTRIES: usize = 256;
/// The longest value in `unified`.
const MAX_VALUE: usize = 4096;

/// Turns resources into settings, in the order of writing. `devices` are `plan/devices.rs`.
pub fn plan(resources: &LinuxResources, node: &dyn Placement) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpu::plan(cpu, node, &mut settings)?;
        cpu::plan_set(cpu, node, &mut settings)?;
    }
    if let Some(memory) = resources.memory() {
        memory::plan(memory, node, &mut settings)?;
    }
    if let Some(pids) = resources.pids() {
        plan_pids(pids.limit(), node, &mut settings)?;
    }
    if let Some(limits) = resources.hugepage_limits() {
        plan_huge_pages(limits, node, &mut settings)?;
    }
    if let Some(block_io) = resources.block_io() {
        io::plan(block_io, node, &mut settings)?;
    }
    if let Some(rdma) = resources.rdma() {
        io::plan_rdma(rdma, node, &mut settings)?;
    }
    if let Some(network) = resources.network() {
        let asks = network.class_id().is_some_and(|id| id != 0)
            || network
                .priorities()
                .as_ref()
                .is_some_and(|list| !list.is_empty());
        if asks {
            return Err(unsupported(
                "linux.resources.network (net_cls, net_prio) is not supported: use network policies",
            ));
        }
    }
    if let Some(unified) = resources.unified() {
        plan_unified(unified, node, &mut settings)?;
    }
    Ok(settings)
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}

/// Where the controller is, or an error that names the field that needs it.
fn need(node: &dyn Placement, controller: Controller, field: &str) -> Result<Place> {
    match node.place(controller) {
        Place::Missing => Err(unsupported(format!(
            "{field} needs the cgroup controller {}, which this node lacks",
            controller.v2_name().unwrap_or(controller.v1_name())
        ))),
        place => Ok(place),
    }
}

fn bounded(count: usize, field: &str) -> Result<()> {
    if count > MAX_ENTRIES {
        return Err(Error::invalid(format!(
            "{field} has {count} entries, at most {MAX_ENTRIES} are taken"
        )));
    }
    Ok(())
}

fn plan_pids(limit: i64, node: &dyn Placement, settings: &mut Vec<Setting>) -> Result<()> {
    let Some(limit) = Limit::parse(Some(limit)) else {
        return Ok(());
    };
    need(node, Controller::Pids, "pids.limit")?;
    // The one file whose name and words are the same on v1 and v2.
    settings.push(Setting::new(Controller::Pids, "pids.max", limit.v2()));
    Ok(())
}

/// The kubelet always sends a zero for each page size the node has; those ask for nothing a group
/// without huge pages doesn't give, so only a limit above 0 needs the controller.
fn plan_huge_pages(
    limits: &[LinuxHugepageLimit],
    node: &dyn Placement,
    settings: &mut Vec<Setting>,
) -> Result<()> {
    bounded(limits.len(), "hugepageLimits")?;
    for limit in limits {
        let size = limit.page_size();
        let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
        let plain = !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && matches!(&size[digits.len()..], "KB" | "MB" | "GB");
        if !plain {
            return Err(Error::invalid(format!(
                "hugepageLimits: page size {size:?} is not of the form 2MB"
            )));
        }
        let value = u64::try_from(limit.limit()).map_or(Limit::Max, Limit::Bytes);
        let field = format!("a huge page limit for {size}");
        if value == Limit::Bytes(0) && node.place(Controller::Hugetlb) == Place::Missing {
            continue;
        }
        let (file, text) = match need(node, Controller::Hugetlb, &field)? {
            Place::V1 => ("limit_in_bytes", value.v1()),
            _ => ("max", value.v2()),
        };
        let main = Setting::new(Controller::Hugetlb, format!("hugetlb.{size}.{file}"), &text);
        // Reservations are counted apart since 5.7: without this an mmap succeeds beyond the
        // limit and the task dies of SIGBUS at the first touch.
        let reserved = Setting::new(
            Controller::Hugetlb,
            format!("hugetlb.{size}.rsvd.{file}"),
            &text,
        );
        settings.push(match value {
            Limit::Bytes(0) => main.optional(),
            _ => main,
        });
        settings.push(reserved.optional());
    }
    Ok(())
}

/// `unified` names files of the v2 group. A name is a plain file name of a controller (threat I2):
/// the group's own `cgroup.*` files move processes, kill and delegate, and are ours alone.
fn plan_unified(
    unified: &std::collections::HashMap<String, String>,
    node: &dyn Placement,
    settings: &mut Vec<Setting>,
) -> Result<()> {
    bounded(unified.len(), "unified")?;
    if !unified.is_empty() && !node.is_unified() {
        return Err(unsupported(
            "linux.resources.unified needs a node with cgroup v2 only",
        ));
    }
    let mut sorted: Vec<_> = unified.iter().collect();
    sorted.sort();
    for (file, value) in sorted {
        let plain = file.len() <= 255
            && file.split('.').count() > 1
            && file.split('.').all(|part| !part.is_empty())
            && file.bytes().all(|byte| {
                byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_' || byte == b'-'
            });
        if !plain || file.starts_with("cgroup.") {
            return Err(Error::invalid(format!(
                "linux.resources.unified: {file:?} is not the name of a controller's file"
            )));
        }
        if value.len() > MAX_VALUE || value.contains('\0') {
            return Err(Error::invalid(format!(
                "linux.resources.unified: the value for {file} is longer than {MAX_VALUE} bytes \
                 or holds a NUL"
            )));
        }
        settings.push(Setting {
            controller: None,
            file: file.clone(),
            value: Value::Text(value.clone()),
            absent: Absent::Error,
            again: false,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
