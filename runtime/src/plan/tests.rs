use super::*;

/// A node without security modules, with a new kernel.
pub(crate) fn features() -> Features {
    Features {
        kernel: (6, 18),
        overlay_descriptors: true,
        overlay_append: true,
        clone_detached: true,
        user_namespaces: true,
        apparmor: false,
        selinux: false,
        seccomp: true,
        sys_resource: true,
        last_capability: 40,
        held_capabilities: u64::MAX,
        cgroup_mounts: Vec::new(),
    }
}

/// A small spec with these sections replaced.
pub(crate) fn spec(sections: serde_json::Value) -> Spec {
    let mut whole = serde_json::json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"], "env": ["PATH=/bin::/usr/bin"]},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}
    });
    whole
        .as_object_mut()
        .unwrap()
        .extend(sections.as_object().unwrap().clone());
    serde_json::from_value(whole).unwrap()
}

#[test]
fn container_paths_become_relative_and_plain() {
    for (path, wanted) in [
        ("/", "."),
        ("/a", "a"),
        ("//a//b/", "a/b"),
        ("/./a/./b", "a/b"),
    ] {
        assert_eq!(relative(Path::new(path)).unwrap().to_str().unwrap(), wanted);
    }
    for path in ["/a/..", "/..", "/a/../b"] {
        assert!(relative(Path::new(path)).is_err(), "{path}");
    }
}

#[test]
fn a_program_is_looked_for_where_execvp_would() {
    for (program, env, wanted) in [
        ("x", &["PATH=/bin:/sbin"][..], &["/bin/x", "/sbin/x"][..]),
        ("x", &["PATH=/bin::rel"], &["/bin/x", "./x", "rel/x"]),
        ("x", &["PATH=/one", "PATH=/two"], &["/two/x"]),
        ("x", &["HOME=/"], &[]),
        ("/bin/x", &["PATH=/sbin"], &["/bin/x"]),
        ("./x", &[], &["./x"]),
    ] {
        let json = serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": [program], "env": env});
        let process: Process = serde_json::from_value(json).unwrap();
        let plan = command::plan(&process).unwrap();
        let found: Vec<_> = plan
            .candidates
            .iter()
            .map(|path| path.to_str().unwrap())
            .collect();
        assert_eq!(found, wanted, "{program} {env:?}");
    }
}

#[test]
fn namespaces_are_new_joined_or_the_nodes() {
    let json = serde_json::json!({"linux": {"namespaces": [
        {"type": "mount"}, {"type": "cgroup"}, {"type": "network", "path": "/proc/1/fd/3"}, {"type": "uts"}]}});
    let plan = container(&spec(json), &features()).unwrap();
    use linux_raw_sys::general as raw;
    assert_eq!(plan.namespaces.new, raw::CLONE_NEWNS | raw::CLONE_NEWUTS);
    assert!(plan.namespaces.new_cgroup);
    assert_eq!(
        plan.namespaces.join,
        [(raw::CLONE_NEWNET, "/proc/1/fd/3".into())]
    );
}

#[test]
fn a_host_name_is_set_only_in_a_namespace_of_the_containers_own() {
    for (uts, wanted) in [
        (serde_json::json!({"type": "uts"}), Some(b"h".to_vec())),
        (
            serde_json::json!({"type": "uts", "path": "/proc/1/fd/3"}),
            None,
        ),
    ] {
        let json =
            serde_json::json!({"hostname": "h", "linux": {"namespaces": [{"type": "mount"}, uts]}});
        assert_eq!(
            container(&spec(json), &features()).unwrap().hostname,
            wanted
        );
    }
}

#[test]
fn devices_of_the_spec_replace_default_ones_and_the_nodes_dev_is_left_alone() {
    let own = serde_json::json!({
        "mounts": [{"destination": "/dev", "type": "tmpfs"}],
        "linux": {"namespaces": [{"type": "mount"}], "devices": [
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 384, "uid": 5},
            {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200}]}});
    let plan = container(&spec(own), &features()).unwrap().nodes;
    let names: Vec<_> = plan
        .devices
        .iter()
        .map(|node| node.name.to_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["zero", "full", "random", "urandom", "tty", "null", "tun"]
    );
    let tun = plan.devices.last().unwrap();
    assert_eq!((tun.directory.as_c_str(), tun.mode), (c"dev/net", 0o666));
    assert_eq!(plan.links.len(), 6);
    let borrowed =
        serde_json::json!({"mounts": [{"destination": "/dev", "type": "bind", "source": "/dev"}]});
    let plan = container(&spec(borrowed), &features()).unwrap().nodes;
    assert!(plan.devices.is_empty() && plan.links.is_empty());
}

#[test]
fn what_the_node_lacks_is_refused_by_name() {
    let json = serde_json::json!({"linux": {"namespaces": [{"type": "mount"}], "mountLabel": "x"}});
    let error = container(&spec(json), &features()).unwrap_err().to_string();
    assert!(
        error.contains("mountLabel") && error.contains("SELinux"),
        "{error}"
    );
}
