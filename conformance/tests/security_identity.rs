//! Who a container's processes are, seen from inside and from the host: users, groups, capabilities,
//! no_new_privs. Case S8.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result, ensure};
use bulkhead_conformance::images::catalog;
use bulkhead_conformance::inside::ProcStatus;
use bulkhead_conformance::node::pods::{self, container, labels, mount, security};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_conformance::tar::Layer;
use bulkhead_proto::runtime::v1 as cri;

const NET_BIND_SERVICE: u64 = 1 << 10;
/// The nine: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE.
const DEFAULT: u64 = 0x5fb;

fn value(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn sleeper(name: &str, image: &str) -> cri::ContainerConfig {
    container(name, image, &["sleep", "1000"])
}

/// The status of a container's init by the host, after an exec's was seen to equal it.
async fn status(rig: &Rig, id: &str) -> Result<ProcStatus> {
    let host = ProcStatus::of(rig.node.init_pid(id).await?)?;
    let text = rig.node.output(id, &["cat", "/proc/self/status"]).await?;
    let exec = ProcStatus::parse(&text);
    for line in [
        "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
    ] {
        assert_eq!(
            exec.words(line),
            host.words(line),
            "{line}: exec equals start"
        );
    }
    for line in ["NoNewPrivs", "Seccomp"] {
        assert_eq!(
            exec.words(line),
            host.words(line),
            "{line}: exec equals start"
        );
    }
    Ok(host)
}

/// Port 80 needs the capability in this pod, as it does on a node.
async fn pod_with_closed_ports(rig: &Rig) -> Result<Pod> {
    let mut config = pods::pod(&rig.node, "s8");
    config.linux.get_or_insert_default().sysctls =
        labels(&[("net.ipv4.ip_unprivileged_port_start", "1024")]);
    rig.run(config).await
}

/// The probe on a volume, with NET_BIND_SERVICE in the file's capabilities (capabilities(7),
/// VFS_CAP_REVISION_2 with the effective bit).
async fn probe_with_capability(rig: &Rig, pod: &Pod, image: &str) -> Result<cri::Mount> {
    let volume = rig.node.scratch("s8")?;
    let mut copy = container("copy", image, &["cp", "/bin/probe", "/vol/probe"]);
    copy.mounts = vec![mount(&volume, "/vol", false)];
    assert_eq!(rig.run_in(pod, &copy).await?.0, 0);
    let program = volume.join("probe");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let mut attribute = vec![1, 0, 0, 2];
    for word in [1_u32 << 10, 0, 0, 0] {
        attribute.extend(word.to_le_bytes());
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&program, "security.capability", &attribute, flags)
        .context("give the probe a file capability")?;
    Ok(mount(&volume, "/vol", true))
}

#[tokio::test]
async fn s8_capabilities_of_a_user_who_is_not_root() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = pod_with_closed_ports(&rig).await?;
    let volume = probe_with_capability(&rig, &pod, image).await?;
    let both = DEFAULT | NET_BIND_SERVICE;
    // What is asked for; the sets inheritable, permitted, effective, bounding, ambient; who binds
    // port 80: the plain probe, the one with the file capability.
    for (name, ambient, no_new_privs, sets, plain, by_file) in [
        ("added", false, false, [0, 0, 0, both, 0], false, true),
        ("locked", false, true, [0, 0, 0, both, 0], false, false),
        (
            "ambient",
            true,
            false,
            [
                NET_BIND_SERVICE,
                NET_BIND_SERVICE,
                NET_BIND_SERVICE,
                both,
                NET_BIND_SERVICE,
            ],
            true,
            true,
        ),
    ] {
        let mut config = sleeper(name, image);
        config.mounts = vec![volume.clone()];
        let context = security(&mut config);
        context.run_as_user = value(1000);
        context.no_new_privs = no_new_privs;
        let mut capabilities = cri::Capability {
            add_capabilities: words(&["NET_BIND_SERVICE"]),
            ..Default::default()
        };
        if ambient {
            capabilities.add_ambient_capabilities = words(&["net_bind_service"]);
        }
        context.capabilities = Some(capabilities);
        let id = rig.start_in(&pod, &config).await?;
        assert_eq!(status(&rig, &id).await?.capabilities()?, sets, "{name}");
        for (program, binds) in [("/bin/probe", plain), ("/vol/probe", by_file)] {
            let done = rig.node.exec(&id, &[program, "bind", "80"]).await?;
            assert_eq!(done.code == 0, binds, "{name}: {program}: {done:?}");
        }
    }
    rig.finish().await
}

