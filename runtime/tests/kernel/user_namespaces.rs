//! Containers and pods with a user namespace: root inside, nobody on the node.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bulkhead_runtime::idmap::{IdMaps, IdRange};
use bulkhead_runtime::launch::Stdio;
use bulkhead_runtime::monitor::wire::{NamespaceMode, PidMode};
use bulkhead_runtime::namespaces::PodNamespaces;
use serde_json::{Value, json};

use crate::namespaces::{joined, own_pid, request};
use crate::rig::{
    Scratch, exec_mapped, features, field, kill, null_stdio, pipes, process, ready, set, spec,
    wait, with_mount, with_script,
};

/// Where the tests' ids begin on the node, users and groups apart.
pub(crate) const UIDS: u32 = 1_000_000;
pub(crate) const GIDS: u32 = 2_000_000;

pub(crate) fn maps() -> IdMaps {
    let range = |outside| IdRange {
        inside: 0,
        outside,
        length: 65_536,
    };
    IdMaps {
        uids: vec![range(UIDS)],
        gids: vec![range(GIDS)],
    }
}

fn oci(outside: u32) -> Value {
    json!([{"containerID": 0, "hostID": outside, "size": 65536}])
}

/// The spec with a new user namespace, or the one at a path.
pub(crate) fn mapped(spec: &Value, path: Option<&Path>) -> Value {
    let mut spec = set(spec, "/linux/uidMappings", oci(UIDS));
    spec["linux"]["gidMappings"] = oci(GIDS);
    let user = match path {
        Some(path) => json!({"type": "user", "path": path}),
        None => json!({"type": "user"}),
    };
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(user);
    spec
}

fn owner(path: &Path) -> (u32, u32) {
    let stat = std::fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

#[test]
fn files_have_the_right_owners_inside_and_outside_and_the_image_is_untouched() {
    if !ready() {
        return;
    }
    for clone_detached in [true, false] {
        let scratch = Scratch::new(&format!("user-files-{clone_detached}"));
        let image = scratch.image();
        std::fs::write(image.join("etc/of-seven"), "x").unwrap();
        std::os::unix::fs::chown(image.join("etc/of-seven"), Some(7), Some(8)).unwrap();
        let mut features = features().clone();
        features.clone_detached &= clone_detached;
        let features: &'static _ = Box::leak(Box::new(features));
        let script = "cat /proc/self/uid_map /proc/self/gid_map | sed 's/  */ /g'; id -u; \
            stat -c '%u:%g %n' / /etc /bin/sh /etc/of-seven; \
            echo new > /made; mkdir /dir; echo more >> /etc/of-seven; chown 5:6 /made; \
            rm /bin/tty; ln -s x /link; stat -c '%u:%g %n' /made /dir /link /etc/of-seven";
        let (stdio, pipes) = pipes();
        let spec = mapped(&with_script(&spec(), script), None);
        let launched = scratch
            .launch_with(&spec, stdio, |input| input.features = features)
            .unwrap();
        let output = pipes.collect(&launched);
        assert_eq!(output.status, 0, "{output:?}");
        assert_eq!(
            output.stdout,
            format!(
                " 0 {UIDS} 65536\n 0 {GIDS} 65536\n0\n0:0 /\n0:0 /etc\n0:0 /bin/sh\n7:8 /etc/of-seven\n\
                 5:6 /made\n0:0 /dir\n0:0 /link\n7:8 /etc/of-seven\n"
            ),
            "{output:?}"
        );
        let upper = scratch.upper();
        for (name, at) in [
            ("", (UIDS, GIDS)),
            ("made", (UIDS + 5, GIDS + 6)),
            ("dir", (UIDS, GIDS)),
            ("link", (UIDS, GIDS)),
            ("etc/of-seven", (UIDS + 7, GIDS + 8)),
        ] {
            assert_eq!(owner(&upper.join(name)), at, "{name}");
        }
        assert_eq!(owner(&image.join("etc/of-seven")), (7, 8));
        assert_eq!(owner(&image.join("bin/busybox")), (0, 0));
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains("bulkhead-launch"), "{table}");
    }
}

