//! Reading the files: each is checked by itself, so that an error has its line, and then merged.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{Config, keys};
use crate::failure::{Doing as _, Failure};

/// No sane configuration is larger.
const MAX_BYTES: u64 = 1 << 20;

/// A file and the line in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: PathBuf,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Where each key that is not at its default was set.
#[derive(Clone, Debug, Default)]
pub struct Origins(BTreeMap<String, Place>);

impl Origins {
    /// The place that set the key with this dotted path.
    pub fn get(&self, path: &str) -> Option<&Place> {
        self.0.get(path)
    }
}

/// All files together.
pub(super) struct Merged {
    pub(super) table: toml::Table,
    pub(super) origins: Origins,
}

pub(super) fn read(file: &Path) -> Result<Merged, Failure> {
    let mut merged = Merged {
        table: toml::Table::new(),
        origins: Origins::default(),
    };
    let mut files = vec![file.to_owned()];
    files.extend(drop_ins(&file.with_file_name("config.d"))?);
    for file in files {
        if let Some(text) = read_bounded(&file)? {
            add(&mut merged, &file, &text)?;
        }
    }
    Ok(merged)
}

/// The `*.toml` files of the drop-in directory, in the order of their names.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let doing = || format!("read the drop-in directory {}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).doing(doing()),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.doing(doing())?.path();
        let hidden = path
            .file_name()
            .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|e| e == "toml") && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_bounded(file: &Path) -> Result<Option<String>, Failure> {
    let doing = || format!("read {}", file.display());
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).doing(doing()),
    };
    let mut text = String::new();
    opened
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .doing(doing())?;
    if text.len() > usize::try_from(MAX_BYTES).unwrap_or(usize::MAX) {
        return Err(Failure::invalid(format!(
            "{} is larger than 1 MiB",
            file.display()
        )));
    }
    Ok(Some(text))
}

/// Checks one file and lays it over what is there.
fn add(merged: &mut Merged, file: &Path, text: &str) -> Result<(), Failure> {
    let place = |span: Range<usize>| Place {
        file: file.to_owned(),
        line: line_of(text, span.start),
    };
    let refuse = |error: &toml::de::Error| {
        let place = place(error.span().unwrap_or(0..0));
        Failure::invalid(format!("{place}: {}", error.message()))
    };
    let spanned = DeTable::parse(text).map_err(|error| refuse(&error))?;
    let mut found = Vec::new();
    walk("", spanned.get_ref(), &mut found);
    for (path, span) in found {
        let place = place(span);
        if keys::find(&path).is_none() {
            return Err(Failure::invalid(format!("{place}: {}", unknown(&path))));
        }
        merged.origins.0.insert(path, place);
    }
    // The types, while the lines are known; the values count once all files are merged.
    toml::from_str::<Config>(text).map_err(|error| refuse(&error))?;
    let table: toml::Table = toml::from_str(text).map_err(|error| refuse(&error))?;
    merge(&mut merged.table, table);
    Ok(())
}

fn unknown(path: &str) -> String {
    match keys::nearest(path) {
        Some(known) => format!("unknown key {path}; is {known} meant?"),
        None => format!("unknown key {path}; `bulkhead config print` shows all"),
    }
}

/// Every key with its place: the leaves, and tables nobody knows, which are reported whole.
fn walk(prefix: &str, table: &DeTable<'_>, found: &mut Vec<(String, Range<usize>)>) {
    for (key, value) in table {
        let path = if prefix.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{prefix}.{}", key.get_ref())
        };
        match value.get_ref() {
            DeValue::Table(inner) if keys::is_table(&path) => walk(&path, inner, found),
            // `[network]` written as a plain value is for the typed pass to refuse.
            _ if keys::is_table(&path) => {}
            _ => found.push((path, key.span())),
        }
    }
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}
