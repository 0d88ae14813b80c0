//! Bounds on strings, lists and maps from outside (threats I4, E8, H7): how long, how many, and
//! which characters, so that no later code has to ask.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::invalid;
use crate::failure::Failure;

/// Names, ids and references: longer ones exist nowhere in Kubernetes.
pub(super) const NAME: usize = 1024;
/// The longest path the kernel takes (`PATH_MAX` without its NUL).
pub(super) const PATH: usize = 4095;
/// The longest single argument or environment string the kernel takes: `MAX_ARG_STRLEN` is 128 KiB
/// with its NUL (execve(2); checked on 6.18).
pub(super) const ARGUMENT: usize = 131_071;
/// Entries of any list; the API server allows far fewer.
pub(super) const LIST: usize = 4096;
/// Labels together, and annotations together: the API server stops at 256 KiB per object.
const MAP_BYTES: usize = 1 << 20;

/// A text of at most `max` bytes without control characters. Returned as it is.
pub(super) fn plain(field: &str, value: &str, max: usize) -> Result<String, Failure> {
    if value.len() > max {
        return Err(invalid(
            field,
            format_args!("{} bytes are more than the {max} allowed", value.len()),
        ));
    }
    if value.chars().any(char::is_control) {
        return Err(invalid(field, "holds a control character"));
    }
    Ok(value.to_owned())
}

/// Like [`plain`], and not empty.
pub(super) fn required(field: &str, value: &str, max: usize) -> Result<String, Failure> {
    if value.is_empty() {
        return Err(invalid(field, "is required"));
    }
    plain(field, value, max)
}

/// Refuses more than [`LIST`] entries.
pub(super) fn bounded<T>(field: &str, list: &[T]) -> Result<(), Failure> {
    if list.len() > LIST {
        return Err(invalid(
            field,
            format_args!("{} entries are more than the {LIST} allowed", list.len()),
        ));
    }
    Ok(())
}

/// Each entry by [`plain`], the list by [`bounded`].
pub(super) fn list(field: &str, values: &[String], max: usize) -> Result<Vec<String>, Failure> {
    bounded(field, values)?;
    values
        .iter()
        .enumerate()
        .map(|(index, value)| plain(&format!("{field}[{index}]"), value, max))
        .collect()
}

/// Labels or annotations: kept byte for byte, bounded together.
pub(super) fn map(
    field: &str,
    values: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Failure> {
    let bytes: usize = values.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > MAP_BYTES {
        return Err(invalid(
            field,
            format_args!("{bytes} bytes are more than the {MAP_BYTES} allowed"),
        ));
    }
    Ok(values.clone())
}

/// An absolute path on the host. Empty is `None`.
pub(super) fn host_path(field: &str, value: &str) -> Result<Option<PathBuf>, Failure> {
    if value.is_empty() {
        return Ok(None);
    }
    let path = plain(field, value, PATH)?;
    if !path.starts_with('/') {
        return Err(invalid(
            field,
            format_args!("\"{path}\" must be an absolute path"),
        ));
    }
    Ok(Some(PathBuf::from(path)))
}

/// A path inside a container, made canonical: absolute, no empty, `.` or `..` parts. It is resolved
/// below the container's root only (threat C3 lists what spellings are tried).
pub(super) fn container_path(field: &str, value: &str) -> Result<PathBuf, Failure> {
    let text = required(field, value, PATH)?;
    if !text.starts_with('/') {
        return Err(invalid(
            field,
            format_args!("\"{text}\" must be an absolute path"),
        ));
    }
    let mut path = PathBuf::from("/");
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(invalid(field, format_args!("\"{text}\" holds \"..\""))),
            part => path.push(part),
        }
    }
    Ok(path)
}

/// A path relative to a directory of the host which must not leave it.
pub(super) fn relative_path(field: &str, value: &str) -> Result<Option<PathBuf>, Failure> {
    if value.is_empty() {
        return Ok(None);
    }
    let text = plain(field, value, PATH)?;
    let mut path = PathBuf::new();
    for part in text.split('/') {
        match part {
            "" | "." if path.as_os_str().is_empty() && text.starts_with('/') => {
                return Err(invalid(
                    field,
                    format_args!("\"{text}\" must be a relative path"),
                ));
            }
            "" | "." => {}
            ".." => return Err(invalid(field, format_args!("\"{text}\" holds \"..\""))),
            part => path.push(part),
        }
    }
    if path.as_os_str().is_empty() {
        return Err(invalid(field, format_args!("\"{text}\" names no file")));
    }
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_path_comes_out_canonical_or_is_refused() {
        for (given, expected) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("//a/./b/", Some("/a/b")),
            ("a", None),
            ("", None),
            ("/a/../b", None),
            ("/..", None),
            ("/a\nb", None),
            ("/a\0b", None),
        ] {
            let found = container_path("f", given).ok();
            assert_eq!(
                found.as_deref(),
                expected.map(std::path::Path::new),
                "{given:?}"
            );
        }
    }

    #[test]
    fn a_relative_path_never_leaves_its_directory() {
        for (given, expected) in [
            ("web/0.log", Some("web/0.log")),
            ("./web//0.log", Some("web/0.log")),
            ("/web/0.log", None),
            ("../0.log", None),
            ("web/../../0.log", None),
            (".", None),
            ("a\0", None),
        ] {
            let found = relative_path("f", given).ok().flatten();
            assert_eq!(
                found.as_deref(),
                expected.map(std::path::Path::new),
                "{given:?}"
            );
        }
        assert_eq!(relative_path("f", "").unwrap(), None);
    }

    #[test]
    fn labels_are_kept_verbatim_within_their_bound() {
        let odd = BTreeMap::from([("a\n/\u{1b}".to_owned(), " \t\0".to_owned())]);
        assert_eq!(map("labels", &odd).unwrap(), odd);
        let huge = BTreeMap::from([("a".to_owned(), "x".repeat(MAP_BYTES))]);
        assert!(
            map("labels", &huge)
                .unwrap_err()
                .message()
                .starts_with("labels: ")
        );
    }
}