#[test]
fn root_inside_is_an_ordinary_user_of_the_node() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-host");
    let init = scratch
        .launch(
            &mapped(&with_script(&spec(), "sleep 100"), None),
            null_stdio(),
        )
        .unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", init.pid)).unwrap();
    assert_eq!(
        field(&status, "Uid"),
        [UIDS.to_string().as_str(); 4].join("\t")
    );
    assert_eq!(
        field(&status, "Gid"),
        [GIDS.to_string().as_str(); 4].join("\t")
    );
    assert_eq!(field(&status, "Groups"), format!("{} {}", GIDS, GIDS + 10));
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(field(&status, name), "00000000000005fb", "{name}");
    }
    for name in ["CapInh", "CapAmb"] {
        assert_eq!(field(&status, name), "0000000000000000", "{name}");
    }
    let inside = |kind: &str| std::fs::read_link(format!("/proc/{}/ns/{kind}", init.pid)).unwrap();
    let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(inside(kind), own(kind), "{kind}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", init.pid)).unwrap();
    assert!(limits.contains("1024                 2048"), "{limits}");
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", init.pid)).unwrap();
    assert_eq!(score, "500\n");
    kill(&init);
}

#[test]
fn file_systems_and_nodes_are_the_containers_own() {
    if !ready() {
        return;
    }
    for clone_detached in [true, false] {
        let scratch = Scratch::new(&format!("user-mounts-{clone_detached}"));
        let mut features = features().clone();
        features.clone_detached &= clone_detached;
        let features: &'static _ = Box::leak(Box::new(features));
        let mut asked = spec();
        asked["linux"]["devices"] = json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 432, "uid": 5, "gid": 6},
            {"path": "/opt/deep/zero", "type": "c", "major": 1, "minor": 5}
        ]);
        let script = "stat -c '%u:%g %a %t:%T %n' /dev/null /dev/tty /dev/fuse /opt/deep/zero; \
            stat -c '%u:%g %a %n' /dev /dev/pts /dev/shm /dev/mqueue /proc/1; \
            echo gone > /dev/null; head -c 3 /opt/deep/zero | wc -c; readlink /dev/fd; \
            cut -d' ' -f5,6 /proc/self/mountinfo | grep -E '^/(proc|sys|dev|sys/fs/cgroup|proc/sys) '; \
            cat /proc/timer_list | wc -c; (echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo ro; ls /sys/class/net";
        let (stdio, pipes) = pipes();
        let launched = scratch
            .launch_with(
                &mapped(&with_script(&asked, script), None),
                stdio,
                |input| input.features = features,
            )
            .unwrap();
        let output = pipes.collect(&launched);
        assert_eq!(
            output.stdout,
            "0:0 666 1:3 /dev/null\n0:0 666 5:0 /dev/tty\n5:6 660 a:e5 /dev/fuse\n0:0 666 1:5 /opt/deep/zero\n\
             0:0 755 /dev\n0:0 755 /dev/pts\n0:0 1777 /dev/shm\n0:0 1777 /dev/mqueue\n0:0 555 /proc/1\n\
             3\n/proc/self/fd\n\
             /proc rw,nosuid,nodev,noexec,relatime\n/dev rw,nosuid\n/sys ro,nosuid,nodev,noexec,relatime\n\
             /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime\n/proc/sys ro,nosuid,nodev,noexec,relatime\n\
             0\nro\nlo\n",
            "{output:?}"
        );
    }
}

#[test]
fn another_user_and_its_streams_are_mapped_and_unmapped_ones_refused() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-ids");
    let asked = set(
        &spec(),
        "/process/user",
        json!({"uid": 1000, "gid": 1001, "additionalGids": [1001, 7]}),
    );
    let shown = scratch.shell(
        &mapped(&asked, None),
        "id -u; id -g; id -G; echo again > /dev/stdout; stat -L -c %u /dev/stdout; touch /tmp/x 2>/dev/null || echo no",
    );
    assert_eq!(shown, "1000\n1001\n1001 7\nagain\n1000\nno\n");
    for (user, field) in [
        (json!({"uid": 65536, "gid": 0}), "uid: 65536"),
        (json!({"uid": 0, "gid": 65536}), "gid: 65536"),
        (
            json!({"uid": 0, "gid": 0, "additionalGids": [1, 70000]}),
            "additionalGids: 70000",
        ),
    ] {
        let error = scratch
            .try_run(&mapped(&set(&spec(), "/process/user", user), None))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(field) && error.contains("not mapped"),
            "{error}"
        );
    }
}

