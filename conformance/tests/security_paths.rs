//! What a container sees and may write: masks, read-only paths and mounts, options, privilege, devices,
//! images as volumes.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bulkhead_conformance::images::ImageBuilder;
use bulkhead_conformance::inside::{self, ProcStatus};
use bulkhead_conformance::node::pods::{container, host_network_pod, mount, security};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_conformance::tar::Layer;
use bulkhead_proto::runtime::v1 as cri;

fn sleeper(name: &str, image: &str) -> cri::ContainerConfig {
    container(name, image, &["sleep", "1000"])
}

/// Whether a shell command in the container succeeds.
async fn succeeds(rig: &Rig, id: &str, script: &str) -> Result<bool> {
    Ok(rig.node.exec(id, &["sh", "-c", script]).await?.code == 0)
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// A pod that allows privileged containers.
async fn open_pod(rig: &Rig, name: &str) -> Result<Pod> {
    let mut config = host_network_pod(&rig.node, name);
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    rig.run(config).await
}

#[tokio::test]
async fn paths_are_masked_and_read_only_as_listed_and_open_without_a_list() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("paths").await?;
    let mut config = sleeper("listed", image);
    let context = security(&mut config);
    context.masked_paths = words(&["/proc/meminfo", "/etc", "/no/such/path"]);
    context.readonly_paths = words(&["/proc/sys", "/usr", "/no/such/path"]);
    let id = rig.start_in(&pod, &config).await?;
    assert_eq!(rig.node.output(&id, &["cat", "/proc/meminfo"]).await?, "");
    assert_eq!(rig.node.output(&id, &["ls", "-A", "/etc"]).await?, "");
    for (script, expected) in [
        ("touch /etc/x", false),
        ("touch /usr/x", false),
        ("touch /bin/x", true),
        ("echo 1 > /proc/sys/kernel/domainname", false),
    ] {
        assert_eq!(succeeds(&rig, &id, script).await?, expected, "{script}");
    }
    let mounts = inside::mounts(rig.node.init_pid(&id).await?)?;
    for (path, kind) in [("/proc/sys", "proc"), ("/etc", "tmpfs")] {
        let found = inside::mount_at(&mounts, path).context(path)?;
        ensure!(found.has("ro") && found.kind == kind, "{found:?}");
    }
    // procMount Unmasked: the kubelet sends empty lists.
    let id = rig.start_in(&pod, &sleeper("open", image)).await?;
    let text = rig.node.output(&id, &["cat", "/proc/meminfo"]).await?;
    ensure!(text.contains("MemTotal"), "{text}");
    let mounts = inside::mounts(rig.node.init_pid(&id).await?)?;
    ensure!(
        !mounts.iter().any(|mount| mount.path.starts_with("/proc/")),
        "{mounts:?}"
    );
    for (field, path) in [
        ("masked_paths", "proc/kcore"),
        ("readonly_paths", "/proc/../.."),
    ] {
        let mut config = sleeper("bad", image);
        match field {
            "masked_paths" => security(&mut config).masked_paths = words(&[path]),
            _ => security(&mut config).readonly_paths = words(&[path]),
        }
        let refused = rig.create_in(&pod, &config).await.expect_err(field);
        ensure!(refused.message().contains(field), "{refused:?}");
    }
    rig.finish().await
}

#[tokio::test]
async fn a_privileged_container_has_what_the_node_has_and_keeps_what_else_was_asked() -> Result<()>
{
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let closed = rig.pod("closed").await?;
    let mut config = sleeper("main", image);
    let context = security(&mut config);
    context.privileged = true;
    context.run_as_user = Some(cri::Int64Value { value: 0 });
    context.readonly_rootfs = true;
    context.masked_paths = words(&["/proc/meminfo"]);
    context.seccomp = Some(cri::SecurityProfile::default());
    config.mounts = vec![mount(&rig.node.scratch("volume")?, "/vol", true)];
    let refused = rig
        .create_in(&closed, &config)
        .await
        .expect_err("the pod is not for it");
    ensure!(refused.message().contains("privileged"), "{refused:?}");

    let pod = open_pod(&rig, "open").await?;
    let id = rig.start_in(&pod, &config).await?;
    let pid = rig.node.init_pid(&id).await?;
    let status = ProcStatus::of(pid)?;
    let daemon = ProcStatus::of(rig.node.pid())?.mask("CapBnd")?;
    assert_eq!(status.capabilities()?, [0, daemon, daemon, daemon, 0]);
    assert_eq!(status.number("Seccomp")?, 0);
    let mounts = inside::mounts(pid)?;
    for (path, mode) in [
        ("/", "ro"),
        ("/vol", "ro"),
        ("/sys", "rw"),
        ("/sys/fs/cgroup", "rw"),
    ] {
        let found = inside::mount_at(&mounts, path).context(path)?;
        ensure!(found.has(mode), "{path}: {found:?}");
    }
    ensure!(
        inside::mount_at(&mounts, "/proc/meminfo").is_none(),
        "nothing is masked"
    );
    // A device of the node's that no ordinary container has, and it can be used.
    let host = fs::symlink_metadata("/dev/fuse")?;
    ensure!(host.file_type().is_char_device(), "/dev/fuse");
    let inside = fs::symlink_metadata(format!("/proc/{pid}/root/dev/fuse"))?;
    assert_eq!(inside.rdev(), host.rdev());
    ensure!(
        succeeds(&rig, &id, ": < /dev/fuse").await?,
        "the device can't be opened"
    );
    let id = rig.start_in(&pod, &sleeper("plain", image)).await?;
    let pid = rig.node.init_pid(&id).await?;
    ensure!(
        !Path::new(&format!("/proc/{pid}/root/dev/fuse")).exists(),
        "a plain container"
    );
    rig.finish().await
}

