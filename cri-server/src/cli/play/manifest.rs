//! A Pod manifest, read strictly: what Kubernetes would not know, and what `bulkhead play` can't
//! do, is refused with its line rather than dropped. Pure.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::document::{self, Lines, Node, Problem, join};

/// A manifest whose every field is known and within what play can do.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) pod: Pod,
    pub(super) lines: Lines,
}

/// The fields play honours, and a few that say nothing on a single machine. `[]` is any item; a
/// path ends where everything below it is honoured. Init containers count as containers.
const HONOURED: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.labels",
    "metadata.annotations",
    "spec.restartPolicy",
    "spec.terminationGracePeriodSeconds",
    "spec.runtimeClassName",
    "spec.hostname",
    "spec.hostNetwork",
    "spec.hostPID",
    "spec.hostIPC",
    "spec.shareProcessNamespace",
    "spec.dnsPolicy",
    "spec.dnsConfig",
    "spec.securityContext.runAsUser",
    "spec.securityContext.runAsGroup",
    "spec.securityContext.runAsNonRoot",
    "spec.securityContext.fsGroup",
    "spec.securityContext.supplementalGroups",
    "spec.securityContext.supplementalGroupsPolicy",
    "spec.securityContext.sysctls",
    "spec.securityContext.seccompProfile",
    "spec.securityContext.appArmorProfile",
    "spec.securityContext.seLinuxOptions",
    "spec.volumes[].name",
    "spec.volumes[].emptyDir",
    "spec.volumes[].hostPath",
    "spec.containers[].name",
    "spec.containers[].image",
    "spec.containers[].imagePullPolicy",
    "spec.containers[].command",
    "spec.containers[].args",
    "spec.containers[].workingDir",
    "spec.containers[].env[].name",
    "spec.containers[].env[].value",
    "spec.containers[].env[].valueFrom.fieldRef",
    "spec.containers[].ports",
    "spec.containers[].restartPolicy",
    "spec.containers[].stdin",
    "spec.containers[].stdinOnce",
    "spec.containers[].tty",
    "spec.containers[].resources.limits.cpu",
    "spec.containers[].resources.limits.memory",
    "spec.containers[].resources.requests.cpu",
    "spec.containers[].resources.requests.memory",
    "spec.containers[].securityContext.allowPrivilegeEscalation",
    "spec.containers[].securityContext.appArmorProfile",
    "spec.containers[].securityContext.capabilities",
    "spec.containers[].securityContext.privileged",
    "spec.containers[].securityContext.procMount",
    "spec.containers[].securityContext.readOnlyRootFilesystem",
    "spec.containers[].securityContext.runAsGroup",
    "spec.containers[].securityContext.runAsNonRoot",
    "spec.containers[].securityContext.runAsUser",
    "spec.containers[].securityContext.seLinuxOptions",
    "spec.containers[].securityContext.seccompProfile",
    "spec.containers[].volumeMounts[].name",
    "spec.containers[].volumeMounts[].mountPath",
    "spec.containers[].volumeMounts[].readOnly",
    "spec.containers[].volumeMounts[].subPath",
    "spec.containers[].volumeMounts[].mountPropagation",
    "spec.containers[].volumeMounts[].recursiveReadOnly",
    // Of no consequence without a cluster.
    "metadata.creationTimestamp",
    "spec.automountServiceAccountToken",
    "spec.enableServiceLinks",
    "spec.containers[].terminationMessagePath",
    "spec.containers[].terminationMessagePolicy",
];

impl Manifest {
    /// Reads the text of one manifest; all problems of a kind at once.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let tree = document::parse(text).map_err(|problem| vec![problem])?;
        is_pod(&tree).map_err(|problem| vec![problem])?;
        let pod: Pod =
            serde_saphyr::from_str(text).map_err(|error| vec![document::problem(&error)])?;
        // What the types of Kubernetes do not give back, they did not know.
        let known = serde_json::to_value(&pod).unwrap_or(Value::Null);
        let mut problems = Vec::new();
        unknown(&tree, &known, "", &mut problems);
        if problems.is_empty() {
            unsupported(&tree, "", "", &mut problems);
        }
        if !problems.is_empty() {
            problems.sort();
            return Err(problems);
        }
        let lines = tree.lines();
        Ok(Self { pod, lines })
    }
}

