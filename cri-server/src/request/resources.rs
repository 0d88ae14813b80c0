//! CPU, memory and the other limits of a container, at creation and in place.
//!
//! 0 and "" mean "not set" (at creation) or "leave as it is" (in an update); −1 is unlimited.

use std::collections::BTreeMap;

use bulkhead_proto::runtime::v1;

use super::{invalid, text};
use crate::failure::Failure;

/// Limits; what is `None` or empty was not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// CFS quota in microseconds per period; −1 is unlimited.
    pub cpu_quota: Option<i64>,
    /// Relative CPU weight, 2 to 262144 (the kernel clamps).
    pub cpu_shares: Option<u64>,
    /// Memory in bytes; −1 is unlimited.
    pub memory_limit: Option<i64>,
    /// Memory and swap together in bytes; −1 is unlimited.
    pub memory_swap_limit: Option<i64>,
    /// −1000 to 1000. Set at creation only.
    pub oom_score_adj: i32,
    /// CPUs, such as `0-2,4`.
    pub cpuset_cpus: String,
    /// Memory nodes.
    pub cpuset_mems: String,
    /// Bytes of huge pages by page size, such as `2MB`; 0 is a limit too.
    pub hugepages: BTreeMap<String, u64>,
    /// cgroup v2 files and what to write to them.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// Of an absent message: nothing set.
    pub fn parse(
        field: &str,
        message: Option<&v1::LinuxContainerResources>,
    ) -> Result<Self, Failure> {
        let Some(message) = message else {
            return Ok(Self::default());
        };
        let at = |name: &str| format!("{field}.{name}");
        let swap = limit(
            &at("memory_swap_limit_in_bytes"),
            message.memory_swap_limit_in_bytes,
        )?;
        let memory = limit(&at("memory_limit_in_bytes"), message.memory_limit_in_bytes)?;
        if let (Some(memory), Some(swap)) = (memory, swap)
            && swap != -1
            && (memory == -1 || swap < memory)
        {
            return Err(invalid(
                &at("memory_swap_limit_in_bytes"),
                format_args!(
                    "{swap} is memory and swap together, less than the memory limit {memory}"
                ),
            ));
        }
        Ok(Self {
            cpu_period: positive(&at("cpu_period"), message.cpu_period)?,
            cpu_quota: limit(&at("cpu_quota"), message.cpu_quota)?,
            cpu_shares: positive(&at("cpu_shares"), message.cpu_shares)?,
            memory_limit: memory,
            memory_swap_limit: swap,
            oom_score_adj: oom_score(&at("oom_score_adj"), message.oom_score_adj)?,
            cpuset_cpus: cpu_list(&at("cpuset_cpus"), &message.cpuset_cpus)?,
            cpuset_mems: cpu_list(&at("cpuset_mems"), &message.cpuset_mems)?,
            hugepages: hugepages(&at("hugepage_limits"), &message.hugepage_limits)?,
            unified: unified(&at("unified"), &message.unified)?,
        })
    }

    /// These limits with what `update` sets put over them; the OOM score stays.
    #[must_use]
    pub fn updated(&self, update: &Self) -> Self {
        let text = |new: &String, old: &String| if new.is_empty() { old } else { new }.clone();
        let mut merged = Self {
            cpu_period: update.cpu_period.or(self.cpu_period),
            cpu_quota: update.cpu_quota.or(self.cpu_quota),
            cpu_shares: update.cpu_shares.or(self.cpu_shares),
            memory_limit: update.memory_limit.or(self.memory_limit),
            memory_swap_limit: update.memory_swap_limit.or(self.memory_swap_limit),
            oom_score_adj: self.oom_score_adj,
            cpuset_cpus: text(&update.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(&update.cpuset_mems, &self.cpuset_mems),
            hugepages: self.hugepages.clone(),
            unified: self.unified.clone(),
        };
        merged.hugepages.extend(update.hugepages.clone());
        merged.unified.extend(update.unified.clone());
        merged
    }

    /// As the wire has it, for `ContainerStatus.resources`.
    pub fn to_cri(&self) -> v1::LinuxContainerResources {
        let signed = |value: Option<u64>| value.map_or(0, |v| i64::try_from(v).unwrap_or(i64::MAX));
        v1::LinuxContainerResources {
            cpu_period: signed(self.cpu_period),
            cpu_quota: self.cpu_quota.unwrap_or(0),
            cpu_shares: signed(self.cpu_shares),
            memory_limit_in_bytes: self.memory_limit.unwrap_or(0),
            oom_score_adj: i64::from(self.oom_score_adj),
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            hugepage_limits: self
                .hugepages
                .iter()
                .map(|(page_size, limit)| v1::HugepageLimit {
                    page_size: page_size.clone(),
                    limit: *limit,
                })
                .collect(),
            unified: self.unified.clone(),
            memory_swap_limit_in_bytes: self.memory_swap_limit.unwrap_or(0),
        }
    }
}

