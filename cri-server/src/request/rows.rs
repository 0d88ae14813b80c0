//! `docs/security-context.md` has a row for each field of the messages that make up the security
//! context, and each row names tests that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The messages the document has a section for.
const MESSAGES: [&str; 14] = [
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "NamespaceOption",
    "UserNamespace",
    "IDMapping",
    "LinuxContainerSecurityContext",
    "SecurityProfile",
    "Capability",
    "SELinuxOption",
    "LinuxContainerResources",
    "HugepageLimit",
    "Mount",
    "Device",
    "CDIDevice",
];

/// The table of the wire: kind, owner, name, number, type, label.
const WIRE: &str = include_str!("../../../proto/tests/cri-v1-fields.tsv");

const DOCUMENT: &str = include_str!("../../../docs/security-context.md");

/// One row: the field and the names in its last cell.
struct Row<'a> {
    section: &'a str,
    field: &'a str,
    effect: &'a str,
    tests: Vec<&'a str>,
}

/// Words between backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The rows of tables of five columns, with the heading they stand under.
fn rows() -> Vec<Row<'static>> {
    let mut section = "";
    let mut rows = Vec::new();
    for line in DOCUMENT.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", first, effect, _default, _refused, tests, ""] = cells.as_slice() else {
            continue;
        };
        if let [field] = quoted(first).as_slice() {
            rows.push(Row {
                section,
                field,
                effect,
                tests: quoted(tests),
            });
        }
    }
    rows
}

/// Every Rust file of the repository by its path without `.rs`, and its text.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeMap::new();
    for folder in ["runtime", "cri-server", "conformance"] {
        for part in ["src", "tests"] {
            collect(&root.join(folder).join(part), &mut found);
        }
    }
    found
}

fn collect(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path: PathBuf = entry.expect("read a folder of sources").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).expect("read a source");
            found.insert(path.with_extension("").display().to_string(), text);
        }
    }
}

#[test]
fn every_field_of_the_security_context_has_one_row() {
    let expected: BTreeSet<(&str, &str)> = WIRE
        .lines()
        .filter_map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            match columns.as_slice() {
                ["field", owner, name, ..] if MESSAGES.contains(owner) => Some((*owner, *name)),
                _ => None,
            }
        })
        .collect();
    let rows: Vec<(&str, &str)> = rows()
        .iter()
        .filter(|row| MESSAGES.contains(&row.section))
        .map(|row| (row.section, row.field))
        .collect();
    let listed: BTreeSet<_> = rows.iter().copied().collect();
    assert_eq!(listed.len(), rows.len(), "a field has two rows");
    let missing: Vec<_> = expected.difference(&listed).collect();
    let surplus: Vec<_> = listed.difference(&expected).collect();
    assert!(missing.is_empty(), "no row: {missing:?}");
    assert!(surplus.is_empty(), "no such field: {surplus:?}");
}

#[test]
fn every_row_names_tests_that_exist() {
    let sources = sources();
    for row in rows() {
        let at = format!("{}.{}", row.section, row.field);
        assert!(!row.effect.is_empty(), "{at} says no effect");
        assert!(!row.tests.is_empty(), "{at} names no test");
        for test in row.tests {
            let (file, function) = test.split_once("::").expect("file::function");
            let end = format!("/{file}");
            let exists = sources.iter().any(|(path, text)| {
                path.ends_with(&end) && text.contains(&format!("fn {function}("))
            });
            assert!(exists, "{at}: no test {test}");
        }
    }
}
