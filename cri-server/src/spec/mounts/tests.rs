use super::*;

const TABLE: &str = "\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:5 / /shared rw shared:5 - tmpfs tmpfs rw
3 1 0:6 / /slave rw master:5 - tmpfs tmpfs rw
";

fn request(path: &str, source: &str) -> MountRequest {
    MountRequest {
        container_path: path.into(),
        host_path: source.into(),
        image: None,
        readonly: false,
        recursive_read_only: false,
        selinux_relabel: false,
        propagation: Propagation::Private,
        id_maps: None,
        options: Vec::new(),
        must_exist: false,
    }
}

struct Case {
    requests: Vec<MountRequest>,
    volumes: Vec<String>,
    privileged: bool,
    readonly_rootfs: bool,
    shm: Option<&'static str>,
    user: Option<IdMaps>,
    host_network: bool,
}

fn case(requests: Vec<MountRequest>) -> Case {
    Case {
        requests,
        volumes: Vec::new(),
        privileged: false,
        readonly_rootfs: false,
        shm: Some("/proc/7/fd/9"),
        user: None,
        host_network: false,
    }
}

fn maps(outside: u32) -> IdMaps {
    let range = bulkhead_runtime::idmap::IdRange {
        inside: 0,
        outside,
        length: 65_536,
    };
    IdMaps {
        uids: vec![range],
        gids: vec![range],
    }
}

fn planned(case: &Case) -> Result<MountPlan, Failure> {
    let sources: Vec<_> = case.requests.iter().map(|r| r.host_path.clone()).collect();
    plan(&MountInputs {
        requests: &case.requests,
        sources: &sources,
        table: &MountTable::parse(TABLE),
        paths: &PodPaths {
            shm: case.shm.map(PathBuf::from),
            ..PodPaths::default()
        },
        files: Files {
            hostname: Path::new("/p/hostname"),
            hosts: Path::new("/p/hosts"),
            resolv_conf: Path::new("/p/resolv.conf"),
        },
        volumes: &case.volumes,
        volumes_directory: Path::new("/c/volumes"),
        privileged: case.privileged,
        readonly_rootfs: case.readonly_rootfs,
        user: case.user.as_ref(),
        host_network: case.host_network,
    })
}

fn lines(plan: &MountPlan) -> Vec<String> {
    plan.mounts
        .iter()
        .map(|mount| {
            format!(
                "{} {} {} {}",
                mount.destination().display(),
                mount.typ().as_deref().unwrap(),
                mount.source().as_ref().unwrap().display(),
                mount.options().as_ref().unwrap().join(",")
            )
        })
        .collect()
}

fn at(plan: &MountPlan, path: &str) -> Vec<String> {
    let prefix = format!("{path} ");
    lines(plan)
        .into_iter()
        .filter(|line| line.starts_with(&prefix))
        .collect()
}

#[test]
fn a_plain_container_has_the_runtime_s_mounts_and_the_pod_s() {
    assert_eq!(
        lines(&planned(&case(Vec::new())).unwrap()),
        [
            "/proc proc proc nosuid,noexec,nodev",
            "/dev tmpfs tmpfs nosuid,strictatime,mode=755,size=65536k",
            "/sys sysfs sysfs nosuid,noexec,nodev,ro",
            "/dev/pts devpts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
            "/dev/mqueue mqueue mqueue nosuid,noexec,nodev",
            "/dev/shm bind /proc/7/fd/9 rbind,nosuid,noexec,nodev,rprivate,rw",
            "/etc/hostname bind /p/hostname rbind,nosuid,noexec,nodev,rprivate,rw",
            "/etc/hosts bind /p/hosts rbind,nosuid,noexec,nodev,rprivate,rw",
            "/etc/resolv.conf bind /p/resolv.conf rbind,nosuid,noexec,nodev,rprivate,rw",
            "/sys/fs/cgroup cgroup cgroup nosuid,noexec,nodev,relatime,ro",
        ]
    );
}