/// 0 is unset, below it is an error.
fn positive(field: &str, value: i64) -> Result<Option<u64>, Failure> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(invalid(field, format_args!("{value} is negative"))),
    }
}

/// 0 is unset, −1 unlimited, anything else below 0 an error.
fn limit(field: &str, value: i64) -> Result<Option<i64>, Failure> {
    match value {
        0 => Ok(None),
        ..=-2 => Err(invalid(
            field,
            format_args!("{value}: only -1, unlimited, is meant below 0"),
        )),
        value => Ok(Some(value)),
    }
}

fn oom_score(field: &str, value: i64) -> Result<i32, Failure> {
    i32::try_from(value)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| invalid(field, format_args!("{value} is outside -1000 to 1000")))
}

/// The kernel's list format: numbers, ranges and commas (cpuset(7)).
fn cpu_list(field: &str, value: &str) -> Result<String, Failure> {
    let good = value.len() <= text::PATH
        && value
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b",-".contains(&byte));
    if !good {
        return Err(invalid(field, "is a list such as 0-2,4"));
    }
    Ok(value.to_owned())
}

/// By page size in the kernel's spelling (`64KB`, `2MB`, `1GB`): it becomes part of a file's name.
fn hugepages(field: &str, limits: &[v1::HugepageLimit]) -> Result<BTreeMap<String, u64>, Failure> {
    text::bounded(field, limits)?;
    let mut parsed = BTreeMap::new();
    for (index, limit) in limits.iter().enumerate() {
        let at = format!("{field}[{index}].page_size");
        let size = &limit.page_size;
        let number = ["KB", "MB", "GB"]
            .iter()
            .find_map(|unit| size.strip_suffix(unit))
            .is_some_and(|n| {
                (1..=6).contains(&n.len())
                    && !n.starts_with('0')
                    && n.bytes().all(|byte| byte.is_ascii_digit())
            });
        if !number {
            return Err(invalid(
                &at,
                format_args!(
                    "\"{}\" is no page size such as 2MB",
                    size.chars().take(16).collect::<String>()
                ),
            ));
        }
        if parsed.insert(size.clone(), limit.limit).is_some() {
            return Err(invalid(&at, format_args!("{size} is given twice")));
        }
    }
    Ok(parsed)
}

