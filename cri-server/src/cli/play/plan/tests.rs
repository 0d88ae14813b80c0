//! Manifests in, CRI requests out: a row per rule.

use super::*;

const HEAD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels: {tier: back}\nspec:\n";
const ONE: &str = "  containers:\n  - name: a\n    image: example.com/a:1\n";

fn node() -> Node {
    Node {
        name: "node-1".to_owned(),
        memory_bytes: 4 << 30,
        resolv: v1::DnsConfig {
            servers: vec!["192.0.2.1".to_owned()],
            searches: vec!["example.com".to_owned()],
            options: vec!["ndots:1".to_owned()],
        },
    }
}

fn planned(spec: &str) -> Plan {
    let text = format!("{HEAD}{spec}");
    let manifest = Manifest::parse(&text).unwrap_or_else(|e| panic!("{text}\n{e:?}"));
    plan(&manifest, &node()).unwrap_or_else(|e| panic!("{text}\n{e:?}"))
}

fn sandbox(spec: &str) -> v1::PodSandboxConfig {
    planned(spec).sandbox("u-1", &Folder::of(Path::new("/r"), "u-1"))
}

/// The configuration of the last container.
fn config(spec: &str) -> v1::ContainerConfig {
    let plan = planned(spec);
    let folder = Folder::of(Path::new("/r"), "u-1");
    let facts = Facts {
        uid: "u-1",
        addresses: &["10.0.0.2".to_owned(), "fd00::2".to_owned()],
        node_name: "node-1",
        folder: &folder,
        recursive_read_only: true,
    };
    let image = v1::Image {
        id: "sha256:0a".to_owned(),
        uid: Some(v1::Int64Value { value: 77 }),
        ..Default::default()
    };
    let sandbox = plan.sandbox("u-1", &folder);
    plan.containers
        .last()
        .unwrap()
        .config(&sandbox, &facts, &image, 2)
}

fn security(spec: &str) -> v1::LinuxContainerSecurityContext {
    config(spec).linux.unwrap().security_context.unwrap()
}

fn resources(spec: &str) -> v1::LinuxContainerResources {
    config(spec).linux.unwrap().resources.unwrap()
}

#[test]
fn a_plain_pod_asks_for_the_restricted_defaults() {
    let sandbox = sandbox(ONE);
    let metadata = sandbox.metadata.unwrap();
    assert_eq!(
        (metadata.name.as_str(), metadata.namespace.as_str()),
        ("web", "default")
    );
    assert_eq!(metadata.uid, "u-1");
    assert_eq!(sandbox.hostname, "web");
    assert_eq!(sandbox.log_directory, "/r/play/u-1/logs");
    assert_eq!(sandbox.dns_config, None);
    assert_eq!(sandbox.labels["tier"], "back");
    assert_eq!(sandbox.labels[POD_NAME], "web");
    let linux = sandbox.linux.unwrap();
    let namespaces = linux.security_context.unwrap().namespace_options.unwrap();
    assert_eq!(namespaces.network(), v1::NamespaceMode::Pod);
    assert_eq!(namespaces.pid(), v1::NamespaceMode::Container);

    let config = config(ONE);
    assert_eq!(config.log_path, "a/2.log");
    assert_eq!(config.metadata.as_ref().unwrap().attempt, 2);
    assert_eq!(config.image.as_ref().unwrap().image, "sha256:0a");
    assert_eq!(
        config.image.as_ref().unwrap().user_specified_image,
        "example.com/a:1"
    );
    assert_eq!(config.labels[CONTAINER_NAME], "a");
    let security = config.linux.unwrap().security_context.unwrap();
    assert!(
        security
            .masked_paths
            .iter()
            .any(|path| path == "/proc/kcore")
    );
    assert!(
        security
            .readonly_paths
            .iter()
            .any(|path| path == "/proc/sys")
    );
    assert_eq!(security.seccomp, Some(v1::SecurityProfile::default()));
    assert_eq!((security.run_as_user, security.privileged), (None, false));
}