#[test]
fn volumes_are_mapped_as_asked_or_refused_and_plain_only_when_nothing_is_asked() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-volumes");
    let volume = scratch.volume();
    std::fs::write(volume.join("of-root"), "x").unwrap();
    std::fs::write(volume.join("of-nine"), "x").unwrap();
    std::os::unix::fs::chown(volume.join("of-nine"), Some(9), Some(9)).unwrap();
    let base = mapped(&spec(), None);
    let with_maps = |options: Value| {
        json!({"destination": "/vol", "source": volume, "type": "bind", "options": options,
            "uidMappings": oci(UIDS), "gidMappings": oci(GIDS)})
    };
    let script = "stat -c '%u:%g %n' /vol /vol/of-root /vol/of-nine; echo new > /vol/new && stat -c %u:%g /vol/new";
    let shown = scratch.shell(&with_mount(&base, with_maps(json!(["rbind"]))), script);
    assert_eq!(shown, "0:0 /vol\n0:0 /vol/of-root\n9:9 /vol/of-nine\n0:0\n");
    assert_eq!(owner(&volume.join("new")), (0, 0));
    // The container's own maps, by the option's name alone.
    let by_name = json!({"destination": "/vol", "source": volume, "type": "bind", "options": ["rbind", "ridmap"]});
    assert_eq!(
        scratch.shell(
            &with_mount(&base, by_name.clone()),
            "stat -c %u /vol/of-nine"
        ),
        "9\n"
    );
    // Other maps than the container's.
    let mut others = with_maps(json!(["rbind"]));
    others["uidMappings"] = json!([{"containerID": 9, "hostID": UIDS + 1, "size": 1}]);
    let shown = scratch.shell(
        &with_mount(&base, others.clone()),
        "stat -c %u /vol/of-nine /vol/of-root",
    );
    assert_eq!(shown, "1\n65534\n");
    // In a container without a user namespace the node's ids are seen.
    let shown = scratch.shell(&with_mount(&spec(), others), "stat -c %u /vol/of-nine");
    assert_eq!(shown, format!("{}\n", UIDS + 1));
    let plain =
        json!({"destination": "/vol", "source": volume, "type": "bind", "options": ["rbind"]});
    let shown = scratch.shell(
        &with_mount(&base, plain),
        "stat -c %u /vol/of-root; touch /vol/denied 2>/dev/null || echo no",
    );
    assert_eq!(shown, "65534\nno\n");

    let ramfs = scratch.path.join("ramfs");
    std::fs::create_dir(&ramfs).unwrap();
    rustix::mount::mount(
        c"ramfs",
        &ramfs,
        c"ramfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    for source in [ramfs.as_path(), scratch.path.as_path()] {
        let mut mount = with_maps(json!(["rbind"]));
        mount["source"] = json!(source);
        let error = scratch
            .try_run(&with_mount(&base, mount))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&source.display().to_string()) && error.contains("can't be id-mapped"),
            "{error}"
        );
    }
    rustix::mount::unmount(&ramfs, rustix::mount::UnmountFlags::empty()).unwrap();
    let error = scratch
        .try_run(&with_mount(&spec(), by_name))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("neither the mount nor the container"),
        "{error}"
    );
}