#[test]
fn privilege_opens_sys_and_a_read_only_root_closes_the_pod_s_files() {
    let plan = planned(&Case {
        privileged: true,
        readonly_rootfs: true,
        shm: None,
        ..case(Vec::new())
    })
    .unwrap();
    assert_eq!(
        at(&plan, "/sys"),
        ["/sys sysfs sysfs nosuid,noexec,nodev,rw"]
    );
    assert!(at(&plan, "/sys/fs/cgroup")[0].ends_with(",rw"));
    assert!(at(&plan, "/etc/hosts")[0].ends_with(",ro"));
    assert_eq!(
        at(&plan, "/dev/shm"),
        ["/dev/shm bind /dev/shm rbind,nosuid,noexec,nodev,rprivate,rw"]
    );
}

#[test]
fn a_mount_asked_for_replaces_the_runtime_s_at_its_place() {
    let plan = planned(&case(vec![
        request("/dev/shm", "/srv/shm"),
        request("/etc/hosts", "/srv/hosts"),
        request("/dev/termination-log", "/srv/log"),
    ]))
    .unwrap();
    for (path, source) in [
        ("/dev/shm", "/srv/shm"),
        ("/etc/hosts", "/srv/hosts"),
        ("/dev/termination-log", "/srv/log"),
    ] {
        assert_eq!(
            at(&plan, path),
            [format!("{path} bind {source} rbind,rprivate,rw")]
        );
    }
    let whole = planned(&case(vec![
        request("/dev", "/dev"),
        request("/sys", "/sys"),
    ]))
    .unwrap();
    let places: Vec<_> = lines(&whole)
        .iter()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        places,
        [
            "/proc",
            "/dev",
            "/sys",
            "/etc/hostname",
            "/etc/hosts",
            "/etc/resolv.conf"
        ]
    );
}

#[test]
fn mounts_come_by_depth_in_whatever_order_they_were_sent() {
    let mut parent = request("/cfg", "/srv/cfg");
    parent.readonly = true;
    let child = request("/cfg/a/custom", "/srv/custom");
    for requests in [vec![parent.clone(), child.clone()], vec![child, parent]] {
        let lines = lines(&planned(&case(requests)).unwrap());
        let place = |prefix: &str| lines.iter().position(|line| line.starts_with(prefix));
        assert!(place("/cfg bind /srv/cfg rbind,rprivate,ro") < place("/cfg/a/custom bind"));
    }
}

#[test]
fn propagation_and_read_only_become_options_where_the_source_allows() {
    use Propagation::{Bidirectional, HostToContainer, Private};
    for (source, propagation, readonly, recursive, expected, root) in [
        (
            "/x",
            Private,
            false,
            false,
            Some("rbind,rprivate,rw,noexec"),
            None,
        ),
        (
            "/x",
            Private,
            true,
            false,
            Some("rbind,rprivate,ro,noexec"),
            None,
        ),
        (
            "/x",
            Private,
            true,
            true,
            Some("rbind,rprivate,rro,noexec"),
            None,
        ),
        (
            "/shared/a",
            HostToContainer,
            true,
            false,
            Some("rbind,rslave,ro,noexec"),
            Some("rslave"),
        ),
        (
            "/slave",
            HostToContainer,
            false,
            false,
            Some("rbind,rslave,rw,noexec"),
            Some("rslave"),
        ),
        (
            "/shared",
            Bidirectional,
            false,
            false,
            Some("rbind,rshared,rw,noexec"),
            Some("rshared"),
        ),
        ("/x", HostToContainer, false, false, None, None),
        ("/slave/a", Bidirectional, false, false, None, None),
        ("/x", Bidirectional, false, false, None, None),
    ] {
        let mut asked = request("/m", source);
        asked.propagation = propagation;
        asked.readonly = readonly;
        asked.recursive_read_only = recursive;
        asked.options = vec!["noexec".into()];
        match (planned(&case(vec![asked])), expected) {
            (Ok(plan), Some(options)) => {
                assert_eq!(at(&plan, "/m"), [format!("/m bind {source} {options}")]);
                assert_eq!(plan.root_propagation.as_deref(), root);
            }
            (Err(failure), None) => assert!(failure.message().contains(source), "{failure}"),
            (found, _) => panic!("{source} {propagation:?}: {found:?}"),
        }
    }
}