#[tokio::test]
async fn a_recursive_read_only_mount_is_so_below_and_a_plain_one_is_not() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("rro").await?;
    let volume = rig.node.scratch("rro")?;
    let below = volume.join("below");
    fs::create_dir_all(&below)?;
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &below, "tmpfs", flags, None)?;
    let mut result = Ok(());
    for (name, recursive, writable) in [("plain", false, true), ("recursive", true, false)] {
        let mut config = sleeper(name, image);
        config.mounts = vec![cri::Mount {
            recursive_read_only: recursive,
            ..mount(&volume, "/vol", true)
        }];
        result = read_only_below(&rig, &pod, &config, writable).await;
        if result.is_err() {
            break;
        }
    }
    for (field, edit) in [
        ("readonly", (|m| m.readonly = false) as fn(&mut cri::Mount)),
        ("propagation", |m| {
            m.propagation = cri::MountPropagation::PropagationHostToContainer.into()
        }),
    ] {
        let mut config = sleeper("bad", image);
        let mut bad = cri::Mount {
            recursive_read_only: true,
            ..mount(&volume, "/vol", true)
        };
        edit(&mut bad);
        config.mounts = vec![bad];
        let refused = rig.create_in(&pod, &config).await.expect_err(field);
        ensure!(refused.message().contains(field), "{refused:?}");
    }
    rig.node.remove_pod(&pod.id).await?;
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH)?;
    result?;
    rig.finish().await
}

async fn read_only_below(
    rig: &Rig,
    pod: &Pod,
    config: &cri::ContainerConfig,
    writable: bool,
) -> Result<()> {
    let id = rig.start_in(pod, config).await?;
    let mounts = inside::mounts(rig.node.init_pid(&id).await?)?;
    let top = inside::mount_at(&mounts, "/vol").context("/vol")?;
    let below = inside::mount_at(&mounts, "/vol/below").context("/vol/below")?;
    ensure!(
        top.has("ro") && below.has("rw") == writable,
        "{top:?} {below:?}"
    );
    ensure!(
        !succeeds(rig, &id, "touch /vol/x").await?,
        "the top is read-only"
    );
    assert_eq!(succeeds(rig, &id, "touch /vol/below/x").await?, writable);
    Ok(())
}

#[tokio::test]
async fn mount_options_and_propagation_show_in_the_mount_table() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("options").await?;
    let volume = rig.node.scratch("options")?;
    let mut config = sleeper("main", image);
    config.mounts = [
        &[][..],
        &["noexec"],
        &["nodev", "nosuid"],
        &["nosuid", "noexec", "nodev"],
    ]
    .iter()
    .enumerate()
    .map(|(index, options)| cri::Mount {
        mount_options: words(options),
        ..mount(&volume, &format!("/v{index}"), false)
    })
    .collect();
    let id = rig.start_in(&pod, &config).await?;
    let mounts = inside::mounts(rig.node.init_pid(&id).await?)?;
    for asked in &config.mounts {
        let found = inside::mount_at(&mounts, &asked.container_path).context("a volume")?;
        for option in ["noexec", "nodev", "nosuid"] {
            let wanted = asked.mount_options.iter().any(|own| own == option);
            assert_eq!(found.has(option), wanted, "{option} of {found:?}");
        }
        ensure!(found.tags.is_empty(), "private: {found:?}");
    }
    let mut bad = config.clone();
    bad.mounts[0].mount_options = words(&["suid"]);
    let refused = rig.create_in(&pod, &bad).await.expect_err("no such option");
    ensure!(refused.message().contains("mount_options"), "{refused:?}");
    rig.finish().await
}

