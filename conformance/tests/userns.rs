//! Pods with a user namespace (`hostUsers: false`), through the CRI: case C4, threats N1 and N2, and
//! what each of their parts looks like from inside and from the node.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_conformance::node::pods::{self, container, mount, security};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_conformance::tar::{Entry, Layer};
use bulkhead_proto::runtime::v1 as cri;
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::json;
use tonic::Code;

const LENGTH: u32 = 65_536;
const FIRST: u32 = 1_000_000;

fn ids(first: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping {
        host_id: first,
        container_id: 0,
        length: LENGTH,
    }]
}

/// What the kubelet sends for hostUsers: false.
fn isolated(first: u32) -> cri::UserNamespace {
    cri::UserNamespace {
        mode: cri::NamespaceMode::Pod.into(),
        uids: ids(first),
        gids: ids(first),
    }
}

fn options(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    let linux = config.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default()
}

/// A pod on the node's network with a user namespace whose ids begin at `first`.
async fn pod(rig: &Rig, name: &str, first: u32) -> Result<Pod> {
    let mut config = pods::host_network_pod(&rig.node, name);
    options(&mut config).userns_options = Some(isolated(first));
    rig.run(config).await
}

fn sleeper(name: &str, image: &str) -> cri::ContainerConfig {
    container(name, image, &["sleep", "1000"])
}

/// The writable layer of a container.
fn upper(rig: &Rig, id: &str) -> PathBuf {
    rig.node
        .root()
        .join("lib/images/writable")
        .join(id)
        .join("upper")
}

fn owner(path: &Path) -> Result<(u32, u32)> {
    let stat = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    Ok((stat.uid(), stat.gid()))
}

async fn sh(rig: &Rig, id: &str, script: &str) -> Result<String> {
    rig.node.output(id, &["sh", "-c", script]).await
}

#[tokio::test]
async fn root_of_the_pod_is_an_ordinary_user_of_the_node() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let mut config = pods::pod(&rig.node, "isolated");
    options(&mut config).userns_options = Some(isolated(FIRST));
    config.linux.get_or_insert_default().sysctls =
        [("kernel.shmmni".to_owned(), "77".to_owned())].into();
    let pod = rig.run(config).await?;
    let id = rig.start_in(&pod, &sleeper("main", busybox)).await?;
    let map = sh(&rig, &id, "cat /proc/self/uid_map /proc/self/gid_map").await?;
    let words: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(words, ["0", "1000000", "65536", "0", "1000000", "65536"]);
    let shown = sh(
        &rig,
        &id,
        "id -u; hostname; cat /proc/sys/kernel/shmmni; \
         stat -c '%u:%g %n' / /bin/sh /etc/hosts /etc/hostname /etc/resolv.conf /dev /dev/null; \
         stat -c '%u:%g %a' /dev/shm; echo x > /made; echo x > /dev/null; echo x > /dev/shm/f; \
         echo '# more' >> /etc/hosts; mkdir /run/d 2>/dev/null; mknod /n c 1 3 2>/dev/null || echo denied",
    )
    .await?;
    assert_eq!(
        shown,
        "0\nisolated\n77\n0:0 /\n0:0 /bin/sh\n0:0 /etc/hosts\n0:0 /etc/hostname\n0:0 /etc/resolv.conf\n\
         0:0 /dev\n0:0 /dev/null\n0:0 1777\ndenied\n"
    );
    let upper = upper(&rig, &id);
    assert_eq!(owner(&upper)?, (FIRST, FIRST));
    assert_eq!(owner(&upper.join("made"))?, (FIRST, FIRST));
    let pid = rig.node.init_pid(&id).await?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    assert!(
        status.contains("Uid:\t1000000\t1000000\t1000000\t1000000"),
        "{status}"
    );
    assert!(status.contains("CapBnd:\t00000000000005fb"), "{status}");
    for kind in ["user", "net", "ipc", "uts", "mnt", "pid", "cgroup"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{kind}"));
        assert_ne!(of(&pid.to_string())?, of("self")?, "{kind}");
    }

    // A second container is in the same user namespace and sees the same shared memory, and another user in
    // it has no more than anywhere else.
    let mut second = sleeper("second", busybox);
    security(&mut second).run_as_user = Some(cri::Int64Value { value: 1000 });
    let other = rig.start_in(&pod, &second).await?;
    assert_eq!(
        sh(&rig, &other, "readlink /proc/self/ns/user").await?,
        sh(&rig, &id, "readlink /proc/self/ns/user").await?
    );
    let shown = sh(
        &rig,
        &other,
        "id -u; cat /dev/shm/f; stat -c %u /dev/shm/f; touch /x 2>/dev/null || echo no; \
         grep CapEff /proc/self/status; echo again > /proc/self/fd/1",
    )
    .await?;
    assert_eq!(shown, "1000\nx\n0\nno\nCapEff:\t0000000000000000\nagain\n");
    let status = rig.node.status(&other).await?;
    let user = status.user.and_then(|user| user.linux).context("no user")?;
    assert_eq!(user.uid, 1000, "reported as it is inside");
    rig.finish().await
}

