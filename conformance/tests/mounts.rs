//! What a container finds mounted: cases M7, S1, S5, S7.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bulkhead_conformance::node::pods::{container, mount, security};
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::tar::{Entry, Layer};
use bulkhead_proto::runtime::v1 as cri;
use serde_json::json;

#[tokio::test]
async fn m7_a_volume_of_the_image_keeps_owner_mode_and_content() -> Result<()> {
    let rig = Rig::start().await?;
    let layer = Layer::new()
        .entry(Entry::directory("data").owner(65534, 65534).mode(0o750))
        .entry(
            Entry::file("data/f", "seed")
                .owner(65534, 65534)
                .mode(0o640),
        );
    let image = rig
        .busybox_with(layer)?
        .config("Volumes", json!({"/data": {}, "/absent": {}}))
        .config("User", json!("65534"))
        .build()?;
    let reference = rig.publish("m7/volumes:1", &image).await?;
    let pod = rig.pod("m7").await?;
    let script = "stat -c '%u %g %a' /data /data/f; cat /data/f; echo; echo new > /data/n; \
                  cat /data/n; ls -A /absent | wc -l; \
                  grep -cE ' /(data|absent) ' /proc/self/mountinfo";
    let main = container("main", &reference, &["sh", "-c", script]);
    let (code, text) = rig.run_in(&pod, &main).await?;
    assert_eq!(
        (code, text.as_str()),
        (0, "65534 65534 750\n65534 65534 640\nseed\nnew\n0\n2\n")
    );

    let own = rig.node.scratch("own")?;
    fs::write(own.join("mine"), "")?;
    let mut config = container("given", &reference, &["ls", "-A", "/data"]);
    config.mounts = vec![mount(&own, "/data", false)];
    assert_eq!(
        rig.run_in(&pod, &config).await?,
        (0, "mine\n".to_owned()),
        "a CRI mount wins"
    );
    for container in rig.node.list_containers().await? {
        rig.node.remove_container(&container.id).await?;
        let left = find(rig.node.root(), &container.id)?;
        ensure!(left.is_empty(), "left on disk: {left:?}");
    }
    rig.finish().await
}

/// Paths below `folder` whose last part holds `name`; logs and the test's own folders aside.
fn find(folder: &Path, name: &str) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        if ["logs", "scratch"]
            .iter()
            .any(|own| entry.file_name() == *own)
        {
            continue;
        }
        if entry.file_name().to_string_lossy().contains(name) {
            found.push(path);
        } else if entry.file_type()?.is_dir() {
            found.extend(find(&path, name)?);
        }
    }
    Ok(found)
}

#[tokio::test]
async fn s1_a_mount_target_behind_the_images_symlink_stays_in_the_image() -> Result<()> {
    let rig = Rig::start().await?;
    let pod = rig.pod("s1").await?;
    let volume = rig.node.scratch("secret")?;
    fs::write(volume.join("f"), "secret")?;
    // A name of this test's own below /run, so that the host's being free of it says something.
    let target = format!("bulkhead-s1-{}/t", std::process::id());
    for (row, link) in ["/run", "../run", "../../../../run"]
        .into_iter()
        .enumerate()
    {
        let layer = Layer::new()
            .directory("run")
            .directory("var")
            .symlink("var/run", link);
        let image = rig.busybox_with(layer)?.build()?;
        let reference = rig.publish(&format!("s1/link:{row}"), &image).await?;
        let script = format!(
            "cat /var/run/{target}/f /run/{target}/f; \
             grep -c ' /run/{target} ' /proc/self/mountinfo"
        );
        let mut config = container(&format!("c{row}"), &reference, &["sh", "-c", &script]);
        config.mounts = vec![mount(&volume, &format!("/var/run/{target}"), true)];
        let done = rig.run_in(&pod, &config).await?;
        assert_eq!(done, (0, "secretsecret1\n".to_owned()), "{link}");
        let host = Path::new("/run").join(&target);
        assert!(!host.exists(), "{link}: made on the host");
    }

    let layer = Layer::new()
        .directory("v")
        .symlink("v/dangling", "/bulkhead-s1-nowhere/x")
        .symlink("v/magic", "/proc/self");
    let image = rig.busybox_with(layer)?.build()?;
    let reference = rig.publish("s1/odd:1", &image).await?;
    for (name, target, inside) in [
        ("dangling", "/v/dangling", "/bulkhead-s1-nowhere/x/f"),
        ("magic", "/v/magic", "/proc/self/f"),
    ] {
        let mut config = container(name, &reference, &["cat", inside]);
        config.mounts = vec![mount(&volume, target, true)];
        // Resolved inside the rootfs or refused by its name; never a silence.
        match rig.run_in(&pod, &config).await {
            Ok(done) => assert_eq!(done, (0, "secret".to_owned() + "\n"), "{name}"),
            Err(refused) => {
                let message = format!("{refused:#}");
                assert!(message.contains(target), "{name}: {message}");
            }
        }
        assert!(
            !Path::new("/bulkhead-s1-nowhere").exists(),
            "made on the host"
        );
    }
    rig.finish().await
}

