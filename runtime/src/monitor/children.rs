//! The monitor's one door to the launcher, namespaces and cgroups: makes them for a pod, a
//! container or an exec, and unmakes them. What is allowed when is decided in [`super::state`].

use std::collections::BTreeMap;
use std::time::Duration;

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxResourcesBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
    Process, Spec,
};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::WaitOptions;

use super::log::Log;
use super::state::Outcome;
use super::stdio::{self, Output};
use super::wire::{CreatePod, Exec, PidMode, PodPaths, ProcessInfo, Start};
use crate::cgroup::{Cgroup, Hierarchies};
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::features::Features;
use crate::launch::{self, ExecInput, LaunchInput, Launched, Rootfs, Stdio};
use crate::namespaces::PodNamespaces;
use crate::sys::signals;

/// Open files a process of a pod may have, unless its spec says otherwise: systemd's pair for
/// services. The monitor's own limit must not show (case S4).
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// The largest seccomp program: the kernel's limit of 4096 instructions of 8 bytes (BPF_MAXINSNS).
const MAX_SECCOMP: usize = 4096 * 8;

/// How often what an exec left behind is looked for while it is moved aside.
const MOVE_ROUNDS: usize = 4;

/// CPU weight of a pause process: the least there is (CRI contract, RunPodSandbox).
const PAUSE_SHARES: u64 = 2;

/// How long an exec's event waits for the descendants that were killed with it.
const KILLED: Duration = Duration::from_millis(100);

/// The pod: what its containers share.
#[derive(Debug)]
pub(super) struct Pod {
    features: Features,
    hierarchies: Hierarchies,
    namespaces: Option<PodNamespaces>,
    cgroup: Cgroup,
    paths: PodPaths,
    leftovers: Leftovers,
}

impl Pod {
    /// Makes namespaces and cgroup; on failure nothing remains.
    pub(super) fn create(request: &CreatePod, network: Option<OwnedFd>) -> Result<Self> {
        let features = Features::probe()?;
        let hierarchies = Hierarchies::probe()?;
        let (cgroup, created) = hierarchies.create(&request.cgroup)?;
        let made = pause_cgroup(&hierarchies, request)
            .and_then(|pause| PodNamespaces::create(request, network, pause.as_ref(), &features));
        let namespaces = made.map_err(|error| with_cleanup(error, cgroup.remove()))?;
        let mut paths = namespaces.paths(rustix::process::getpid().as_raw_nonzero().get());
        paths.created_cgroups = created;
        Ok(Self {
            features,
            hierarchies,
            namespaces: Some(namespaces),
            cgroup,
            paths,
            leftovers: Leftovers::default(),
        })
    }

    pub(super) fn paths(&self) -> &PodPaths {
        &self.paths
    }

    /// The network namespace, to be handed out.
    pub(super) fn network(&self) -> Result<Option<OwnedFd>> {
        let network = self.namespaces.as_ref().and_then(PodNamespaces::network_fd);
        network
            .map(|network| network.try_clone_to_owned())
            .transpose()
            .doing(|| "duplicate the network namespace's descriptor")
    }

    /// Kills what is left in the pod's cgroup, lets go of the namespaces (which ends a pause
    /// process) and removes the cgroups, the parents made for them included. May be repeated.
    pub(super) fn release(&mut self) -> Result<()> {
        self.cgroup.kill()?;
        self.namespaces = None;
        self.cgroup.remove()
    }

    /// An exec ended after its container.
    pub(super) fn exec_ended(&mut self, exec: RunningExec) -> Result<()> {
        let killed = exec.cgroup.kill();
        self.leftovers.add(exec.cgroup);
        killed
    }

    /// Tries again to remove what ended containers left; true if all is gone.
    pub(super) fn sweep(&mut self) -> bool {
        self.leftovers.sweep()
    }
}

/// A pause process has a group of its own: on v2 a group with sub-groups holds no process.
fn pause_cgroup(hierarchies: &Hierarchies, request: &CreatePod) -> Result<Option<Cgroup>> {
    if request.pid != PidMode::Pod {
        return Ok(None);
    }
    let (cgroup, _inside_the_pods) = hierarchies.create(&format!("{}/pause", request.cgroup))?;
    let resources = LinuxCpuBuilder::default()
        .shares(PAUSE_SHARES)
        .build()
        .and_then(|cpu| LinuxResourcesBuilder::default().cpu(cpu).build())
        .map_err(|error| Error::invalid(format!("the pause process's weight: {error}")))?;
    cgroup.apply(&resources)?;
    Ok(Some(cgroup))
}

