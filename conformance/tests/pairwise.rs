//! The security context in combination: pods in which every two values of every two fields meet, each
//! compared with a model of what the kernel must show. `BULKHEAD_PAIRWISE` is how many, at least.
//!
//! The model knows the CRI's meaning of the fields and capabilities(7), and nothing of the product.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bulkhead_conformance::inside::{self, MountLine, ProcStatus, namespace};
use bulkhead_conformance::node::pods::{self, container, mount, security};
use bulkhead_conformance::pairwise;
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::tar::Layer;
use bulkhead_proto::runtime::v1 as cri;
use cri::NamespaceMode;
use cri::security_profile::ProfileType;

/// How many pods without the variable.
const PODS: usize = 100;

/// The nine: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE.
const DEFAULT: u64 = 0x5fb;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_RAW: u64 = 1 << 13;
const SYS_CHROOT: u64 = 1 << 18;

/// The fields and how many values of each there are, in the order [`Case::of`] reads them.
const FIELDS: [(&str, usize); 18] = [
    ("user", 4),
    ("group", 2),
    ("supplemental groups", 2),
    ("groups policy", 2),
    ("capabilities", 6),
    ("privileged", 2),
    ("no_new_privs", 2),
    ("read-only root", 2),
    ("masked paths", 2),
    ("read-only paths", 2),
    ("seccomp", 4),
    ("apparmor", 2),
    ("volume", 4),
    ("device", 2),
    ("limits", 3),
    ("terminal", 2),
    ("network and ipc", 3),
    ("pid", 3),
];

/// One row, read.
#[derive(Clone, Copy, Debug)]
struct Case {
    user: usize,
    group: bool,
    supplemental: bool,
    strict: bool,
    capabilities: usize,
    privileged: bool,
    no_new_privs: bool,
    readonly_rootfs: bool,
    masked: bool,
    readonly_paths: bool,
    seccomp: usize,
    apparmor: bool,
    volume: usize,
    device: bool,
    limits: usize,
    terminal: bool,
    network: usize,
    pid: usize,
}

impl Case {
    fn of(row: &[usize]) -> Self {
        let at = |index: usize| row.get(index).copied().unwrap_or_default();
        let is = |index: usize| at(index) == 1;
        Self {
            user: at(0),
            // A group needs a user.
            group: is(1) && at(0) != 0,
            supplemental: is(2),
            strict: is(3),
            capabilities: at(4),
            privileged: is(5),
            no_new_privs: is(6),
            readonly_rootfs: is(7),
            masked: is(8),
            readonly_paths: is(9),
            seccomp: at(10),
            apparmor: is(11),
            volume: at(12),
            device: is(13),
            limits: at(14),
            terminal: is(15),
            network: at(16),
            pid: at(17),
        }
    }

    fn pod(&self, rig: &Rig, name: &str) -> cri::PodSandboxConfig {
        let mut config = match self.network {
            0 => pods::pod(&rig.node, name),
            _ => pods::host_network_pod(&rig.node, name),
        };
        let linux = config.linux.get_or_insert_default();
        let context = linux.security_context.get_or_insert_default();
        context.privileged = self.privileged;
        let options = context.namespace_options.get_or_insert_default();
        options.ipc = self.ipc().into();
        options.pid = self.pid_mode().into();
        config
    }

    fn ipc(&self) -> NamespaceMode {
        match self.network {
            2 => NamespaceMode::Node,
            _ => NamespaceMode::Pod,
        }
    }

    fn pid_mode(&self) -> NamespaceMode {
        [
            NamespaceMode::Container,
            NamespaceMode::Pod,
            NamespaceMode::Node,
        ][self.pid]
    }