#[tokio::test]
async fn devices_are_made_with_their_numbers_and_allowed_as_asked() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("devices").await?;
    let device = |inside: &str, permissions: &str| cri::Device {
        host_path: "/dev/fuse".to_owned(),
        container_path: inside.to_owned(),
        permissions: permissions.to_owned(),
    };
    for (row, (permissions, readable, writable)) in [
        ("r", true, false),
        ("w", false, true),
        ("rw", true, true),
        ("", true, true),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = sleeper(&format!("c{row}"), image);
        config.devices = vec![device("/dev/own/log", permissions)];
        let id = rig.start_in(&pod, &config).await?;
        let pid = rig.node.init_pid(&id).await?;
        let inside = fs::symlink_metadata(format!("/proc/{pid}/root/dev/own/log"))?;
        let host = fs::symlink_metadata("/dev/fuse")?;
        assert_eq!((inside.rdev(), inside.mode()), (host.rdev(), host.mode()));
        assert_eq!((inside.uid(), inside.gid()), (host.uid(), host.gid()));
        // Opening is what the device group judges, and it needs no capability.
        for (script, expected) in [
            (": < /dev/own/log", readable),
            (": >> /dev/own/log", writable),
        ] {
            assert_eq!(
                succeeds(&rig, &id, script).await?,
                expected,
                "{permissions:?}: {script}"
            );
        }
    }
    for (field, bad) in [
        ("permissions", device("/dev/x", "rx")),
        (
            "host_path",
            cri::Device {
                host_path: "/dev/nothing-here".into(),
                ..device("", "")
            },
        ),
        (
            "host_path",
            cri::Device {
                host_path: "/etc/passwd".into(),
                ..device("", "")
            },
        ),
    ] {
        let mut config = sleeper("bad", image);
        config.devices = vec![bad];
        let refused = rig.create_in(&pod, &config).await.expect_err(field);
        ensure!(refused.message().contains(field), "{refused:?}");
    }
    rig.finish().await
}

#[tokio::test]
async fn cdi_devices_bring_what_their_vendor_s_file_says() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("bh-cdi-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let options = bulkhead_conformance::node::Options {
        config: format!(
            "[cdi]\ndirectories = [\"/no/such\", \"{}\"]\n",
            folder.display()
        ),
        ..Default::default()
    };
    let rig = Rig::start_with(options).await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("cdi").await?;
    let library = rig.node.scratch("library")?;
    fs::write(library.join("driver.so"), "driver")?;
    fs::write(
        folder.join("vendor.yaml"),
        format!(
            "cdiVersion: \"0.6.0\"\nkind: vendor.com/log\n\
             containerEdits:\n  env: [\"COMMON=1\"]\n\
             devices:\n\
             - name: \"0\"\n  containerEdits:\n    env: [\"LOG=zero\"]\n    additionalGids: [4321]\n\
             \x20   deviceNodes: [{{path: /dev/vendor0, hostPath: /dev/fuse, permissions: r, fileMode: 384}}]\n\
             \x20   mounts: [{{hostPath: \"{}\", containerPath: /vendor, options: [ro, rbind, nosuid]}}]\n\
             - name: hooked\n  containerEdits:\n    hooks: [{{hookName: createContainer, path: /bin/x}}]\n",
            library.display()
        ),
    )?;
    let named = |names: &[&str]| {
        names
            .iter()
            .map(|name| cri::CdiDevice {
                name: (*name).to_owned(),
            })
            .collect::<Vec<_>>()
    };
    let mut config = sleeper("main", image);
    config.cdi_devices = named(&["vendor.com/log=0"]);
    // Device plugins tell it twice.
    config
        .annotations
        .insert("cdi.k8s.io/plugin".into(), "vendor.com/log=0".into());
    let id = rig.start_in(&pod, &config).await?;
    let env = rig.node.output(&id, &["env"]).await?;
    ensure!(
        env.contains("LOG=zero\n") && env.contains("COMMON=1\n"),
        "{env}"
    );
    assert_eq!(
        rig.node.output(&id, &["cat", "/vendor/driver.so"]).await?,
        "driver"
    );
    let pid = rig.node.init_pid(&id).await?;
    let mounts = inside::mounts(pid)?;
    let mount = inside::mount_at(&mounts, "/vendor").context("/vendor")?;
    ensure!(mount.has("ro") && mount.has("nosuid"), "{mount:?}");
    ensure!(
        ProcStatus::of(pid)?.numbers("Groups").contains(&4321),
        "no group"
    );
    let node = fs::symlink_metadata(format!("/proc/{pid}/root/dev/vendor0"))?;
    assert_eq!(node.rdev(), fs::symlink_metadata("/dev/fuse")?.rdev());
    assert_eq!(node.mode() & 0o777, 0o600);
    ensure!(
        succeeds(&rig, &id, ": < /dev/vendor0").await?,
        "r was allowed"
    );
    ensure!(
        !succeeds(&rig, &id, ": >> /dev/vendor0").await?,
        "w was not"
    );

    let mut refused: Vec<(cri::ContainerConfig, [&str; 2])> = Vec::new();
    for (name, words) in [
        ("vendor.com/log=1", ["vendor.com/log=1", "is in no file"]),
        ("vendor.com/log=hooked", ["vendor.yaml", "hooks"]),
        (
            "vendor.com/log",
            ["CDI_devices[0].name", "vendor.com/class=name"],
        ),
    ] {
        let mut config = sleeper("bad", image);
        config.cdi_devices = named(&[name]);
        refused.push((config, words));
    }
    let mut config = sleeper("bad", image);
    config
        .annotations
        .insert("cdi.k8s.io/x".into(), "vendor.com/log=0".into());
    refused.push((config, ["cdi.k8s.io/x", "CDI_devices"]));
    for (config, words) in refused {
        let refused = rig.create_in(&pod, &config).await.expect_err(words[0]);
        for word in words {
            ensure!(refused.message().contains(word), "{refused:?}");
        }
    }
    fs::remove_dir_all(&folder)?;
    rig.finish().await
}

