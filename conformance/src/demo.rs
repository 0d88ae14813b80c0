//! `make run` and `make stop`: a daemon, a registry and a pod that stay until told to end.
//!
//! Every process that is started is written down by pid and start time below the demo's folder, and
//! ended by that, never by name.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::critest::HOSTS;
use crate::images::layout;
use crate::node;
use crate::registry::Registry;

const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(15);
/// The pod of `examples/hello.yaml`, what its web server answers, and how long that may take.
const POD: &str = "hello";
const ANSWER: &str = "Hello from";
const ANSWERED: Duration = Duration::from_secs(20);

/// The demo's folder and what is in it.
struct Demo {
    root: PathBuf,
}

impl Demo {
    fn socket(&self) -> PathBuf {
        self.root.join("state/bulkhead.sock")
    }

    fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    fn bulkhead(&self) -> Command {
        let mut command = Command::new(node::bulkhead_path());
        command.arg("--config").arg(self.config());
        command
    }

    /// Starts a process that outlives this one, noted in `<name>.pid`.
    fn spawn(&self, name: &str, command: &mut Command) -> Result<()> {
        let log = self.root.join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let pid = child.id();
        let born = start_ticks(pid).with_context(|| format!("{name} ended at once"))?;
        fs::write(
            self.root.join(format!("{name}.pid")),
            format!("{pid} {born}\n"),
        )?;
        Ok(())
    }

    /// The pid of a noted process, if it is still the same process.
    fn running(&self, name: &str) -> Option<u32> {
        let note = fs::read_to_string(self.root.join(format!("{name}.pid"))).ok()?;
        let (pid, born) = note.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_ticks(pid)? == born.parse::<u64>().ok()?).then_some(pid)
    }

    fn end(&self, name: &str) -> Result<()> {
        if let Some(pid) = self.running(name) {
            node::signal(pid, Signal::TERM)?;
            wait(STOP, || self.running(name).is_none())
                .with_context(|| format!("{name} ({pid}) does not end"))?;
        }
        Ok(())
    }
}

/// Field 22 of proc_pid_stat(5): with the pid, it names one process for good.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    // A zombie has ended: only its parent has not asked yet.
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

fn wait(bound: Duration, done: impl Fn() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !done() {
        if begin.elapsed() > bound {
            bail!("still waiting after {bound:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts everything, plays the manifest and shows what runs.
pub fn up(root: &Path, manifest: &Path) -> Result<()> {
    fs::create_dir_all(root).with_context(|| format!("make {}", root.display()))?;
    let demo = Demo {
        root: root.canonicalize()?,
    };
    layout::ensure(&node::target())?;
    if demo.running("registry").is_none() {
        let own = std::env::current_exe()?;
        fs::remove_dir_all(demo.root.join("certs.d")).ok();
        let certs = demo.root.join("certs.d");
        demo.spawn(
            "registry",
            Command::new(own).arg("serve").arg("--certs-d").arg(&certs),
        )?;
        // The file of the last host is written last.
        wait(START, || certs.join("complete").exists()).context("the registry does not start")?;
    }
    fs::write(demo.config(), configuration(&demo.root))?;
    if demo.running("daemon").is_none() {
        demo.spawn("daemon", demo.bulkhead().arg("serve"))?;
    }
    wait(START, || {
        std::os::unix::net::UnixStream::connect(demo.socket()).is_ok()
    })
    .with_context(|| format!("see {}", demo.root.join("daemon.log").display()))?;
    show(demo.bulkhead().args(["play", "--replace"]).arg(manifest))?;
    show(demo.bulkhead().arg("ps"))?;
    show_logs(&demo)?;
    let crictl = crate::critest::crictl_path();
    let endpoint = format!("unix://{}", demo.socket().display());
    eprintln!(
        "\nThe daemon's CRI socket serves crictl as well:\n  {} --runtime-endpoint {endpoint} ps\n\
         `make stop` ends it all. Logs, configuration and state: {}",
        crictl.display(),
        demo.root.display()
    );
    Ok(())
}

fn show(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// What the pods' containers wrote, once the client has had its first answer.
fn show_logs(demo: &Demo) -> Result<()> {
    let begin = Instant::now();
    loop {
        let output = demo.bulkhead().args(["logs", POD]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if text.contains(ANSWER) || begin.elapsed() > ANSWERED {
            eprint!("\n$ bulkhead logs {POD}\n{text}");
            ensure!(
                text.contains(ANSWER),
                "no answer of the web server within {ANSWERED:?}"
            );
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Ends the pods, the daemon and the registry.
pub fn down(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let demo = Demo {
        root: root.canonicalize()?,
    };
    if demo.running("daemon").is_some() {
        show(demo.bulkhead().args(["down", "--all"]))?;
    }
    demo.end("daemon")?;
    demo.end("registry")
}

/// Serves the test images until a signal ends the process; says where by `hosts.toml` files.
pub fn serve(certs: &Path) -> Result<()> {
    let registry = Registry::start()?;
    registry.add_layout(layout::read(&layout::ensure(&node::target())?)?);
    registry.mirrors(certs, HOSTS)?;
    fs::write(certs.join("complete"), "")?;
    loop {
        thread::park();
    }
}

fn configuration(root: &Path) -> String {
    let root = root.display();
    format!(
        "root = \"{root}/lib\"\n\
         state = \"{root}/state\"\n\
         [socket]\n\
         path = \"{root}/state/bulkhead.sock\"\n\
         [monitor]\n\
         path = \"{}\"\n\
         [network]\n\
         bridge = \"bulkhead-run0\"\n\
         pod-cidrs = [\"10.230.0.0/24\"]\n\
         [images]\n\
         certs-d = [\"{root}/certs.d\"]\n",
        node::monitor_path().display()
    )
}