    fn container(&self, image: &str, profile: &str, volume: &Path) -> cri::ContainerConfig {
        let mut config = container("main", image, &["sleep", "1000"]);
        config.tty = self.terminal;
        let context = security(&mut config);
        let value = |value| Some(cri::Int64Value { value });
        match self.user {
            1 => context.run_as_user = value(0),
            2 => context.run_as_user = value(1000),
            3 => context.run_as_username = "app".to_owned(),
            _ => {}
        }
        context.run_as_group = value(2000).filter(|_| self.group);
        if self.supplemental {
            context.supplemental_groups = vec![3001, 3000];
        }
        if self.strict {
            context.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict.into();
        }
        context.capabilities = self.capability_changes();
        context.privileged = self.privileged;
        context.no_new_privs = self.no_new_privs;
        context.readonly_rootfs = self.readonly_rootfs;
        let list = |given: bool, paths: &[&str]| match given {
            true => paths.iter().map(|path| (*path).to_owned()).collect(),
            false => Vec::new(),
        };
        context.masked_paths = list(self.masked, &["/proc/meminfo", "/sys/kernel", "/nothing"]);
        context.readonly_paths = list(self.readonly_paths, &["/proc/sys", "/nothing"]);
        let security_profile = |kind: ProfileType, reference: &str| {
            Some(cri::SecurityProfile {
                profile_type: kind.into(),
                localhost_ref: reference.to_owned(),
            })
        };
        context.seccomp = match self.seccomp {
            1 => security_profile(ProfileType::RuntimeDefault, ""),
            2 => security_profile(ProfileType::Unconfined, ""),
            3 => security_profile(ProfileType::Localhost, profile),
            _ => None,
        };
        if self.apparmor {
            context.apparmor = security_profile(ProfileType::Unconfined, "");
        }
        if self.volume > 0 {
            config.mounts = vec![cri::Mount {
                recursive_read_only: self.volume == 2,
                mount_options: match self.volume {
                    3 => vec!["noexec".to_owned(), "nodev".to_owned()],
                    _ => Vec::new(),
                },
                ..mount(volume, "/vol", self.volume != 3)
            }];
        }
        if self.device {
            config.devices = vec![cri::Device {
                host_path: "/dev/fuse".to_owned(),
                container_path: "/dev/own".to_owned(),
                permissions: "r".to_owned(),
            }];
        }
        config.linux.get_or_insert_default().resources = self.resources();
        config
    }

    fn capability_changes(&self) -> Option<cri::Capability> {
        let lists: [(&[&str], &[&str], &[&str]); 6] = [
            (&[], &[], &[]),
            (&["SYS_CHROOT"], &["KILL"], &[]),
            (&[], &["ALL"], &[]),
            (&["CAP_NET_RAW"], &["ALL"], &[]),
            (&["all"], &[], &[]),
            (&[], &[], &["NET_BIND_SERVICE"]),
        ];
        let (add, drop, ambient) = lists[self.capabilities];
        let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        (self.capabilities > 0).then(|| cri::Capability {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            add_ambient_capabilities: owned(ambient),
        })
    }

    fn resources(&self) -> Option<cri::LinuxContainerResources> {
        match self.limits {
            1 => Some(cri::LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                cpu_shares: 512,
                ..Default::default()
            }),
            2 => Some(cri::LinuxContainerResources {
                oom_score_adj: 700,
                cpu_quota: 50_000,
                cpu_period: 100_000,
                ..Default::default()
            }),
            _ => None,
        }
    }
}

// ---- The model ----

impl Case {
    fn ids(&self) -> (u64, u64, Vec<u64>) {
        let (uid, primary, of_name) = match self.user {
            2 => (1000, 0, &[][..]),
            3 => (1500, 1600, &[1700][..]),
            _ => (0, 0, &[][..]),
        };
        let gid = if self.group { 2000 } else { primary };
        let mut groups = vec![gid];
        if self.supplemental {
            groups.extend([3000, 3001]);
        }
        if !self.strict {
            groups.extend(of_name);
        }
        groups.sort_unstable();
        (uid, gid, groups)
    }

    /// Inheritable, permitted, effective, bounding, ambient. `all` is what can be given here.
    fn capability_sets(&self, all: u64) -> [u64; 5] {
        let (base, ambient) = match self.capabilities {
            _ if self.privileged => (
                all,
                if self.capabilities == 5 {
                    NET_BIND_SERVICE
                } else {
                    0
                },
            ),
            1 => ((DEFAULT | SYS_CHROOT) & !(1 << 5), 0),
            2 => (0, 0),
            3 => (NET_RAW, 0),
            4 => (all, 0),
            5 => (DEFAULT | NET_BIND_SERVICE, NET_BIND_SERVICE),
            _ => (DEFAULT, 0),
        };
        // execve(2) by another user than root leaves the ambient ones alone.
        let kept = if self.ids().0 == 0 { base } else { ambient };
        [ambient, kept, kept, base, ambient]
    }

