//! Whole specs of whole requests. Sets come in any order, so they are sorted before they are compared.

use bulkhead_proto::runtime::v1;
use bulkhead_runtime::plan::cgroup::{Controller, Place};
use serde_json::{Value, json};

use super::*;
use crate::config::{CapabilitySet, SeccompWhenUnset};
use crate::request;
use crate::security::seccomp;

#[derive(Debug)]
struct V2;

impl Placement for V2 {
    fn place(&self, _: Controller) -> Place {
        Place::V2
    }

    fn is_unified(&self) -> bool {
        true
    }
}

struct Case {
    sandbox: v1::PodSandboxConfig,
    container: v1::ContainerConfig,
    image: Value,
    identity: Identity,
    seccomp_file: Option<Vec<u8>>,
    devices: Vec<HostDevice>,
    node_devices: Vec<HostDevice>,
}

fn case() -> Case {
    Case {
        sandbox: v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                namespace: "shop".into(),
                uid: "u1".into(),
                attempt: 0,
            }),
            hostname: "web".into(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(own_pid()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        },
        container: v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "main".into(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: "sha256:abc".into(),
                ..Default::default()
            }),
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(own_pid()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        },
        image: json!({"Entrypoint": ["/app"], "Cmd": ["serve"]}),
        identity: Identity {
            uid: 0,
            gid: 0,
            groups: vec![0],
            home: Some("/root".into()),
            username: Some("root".into()),
        },
        seccomp_file: None,
        devices: Vec::new(),
        node_devices: Vec::new(),
    }
}

fn own_pid() -> v1::NamespaceOption {
    v1::NamespaceOption {
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    }
}

impl Case {
    fn context(&mut self) -> &mut v1::LinuxContainerSecurityContext {
        self.container
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default()
    }

    fn sandbox_context(&mut self) -> &mut v1::LinuxSandboxSecurityContext {
        self.sandbox
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default()
    }

    fn build(&self) -> Result<ContainerSpec, Failure> {
        let sandbox = request::sandbox::parse(&self.sandbox, "")?;
        let request = request::container::parse(&self.container, &sandbox)?;
        let image: ImageConfiguration = serde_json::from_value(json!({
            "architecture": "amd64", "os": "linux", "config": self.image,
            "rootfs": {"type": "layers", "diff_ids": []}, "history": [],
        }))
        .unwrap();
        let sources: Vec<_> = request.mounts.iter().map(|m| m.host_path.clone()).collect();
        let at = |name: &str| Some(PathBuf::from(format!("/proc/7/fd/{name}")));
        let paths = PodPaths {
            network: at("3"),
            ipc: at("4"),
            uts: at("5"),
            pid: None,
            user: at("8"),
            shm: at("6"),
            pause: None,
            created_cgroups: Vec::new(),
        };
        build(&ContainerInputs {
            id: "c1",
            request: &request,
            pod_id: "p1",
            sandbox: &sandbox,
            paths: &paths,
            files: Files {
                hostname: Path::new("/p/hostname"),
                hosts: Path::new("/p/hosts"),
                resolv_conf: Path::new("/p/resolv.conf"),
            },
            image: &image,
            image_name: "registry.example/a:1",
            identity: &self.identity,
            hostname: "web",
            cgroup: "/kubepods/p1/c1",
            sources: &sources,
            devices: &self.devices,
            node_devices: &self.node_devices,
            volumes_directory: Path::new("/c/volumes"),
            mount_table: &MountTable::parse("1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw"),
            seccomp_file: self.seccomp_file.as_deref(),
            node: &NodeFacts {
                kernel: (6, 18),
                apparmor: None,
                selinux: false,
                seccomp: true,
                last_capability: 40,
                held_capabilities: u64::MAX,
            },
            placement: &V2,
            settings: Settings {
                capabilities: CapabilitySet::Restricted,
                seccomp_when_unset: SeccompWhenUnset::Unconfined,
            },
            rlimits: Rlimits {
                nofile_soft: 1024,
                nofile_hard: 524_288,
            },
        })
    }

    /// The spec, with the sets sorted.
    fn spec(&self) -> Value {
        let mut value = serde_json::to_value(self.build().unwrap().spec).unwrap();
        if let Some(sets) = value.pointer_mut("/process/capabilities") {
            for set in sets.as_object_mut().unwrap().values_mut() {
                let list = set.as_array_mut().unwrap();
                list.sort_by_key(|name| name.as_str().unwrap().to_owned());
            }
        }
        value
    }
}

