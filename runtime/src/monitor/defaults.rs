//! What a process of the pod gets where its spec says nothing, pure: otherwise it would inherit
//! what the monitor itself needs.

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process};

use crate::error::{Error, Result};

/// Open files a process of a pod may have, unless its spec says otherwise: systemd's pair for
/// services. The monitor's own limit must not show (case S4).
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// What a process would otherwise inherit from the monitor: its open files and its protection from
/// the OOM killer. An exec gets what its container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Defaults {
    oom_score_adj: i32,
    /// Soft and hard limit.
    open_files: (u64, u64),
}

impl Defaults {
    /// Of a container.
    pub(super) const CONTAINER: Self = Self {
        oom_score_adj: 0,
        open_files: OPEN_FILES,
    };

    /// Fills in what the process doesn't say, and returns what it has then.
    pub(super) fn settle(self, process: &mut Process) -> Result<Self> {
        let oom_score_adj = process.oom_score_adj().unwrap_or(self.oom_score_adj);
        process.set_oom_score_adj(Some(oom_score_adj));
        let files = |limits: &Vec<PosixRlimit>| {
            let mut limits = limits.iter();
            limits
                .find(|limit| limit.typ() == PosixRlimitType::RlimitNofile)
                .copied()
        };
        if let Some(limit) = process.rlimits().as_ref().and_then(files) {
            return Ok(Self {
                oom_score_adj,
                open_files: (limit.soft(), limit.hard()),
            });
        }
        let (soft, hard) = self.open_files;
        let limit = PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .soft(soft)
            .hard(hard)
            .build()
            .map_err(|error| Error::invalid(format!("limit of open files: {error}")))?;
        let mut limits = process.rlimits().clone().unwrap_or_default();
        limits.push(limit);
        process.set_rlimits(Some(limits));
        Ok(Self {
            oom_score_adj,
            open_files: self.open_files,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn process(change: &[(&str, Value)]) -> Process {
        let mut process = json!({ "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/" });
        for (key, value) in change {
            process[key] = value.clone();
        }
        serde_json::from_value(process).unwrap()
    }

    #[test]
    fn what_a_spec_says_holds_and_an_exec_gets_what_its_container_has() {
        let files =
            |soft: u64, hard: u64| json!([{ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard }]);
        let core = json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
        type Row<'a> = (
            &'a str,
            Vec<(&'a str, Value)>,
            Vec<(&'a str, Value)>,
            i32,
            (u64, u64),
        );
        let table: Vec<Row<'_>> = vec![
            ("nothing said", vec![], vec![], 0, (1024, 524_288)),
            (
                "the container says both",
                vec![("oomScoreAdj", json!(900)), ("rlimits", files(5, 6))],
                vec![],
                900,
                (5, 6),
            ),
            (
                "the exec says both",
                vec![("oomScoreAdj", json!(900)), ("rlimits", files(5, 6))],
                vec![("oomScoreAdj", json!(-7)), ("rlimits", files(8, 9))],
                -7,
                (8, 9),
            ),
            (
                "another limit",
                vec![("rlimits", core.clone())],
                vec![],
                0,
                (1024, 524_288),
            ),
            (
                "another limit of the exec",
                vec![],
                vec![("rlimits", core)],
                0,
                (1024, 524_288),
            ),
        ];
        for (name, container, exec, score, open_files) in table {
            let container = Defaults::CONTAINER
                .settle(&mut process(&container))
                .unwrap();
            let mut exec = process(&exec);
            container.settle(&mut exec).unwrap();
            assert_eq!(exec.oom_score_adj(), Some(score), "{name}");
            let limits = exec.rlimits().clone().unwrap();
            let found: Vec<_> = limits
                .iter()
                .filter(|limit| limit.typ() == PosixRlimitType::RlimitNofile)
                .map(|limit| (limit.soft(), limit.hard()))
                .collect();
            assert_eq!(found, [open_files], "{name}");
        }
    }
}