    fn filter_mode(&self) -> u64 {
        match self.seccomp {
            1 | 3 if !self.privileged => 2,
            _ => 0,
        }
    }
}

/// What differs from the model, a line each.
struct Differences(String);

impl Differences {
    fn compare<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, seen: T, expected: T) {
        if seen != expected {
            // Writing to a string can't fail.
            let _written = writeln!(self.0, "  {what}: {seen:?} instead of {expected:?}");
        }
    }
}

fn check(case: &Case, pid: u32, all: u64) -> Result<String> {
    let mut differences = Differences(String::new());
    check_identity(case, &ProcStatus::of(pid)?, all, &mut differences)?;
    check_namespaces(case, pid, &mut differences)?;
    check_mounts(case, &inside::mounts(pid)?, &mut differences);
    check_devices(case, pid, &mut differences)?;
    check_limits(case, pid, &mut differences)?;
    Ok(differences.0)
}

fn check_identity(
    case: &Case,
    status: &ProcStatus,
    all: u64,
    differences: &mut Differences,
) -> Result<()> {
    let (uid, gid, groups) = case.ids();
    differences.compare("Uid", status.numbers("Uid"), vec![uid; 4]);
    differences.compare("Gid", status.numbers("Gid"), vec![gid; 4]);
    differences.compare("Groups", status.numbers("Groups"), groups);
    differences.compare("Cap*", status.capabilities()?, case.capability_sets(all));
    let locked = status.number("NoNewPrivs")?;
    differences.compare("NoNewPrivs", locked, u64::from(case.no_new_privs));
    differences.compare("Seccomp", status.number("Seccomp")?, case.filter_mode());
    Ok(())
}

fn check_namespaces(case: &Case, pid: u32, differences: &mut Differences) -> Result<()> {
    let node_network = case.network > 0;
    let node_pid = case.pid_mode() == NamespaceMode::Node;
    for (kind, of_node) in [
        ("net", node_network),
        ("uts", node_network),
        ("ipc", case.ipc() == NamespaceMode::Node),
        ("pid", node_pid),
        ("mnt", false),
        ("cgroup", case.privileged),
        ("user", true),
    ] {
        let seen = namespace(pid, kind)? == namespace(std::process::id(), kind)?;
        differences.compare(&format!("{kind} namespace of the node"), seen, of_node);
    }
    // A shared PID namespace has the pause process for its first.
    let status = ProcStatus::of(pid)?;
    let inner = status.words("NSpid").last().map(|word| *word == "1");
    let expected = case.pid_mode() == NamespaceMode::Container;
    differences.compare("first in its PID namespace", inner, Some(expected));
    Ok(())
}

fn check_mounts(case: &Case, mounts: &[MountLine], differences: &mut Differences) {
    let has =
        |path: &str, option: &str| inside::mount_at(mounts, path).map(|mount| mount.has(option));
    differences.compare("/ read-only", has("/", "ro"), Some(case.readonly_rootfs));
    differences.compare(
        "/etc/hosts read-only",
        has("/etc/hosts", "ro"),
        Some(case.readonly_rootfs),
    );
    for path in ["/sys", "/sys/fs/cgroup"] {
        differences.compare(path, has(path, "rw"), Some(case.privileged));
    }
    let masked = (case.masked && !case.privileged).then_some(true);
    differences.compare("/sys/kernel masked", has("/sys/kernel", "ro"), masked);
    let null = has("/proc/meminfo", "rw").is_some();
    differences.compare("/proc/meminfo masked", null, masked.is_some());
    let readonly = (case.readonly_paths && !case.privileged).then_some(true);
    differences.compare("/proc/sys read-only", has("/proc/sys", "ro"), readonly);
    let volume = |option| has("/vol", option);
    let given = case.volume > 0;
    differences.compare(
        "/vol read-only",
        volume("ro"),
        given.then_some(case.volume != 3),
    );
    differences.compare(
        "/vol noexec",
        volume("noexec"),
        given.then_some(case.volume == 3),
    );
}