#[test]
fn proc_is_the_container_s_own() {
    let failure = planned(&case(vec![request("/proc", "/proc")])).unwrap_err();
    assert!(failure.message().contains("/host/proc"), "{failure}");
    assert!(planned(&case(vec![request("/host/proc", "/proc")])).is_ok());
}

#[test]
fn an_image_s_volumes_are_mounts_of_the_container_unless_asked_for_otherwise() {
    let plan = planned(&Case {
        volumes: ["/data", "cache", "/taken", "/dev/shm"]
            .map(str::to_owned)
            .to_vec(),
        ..case(vec![request("/taken", "/srv")])
    })
    .unwrap();
    assert_eq!(
        at(&plan, "/data"),
        ["/data bind /c/volumes/0 rbind,rprivate,rw"]
    );
    assert_eq!(
        at(&plan, "/cache"),
        ["/cache bind /c/volumes/1 rbind,rprivate,rw"]
    );
    assert_eq!(at(&plan, "/taken"), ["/taken bind /srv rbind,rprivate,rw"]);
    assert_eq!(plan.volumes.len(), 2);
    for bad in ["/../../canary", "", "/", "/a\0"] {
        let found = planned(&Case {
            volumes: vec![bad.to_owned()],
            ..case(Vec::new())
        });
        assert!(found.is_err(), "{bad:?}");
    }
}

#[test]
fn in_a_user_namespace_the_pods_files_and_volumes_are_id_mapped_and_requests_as_they_say() {
    let mut asked = case(vec![
        request("/plain", "/srv/a"),
        request("/mapped", "/srv/b"),
    ]);
    asked.requests[1].id_maps = Some(maps(7));
    asked.volumes = vec!["/vol".to_owned()];
    for user in [None, Some(maps(100_000))] {
        asked.user = user.clone();
        let plan = planned(&asked).unwrap();
        let of = |path: &str| {
            let mount = plan
                .mounts
                .iter()
                .find(|m| m.destination() == Path::new(path));
            let uids = mount.unwrap().uid_mappings().clone();
            let gids = mount.unwrap().gid_mappings().clone();
            assert_eq!(uids, gids, "{path}");
            uids.map(|uids| uids[0].host_id())
        };
        let own = user.map(|_| 100_000);
        for (path, outside) in [
            ("/etc/hosts", own),
            ("/etc/hostname", own),
            ("/etc/resolv.conf", own),
            ("/vol", own),
            ("/plain", None),
            ("/mapped", Some(7)),
            ("/dev/shm", None),
            ("/proc", None),
        ] {
            assert_eq!(of(path), outside, "{path}");
        }
    }
}

#[test]
fn on_the_nodes_network_a_user_namespace_has_the_nodes_sys_read_only() {
    for (user, host_network, expected) in [
        (None, true, "/sys sysfs sysfs nosuid,noexec,nodev,ro"),
        (
            Some(maps(9)),
            false,
            "/sys sysfs sysfs nosuid,noexec,nodev,ro",
        ),
        (
            Some(maps(9)),
            true,
            "/sys bind /sys rbind,nosuid,noexec,nodev,rprivate,rro",
        ),
    ] {
        let mut asked = case(Vec::new());
        asked.user = user;
        asked.host_network = host_network;
        let plan = planned(&asked).unwrap();
        assert!(
            lines(&plan).contains(&expected.to_owned()),
            "{:?}",
            lines(&plan)
        );
    }
}
