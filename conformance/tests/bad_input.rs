//! Bad input: the right code, a message that names the cause, nothing left behind.

use std::fs;

use anyhow::Result;
use bulkhead_conformance::node::pods::{self, container, labels, mount};
use bulkhead_conformance::rig::Rig;
use bulkhead_proto::runtime::v1 as cri;
use tonic::{Code, Status};

/// The code, and every word in one line.
fn expect<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &[&str]) {
    let status = result.expect_err(&format!("must be refused for {words:?}"));
    assert_eq!(status.code(), code, "{status:?}");
    assert!(!status.message().contains('\n'), "one line: {status:?}");
    for word in words {
        assert!(status.message().contains(word), "no {word:?} in {status:?}");
    }
}

#[tokio::test]
async fn pods_are_refused_by_name_and_leave_nothing() -> Result<()> {
    let rig = Rig::start().await?;
    let config = pods::pod(&rig.node, "bad");
    let request = cri::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: "kata".to_owned(),
    };
    let answer = rig.node.runtime.clone().run_pod_sandbox(request).await;
    expect(answer, Code::InvalidArgument, &["kata"]);

    expect(
        rig.node
            .run_pod(&cri::PodSandboxConfig {
                metadata: None,
                ..config.clone()
            })
            .await,
        Code::InvalidArgument,
        &["metadata"],
    );
    let long = cri::PodSandboxConfig {
        hostname: "h".repeat(65),
        ..config.clone()
    };
    expect(
        rig.node.run_pod(&long).await,
        Code::InvalidArgument,
        &["hostname"],
    );

    let mut sysctl = config.clone();
    sysctl.linux.get_or_insert_default().sysctls = labels(&[("kernel.panic", "1")]);
    expect(
        rig.node.run_pod(&sysctl).await,
        Code::InvalidArgument,
        &["kernel.panic"],
    );

    let mut escaping = config.clone();
    escaping.linux.get_or_insert_default().cgroup_parent = "/../../outside".to_owned();
    expect(
        rig.node.run_pod(&escaping).await,
        Code::InvalidArgument,
        &["cgroup_parent"],
    );
    let mut systemd = config.clone();
    systemd.linux.get_or_insert_default().cgroup_parent = "pods.slice".to_owned();
    expect(
        rig.node.run_pod(&systemd).await,
        Code::InvalidArgument,
        &["pods.slice"],
    );

    assert_eq!(rig.node.list_pods().await?.len(), 0);
    let pod = rig.run(config.clone()).await?;
    assert_eq!(
        rig.node.run_pod(&config).await?,
        pod.id,
        "a repeated request is answered alike"
    );
    let other = cri::PodSandboxConfig {
        hostname: "other".to_owned(),
        ..config
    };
    expect(
        rig.node.run_pod(&other).await,
        Code::AlreadyExists,
        &["bad"],
    );
    rig.finish().await
}

/// The kubelet makes its pods' cgroups itself. A parent of another caller's that is missing is made,
/// as containerd and CRI-O do, and goes with the last pod in it; none given means the configured
/// one; one that can't be made is refused by its name.
#[tokio::test]
async fn a_missing_cgroup_parent_is_made_for_as_long_as_it_is_used_or_refused_by_name() -> Result<()>
{
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let below = |name: &str, parent: &str| {
        let mut config = pods::host_network_pod(&rig.node, name);
        parent.clone_into(&mut config.linux.get_or_insert_default().cgroup_parent);
        config
    };
    for (name, parent, want) in [
        (
            "one",
            "/bulkhead-conformance/made/deep",
            "/bulkhead-conformance/made/deep/",
        ),
        (
            "two",
            "/bulkhead-conformance/made/deep",
            "/bulkhead-conformance/made/deep/",
        ),
        ("none", "", "/bulkhead/"),
    ] {
        let pod = rig.run(below(name, parent)).await?;
        let config = container("main", busybox, &["sleep", "1000"]);
        let pid = rig
            .node
            .init_pid(&rig.start_in(&pod, &config).await?)
            .await?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let accounted = groups
            .lines()
            .any(|line| line.contains(&format!(":{want}")));
        assert!(accounted, "{name}:\n{groups}");
    }
    let made = || -> Result<Vec<std::path::PathBuf>> {
        let roots = fs::read_dir("/sys/fs/cgroup")?
            .flatten()
            .map(|entry| entry.path());
        let roots = roots.chain(["/sys/fs/cgroup".into()]);
        let found = roots.map(|root| root.join("bulkhead-conformance/made"));
        Ok(found.filter(|path| path.exists()).collect())
    };
    assert!(!made()?.is_empty());
    for pod in rig.node.list_pods().await? {
        rig.node.stop_pod(&pod.id).await?;
        rig.node.remove_pod(&pod.id).await?;
    }
    assert_eq!(made()?, Vec::<std::path::PathBuf>::new(), "left behind");

    // The name of a control file, so that no cgroup can have it.
    let parent = "/bulkhead-conformance/cgroup.procs/x";
    let refused = rig.node.run_pod(&below("file", parent)).await;
    expect(refused, Code::InvalidArgument, &["cgroup.procs"]);
    assert_eq!(rig.node.list_pods().await?.len(), 0);
    rig.finish().await
}