#[test]
fn a_pods_namespaces_belong_to_its_user_namespace() {
    if !ready() {
        return;
    }
    for pid in [PidMode::Container, PidMode::Pod] {
        let scratch = Scratch::new(&format!("user-pod-{pid:?}"));
        let mut asked = request(scratch.path.clone());
        asked.user = Some(maps());
        asked.pid = pid;
        let before = std::fs::read_link("/proc/thread-self/ns/user").unwrap();
        let pod = PodNamespaces::create(&asked, None, None, features()).unwrap();
        let after = std::fs::read_link("/proc/thread-self/ns/user").unwrap();
        assert_eq!(after, before);
        let paths = pod.paths(own_pid());
        let mut spec = mapped(&joined(&paths), paths.user.as_deref());
        for set in ["bounding", "permitted", "effective"] {
            let set = &mut spec["process"]["capabilities"][set];
            set.as_array_mut().unwrap().push(json!("CAP_NET_ADMIN"));
        }
        let script = "hostname; cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_unprivileged_port_start; \
            readlink /proc/self/ns/user; stat -c '%u:%g %a' /dev/shm; echo x >> /dev/shm/f; \
            wc -l < /dev/shm/f; ip link set lo up && echo up; stat -c %u /proc/1";
        // Process 1 is the shell, or the pause process, which is nobody's.
        let first = if pid == PidMode::Pod { 65_534 } else { 0 };
        for number in ["1", "2"] {
            let shown = scratch.shell(&spec, script);
            let user = std::fs::read_link(paths.user.as_ref().unwrap()).unwrap();
            assert_eq!(
                shown,
                format!(
                    "pod-name\n77\n11\n{}\n0:0 1777\n{number}\nup\n{first}\n",
                    user.display()
                )
            );
        }
        if let Some((pause, _)) = pod.pause() {
            let status = std::fs::read_to_string(format!("/proc/{pause}/status")).unwrap();
            assert!(field(&status, "Uid").starts_with(&(UIDS + 65_534).to_string()));
            assert_eq!(field(&status, "CapBnd"), "0000000000000000");
            let root = std::fs::read_dir(format!("/proc/{pause}/root")).unwrap();
            assert_eq!(root.count(), 0);
        }
        // The node may still enter the network namespace, as its network does.
        let network = pod.network_fd().unwrap();
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(
                    network.as_fd(),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )
            });
            entered.join().unwrap().unwrap();
        });
    }
}

#[test]
fn a_pod_with_a_user_namespace_has_what_that_needs_or_is_refused() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-pod-refused");
    let mut good = request(scratch.path.clone());
    good.user = Some(maps());
    type Change = fn(&mut bulkhead_runtime::monitor::wire::CreatePod);
    let changes: [(Change, &str); 6] = [
        (|asked| asked.pid = PidMode::Node, "PID namespace"),
        (
            |asked| {
                asked.ipc = NamespaceMode::Host;
                asked.sysctls.clear();
            },
            "IPC namespace",
        ),
        (
            |asked| asked.user.as_mut().unwrap().uids.clear(),
            "0 ranges",
        ),
        (
            |asked| asked.user.as_mut().unwrap().gids[0].inside = 1,
            "ids 0 must be mapped",
        ),
        (
            |asked| asked.user.as_mut().unwrap().uids[0].length = 0,
            "no ids",
        ),
        (
            |asked| {
                let value = ("net.ipv4.no_such".to_owned(), "x".to_owned());
                asked.sysctls.extend([value]);
            },
            "net/ipv4/no_such",
        ),
    ];
    for (change, fault) in changes {
        let mut asked = good.clone();
        change(&mut asked);
        let error = PodNamespaces::create(&asked, None, None, features())
            .unwrap_err()
            .to_string();
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn a_pod_on_the_nodes_network_gets_the_nodes_sys() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-host-network");
    let mut asked = request(scratch.path.clone());
    asked.user = Some(maps());
    asked.network = NamespaceMode::Host;
    asked.uts = NamespaceMode::Host;
    asked.hostname = None;
    asked.sysctls.clear();
    let pod = PodNamespaces::create(&asked, None, None, features()).unwrap();
    let paths = pod.paths(own_pid());
    assert_eq!((paths.network, paths.uts), (None, None));
    let mut spec = mapped(&spec(), paths.user.as_deref());
    spec["hostname"] = json!("");
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network" && namespace["type"] != "uts");
    let error = scratch.try_run(&spec).unwrap_err().to_string();
    assert!(
        error.contains("sysfs on /sys"),
        "a new one can't be: {error}"
    );
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/sys"));
    let spec = with_mount(
        &spec,
        json!({"destination": "/sys", "type": "bind", "source": "/sys",
            "options": ["rbind", "rro", "nosuid", "nodev", "noexec"]}),
    );
    let shown = scratch.shell(
        &spec,
        "readlink /proc/self/ns/net; test -d /sys/class/net/lo && echo lo",
    );
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(shown, format!("{}\nlo\n", own.display()));
}

