//! What a container finds inside.

use serde_json::json;

use crate::rig::{Scratch, field, pipes, ready, set, spec, with_mount, with_script};

#[test]
fn the_first_process_is_what_the_spec_says() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("status");
    // Not by the shell, which changes what it does with signals.
    let status = scratch
        .run(&set(
            &spec(),
            "/process/args",
            json!(["cat", "/proc/self/status"]),
        ))
        .stdout;
    for (name, wanted) in [
        ("Uid", "0\t0\t0\t0"),
        ("Gid", "0\t0\t0\t0"),
        ("Groups", "0 10"),
        ("NoNewPrivs", "0"),
        ("Seccomp", "0"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "00000000000005fb"),
        ("CapEff", "00000000000005fb"),
        ("CapBnd", "00000000000005fb"),
        ("CapAmb", "0000000000000000"),
        ("SigBlk", "0000000000000000"),
        ("SigIgn", "0000000000000000"),
        ("Umask", "0022"),
    ] {
        assert_eq!(field(&status, name), wanted, "{name}");
    }
    let rest = scratch.shell(
        &spec(),
        "echo $$; hostname; pwd; env | sort; ls /proc/self/fd | wc -l; cat /proc/self/oom_score_adj; \
         grep 'open files' /proc/self/limits | sed 's/  */ /g'; cut -d' ' -f6 /proc/$$/stat",
    );
    // `ls` sees its own directory's descriptor besides 0 to 2.
    let lines: Vec<_> = rest.lines().collect();
    assert_eq!(
        lines,
        [
            "1",
            "inside",
            "/",
            "A=1",
            "PATH=/bin",
            "PWD=/",
            "SHLVL=1",
            "4",
            "500",
            "Max open files 1024 2048 files ",
            "1"
        ]
    );
}

#[test]
fn another_user_has_no_capabilities_but_ambient_ones() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user");
    let mut user = set(
        &spec(),
        "/process/user",
        json!({"uid": 1000, "gid": 1001, "additionalGids": [1001, 7], "umask": 63}),
    );
    let status = scratch.shell(&user, "cat /proc/self/status");
    for (name, wanted) in [
        ("Uid", "1000\t1000\t1000\t1000"),
        ("Gid", "1001\t1001\t1001\t1001"),
        ("Groups", "7 1001"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "00000000000005fb"),
        ("Umask", "0077"),
    ] {
        assert_eq!(field(&status, name), wanted, "{name}");
    }
    for sets in ["inheritable", "ambient"] {
        user["process"]["capabilities"][sets] = json!(["CAP_NET_BIND_SERVICE"]);
    }
    let status = scratch.shell(&user, "cat /proc/self/status");
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(&status, name), "0000000000000400", "{name}");
    }
    // The streams are the user's: they can be opened again.
    assert_eq!(scratch.shell(&user, "echo x > /dev/stdout"), "x\n");
}

#[test]
fn mounts_are_those_of_the_spec_with_their_options() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("mounts");
    let table = scratch.shell(&spec(), "cut -d' ' -f4- /proc/self/mountinfo");
    let options = |at: &str| {
        let line = table
            .lines()
            .find(|line| line.split(' ').nth(1) == Some(at));
        line.and_then(|line| line.split(' ').nth(2))
            .unwrap_or_else(|| panic!("no {at} in {table}"))
    };
    assert_eq!(options("/"), "rw,relatime");
    assert_eq!(options("/proc"), "rw,nosuid,nodev,noexec,relatime");
    assert_eq!(options("/dev"), "rw,nosuid");
    assert_eq!(options("/dev/pts"), "rw,nosuid,noexec,relatime");
    assert_eq!(options("/sys"), "ro,nosuid,nodev,noexec,relatime");
    assert_eq!(options("/sys/fs/cgroup"), "ro,nosuid,nodev,noexec,relatime");
    assert_eq!(options("/proc/sys"), "ro,nosuid,nodev,noexec,relatime");
    assert!(
        !table.contains("shared:") && !table.contains("master:"),
        "{table}"
    );
    assert!(!table.contains(" - ext4"), "nothing of the node: {table}");
    let shown = scratch.shell(
        &spec(),
        "ls -ln /dev | sed 's/  */ /g' | cut -d' ' -f1,3-6,9-",
    );
    for wanted in [
        "crw-rw-rw- 0 0 1, 3 ",
        "crw-rw-rw- 0 0 5, 0 ",
        "crw-rw-rw- 0 0 1, 9 ",
    ] {
        assert!(shown.contains(wanted), "{wanted} in {shown}");
    }
    let links = scratch.shell(
        &spec(),
        "for i in fd stdin stdout stderr core ptmx; do readlink /dev/$i; done",
    );
    assert_eq!(
        links,
        "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n/proc/kcore\npts/ptmx\n"
    );
}

