//! The configuration in force, as a file that would set it again. Pure.

use std::fmt::Write as _;

use super::keys::KEYS;
use super::{Config, Origins};
use crate::failure::{Doing as _, Failure};

/// Each key after its meaning; one that has no value is shown as a comment.
pub(super) fn render(config: &Config, origins: &Origins) -> Result<String, Failure> {
    let table = toml::Table::try_from(config).doing("print the configuration")?;
    let mut out = String::new();
    let mut section = "";
    for key in KEYS {
        let (table_name, name) = key.path.split_once('.').unwrap_or(("", key.path));
        if table_name != section {
            section = table_name;
            push(&mut out, format_args!("\n[{section}]\n"));
        }
        let value = if section.is_empty() {
            table.get(name)
        } else {
            table.get(section).and_then(|inner| inner.get(name))
        };
        let origin = match origins.get(key.path) {
            Some(place) => format!("  # {place}"),
            None => String::new(),
        };
        push(&mut out, format_args!("# {}\n", key.doc));
        match value {
            Some(value) => push(&mut out, format_args!("{name} = {value}{origin}\n")),
            None => push(&mut out, format_args!("# {name} =\n")),
        }
    }
    Ok(out)
}

/// Writing to a string does not fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).unwrap_or_default();
}
