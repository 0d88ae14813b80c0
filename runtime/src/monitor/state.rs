//! The pod as a state machine, pure: which request is allowed when, what follows from an exit, and
//! what a new daemon is told. The effects stand in [`super::children`] and are reported back here.
//!
//! ```text
//! pod:        Empty ── CreatePod ──> Created ── StopPod ──> Stopping ── all ended ──> Stopped
//! container:  (none) ── started ──> Running ── init reaped ──> Ending ── recorded ──> Exited ── Remove ──> (none)
//! ```

#![warn(clippy::wildcard_enum_match_arm)]

use std::collections::BTreeMap;

use super::wire::{Attach, Event, ExitRecord, PodPaths, PodState, ProcessInfo, Request};
use crate::error::{Error, ErrorKind, Result};

/// Containers of one pod, exited ones not yet removed included.
pub(super) const MAX_CONTAINERS: usize = 256;

/// Running execs of one container.
pub(super) const MAX_EXECS: usize = 256;

/// Attached clients of one container, and of the pod: three descriptors each.
pub(super) const MAX_CLIENTS: usize = 32;
const MAX_POD_CLIENTS: usize = 256;

/// Names that become file and cgroup names are no longer than this.
const MAX_ID: usize = 128;

/// The highest signal number (`_NSIG`).
const MAX_SIGNAL: i32 = 64;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Exited(i32),
    Signalled(i32),
}

impl Outcome {
    /// The exit code by convention: the status, or 128 + signal.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::Exited(status) => status,
            Self::Signalled(signal) => signal.saturating_add(128),
        }
    }

    fn signal(self) -> Option<i32> {
        match self {
            Self::Exited(_) => None,
            Self::Signalled(signal) => Some(signal),
        }
    }
}

#[derive(Debug)]
enum Pod {
    Empty,
    Created(PodPaths),
    Stopping(PodPaths),
    Stopped,
}

#[derive(Debug)]
enum Container {
    Running(ProcessInfo),
    /// The init is dead, its output not yet drained, its exit not yet recorded.
    Ending {
        info: ProcessInfo,
        outcome: Outcome,
        finished_at: i64,
    },
    Exited(ExitRecord),
}

#[derive(Debug)]
struct Exec {
    container: String,
    timed_out: bool,
}

