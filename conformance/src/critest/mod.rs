//! critest, unmodified but for one digest (see `cri-tools/build`), against a node or any socket.

pub mod report;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use self::report::{Report, Spec};
use crate::node;

/// Hosts whose images critest pulls; the registry stands for all of them.
pub const HOSTS: &[&str] = &["registry.k8s.io", "k8s.gcr.io", "gcr.io"];

/// The groups that must pass already, by the first words of their specs.
const REQUIRED: &[&str] = &[
    "Runtime info",
    "PodSandbox runtime",
    "Container runtime",
    "Container OOM",
    "Container Mount",
    "Multiple Containers",
    "Idempotence",
    "Image Manager",
    "Image Identifier Consistency",
    "Image Consistency",
    "Networking",
    STREAMING,
];

/// The group that runs a second time, over WebSocket.
const STREAMING: &str = "Streaming";

/// Which specs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Groups {
    /// Those that must pass.
    Required,
    /// All 142; the five benchmarks are skipped by critest itself.
    All,
    /// The streaming specs alone, over WebSocket instead of SPDY.
    WebSocket,
}

impl Groups {
    /// The regular expression critest selects by, over "[k8s.io] GROUP … SPEC".
    fn focus(self) -> Option<String> {
        match self {
            Self::All => None,
            Self::Required => Some(format!(r"\[k8s\.io\] ({})", REQUIRED.join("|"))),
            Self::WebSocket => Some(format!(r"\[k8s\.io\] {STREAMING}")),
        }
    }

    fn contains(self, spec: &Spec) -> bool {
        match self {
            Self::All => true,
            Self::Required => REQUIRED.iter().any(|group| spec.name.starts_with(group)),
            Self::WebSocket => spec.name.starts_with(STREAMING),
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::WebSocket => &[
                "-websocket-exec",
                "-websocket-attach",
                "-websocket-portforward",
            ],
            Self::Required | Self::All => &[],
        }
    }
}

/// One run of the suite.
#[derive(Debug)]
pub struct Run {
    /// The runtime's socket.
    pub socket: PathBuf,
    /// Which specs.
    pub groups: Groups,
    /// Narrows them further, a regular expression; empty for all.
    pub only: String,
    /// Where the JSON report goes; critest's own output lies beside it, as `.log`.
    pub report: PathBuf,
}

/// The built suite.
pub fn critest_path() -> PathBuf {
    node::target().join("cri-tools/critest")
}

/// The built client.
pub fn crictl_path() -> PathBuf {
    node::target().join("cri-tools/crictl")
}

/// Runs critest and reads its report. Failed specs are no error here, a broken run is.
pub fn run(run: &Run) -> Result<Report> {
    let folder = run.report.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    // critest opens its JSON report in its own working folder.
    let report = std::path::absolute(&run.report)?;
    match fs::remove_file(&report) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let log = report.with_extension("log");
    let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let endpoint = format!("unix://{}", run.socket.display());
    let mut command = Command::new(critest_path());
    command
        .args(["-runtime-endpoint", &endpoint, "-image-endpoint", &endpoint])
        .args(run.groups.flags())
        .args(["--ginkgo.no-color", "--ginkgo.v", "--ginkgo.json-report"])
        .arg(&report);
    let focus = match (run.groups.focus(), run.only.is_empty()) {
        (focus, true) => focus,
        (_, false) => Some(run.only.clone()),
    };
    if let Some(focus) = focus {
        command.args(["--ginkgo.focus", &focus]);
    }
    let temporary = folder.join(format!("tmp-{}", std::process::id()));
    fs::create_dir_all(&temporary)?;
    let status = command
        .env("TMPDIR", std::path::absolute(&temporary)?)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("start {}", critest_path().display()))?;
    // What specs that failed midway have mounted is the suite's, not the runtime's.
    node::unmount_below(&std::path::absolute(&temporary)?)?;
    fs::remove_dir_all(&temporary)?;
    let bytes = fs::read(&report).with_context(|| {
        format!(
            "critest ended with {status} and without a report; see {}",
            log.display()
        )
    })?;
    let mut all = Report::parse(&bytes)?;
    all.specs.retain(|spec| run.groups.contains(spec));
    ensure!(
        !all.specs.is_empty(),
        "critest ran no spec; see {}",
        log.display()
    );
    if run.groups == Groups::WebSocket {
        for spec in &mut all.specs {
            spec.name.push_str(" (WebSocket)");
        }
    }
    Ok(all)
}