#[tokio::test]
async fn a_host_port_is_given_once() -> Result<()> {
    let rig = Rig::start().await?;
    let with_port = |name: &str, port: i32| cri::PodSandboxConfig {
        port_mappings: vec![cri::PortMapping {
            protocol: cri::Protocol::Tcp.into(),
            container_port: 80,
            host_port: port,
            host_ip: String::new(),
        }],
        ..pods::pod(&rig.node, name)
    };
    rig.run(with_port("first", 12_345)).await?;
    let second = rig
        .node
        .run_pod(&with_port("second", 12_345))
        .await
        .expect_err("taken");
    assert!(second.message().contains("12345"), "{second:?}");
    assert_eq!(rig.node.list_pods().await?.len(), 1);
    rig.run(with_port("none", 0)).await?;
    rig.finish().await
}

#[tokio::test]
async fn images_are_refused_by_name() -> Result<()> {
    let rig = Rig::start().await?;
    for reference in [
        "UPPER/case:1",
        "a/b:tag with space",
        "a/b@sha256:short",
        "",
        "a//b",
    ] {
        let refused = rig.node.pull(reference).await.expect_err(reference);
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains(reference), "{refused:?}");
    }
    let absent = rig.registry.reference("no/such:1");
    let refused = rig.node.pull(&absent).await.expect_err("not served");
    assert!(refused.message().contains("no/such"), "{refused:?}");
    // Nothing listens on port 1 of loopback.
    let refused = rig
        .node
        .pull("127.0.0.1:1/a/b:1")
        .await
        .expect_err("no registry");
    assert_eq!(refused.code(), Code::Unknown, "{refused:?}");
    assert!(
        refused.message().starts_with("RegistryUnavailable"),
        "{refused:?}"
    );
    assert_eq!(rig.node.image("registry.k8s.io/absent:1").await?, None);
    rig.node.remove_image("registry.k8s.io/absent:1").await?;
    rig.finish().await
}

#[tokio::test]
async fn containers_are_refused_by_name_and_leave_nothing() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("bad").await?;
    let absent = container("absent", "registry.k8s.io/never-pulled:1", &["true"]);
    expect(
        rig.create_in(&pod, &absent).await,
        Code::NotFound,
        &["never-pulled"],
    );

    let plain = container("main", busybox, &["sleep", "1000"]);
    let nowhere = rig.node.create(&"0".repeat(64), &pod.config, &plain).await;
    expect(nowhere, Code::NotFound, &["0000"]);

    let file = rig.node.scratch("files")?.join("file");
    fs::write(&file, "")?;
    for (row, host) in [file.join("below"), "relative".into()]
        .into_iter()
        .enumerate()
    {
        let mut config = container(&format!("mount{row}"), busybox, &["true"]);
        config.mounts = vec![mount(&host, "/vol", false)];
        let refused = rig
            .start_in(&pod, &config)
            .await
            .expect_err("no such host path");
        let message = format!("{refused:#}");
        assert!(message.contains(&host.display().to_string()), "{message}");
    }
    let made = rig.node.scratch("parent")?.join("made/by/bulkhead");
    let mut config = container("made", busybox, &["ls", "-A", "/vol"]);
    config.mounts = vec![mount(&made, "/vol", false)];
    assert_eq!(
        rig.run_in(&pod, &config).await?.0,
        0,
        "an absent host path is made"
    );
    assert!(made.is_dir());

    let escaping = cri::ContainerConfig {
        log_path: "../../log".to_owned(),
        ..plain.clone()
    };
    expect(
        rig.create_in(&pod, &escaping).await,
        Code::InvalidArgument,
        &["log_path"],
    );
    let unnamed = cri::ContainerConfig {
        metadata: None,
        ..plain.clone()
    };
    expect(
        rig.create_in(&pod, &unnamed).await,
        Code::InvalidArgument,
        &["metadata"],
    );
    let mut capability = plain.clone();
    pods::security(&mut capability).capabilities = Some(cri::Capability {
        add_capabilities: vec!["FLY".to_owned()],
        ..Default::default()
    });
    expect(
        rig.create_in(&pod, &capability).await,
        Code::InvalidArgument,
        &["FLY"],
    );
    let mut privileged = plain.clone();
    pods::security(&mut privileged).privileged = true;
    expect(
        rig.create_in(&pod, &privileged).await,
        Code::InvalidArgument,
        &["privileged"],
    );

    let id = rig.start_in(&pod, &plain).await?;
    let other = cri::ContainerConfig {
        tty: true,
        ..plain.clone()
    };
    expect(
        rig.create_in(&pod, &other).await,
        Code::AlreadyExists,
        &["main"],
    );
    expect(
        rig.node.start_container(&id).await,
        Code::FailedPrecondition,
        &["unning"],
    );
    expect(
        rig.node.start_container(&"f".repeat(64)).await,
        Code::NotFound,
        &["ffff"],
    );
    expect(
        rig.node.exec(&"f".repeat(64), &["true"]).await,
        Code::NotFound,
        &["ffff"],
    );
    expect(
        rig.node.exec(&id, &[]).await,
        Code::InvalidArgument,
        &["cmd"],
    );
    assert_eq!(
        rig.node.exec(&id, &["sh", "-c", "kill -9 $$"]).await?.code,
        137
    );
    rig.node.stop_container(&id, 0).await?;
    expect(
        rig.node.exec(&id, &["true"]).await,
        Code::FailedPrecondition,
        &[],
    );
    rig.finish().await
}
