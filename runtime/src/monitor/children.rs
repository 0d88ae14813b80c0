//! The monitor's one door to the launcher: starts containers and execs, each in a cgroup, reaps
//! them and cleans up after them. What is allowed when is decided in [`super::state`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use oci_spec::runtime::{Process, Spec};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::WaitOptions;

use super::defaults::Defaults;
use super::feed::Feed;
use super::log::Log;
use super::patience::Patience;
use super::pod::{Leftovers, Pod, with_cleanup};
use super::state::Outcome;
use super::stdio::{self, Output};
use super::terminals::ExecTerminal;
use super::wire::{Exec, ProcessInfo, Start};
use crate::cgroup::Cgroup;
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::idmap::IdMaps;
use crate::launch::{self, ExecInput, FilterOptions, LaunchInput, Launched, Rootfs, Stdio};
use crate::sys::signals;

/// The largest seccomp program: the kernel's limit of 4096 instructions of 8 bytes (BPF_MAXINSNS).
const MAX_SECCOMP: usize = 4096 * 8;

/// How often what an exec left behind is looked for while it is moved aside.
const MOVE_ROUNDS: usize = 4;

const OUT_OF_MEMORY: &str = "the kernel killed a process of the container, which is at its memory \
                             limit";

/// How long an exec's event waits for the descendants that were killed with it.
const KILLED: Duration = Duration::from_millis(100);

/// A container whose init was started.
#[derive(Debug)]
pub(super) struct Container {
    pidfd: OwnedFd,
    cgroup: Cgroup,
    /// What its execs get unless they say otherwise.
    defaults: Defaults,
    /// The maps of its user namespace, if it has one.
    maps: Option<IdMaps>,
    /// How its filter is loaded, for its execs.
    filter: FilterOptions,
    pub(super) log: Log,
    /// None without one, or once it ended.
    pub(super) stdin: Option<Feed>,
    pub(super) is_terminal: bool,
    /// How long attached clients may hold its output back.
    pub(super) patience: Patience,
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
    let defaults = Defaults::CONTAINER.settle(process)?;
    let terminal = process.terminal().unwrap_or(false);
    let log = Log::open(request.log.clone())?;
    let seccomp = seccomp.map(read_seccomp).transpose()?;
    let (stdio, kept) = if terminal {
        (Stdio::Terminal, None)
    } else {
        let (given, kept) = stdio::pipes(request.stdin)?;
        (descriptors(given), Some(kept))
    };
    let maps = id_maps(&spec)?;
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
        images: &request.images,
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
        (None, Some(master)) => stdio::terminal(master, request.stdin),
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
            maps,
            filter: FilterOptions::of(&spec),
            log,
            stdin: kept
                .stdin
                .map(|stdin| Feed::new(stdin, terminal, request.stdin_once)),
            is_terminal: terminal,
            patience: Patience::new(Instant::now()),
            outputs: BTreeMap::new(),
            leftovers: Leftovers::default(),
        },
        info,
        outputs: kept.outputs,
    })
}

fn id_maps(spec: &Spec) -> Result<Option<IdMaps>> {
    let linux = spec.linux().as_ref();
    IdMaps::from_oci(
        "linux",
        linux.and_then(|linux| linux.uid_mappings().as_ref()),
        linux.and_then(|linux| linux.gid_mappings().as_ref()),
    )
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
    pub(super) cgroup: Cgroup,
    pub(super) terminal: Option<ExecTerminal>,
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
        if self.leftovers.len() >= super::state::MAX_EXECS {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!(
                    "{} ended execs left processes that don't die",
                    self.leftovers.len()
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
        let kills = self.cgroup.oom_kills().unwrap_or(u64::MAX);
        let cgroup = self.cgroup.child(&request.id)?;
        let launched = launch::exec(ExecInput {
            id: &request.container,
            process: &process,
            init: self.pidfd.as_fd(),
            user: self.maps.as_ref(),
            stdio,
            seccomp: seccomp.as_deref(),
            filter: &self.filter,
            cgroup: Some(&cgroup),
            features: &pod.features,
        });
        let started_at = now();
        let launched = launched.map_err(|error| {
            let error = match cgroup.oom_kills().is_ok_and(|now| now > kills) {
                true => Error::new(ErrorKind::Exhausted, format!("{error}: {OUT_OF_MEMORY}")),
                false => error,
            };
            with_cleanup(error, cgroup.remove())
        })?;
        let kept = launched.terminal.as_ref().map(ExecTerminal::keep);
        let terminal = kept.transpose().map_err(|error| {
            // It runs already; it is reaped as an orphan.
            with_cleanup(error, cgroup.kill().and_then(|()| cgroup.remove()))
        })?;
        Ok(StartedExec {
            info: info(&launched, started_at),
            exec: RunningExec {
                container: request.container.clone(),
                cgroup,
                terminal,
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
        match signals::send(self.pidfd.as_fd(), signal) {
            // It has ended and is only to be reaped.
            Err(Errno::SRCH) => Err(Error::new(
                ErrorKind::WrongState,
                "the container has exited",
            )),
            sent => sent.doing(|| format!("send signal {signal}")),
        }
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
        pod.leftovers.append(self.leftovers);
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
            Err(Errno::INTR) => continue,
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