const NINE: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
];

#[test]
fn the_least_request_is_this_spec() {
    let expected = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/proc/7/fd/6",
             "options": ["rbind", "nosuid", "noexec", "nodev", "rprivate", "rw"]},
            {"destination": "/etc/hostname", "type": "bind", "source": "/p/hostname",
             "options": ["rbind", "nosuid", "noexec", "nodev", "rprivate", "rw"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/p/hosts",
             "options": ["rbind", "nosuid", "noexec", "nodev", "rprivate", "rw"]},
            {"destination": "/etc/resolv.conf", "type": "bind", "source": "/p/resolv.conf",
             "options": ["rbind", "nosuid", "noexec", "nodev", "rprivate", "rw"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0, "umask": 0o022, "additionalGids": [0]},
            "args": ["/app", "serve"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOSTNAME=web",
                "HOME=/root",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": NINE, "permitted": NINE, "effective": NINE,
                "inheritable": [], "ambient": [],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 524_288, "soft": 1024}],
            "noNewPrivileges": false,
            "oomScoreAdj": 0,
        },
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "p1",
            "io.kubernetes.cri.sandbox-name": "web",
            "io.kubernetes.cri.sandbox-namespace": "shop",
            "io.kubernetes.cri.sandbox-uid": "u1",
            "io.kubernetes.cri.container-name": "main",
            "io.kubernetes.cri.image-name": "registry.example/a:1",
        },
        "linux": {
            "cgroupsPath": "/kubepods/p1/c1",
            "namespaces": [
                {"type": "mount"},
                {"type": "network", "path": "/proc/7/fd/3"},
                {"type": "uts", "path": "/proc/7/fd/5"},
                {"type": "ipc", "path": "/proc/7/fd/4"},
                {"type": "pid"},
                {"type": "cgroup"},
            ],
            "resources": {"devices": [
                {"allow": false, "type": "a", "access": "rwm"},
                {"allow": true, "type": "c", "access": "m"},
                {"allow": true, "type": "b", "access": "m"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 8, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 9, "access": "rwm"},
                {"allow": true, "type": "c", "major": 5, "minor": 0, "access": "rwm"},
                {"allow": true, "type": "c", "major": 5, "minor": 1, "access": "rwm"},
                {"allow": true, "type": "c", "major": 5, "minor": 2, "access": "rwm"},
                {"allow": true, "type": "c", "major": 136, "access": "rwm"},
            ]},
        },
    });
    assert_eq!(case().spec(), expected);
}

/// As the kubelet sends a restricted pod.
fn restricted() -> Case {
    let mut case = case();
    case.identity = Identity {
        uid: 1000,
        gid: 78,
        groups: vec![78, 3456],
        home: None,
        username: None,
    };
    let context = case.context();
    context.run_as_user = Some(v1::Int64Value { value: 1000 });
    context.run_as_group = Some(v1::Int64Value { value: 78 });
    context.no_new_privs = true;
    context.readonly_rootfs = true;
    context.capabilities = Some(v1::Capability {
        drop_capabilities: vec!["ALL".into()],
        add_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..Default::default()
    });
    context.seccomp = Some(v1::SecurityProfile::default());
    context.masked_paths = vec!["/proc/kcore".into(), "/proc/keys".into()];
    context.readonly_paths = vec!["/proc/sys".into()];
    case.container.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        oom_score_adj: 998,
        hugepage_limits: vec![v1::HugepageLimit {
            page_size: "2MB".into(),
            limit: 0,
        }],
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    });
    case.container.envs = vec![v1::KeyValue {
        key: "A".into(),
        value: b"2".to_vec(),
    }];
    case.container.tty = true;
    case.image = json!({
        "Entrypoint": ["/app"], "Env": ["PATH=/bin", "BARE", "=odd", "A=1", "B=x=y"],
        "WorkingDir": "srv/./app", "Volumes": {"/data": {}},
    });
    case
}

