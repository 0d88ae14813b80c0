//! Profiles from the node's files: the JSON of the OCI runtime specification, and Docker's form of
//! it with `archMap` and entries that depend on capabilities, architecture and kernel.
//!
//! Unknown fields are passed over. Names no library knows are left out and noted, as the peers do:
//! a profile lists calls of architectures and kernels that aren't this one.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use caps::Capability;
use std::path::PathBuf;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;

use super::super::capabilities::CapabilitySet;
use super::compile;
use crate::failure::Failure;

/// The largest file read. The biggest known profile has 60 kB.
pub const MAX_FILE: usize = 1 << 20;
/// The most entries, and the most names in all of them.
const MAX_RULES: usize = 4096;
const MAX_NAMES: usize = 65_536;
/// The most that is passed on to an agent, in bytes: one message has room for it.
const MAX_METADATA: usize = 16 << 10;

/// A file's profile, and what of it had no meaning here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The profile for this container and node.
    pub profile: LinuxSeccomp,
    /// Names of calls nothing here knows.
    pub unknown: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<Arch>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// The form before `names`.
    #[serde(default)]
    name: String,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// Reads a profile for a container with these capabilities on a node with this kernel (major,
/// minor). `path` is for messages.
pub fn parse_json(
    path: &str,
    text: &[u8],
    capabilities: CapabilitySet,
    kernel: (u32, u32),
) -> Result<Parsed, Failure> {
    let fault = |why: String| Failure::invalid(format!("seccomp profile {path}: {why}"));
    if text.len() > MAX_FILE {
        return Err(fault(format!("larger than {MAX_FILE} bytes")));
    }
    let file: File = serde_json::from_slice(text).map_err(|error| fault(error.to_string()))?;
    let facts = Facts {
        capabilities,
        kernel,
    };
    build(file, &facts).map_err(|failure| failure.context(format!("seccomp profile {path}")))
}

/// Of seccomp(2). Thread synchronisation is moot: the filter is loaded by a process of one thread.
fn flags(names: &[String]) -> Result<Option<Vec<LinuxSeccompFilterFlag>>, Failure> {
    let mut flags = Vec::new();
    for name in names {
        let flag = match name.as_str() {
            "SECCOMP_FILTER_FLAG_TSYNC" => continue,
            "SECCOMP_FILTER_FLAG_LOG" => LinuxSeccompFilterFlag::SeccompFilterFlagLog,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv
            }
            other => {
                let shown: String = other.chars().take(64).collect();
                return Err(Failure::invalid(format!(
                    "flag \"{shown}\" is none of seccomp(2)'s"
                )));
            }
        };
        if !flags.contains(&flag) {
            flags.push(flag);
        }
    }
    Ok((!flags.is_empty()).then_some(flags))
}

struct Facts {
    capabilities: CapabilitySet,
    kernel: (u32, u32),
}

