use super::*;
use crate::failure::Class;
use crate::request::sandbox;

fn sandbox() -> SandboxRequest {
    let config = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web".into(),
            ..Default::default()
        }),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    pid: v1::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    sandbox::parse(&config, "").unwrap()
}

fn config() -> v1::ContainerConfig {
    let mut config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: "main".into(),
            attempt: 1,
        }),
        image: Some(v1::ImageSpec {
            image: "sha256:abc".into(),
            user_specified_image: "registry.example/a:1".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    context(&mut config).namespace_options = Some(v1::NamespaceOption {
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    });
    config
}

fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
}

fn options(config: &mut v1::ContainerConfig) -> &mut v1::NamespaceOption {
    context(config).namespace_options.get_or_insert_default()
}

fn env(key: &str, value: &[u8]) -> v1::KeyValue {
    v1::KeyValue {
        key: key.into(),
        value: value.to_vec(),
    }
}

#[test]
fn the_least_request_has_every_default() {
    let parsed = parse(&config(), &sandbox()).unwrap();
    assert_eq!(parsed.key.attempt, 1);
    assert_eq!(parsed.image.reference, "sha256:abc");
    assert_eq!(parsed.working_dir, None);
    assert_eq!(parsed.log_path, None);
    assert_eq!(parsed.stop_signal, None);
    assert_eq!(parsed.resources, Resources::default());
    assert!(!parsed.security.privileged && parsed.security.masked_paths.is_empty());
}

#[test]
fn what_can_not_be_meant_is_refused_with_its_field() {
    type Edit = fn(&mut v1::ContainerConfig);
    let cases: &[(&str, Class, Edit)] = &[
        ("metadata", Class::Invalid, |c| c.metadata = None),
        ("metadata.name", Class::Invalid, |c| {
            c.metadata.as_mut().unwrap().name.clear()
        }),
        ("image", Class::Invalid, |c| c.image = None),
        ("image.image", Class::Invalid, |c| {
            c.image.as_mut().unwrap().image.clear()
        }),
        ("command[0]", Class::Invalid, |c| {
            c.command = vec!["a\0b".into()]
        }),
        ("args[1]", Class::Invalid, |c| {
            c.args = vec![String::new(), "x".repeat(131_072)]
        }),
        ("working_dir", Class::Invalid, |c| {
            c.working_dir = "relative".into()
        }),
        ("working_dir", Class::Invalid, |c| {
            c.working_dir = "/a/../b".into()
        }),
        ("envs[0].key", Class::Invalid, |c| {
            c.envs = vec![env("", b"x")]
        }),
        ("envs[0].key", Class::Invalid, |c| {
            c.envs = vec![env("A=B", b"x")]
        }),
        ("envs[0].key", Class::Invalid, |c| {
            c.envs = vec![env("A\0", b"x")]
        }),
        ("envs[0].value", Class::Invalid, |c| {
            c.envs = vec![env("A", b"x\0")]
        }),
        ("envs[0].value", Class::Invalid, |c| {
            c.envs = vec![env("A", b"\xff")]
        }),
        ("envs[0].value", Class::Invalid, |c| {
            c.envs = vec![env("A", &[b'x'; 131_070])]
        }),
        ("mounts[1].container_path", Class::Invalid, |c| {
            c.mounts = ["/a", "//a/"]
                .map(|path| v1::Mount {
                    container_path: path.into(),
                    host_path: "/srv".into(),
                    ..Default::default()
                })
                .to_vec();
        }),
        ("mounts[0].image.image", Class::Invalid, |c| {
            c.mounts = vec![v1::Mount {
                container_path: "/a".into(),
                readonly: true,
                image: Some(v1::ImageSpec::default()),
                ..Default::default()
            }];
        }),
        ("devices[0].host_path", Class::Invalid, |c| {
            c.devices = vec![v1::Device::default()];
        }),
        ("CDI_devices[0].name", Class::Invalid, |c| {
            c.cdi_devices = vec![v1::CdiDevice {
                name: "a.example/b".into(),
            }];
        }),
        ("annotations[\"cdi.k8s.io/x\"]", Class::Invalid, |c| {
            c.cdi_devices = vec![v1::CdiDevice {
                name: "a.example/b=c".into(),
            }];
            let names = "a.example/b=c,a.example/b=d".into();
            c.annotations.insert("cdi.k8s.io/x".into(), names);
        }),
        ("log_path", Class::Invalid, |c| {
            c.log_path = "../x.log".into()
        }),
        ("log_path", Class::Invalid, |c| c.log_path = "/x.log".into()),
        ("stop_signal", Class::Invalid, |c| c.stop_signal = 99),
        ("linux.resources.cpu_quota", Class::Invalid, |c| {
            c.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
                cpu_quota: -5,
                ..Default::default()
            });
        }),
        ("linux.security_context.privileged", Class::Invalid, |c| {
            context(c).privileged = true
        }),
        ("linux.security_context.run_as_group", Class::Invalid, |c| {
            context(c).run_as_group = Some(v1::Int64Value { value: 1 });
        }),
        (
            "linux.security_context.masked_paths[0]",
            Class::Invalid,
            |c| {
                context(c).masked_paths = vec!["proc/kcore".into()];
            },
        ),
        (
            "linux.security_context.readonly_paths[0]",
            Class::Invalid,
            |c| {
                context(c).readonly_paths = vec!["/proc/../etc".into()];
            },
        ),
        ("linux.security_context.seccomp", Class::Invalid, |c| {
            context(c).seccomp = Some(v1::SecurityProfile {
                profile_type: 2,
                localhost_ref: "p.json".into(),
            });
        }),
        (
            "linux.security_context.namespace_options.network",
            Class::Invalid,
            |c| {
                options(c).network = v1::NamespaceMode::Node.into();
            },
        ),
        (
            "linux.security_context.namespace_options.ipc",
            Class::Invalid,
            |c| {
                options(c).ipc = v1::NamespaceMode::Node.into();
            },
        ),
        (
            "linux.security_context.namespace_options.pid",
            Class::Invalid,
            |c| {
                options(c).pid = v1::NamespaceMode::Pod.into();
            },
        ),
        (
            "linux.security_context.namespace_options.userns_options.uids",
            Class::Invalid,
            |c| options(c).userns_options = Some(v1::UserNamespace::default()),
        ),
    ];
    for (field, class, edit) in cases {
        let mut given = config();
        edit(&mut given);
        let failure = parse(&given, &sandbox()).expect_err(field);
        assert!(
            failure.message().starts_with(&format!("{field}: ")),
            "{field}: {failure}"
        );
        assert_eq!(failure.class(), *class, "{failure}");
    }
}

