//! critest's JSON report (ginkgo v2, `types.Report`) and the table made from it.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Deserialize;

/// How a spec ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed, with the first line of why.
    Failed(String),
    /// It did not run, with the reason.
    Skipped(String),
}

/// A spec and its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Group and text, without critest's "[k8s.io]".
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// All specs, in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The specs.
    pub specs: Vec<Spec>,
    /// The seed of the random order.
    pub seed: i64,
    /// How many of the outcomes are another machine's.
    pub elsewhere: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    suite_config: SuiteConfig,
    #[serde(default)]
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SuiteConfig {
    random_seed: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Option<Failure>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

impl Report {
    /// Reads the report of one suite.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_slice(bytes).context("parse critest's report")?;
        let suite = suites
            .into_iter()
            .next()
            .context("critest's report holds no suite")?;
        let reports = suite.spec_reports.unwrap_or_default();
        let mut specs: Vec<Spec> = reports
            .into_iter()
            .filter(|report| report.leaf_node_type == "It")
            .map(spec)
            .collect();
        specs.sort_by(|one, two| one.name.cmp(&two.name));
        Ok(Self {
            specs,
            seed: suite.suite_config.random_seed,
            elsewhere: 0,
        })
    }

    /// Passed, failed, skipped.
    pub fn counts(&self) -> (usize, usize, usize) {
        self.specs
            .iter()
            .fold((0, 0, 0), |(passed, failed, skipped), spec| {
                match spec.outcome {
                    Outcome::Passed => (passed + 1, failed, skipped),
                    Outcome::Failed(_) => (passed, failed + 1, skipped),
                    Outcome::Skipped(_) => (passed, failed, skipped + 1),
                }
            })
    }

    /// Takes from another machine's report what was skipped here and ran there; how many.
    pub fn merge(&mut self, other: &Self) -> usize {
        let mut taken = 0;
        for spec in &mut self.specs {
            let there = other.specs.iter().find(|there| there.name == spec.name);
            if let (Outcome::Skipped(_), Some(there)) = (&spec.outcome, there)
                && !matches!(there.outcome, Outcome::Skipped(_))
            {
                spec.outcome = there.outcome.clone();
                taken += 1;
            }
        }
        self.elsewhere += taken;
        taken
    }

    /// `docs/conformance.md`.
    pub fn table(&self) -> String {
        let (passed, failed, skipped) = self.counts();
        let mut text = format!(
            "# Conformance\n\n\
             Written by `make conformance` from critest's report; do not edit.\n\n\
             critest of `sigs.k8s.io/cri-tools` v1.37.0, built from its Go module. Its images come \
             from a registry on\nloopback that serves equivalents built from Debian packages; one \
             constant of the suite, the digest of\n`test-image-digest`, is replaced by the digest of \
             ours. Nothing else is changed.\n\n\
             {passed} passed, {failed} failed, {skipped} skipped, of {} specs.\n",
            self.specs.len()
        );
        if self.elsewhere > 0 {
            // Writing to a String cannot fail.
            writeln!(
                text,
                "{} of them ran in the virtual machine of `make test-vm`, which has AppArmor.",
                self.elsewhere
            )
            .ok();
        }
        text.push_str("\n| name | outcome |\n|---|---|\n");
        for spec in &self.specs {
            let outcome = match &spec.outcome {
                Outcome::Passed => "passed".to_owned(),
                Outcome::Failed(why) => format!("failed: {}", cell(why)),
                Outcome::Skipped(why) => format!("skipped: {}", cell(why)),
            };
            writeln!(text, "| {} | {outcome} |", cell(&spec.name)).ok();
        }
        text
    }
}

fn spec(report: SpecReport) -> Spec {
    let mut words = report.container_hierarchy_texts.unwrap_or_default();
    words.push(report.leaf_node_text);
    let why = report.failure.unwrap_or_default().message;
    let outcome = match report.state.as_str() {
        "passed" => Outcome::Passed,
        "skipped" | "pending" if why.is_empty() => Outcome::Skipped("not selected".to_owned()),
        "skipped" | "pending" => Outcome::Skipped(first_line(&why)),
        state => Outcome::Failed(format!("{state}: {}", first_line(&why))),
    };
    Spec {
        name: words.join(" ").replace("[k8s.io] ", ""),
        outcome,
    }
}

/// The first line, and the runtime's own words where the suite quotes them.
fn first_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    match lines.find_map(|line| line.strip_prefix("rpc error: ")) {
        Some(words) => format!("{first}: {words}"),
        None => first.to_owned(),
    }
}

fn cell(text: &str) -> String {
    let short: String = text.chars().take(160).collect();
    short.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_here_and_ran_elsewhere_is_taken_from_there() {
        let spec = |name: &str, outcome| Spec {
            name: name.to_owned(),
            outcome,
        };
        let report = |specs| Report {
            specs,
            seed: 1,
            elsewhere: 0,
        };
        let skipped = || Outcome::Skipped("no".to_owned());
        let failed = || Outcome::Failed("why".to_owned());
        let mut here = report(vec![
            spec("a", skipped()),
            spec("b", skipped()),
            spec("c", failed()),
            spec("d", skipped()),
        ]);
        let there = report(vec![
            spec("a", Outcome::Passed),
            spec("b", failed()),
            spec("c", Outcome::Passed),
            spec("d", skipped()),
        ]);
        assert_eq!(here.merge(&there), 2);
        let outcomes: Vec<_> = here.specs.iter().map(|spec| spec.outcome.clone()).collect();
        assert_eq!(outcomes, [Outcome::Passed, failed(), failed(), skipped()]);
        assert!(
            here.table()
                .contains("2 of them ran in the virtual machine")
        );
    }

    #[test]
    fn each_state_of_a_spec_becomes_a_row() {
        let report = br#"[{"SuiteConfig":{"RandomSeed":7},"SpecReports":[
            {"LeafNodeType":"BeforeSuite","LeafNodeText":"","State":"passed"},
            {"ContainerHierarchyTexts":["[k8s.io] B","c"],"LeafNodeType":"It","LeafNodeText":"d",
             "State":"passed"},
            {"ContainerHierarchyTexts":["[k8s.io] A"],"LeafNodeType":"It","LeafNodeText":"e",
             "State":"failed","Failure":{"Message":"\n no | luck\nmore"}},
            {"ContainerHierarchyTexts":null,"LeafNodeType":"It","LeafNodeText":"f",
             "State":"skipped","Failure":{"Message":"no SELinux"}},
            {"LeafNodeType":"It","LeafNodeText":"g","State":"panicked"}]}]"#;
        let report = Report::parse(report).unwrap();
        assert_eq!(report.counts(), (1, 2, 1));
        let table = report.table();
        for row in [
            "| B c d | passed |",
            r"| A e | failed: failed: no \| luck |",
            "| f | skipped: no SELinux |",
            "| g | failed: panicked:  |",
        ] {
            assert!(table.contains(row), "no {row:?} in\n{table}");
        }
    }
}