#[test]
fn namespaces_follow_the_pod() {
    use v1::NamespaceMode::{Container, Node, Pod};
    for (spec, wanted) in [
        ("", (Pod, Container, Pod)),
        ("  hostNetwork: true\n", (Node, Container, Pod)),
        ("  hostPID: true\n", (Pod, Node, Pod)),
        ("  hostIPC: true\n", (Pod, Container, Node)),
        ("  shareProcessNamespace: true\n", (Pod, Pod, Pod)),
    ] {
        let options = security(&format!("{spec}{ONE}")).namespace_options.unwrap();
        assert_eq!(
            (options.network(), options.pid(), options.ipc()),
            wanted,
            "{spec}"
        );
    }
    assert_eq!(
        sandbox(&format!("  hostNetwork: true\n{ONE}")).hostname,
        "node-1"
    );
}

#[test]
fn the_containers_security_context_goes_before_the_pods() {
    let pod =
        "  securityContext: {runAsUser: 1, runAsGroup: 2, fsGroup: 5, supplementalGroups: [3]}\n";
    let own = "    securityContext: {runAsUser: 9, allowPrivilegeEscalation: false, \
               readOnlyRootFilesystem: true, capabilities: {add: [NET_ADMIN], drop: [ALL]}}\n";
    let security = security(&format!("{pod}{ONE}{own}"));
    assert_eq!(security.run_as_user.unwrap().value, 9);
    assert_eq!(security.run_as_group.unwrap().value, 2);
    assert_eq!(security.supplemental_groups, [3, 5]);
    assert!(security.no_new_privs && security.readonly_rootfs);
    let capabilities = security.capabilities.unwrap();
    assert_eq!(capabilities.add_capabilities, ["NET_ADMIN"]);
    assert_eq!(capabilities.drop_capabilities, ["ALL"]);
}

#[test]
fn a_group_alone_takes_the_images_user() {
    let security = security(&format!("  securityContext: {{runAsGroup: 2}}\n{ONE}"));
    assert_eq!(security.run_as_user.unwrap().value, 77);
}

#[test]
fn a_privileged_container_makes_its_sandbox_privileged_and_hides_nothing() {
    let spec = format!("{ONE}    securityContext: {{privileged: true}}\n");
    assert!(
        sandbox(&spec)
            .linux
            .unwrap()
            .security_context
            .unwrap()
            .privileged
    );
    let security = security(&spec);
    assert!(security.privileged && security.masked_paths.is_empty());
    let seccomp = security.seccomp.unwrap();
    assert_eq!(
        seccomp.profile_type(),
        v1::security_profile::ProfileType::Unconfined
    );
}

#[test]
fn resources_are_what_the_kubelet_computes() {
    for (case, given, shares, quota, memory, oom) in [
        ("nothing: best effort", "", 2, 0, 0, 1000),
        (
            "limits alone are requests too: guaranteed",
            "{limits: {cpu: 500m, memory: 64Mi}}",
            512,
            50_000,
            64 << 20,
            -997,
        ),
        (
            "a request below the limit: burstable",
            "{limits: {cpu: 1, memory: 2Gi}, requests: {cpu: 250m, memory: 1Gi}}",
            256,
            100_000,
            2 << 30,
            750,
        ),
        ("cpu alone", "{requests: {cpu: 0.1}}", 102, 0, 0, 999),
    ] {
        let line = if given.is_empty() {
            String::new()
        } else {
            format!("    resources: {given}\n")
        };
        let got = resources(&format!("{ONE}{line}"));
        assert_eq!(got.cpu_period, 100_000, "{case}");
        assert_eq!((got.cpu_shares, got.cpu_quota), (shares, quota), "{case}");
        assert_eq!(got.memory_limit_in_bytes, memory, "{case}");
        assert_eq!(got.memory_swap_limit_in_bytes, memory, "{case}: no swap");
        assert_eq!(got.oom_score_adj, oom, "{case}");
    }
}