#[tokio::test]
async fn pods_with_user_namespaces_have_the_network() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let mut ends = Vec::new();
    for (number, first) in [(1, FIRST), (2, FIRST + LENGTH)] {
        let mut config = pods::pod(&rig.node, &format!("net-{number}"));
        options(&mut config).userns_options = Some(isolated(first));
        options(&mut config).pid = cri::NamespaceMode::Pod.into();
        ends.push(rig.run(config).await?);
    }
    let address = |status: cri::PodSandboxStatus| status.network.map(|network| network.ip);
    let ip = address(rig.node.pod_status(&ends[0].id).await?).context("no address")?;
    let mut server = container(
        "server",
        busybox,
        &["nc", "-l", "-p", "80", "-e", "echo", "hello"],
    );
    security(&mut server).run_as_user = Some(cri::Int64Value { value: 1000 });
    let server = rig.start_in(&ends[0], &server).await?;
    let client = rig.start_in(&ends[1], &sleeper("client", busybox)).await?;
    let script =
        format!("for i in 1 2 3 4 5; do nc -w 5 {ip} 80 </dev/null && break; sleep 0.2; done");
    assert_eq!(sh(&rig, &client, &script).await?, "hello\n");
    assert_eq!(rig.node.wait_exit(&server).await?.exit_code, 0);
    // The pod shares its PID namespace: process 1 is the pause process, nobody's and the pod's.
    let shown = sh(
        &rig,
        &client,
        "cat /proc/1/comm; stat -c %u /proc/1; ls /sys/class/net | sort",
    )
    .await?;
    assert_eq!(shown, "pause\n65534\neth0\nlo\n");
    // What the network needs of its namespace can be had with the capability, inside.
    let mut admin = container(
        "admin",
        busybox,
        &["ip", "link", "set", "lo", "mtu", "9000"],
    );
    security(&mut admin).capabilities = Some(cri::Capability {
        add_capabilities: vec!["NET_ADMIN".to_owned()],
        ..Default::default()
    });
    assert_eq!(rig.run_in(&ends[1], &admin).await?, (0, String::new()));
    rig.finish().await
}

#[tokio::test]
async fn c4_volumes_are_id_mapped_as_asked_or_refused() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = pod(&rig, "c4", FIRST).await?;
    let disk = rig.node.scratch("disk")?;
    let (tmpfs, ramfs) = (rig.node.scratch("tmpfs")?, rig.node.scratch("ramfs")?);
    for (name, at) in [(c"tmpfs", &tmpfs), (c"ramfs", &ramfs)] {
        rustix::mount::mount(name, at, name, MountFlags::empty(), c"mode=755")
            .with_context(|| format!("mount on {}", at.display()))?;
    }
    let script = "stat -c '%u:%g' /vol /vol/of-root /vol/of-nine; echo new > /vol/new && stat -c '%u:%g' /vol/new";
    for (number, source) in [&disk, &tmpfs].into_iter().enumerate() {
        fs::write(source.join("of-root"), "x")?;
        fs::write(source.join("of-nine"), "x")?;
        chown(source.join("of-nine"), Some(9), Some(9))?;
        let mut mapped = mount(source, "/vol", false);
        mapped.uid_mappings = ids(FIRST);
        mapped.gid_mappings = ids(FIRST);
        let mut config = container(&format!("mapped-{number}"), busybox, &["sh", "-c", script]);
        config.mounts = vec![mapped];
        let done = rig.run_in(&pod, &config).await?;
        assert_eq!(done, (0, "0:0\n0:0\n9:9\n0:0\n".to_owned()));
        assert_eq!(owner(&source.join("new"))?, (0, 0), "{}", source.display());
    }
    for (number, source) in [&disk, &tmpfs, &ramfs].into_iter().enumerate() {
        let script = "stat -c '%u:%g' /vol; touch /vol/denied 2>/dev/null || echo no";
        let mut config = container(&format!("plain-{number}"), busybox, &["sh", "-c", script]);
        config.mounts = vec![mount(source, "/vol", false)];
        let done = rig.run_in(&pod, &config).await?;
        assert_eq!(
            done,
            (0, "65534:65534\nno\n".to_owned()),
            "{}",
            source.display()
        );
    }
    let mut mapped = mount(&ramfs, "/vol", false);
    mapped.uid_mappings = ids(FIRST);
    mapped.gid_mappings = ids(FIRST);
    let mut config = sleeper("ramfs", busybox);
    config.mounts = vec![mapped];
    let refused = format!("{:#}", rig.start_in(&pod, &config).await.unwrap_err());
    assert!(
        refused.contains(&ramfs.display().to_string()) && refused.contains("ramfs: "),
        "{refused}"
    );
    rig.node.remove_pod(&pod.id).await?;
    for at in [&tmpfs, &ramfs] {
        rustix::mount::unmount(at, UnmountFlags::empty()).context("the runtime holds a mount")?;
    }
    rig.finish().await
}

