//! Seccomp and AppArmor profiles: what is loaded, what it does, what is refused. Case C3.

use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bulkhead_conformance::inside::ProcStatus;
use bulkhead_conformance::node::pods::{container, security};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_proto::runtime::v1 as cri;
use cri::security_profile::ProfileType;
use rustix::event::{PollFd, PollFlags, poll};

fn profile(kind: ProfileType, reference: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: reference.to_owned(),
    })
}

fn sleeper(name: &str, image: &str) -> cri::ContainerConfig {
    container(name, image, &["sleep", "1000"])
}

/// The errno of a system call with zeroes for arguments, made in a container.
async fn errno(rig: &Rig, id: &str, number: i64) -> Result<i32> {
    let number = number.to_string();
    let text = rig.node.output(id, &["probe", "call", &number]).await?;
    let word = text.split_whitespace().nth(1).context("no errno")?;
    Ok(word.parse()?)
}

async fn mode(rig: &Rig, id: &str) -> Result<u64> {
    ProcStatus::of(rig.node.init_pid(id).await?)?.number("Seccomp")
}

/// A profile file on the node that lets everything by but for `rules`.
fn write_profile(rig: &Rig, name: &str, more: &str) -> Result<String> {
    let path = rig.node.scratch("profiles")?.join(name);
    std::fs::write(
        &path,
        format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", {more}}}"#),
    )?;
    Ok(path.display().to_string())
}

#[tokio::test]
async fn seccomp_is_what_was_asked_in_the_message_or_the_older_string() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("seccomp").await?;
    let file = write_profile(
        &rig,
        "no-mkdir.json",
        r#""flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
           "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}]"#,
    )?;
    let old_file = format!("localhost/{file}");
    let no_keyctl = libc::EPERM;
    // Message, older string; mode, errno of keyctl(2) and of mkdir(2) with a null path.
    let rows = [
        (None, "", 0, libc::ENOENT, libc::EFAULT),
        (
            profile(ProfileType::RuntimeDefault, ""),
            "",
            2,
            no_keyctl,
            libc::EFAULT,
        ),
        (
            profile(ProfileType::Unconfined, ""),
            "runtime/default",
            0,
            libc::ENOENT,
            libc::EFAULT,
        ),
        (
            profile(ProfileType::Localhost, &file),
            "unconfined",
            2,
            libc::ENOENT,
            99,
        ),
        (None, "runtime/default", 2, no_keyctl, libc::EFAULT),
        (None, "unconfined", 0, libc::ENOENT, libc::EFAULT),
        (None, old_file.as_str(), 2, libc::ENOENT, 99),
    ];
    for (row, (message, old, expected, keyctl, mkdir)) in rows.into_iter().enumerate() {
        let mut config = sleeper(&format!("c{row}"), image);
        security(&mut config).seccomp = message;
        set_old_seccomp(&mut config, old);
        let id = rig.start_in(&pod, &config).await?;
        assert_eq!(mode(&rig, &id).await?, expected, "row {row}");
        assert_eq!(
            errno(&rig, &id, libc::SYS_mkdirat).await?,
            mkdir,
            "row {row}: mkdir"
        );
        let seen = errno(&rig, &id, libc::SYS_keyctl).await?;
        // Without a filter it depends on the kernel's keyrings; never EPERM.
        ensure!(
            seen == keyctl || keyctl != no_keyctl && seen != no_keyctl,
            "row {row}: keyctl {seen}"
        );
    }
    rig.finish().await
}

#[expect(deprecated, reason = "the field older kubelets send")]
fn set_old_seccomp(config: &mut cri::ContainerConfig, old: &str) {
    security(config).seccomp_profile_path = old.to_owned();
}

