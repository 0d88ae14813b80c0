//! What a container's process is: cases M4, M5, M6, S3, S4.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use bulkhead_conformance::images::{ImageBuilder, catalog};
use bulkhead_conformance::node::Limits;
use bulkhead_conformance::node::pods::{container, mount, security};
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::tar::{Entry, Layer};
use bulkhead_conformance::wait;
use bulkhead_proto::runtime::v1 as cri;
use serde_json::{Value, json};

#[tokio::test]
async fn m4_command_and_args_against_entrypoint_and_cmd() -> Result<()> {
    let rig = Rig::start().await?;
    let pod = rig.pod("m4").await?;
    let mut number = 0;
    for (entrypoint, cmd, rows) in [
        (
            json!(["/bin/echo"]),
            json!(["a"]),
            [(&[][..], &[][..], Ok("a\n")), (&[], &["x"], Ok("x\n"))],
        ),
        (
            json!([""]),
            json!(["/bin/echo", "b"]),
            [(&[], &[], Ok("b\n")), (&[], &["/bin/echo", "x"], Ok("x\n"))],
        ),
        (
            Value::Null,
            Value::Null,
            [
                (&[], &[], Err("no command")),
                (&[], &["/bin/echo", "x"], Ok("x\n")),
            ],
        ),
    ] {
        number += 1;
        let image = ImageBuilder::new()
            .packed(rig.base(catalog::BUSYBOX)?)
            .config("Entrypoint", entrypoint)
            .config("Cmd", cmd)
            .config("WorkingDir", json!(format!("/made-{number}")))
            .build()?;
        let reference = rig.publish(&format!("m4/image:{number}"), &image).await?;
        let given: [(&[&str], &[&str], _); 2] = [
            (&["/bin/echo", "k"], &[], Ok("k\n")),
            (&["/bin/echo", "k"], &["x"], Ok("k x\n")),
        ];
        for (row, (command, args, want)) in rows.into_iter().chain(given).enumerate() {
            let mut config = container(&format!("c{number}-{row}"), &reference, command);
            config.args = args.iter().map(|word| (*word).to_owned()).collect();
            let done = rig.run_in(&pod, &config).await;
            match want {
                Ok(text) => assert_eq!(done?, (0, text.to_owned()), "image {number}, row {row}"),
                Err(why) => {
                    let message = format!("{:#}", done.expect_err("nothing to run"));
                    assert!(
                        message.contains(why),
                        "image {number}, row {row}: {message}"
                    );
                }
            }
        }
    }
    rig.finish().await
}

#[tokio::test]
async fn m5_env_entries_that_are_no_assignment() -> Result<()> {
    let rig = Rig::start().await?;
    let image = ImageBuilder::new()
        .packed(rig.base(catalog::BUSYBOX)?)
        .config("Env", json!(["PATH=/bin", "BARE", "=odd", "A=1", "B=x=y"]))
        .build()?;
    let reference = rig.publish("m5/env:1", &image).await?;
    let pod = rig.pod("m5").await?;
    let mut config = container(
        "main",
        &reference,
        &["sh", "-c", "probe environ; sleep 1000"],
    );
    config.envs = [("A", "2"), ("EMPTY", "")]
        .map(|(key, value)| cri::KeyValue {
            key: key.to_owned(),
            value: value.into(),
        })
        .to_vec();
    let id = rig.start_in(&pod, &config).await?;
    let path = rig.node.status(&id).await?.log_path;
    let limit = std::time::Duration::from_secs(10);
    let own = wait::until("the environment in the log", limit, async || {
        let log = bulkhead_conformance::node::Log::read(&path)?.stdout();
        Ok(log.contains("EMPTY").then_some(log))
    })
    .await?;
    let by_exec = rig.node.output(&id, &["probe", "environ"]).await?;
    for (from, text) in [("container", own), ("exec", by_exec)] {
        let lines: Vec<&str> = text.lines().collect();
        for want in ["A=2", "B=x=y", "EMPTY=", "PATH=/bin"] {
            let count = lines.iter().filter(|line| **line == want).count();
            assert_eq!(count, 1, "{want} by {from} in {lines:?}");
        }
        assert!(
            !lines.iter().any(|line| *line == "A=1" || *line == "=odd"),
            "{from}: {lines:?}"
        );
        assert!(!lines.contains(&"BARE"), "{from}: {lines:?}");
    }
    rig.finish().await
}

/// A field of /proc/self/status.
fn field<'a>(status: &'a str, name: &str) -> Vec<&'a str> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().collect()
}