#[tokio::test]
async fn capabilities_are_added_dropped_and_read_back() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("capabilities").await?;
    let daemon = ProcStatus::of(rig.node.pid())?.mask("CapBnd")?;
    // Added, dropped, and what permitted, effective and bounding set are.
    let rows: [(&[&str], &[&str], u64); 6] = [
        (&[], &[], DEFAULT),
        (&["CAP_SYS_CHROOT"], &[], DEFAULT | 1 << 18),
        (&["sys_chroot"], &["KILL"], (DEFAULT | 1 << 18) & !(1 << 5)),
        (&[], &["ALL"], 0),
        (&["NET_RAW"], &["all"], 1 << 13),
        (&["ALL"], &["CHOWN"], daemon & !1),
    ];
    for (row, (add, drop, expected)) in rows.into_iter().enumerate() {
        let mut config = sleeper(&format!("c{row}"), image);
        security(&mut config).capabilities = Some(cri::Capability {
            add_capabilities: words(add),
            drop_capabilities: words(drop),
            ..Default::default()
        });
        let id = rig.start_in(&pod, &config).await?;
        let sets = status(&rig, &id).await?.capabilities()?;
        assert_eq!(
            sets,
            [0, expected, expected, expected, 0],
            "+{add:?} -{drop:?}"
        );
    }
    let mut config = sleeper("unknown", image);
    security(&mut config).capabilities = Some(cri::Capability {
        add_capabilities: words(&["FLY"]),
        ..Default::default()
    });
    let refused = rig
        .create_in(&pod, &config)
        .await
        .expect_err("no capability");
    ensure!(refused.message().contains("FLY"), "{refused:?}");
    rig.finish().await
}

#[tokio::test]
async fn users_and_groups_are_what_was_asked_inside_outside_and_in_the_status() -> Result<()> {
    let rig = Rig::start().await?;
    let files = Layer::new()
        .file(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\napp:x:1500:1600::/home/app:/bin/sh\n",
        )
        .file("etc/group", "root:x:0:\napp:x:1600:\nextra:x:1700:app\n");
    let image = rig
        .publish("identity/app:1", &rig.busybox_with(files)?.build()?)
        .await?;
    let pod = rig.pod("users").await?;
    const MERGE: i32 = cri::SupplementalGroupsPolicy::Merge as i32;
    const STRICT: i32 = cri::SupplementalGroupsPolicy::Strict as i32;
    // User, name, group, groups, policy; then uid, gid and all groups.
    let rows = [
        (None, "", None, vec![], MERGE, (0, 0, vec![0])),
        (Some(1000), "", None, vec![], MERGE, (1000, 0, vec![0])),
        (
            Some(1000),
            "",
            Some(2000),
            vec![],
            MERGE,
            (1000, 2000, vec![2000]),
        ),
        (
            None,
            "app",
            None,
            vec![3000],
            MERGE,
            (1500, 1600, vec![1600, 1700, 3000]),
        ),
        (
            None,
            "app",
            None,
            vec![3000],
            STRICT,
            (1500, 1600, vec![1600, 3000]),
        ),
        (
            Some(1500),
            "",
            Some(5),
            vec![7, 6],
            MERGE,
            (1500, 5, vec![5, 6, 7, 1700]),
        ),
        (
            Some(1500),
            "",
            Some(5),
            vec![7, 6],
            STRICT,
            (1500, 5, vec![5, 6, 7]),
        ),
    ];
    for (row, (user, name, group, groups, policy, expected)) in rows.into_iter().enumerate() {
        let mut config = sleeper(&format!("c{row}"), &image);
        let context = security(&mut config);
        context.run_as_user = user.and_then(value);
        context.run_as_username = name.to_owned();
        context.run_as_group = group.and_then(value);
        context.supplemental_groups = groups;
        context.supplemental_groups_policy = policy;
        let id = rig.start_in(&pod, &config).await?;
        let (uid, gid, groups) = expected;
        let seen = status(&rig, &id).await?;
        assert_eq!(seen.numbers("Uid"), [uid; 4], "row {row}");
        assert_eq!(seen.numbers("Gid"), [gid; 4], "row {row}");
        assert_eq!(seen.numbers("Groups"), groups, "row {row}");
        let told = rig.node.status(&id).await?.user.and_then(|user| user.linux);
        let told = told.context("a status without user")?;
        assert_eq!(
            (told.uid, told.gid),
            (i64::try_from(uid)?, i64::try_from(gid)?)
        );
        let mut listed = told.supplemental_groups;
        listed.sort_unstable();
        let groups: Vec<i64> = groups
            .iter()
            .map(|gid| i64::try_from(*gid))
            .collect::<Result<_, _>>()?;
        assert_eq!(listed, groups, "row {row}: the status has all groups");
    }
    for (field, edit) in [
        (
            "run_as_user",
            (|c| c.run_as_user = value(-1)) as fn(&mut cri::LinuxContainerSecurityContext),
        ),
        ("run_as_user", |c| c.run_as_user = value(0xFFFF_FFFF)),
        ("run_as_group", |c| c.run_as_group = value(5)),
        ("run_as_username", |c| {
            c.run_as_user = value(1);
            c.run_as_username = "app".to_owned();
        }),
        ("supplemental_groups", |c| {
            c.supplemental_groups = vec![1 << 32]
        }),
        ("supplemental_groups_policy", |c| {
            c.supplemental_groups_policy = 7
        }),
        ("nobody-here", |c| {
            c.run_as_username = "nobody-here".to_owned()
        }),
    ] {
        let mut config = sleeper("bad", &image);
        edit(security(&mut config));
        let refused = rig.create_in(&pod, &config).await.expect_err(field);
        ensure!(refused.message().contains(field), "{field}: {refused:?}");
    }
    rig.finish().await
}

