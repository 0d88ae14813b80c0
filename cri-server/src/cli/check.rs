//! `bulkhead check`: each kernel feature, security module and cgroup controller of this node, what
//! it is used for, and what it would take to have it. Fails when something is missing that
//! Bulkhead can't do without.

use std::path::Path;
use std::process::ExitCode;

use bulkhead_runtime::cgroup::{Hierarchies, Mode};
use bulkhead_runtime::features::Features;
use bulkhead_runtime::plan::cgroup::{Controller, Place, Placement};
use comfy_table::{ContentArrangement, Table, presets};

use super::terminal::{safe, say};
use crate::config::Config;
use crate::security::apparmor;

/// What a controller does for containers, whether Bulkhead needs it, and how a kernel has it.
const CONTROLLERS: [(Controller, &str, bool, &str); 8] = [
    (
        Controller::Cpu,
        "CPU limits",
        true,
        "CONFIG_CGROUP_SCHED, CONFIG_CFS_BANDWIDTH",
    ),
    (
        Controller::Memory,
        "memory limits, OOM evidence",
        true,
        "CONFIG_MEMCG",
    ),
    (
        Controller::Pids,
        "process counts",
        true,
        "CONFIG_CGROUP_PIDS",
    ),
    (
        Controller::Cpuset,
        "pinning to CPUs; without it such a request is refused",
        false,
        "CONFIG_CPUSETS",
    ),
    (Controller::Io, "I/O figures", false, "CONFIG_BLK_CGROUP"),
    (
        Controller::Hugetlb,
        "limits on huge pages; without it a limit above 0 is refused",
        false,
        "CONFIG_CGROUP_HUGETLB",
    ),
    (
        Controller::Devices,
        "device access on v1",
        false,
        "CONFIG_CGROUP_DEVICE",
    ),
    (
        Controller::Freezer,
        "killing whole containers on v1",
        false,
        "CONFIG_CGROUP_FREEZER",
    ),
];

/// One line of the report.
#[derive(Debug, PartialEq)]
struct Row {
    name: String,
    state: State,
    used_for: String,
    /// How it is used here or, where it is missing, how to get it.
    note: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Used,
    /// A fallback serves, or requests for it are refused.
    Absent,
    /// Nothing works without.
    Needed,
}