#[test]
fn masked_and_read_only_paths_hold() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("masks");
    let mut spec = spec();
    spec["process"]["capabilities"] = serde_json::Value::Null;
    spec["process"]["user"]["uid"] = json!(0);
    std::fs::create_dir(scratch.image().join("data")).unwrap();
    std::fs::write(scratch.image().join("data/secret"), "s").unwrap();
    std::os::unix::fs::symlink("bin", scratch.image().join("sbin")).unwrap();
    let spec = set(
        &spec,
        "/linux/maskedPaths",
        json!([
            "/proc/kcore",
            "/proc/keys",
            "/sys/firmware",
            "/data",
            "/sbin/ls",
            "/no"
        ]),
    );
    let script = "cat /proc/kcore /proc/keys; cat /data/secret 2>&1; \
        touch /data/x 2>&1; cat /bin/ls; stat -c %t:%T /proc/keys; echo 1 > /proc/sys/net/ipv4/ip_forward; true";
    let output = scratch.run(&with_script(&spec, script));
    assert!(output.stdout.contains("No such file"), "{output:?}");
    assert!(
        output.stdout.contains("Read-only file system"),
        "{output:?}"
    );
    assert!(output.stdout.ends_with("1:3\n"), "{output:?}");
    assert!(
        output.stderr.contains("ip_forward: Read-only file system"),
        "{output:?}"
    );
}

#[test]
fn a_read_only_root_is_read_only_and_its_mounts_are_not() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("readonly");
    let spec = set(&spec(), "/root", json!({"path": "x", "readonly": true}));
    let spec = set(&spec, "/process/cwd", json!("/work/here"));
    let output = scratch.run(&with_script(&spec, "touch /x; touch /dev/shm/y && pwd"));
    assert!(
        output.stderr.contains("Read-only file system"),
        "{output:?}"
    );
    assert_eq!((output.status, output.stdout.as_str()), (0, "/work/here\n"));
}

#[test]
fn a_working_directory_is_made_below_the_root() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("cwd");
    let spec = set(&spec(), "/process/cwd", json!("/a/b"));
    assert_eq!(
        scratch.shell(&spec, "pwd; stat -c %u:%a ."),
        "/a/b\n0:755\n"
    );
    assert!(scratch.upper().join("a/b").is_dir());
}

#[test]
fn kernel_parameters_are_set_in_the_containers_own_namespaces() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("sysctl");
    let before = std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    let spec = set(
        &spec(),
        "/linux/sysctl",
        json!({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "7"}),
    );
    let script =
        "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start";
    assert_eq!(scratch.shell(&spec, script), "1\n7\n");
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap(),
        before
    );
    let spec = set(
        &spec,
        "/linux/sysctl",
        json!({"net.ipv4.no_such_thing": "1"}),
    );
    let error = scratch.try_run(&spec).unwrap_err().to_string();
    assert!(
        error.contains("/proc/sys/net/ipv4/no_such_thing"),
        "{error}"
    );
}

#[test]
fn volumes_inside_read_only_volumes_take_writes_in_either_order() {
    if !ready() {
        return;
    }
    for (name, order) in [("outer first", [0, 1, 2]), ("inner first", [2, 1, 0])] {
        let scratch = Scratch::new(&name.replace(' ', "-"));
        let outer = scratch.volume();
        for directory in ["volume2", "volume3"] {
            std::fs::create_dir(scratch.path.join(directory)).unwrap();
        }
        let mounts = [
            json!({"destination": "/cfg", "source": outer, "options": ["rbind", "ro"]}),
            json!({"destination": "/cfg/custom", "source": scratch.path.join("volume2"), "options": ["rbind"]}),
            json!({"destination": "/cfg/custom/deep", "source": scratch.path.join("volume3"), "options": ["rbind", "ro"]}),
        ];
        let spec = order.iter().fold(spec(), |spec, index| {
            with_mount(&spec, mounts[*index].clone())
        });
        let output = scratch.run(&with_script(
            &spec,
            "touch /cfg/custom/ok; touch /cfg/no; touch /cfg/custom/deep/no; true",
        ));
        assert_eq!(
            output.stderr.matches("Read-only file system").count(),
            2,
            "{name}: {output:?}"
        );
        assert!(scratch.path.join("volume2/ok").exists(), "{name}");
    }
}