#[tokio::test]
async fn no_new_privs_takes_the_power_of_set_user_id_bits() -> Result<()> {
    let rig = Rig::start().await?;
    let image = catalog::BUSYBOX.replace("busybox:1.29-2", "nonewprivs:1.3");
    rig.node.pull(&image).await?;
    let pod = rig.pod("nnp").await?;
    for (name, no_new_privs, effective) in [("free", false, "0"), ("locked", true, "1000")] {
        let mut config = container(name, &image, &[]);
        security(&mut config).run_as_user = value(1000);
        security(&mut config).no_new_privs = no_new_privs;
        let (code, text) = rig.run_in(&pod, &config).await?;
        assert_eq!(
            (code, text.trim()),
            (0, format!("Effective uid: {effective}").as_str())
        );
    }
    rig.finish().await
}

#[tokio::test]
async fn the_environment_of_limits_is_the_node_s_setting_and_scores_are_asked_for() -> Result<()> {
    let options = bulkhead_conformance::node::Options {
        config: "[rlimits]\nnofile-soft = 333\nnofile-hard = 444\n".to_owned(),
        ..Default::default()
    };
    let rig = Rig::start_with(options).await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("scores").await?;
    let lowest: i64 = fs::read_to_string("/proc/self/oom_score_adj")?
        .trim()
        .parse()?;
    let may_lower = ProcStatus::of(rig.node.pid())?.mask("CapEff")? & (1 << 24) != 0;
    for (name, score) in [("plain", 0), ("more", 800), ("less", -500)] {
        let mut config = sleeper(name, image);
        let resources = config
            .linux
            .get_or_insert_default()
            .resources
            .get_or_insert_default();
        resources.oom_score_adj = score;
        let id = rig.start_in(&pod, &config).await?;
        let pid = rig.node.init_pid(&id).await?;
        let seen: i64 = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?
            .trim()
            .parse()?;
        // Clamped, not fatal, where the daemon may not lower it.
        let expected = if may_lower { score } else { score.max(lowest) };
        assert_eq!(seen, expected, "{name}");
        let limits = rig.node.output(&id, &["cat", "/proc/self/limits"]).await?;
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let line: Vec<&str> = line.context("no such limit")?.split_whitespace().collect();
        assert_eq!(line[3..5], ["333", "444"], "{name}");
    }
    rig.finish().await
}