pub(super) fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let mut rows = vec![executable(config)];
    match Features::probe() {
        Ok(features) => {
            let (major, minor) = features.kernel;
            rows.push(row(
                "kernel",
                State::Used,
                "everything",
                &format!("Linux {major}.{minor}"),
            ));
            rows.extend(features.reports().into_iter().map(|report| Row {
                state: if report.present {
                    State::Used
                } else {
                    State::Absent
                },
                note: if report.present {
                    String::new()
                } else {
                    report.how_to_get
                },
                name: report.name,
                used_for: report.used_for,
            }));
            rows.extend(features.apparmor.then(apparmor_profile));
        }
        Err(error) => rows.push(row(
            "kernel",
            State::Needed,
            "everything",
            &error.to_string(),
        )),
    }
    match Hierarchies::probe() {
        Ok(cgroups) => {
            let mode = match cgroups.mode() {
                Mode::Unified => "v2",
                Mode::Hybrid => "v1 with a v2 tree beside it",
                Mode::Legacy => "v1",
            };
            rows.push(row(
                "cgroups",
                State::Used,
                "limits, figures, killing",
                mode,
            ));
            rows.extend(controllers(
                &cgroups,
                cgroups.mode(),
                cgroups.has_device_programs(),
            ));
        }
        Err(error) => {
            rows.push(row(
                "cgroups",
                State::Needed,
                "limits, figures, killing",
                &error.to_string(),
            ));
        }
    }
    say(&table(&rows))?;
    let needed = rows.iter().filter(|row| row.state == State::Needed).count();
    if needed > 0 {
        eprintln!("bulkhead: {needed} missing that Bulkhead can't do without");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn row(name: &str, state: State, used_for: &str, note: &str) -> Row {
    Row {
        name: name.to_owned(),
        state,
        used_for: used_for.to_owned(),
        note: note.to_owned(),
    }
}

/// The monitor's executable, without which no pod starts.
fn executable(config: &Config) -> Row {
    let beside = || {
        Some(
            std::env::current_exe()
                .ok()?
                .with_file_name("bulkhead-monitor"),
        )
    };
    let path = config.monitor.path.clone().or_else(beside);
    let found = path.as_deref().filter(|path| Path::is_file(path));
    let note = match (&path, found) {
        (_, Some(found)) => found.display().to_string(),
        (Some(path), None) => format!("not at {}: install it or set monitor.path", path.display()),
        (None, None) => "set monitor.path".to_owned(),
    };
    let state = if found.is_some() {
        State::Used
    } else {
        State::Needed
    };
    row("bulkhead-monitor", state, "every pod", &note)
}

/// What the default AppArmor profile takes on a kernel that has AppArmor.
fn apparmor_profile() -> Row {
    let (state, note) = match apparmor::load::parser() {
        Some(parser) => (State::Used, parser.display().to_string()),
        None => (State::Absent, apparmor::load::no_parser()),
    };
    row(
        "AppArmor profile",
        state,
        "loading the default profile; without it only loaded profiles asked for by name apply",
        &note,
    )
}

fn controllers(places: &dyn Placement, mode: Mode, device_programs: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for (controller, used_for, needed, how) in CONTROLLERS {
        // The v2 tree, where there is one, does these two by itself.
        let superseded = match controller {
            Controller::Devices => device_programs,
            Controller::Freezer => mode != Mode::Legacy,
            _ => false,
        };
        if superseded {
            continue;
        }
        let name = format!(
            "cgroup controller {}",
            controller.v2_name().unwrap_or(controller.v1_name())
        );
        let (state, note) = match places.place(controller) {
            Place::V2 => (State::Used, "v2".to_owned()),
            Place::V1 => (State::Used, "v1".to_owned()),
            Place::Missing if needed => (State::Needed, how.to_owned()),
            Place::Missing => (State::Absent, how.to_owned()),
        };
        rows.push(row(&name, state, used_for, &note));
    }
    let (state, note) = match device_programs {
        true => (State::Used, String::new()),
        false => (
            State::Absent,
            "a mounted cgroup2 tree, CONFIG_CGROUP_BPF".to_owned(),
        ),
    };
    rows.push(row(
        "device programs (eBPF)",
        state,
        "device access on v2",
        &note,
    ));
    rows
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["FEATURE", "STATE", "USED FOR", "HOW, OR HOW TO GET IT"]);
    for row in rows {
        let state = match row.state {
            State::Used => "used",
            State::Absent => "absent",
            State::Needed => "MISSING",
        };
        table.add_row([
            safe(&row.name),
            state.to_owned(),
            safe(&row.used_for),
            safe(&row.note),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with some controllers in v1 and some in v2.
    struct Places(&'static [Controller], &'static [Controller]);

    impl Placement for Places {
        fn place(&self, controller: Controller) -> Place {
            match (self.0.contains(&controller), self.1.contains(&controller)) {
                (true, _) => Place::V1,
                (_, true) => Place::V2,
                _ => Place::Missing,
            }
        }

        fn is_unified(&self) -> bool {
            self.0.is_empty()
        }
    }

    fn states(places: &Places, mode: Mode, programs: bool) -> Vec<(String, State)> {
        let rows = controllers(places, mode, programs);
        rows.into_iter().map(|row| (row.name, row.state)).collect()
    }

    #[test]
    fn a_missing_controller_counts_by_what_needs_it() {
        use Controller::{Cpu, Devices, Freezer, Hugetlb, Memory, Pids};
        let hybrid = states(
            &Places(&[Cpu, Memory, Pids], &[Hugetlb]),
            Mode::Hybrid,
            true,
        );
        let of = |rows: &[(String, State)], name: &str| {
            rows.iter()
                .find(|(row, _)| row.ends_with(name))
                .map(|(_, state)| *state)
        };
        assert_eq!(of(&hybrid, " memory"), Some(State::Used));
        assert_eq!(of(&hybrid, " hugetlb"), Some(State::Used));
        assert_eq!(of(&hybrid, " cpuset"), Some(State::Absent));
        assert_eq!(of(&hybrid, " freezer"), None, "v2 freezes by itself");
        let legacy = states(
            &Places(&[Cpu, Pids, Freezer, Devices], &[]),
            Mode::Legacy,
            false,
        );
        assert_eq!(of(&legacy, " memory"), Some(State::Needed));
        assert_eq!(of(&legacy, " freezer"), Some(State::Used));
        assert_eq!(of(&legacy, " devices"), Some(State::Used));
        assert_eq!(of(&legacy, "(eBPF)"), Some(State::Absent));
    }
}