/// What the monitor knows of its pod.
#[derive(Debug)]
pub(super) struct Machine {
    pod: Pod,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<String, Exec>,
    /// Attached clients and their containers.
    clients: BTreeMap<String, String>,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            pod: Pod::Empty,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            clients: BTreeMap::new(),
        }
    }

    /// Whether the request may be carried out now; if not, why.
    pub(super) fn admit(&self, request: &Request) -> Result<()> {
        match request {
            Request::Hello { .. } | Request::Status | Request::StopPod => Ok(()),
            Request::CreatePod(_) => match self.pod {
                Pod::Empty => Ok(()),
                Pod::Created(_) => Err(wrong("the pod was already created")),
                Pod::Stopping(_) | Pod::Stopped => Err(wrong("the pod was stopped")),
            },
            Request::Start(start) => {
                self.created()?;
                id("container id", &start.container)?;
                if self.containers.contains_key(&start.container) {
                    let text = format!("container {} was already started", start.container);
                    return Err(wrong(text));
                }
                if self.containers.len() >= MAX_CONTAINERS {
                    let text =
                        format!("the pod has {MAX_CONTAINERS} containers: remove exited ones");
                    return Err(Error::new(ErrorKind::Exhausted, text));
                }
                match &start.pid_target {
                    Some(target) => self.running(target).map(|_| ()),
                    None => Ok(()),
                }
            }
            Request::Exec(exec) => {
                self.created()?;
                id("exec id", &exec.id)?;
                self.running(&exec.container)?;
                if self.execs.contains_key(&exec.id) {
                    return Err(wrong(format!("exec {} is already running", exec.id)));
                }
                let running = self
                    .execs
                    .values()
                    .filter(|other| other.container == exec.container);
                if running.count() >= MAX_EXECS {
                    let text = format!(
                        "container {} already runs {MAX_EXECS} execs: wait for one to end",
                        exec.container
                    );
                    return Err(Error::new(ErrorKind::Exhausted, text));
                }
                Ok(())
            }
            Request::Signal { container, signal } => {
                if !(1..=MAX_SIGNAL).contains(signal) {
                    let text = format!("signal {signal}: there are 1 to {MAX_SIGNAL}");
                    return Err(Error::invalid(text));
                }
                self.running(container).map(|_| ())
            }
            Request::ReopenLog { container } => self.running(container).map(|_| ()),
            Request::Kill { container } => match self.containers.get(container) {
                Some(_) => Ok(()),
                None => Err(unknown(container)),
            },
            Request::KillExec { .. } | Request::Detach { .. } | Request::HangUp { .. } => Ok(()),
            Request::Attach(attach) => self.admit_client(attach),
            Request::Resize { container, .. } => self.running(container).map(|_| ()),
            Request::Remove { container } => match self.containers.get(container) {
                None | Some(Container::Exited(_)) => Ok(()),
                Some(Container::Running(_) | Container::Ending { .. }) => {
                    Err(wrong(format!("container {container} is running")))
                }
            },
            Request::Shutdown => match self.pod {
                Pod::Empty | Pod::Stopped => Ok(()),
                Pod::Created(_) | Pod::Stopping(_) => Err(wrong("the pod isn't stopped")),
            },
        }
    }

    fn admit_client(&self, attach: &Attach) -> Result<()> {
        id("attach id", &attach.id)?;
        self.running(&attach.container)?;
        if !(attach.stdin || attach.stdout || attach.stderr) {
            return Err(Error::invalid("an attach to no stream"));
        }
        if self.clients.contains_key(&attach.id) {
            return Err(wrong(format!("{} is attached already", attach.id)));
        }
        let container = &attach.container;
        let here = self.clients.values().filter(|other| *other == container);
        if here.count() >= MAX_CLIENTS || self.clients.len() >= MAX_POD_CLIENTS {
            let text = format!(
                "container {container} has {MAX_CLIENTS} attached clients, or its pod \
                 {MAX_POD_CLIENTS}: end one of them"
            );
            return Err(Error::new(ErrorKind::Exhausted, text));
        }
        Ok(())
    }

    fn created(&self) -> Result<()> {
        match self.pod {
            Pod::Created(_) => Ok(()),
            Pod::Empty => Err(wrong("the pod isn't created yet")),
            Pod::Stopping(_) | Pod::Stopped => Err(wrong("the pod was stopped")),
        }
    }

    /// The process of a running container.
    pub(super) fn running(&self, container: &str) -> Result<&ProcessInfo> {
        match self.containers.get(container) {
            Some(Container::Running(info)) => Ok(info),
            Some(Container::Ending { .. } | Container::Exited(_)) => {
                Err(wrong(format!("container {container} has exited")))
            }
            None => Err(unknown(container)),
        }
    }

    pub(super) fn pod_created(&mut self, paths: PodPaths) {
        self.pod = Pod::Created(paths);
    }

    pub(super) fn started(&mut self, container: &str, info: ProcessInfo) {
        self.containers
            .insert(container.to_owned(), Container::Running(info));
    }

    /// The init was reaped at `now`; the exit is dated here, so that what follows doesn't count.
    pub(super) fn ended(&mut self, container: &str, outcome: Outcome, now: i64) {
        if let Some(state) = self.containers.get_mut(container)
            && let Container::Running(info) = state
        {
            // The clock may have been set back meanwhile (case T4).
            let finished_at = now.max(info.started_at);
            *state = Container::Ending {
                info: info.clone(),
                outcome,
                finished_at,
            };
        }
    }

    /// What to record of a container whose output is drained.
    pub(super) fn record(
        &self,
        container: &str,
        oom_killed: bool,
        lost: u64,
    ) -> Option<ExitRecord> {
        match self.containers.get(container)? {
            Container::Ending {
                info,
                outcome,
                finished_at,
            } => Some(ExitRecord {
                container: container.to_owned(),
                exit_code: outcome.code(),
                signal: outcome.signal(),
                oom_killed,
                started_at: info.started_at,
                finished_at: *finished_at,
                log_bytes_lost: lost,
            }),
            Container::Running(_) | Container::Exited(_) => None,
        }
    }

    /// The record is durable: from here on the exit may be told.
    pub(super) fn recorded(&mut self, record: ExitRecord) -> Event {
        self.containers
            .insert(record.container.clone(), Container::Exited(record.clone()));
        Event::ContainerExited(record)
    }

    pub(super) fn removed(&mut self, container: &str) {
        self.containers.remove(container);
    }

    pub(super) fn exec_started(&mut self, id: &str, container: &str) {
        let exec = Exec {
            container: container.to_owned(),
            timed_out: false,
        };
        self.execs.insert(id.to_owned(), exec);
    }

    /// The time of an exec is up; false if it ended already.
    pub(super) fn exec_timed_out(&mut self, id: &str) -> bool {
        match self.execs.get_mut(id) {
            Some(exec) => {
                exec.timed_out = true;
                true
            }
            None => false,
        }
    }

    pub(super) fn exec_ended(&mut self, id: &str, outcome: Outcome) -> Option<Event> {
        let exec = self.execs.remove(id)?;
        Some(Event::ExecExited {
            id: id.to_owned(),
            exit_code: outcome.code(),
            timed_out: exec.timed_out,
        })
    }

    pub(super) fn attached(&mut self, id: &str, container: &str) {
        self.clients.insert(id.to_owned(), container.to_owned());
    }

    pub(super) fn detached(&mut self, id: &str) {
        self.clients.remove(id);
    }

    /// StopPod: nothing new starts; returns the containers to kill.
    pub(super) fn stop(&mut self) -> Vec<String> {
        self.pod = match std::mem::replace(&mut self.pod, Pod::Stopped) {
            Pod::Created(paths) | Pod::Stopping(paths) => Pod::Stopping(paths),
            // Without a pod there is nothing to stop; it can't be created later either.
            Pod::Empty | Pod::Stopped => Pod::Stopped,
        };
        self.unfinished().map(str::to_owned).collect()
    }

    /// True once StopPod was asked for and every exit is recorded.
    pub(super) fn may_release(&self) -> bool {
        matches!(self.pod, Pod::Stopping(_)) && self.unfinished().next().is_none()
    }

    /// True from StopPod on.
    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.pod, Pod::Stopping(_) | Pod::Stopped)
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.pod, Pod::Stopped)
    }

    /// Namespaces and cgroups are gone.
    pub(super) fn released(&mut self) {
        self.pod = Pod::Stopped;
    }

    fn unfinished(&self) -> impl Iterator<Item = &str> {
        self.containers
            .iter()
            .filter(|(_, state)| !matches!(state, Container::Exited(_)))
            .map(|(id, _)| id.as_str())
    }

    /// For [`Request::Status`]. A container that is ending still counts as running: its exit isn't
    /// durable.
    pub(super) fn snapshot(&self) -> PodState {
        let mut state = PodState {
            paths: match &self.pod {
                Pod::Created(paths) | Pod::Stopping(paths) => Some(paths.clone()),
                Pod::Empty | Pod::Stopped => None,
            },
            ..PodState::default()
        };
        for (id, container) in &self.containers {
            match container {
                Container::Running(info) | Container::Ending { info, .. } => {
                    state.running.insert(id.clone(), info.clone());
                }
                Container::Exited(record) => {
                    state.exited.insert(id.clone(), record.clone());
                }
            }
        }
        state
    }
}

/// Ids become names of files and cgroups; outside strings never do, and this says so (threat I4).
fn id(what: &str, id: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > MAX_ID || id.starts_with('.') || !id.bytes().all(plain) {
        let shown: String = id.chars().take(MAX_ID).collect();
        return Err(Error::invalid(format!(
            "{what} {shown:?}: 1 to {MAX_ID} letters, digits, `-`, `_`, `.` (not first)"
        )));
    }
    Ok(())
}

fn wrong(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::WrongState, text)
}

fn unknown(container: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("no container {container}"))
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
