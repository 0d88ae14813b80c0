//! Names of images: `[host[:port]/]path[:tag][@digest]`, parsed strictly.
//!
//! The grammar is that of the distribution project's references, the defaults are the field's: no
//! host means `docker.io`, one component there means `library/`, neither tag nor digest means
//! `:latest`, tag and digest mean the digest (cri-contract, "References"; cases R1, threat I4).
//! A name is never used as a path on this machine.

use std::fmt;

use super::digest::Digest;
use crate::failure::Failure;

/// Host of names without one.
pub(crate) const DEFAULT_HOST: &str = "docker.io";
/// Longest host and path together, as the distribution project has it.
const MAX_NAME: usize = 255;
/// Longest text worth looking at.
const MAX_TEXT: usize = 1024;

/// A parsed name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses what a pod's author wrote; the message says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |why: String| {
            let shown: String = text.chars().take(200).collect();
            Failure::invalid(format!("image name {shown:?}: {why}"))
        };
        if text.is_empty() {
            return Err(wrong("it is empty".into()));
        }
        if text.len() > MAX_TEXT {
            return Err(wrong(format!("it is longer than {MAX_TEXT} bytes")));
        }
        if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(wrong(format!("it holds {c:?}")));
        }
        if text.contains("://") {
            return Err(wrong("it is a URL; leave out the scheme".into()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(
                    digest
                        .parse::<Digest>()
                        .map_err(|e| wrong(e.message().to_owned()))?,
                ),
            ),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the port.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].rfind(':') {
            Some(colon) => (
                &rest[..name_end + colon],
                Some(&rest[name_end + colon + 1..]),
            ),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(wrong)?;
        }
        let (host, path) = split_host(name);
        if let Some(host) = host {
            check_host(host).map_err(wrong)?;
        }
        check_path(path).map_err(wrong)?;
        let host = match host {
            None | Some("index.docker.io") => DEFAULT_HOST.to_owned(),
            Some(host) => host.to_ascii_lowercase(),
        };
        let path = if host == DEFAULT_HOST && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if host.len() + 1 + path.len() > MAX_NAME {
            return Err(wrong(format!(
                "host and path are longer than {MAX_NAME} bytes"
            )));
        }
        let tag = match (tag, &digest) {
            (_, Some(_)) => None,
            (Some(tag), None) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self {
            host,
            path,
            tag,
            digest,
        })
    }

    /// The registry's host, with its port if one was given.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Host and path.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// The tag; absent where a digest rules.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What is asked of the registry after `/manifests/`.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The name under which this repository knows `digest`.
    pub fn at(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.repository())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// The first component is a host if it could not be part of a path on the default registry.
fn split_host(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest
                .split_once(']')
                .ok_or_else(|| format!("host {host:?} has no closing bracket"))?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("host {host:?} is no IPv6 address"));
            }
            match after {
                "" => return Ok(()),
                _ => (
                    None,
                    Some(
                        after
                            .strip_prefix(':')
                            .ok_or_else(|| format!("host {host:?} goes on after the bracket"))?,
                    ),
                ),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(name) = name {
        let good = name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        });
        if !good {
            return Err(format!("host {host:?} is no host name"));
        }
    }
    match port {
        None => Ok(()),
        Some(port)
            if !port.is_empty()
                && port.bytes().all(|b| b.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|p| p != 0) =>
        {
            Ok(())
        }
        Some(port) => Err(format!("port {port:?} is no number from 1 to 65535")),
    }
}

/// Components of lower-case letters and digits, joined inside by `.`, `_`, `__` or any number of `-`.
fn check_path(path: &str) -> Result<(), String> {
    for component in path.split('/') {
        if component.is_empty() {
            return Err("a path component is empty".into());
        }
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(format!("{component:?} holds capital letters"));
        }
        if let Some(c) = component
            .chars()
            .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-'))
        {
            return Err(format!("{component:?} holds {c:?}"));
        }
        let mut separators = component.split(|c: char| c.is_ascii_alphanumeric());
        // Splitting leaves what stands before, between and after letters: outer ones must be empty.
        let first = separators.next().unwrap_or("");
        let last = component
            .rsplit(|c: char| c.is_ascii_alphanumeric())
            .next()
            .unwrap_or("");
        if !first.is_empty() || !last.is_empty() {
            return Err(format!(
                "{component:?} must start and end with a letter or digit"
            ));
        }
        for separator in separators {
            let good =
                matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
            if !good {
                return Err(format!("{component:?} holds the separator {separator:?}"));
            }
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    if tag.is_empty() {
        return Err("the tag is empty".into());
    }
    if tag.len() > 128 {
        return Err("the tag is longer than 128 bytes".into());
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if !tag.bytes().next().is_some_and(word)
        || !tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
    {
        return Err(format!(
            "tag {tag:?} may hold letters, digits, `_`, `.` and `-`, the last two not first"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_get_the_defaults_of_the_field() {
        let digest = format!("sha256:{HEX}");
        for (text, whole) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("a/b", "docker.io/a/b:latest".to_owned()),
            ("index.docker.io/a/b:x", "docker.io/a/b:x".to_owned()),
            (
                "docker.io/busybox",
                "docker.io/library/busybox:latest".to_owned(),
            ),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("127.0.0.1:5000/x:1", "127.0.0.1:5000/x:1".to_owned()),
            ("[::1]:5000/x", "[::1]:5000/x:latest".to_owned()),
            ("Reg.io/x", "reg.io/x:latest".to_owned()),
            (
                "reg.example:443/a/b/c:v1.2_3-x",
                "reg.example:443/a/b/c:v1.2_3-x".to_owned(),
            ),
            ("a__b/c--d.e", "docker.io/a__b/c--d.e:latest".to_owned()),
            (&format!("r.io/a/b@{digest}"), format!("r.io/a/b@{digest}")),
            (
                &format!("r.io/a/b:v1@{digest}"),
                format!("r.io/a/b@{digest}"),
            ),
            (
                &format!("x@{digest}"),
                format!("docker.io/library/x@{digest}"),
            ),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), whole, "{text}");
            assert_eq!(Reference::parse(&whole).unwrap(), reference, "{text}");
        }
    }

    #[test]
    fn a_malformed_name_is_refused_with_the_part_that_is_wrong() {
        let long = format!("r.io/{}", "a".repeat(260));
        let tag = format!("x:{}", "t".repeat(129));
        for (text, why) in [
            ("", "is empty"),
            (" x", "holds ' '"),
            ("x\n", "holds '\\n'"),
            ("é", "holds 'é'"),
            ("https://r.io/x", "is a URL"),
            ("x:", "tag is empty"),
            ("x:-a", "tag"),
            (tag.as_str(), "longer than 128"),
            ("a/Bc", "capital letters"),
            ("a//b", "component is empty"),
            ("a/", "component is empty"),
            ("../x", "no host name"),
            ("Reg/x", "capital letters"),
            ("a/../b", "start and end"),
            ("a/.b", "start and end"),
            ("a..b", "separator"),
            ("a___b", "separator"),
            ("a.-b", "separator"),
            ("r.io:0/x", "port"),
            ("r.io:x/y", "port"),
            ("r.io:99999/y", "port"),
            ("-r.io/y", "no host name"),
            ("[::g]/y", "no IPv6"),
            ("x@sha256:abc", "has 3 digits"),
            ("x@md5:abc", "neither sha256"),
            ("x@", "no algorithm"),
            (long.as_str(), "longer than 255"),
        ] {
            let failure = Reference::parse(text).unwrap_err();
            assert!(failure.message().contains(why), "{text:?}: {failure}");
        }
    }
}