#[tokio::test]
async fn c5_read_only_volumes_are_read_only_in_a_user_namespace_too() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = pod(&rig, "c5", FIRST).await?;
    let volume = rig.node.scratch("volume")?;
    let below = rig.node.scratch("volume/below")?;
    rustix::mount::mount(c"tmpfs", &below, c"tmpfs", MountFlags::empty(), None)?;
    for folder in [&volume, &below] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
    }
    let script = "touch /vol/x 2>/dev/null && rm /vol/x && echo top; touch /vol/below/x 2>/dev/null && rm /vol/below/x && echo below; true";
    for (name, readonly, recursive, expected) in [
        ("rw", false, false, "top\nbelow\n"),
        ("ro", true, false, "below\n"),
        ("rro", true, true, ""),
    ] {
        for mapped in [true, false] {
            let mut asked = mount(&volume, "/vol", readonly);
            asked.recursive_read_only = recursive;
            if mapped {
                asked.uid_mappings = ids(FIRST);
                asked.gid_mappings = ids(FIRST);
            }
            let name = format!("{name}-{mapped}");
            let mut config = container(&name, busybox, &["sh", "-c", script]);
            config.mounts = vec![asked];
            assert_eq!(
                rig.run_in(&pod, &config).await?,
                (0, expected.to_owned()),
                "{name}"
            );
        }
    }
    rig.node.remove_pod(&pod.id).await?;
    rustix::mount::unmount(&below, UnmountFlags::empty())?;
    rig.finish().await
}

#[tokio::test]
async fn m7_volumes_of_the_image_have_its_owners_in_a_user_namespace_too() -> Result<()> {
    let rig = Rig::start().await?;
    let layer = Layer::new()
        .entry(Entry::directory("data").mode(0o750).owner(65534, 65534))
        .entry(Entry::file("data/f", "x").owner(65534, 65534));
    let image = rig
        .busybox_with(layer)?
        .config("Volumes", json!({"/data": {}, "/absent": {}}))
        .build()?;
    let reference = rig.publish("userns/volumes:1", &image).await?;
    let pod = pod(&rig, "m7", FIRST).await?;
    let script =
        "stat -c '%u:%g %a %n' /data /data/f; echo n > /data/n && stat -c %u /data/n; ls /absent";
    let mut config = container("main", &reference, &["sh", "-c", script]);
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 65534 });
    let done = rig.run_in(&pod, &config).await?;
    assert_eq!(
        done,
        (
            0,
            "65534:65534 750 /data\n65534:65534 644 /data/f\n65534\n".to_owned()
        )
    );
    rig.finish().await
}

