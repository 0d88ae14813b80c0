//! List filters as predicates over small views, so that lists, streams and stats agree on them.
//!
//! All parts must match; an absent part matches everything; no match is an empty list, never an
//! error. Ids match by prefix, as wherever the CRI takes an id; whether a prefix is ambiguous does
//! not matter to a list.

use std::collections::BTreeMap;

use bulkhead_proto::runtime::v1;

use super::{enumeration, text};
use crate::failure::Failure;

/// What a filter looks at of a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct SandboxView<'a> {
    /// The full id.
    pub id: &'a str,
    /// Ready, as lists and statuses say.
    pub ready: bool,
    /// Labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// What a filter looks at of a container.
#[derive(Clone, Copy, Debug)]
pub struct ContainerView<'a> {
    /// The full id.
    pub id: &'a str,
    /// The sandbox's full id.
    pub sandbox: &'a str,
    /// The state, as lists and statuses say.
    pub state: v1::ContainerState,
    /// Labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// Of ListPodSandbox, StreamPodSandboxes and the pods' stats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    id: String,
    ready: Option<bool>,
    labels: BTreeMap<String, String>,
}

impl SandboxFilter {
    /// Of `PodSandboxFilter`; an absent one matches everything.
    pub fn parse(filter: Option<&v1::PodSandboxFilter>) -> Result<Self, Failure> {
        let Some(filter) = filter else {
            return Ok(Self::default());
        };
        let ready = match &filter.state {
            None => None,
            Some(wrapper) => Some(match enumeration("filter.state.state", wrapper.state)? {
                v1::PodSandboxState::SandboxReady => true,
                v1::PodSandboxState::SandboxNotready => false,
            }),
        };
        Ok(Self {
            id: text::plain("filter.id", &filter.id, text::NAME)?,
            ready,
            labels: text::map("filter.label_selector", &filter.label_selector)?,
        })
    }

    /// Of `PodSandboxStatsFilter`.
    pub fn parse_stats(filter: Option<&v1::PodSandboxStatsFilter>) -> Result<Self, Failure> {
        let Some(filter) = filter else {
            return Ok(Self::default());
        };
        Ok(Self {
            id: text::plain("filter.id", &filter.id, text::NAME)?,
            ready: None,
            labels: text::map("filter.label_selector", &filter.label_selector)?,
        })
    }

    /// Whether all parts match.
    pub fn matches(&self, view: SandboxView<'_>) -> bool {
        view.id.starts_with(&self.id)
            && self.ready.is_none_or(|ready| ready == view.ready)
            && selects(&self.labels, view.labels)
    }
}

/// Of ListContainers, StreamContainers and the containers' stats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerFilter {
    id: String,
    sandbox: String,
    state: Option<v1::ContainerState>,
    labels: BTreeMap<String, String>,
}

impl ContainerFilter {
    /// Of `ContainerFilter`; an absent one matches everything.
    pub fn parse(filter: Option<&v1::ContainerFilter>) -> Result<Self, Failure> {
        let Some(filter) = filter else {
            return Ok(Self::default());
        };
        let state = match &filter.state {
            None => None,
            Some(wrapper) => Some(enumeration("filter.state.state", wrapper.state)?),
        };
        Ok(Self {
            id: text::plain("filter.id", &filter.id, text::NAME)?,
            sandbox: text::plain("filter.pod_sandbox_id", &filter.pod_sandbox_id, text::NAME)?,
            state,
            labels: text::map("filter.label_selector", &filter.label_selector)?,
        })
    }

    /// Of `ContainerStatsFilter`.
    pub fn parse_stats(filter: Option<&v1::ContainerStatsFilter>) -> Result<Self, Failure> {
        let Some(filter) = filter else {
            return Ok(Self::default());
        };
        Ok(Self {
            id: text::plain("filter.id", &filter.id, text::NAME)?,
            sandbox: text::plain("filter.pod_sandbox_id", &filter.pod_sandbox_id, text::NAME)?,
            state: None,
            labels: text::map("filter.label_selector", &filter.label_selector)?,
        })
    }

    /// Whether all parts match.
    pub fn matches(&self, view: ContainerView<'_>) -> bool {
        view.id.starts_with(&self.id)
            && view.sandbox.starts_with(&self.sandbox)
            && self.state.is_none_or(|state| state == view.state)
            && selects(&self.labels, view.labels)
    }
}

/// All pairs of the selector are among the labels.
fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(name, value)| labels.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn parts_of_a_container_filter_are_anded_and_absent_ones_match() {
        let have = labels(&[("a", "1"), ("b", "")]);
        let view = ContainerView {
            id: "abcdef",
            sandbox: "123456",
            state: v1::ContainerState::ContainerRunning,
            labels: &have,
        };
        for (id, sandbox, state, selector, expected) in [
            ("", "", None, vec![], true),
            ("abc", "", None, vec![], true),
            ("abcdef", "1234", Some(1), vec![("a", "1"), ("b", "")], true),
            ("bcd", "", None, vec![], false),
            ("abc", "9", None, vec![], false),
            ("", "", Some(0), vec![], false),
            ("", "", None, vec![("a", "2")], false),
            ("", "", None, vec![("c", "")], false),
        ] {
            let filter = v1::ContainerFilter {
                id: id.into(),
                state: state.map(|state| v1::ContainerStateValue { state }),
                pod_sandbox_id: sandbox.into(),
                label_selector: labels(&selector),
            };
            let parsed = ContainerFilter::parse(Some(&filter)).unwrap();
            assert_eq!(parsed.matches(view), expected, "{filter:?}");
        }
        assert!(ContainerFilter::parse(None).unwrap().matches(view));
        let unknown = v1::ContainerFilter {
            state: Some(v1::ContainerStateValue { state: 4 }),
            ..Default::default()
        };
        assert!(ContainerFilter::parse(Some(&unknown)).is_err());
    }

    #[test]
    fn parts_of_a_sandbox_filter_are_anded_and_absent_ones_match() {
        let have = labels(&[("a", "1")]);
        let view = SandboxView {
            id: "abcdef",
            ready: true,
            labels: &have,
        };
        for (id, state, selector, expected) in [
            ("", None, vec![], true),
            ("abcdef", Some(0), vec![("a", "1")], true),
            ("", Some(1), vec![], false),
            ("abd", None, vec![], false),
            ("", None, vec![("a", "")], false),
        ] {
            let filter = v1::PodSandboxFilter {
                id: id.into(),
                state: state.map(|state| v1::PodSandboxStateValue { state }),
                label_selector: labels(&selector),
            };
            let parsed = SandboxFilter::parse(Some(&filter)).unwrap();
            assert_eq!(parsed.matches(view), expected, "{filter:?}");
        }
    }
}