#[test]
fn a_restricted_pod_s_container_is_this_spec() {
    let case = restricted();
    let spec = case.spec();
    assert_eq!(
        spec["process"],
        json!({
            "terminal": true,
            "user": {"uid": 1000, "gid": 78, "umask": 0o022, "additionalGids": [78, 3456]},
            "args": ["/app"],
            "env": ["PATH=/bin", "A=2", "B=x=y", "HOSTNAME=web", "TERM=xterm", "HOME=/"],
            "cwd": "/srv/app",
            "capabilities": {
                "bounding": ["CAP_NET_BIND_SERVICE"], "permitted": ["CAP_NET_BIND_SERVICE"],
                "effective": ["CAP_NET_BIND_SERVICE"], "inheritable": [], "ambient": [],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 524_288, "soft": 1024}],
            "noNewPrivileges": true,
            "oomScoreAdj": 998,
        })
    );
    assert_eq!(spec["root"]["readonly"], json!(true));
    assert_eq!(
        spec["linux"]["maskedPaths"],
        json!(["/proc/kcore", "/proc/keys"])
    );
    assert_eq!(spec["linux"]["readonlyPaths"], json!(["/proc/sys"]));
    let resources = &spec["linux"]["resources"];
    assert_eq!(
        resources["memory"],
        json!({"limit": 64 << 20, "swap": 64 << 20})
    );
    assert_eq!(
        resources["cpu"],
        json!({"shares": 512, "quota": 50_000, "period": 100_000})
    );
    assert_eq!(
        resources["hugepageLimits"],
        json!([{"pageSize": "2MB", "limit": 0}])
    );
    assert_eq!(resources["unified"], json!({"memory.oom.group": "1"}));
    assert_eq!(
        spec["linux"]["seccomp"]["defaultAction"],
        json!("SCMP_ACT_ERRNO")
    );
    assert!(seccomp::of_spec(&spec.to_string()).unwrap().is_some());
    let built = case.build().unwrap();
    assert_eq!(built.volumes.len(), 1);
    assert_eq!(built.volumes[0].destination, Path::new("/data"));
}

#[test]
fn a_privileged_container_on_the_node_s_namespaces_is_this_spec() {
    let mut case = case();
    let node = v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: v1::NamespaceMode::Node.into(),
        ipc: v1::NamespaceMode::Node.into(),
        ..Default::default()
    };
    case.sandbox_context().privileged = true;
    case.sandbox_context().namespace_options = Some(node.clone());
    case.context().privileged = true;
    case.context().namespace_options = Some(node);
    case.context().masked_paths = vec!["/proc/kcore".into()];
    case.context().seccomp = Some(v1::SecurityProfile::default());
    case.node_devices = vec![HostDevice {
        path: "/dev/sda".into(),
        block: true,
        major: 8,
        minor: 0,
        mode: 0o660,
        uid: 0,
        gid: 6,
        permissions: "rwm".into(),
    }];
    let spec = case.spec();
    assert_eq!(
        spec["linux"],
        json!({
            "cgroupsPath": "/kubepods/p1/c1",
            "namespaces": [{"type": "mount"}],
            "devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0,
                         "fileMode": 0o660, "uid": 0, "gid": 6}],
            "resources": {"devices": [{"allow": true, "type": "a", "access": "rwm"}]},
        })
    );
    assert_eq!(
        spec["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        41
    );
    let sys = &spec["mounts"].as_array().unwrap()[2];
    assert_eq!(sys["options"], json!(["nosuid", "noexec", "nodev", "rw"]));
}

#[test]
fn a_shared_pid_namespace_that_is_not_there_is_an_error_not_another_namespace() {
    let mut case = case();
    case.sandbox_context().namespace_options = None;
    case.context().namespace_options = None;
    let failure = case.build().unwrap_err();
    assert!(failure.message().contains("pid namespace"), "{failure}");
}

#[test]
fn a_target_s_pid_namespace_is_a_new_one_until_the_monitor_joins_it() {
    let mut case = case();
    let options = case.context().namespace_options.get_or_insert_default();
    options.pid = v1::NamespaceMode::Target.into();
    options.target_id = "c0".into();
    assert_eq!(
        case.spec()["linux"]["namespaces"][4],
        json!({"type": "pid"})
    );
    assert_eq!(
        request::container::pid_target(&case.container).as_deref(),
        Some("c0")
    );
}

