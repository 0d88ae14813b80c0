//! The daemon as a process: how it is started, limited, handed its socket, and ended.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};

use super::clock::Clock;

/// Soft and hard RLIMIT_NOFILE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// How long a daemon may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(20);
const LOCK: &str = "/run/bulkhead-conformance.lock";

/// Where build results lie, unless the variable says otherwise.
fn built(variable: &str, path: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| target().join(path), PathBuf::from)
}

/// The workspace's target folder.
pub fn target() -> PathBuf {
    let fixed = concat!(env!("CARGO_MANIFEST_DIR"), "/../target");
    std::env::var_os("BULKHEAD_TARGET").map_or_else(|| PathBuf::from(fixed), PathBuf::from)
}

/// The `bulkhead` executable under test.
pub fn bulkhead_path() -> PathBuf {
    built("BULKHEAD_BIN", "debug/bulkhead")
}

/// The static monitor that goes with it.
pub fn monitor_path() -> PathBuf {
    let arch = std::env::consts::ARCH;
    let path = format!("static/{arch}-unknown-linux-gnu/monitor/bulkhead-monitor");
    built("BULKHEAD_MONITOR", &path)
}

/// A short text no other node on this machine has.
pub(super) fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{:x}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Waits for the machine's one place for a node.
pub(super) async fn lock() -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(LOCK)
        .with_context(|| format!("open {LOCK}"))?;
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(file)
}

/// Starts `bulkhead serve`. A listener becomes descriptor 3 by systemd's protocol
/// (sd_listen_fds(3)): LISTEN_FDS=1 and LISTEN_PID, which only a shell that execs can know.
pub(super) fn spawn(
    config: &Path,
    log: &Path,
    files: Option<Limits>,
    listener: Option<&UnixListener>,
    clock: Option<&Clock>,
) -> Result<Child> {
    let bulkhead = bulkhead_path();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .context("open the log")?;
    let mut script = String::from("exec 9>&-\n");
    if let Some(Limits { soft, hard }) = files {
        script.push_str(&format!(
            "ulimit -H -n {hard} || exit 91\nulimit -S -n {soft} || exit 92\n"
        ));
    }
    let inherited = match listener {
        Some(listener) => {
            // A duplicate without close-on-exec; it ends with this function, the shell has its own.
            let copy = rustix::io::fcntl_dupfd_cloexec(listener, 20).context("copy the socket")?;
            rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty())?;
            script.push_str(&format!(
                "exec 3<&{0} {0}<&-\nexport LISTEN_FDS=1 LISTEN_PID=$$\n",
                copy.as_raw_fd()
            ));
            Some(copy)
        }
        None => None,
    };
    script.push_str("exec \"$0\" \"$@\"\n");
    let mut command = Command::new("/bin/bash");
    if let Some(clock) = clock {
        clock.govern(&mut command);
    }
    let child = command
        .args(["-c", &script])
        .arg(&bulkhead)
        .arg("--config")
        .arg(config)
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", bulkhead.display()))?;
    drop(inherited);
    Ok(child)
}

/// SIGTERM, and the wait for the end.
pub(super) async fn terminate(mut child: Child) -> Result<()> {
    signal(child.id(), Signal::TERM)?;
    let begin = Instant::now();
    while child.try_wait()?.is_none() {
        if begin.elapsed() > STOP {
            child.kill()?;
            child.wait()?;
            bail!("the daemon did not end within {STOP:?} of SIGTERM");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// The monitor of a container: the parent of its init (proc_pid_stat(5), field 4).
pub fn monitor_of(init: u32) -> Result<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{init}/stat"))?;
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("the name ends with a parenthesis")?;
    Ok(fields.split(' ').nth(1).context("no parent")?.parse()?)
}

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("no such pid")?;
    rustix::process::kill_process(pid, signal)
        .with_context(|| format!("send {signal:?} to {}", pid.as_raw_nonzero()))
}