/// Plain file names of a controller. `cgroup.*` files are kept out: they move, kill and freeze
/// processes, and limit nothing.
fn unified(
    field: &str,
    values: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Failure> {
    if values.len() > text::LIST {
        return Err(invalid(field, "too many entries"));
    }
    for (name, value) in values {
        let at = format!("{field}[{name:?}]");
        let word = |word: &str| {
            !word.is_empty()
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        if name.len() > 255 || name.split('.').count() < 2 || !name.split('.').all(word) {
            return Err(invalid(&at, "is no file of a cgroup controller"));
        }
        if name.starts_with("cgroup.") {
            return Err(invalid(&at, "is no resource but control over processes"));
        }
        text::plain(&at, value, text::PATH)?;
    }
    Ok(values.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> v1::LinuxContainerResources {
        v1::LinuxContainerResources::default()
    }

    #[test]
    fn zero_is_unset_and_minus_one_unlimited() {
        let given = v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            memory_limit_in_bytes: -1,
            oom_score_adj: -997,
            ..message()
        };
        let parsed = Resources::parse("r", Some(&given)).unwrap();
        assert_eq!(parsed.cpu_period, Some(100_000));
        assert_eq!(parsed.cpu_quota, Some(-1));
        assert_eq!(parsed.cpu_shares, None);
        assert_eq!(parsed.memory_limit, Some(-1));
        assert_eq!(parsed.to_cri(), given);
        assert_eq!(Resources::parse("r", None).unwrap(), Resources::default());
    }

    #[test]
    fn values_without_a_meaning_are_refused_with_their_field() {
        type Edit = fn(&mut v1::LinuxContainerResources);
        let cases: [(&str, Edit); 14] = [
            ("r.cpu_period", |r| r.cpu_period = -1),
            ("r.cpu_shares", |r| r.cpu_shares = -2),
            ("r.cpu_quota", |r| r.cpu_quota = -2),
            ("r.memory_limit_in_bytes", |r| {
                r.memory_limit_in_bytes = i64::MIN
            }),
            ("r.oom_score_adj", |r| r.oom_score_adj = 1001),
            ("r.oom_score_adj", |r| r.oom_score_adj = i64::MAX),
            ("r.cpuset_cpus", |r| r.cpuset_cpus = "0\n1".into()),
            ("r.cpuset_mems", |r| r.cpuset_mems = "all".into()),
            ("r.memory_swap_limit_in_bytes", |r| {
                r.memory_limit_in_bytes = 2;
                r.memory_swap_limit_in_bytes = 1;
            }),
            ("r.hugepage_limits[0].page_size", |r| {
                r.hugepage_limits = vec![v1::HugepageLimit {
                    page_size: "../2MB".into(),
                    limit: 0,
                }];
            }),
            ("r.hugepage_limits[1].page_size", |r| {
                r.hugepage_limits = vec![
                    v1::HugepageLimit {
                        page_size: "2MB".into(),
                        limit: 0,
                    };
                    2
                ];
            }),
            ("r.unified[\"../memory.max\"]", |r| {
                r.unified.insert("../memory.max".into(), "1".into());
            }),
            ("r.unified[\"cgroup.kill\"]", |r| {
                r.unified.insert("cgroup.kill".into(), "1".into());
            }),
            ("r.unified[\"memory.max\"]", |r| {
                r.unified.insert("memory.max".into(), "1\n2".into());
            }),
        ];
        for (field, edit) in cases {
            let mut given = message();
            edit(&mut given);
            let failure = Resources::parse("r", Some(&given)).unwrap_err();
            assert!(
                failure.message().starts_with(&format!("{field}: ")),
                "{failure}"
            );
        }
    }

    #[test]
    fn an_update_sets_what_it_names_and_leaves_the_rest() {
        let old = Resources {
            cpu_shares: Some(2),
            memory_limit: Some(1 << 20),
            oom_score_adj: 5,
            cpuset_cpus: "0".into(),
            unified: BTreeMap::from([("memory.high".into(), "1".into())]),
            ..Resources::default()
        };
        let update = Resources {
            memory_limit: Some(2 << 20),
            oom_score_adj: 900,
            cpuset_cpus: "1".into(),
            unified: BTreeMap::from([("memory.low".into(), "2".into())]),
            ..Resources::default()
        };
        let merged = old.updated(&update);
        assert_eq!(merged.cpu_shares, Some(2));
        assert_eq!(merged.memory_limit, Some(2 << 20));
        assert_eq!(merged.oom_score_adj, 5);
        assert_eq!(merged.cpuset_cpus, "1");
        assert_eq!(merged.unified.len(), 2);
        assert_eq!(old.updated(&Resources::default()), old);
    }
}