#[test]
fn seccomp_from_a_file_is_settled_for_the_container_s_capabilities() {
    let mut case = case();
    case.context().seccomp = Some(v1::SecurityProfile {
        profile_type: 2,
        localhost_ref: "/p.json".into(),
    });
    assert!(case.build().is_err(), "the file was not read");
    case.seccomp_file = Some(b"{".to_vec());
    assert!(
        case.build()
            .unwrap_err()
            .message()
            .starts_with("seccomp profile /p.json")
    );
    case.seccomp_file = Some(
        br#"{"defaultAction": "SCMP_ACT_ALLOW",
             "syscalls": [{"names": ["mkdir", "nothing"], "action": "SCMP_ACT_ERRNO"}]}"#
            .to_vec(),
    );
    let built = case.build().unwrap();
    assert_eq!(built.unknown_syscalls, ["nothing"]);
    assert!(built.spec.linux().as_ref().unwrap().seccomp().is_some());
}

#[test]
fn who_decides_the_command() {
    for (image, command, args, expected) in [
        (
            json!({"Entrypoint": ["/bin/echo"], "Cmd": ["a"]}),
            vec![],
            vec![],
            Some("/bin/echo a"),
        ),
        (
            json!({"Entrypoint": ["/bin/echo"], "Cmd": ["a"]}),
            vec![],
            vec!["x"],
            Some("/bin/echo x"),
        ),
        (
            json!({"Entrypoint": ["/bin/echo"], "Cmd": ["a"]}),
            vec!["/k"],
            vec![],
            Some("/k"),
        ),
        (
            json!({"Entrypoint": ["/bin/echo"], "Cmd": ["a"]}),
            vec!["/k"],
            vec!["x"],
            Some("/k x"),
        ),
        (
            json!({"Entrypoint": [""], "Cmd": ["/bin/echo", "b"]}),
            vec![],
            vec![],
            Some("/bin/echo b"),
        ),
        (
            json!({"Entrypoint": [""], "Cmd": ["/bin/echo", "b"]}),
            vec![],
            vec!["x"],
            Some("x"),
        ),
        (json!({}), vec![], vec!["x"], Some("x")),
        (json!({}), vec!["/k"], vec![], Some("/k")),
        (json!({}), vec![], vec![], None),
    ] {
        let mut case = case();
        case.image = image.clone();
        case.container.command = command.iter().map(|w: &&str| (*w).to_owned()).collect();
        case.container.args = args.iter().map(|w: &&str| (*w).to_owned()).collect();
        let words = case.build().map(|built| {
            let process = built.spec.process().clone().unwrap();
            process.args().clone().unwrap().join(" ")
        });
        match (words, expected) {
            (Ok(words), Some(expected)) => assert_eq!(words, expected, "{image}"),
            (Err(failure), None) => {
                assert!(
                    failure.message().contains("no command specified"),
                    "{failure}"
                );
            }
            (words, _) => panic!("{image} {command:?} {args:?}: {words:?}"),
        }
    }
}

#[test]
fn an_exec_is_the_container_s_process_but_for_command_and_terminal() {
    let spec = restricted().spec();
    let text = spec.to_string();
    let mut without_terminal = spec["process"].clone();
    without_terminal["args"] = json!(["sh", "-c", "id"]);
    without_terminal["terminal"] = json!(false);
    let words = ["sh", "-c", "id"].map(str::to_owned).to_vec();
    let process = process::of_spec(&text)
        .unwrap()
        .exec(words.clone(), false)
        .unwrap();
    let mut found: Value = serde_json::from_str(process.get()).unwrap();
    for set in ["bounding", "permitted", "effective"] {
        let list = found["capabilities"][set].as_array_mut().unwrap();
        list.sort_by_key(|name| name.as_str().unwrap().to_owned());
    }
    assert_eq!(found, without_terminal);
    let plain = case().spec().to_string();
    let process = process::of_spec(&plain).unwrap().exec(words, true).unwrap();
    let found: Value = serde_json::from_str(process.get()).unwrap();
    assert_eq!(found["terminal"], json!(true));
    assert!(
        found["env"]
            .as_array()
            .unwrap()
            .contains(&json!("TERM=xterm"))
    );
}