/// Cgroups that can't be removed yet, as something in them is still dying.
#[derive(Debug, Default)]
struct Leftovers(Vec<Cgroup>);

impl Leftovers {
    /// Removes a group, now or later.
    fn add(&mut self, cgroup: Cgroup) {
        if !removed(&cgroup) {
            self.0.push(cgroup);
        }
    }

    fn sweep(&mut self) -> bool {
        self.0.retain(|cgroup| !removed(cgroup));
        self.0.is_empty()
    }
}

/// Removes a group unless that would mean waiting for its processes.
fn removed(cgroup: &Cgroup) -> bool {
    !cgroup.is_populated().unwrap_or(false) && cgroup.remove().is_ok()
}

fn with_cleanup(error: Error, cleanup: Result<()>) -> Error {
    match cleanup {
        Ok(()) => error,
        Err(cleanup) => Error::new(
            error.kind(),
            format!("{error} (and its clean-up failed: {cleanup})"),
        ),
    }
}

/// A container whose init was started.
#[derive(Debug)]
pub(super) struct Container {
    pidfd: OwnedFd,
    cgroup: Cgroup,
    /// What its execs get unless they say otherwise.
    defaults: Defaults,
    pub(super) log: Log,
    /// Held open so that the process doesn't read an end of file.
    _stdin: Option<OwnedFd>,
    /// By the key they are watched under.
    pub(super) outputs: BTreeMap<u64, Output>,
    /// Sub-groups of ended execs.
    leftovers: Leftovers,
}

/// A started container and what the daemon is told of it.
#[derive(Debug)]
pub(super) struct StartedContainer {
    pub(super) container: Container,
    pub(super) info: ProcessInfo,
    /// To be watched.
    pub(super) outputs: Vec<Output>,
}

/// Starts a container; on failure nothing of it remains but a log file.
pub(super) fn start(
    pod: &Pod,
    request: &Start,
    seccomp: Option<OwnedFd>,
    target: Option<&Container>,
    now: impl Fn() -> i64,
) -> Result<StartedContainer> {
    let mut spec: Spec = serde_json::from_str(request.spec.get())
        .map_err(|error| Error::invalid(format!("the container's spec: {error}")))?;
    let process = spec
        .process_mut()
        .as_mut()
        .ok_or_else(|| Error::invalid("the container's spec has no process"))?;
    let defaults = Defaults::MONITORS.settle(process)?;
    let terminal = process.terminal().unwrap_or(false);
    let log = Log::open(request.log.clone())?;
    let seccomp = seccomp.map(read_seccomp).transpose()?;
    let (stdio, kept) = if terminal {
        (Stdio::Terminal, None)
    } else {
        let (given, kept) = stdio::pipes(request.stdin)?;
        (descriptors(given), Some(kept))
    };
    let cgroup = container_cgroup(pod, &spec)?;
    let launched = launch::create(LaunchInput {
        id: &request.container,
        spec: &spec,
        features: &pod.features,
        rootfs: Rootfs::Overlay {
            lower: &request.rootfs.lower,
            upper: &request.rootfs.upper,
            work: &request.rootfs.work,
        },
        stdio,
        seccomp: seccomp.as_deref(),
        cgroup: Some(&cgroup),
        pid_namespace: target.map(|target| target.pidfd.as_fd()),
    });
    let started_at = now();
    let launched = launched.map_err(|error| with_cleanup(error, cgroup.remove()))?;
    let info = info(&launched, started_at);
    let kept = match (kept, launched.terminal) {
        (Some(kept), _) => Ok(kept),
        (None, Some(master)) => stdio::terminal(master),
        (None, None) => Err(Error::new(
            ErrorKind::System,
            "the launcher returned no terminal",
        )),
    };
    let kept = kept.map_err(|error| {
        // It runs already; its init is reaped as an orphan.
        with_cleanup(error, cgroup.kill().and_then(|()| cgroup.remove()))
    })?;
    Ok(StartedContainer {
        container: Container {
            pidfd: launched.pidfd,
            cgroup,
            defaults,
            log,
            _stdin: kept.stdin,
            outputs: BTreeMap::new(),
            leftovers: Leftovers::default(),
        },
        info,
        outputs: kept.outputs,
    })
}