#[tokio::test]
async fn s5_a_writable_volume_inside_a_read_only_one() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("s5").await?;
    let script = "echo a > /cfg/a 2>/dev/null && echo parent-writable; \
                  echo b > /cfg/custom/b && cat /cfg/custom/b; \
                  echo c > /cfg/custom/deep/c 2>/dev/null && echo deep-writable; \
                  ls /cfg/custom/deep; ls /cfg";
    for has_point in [true, false] {
        for reversed in [false, true] {
            let tag = format!("{has_point}-{reversed}");
            let [outer, middle, inner] =
                ["outer", "middle", "inner"].map(|name| rig.node.scratch(&format!("{tag}-{name}")));
            let (outer, middle, inner) = (outer?, middle?, inner?);
            fs::write(outer.join("file"), "")?;
            fs::write(inner.join("bottom"), "")?;
            if has_point {
                fs::create_dir(outer.join("custom"))?;
                fs::create_dir(middle.join("deep"))?;
            }
            let mut config = container(&format!("c{tag}"), busybox, &["sh", "-c", script]);
            config.mounts = vec![
                mount(&outer, "/cfg", true),
                mount(&middle, "/cfg/custom", false),
                mount(&inner, "/cfg/custom/deep", true),
            ];
            if reversed {
                config.mounts.reverse();
            }
            match rig.run_in(&pod, &config).await {
                Ok((_, text)) => {
                    assert_eq!(text, "b\nbottom\ncustom\nfile\n", "{tag}");
                    assert_eq!(fs::read_to_string(middle.join("b"))?, "b\n", "{tag}");
                }
                Err(refused) if !has_point => {
                    let message = format!("{refused:#}");
                    assert!(message.contains("/cfg/custom"), "{tag}: {message}");
                }
                Err(refused) => return Err(refused.context(tag)),
            }
        }
    }
    rig.finish().await
}

#[tokio::test]
async fn s7_volumes_on_the_places_the_runtime_makes_itself() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.networked_pod("s7").await?;
    let shm = rig.node.scratch("shm")?;
    rustix::mount::mount(
        "tmpfs",
        &shm,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=200m"),
    )?;
    let files = rig.node.scratch("files")?;
    let names = [
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/hostname",
        "/dev/termination-log",
    ];
    let mut config = container("given", busybox, &["sleep", "1000"]);
    config.mounts = vec![mount(&shm, "/dev/shm", false)];
    for name in names {
        let file = files.join(name.rsplit('/').next().unwrap_or(name));
        fs::write(&file, name)?;
        config.mounts.push(mount(&file, name, false));
    }
    let given = rig.start_in(&pod, &config).await?;
    for name in names {
        assert_eq!(rig.node.output(&given, &["cat", name]).await?, name);
    }
    let mounts = rig
        .node
        .output(&given, &["cat", "/proc/self/mountinfo"])
        .await?;
    for name in names.into_iter().chain(["/dev/shm"]) {
        let count = mounts
            .lines()
            .filter(|line| line.split(' ').nth(4) == Some(name))
            .count();
        assert_eq!(count, 1, "{name} in\n{mounts}");
    }
    assert_eq!(shm_size(&rig, &given).await?, 200 << 10);

    let plain = container("plain", busybox, &["sleep", "1000"]);
    let other = container("other", busybox, &["sleep", "1000"]);
    let (plain, other) = (
        rig.start_in(&pod, &plain).await?,
        rig.start_in(&pod, &other).await?,
    );
    assert_eq!(shm_size(&rig, &plain).await?, 64 << 10);
    rig.node
        .output(&plain, &["sh", "-c", "echo shared > /dev/shm/word"])
        .await?;
    assert_eq!(
        rig.node.output(&other, &["cat", "/dev/shm/word"]).await?,
        "shared\n"
    );
    assert_eq!(
        rig.node.output(&given, &["ls", "-A", "/dev/shm"]).await?,
        ""
    );

    let mut host = bulkhead_conformance::node::pods::host_network_pod(&rig.node, "s7-host");
    if let Some(context) = host
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
        && let Some(options) = context.namespace_options.as_mut()
    {
        options.ipc = cri::NamespaceMode::Node.into();
    }
    let host = rig.run(host).await?;
    let id = rig
        .start_in(&host, &container("main", busybox, &["sleep", "1000"]))
        .await?;
    let word = format!("bulkhead-s7-{}", std::process::id());
    fs::write(Path::new("/dev/shm").join(&word), "host")?;
    let seen = rig
        .node
        .output(&id, &["cat", &format!("/dev/shm/{word}")])
        .await;
    fs::remove_file(Path::new("/dev/shm").join(&word))?;
    assert_eq!(seen?, "host", "a host-IPC pod has the host's");
    rig.node.remove_pod(&pod.id).await?;
    rustix::mount::unmount(&shm, rustix::mount::UnmountFlags::empty())
        .context("the runtime holds the test's tmpfs")?;
    rig.finish().await
}

/// The size of /dev/shm in KiB.
async fn shm_size(rig: &Rig, id: &str) -> Result<u64> {
    let text = rig.node.output(id, &["df", "-k", "/dev/shm"]).await?;
    let size = text
        .lines()
        .nth(1)
        .and_then(|line| line.split_whitespace().nth(1));
    Ok(size.context("df's second line")?.parse()?)
}

#[tokio::test]
async fn a_read_only_root_leaves_volumes_and_dev_writable() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("readonly").await?;
    let volume = rig.node.scratch("volume")?;
    chown(&volume, Some(1000), Some(1000))?;
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o700))?;
    let script = "touch /x 2>/dev/null && echo root; touch /vol/x && echo volume; \
                  touch /dev/shm/x && echo shm; touch /etc/hosts 2>/dev/null && echo hosts; true";
    let mut config = container("main", busybox, &["sh", "-c", script]);
    config.mounts = vec![mount(&volume, "/vol", false)];
    security(&mut config).readonly_rootfs = true;
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
    assert_eq!(
        rig.run_in(&pod, &config).await?,
        (0, "volume\nshm\n".to_owned())
    );
    rig.finish().await
}