#[tokio::test]
async fn seccomp_profiles_that_can_not_be_had_are_refused_with_the_reason() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("bad-seccomp").await?;
    let broken = write_profile(&rig, "broken.json", "\n\"syscalls\": [{]")?;
    let lonely = write_profile(
        &rig,
        "lonely.json",
        r#""syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]"#,
    )?;
    let directory = rig.node.scratch("profiles")?.display().to_string();
    for (reference, words) in [
        ("/no/such.json", ["/no/such.json", "No such file"]),
        ("relative.json", ["relative.json", "absolute"]),
        ("", ["localhost_ref", "Localhost"]),
        (broken.as_str(), ["broken.json", "line 2"]),
        (lonely.as_str(), ["lonely.json", "listenerPath"]),
        (directory.as_str(), ["profiles", "not a regular file"]),
    ] {
        let mut config = sleeper("bad", image);
        security(&mut config).seccomp = profile(ProfileType::Localhost, reference);
        let refused = rig.create_in(&pod, &config).await.expect_err(reference);
        for word in words {
            ensure!(refused.message().contains(word), "{reference}: {refused:?}");
        }
    }
    rig.finish().await
}

/// Answers every notification of one filter with an errno, as the agent of a node would, until the
/// container is gone. Returns the message that came with the descriptor.
fn agent(socket: UnixListener, answer: i32) -> std::thread::JoinHandle<Result<String>> {
    std::thread::spawn(move || {
        let (stream, _) = socket.accept()?;
        let mut bytes = [0; 16 << 10];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &stream,
            &mut [std::io::IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            rustix::net::RecvFlags::CMSG_CLOEXEC,
        )?;
        let filter = ancillary.drain().find_map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let message = String::from_utf8(bytes[..received.bytes].to_vec())?;
        answer_all(&filter.context("no descriptor came along")?, answer);
        Ok(message)
    })
}

/// `struct seccomp_notif` is 80 bytes, `struct seccomp_notif_resp` 24 (seccomp_unotify(2)).
fn answer_all(filter: &OwnedFd, errno: i32) {
    const RECEIVE: libc::c_ulong = 0xC050_2100;
    const SEND: libc::c_ulong = 0xC018_2101;
    loop {
        let mut polled = [PollFd::new(filter, PollFlags::IN)];
        // Hung up: the last process with the filter is gone.
        if poll(&mut polled, None).is_err() || polled[0].revents().contains(PollFlags::HUP) {
            return;
        }
        let mut request = [0_u64; 10];
        if ioctl(filter, RECEIVE, request.as_mut_ptr().cast()) != 0 {
            return;
        }
        let mut response = [0_u64; 3];
        response[0] = request[0];
        // The third word holds the error, negative, and no flags.
        response[2] = u64::from((-errno).cast_unsigned());
        let _gone = ioctl(filter, SEND, response.as_mut_ptr().cast());
    }
}

#[expect(unsafe_code, reason = "rustix has no seccomp notifications")]
fn ioctl(fd: &OwnedFd, request: libc::c_ulong, data: *mut libc::c_void) -> i32 {
    // SAFETY: `data` points to an array of the size the request's number states, which the kernel
    // fills or reads.
    unsafe { libc::ioctl(fd.as_raw_fd(), request, data) }
}

#[tokio::test]
async fn notifications_reach_the_agent_a_profile_names() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("notify").await?;
    let path = rig.node.state().join("agent.sock");
    let file = write_profile(
        &rig,
        "notify.json",
        &format!(
            r#""listenerPath": "{}", "listenerMetadata": "of this node",
               "syscalls": [{{"names": ["mkdirat"], "action": "SCMP_ACT_NOTIFY"}}]"#,
            path.display()
        ),
    )?;
    let number = libc::SYS_mkdirat.to_string();
    let mut config = container("main", image, &["probe", "call", &number]);
    security(&mut config).seccomp = profile(ProfileType::Localhost, &file);
    let id = rig.create_in(&pod, &config).await?;
    let refused = rig
        .node
        .start_container(&id)
        .await
        .expect_err("no agent listens");
    ensure!(refused.message().contains("listenerPath"), "{refused:?}");

    let waiting = agent(UnixListener::bind(&path)?, 123);
    config.metadata.get_or_insert_default().attempt = 1;
    let (code, text) = rig.run_in(&pod, &config).await?;
    assert_eq!(
        (code, text.as_str()),
        (0, format!("{number} 123\n").as_str()),
        "the agent's answer"
    );
    let message = waiting
        .join()
        .map_err(|_| anyhow::anyhow!("the agent panicked"))??;
    let message: serde_json::Value = serde_json::from_str(&message)?;
    assert_eq!(message["fds"], serde_json::json!(["seccompFd"]));
    assert_eq!(message["metadata"], "of this node");
    assert_eq!(message["state"]["status"], "creating");
    assert_eq!(message["pid"], message["state"]["pid"]);
    rig.finish().await
}