fn is_pod(tree: &Node) -> Result<(), Problem> {
    for (key, wanted) in [("apiVersion", "v1"), ("kind", "Pod")] {
        let (line, text) = match tree.get(key) {
            Some((_, Node::Text(value))) if value == wanted => continue,
            Some((line, Node::Text(value))) => (
                line,
                format!("{key} is {value}: bulkhead play runs {key} {wanted}"),
            ),
            _ => (1, format!("no {key}: bulkhead play needs {key}: {wanted}")),
        };
        return Err(Problem { line, text });
    }
    Ok(())
}

fn unknown(tree: &Node, known: &Value, path: &str, problems: &mut Vec<Problem>) {
    match (tree, known) {
        (Node::Map(entries), Value::Object(fields)) => {
            for (key, line, node) in entries {
                let path = join(path, key);
                match fields.get(key) {
                    Some(Value::String(_)) if matches!(node, Node::Plain) && !numeric(&path) => {
                        problems.push(Problem {
                            line: *line,
                            text: format!("{path} has to be a string: put it in quotes"),
                        });
                    }
                    Some(value) => unknown(node, value, &path, problems),
                    None if matches!(node, Node::Null) => {}
                    None => problems.push(Problem {
                        line: *line,
                        text: unknown_text(&path, key),
                    }),
                }
            }
        }
        (Node::List(items), Value::Array(values)) => {
            for (index, ((line, node), value)) in items.iter().zip(values).enumerate() {
                let path = format!("{path}[{index}]");
                if matches!((node, value), (Node::Plain, Value::String(_))) {
                    problems.push(Problem {
                        line: *line,
                        text: format!("{path} has to be a string: put it in quotes"),
                    });
                }
                unknown(node, value, &path, problems);
            }
        }
        _ => {}
    }
}

/// Quantities may be written as numbers.
fn numeric(path: &str) -> bool {
    path.ends_with(".sizeLimit")
        || path.contains(".resources.limits.")
        || path.contains(".resources.requests.")
}

fn unknown_text(path: &str, key: &str) -> String {
    let pattern = pattern_of(path);
    let parent = pattern.rsplit_once('.').map_or("", |(parent, _)| parent);
    let siblings = HONOURED.iter().filter_map(|known| {
        let below = known.strip_prefix(parent)?.trim_start_matches('.');
        below
            .split(['.', '['])
            .next()
            .filter(|name| !name.is_empty())
    });
    match crate::nearest::nearest(key, siblings) {
        Some(near) => format!("unknown field {path}; is {near} meant?"),
        None => format!("unknown field {path}"),
    }
}

/// `spec.initContainers[3].name` as the table above writes it.
fn pattern_of(path: &str) -> String {
    let mut pattern = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('[') {
        pattern.push_str(before);
        pattern.push_str("[]");
        rest = after.split_once(']').map_or("", |(_, after)| after);
    }
    pattern.push_str(rest);
    pattern.replacen("spec.initContainers", "spec.containers", 1)
}