#[test]
fn a_privileged_sandbox_allows_privileged_containers() {
    let mut given = config();
    context(&mut given).privileged = true;
    let allowed = SandboxRequest {
        privileged: true,
        ..sandbox()
    };
    assert!(parse(&given, &allowed).unwrap().security.privileged);
}

#[test]
fn the_last_value_of_a_variable_counts_and_empty_ones_are_kept() {
    let mut given = config();
    given.envs = vec![
        env("A", b"1"),
        env("E", b""),
        env("A", b"2=x"),
        env("B", b" "),
    ];
    let envs = parse(&given, &sandbox()).unwrap().envs;
    let pairs: Vec<_> = envs
        .iter()
        .map(|e| (e.name.as_str(), e.value.as_str()))
        .collect();
    assert_eq!(pairs, [("A", "2=x"), ("E", ""), ("B", " ")]);
    assert_eq!(format!("{:?}", envs[0]), "A=<3 bytes>");
}

#[test]
fn a_longest_variable_and_argument_still_fit() {
    let mut given = config();
    given.envs = vec![env("A", &[b'x'; 131_069])];
    given.args = vec!["x".repeat(131_071)];
    assert!(parse(&given, &sandbox()).is_ok());
}

#[test]
fn network_and_ipc_are_the_sandbox_s_and_absent_options_too() {
    let mut node = sandbox();
    node.namespaces.network = Sharing::Node;
    node.namespaces.ipc = Sharing::Node;
    let parsed = parse(&config(), &node).unwrap().security.namespaces;
    assert_eq!((parsed.network, parsed.ipc), (Sharing::Node, Sharing::Node));
    assert_eq!(parsed.pid, Pid::Container);
    let mut bare = config();
    bare.linux = None;
    let parsed = parse(&bare, &node).unwrap().security.namespaces;
    assert_eq!(parsed, node.namespaces);
}