#[tokio::test]
async fn modes_and_mappings_are_taken_or_refused_by_name() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let one = |container_id, host_id, length| {
        vec![cri::IdMapping {
            host_id,
            container_id,
            length,
        }]
    };
    let with = |mode: cri::NamespaceMode, ids: Vec<cri::IdMapping>| cri::UserNamespace {
        mode: mode.into(),
        uids: ids.clone(),
        gids: ids,
    };
    let two = [ids(FIRST), one(LENGTH, FIRST + LENGTH, 1)].concat();
    use cri::NamespaceMode::{Container, Node, Pod, Target};
    for (options_, field) in [
        (with(Node, ids(FIRST)), "userns_options"),
        (with(Container, ids(FIRST)), "userns_options.mode"),
        (with(Target, ids(FIRST)), "userns_options.mode"),
        (with(Pod, Vec::new()), "userns_options.uids"),
        (with(Pod, two), "userns_options.uids"),
        (with(Pod, one(0, FIRST, 0)), "userns_options.uids[0].length"),
        (
            with(Pod, one(1, FIRST, 10)),
            "userns_options.uids[0].container_id",
        ),
        (with(Pod, one(0, 0, 10)), "userns_options.uids[0].host_id"),
        (with(Pod, one(0, 999, 10)), "user-namespaces.first-id"),
        (
            with(Pod, one(0, u32::MAX - 5, 10)),
            "userns_options.uids[0].length",
        ),
    ] {
        let mut config = pods::host_network_pod(&rig.node, "refused");
        options(&mut config).userns_options = Some(options_);
        let status = rig.node.run_pod(&config).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(field), "{field}: {status}");
    }
    for (pid, ipc, field) in [(Node, Pod, ".pid: NODE"), (Container, Node, ".ipc: NODE")] {
        let mut config = pods::host_network_pod(&rig.node, "mixed");
        let asked = options(&mut config);
        asked.userns_options = Some(isolated(FIRST));
        asked.pid = pid.into();
        asked.ipc = ipc.into();
        let status = rig.node.run_pod(&config).await.unwrap_err();
        assert!(status.message().contains(field), "{status}");
    }
    assert!(rig.node.list_pods().await?.is_empty());
    // NODE and nothing at all are the node's user namespace.
    for (name, asked) in [("node", Some(with(Node, Vec::new()))), ("none", None)] {
        let mut config = pods::host_network_pod(&rig.node, name);
        options(&mut config).userns_options = asked;
        let pod = rig.run(config).await?;
        let id = rig.start_in(&pod, &sleeper("main", busybox)).await?;
        let map = sh(&rig, &id, "cat /proc/self/uid_map").await?;
        assert_eq!(map, fs::read_to_string("/proc/self/uid_map")?);
    }
    // A container is in its pod's, whatever it leaves out, and can't ask for another.
    let pod = pod(&rig, "pod", FIRST).await?;
    let id = rig.start_in(&pod, &sleeper("main", busybox)).await?;
    assert_ne!(
        sh(&rig, &id, "cat /proc/self/uid_map").await?,
        fs::read_to_string("/proc/self/uid_map")?
    );
    for asked in [with(Node, Vec::new()), isolated(FIRST + LENGTH)] {
        let mut config = sleeper("other", busybox);
        security(&mut config)
            .namespace_options
            .get_or_insert_default()
            .userns_options = Some(asked);
        let status = rig.create_in(&pod, &config).await.unwrap_err();
        assert!(
            status.message().contains("userns_options: differs"),
            "{status}"
        );
    }
    let mut config = sleeper("unmapped", busybox);
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 65_536 });
    let status = rig.create_in(&pod, &config).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("user 65536"), "{status}");
    rig.finish().await
}

#[tokio::test]
async fn n1_no_two_live_pods_share_ids_over_a_restart() -> Result<()> {
    let mut rig = Rig::start().await?;
    let mut live = Vec::new();
    for number in 0..12 {
        live.push(pod(&rig, &format!("n1-{number}"), FIRST + number * LENGTH).await?);
    }
    rig.node.kill()?;
    rig.node.launch().await?;
    for (number, first) in [
        (0, FIRST),
        (1, FIRST + 11 * LENGTH + 1),
        (2, FIRST - LENGTH + 1),
    ] {
        let refused = pod(&rig, &format!("thief-{number}"), first)
            .await
            .unwrap_err();
        let refused = format!("{refused:#}");
        assert!(
            refused.contains("userns_options.uids[0]") && refused.contains("no two pods share ids"),
            "{refused}"
        );
    }
    // Its own next attempt may have the same; another pod once it is stopped.
    let mut again = live[0].config.clone();
    if let Some(metadata) = again.metadata.as_mut() {
        metadata.attempt += 1;
    }
    let again = rig.run(again).await?;
    for stopped in [&live[0].id, &again.id] {
        rig.node.stop_pod(stopped).await?;
    }
    pod(&rig, "heir", FIRST).await?;
    rig.finish().await
}