fn check_devices(case: &Case, pid: u32, differences: &mut Differences) -> Result<()> {
    for (path, expected) in [("dev/own", case.device), ("dev/fuse", case.privileged)] {
        let seen = Path::new(&format!("/proc/{pid}/root/{path}")).exists();
        differences.compare(path, seen, expected);
    }
    let stdin = fs::read_link(format!("/proc/{pid}/fd/0"))?
        .display()
        .to_string();
    let on_terminal = stdin.starts_with("/dev/pts/");
    differences.compare("terminal", on_terminal, case.terminal);
    Ok(())
}

fn check_limits(case: &Case, pid: u32, differences: &mut Differences) -> Result<()> {
    let score: i64 = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?
        .trim()
        .parse()?;
    let own: i64 = fs::read_to_string("/proc/self/oom_score_adj")?
        .trim()
        .parse()?;
    let asked = if case.limits == 2 { 700 } else { 0 };
    differences.compare("oom_score_adj", score, asked.max(own.min(0)));
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let file = |controller: &str, v1: &str, v2: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (names, path) = (fields.next()?, fields.next()?);
            match unified {
                true => Some(format!("/sys/fs/cgroup{path}/{v2}")),
                false if names.split(',').any(|name| name == controller) => {
                    Some(format!("/sys/fs/cgroup/{names}{path}/{v1}"))
                }
                false => None,
            }
        })
    };
    if case.limits == 1 {
        let path =
            file("memory", "memory.limit_in_bytes", "memory.max").context("no memory group")?;
        differences.compare("memory", fs::read_to_string(path)?.trim(), "67108864");
    }
    if case.limits == 2 {
        let path = file("cpu", "cpu.cfs_quota_us", "cpu.max").context("no cpu group")?;
        let text = fs::read_to_string(path)?;
        differences.compare("quota", text.split_whitespace().next(), Some("50000"));
    }
    Ok(())
}

fn describe(row: &[usize]) -> String {
    let parts: Vec<_> = FIELDS
        .iter()
        .zip(row)
        .map(|((name, _), value)| format!("{name} {value}"))
        .collect();
    parts.join(", ")
}

#[tokio::test]
async fn every_two_values_of_the_security_context_together() -> Result<()> {
    let least = match std::env::var("BULKHEAD_PAIRWISE") {
        Ok(text) => text
            .parse()
            .context("BULKHEAD_PAIRWISE is a number of pods")?,
        Err(_) => PODS,
    };
    let rows = pairwise::rows(&FIELDS.map(|(_, size)| size), least);
    let rig = Rig::start().await?;
    let files = Layer::new()
        .file(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\napp:x:1500:1600::/:/bin/sh\n",
        )
        .file("etc/group", "root:x:0:\napp:x:1600:\nextra:x:1700:app\n");
    let image = rig
        .publish("pairwise/app:1", &rig.busybox_with(files)?.build()?)
        .await?;
    let profile = rig.node.scratch("profiles")?.join("allow.json");
    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#)?;
    let profile = profile.display().to_string();
    let volume = rig.node.scratch("volume")?;
    let all = ProcStatus::of(rig.node.pid())?.mask("CapBnd")?;
    let mut wrong = String::new();
    for (index, row) in rows.iter().enumerate() {
        let case = Case::of(row);
        let pod = rig
            .run(case.pod(&rig, &format!("pairwise-{index}")))
            .await
            .with_context(|| describe(row))?;
        let config = case.container(&image, &profile, &volume);
        let id = rig
            .start_in(&pod, &config)
            .await
            .with_context(|| describe(row))?;
        let pid = rig.node.init_pid(&id).await?;
        let differences = check(&case, pid, all).with_context(|| describe(row))?;
        if !differences.is_empty() {
            // Writing to a string can't fail.
            let _written = writeln!(wrong, "pod {index} ({}):\n{differences}", describe(row));
        }
        rig.node.stop_pod(&pod.id).await?;
        rig.node.remove_pod(&pod.id).await?;
    }
    ensure!(wrong.is_empty(), "{} pods:\n{wrong}", rows.len());
    rig.finish().await
}
