use crate::spec::parse;

/// A small valid spec with one value replaced.
fn with(pointer: &str, value: serde_json::Value) -> serde_json::Value {
    let mut spec = serde_json::json!({
        "ociVersion": "1.2.0",
        "hostname": "h",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "args": ["/bin/true"],
            "env": ["A=1"],
            "rlimits": []
        },
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "namespaces": [
                {"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network"}
            ],
            "sysctl": {},
            "maskedPaths": [],
            "devices": []
        }
    });
    if !pointer.is_empty() {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = spec.pointer_mut(parent).unwrap();
        match parent {
            serde_json::Value::Array(list) => list.push(value),
            other => {
                other.as_object_mut().unwrap().insert(key.to_owned(), value);
            }
        }
    }
    spec
}

#[test]
fn a_plain_spec_is_taken() {
    parse(&with("", serde_json::Value::Null).to_string()).unwrap();
}

#[test]
fn each_of_these_is_refused_by_name() {
    use serde_json::json;
    let long = format!("A={}", "x".repeat(131_070));
    for (pointer, value, named) in [
        ("/process/args", json!([]), "no command specified"),
        ("/process/args", json!([""]), "no command specified"),
        ("/process/args", json!(["a", "b\0c"]), "process.args[1]"),
        ("/process/env", json!(["BARE"]), "BARE"),
        ("/process/env", json!(["=odd"]), "assignment"),
        ("/process/env", json!([long]), "argument list too long"),
        ("/process/cwd", json!("tmp"), "process.cwd"),
        ("/process/cwd", json!("/a/../b"), "process.cwd"),
        (
            "/process/user",
            json!({"uid": 4294967295_u32, "gid": 0}),
            "process.user",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]),
            "rlimits",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_RT", "priority": 1}),
            "ioPriority",
        ),
        ("/process/terminal", json!(true), "devpts"),
        ("/hooks", json!({"poststop": [{"path": "/x"}]}), "hooks"),
        ("/hostname", json!("x".repeat(65)), "hostname"),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 1, "size": 1}]),
            "linux.gidMappings",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "pid"}]),
            "mount namespace",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount", "path": "/x"}]),
            "mount namespace",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "user"}]),
            "come with a user namespace",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "time"}]),
            "time",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "mount"}]),
            "twice",
        ),
        (
            "/linux/sysctl",
            json!({"kernel.core_pattern": "x"}),
            "core_pattern",
        ),
        (
            "/linux/sysctl",
            json!({"net.ipv4.ip_forward": "1\n2"}),
            "one line",
        ),
        ("/linux/maskedPaths", json!(["proc/kcore"]), "maskedPaths"),
        ("/linux/maskedPaths", json!(["/a/../.."]), "maskedPaths"),
        (
            "/mounts",
            json!([{"destination": "/", "type": "tmpfs"}]),
            "root",
        ),
        (
            "/mounts",
            json!([{"destination": "/./", "type": "tmpfs"}]),
            "root",
        ),
        (
            "/mounts",
            json!([{"destination": "//", "type": "tmpfs"}]),
            "root",
        ),
        (
            "/mounts",
            json!([{"destination": "/a/../proc", "type": "tmpfs"}]),
            "..",
        ),
        (
            "/mounts",
            json!([{"destination": "a", "type": "tmpfs"}]),
            "absolute",
        ),
        (
            "/mounts",
            json!([{"destination": "/a\0b", "type": "tmpfs"}]),
            "path",
        ),
        (
            "/mounts",
            json!([{"destination": "/a", "type": "tmpfs",
                "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}]),
            "mounts: /a.gidMappings",
        ),
    ] {
        let error = parse(&with(pointer, value).to_string())
            .expect_err(named)
            .to_string();
        assert!(error.contains(named), "{pointer}: {error}");
    }
}

#[test]
fn names_of_the_node_are_not_changed() {
    let mut spec = with("", serde_json::Value::Null);
    spec["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}]);
    let error = parse(&spec.to_string()).unwrap_err().to_string();
    assert!(error.contains("hostname"), "{error}");
    spec["hostname"] = serde_json::json!("");
    spec["linux"]["sysctl"] = serde_json::json!({"net.core.somaxconn": "128"});
    let error = parse(&spec.to_string()).unwrap_err().to_string();
    assert!(error.contains("somaxconn"), "{error}");
    spec["linux"]["sysctl"] = serde_json::json!({"kernel.shmmax": "128"});
    let error = parse(&spec.to_string()).unwrap_err().to_string();
    assert!(error.contains("shmmax"), "{error}");
}
