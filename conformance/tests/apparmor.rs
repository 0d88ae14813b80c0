//! AppArmor, from inside a container and from the kernel's log: case C3, the default profile, named
//! ones, and what they deny, allow and record. The second half runs where the kernel has AppArmor,
//! which `make test-vm` provides; the first where it has not.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bulkhead_conformance::node::pods::{container, security};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_proto::runtime::v1 as cri;
use cri::security_profile::ProfileType;

const DEFAULT: &str = "bulkhead-default";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Prints the label of the process that runs it.
const LABEL: &[&str] = &["cat", "/proc/self/attr/current"];

fn is_enabled() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

fn profile(kind: ProfileType, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.to_owned(),
    })
}

/// A request's two fields, in short.
type Asked = (Option<cri::SecurityProfile>, &'static str);

fn sleeper(name: &str, image: &str, (field, word): Asked) -> cri::ContainerConfig {
    let mut config = container(name, image, &["sleep", "1000"]);
    let context = security(&mut config);
    context.apparmor = field;
    #[expect(deprecated, reason = "older kubelets and critest send it")]
    {
        word.clone_into(&mut context.apparmor_profile);
    }
    config
}

#[tokio::test]
async fn c3_without_apparmor_what_asks_for_a_profile_is_refused_by_name() -> Result<()> {
    if is_enabled() {
        // The other half of this file is this node's.
        return Ok(());
    }
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("c3").await?;
    let unconfined = || profile(ProfileType::Unconfined, "");
    let localhost = |name| profile(ProfileType::Localhost, name);
    let rows: [(Asked, Option<&str>); 12] = [
        ((None, ""), None),
        ((unconfined(), ""), None),
        ((None, "unconfined"), None),
        // The field is more than the word.
        ((unconfined(), "localhost/x"), None),
        (
            (profile(ProfileType::RuntimeDefault, ""), ""),
            Some("no AppArmor"),
        ),
        ((None, "runtime/default"), Some("no AppArmor")),
        ((localhost("x"), ""), Some("no AppArmor")),
        ((localhost("x"), "unconfined"), Some("no AppArmor")),
        ((None, "localhost/x"), Some("no AppArmor")),
        ((localhost(""), ""), Some("localhost_ref")),
        ((None, "localhost/"), Some("apparmor_profile")),
        ((None, "nonsense"), Some("apparmor_profile")),
    ];
    for (number, (asked, refused)) in rows.into_iter().enumerate() {
        let config = sleeper(&format!("c{number}"), image, asked.clone());
        match (rig.start_in(&pod, &config).await, refused) {
            (Ok(_), None) => {}
            (Err(error), Some(why)) => {
                let text = format!("{error:#}");
                ensure!(
                    text.contains("apparmor") && text.contains(why),
                    "{asked:?}: {text}"
                );
            }
            (done, _) => bail!("{asked:?}: {done:?}"),
        }
    }
    rig.finish().await
}

/// Loads a profile for a test, and removes it at the end.
struct Loaded(&'static str);

impl Loaded {
    fn new(name: &'static str, flags: &str, rules: &str) -> Result<Self> {
        parser(
            &["--replace"],
            &format!("profile {name} flags=({flags}) {{\n{rules}\n}}\n"),
        )?;
        Ok(Self(name))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = parser(&["--remove"], &format!("profile {} {{ }}\n", self.0)) {
            eprintln!("{error:#}");
        }
    }
}

fn parser(arguments: &[&str], text: &str) -> Result<()> {
    let mut child = Command::new("/usr/sbin/apparmor_parser")
        .args(arguments)
        .args(["--skip-cache", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()
        .context("run apparmor_parser")?;
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(text.as_bytes())?;
    ensure!(
        child.wait()?.success(),
        "apparmor_parser {arguments:?} refused {text}"
    );
    Ok(())
}

/// The kernel's log from now on, where AppArmor's audit messages go on a node without auditd.
struct AuditLog(File);

impl AuditLog {
    fn from_now() -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open("/dev/kmsg").context("open /dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// Waits for a message that holds all of `words`.
    async fn expect(&mut self, words: &[&str]) -> Result<()> {
        let mut seen = Vec::new();
        for _ in 0..100 {
            while let Some(line) = self.next()? {
                if words.iter().all(|word| line.contains(word)) {
                    return Ok(());
                }
                seen.push(line);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the kernel's log has no {words:?} in\n{}", seen.join(""))
    }

    /// One record a read (Documentation/ABI/testing/dev-kmsg).
    fn next(&mut self) -> Result<Option<String>> {
        let mut record = [0; 8192];
        match self.0.read(&mut record) {
            Ok(count) => Ok(Some(String::from_utf8_lossy(&record[..count]).into_owned())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            // Records were overwritten before they were read; the next read goes on behind them.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => self.next(),
            Err(error) => Err(error).context("read /dev/kmsg"),
        }
    }
}

struct Confined {
    rig: Rig,
    image: &'static str,
    pod: Pod,
    log: AuditLog,
}

impl Confined {
    /// A node with AppArmor, or a loud skip.
    async fn start(name: &str) -> Result<Option<Self>> {
        if !is_enabled() {
            eprintln!("SKIPPED: needs AppArmor, which `make test-vm` has");
            return Ok(None);
        }
        let rig = Rig::start().await?;
        Ok(Some(Self {
            image: rig.busybox().await?,
            pod: rig.pod(name).await?,
            log: AuditLog::from_now()?,
            rig,
        }))
    }

    async fn run(&self, name: &str, asked: Asked) -> Result<String> {
        self.rig
            .start_in(&self.pod, &sleeper(name, self.image, asked))
            .await
    }

    /// What a shell in the container says to `script`: its exit code and stderr.
    async fn shell(&self, id: &str, script: &str) -> Result<(i32, String)> {
        let done = self.rig.node.exec(id, &["sh", "-c", script]).await?;
        Ok((done.code, done.stderr))
    }

    /// The labels of the container's first process and of an exec.
    async fn labels(&self, id: &str) -> Result<[String; 2]> {
        let pid = self.rig.node.init_pid(id).await?;
        let init = fs::read_to_string(format!("/proc/{pid}/attr/current"))?;
        let exec = self.rig.node.output(id, LABEL).await?;
        Ok([init.trim().to_owned(), exec.trim().to_owned()])
    }
}

#[tokio::test]
async fn the_profile_asked_for_is_the_label_of_the_first_process_and_of_execs() -> Result<()> {
    let Some(node) = Confined::start("labels").await? else {
        return Ok(());
    };
    let _mine = Loaded::new(
        "bulkhead-test-mine",
        "attach_disconnected",
        "file,\nsignal,",
    )?;
    let default = || profile(ProfileType::RuntimeDefault, "");
    let confined = format!("{DEFAULT} (enforce)");
    for (number, (asked, label)) in [
        ((None, ""), confined.as_str()),
        ((default(), ""), &confined),
        ((None, "runtime/default"), &confined),
        (
            (profile(ProfileType::Unconfined, ""), "runtime/default"),
            "unconfined",
        ),
        ((None, "unconfined"), "unconfined"),
        (
            (profile(ProfileType::Localhost, "bulkhead-test-mine"), ""),
            "bulkhead-test-mine (enforce)",
        ),
        (
            (None, "localhost/bulkhead-test-mine"),
            "bulkhead-test-mine (enforce)",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let id = node.run(&format!("c{number}"), asked.clone()).await?;
        assert_eq!(node.labels(&id).await?, [label, label], "{asked:?}");
    }
    node.rig.finish().await
}

#[tokio::test]
async fn the_default_profile_holds_with_no_new_privileges_and_another_user() -> Result<()> {
    let Some(node) = Confined::start("user").await? else {
        return Ok(());
    };
    let mut config = sleeper("c", node.image, (None, ""));
    let context = security(&mut config);
    context.no_new_privs = true;
    context.run_as_user = Some(cri::Int64Value { value: 1000 });
    let id = node.rig.start_in(&node.pod, &config).await?;
    let label = format!("{DEFAULT} (enforce)");
    assert_eq!(node.labels(&id).await?, [label.clone(), label]);
    node.rig.finish().await
}

#[tokio::test]
async fn the_default_profile_denies_what_reaches_the_node_and_says_so() -> Result<()> {
    let Some(mut node) = Confined::start("denied").await? else {
        return Ok(());
    };
    let mut config = sleeper("c", node.image, (None, ""));
    // More than the default: what follows is not for want of a capability.
    security(&mut config).capabilities = Some(cri::Capability {
        add_capabilities: vec!["SYS_ADMIN".to_owned(), "DAC_OVERRIDE".to_owned()],
        ..Default::default()
    });
    let id = node.rig.start_in(&node.pod, &config).await?;
    let profile = format!("profile=\"{DEFAULT}\"");
    for (script, operation, name) in [
        (
            "echo h > /proc/sysrq-trigger",
            "open",
            "name=\"/proc/sysrq-trigger\"",
        ),
        (
            "echo x > /proc/sys/kernel/core_pattern",
            "open",
            "name=\"/proc/sys/kernel/core_pattern\"",
        ),
        ("head -c 1 /proc/kcore", "open", "name=\"/proc/kcore\""),
        (
            "mkdir /m && mount -t tmpfs none /m",
            "mount",
            "name=\"/m/\"",
        ),
    ] {
        let (code, stderr) = node.shell(&id, script).await?;
        ensure!(code != 0, "{script} is allowed");
        ensure!(
            stderr.to_lowercase().contains("denied"),
            "{script}: {stderr}"
        );
        let operation = format!("operation=\"{operation}\"");
        node.log
            .expect(&["apparmor=\"DENIED\"", &operation, &profile, name])
            .await?;
    }
    // And ordinary work goes on: files, signals among its own, a look at its own processes.
    let script = "echo x > /f && cat /f && mkdir -p /d && rm -r /d /f && ps && \
                  sleep 100 & kill $! && wait; true";
    let (code, stderr) = node.shell(&id, script).await?;
    ensure!(code == 0 && stderr.is_empty(), "{code}: {stderr}");
    // The monitor, unconfined, may still end it.
    node.rig.node.stop_container(&id, 1).await?;
    assert_eq!(node.rig.node.status(&id).await?.exit_code, 137);
    node.rig.finish().await
}

#[tokio::test]
async fn a_named_profile_denies_complains_or_records_by_its_flags() -> Result<()> {
    let Some(mut node) = Confined::start("named").await? else {
        return Ok(());
    };
    let rules = "file,\nsignal,\naudit /watched rw,\ndeny /secret rw,\naudit deny /told rw,";
    let _enforce = Loaded::new("bulkhead-test-enforce", "attach_disconnected", rules)?;
    let _complain = Loaded::new("bulkhead-test-complain", "complain", "/** rix,\nsignal,")?;
    let enforced = node
        .run(
            "enforce",
            (profile(ProfileType::Localhost, "bulkhead-test-enforce"), ""),
        )
        .await?;
    let (code, stderr) = node.shell(&enforced, "echo x > /told").await?;
    ensure!(
        code != 0 && stderr.to_lowercase().contains("denied"),
        "{code}: {stderr}"
    );
    let by = "profile=\"bulkhead-test-enforce\"";
    node.log
        .expect(&["apparmor=\"DENIED\"", by, "name=\"/told\""])
        .await?;
    assert_ne!(node.shell(&enforced, "echo x > /secret").await?.0, 0);
    assert_eq!(node.shell(&enforced, "echo x > /watched").await?.0, 0);
    node.log
        .expect(&["apparmor=\"AUDIT\"", by, "name=\"/watched\""])
        .await?;
    let complaining = node
        .run(
            "complain",
            (
                profile(ProfileType::Localhost, "bulkhead-test-complain"),
                "",
            ),
        )
        .await?;
    let label = "bulkhead-test-complain (complain)";
    assert_eq!(node.labels(&complaining).await?, [label, label]);
    assert_eq!(node.shell(&complaining, "echo x > /written").await?.0, 0);
    let by = "profile=\"bulkhead-test-complain\"";
    node.log
        .expect(&["apparmor=\"ALLOWED\"", by, "name=\"/written\""])
        .await?;
    node.rig.finish().await
}

#[tokio::test]
async fn a_profile_that_is_not_loaded_is_refused_and_the_default_one_is_put_back() -> Result<()> {
    let Some(node) = Confined::start("gone").await? else {
        return Ok(());
    };
    let asked = (profile(ProfileType::Localhost, "bulkhead-test-none"), "");
    let config = sleeper("gone", node.image, asked);
    let refused = node.rig.create_in(&node.pod, &config).await;
    let refused = refused.expect_err("it is not loaded");
    let why = "profile \"bulkhead-test-none\" is not loaded";
    ensure!(refused.message().contains(why), "{refused}");
    // As tools do that remove what no policy directory has.
    parser(&["--remove"], &format!("profile {DEFAULT} {{ }}\n"))?;
    ensure!(
        !fs::read_to_string(Path::new(LOADED))?.contains(DEFAULT),
        "it is still there"
    );
    let id = node.run("again", (None, "")).await?;
    let label = format!("{DEFAULT} (enforce)");
    assert_eq!(node.labels(&id).await?, [label.clone(), label]);
    node.rig.finish().await
}