#[tokio::test]
async fn a_privileged_container_of_an_isolated_pod_has_no_hold_on_the_node() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let mut config = pods::host_network_pod(&rig.node, "almighty");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    options(&mut config).userns_options = Some(isolated(FIRST));
    let pod = rig.run(config).await?;
    let canary = rig.node.scratch("canary")?;
    fs::write(canary.join("secret"), "safe")?;
    fs::set_permissions(canary.join("secret"), fs::Permissions::from_mode(0o600))?;
    let mut config = sleeper("main", busybox);
    config.mounts = vec![mount(&canary, "/canary", false)];
    security(&mut config).privileged = true;
    let id = rig.start_in(&pod, &config).await?;
    let sets = sh(
        &rig,
        &id,
        "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f2 | sort -u",
    )
    .await?;
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?
        .trim()
        .parse()?;
    assert_eq!(sets, format!("{:016x}\n", (1_u64 << (last + 1)) - 1));
    for (attempt, done) in [
        ("mount -t tmpfs none /mnt", true),
        ("cat /canary/secret", false),
        ("chmod 777 /canary", false),
        ("mknod /x b 8 0", false),
        ("echo x > /proc/sys/kernel/core_pattern", false),
        ("echo c > /proc/sysrq-trigger", false),
        ("echo x > /sys/kernel/mm/ksm/run", false),
        ("ip link set lo mtu 1234", false),
        ("hostname stolen", false),
    ] {
        let script =
            format!("mkdir -p /mnt; ({attempt}) >/dev/null 2>&1 && echo done || echo denied");
        let shown = sh(&rig, &id, &script).await?;
        assert_eq!(shown == "done\n", done, "{attempt}: {shown}");
    }
    assert_eq!(fs::read(canary.join("secret"))?, b"safe");
    rig.finish().await
}

#[tokio::test]
async fn a_pod_on_the_nodes_network_sees_the_nodes_sys_and_devices_can_be_given() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = pod(&rig, "host-network", FIRST).await?;
    let mut config = sleeper("main", busybox);
    config.devices = vec![cri::Device {
        container_path: "/dev/given".to_owned(),
        host_path: "/dev/zero".to_owned(),
        permissions: "rw".to_owned(),
    }];
    let id = rig.start_in(&pod, &config).await?;
    let shown = sh(
        &rig,
        &id,
        "head -c 5 /dev/given | wc -c; stat -c %u:%g /dev/given; \
         grep ' /sys ' /proc/self/mountinfo | cut -d' ' -f6; mkdir /sys/fs/cgroup/x 2>/dev/null || echo ro",
    )
    .await?;
    assert_eq!(shown, "5\n0:0\nro,nosuid,nodev,noexec,relatime\nro\n");
    let names = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let inside = names(&sh(&rig, &id, "ls /sys/class/net | sort").await?);
    let mut outside: Vec<String> = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        outside.push(entry?.file_name().to_string_lossy().into_owned());
    }
    outside.sort();
    assert_eq!(inside, outside);
    rig.finish().await
}

#[tokio::test]
async fn status_tells_that_user_namespaces_can_be_had() -> Result<()> {
    let rig = Rig::start().await?;
    let request = cri::StatusRequest { verbose: false };
    let status = rig.node.runtime.clone().status(request).await?.into_inner();
    ensure!(!status.runtime_handlers.is_empty());
    for handler in &status.runtime_handlers {
        let features = handler.features.context("a handler without features")?;
        assert!(
            features.user_namespaces && features.recursive_read_only_mounts,
            "{handler:?}"
        );
    }
    let features = status.features.context("no features")?;
    assert!(features.user_namespaces_host_network);
    rig.finish().await
}

/// RunPodSandbox, create, start and the end of `true`, with and without a user namespace by turns.
#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn what_a_user_namespace_costs() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let mut times: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    for round in 0..60_u32 {
        for (kind, samples) in times.iter_mut().enumerate() {
            let mut config = pods::host_network_pod(&rig.node, &format!("cost-{round}-{kind}"));
            if kind == 1 {
                options(&mut config).userns_options = Some(isolated(FIRST + round * LENGTH));
            }
            let begin = Instant::now();
            let pod = rig.run(config).await?;
            rig.start_in(&pod, &container("main", busybox, &["true"]))
                .await?;
            samples.push(begin.elapsed());
            rig.node.remove_pod(&pod.id).await?;
        }
    }
    for samples in &mut times {
        samples.sort();
    }
    let [plain, mapped] = times.map(|samples| samples[samples.len() / 2]);
    eprintln!("median: {plain:?} without, {mapped:?} with a user namespace");
    rig.finish().await
}
