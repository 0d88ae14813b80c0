//! Attacks from inside a user namespace, with all capabilities it has (threats N1, N2, C9, A3).

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use crate::rig::{Scratch, ready, set, spec, with_mount, with_script};
use crate::user_namespaces::{UIDS, mapped};

/// The container with every capability: of its user namespace only.
fn almighty() -> serde_json::Value {
    let all: Vec<&str> = caps_names();
    let sets = json!({"bounding": all, "permitted": all, "effective": all});
    mapped(&set(&spec(), "/process/capabilities", sets), None)
}

fn caps_names() -> Vec<&'static str> {
    vec![
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_SYS_MODULE",
        "CAP_SYS_RAWIO",
        "CAP_SYS_CHROOT",
        "CAP_SYS_PTRACE",
        "CAP_SYS_ADMIN",
        "CAP_SYS_BOOT",
        "CAP_SYS_NICE",
        "CAP_SYS_RESOURCE",
        "CAP_SYS_TIME",
        "CAP_MKNOD",
        "CAP_SYSLOG",
        "CAP_BPF",
        "CAP_PERFMON",
        "CAP_SETFCAP",
    ]
}

#[test]
fn n2_capabilities_of_the_user_namespace_have_no_hold_on_the_node() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-hostile");
    let mut spec = almighty();
    // Nothing is masked or read-only: what protects is the namespace.
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    for (attempt, denied) in [
        ("mknod /x c 1 1", true),
        ("mknod /dev/x b 8 0", true),
        (
            "date -s 2001-01-01 >/dev/null; test $(date +%Y) = 2001",
            true,
        ),
        ("echo c > /proc/sysrq-trigger", true),
        ("echo x > /proc/sys/kernel/core_pattern", true),
        ("echo 1 > /proc/sys/vm/drop_caches", true),
        ("cat /proc/kcore > /dev/null", true),
        ("nice -n -5 true 2>&1 | grep -q . && false", true),
        ("echo -1000 > /proc/self/oom_score_adj", true),
        ("mount -t ext4 /dev/vda /tmp", true),
        ("mount -t ramfs none /tmp", false),
        ("hostname changed", false),
        ("ip link set lo up", false),
        ("chown 5 /etc/passwd", false),
        ("chown 70000 /etc/passwd", true),
        ("chroot / true", false),
    ] {
        let script = format!("({attempt}) 2>/dev/null && echo done || echo denied");
        let shown = scratch.run(&with_script(&spec, &script)).stdout;
        let wanted = if denied { "denied\n" } else { "done\n" };
        assert_eq!(shown, wanted, "{attempt}");
    }
    let before = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_ne!(before.trim(), "changed");
}