#[tokio::test]
async fn m6_users_without_a_passwd_file_and_groups_of_the_images_user() -> Result<()> {
    let rig = Rig::start().await?;
    let pod = rig.pod("m6").await?;
    let scratch = || -> Result<ImageBuilder> {
        Ok(ImageBuilder::new()
            .packed(rig.base(catalog::PROBE)?)
            .config("Entrypoint", json!(["/probe", "status"])))
    };
    let numeric = scratch()?.config("User", json!("1000")).build()?;
    let reference = rig.publish("m6/numeric:1", &numeric).await?;
    let (_, text) = rig.run_in(&pod, &container("a", &reference, &[])).await?;
    assert_eq!(field(&text, "Uid"), ["1000"; 4]);
    assert_eq!(field(&text, "Gid"), ["0"; 4]);

    let named = scratch()?.config("User", json!("app")).build()?;
    let reference = rig.publish("m6/named:1", &named).await?;
    let refused = rig.start_in(&pod, &container("b", &reference, &[])).await;
    let message = format!("{:#}", refused.expect_err("no such user"));
    assert!(message.contains("app"), "{message}");

    let files = Layer::new()
        .file(
            "etc/passwd",
            "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n",
        )
        .file("etc/group", "root:x:0:\napp:x:1000:\nextra:x:2000:app\n");
    let grouped = scratch()?
        .layer(files)?
        .config("User", json!("app"))
        .build()?;
    let reference = rig.publish("m6/grouped:1", &grouped).await?;
    for (name, policy, want) in [
        (
            "c",
            cri::SupplementalGroupsPolicy::Merge,
            &["1000", "2000", "3000"][..],
        ),
        (
            "d",
            cri::SupplementalGroupsPolicy::Strict,
            &["1000", "3000"],
        ),
    ] {
        let mut config = container(name, &reference, &[]);
        security(&mut config).supplemental_groups = vec![3000];
        security(&mut config).supplemental_groups_policy = policy.into();
        let (_, text) = rig.run_in(&pod, &config).await?;
        assert_eq!(field(&text, "Uid"), ["1000"; 4], "{name}");
        assert_eq!(field(&text, "Gid"), ["1000"; 4], "{name}");
        let mut groups = field(&text, "Groups");
        groups.sort_unstable();
        assert_eq!(groups, want, "{name}");
    }

    // The host has root, too: reading its file would find a user the image does not have.
    let escape = format!("{}etc/passwd", "../".repeat(8));
    let escaping = scratch()?
        .layer(Layer::new().symlink("etc/passwd", &escape))?
        .config("User", json!("daemon"))
        .build()?;
    let reference = rig.publish("m6/escaping:1", &escaping).await?;
    assert!(
        fs::read_to_string("/etc/passwd")?.contains("daemon:"),
        "the host knows this user"
    );
    assert!(
        rig.start_in(&pod, &container("e", &reference, &[]))
            .await
            .is_err()
    );
    rig.finish().await
}

#[tokio::test]
async fn s3_a_command_that_cannot_be_executed_is_named_with_the_reason() -> Result<()> {
    let rig = Rig::start().await?;
    let layer = Layer::new()
        .directory("x")
        .file("x/plain", "#!/bin/sh\n")
        .entry(Entry::file("x/lost", "#!/no/interpreter\n").mode(0o755))
        .entry(
            Entry::file("x/foreign", b"\x7fELF\x01\x01\x01\0nothing of this machine").mode(0o755),
        );
    let image = rig.busybox_with(layer)?.build()?;
    let reference = rig.publish("s3/commands:1", &image).await?;
    let pod = rig.pod("s3").await?;
    let helper = rig
        .start_in(&pod, &container("helper", &reference, &["sleep", "1000"]))
        .await?;
    let rows: [(&str, &[&str]); 6] = [
        ("no-such-command", &["executable file not found in $PATH"]),
        ("/x/absent", &["no such file or directory"]),
        ("/x", &["permission denied", "is a directory"]),
        ("/x/plain", &["permission denied"]),
        ("/x/lost", &["/no/interpreter"]),
        ("/x/foreign", &["exec format error"]),
    ];
    for (row, (command, reasons)) in rows.into_iter().enumerate() {
        let id = rig
            .create_in(&pod, &container(&format!("c{row}"), &reference, &[command]))
            .await?;
        let refused = rig.node.start_container(&id).await.expect_err(command);
        let status = rig.node.status(&id).await?;
        assert_eq!(
            status.state(),
            cri::ContainerState::ContainerExited,
            "{command}"
        );
        assert_ne!(status.exit_code, 0, "{command}");
        assert_eq!(status.reason, "StartError", "{command}");
        assert!(
            status.created_at > 0 && status.finished_at >= status.created_at,
            "{status:?}"
        );
        rig.node.remove_container(&id).await?;
        let exec = rig.node.exec(&helper, &[command]).await.expect_err(command);
        for message in [refused.message(), exec.message()] {
            let lower = message.to_lowercase();
            let fits = reasons
                .iter()
                .any(|reason| lower.contains(&reason.to_lowercase()));
            assert!(message.contains(command) && fits, "{command}: {message}");
        }
    }

    let volume = rig.node.scratch("noexec")?;
    let script = volume.join("script");
    fs::write(&script, "#!/bin/sh\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let noexec = |name: &str, command: &[&str]| cri::ContainerConfig {
        mounts: vec![cri::Mount {
            mount_options: vec!["noexec".to_owned()],
            ..mount(&volume, "/vol", false)
        }],
        ..container(name, &reference, command)
    };
    let id = rig
        .start_in(&pod, &noexec("held", &["sleep", "1000"]))
        .await?;
    let exec = rig.node.exec(&id, &["/vol/script"]).await;
    let exec = exec.expect_err("a noexec mount").message().to_owned();
    let start = rig
        .start_in(&pod, &noexec("noexec", &["/vol/script"]))
        .await;
    let start = format!("{:#}", start.expect_err("a noexec mount"));
    for message in [exec, start] {
        let lower = message.to_lowercase();
        let fits = lower.contains("/vol/script") && lower.contains("permission denied");
        assert!(fits, "{message}");
    }

    // The kernel takes strings of up to 131,072 bytes with their NUL (MAX_ARG_STRLEN, 32 pages).
    for (length, works) in [(131_071, true), (131_072, false)] {
        let mut config = container(&format!("env{length}"), &reference, &["true"]);
        let value = vec![b'v'; length - "BIG=".len()];
        config.envs = vec![cri::KeyValue {
            key: "BIG".to_owned(),
            value,
        }];
        let started = rig.start_in(&pod, &config).await;
        match works {
            true => drop(started.with_context(|| format!("{length} bytes fit"))?),
            false => {
                let message = format!("{:#}", started.expect_err("one byte too long"));
                assert!(message.contains("BIG"), "says where from: {message}");
            }
        }
    }
    rig.finish().await
}