#[test]
fn users_of_request_and_image_are_told_apart() {
    use bulkhead_runtime::users::{GroupsPolicy, UserChoice};
    let image: ImageConfiguration = serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux", "config": {"User": "app:app"},
        "rootfs": {"type": "layers", "diff_ids": []}, "history": [],
    }))
    .unwrap();
    let user = |edit: fn(&mut v1::LinuxContainerSecurityContext)| {
        let mut case = case();
        edit(case.context());
        let sandbox = request::sandbox::parse(&case.sandbox, "").unwrap();
        let request = request::container::parse(&case.container, &sandbox).unwrap();
        process::user_spec(&request, &image)
    };
    assert_eq!(user(|_| ()).user, UserChoice::Image("app:app".into()));
    let by_id = user(|c| {
        c.run_as_user = Some(v1::Int64Value { value: 7 });
        c.run_as_group = Some(v1::Int64Value { value: 8 });
        c.supplemental_groups = vec![9];
        c.supplemental_groups_policy = 1;
    });
    assert_eq!(by_id.user, UserChoice::Uid(7));
    assert_eq!((by_id.group, by_id.policy), (Some(8), GroupsPolicy::Strict));
    assert_eq!(by_id.supplemental, [9]);
    let by_name = user(|c| c.run_as_username = "web".into());
    assert_eq!(by_name.user, UserChoice::Name("web".into()));
}

/// Of the pod and the container, as the kubelet sends it for hostUsers: false.
fn isolate(case: &mut Case) {
    let ids = vec![v1::IdMapping {
        host_id: 131_072,
        container_id: 0,
        length: 65_536,
    }];
    let options = v1::UserNamespace {
        mode: v1::NamespaceMode::Pod.into(),
        uids: ids.clone(),
        gids: ids,
    };
    let sandbox = case.sandbox_context();
    sandbox
        .namespace_options
        .get_or_insert_default()
        .userns_options = Some(options.clone());
    let context = case.context();
    context
        .namespace_options
        .get_or_insert_default()
        .userns_options = Some(options);
}

#[test]
fn a_user_namespace_is_joined_first_with_its_maps_and_all_its_capabilities_can_be_given() {
    let mut case = case();
    case.sandbox_context().privileged = true;
    isolate(&mut case);
    case.context().privileged = true;
    let spec = case.spec();
    let maps = json!([{"containerID": 0, "hostID": 131_072, "size": 65_536}]);
    assert_eq!(spec["linux"]["uidMappings"], maps);
    assert_eq!(spec["linux"]["gidMappings"], maps);
    assert_eq!(
        spec["linux"]["namespaces"][1],
        json!({"type": "user", "path": "/proc/7/fd/8"})
    );
    assert_eq!(
        spec["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        41
    );
}

#[test]
fn containers_share_the_pods_user_namespace_and_its_ids() {
    type Edit = fn(&mut Case);
    let cases: [(Edit, Option<&str>); 7] = [
        (|_| {}, None),
        (
            |case| {
                let other = vec![v1::IdMapping {
                    host_id: 7,
                    container_id: 0,
                    length: 1,
                }];
                case.container.mounts = vec![v1::Mount {
                    container_path: "/data".into(),
                    image: Some(v1::ImageSpec {
                        image: "registry.example/data:1".into(),
                        ..Default::default()
                    }),
                    readonly: true,
                    uid_mappings: other.clone(),
                    gid_mappings: other,
                    ..Default::default()
                }];
            },
            Some("mounts[0].uidMappings: an image"),
        ),
        (
            |case| {
                let options = case.context().namespace_options.as_mut().unwrap();
                options.userns_options = None;
            },
            None,
        ),
        (
            |case| {
                let options = case.context().namespace_options.as_mut().unwrap();
                options.userns_options = Some(v1::UserNamespace {
                    mode: v1::NamespaceMode::Node.into(),
                    ..Default::default()
                });
            },
            Some("linux.security_context.namespace_options.userns_options: differs"),
        ),
        (
            |case| case.identity.uid = 65_536,
            Some("linux.security_context: user 65536 is outside"),
        ),
        (
            |case| case.identity.groups.push(70_000),
            Some("linux.security_context: group 70000 is outside"),
        ),
        (
            |case| {
                case.container.mounts = vec![v1::Mount {
                    container_path: "/data".into(),
                    host_path: "/srv".into(),
                    propagation: v1::MountPropagation::PropagationBidirectional.into(),
                    ..Default::default()
                }];
            },
            Some("mounts[0].propagation: "),
        ),
    ];
    for (edit, fault) in cases {
        let mut case = case();
        isolate(&mut case);
        edit(&mut case);
        let built = case.build();
        match fault {
            None => assert!(
                built
                    .unwrap()
                    .spec
                    .linux()
                    .as_ref()
                    .unwrap()
                    .uid_mappings()
                    .is_some()
            ),
            Some(fault) => {
                let failure = built.unwrap_err();
                assert!(failure.message().starts_with(fault), "{failure}");
            }
        }
    }
}