#[test]
fn n2_what_belongs_to_the_nodes_root_cannot_be_changed_through_a_volume() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-canary");
    let canary = scratch.volume().join("canary");
    std::fs::write(&canary, "safe").unwrap();
    std::fs::set_permissions(&canary, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(scratch.volume(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let setuid = scratch.volume().join("busybox");
    std::fs::copy("/bin/busybox", &setuid).unwrap();
    std::fs::set_permissions(&setuid, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let plain = json!({"destination": "/vol", "source": scratch.volume(), "type": "bind", "options": ["rbind"]});
    let script = "for c in 'cat /vol/canary' 'echo x > /vol/canary' 'chown 0 /vol/canary' 'chmod 666 /vol/canary' \
            'ln /vol/canary /vol/other'; do sh -c \"$c\" 2>/dev/null && echo \"$c\"; done; \
        /vol/busybox id -u; cp /bin/busybox /vol/own; chmod 4755 /vol/own; true";
    let output = scratch.run(&with_script(&with_mount(&almighty(), plain), script));
    // Its owner isn't mapped, so the set-uid bit of the node's root is without effect.
    assert_eq!(output.stdout, "0\n", "{output:?}");
    let stat = std::fs::metadata(&canary).unwrap();
    assert_eq!((stat.uid(), stat.mode() & 0o777), (0, 0o600));
    assert_eq!(std::fs::read(&canary).unwrap(), b"safe");
    // What the container made set-uid is its own user's on the node, not root's.
    if let Ok(own) = std::fs::metadata(scratch.volume().join("own")) {
        assert_eq!(own.uid(), UIDS);
    }
}

#[test]
fn c9_nodes_of_layers_and_volumes_cannot_be_opened() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-nodes");
    for folder in [scratch.image(), scratch.volume()] {
        let path = folder.join("mem");
        let kind = rustix::fs::FileType::CharacterDevice;
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            kind,
            mode,
            rustix::fs::makedev(1, 1),
        )
        .unwrap();
    }
    let volume = json!({"destination": "/vol", "source": scratch.volume(), "type": "bind", "options": ["rbind"]});
    let script = "for f in /mem /vol/mem; do head -c 1 $f 2>/dev/null && echo $f; done; echo over";
    let output = scratch.run(&with_script(&with_mount(&almighty(), volume), script));
    // The device rules of its cgroup deny them anyway; here there are none, and /mem is the
    // image root's inside: reading /dev/mem asks for CAP_SYS_RAWIO on the node.
    assert_eq!(output.stdout, "over\n", "{output:?}");
}

#[test]
fn n1_a_container_cannot_leave_its_ids() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-maps");
    let script = "for w in '0 0 1' '0 0 4294967295'; do (echo \"$w\" > /proc/self/uid_map) 2>/dev/null && echo \"$w\"; done; \
        id -u; readlink /proc/1/root >/dev/null && echo own";
    let output = scratch.run(&with_script(&almighty(), script));
    assert_eq!(output.stdout, "0\nown\n", "{output:?}");
    // A pod's root that is told to map the node's root is the request's fault, found by the kernel at the
    // latest: without its ids nothing runs.
    for maps in [
        json!([{"containerID": 0, "hostID": UIDS, "size": 0}]),
        json!([{"containerID": 0, "hostID": UIDS, "size": 10}, {"containerID": 5, "hostID": 7, "size": 10}]),
        json!([{"containerID": 1, "hostID": UIDS, "size": 10}]),
        json!([]),
    ] {
        let spec = set(&almighty(), "/linux/uidMappings", maps.clone());
        assert!(scratch.try_run(&spec).is_err(), "{maps}");
    }
    let stray = set(
        &spec(),
        "/linux/uidMappings",
        json!([{"containerID": 0, "hostID": UIDS, "size": 1}]),
    );
    let error = scratch.try_run(&stray).unwrap_err().to_string();
    assert!(error.contains("linux.gidMappings"), "{error}");
}

#[test]
fn file_capabilities_of_the_image_work_inside() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-filecaps");
    std::fs::create_dir(scratch.image().join("capable")).unwrap();
    let program = scratch.image().join("capable/busybox");
    std::fs::copy("/bin/busybox", &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    // struct vfs_cap_data, version 2: effective, permitted CAP_NET_BIND_SERVICE (linux/capability.h).
    let value = [
        0x0200_0001_u32.to_le_bytes(),
        (1_u32 << 10).to_le_bytes(),
        [0; 4],
        [0; 4],
        [0; 4],
    ]
    .concat();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&program, c"security.capability", &value, flags).unwrap();
    let user = set(&spec(), "/process/user/uid", json!(1000));
    for (spec, wanted) in [
        (user.clone(), "0000000000000400"),
        (mapped(&user, None), "0000000000000400"),
        (
            mapped(&set(&user, "/process/noNewPrivileges", json!(true)), None),
            "0000000000000000",
        ),
    ] {
        let spec = set(
            &spec,
            "/process/args",
            json!(["/capable/busybox", "grep", "CapEff", "/proc/self/status"]),
        );
        let output = scratch.run(&spec);
        assert_eq!(output.stdout, format!("CapEff:\t{wanted}\n"), "{output:?}");
    }
}