/// Makes the container's cgroup with its limits and device rules; on failure it is gone again.
fn container_cgroup(pod: &Pod, spec: &Spec) -> Result<Cgroup> {
    let linux = spec.linux().as_ref();
    let path = linux
        .and_then(|linux| linux.cgroups_path().as_ref())
        .and_then(|path| path.to_str())
        .ok_or_else(|| Error::invalid("the container's spec has no linux.cgroupsPath"))?;
    let (cgroup, _inside_the_pods) = pod.hierarchies.create(path)?;
    // Device rules included.
    let filled = match linux.and_then(|linux| linux.resources().as_ref()) {
        Some(resources) => cgroup.apply(resources),
        None => Ok(()),
    };
    match filled {
        Ok(()) => Ok(cgroup),
        Err(error) => Err(with_cleanup(error, cgroup.remove())),
    }
}

/// What a process would otherwise inherit from the monitor: its open files and its protection from
/// the OOM killer. An exec gets what its container has.
#[derive(Clone, Copy, Debug)]
struct Defaults {
    oom_score_adj: i32,
    /// Soft and hard limit.
    open_files: (u64, u64),
}

impl Defaults {
    const MONITORS: Self = Self {
        oom_score_adj: 0,
        open_files: OPEN_FILES,
    };

    /// Fills in what the process doesn't say, and returns what it has then.
    fn settle(self, process: &mut Process) -> Result<Self> {
        let oom_score_adj = process.oom_score_adj().unwrap_or(self.oom_score_adj);
        process.set_oom_score_adj(Some(oom_score_adj));
        let files = |limits: &Vec<PosixRlimit>| {
            let mut limits = limits.iter();
            limits
                .find(|limit| limit.typ() == PosixRlimitType::RlimitNofile)
                .copied()
        };
        if let Some(limit) = process.rlimits().as_ref().and_then(files) {
            return Ok(Self {
                oom_score_adj,
                open_files: (limit.soft(), limit.hard()),
            });
        }
        let (soft, hard) = self.open_files;
        let limit = PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .soft(soft)
            .hard(hard)
            .build()
            .map_err(|error| Error::invalid(format!("limit of open files: {error}")))?;
        let mut limits = process.rlimits().clone().unwrap_or_default();
        limits.push(limit);
        process.set_rlimits(Some(limits));
        Ok(Self {
            oom_score_adj,
            open_files: self.open_files,
        })
    }
}

fn descriptors(given: stdio::Given) -> Stdio {
    Stdio::Descriptors {
        stdin: given.stdin,
        stdout: given.stdout,
        stderr: given.stderr,
    }
}

/// Reads a seccomp program handed over by descriptor, bounded.
fn read_seccomp(program: OwnedFd) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let at = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let count = rustix::io::pread(&program, &mut buffer, at)
            .doing(|| "read the seccomp program's descriptor")?;
        if count == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if bytes.len() > MAX_SECCOMP {
            return Err(Error::invalid(format!(
                "the seccomp program is longer than {MAX_SECCOMP} bytes, the kernel's limit"
            )));
        }
    }
}

fn info(launched: &Launched, started_at: i64) -> ProcessInfo {
    ProcessInfo {
        pid: launched.pid,
        start_ticks: launched.start_ticks,
        started_at,
    }
}

/// A running exec.
#[derive(Debug)]
pub(super) struct RunningExec {
    pub(super) container: String,
    cgroup: Cgroup,
    /// Killed by us, so its descendants go with it.
    killed: bool,
}

/// A started exec, what the daemon is told of it, and the terminal's master if it has one.
#[derive(Debug)]
pub(super) struct StartedExec {
    pub(super) exec: RunningExec,
    pub(super) info: ProcessInfo,
    pub(super) terminal: Option<OwnedFd>,
}