#[test]
fn environment_command_and_arguments_are_expanded() {
    let config = config(&format!(
        "{ONE}    command: [sh, -c, 'echo $(B) $(IP) $(NONE) $$(B)']\n    env:\n    \
         - {{name: A, value: one}}\n    - {{name: B, value: '<$(A)>'}}\n    \
         - {{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}\n    \
         - {{name: L, valueFrom: {{fieldRef: {{fieldPath: \"metadata.labels['tier']\"}}}}}}\n    \
         - {{name: U, valueFrom: {{fieldRef: {{fieldPath: metadata.uid}}}}}}\n    \
         - {{name: EMPTY}}\n"
    ));
    assert_eq!(config.command[2], "echo <one> 10.0.0.2 $(NONE) $(B)");
    let envs: Vec<_> = config
        .envs
        .iter()
        .map(|e| format!("{}={}", e.key, String::from_utf8_lossy(&e.value)))
        .collect();
    assert_eq!(
        envs,
        [
            "A=one",
            "B=<one>",
            "IP=10.0.0.2",
            "L=back",
            "U=u-1",
            "EMPTY="
        ]
    );
}

#[test]
fn volumes_become_mounts() {
    let config = config(&format!(
        "{ONE}    volumeMounts:\n    - {{name: scratch, mountPath: /s}}\n    \
         - {{name: host, mountPath: /h, readOnly: true, recursiveReadOnly: IfPossible}}\n    \
         - {{name: fast, mountPath: /f, subPath: a/b}}\n  volumes:\n  - name: scratch\n    emptyDir: {{}}\n  \
         - {{name: host, hostPath: {{path: /etc/ssl, type: Directory}}}}\n  \
         - {{name: fast, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}\n"
    ));
    let got: Vec<_> = config
        .mounts
        .iter()
        .map(|m| {
            (
                m.container_path.as_str(),
                m.host_path.as_str(),
                m.readonly,
                m.recursive_read_only,
            )
        })
        .collect();
    assert_eq!(
        got,
        [
            ("/s", "/r/play/u-1/volumes/scratch", false, false),
            ("/h", "/etc/ssl", true, true),
            ("/f", "/r/play/u-1/subpaths/a/2", false, false),
        ]
    );
}

#[test]
fn ports_and_dns_reach_the_sandbox() {
    let ports = "    ports: [{containerPort: 80, hostPort: 8080, protocol: UDP, hostIP: 127.0.0.1}, {containerPort: 81}]\n";
    let mapped = sandbox(&format!("{ONE}{ports}")).port_mappings;
    assert_eq!(mapped.len(), 1);
    assert_eq!((mapped[0].container_port, mapped[0].host_port), (80, 8080));
    assert_eq!(mapped[0].protocol(), v1::Protocol::Udp);
    for (case, spec, servers, options) in [
        (
            "beside the node's",
            "  dnsConfig: {nameservers: [192.0.2.9], options: [{name: ndots, value: '5'}]}\n",
            vec!["192.0.2.1", "192.0.2.9"],
            vec!["ndots:5"],
        ),
        (
            "instead of the node's",
            "  dnsPolicy: None\n  dnsConfig: {nameservers: [192.0.2.9]}\n",
            vec!["192.0.2.9"],
            vec![],
        ),
    ] {
        let dns = sandbox(&format!("{spec}{ONE}")).dns_config.unwrap();
        assert_eq!(dns.servers, servers, "{case}");
        assert_eq!(dns.options, options, "{case}");
    }
}