#[tokio::test]
async fn an_image_is_mounted_whole_or_in_part_and_stays_while_it_is() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("images").await?;
    let files = ImageBuilder::new()
        .layer(
            Layer::new()
                .file("top", "lower")
                .file("data/model/weights", "heavy"),
        )?
        .layer(
            Layer::new()
                .file("top", "upper")
                .symlink("link", "data/model")
                .symlink("out", "../../../../etc"),
        )?
        .build()?;
    let reference = rig.publish("volumes/model:1", &files).await?;
    let listed = rig.node.image(&reference).await?.context("pulled")?;
    let volume = |path: &str, sub: &str| cri::Mount {
        container_path: path.to_owned(),
        readonly: true,
        image: Some(cri::ImageSpec {
            image: reference.clone(),
            ..Default::default()
        }),
        image_sub_path: sub.to_owned(),
        ..Default::default()
    };
    let mut config = sleeper("main", image);
    config.mounts = vec![
        volume("/whole", ""),
        volume("/part", "data/model"),
        volume("/linked", "link"),
        volume("/file", "data/model/weights"),
        cri::Mount {
            mount_options: words(&["noexec"]),
            ..volume("/hard", "")
        },
    ];
    let id = rig.start_in(&pod, &config).await?;
    for (path, text) in [
        ("/whole/top", "upper"),
        ("/whole/data/model/weights", "heavy"),
        ("/part/weights", "heavy"),
        ("/linked/weights", "heavy"),
        ("/file", "heavy"),
    ] {
        assert_eq!(rig.node.output(&id, &["cat", path]).await?, text, "{path}");
    }
    ensure!(!succeeds(&rig, &id, "touch /whole/x").await?, "read-only");
    let mounts = inside::mounts(rig.node.init_pid(&id).await?)?;
    for (path, noexec) in [("/whole", false), ("/part", false), ("/hard", true)] {
        let found = inside::mount_at(&mounts, path).context(path)?;
        ensure!(
            found.has("ro") && found.has("noexec") == noexec,
            "{found:?}"
        );
    }
    // What the kubelet compares before it removes an image.
    for told in rig.node.status(&id).await?.mounts {
        let told = told.image.context("a mount of an image")?;
        assert_eq!(
            (told.image, told.image_ref),
            (listed.id.clone(), listed.id.clone())
        );
    }
    rig.node.remove_image(&reference).await?;
    assert_eq!(rig.node.output(&id, &["cat", "/whole/top"]).await?, "upper");

    for (words, bad) in [
        (
            ["ImageVolumeMountFailed: ", "pull it first"],
            volume("/x", ""),
        ),
        (
            ["readonly", "read-only"],
            cri::Mount {
                readonly: false,
                ..volume("/x", "")
            },
        ),
        (["image_sub_path", ".."], volume("/x", "a/../../b")),
    ] {
        let mut config = sleeper("bad", image);
        config.mounts = vec![bad];
        let refused = rig.create_in(&pod, &config).await.expect_err(words[0]);
        for word in words {
            ensure!(refused.message().contains(word), "{refused:?}");
        }
    }
    rig.publish("volumes/model:1", &files).await?;
    for sub in ["missing", "out/passwd"] {
        let mut config = sleeper("bad", image);
        config.mounts = vec![volume("/x", sub)];
        let refused = rig.create_in(&pod, &config).await.expect_err(sub);
        ensure!(
            refused.message().starts_with("ImageVolumeMountFailed: "),
            "{refused:?}"
        );
    }
    rig.finish().await
}