/// The image sets no PATH: the default one is searched, and shows. An empty PATH finds nothing.
#[tokio::test]
async fn s3_without_a_path_the_default_is_searched() -> Result<()> {
    let rig = Rig::start().await?;
    let image = ImageBuilder::new()
        .packed(rig.base(catalog::BUSYBOX)?)
        .build()?;
    let reference = rig.publish("s3/unset:1", &image).await?;
    let pod = rig.pod("s3").await?;
    let command = ["sh", "-c", "echo $PATH; exec sleep 1000"];
    let id = rig
        .start_in(&pod, &container("main", &reference, &command))
        .await?;
    let path = rig.node.output(&id, &["sh", "-c", "echo $PATH"]).await?;
    assert_eq!(
        path,
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
    let absent = container("absent", &reference, &["no-such-command"]);
    let empty = cri::ContainerConfig {
        envs: vec![cri::KeyValue {
            key: "PATH".to_owned(),
            value: Vec::new(),
        }],
        ..container("empty", &reference, &["sleep", "1000"])
    };
    for (config, command) in [(absent, "no-such-command"), (empty, "sleep")] {
        let refused = rig.start_in(&pod, &config).await;
        let message = format!("{:#}", refused.expect_err(command));
        let fits = message.contains("executable file not found in $PATH");
        assert!(fits && message.contains(command), "{message}");
    }
    let exec = rig.node.exec(&id, &["no-such-command"]).await;
    let exec = exec.expect_err("not on the default path");
    assert!(exec.message().contains("no-such-command"), "{exec:?}");
    rig.finish().await
}

fn open_files(limits: &str) -> Result<(u64, u64)> {
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.context("no such line")?.split_whitespace().collect();
    Ok((words[3].parse()?, words[4].parse()?))
}

#[tokio::test]
async fn s4_the_daemons_own_file_limit_stays_out_of_pods() -> Result<()> {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    // This machine may lack CAP_SYS_RESOURCE: the highest limit it may have stands for infinity.
    let most = most.unwrap_or(1_073_741_816).min(1_073_741_816);
    let modest = Limits {
        soft: 1024,
        hard: most.min(524_288),
    };
    let options = bulkhead_conformance::node::Options {
        files: Some(modest),
        ..Default::default()
    };
    let mut rig = Rig::start_with(options).await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("s4").await?;
    let mut seen = Vec::new();
    for (name, limits) in [
        ("modest", modest),
        (
            "huge",
            Limits {
                soft: most,
                hard: most,
            },
        ),
    ] {
        rig.node.stop().await?;
        rig.node.set_files(limits);
        rig.node.launch().await?;
        // In the pod of another daemon, and in one whose monitor this daemon has started.
        let fresh = rig.pod(&format!("s4-{name}")).await?;
        for pod in [&pod, &fresh] {
            let command = ["sh", "-c", "cat /proc/self/limits; sleep 1000"];
            let config = container(name, busybox, &command);
            let id = rig.start_in(pod, &config).await?;
            let by_exec = rig.node.output(&id, &["cat", "/proc/self/limits"]).await?;
            let pid = rig.node.init_pid(&id).await?;
            let own = open_files(&fs::read_to_string(format!("/proc/{pid}/limits"))?)?;
            assert_eq!(own, open_files(&by_exec)?, "{name}: exec equals start");
            assert!(own.0 <= 1_048_576, "{name}: {own:?}");
            seen.push(own);
        }
    }
    let same = seen.iter().all(|limits| limits.0 == seen[0].0);
    assert!(same, "the daemon's limit shows: {seen:?}");
    rig.finish().await
}