fn unsupported(tree: &Node, path: &str, pattern: &str, problems: &mut Vec<Problem>) {
    let mut visit = |path: String, pattern: String, line: u64, node: &Node| {
        let honoured = HONOURED.contains(&pattern.as_str());
        if honoured || matches!(node, Node::Null) {
            return;
        }
        let opens = |known: &&str| {
            known
                .strip_prefix(&pattern)
                .is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        if HONOURED.iter().any(opens) {
            unsupported(node, &path, &pattern, problems);
        } else {
            problems.push(Problem {
                line,
                text: format!("bulkhead play can't do {path}"),
            });
        }
    };
    match tree {
        Node::Map(entries) => {
            for (key, line, node) in entries {
                let below =
                    join(pattern, key).replacen("spec.initContainers", "spec.containers", 1);
                visit(join(path, key), below, *line, node);
            }
        }
        Node::List(items) => {
            for (index, (line, node)) in items.iter().enumerate() {
                visit(
                    format!("{path}[{index}]"),
                    format!("{pattern}[]"),
                    *line,
                    node,
                );
            }
        }
        Node::Null | Node::Plain | Node::Text(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n";

    fn problems(text: &str) -> Vec<(u64, String)> {
        match Manifest::parse(text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.into_iter().map(|p| (p.line, p.text)).collect(),
        }
    }

    #[test]
    fn an_ordinary_manifest_passes() {
        let text = format!(
            "{HEAD}  containers:\n  - name: a\n    image: i\n    env:\n    - name: A\n      value: \"1\"\n    resources:\n      limits:\n        cpu: 0.5\n        memory: 64Mi\n      requests: {{cpu: 1}}\n  volumes:\n  - name: v\n    emptyDir: {{}}\n  tolerations:\n"
        );
        assert_eq!(problems(&text), []);
    }

    #[test]
    fn what_cannot_be_done_is_named_with_its_line() {
        for (case, spec, line, wanted) in [
            (
                "a misspelt field is named with the nearest",
                "  containers:\n  - name: a\n    imagee: i\n    image: i\n",
                8,
                "unknown field spec.containers[0].imagee; is image meant?",
            ),
            (
                "a field nobody knows",
                "  zebra: 1\n  containers: []\n",
                6,
                "unknown field spec.zebra",
            ),
            (
                "a volume of another kind",
                "  containers: []\n  volumes:\n  - name: v\n    configMap:\n      name: c\n",
                9,
                "bulkhead play can't do spec.volumes[0].configMap",
            ),
            (
                "a probe",
                "  containers:\n  - name: a\n    image: i\n    livenessProbe:\n      tcpSocket: {port: 1}\n",
                9,
                "bulkhead play can't do spec.containers[0].livenessProbe",
            ),
            (
                "the same in an init container, by its own name",
                "  containers: []\n  initContainers:\n  - name: a\n    lifecycle: {}\n",
                9,
                "bulkhead play can't do spec.initContainers[0].lifecycle",
            ),
            (
                "an environment from elsewhere",
                "  containers:\n  - name: a\n    env:\n    - name: A\n      valueFrom:\n        secretKeyRef: {name: s, key: k}\n",
                11,
                "bulkhead play can't do spec.containers[0].env[0].valueFrom.secretKeyRef",
            ),
            (
                "a resource other than cpu and memory",
                "  containers:\n  - name: a\n    resources:\n      limits:\n        example.com/gpu: 1\n",
                10,
                "bulkhead play can't do spec.containers[0].resources.limits.example.com/gpu",
            ),
            (
                "a number where a string is needed",
                "  containers:\n  - name: a\n    env:\n    - name: A\n      value: 5\n",
                10,
                "spec.containers[0].env[0].value has to be a string: put it in quotes",
            ),
            (
                "a number among arguments",
                "  containers:\n  - name: a\n    args: [\"sleep\", 5]\n",
                8,
                "spec.containers[0].args[1] has to be a string: put it in quotes",
            ),
        ] {
            let found = problems(&format!("{HEAD}{spec}"));
            assert_eq!(found, [(line, wanted.to_owned())], "{case}");
        }
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        for (text, line, wanted) in [
            ("kind: Pod\n", 1, "no apiVersion"),
            (
                "apiVersion: v1\nkind: Deployment\n",
                2,
                "kind is Deployment",
            ),
            ("apiVersion: v1\nkind: Pod\nkind: Pod\n", 3, "kind"),
            ("[1, 2]\n", 1, "no apiVersion"),
            ("apiVersion: v1\nkind: Pod\nspec:\n  containers: 5\n", 4, ""),
            ("a: [\n", 0, ""),
        ] {
            let found = problems(text);
            let [(at, message)] = &found[..] else {
                panic!("{text}: {found:?}");
            };
            assert!(message.contains(wanted), "{text}: {message}");
            assert!(line == 0 || *at == line, "{text}: line {at}");
        }
    }

    #[test]
    fn a_document_that_blows_up_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let refs = vec![format!("*a{}", level - 1); 9].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert_eq!(problems(&bomb).len(), 1);
        assert_eq!(problems(&"[".repeat(100_000)).len(), 1);
    }
}