#[test]
fn restarts_follow_policy_and_role() {
    let init = "  initContainers:\n  - {name: i, image: x}\n  - {name: s, image: x, restartPolicy: Always}\n";
    for (policy, wanted) in [
        // (init after 1, init after 0, sidecar after 0, main after 0, main after 1)
        ("Always", (true, false, true, true, true)),
        ("OnFailure", (true, false, true, false, true)),
        ("Never", (false, false, true, false, false)),
    ] {
        let plan = planned(&format!("  restartPolicy: {policy}\n{init}{ONE}"));
        let again = |index: usize, code| plan.containers[index].restarts(plan.restart, code);
        let got = (
            again(0, 1),
            again(0, 0),
            again(1, 0),
            again(2, 0),
            again(2, 1),
        );
        assert_eq!(got, wanted, "{policy}");
        assert_eq!(
            plan.containers
                .iter()
                .filter(|c| c.role == Role::Main)
                .count(),
            1
        );
    }
}

#[test]
fn the_registry_is_asked_for_what_moves() {
    for (image, policy) in [
        ("x", PullPolicy::Always),
        ("localhost:5000/x", PullPolicy::Always),
        ("x:latest", PullPolicy::Always),
        ("x:1", PullPolicy::IfNotPresent),
        ("x@sha256:00", PullPolicy::IfNotPresent),
    ] {
        let plan = planned(&format!(
            "  containers:\n  - {{name: a, image: '{image}'}}\n"
        ));
        assert_eq!(plan.containers[0].pull, policy, "{image}");
    }
}

#[test]
fn contradictions_are_named_with_their_line() {
    for (case, spec, line, wanted) in [
        ("no container", "  containers: []\n", 7, "spec.containers is empty".to_owned()),
        (
            "two of one name",
            "  containers:\n  - {name: a, image: x}\n  - {name: a, image: x}\n",
            9,
            "spec.containers[1].name is a second \"a\"".to_owned(),
        ),
        (
            "a mount of no volume",
            "  containers:\n  - name: a\n    image: x\n    volumeMounts:\n    - name: v\n      mountPath: /v\n",
            11,
            "spec.containers[0].volumeMounts[0].name is \"v\": there is no such volume".to_owned(),
        ),
        (
            "a sub path that climbs out",
            "  containers:\n  - name: a\n    image: x\n    volumeMounts:\n    - name: v\n      mountPath: /v\n      subPath: ../x\n  volumes:\n  - name: v\n",
            13,
            "spec.containers[0].volumeMounts[0].subPath has to be relative and without ..".to_owned(),
        ),
        (
            "a quantity that is none",
            "  containers:\n  - name: a\n    image: x\n    resources:\n      limits:\n        memory: lots\n",
            12,
            "spec.containers[0].resources.limits.memory \"lots\" is no quantity: 100m, 0.5, 64Mi or 2G are".to_owned(),
        ),
        (
            "root against non-root",
            "  securityContext: {runAsNonRoot: true}\n  containers:\n  - name: a\n    image: x\n    securityContext:\n      runAsUser: 0\n",
            11,
            "spec.containers[0].securityContext.runAsNonRoot contradicts runAsUser: 0".to_owned(),
        ),
        (
            "a restart policy nobody knows",
            "  restartPolicy: Sometimes\n  containers:\n  - {name: a, image: x}\n",
            7,
            "spec.restartPolicy is \"Sometimes\": one of Always, OnFailure, Never is needed".to_owned(),
        ),
        (
            "a field play has no value for",
            "  containers:\n  - name: a\n    image: x\n    env:\n    - name: H\n      valueFrom: {fieldRef: {fieldPath: status.hostIP}}\n",
            12,
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath is \"status.hostIP\", which bulkhead play can't do".to_owned(),
        ),
    ] {
        let text = format!("{HEAD}{spec}");
        let manifest = Manifest::parse(&text).unwrap_or_else(|e| panic!("{case}: {e:?}"));
        let problems = plan(&manifest, &node()).err().unwrap_or_default();
        assert_eq!(problems, [Problem { line, text: wanted }], "{case}");
    }
}