/// The descriptors of an exec; what isn't given is `/dev/null`.
#[derive(Debug, Default)]
pub(super) struct ExecDescriptors {
    pub(super) seccomp: Option<OwnedFd>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

impl Container {
    /// Runs a process in the container, in a sub-group of its cgroup.
    pub(super) fn exec(
        &mut self,
        pod: &Pod,
        request: &Exec,
        given: ExecDescriptors,
        now: impl Fn() -> i64,
    ) -> Result<StartedExec> {
        self.sweep();
        if self.leftovers.0.len() >= super::state::MAX_EXECS {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!(
                    "{} ended execs left processes that don't die",
                    self.leftovers.0.len()
                ),
            ));
        }
        let mut process: Process = serde_json::from_str(request.process.get())
            .map_err(|error| Error::invalid(format!("the exec's process: {error}")))?;
        self.defaults.settle(&mut process)?;
        let seccomp = given.seccomp.map(read_seccomp).transpose()?;
        let stdio = if process.terminal().unwrap_or(false) {
            Stdio::Terminal
        } else {
            let end = |given: Option<OwnedFd>| given.map_or_else(stdio::null, Ok);
            Stdio::Descriptors {
                stdin: end(given.stdin)?,
                stdout: end(given.stdout)?,
                stderr: end(given.stderr)?,
            }
        };
        let cgroup = self.cgroup.child(&request.id)?;
        let launched = launch::exec(ExecInput {
            id: &request.container,
            process: &process,
            init: self.pidfd.as_fd(),
            stdio,
            seccomp: seccomp.as_deref(),
            cgroup: Some(&cgroup),
            features: &pod.features,
        });
        let started_at = now();
        let launched = launched.map_err(|error| with_cleanup(error, cgroup.remove()))?;
        Ok(StartedExec {
            info: info(&launched, started_at),
            exec: RunningExec {
                container: request.container.clone(),
                cgroup,
                killed: false,
            },
            terminal: launched.terminal,
        })
    }

    /// The process of an exec ended: what it left behind dies with it if it was killed, else runs
    /// on in the container's own group.
    pub(super) fn exec_ended(&mut self, exec: RunningExec) -> Result<()> {
        let settled = if !exec.cgroup.is_populated()? {
            Ok(())
        } else if exec.killed {
            // Again: something may have been forked into the group since.
            exec.cgroup
                .kill()
                .and_then(|()| match exec.cgroup.wait_empty(KILLED)? {
                    true => Ok(()),
                    false => Err(Error::new(ErrorKind::Exhausted, "descendants don't die")),
                })
        } else {
            self.take_over(&exec.cgroup)
        };
        self.leftovers.add(exec.cgroup);
        settled
    }

    /// Moves the processes of an exec's group into the container's. They may fork meanwhile.
    fn take_over(&self, from: &Cgroup) -> Result<()> {
        for _ in 0..MOVE_ROUNDS {
            let pids = from.pids()?;
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                // One that ended meanwhile is no loss.
                let _ended = self.cgroup.add(pid);
            }
        }
        Ok(())
    }

    /// Sends a signal to the init.
    pub(super) fn signal(&self, signal: i32) -> Result<()> {
        signals::send(self.pidfd.as_fd(), signal).doing(|| format!("send signal {signal}"))
    }

    /// Kills every process of the container.
    pub(super) fn kill(&self) -> Result<()> {
        self.cgroup.kill()
    }

    /// Whether the kernel killed something of it for lack of memory.
    pub(super) fn oom_killed(&self) -> bool {
        // A group that can't be read gives no evidence.
        self.cgroup.oom_kills().is_ok_and(|kills| kills > 0)
    }

    /// Tries again to remove what ended execs left; true if all is gone.
    pub(super) fn sweep(&mut self) -> bool {
        self.leftovers.sweep()
    }

    /// Removes the container's cgroups; what can't be removed yet is left to the pod.
    pub(super) fn remove(mut self, pod: &mut Pod) {
        self.sweep();
        pod.leftovers.0.append(&mut self.leftovers.0);
        pod.leftovers.add(self.cgroup);
    }
}

impl RunningExec {
    /// Kills the process and its descendants.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.killed = true;
        self.cgroup.kill()
    }
}

/// Takes the status of one child that ended, of whatever kind: orphans come to us as well, as we
/// are their subreaper. `None` if none has ended.
pub(super) fn reap() -> Option<(i32, Outcome)> {
    loop {
        // Any child, of whatever process group (rustix's `waitpid(None)` is the own group only).
        let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Err(rustix::io::Errno::INTR) => continue,
            // ECHILD: there are no children at all.
            Ok(None) | Err(_) => return None,
        };
        let outcome = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Outcome::Exited(code),
            (None, Some(signal)) => Outcome::Signalled(signal),
            // Stops aren't asked for.
            (None, None) => continue,
        };
        return Some((pid.as_raw_nonzero().get(), outcome));
    }
}
