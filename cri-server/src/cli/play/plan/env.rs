//! Environment variables: values, fields of the pod, and `$(NAME)` in values, commands and
//! arguments. Pure.

use std::collections::BTreeMap;

use bulkhead_proto::runtime::v1;
use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector};

use super::{Checker, Folder};

/// What is known once the sandbox runs.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli::play) struct Facts<'a> {
    pub(in crate::cli::play) uid: &'a str,
    pub(in crate::cli::play) addresses: &'a [String],
    pub(in crate::cli::play) node_name: &'a str,
    pub(in crate::cli::play) folder: &'a Folder,
    /// Whether the daemon's handler can do it.
    pub(in crate::cli::play) recursive_read_only: bool,
}

/// Where a variable's value comes from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Value(String),
    Name,
    Namespace,
    Uid,
    Label(String),
    Annotation(String),
    NodeName,
    Address,
    Addresses,
}

pub(super) fn plan(
    container: &Container,
    path: &str,
    checker: &mut Checker<'_>,
) -> Vec<(String, Source)> {
    let mut sources = Vec::new();
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let path = format!("{path}.env[{index}]");
        if variable.name.is_empty() || variable.name.contains(['=', '\0']) {
            checker.wrong(&format!("{path}.name"), "has to be without = and not empty");
        }
        let field = variable
            .value_from
            .as_ref()
            .and_then(|from| from.field_ref.as_ref());
        let source = match (&variable.value, field) {
            (Some(_), Some(_)) => {
                checker.wrong(&path, "has both value and valueFrom");
                continue;
            }
            (_, None) => Source::Value(variable.value.clone().unwrap_or_default()),
            (None, Some(field)) => {
                let path = format!("{path}.valueFrom.fieldRef.fieldPath");
                let Some(source) = of_field(field, &path, checker) else {
                    continue;
                };
                source
            }
        };
        sources.push((variable.name.clone(), source));
    }
    sources
}

fn of_field(field: &ObjectFieldSelector, path: &str, checker: &mut Checker<'_>) -> Option<Source> {
    let text = field.field_path.as_str();
    let subscript = |table: &str| {
        let key = text
            .strip_prefix(table)?
            .strip_prefix("['")?
            .strip_suffix("']")?;
        (!key.is_empty()).then(|| key.to_owned())
    };
    let source = match text {
        "metadata.name" => Some(Source::Name),
        "metadata.namespace" => Some(Source::Namespace),
        "metadata.uid" => Some(Source::Uid),
        "spec.nodeName" => Some(Source::NodeName),
        "status.podIP" => Some(Source::Address),
        "status.podIPs" => Some(Source::Addresses),
        _ => subscript("metadata.labels")
            .map(Source::Label)
            .or_else(|| subscript("metadata.annotations").map(Source::Annotation)),
    };
    if source.is_none() {
        checker.wrong(path, format!("is {text:?}, which bulkhead play can't do"));
    }
    source
}

/// The variables in order, each value with the variables before it put in.
pub(super) fn resolve(
    sources: &[(String, Source)],
    sandbox: &v1::PodSandboxConfig,
    facts: &Facts<'_>,
) -> Vec<(String, String)> {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    let mut known: BTreeMap<&str, String> = BTreeMap::new();
    let mut out = Vec::new();
    for (name, source) in sources {
        let value = match source {
            Source::Value(text) => expand(text, |name| known.get(name).cloned()),
            Source::Name => metadata.name.clone(),
            Source::Namespace => metadata.namespace.clone(),
            Source::Uid => facts.uid.to_owned(),
            Source::Label(key) => sandbox.labels.get(key).cloned().unwrap_or_default(),
            Source::Annotation(key) => sandbox.annotations.get(key).cloned().unwrap_or_default(),
            Source::NodeName => facts.node_name.to_owned(),
            Source::Address => facts.addresses.first().cloned().unwrap_or_default(),
            Source::Addresses => facts.addresses.join(","),
        };
        known.insert(name, value.clone());
        out.push((name.clone(), value));
    }
    out
}

/// Puts variables in for `$(NAME)`. `$$` is one dollar sign; a name nobody knows stays as it is
/// written (Kubernetes, "Define Dependent Environment Variables").
pub(super) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|a| a.split_once(')'))
        {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_put_in_as_kubernetes_does() {
        let lookup = |name: &str| (name == "A").then(|| "one".to_owned());
        for (text, wanted) in [
            ("plain", "plain"),
            ("$(A)", "one"),
            ("<$(A)$(A)>", "<oneone>"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$one"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("cost: 5$", "cost: 5$"),
            ("$$", "$"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, lookup), wanted, "{text}");
        }
    }
}