/// Field and older string of AppArmor in one container.
#[expect(deprecated, reason = "the field older kubelets send")]
fn with_apparmor(
    image: &str,
    message: Option<cri::SecurityProfile>,
    old: &str,
    privileged: bool,
) -> cri::ContainerConfig {
    let mut config = sleeper("main", image);
    let context = security(&mut config);
    context.apparmor = message;
    context.apparmor_profile = old.to_owned();
    context.privileged = privileged;
    config
}

/// A node without AppArmor: what asks for nothing starts, what asks for a profile is refused by its name.
/// (The case has RuntimeDefault start there; the issue and the CRI want a layer that is asked for and
/// not there refused, which is what holds.)
#[tokio::test]
async fn c3_apparmor_words_on_a_node_without_it() -> Result<()> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if enabled.is_ok_and(|text| text.trim() == "Y") {
        println!("skipped: this node has AppArmor; make test-vm covers it");
        return Ok(());
    }
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let mut config = bulkhead_conformance::node::pods::host_network_pod(&rig.node, "c3");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = rig.run(config).await?;
    let unconfined = || profile(ProfileType::Unconfined, "");
    for (message, old) in [
        (None, ""),
        (None, "unconfined"),
        (unconfined(), ""),
        (unconfined(), "localhost/x"),
    ] {
        for privileged in [false, true] {
            let config = with_apparmor(image, message.clone(), old, privileged);
            starts(&rig, &pod, &config)
                .await
                .with_context(|| format!("{message:?} {old}"))?;
        }
    }
    for (message, old, words) in [
        (profile(ProfileType::Localhost, "x"), "", "apparmor"),
        (
            profile(ProfileType::Localhost, "x"),
            "unconfined",
            "apparmor",
        ),
        (profile(ProfileType::Localhost, ""), "", "localhost_ref"),
        (profile(ProfileType::RuntimeDefault, ""), "", "no AppArmor"),
        (None, "localhost/x", "apparmor"),
        (None, "localhost/", "localhost/<profile>"),
        (None, "runtime/default", "no AppArmor"),
    ] {
        for privileged in [false, true] {
            let config = with_apparmor(image, message.clone(), old, privileged);
            let refused = rig.create_in(&pod, &config).await.expect_err(words);
            ensure!(
                refused.message().contains(words),
                "{message:?} {old}: {refused:?}"
            );
        }
    }
    rig.finish().await
}

async fn starts(rig: &Rig, pod: &Pod, config: &cri::ContainerConfig) -> Result<()> {
    let id = rig.start_in(pod, config).await?;
    let current = format!("/proc/{}/attr/current", rig.node.init_pid(&id).await?);
    let mut label = String::new();
    if Path::new(&current).exists()
        && let Ok(mut file) = std::fs::File::open(&current)
    {
        // Without any security module reading fails; then there is no label either.
        let _unlabelled = file.read_to_string(&mut label);
    }
    ensure!(
        label.is_empty() || label.contains("unconfined"),
        "{label:?}"
    );
    Ok(rig.node.remove_container(&id).await?)
}
