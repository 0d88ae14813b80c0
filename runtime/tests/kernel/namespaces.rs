//! A pod's namespaces: made by descriptor, joined by containers, gone with the last of them.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;

use bulkhead_runtime::monitor::wire::{CreatePod, NamespaceMode, PidMode, PodPaths};
use bulkhead_runtime::namespaces::PodNamespaces;
use serde_json::{Value, json};

use crate::rig::{
    Scratch, exec, features, kill, null_stdio, process, ready, set, spec, with_mount, with_script,
};

pub(crate) fn request(directory: PathBuf) -> CreatePod {
    CreatePod {
        id: "pod".to_owned(),
        directory,
        hostname: Some("pod-name".to_owned()),
        network: NamespaceMode::New,
        ipc: NamespaceMode::New,
        uts: NamespaceMode::New,
        pid: PidMode::Container,
        user: None,
        sysctls: BTreeMap::from([
            ("kernel.shmmni".to_owned(), "77".to_owned()),
            (
                "net.ipv4.ip_unprivileged_port_start".to_owned(),
                "11".to_owned(),
            ),
        ]),
        shm_size: Some(1 << 20),
        cgroup: "/pod".to_owned(),
    }
}

pub(crate) fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

/// The spec of a container of the pod.
pub(crate) fn joined(paths: &PodPaths) -> Value {
    let mut namespaces = vec![json!({"type": "mount"})];
    for (kind, path) in [
        ("network", &paths.network),
        ("ipc", &paths.ipc),
        ("uts", &paths.uts),
    ] {
        namespaces.push(json!({"type": kind, "path": path.as_ref().unwrap()}));
    }
    namespaces.push(match &paths.pid {
        Some(path) => json!({"type": "pid", "path": path}),
        None => json!({"type": "pid"}),
    });
    let mut spec = set(&spec(), "/linux/namespaces", json!(namespaces));
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| mount["destination"] != "/dev/shm");
    let shm = json!({"destination": "/dev/shm", "source": paths.shm.as_ref().unwrap(), "options": ["rbind"]});
    with_mount(&spec, shm)
}

fn own_namespaces() -> Vec<PathBuf> {
    ["net", "ipc", "uts", "pid", "mnt"]
        .iter()
        .map(|kind| std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap())
        .collect()
}

#[test]
fn containers_of_a_pod_share_its_namespaces_and_shared_memory() {
    if !ready() {
        return;
    }
    for clone_detached in [true, false] {
        let scratch = Scratch::new(&format!("pod-{clone_detached}"));
        let mut features = features().clone();
        features.clone_detached &= clone_detached;
        let before = own_namespaces();
        let pod =
            PodNamespaces::create(&request(scratch.path.clone()), None, None, &features).unwrap();
        assert_eq!(own_namespaces(), before, "the caller came back");
        let paths = pod.paths(own_pid());
        let spec = joined(&paths);
        let script = "hostname; cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_unprivileged_port_start; \
            readlink /proc/self/ns/net; echo x >> /dev/shm/f; wc -l < /dev/shm/f; stat -c %a /dev/shm";
        for number in ["1", "2"] {
            let shown = scratch.shell(&spec, script);
            let net = std::fs::read_link(paths.network.as_ref().unwrap()).unwrap();
            assert_eq!(
                shown,
                format!("pod-name\n77\n11\n{}\n{number}\n1777\n", net.display())
            );
        }
        drop(pod);
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !table.contains("/shm shm") && !table.contains(&scratch.path.display().to_string()),
            "{table}"
        );
    }
}