#[test]
fn an_exec_enters_the_user_namespace_and_terminals_belong_to_the_user() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-exec");
    let asked = set(&spec(), "/process/user/uid", json!(1000));
    let init = scratch
        .launch(
            &mapped(&with_script(&asked, "sleep 100"), None),
            null_stdio(),
        )
        .unwrap();
    let script = "readlink /proc/self/ns/user; cut -c1-30 /proc/self/uid_map | wc -l; id -u; \
        grep Cap /proc/self/status; echo again > /dev/stdout";
    let (stdio, pipes) = pipes();
    let process_of = |spec: &Value, script: &str| process(spec, json!(["sh", "-c", script]));
    let launched = exec_mapped(&init, &process_of(&asked, script), stdio, Some(&maps())).unwrap();
    let output = pipes.collect(&launched);
    let user = std::fs::read_link(format!("/proc/{}/ns/user", init.pid)).unwrap();
    assert!(
        output
            .stdout
            .starts_with(&format!("{}\n1\n1000\n", user.display()))
            && output.stdout.ends_with("again\n")
            && output.stdout.contains("CapBnd:\t00000000000005fb"),
        "{output:?}"
    );
    let terminal = set(&asked, "/process/terminal", json!(true));
    for exec in [false, true] {
        let own = Scratch::new(&format!("user-tty-{exec}"));
        let script = "tty; stat -c '%u:%g %a' /dev/pts/0; stat -L -c %u /proc/self/fd/0; echo there > /dev/tty";
        let mut launched = if exec {
            let process = process_of(&terminal, script);
            exec_mapped(&init, &process, Stdio::Terminal, Some(&maps())).unwrap()
        } else {
            let spec = mapped(&with_script(&terminal, script), None);
            own.launch(&spec, Stdio::Terminal).unwrap()
        };
        let text = crate::terminal::read_all(&mut launched);
        assert_eq!(text, "/dev/pts/0\n1000:5 620\n1000\nthere\n", "{exec}");
        assert_eq!(wait(&launched), 0);
    }
    let unmapped = set(&asked, "/process/user/uid", json!(70_000));
    let process = process_of(&unmapped, "true");
    let error = exec_mapped(&init, &process, null_stdio(), Some(&maps())).unwrap_err();
    assert!(error.to_string().contains("not mapped"), "{error}");
    kill(&init);
}

#[test]
fn a_small_range_is_enough_for_root() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-one");
    let mut spec = mapped(&spec(), None);
    for list in ["uidMappings", "gidMappings"] {
        spec["linux"][list] = json!([{"containerID": 0, "hostID": UIDS, "size": 1}]);
    }
    spec["process"]["user"] = json!({"uid": 0, "gid": 0});
    let shown = scratch.shell(
        &spec,
        "id -u; stat -c %u /bin/sh; echo x > /x; stat -c %u /x",
    );
    assert_eq!(shown, "0\n0\n0\n");
    let mut asked = request(scratch.path.clone());
    let mut one = maps();
    one.uids[0].length = 1;
    one.gids[0].length = 1;
    asked.user = Some(one);
    asked.pid = PidMode::Pod;
    assert!(PodNamespaces::create(&asked, None, None, features()).is_ok());
}

#[test]
fn what_can_be_mapped_is_known_ahead() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-probe");
    bulkhead_runtime::user_namespace::probe(&scratch.path).unwrap();
    let error = bulkhead_runtime::user_namespace::probe(Path::new("/proc")).unwrap_err();
    assert!(error.to_string().contains("/proc"), "{error}");
}

/// A pod's namespaces, and a container's start to the end of `true`, by turns with and without.
#[test]
#[ignore = "a measurement, not a test"]
fn what_a_user_namespace_costs() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("user-cost");
    let plain = set(&spec(), "/process/args", json!(["true"]));
    let specs = [plain.clone(), mapped(&plain, None)];
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..100 {
        for (kind, spec) in specs.iter().enumerate() {
            let mut asked = request(scratch.path.clone());
            asked.user = (kind == 1).then(maps);
            let begun = std::time::Instant::now();
            drop(PodNamespaces::create(&asked, None, None, features()).unwrap());
            times[kind].push(begun.elapsed());
            let begun = std::time::Instant::now();
            let launched = scratch.launch(spec, null_stdio()).unwrap();
            wait(&launched);
            times[2 + kind].push(begun.elapsed());
        }
    }
    for (what, times) in [
        "pod",
        "pod with a user namespace",
        "container",
        "container with a user namespace",
    ]
    .iter()
    .zip(&mut times)
    {
        times.sort();
        println!("{what}: median {:?}, fastest {:?}", times[50], times[0]);
    }
}
