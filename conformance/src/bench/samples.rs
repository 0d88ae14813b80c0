//! Samples, their medians, and the two forms they are kept in: JSON and a table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// All samples, by operation and subject.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    runs: BTreeMap<(String, String), (&'static str, Vec<f64>)>,
}

impl Samples {
    /// Adds one value in `unit`.
    pub fn add(&mut self, subject: &str, op: &str, unit: &'static str, value: f64) {
        let key = (op.to_owned(), subject.to_owned());
        self.runs
            .entry(key)
            .or_insert_with(|| (unit, Vec::new()))
            .1
            .push(value);
    }

    /// The median of one run.
    pub fn median(&self, subject: &str, op: &str) -> Option<f64> {
        let (_, values) = self.runs.get(&(op.to_owned(), subject.to_owned()))?;
        Some(quantile(values, 0.5))
    }

    /// The JSON with every sample.
    pub fn json(&self) -> Value {
        let runs: Vec<Value> = self
            .runs
            .iter()
            .map(|((op, subject), (unit, values))| {
                json!({
                    "subject": subject, "op": op, "unit": unit, "samples": values,
                    "median": quantile(values, 0.5),
                    "p25": quantile(values, 0.25), "p75": quantile(values, 0.75),
                })
            })
            .collect();
        json!({"machine": machine(), "runs": runs})
    }

    /// Writes the JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, format!("{:#}\n", self.json()))
            .with_context(|| format!("write {}", path.display()))
    }

    /// `docs/performance.md`: a row per operation, a column per subject, medians (quartiles).
    pub fn table(&self) -> String {
        let mut subjects: Vec<&str> = self
            .runs
            .keys()
            .map(|(_, subject)| subject.as_str())
            .collect();
        subjects.sort_by_key(|subject| (*subject != "bulkhead", *subject != "floor", *subject));
        subjects.dedup();
        let mut operations: Vec<&str> = self.runs.keys().map(|(op, _)| op.as_str()).collect();
        operations.dedup();
        let mut text = format!(
            "# Performance\n\nWritten by `make bench`; do not edit. Medians, with the quartiles, of \
             runs that alternated in one session on\n{}.\n\nThe floor is the bare system calls of \
             one container (`conformance/src/bin/floor.rs`), exec to exit.\n\n| operation | unit |",
            machine()["description"]
                .as_str()
                .unwrap_or("an unknown machine")
        );
        for subject in &subjects {
            write!(text, " {subject} |").ok();
        }
        text.push_str("\n|---|---|");
        text.push_str(&"---|".repeat(subjects.len()));
        text.push('\n');
        for op in operations {
            let unit = self
                .runs
                .iter()
                .find(|((name, _), _)| name == op)
                .map_or("", |run| run.1.0);
            write!(text, "| {op} | {unit} |").ok();
            for subject in &subjects {
                match self.runs.get(&(op.to_owned(), (*subject).to_owned())) {
                    Some((_, values)) => write!(
                        text,
                        " {:.2} ({:.2}–{:.2}) |",
                        quantile(values, 0.5),
                        quantile(values, 0.25),
                        quantile(values, 0.75)
                    )
                    .ok(),
                    None => text.write_str(" – |").ok(),
                };
            }
            text.push('\n');
        }
        text
    }
}

/// Linear interpolation between the two nearest samples.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank within the samples: not negative, and as small as their number"
)]
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let steps = u32::try_from(last).map_or(f64::MAX, f64::from);
    let rank = part * steps;
    let below = (rank.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (rank - rank.floor())
}

fn machine() -> Value {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| {
            line.strip_prefix("model name")?
                .split_once(": ")
                .map(|pair| pair.1.to_owned())
        })
        .unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cgroup = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => "v2",
        false => "v1 (hybrid)",
    };
    let description = format!("{cpus} CPUs ({model}), Linux {kernel}, cgroup {cgroup}");
    json!({"cpus": cpus, "model": model, "kernel": kernel, "cgroup": cgroup,
           "description": description})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        for (values, part, want) in [
            (&[][..], 0.5, 0.0),
            (&[3.0], 0.25, 3.0),
            (&[2.0, 1.0], 0.5, 1.5),
            (&[4.0, 1.0, 2.0, 3.0, 5.0], 0.25, 2.0),
        ] {
            assert!(
                (quantile(values, part) - want).abs() < 1e-9,
                "{values:?} at {part}"
            );
        }
    }

    #[test]
    fn the_table_has_a_column_for_each_subject_and_a_gap_where_none_was_measured() {
        let mut samples = Samples::default();
        samples.add("containerd", "exec_sync", "ms", 50.0);
        samples.add("bulkhead", "exec_sync", "ms", 2.0);
        samples.add("floor", "run_create_start_podnet", "ms", 3.0);
        let table = samples.table();
        assert!(
            table.contains("| operation | unit | bulkhead | floor | containerd |"),
            "{table}"
        );
        assert!(
            table.contains("| exec_sync | ms | 2.00 (2.00–2.00) | – | 50.00"),
            "{table}"
        );
    }
}