#[test]
fn a_shared_pid_namespace_has_a_pause_process_with_nothing_of_the_nodes() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("pod-pid");
    let mut request = request(scratch.path.clone());
    request.pid = PidMode::Pod;
    let pod = PodNamespaces::create(&request, None, None, features()).unwrap();
    let paths = pod.paths(own_pid());
    let mut spec = joined(&paths);
    for set in ["bounding", "permitted", "effective"] {
        spec["process"]["capabilities"][set]
            .as_array_mut()
            .unwrap()
            .push(json!("CAP_SYS_PTRACE"));
    }
    let script = "grep -E '^(Name|Uid|CapPrm|CapBnd|NoNewPrivs|SigIgn)' /proc/1/status | sed 's/[\\t ].*//;s/$/ ok/' | wc -l; \
        cat /proc/1/comm; ls /proc/1/fd | wc -l; ls -a /proc/1/root/ | wc -l; grep CapPrm /proc/1/status; \
        sh -c 'sleep 0.05 & exec true'; sleep 0.2; grep -l State:.Z /proc/[0-9]*/status | wc -l; test $$ -gt 1 && echo joined";
    let shown = scratch.shell(&spec, script);
    assert_eq!(
        shown,
        "6\npause\n0\n2\nCapPrm:\t0000000000000000\n0\njoined\n"
    );
    let first = scratch
        .launch(&with_script(&spec, "sleep 100"), null_stdio())
        .unwrap();
    assert!(
        scratch.shell(&spec, "ps").contains("sleep 100"),
        "another container's process is seen"
    );
    let output = exec(
        &first,
        &process(&spec, json!(["sh", "-c", "readlink /proc/self/ns/pid"])),
    )
    .unwrap();
    let namespace = std::fs::read_link(paths.pid.unwrap()).unwrap();
    assert_eq!(output.stdout.trim(), namespace.display().to_string());
    let (pid, pidfd) = pod.pause().unwrap();
    let pidfd = pidfd.try_clone_to_owned().unwrap();
    assert_eq!(Some(pid), paths.pause);
    drop(pod);
    assert_eq!(
        crate::rig::wait(&first),
        137,
        "the namespace ended with its init"
    );
    // Its init ended only now, when its other processes were reaped.
    let options = rustix::process::WaitIdOptions::EXITED;
    let waited = rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), options);
    assert!(waited.unwrap().is_some());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_target_containers_pid_namespace_can_be_joined() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("pod-target");
    let target = scratch
        .launch(&with_script(&spec(), "sleep 100"), null_stdio())
        .unwrap();
    let other = Scratch::new("pod-target-2");
    let (stdio, pipes) = crate::rig::pipes();
    let pidfd = Box::leak(Box::new(target.pidfd.try_clone().unwrap()));
    let launched = other
        .launch_with(&with_script(&spec(), "ps; hostname"), stdio, |input| {
            input.pid_namespace = Some(pidfd.as_fd())
        })
        .unwrap();
    let output = pipes.collect(&launched);
    assert!(
        output.stdout.contains("sleep 100") && output.stdout.ends_with("inside\n"),
        "{output:?}"
    );
    kill(&target);
}

#[test]
fn a_network_namespace_made_ahead_is_taken_and_set_up() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("pod-ahead");
    let ahead =
        PodNamespaces::create(&request(scratch.path.clone()), None, None, features()).unwrap();
    let network = ahead.network_fd().unwrap().try_clone_to_owned().unwrap();
    let mut request = request(scratch.path.clone());
    request.network = NamespaceMode::Descriptor;
    request.sysctls = BTreeMap::from([(
        "net.ipv4.ip_unprivileged_port_start".to_owned(),
        "12".to_owned(),
    )]);
    let pod = PodNamespaces::create(&request, Some(network), None, features()).unwrap();
    drop(ahead);
    let shown = scratch.shell(
        &joined(&pod.paths(own_pid())),
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
    );
    assert_eq!(shown, "12\n");
    request.network = NamespaceMode::New;
    let stray = pod.network_fd().unwrap().try_clone_to_owned().unwrap();
    assert!(PodNamespaces::create(&request, Some(stray), None, features()).is_err());
}

#[test]
fn the_nodes_namespaces_are_not_changed() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("pod-host");
    for change in [
        |request: &mut CreatePod| request.uts = NamespaceMode::Host,
        |request: &mut CreatePod| request.network = NamespaceMode::Host,
        |request: &mut CreatePod| request.ipc = NamespaceMode::Host,
        |request: &mut CreatePod| request.ipc = NamespaceMode::Descriptor,
        |request: &mut CreatePod| {
            drop(
                request
                    .sysctls
                    .insert("kernel.core_pattern".to_owned(), "x".to_owned()),
            )
        },
    ] {
        let mut request = request(scratch.path.clone());
        change(&mut request);
        let before = own_namespaces();
        assert!(
            PodNamespaces::create(&request, None, None, features()).is_err(),
            "{request:?}"
        );
        assert_eq!(own_namespaces(), before);
    }
    let mut request = request(scratch.path.clone());
    request.sysctls = BTreeMap::from([("net.ipv4.no_such".to_owned(), "x".to_owned())]);
    let before = own_namespaces();
    let error = PodNamespaces::create(&request, None, None, features())
        .unwrap_err()
        .to_string();
    assert!(error.contains("no_such"), "{error}");
    assert_eq!(own_namespaces(), before, "it came back from a failure");
}

#[test]
fn what_is_no_namespace_is_not_joined() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("pod-none");
    for (kind, path) in [
        ("network", "/proc/self/ns/ipc"),
        ("ipc", "/etc/passwd"),
        ("uts", "/none"),
        ("pid", "/dev/null"),
    ] {
        let spec = set(
            &spec(),
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": kind, "path": path}]),
        );
        let spec = set(&spec, "/hostname", json!(""));
        let error = scratch.try_run(&spec).unwrap_err().to_string();
        assert!(error.contains(path), "{error}");
    }
}