#[test]
fn a_mount_behind_the_images_link_lands_where_the_link_leads() {
    if !ready() {
        return;
    }
    for (name, target) in [
        ("absolute", "/run"),
        ("relative", "../run"),
        ("up", "../../../../run"),
    ] {
        let scratch = Scratch::new(&format!("link-{name}"));
        std::fs::write(scratch.volume().join("token"), "t").unwrap();
        std::fs::create_dir(scratch.image().join("var")).unwrap();
        std::os::unix::fs::symlink(target, scratch.image().join("var/run")).unwrap();
        let spec = with_mount(
            &spec(),
            json!({"destination": "/var/run/secrets/t", "source": scratch.volume(), "options": ["rbind", "ro"]}),
        );
        let script = "cat /var/run/secrets/t/token /run/secrets/t/token; grep -c ' /run/secrets/t ' /proc/self/mountinfo";
        assert_eq!(scratch.shell(&spec, script), "tt1\n", "{name}");
        assert!(!std::path::Path::new("/run/secrets/t").exists());
    }
}

#[test]
fn a_file_is_mounted_over_a_file_and_a_file_of_procfs() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("files");
    let file = scratch.volume().join("f");
    std::fs::write(&file, "content").unwrap();
    let spec = ["/etc/hosts", "/new/file", "/proc/meminfo"]
        .iter()
        .fold(spec(), |spec, at| {
            with_mount(
                &spec,
                json!({"destination": at, "source": file, "options": ["rbind"]}),
            )
        });
    assert_eq!(
        scratch.shell(&spec, "cat /etc/hosts /new/file /proc/meminfo"),
        "contentcontentcontent"
    );
}

#[test]
fn an_overlay_of_many_layers_shows_the_topmost_file() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("layers");
    let mut lower = Vec::new();
    for number in 0..40 {
        let layer = scratch.path.join(format!("layer,:{number}"));
        std::fs::create_dir(&layer).unwrap();
        std::fs::write(layer.join("which"), number.to_string()).unwrap();
        std::fs::write(layer.join(format!("own{number}")), "").unwrap();
        lower.push(layer);
    }
    lower.push(scratch.image());
    let lower: &'static Vec<_> = Box::leak(Box::new(lower));
    for by_descriptor in [true, false] {
        let (stdio, pipes) = pipes();
        let mut features = crate::rig::features().clone();
        if !features.overlay_append {
            eprintln!("SKIPPED: 41 layers need lowerdir+ (Linux 6.7)");
            return;
        }
        features.overlay_descriptors = by_descriptor && features.overlay_descriptors;
        let features = Box::leak(Box::new(features));
        let launched = scratch
            .launch_with(
                &with_script(&spec(), "cat /which; ls -d /own* | wc -l"),
                stdio,
                |input| {
                    input.features = features;
                    if let bulkhead_runtime::launch::Rootfs::Overlay { lower: list, .. } =
                        &mut input.rootfs
                    {
                        *list = lower;
                    }
                },
            )
            .unwrap();
        assert_eq!(pipes.collect(&launched).stdout, "040\n");
    }
}

#[test]
fn nothing_of_a_container_shows_on_the_node_or_remains() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("leak");
    let (stdio, pipes) = pipes();
    let launched = scratch
        .launch(&with_script(&spec(), "sleep 100"), stdio)
        .unwrap();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains("bulkhead-launch"), "{table}");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", launched.pid)).unwrap();
    assert!(stat.contains(&launched.start_ticks.to_string()));
    crate::rig::kill(&launched);
    assert_eq!(pipes.collect_after_exit(), "");
}