fn build(file: File, facts: &Facts) -> Result<Parsed, Failure> {
    let flags = flags(file.flags.as_deref().unwrap_or_default())?;
    if file
        .listener_metadata
        .as_ref()
        .is_some_and(|text| text.len() > MAX_METADATA)
    {
        return Err(Failure::invalid(format!(
            "listenerMetadata is longer than {MAX_METADATA} bytes"
        )));
    }
    let rules = file.syscalls.unwrap_or_default();
    let names: usize = rules.iter().map(|rule| rule.names.len()).sum();
    if rules.len() > MAX_RULES || names > MAX_NAMES {
        return Err(Failure::invalid("too many system calls"));
    }
    let mut syscalls = Vec::with_capacity(rules.len());
    let mut unknown = Vec::new();
    for (index, rule) in rules.into_iter().enumerate() {
        let at = |failure: Failure| failure.context(format!("syscalls[{index}]"));
        let included = facts.includes(rule.includes.as_ref()).map_err(at)?;
        let excluded = facts.excludes(rule.excludes.as_ref()).map_err(at)?;
        if included && !excluded {
            syscalls.push(settled(rule, &mut unknown).map_err(at)?);
        }
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(file.default_action)
        .set_default_errno_ret(file.default_errno_ret)
        .set_architectures(architectures(file.architectures, file.arch_map)?)
        .set_flags(flags)
        .set_listener_path(file.listener_path)
        .set_listener_metadata(file.listener_metadata)
        .set_syscalls(Some(syscalls));
    compile::check(&profile)?;
    if !compile::notifies(&profile) {
        // Nothing would ever come of it.
        profile.set_listener_path(None).set_listener_metadata(None);
    }
    Ok(Parsed { profile, unknown })
}

/// The rule with the names that exist.
fn settled(rule: Rule, unknown: &mut Vec<String>) -> Result<LinuxSyscall, Failure> {
    let mut names = rule.names;
    if names.is_empty() == rule.name.is_empty() {
        return Err(Failure::invalid(
            "needs names (or the older name, not both)",
        ));
    }
    if !rule.name.is_empty() {
        names.push(rule.name);
    }
    names.retain(|name| {
        let known = compile::is_known(name);
        if !known {
            unknown.push(name.chars().take(64).collect());
        }
        known
    });
    let mut syscall = LinuxSyscall::default();
    syscall
        .set_names(names)
        .set_action(rule.action)
        .set_errno_ret(rule.errno_ret)
        .set_args(rule.args.filter(|args| !args.is_empty()));
    Ok(syscall)
}

/// Docker's map names the machine's architecture and those that go with it; the plain list names all.
fn architectures(
    list: Option<Vec<Arch>>,
    map: Option<Vec<ArchMap>>,
) -> Result<Option<Vec<Arch>>, Failure> {
    match (list, map) {
        (Some(list), Some(map)) if !list.is_empty() && !map.is_empty() => Err(Failure::invalid(
            "has both architectures and archMap: one of them can be meant",
        )),
        (list, Some(map)) if !map.is_empty() => {
            let native = compile::native();
            let own = map
                .into_iter()
                .find(|entry| Some(entry.architecture) == native)
                .map(|entry| {
                    let mut all = vec![entry.architecture];
                    all.extend(entry.sub_architectures.unwrap_or_default());
                    all
                });
            Ok(own.or(list))
        }
        (list, _) => Ok(list),
    }
}

impl Facts {
    /// All that is named must hold.
    fn includes(&self, filter: Option<&Filter>) -> Result<bool, Failure> {
        let Some(filter) = filter else {
            return Ok(true);
        };
        for name in filter.caps.iter().flatten() {
            if !self.has(name)? {
                return Ok(false);
            }
        }
        let arches = filter.arches.as_deref().unwrap_or_default();
        Ok(
            (arches.is_empty() || arches.iter().any(|arch| is_native(arch)))
                && self.is_at_least(filter.min_kernel.as_deref())?,
        )
    }

    /// Any that is named excludes.
    fn excludes(&self, filter: Option<&Filter>) -> Result<bool, Failure> {
        let Some(filter) = filter else {
            return Ok(false);
        };
        for name in filter.caps.iter().flatten() {
            if self.has(name)? {
                return Ok(true);
            }
        }
        let kernel = match filter.min_kernel.as_deref() {
            None | Some("") => false,
            some => self.is_at_least(some)?,
        };
        Ok(kernel || filter.arches.iter().flatten().any(|arch| is_native(arch)))
    }

    fn has(&self, name: &str) -> Result<bool, Failure> {
        let capability: Capability = name
            .parse()
            .map_err(|_| Failure::invalid(format!("\"{name}\" is no capability")))?;
        Ok(self.capabilities.contains(capability))
    }

    fn is_at_least(&self, version: Option<&str>) -> Result<bool, Failure> {
        let Some(version) = version.filter(|version| !version.is_empty()) else {
            return Ok(true);
        };
        let parsed = version
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let wanted: (u32, u32) = parsed.ok_or_else(|| {
            Failure::invalid(format!("minKernel \"{version}\" is no version such as 4.8"))
        })?;
        Ok(self.kernel >= wanted)
    }
}

/// Architectures by Go's names, and by the names of those that go with them, as Docker's file has them.
fn is_native(arch: &str) -> bool {
    match std::env::consts::ARCH {
        "x86_64" => ["amd64", "x32", "x86"].contains(&arch),
        "aarch64" => ["arm64", "arm"].contains(&arch),
        other => other == arch,
    }
}
