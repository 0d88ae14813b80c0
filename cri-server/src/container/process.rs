//! A further process in a running container: what ExecSync and Exec share.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_runtime::monitor::wire::{Exec, Reply, Request};
use tokio::sync::oneshot;

use super::start::seccomp_program;
use crate::failure::{Class, Doing as _, Failure};
use crate::monitor::{ExecEnd, Monitors};
use crate::node::{NodeHandle, fresh_id};
use crate::ops::tasks::Tasks;
use crate::records::{ContainerRecord, ContainerState};
use crate::spec;

/// What to run, and on which descriptors; what isn't given is `/dev/null`.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) command: Vec<String>,
    /// On a terminal of the container, whose master comes back; then no descriptors are given.
    pub(super) tty: bool,
    pub(super) timeout: Option<Duration>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

/// A process that was started.
#[derive(Debug)]
pub(super) struct Started {
    /// The terminal's master.
    pub(super) terminal: Option<OwnedFd>,
    /// How it ended, once it has.
    pub(super) end: End,
}

/// The end of a process, to be waited for.
#[derive(Debug)]
pub struct End {
    monitors: Monitors,
    tasks: Tasks,
    pod: String,
    id: String,
    receiver: oneshot::Receiver<ExecEnd>,
    /// Kill the process and its descendants if nobody waits any more.
    kill: bool,
    over: bool,
}

/// The container, if it runs.
///
/// # Errors
/// [`Class::NotFound`]; [`Class::Precondition`] in any other state, saying what can't be `doing`.
pub(super) fn running(
    node: &NodeHandle,
    id: &str,
    doing: &str,
) -> Result<Arc<ContainerRecord>, Failure> {
    let snapshot = node.records.snapshot();
    let container = snapshot.find_container(id)?;
    if container.state != ContainerState::Running {
        return Err(Failure::precondition(format!(
            "{doing} container {}: it is not running",
            container.id
        )));
    }
    Ok(container.clone())
}

/// Starts the process; returns after execve succeeded. `kill`: the process and its descendants die
/// when the returned [`End`] is dropped before it has come.
///
/// # Errors
/// When it can't be started.
pub(super) async fn start(
    node: &NodeHandle,
    container: &ContainerRecord,
    wanted: Wanted,
    kill: bool,
) -> Result<Started, Failure> {
    let spec = String::from_utf8(node.records.spec(&container.id)?).doing("read the OCI spec")?;
    let mut of_container = spec::process::of_spec(&spec)?;
    let program = seccomp_program(node, of_container.take_seccomp()).await?;
    let process = of_container.exec(wanted.command, wanted.tty)?;
    let id = fresh_id();
    let request = Exec {
        id: id.clone(),
        container: container.id.clone(),
        process,
        timeout_ms: wanted
            .timeout
            .map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        seccomp: program.is_some(),
        stdin: wanted.stdin.is_some(),
        stdout: wanted.stdout.is_some(),
        stderr: wanted.stderr.is_some(),
    };
    let mut end = End {
        monitors: node.monitors.clone(),
        tasks: node.tasks.clone(),
        pod: container.pod.clone(),
        receiver: node.monitors.expect_exec(&container.pod, &id),
        id,
        kill,
        over: false,
    };
    let descriptors: Vec<BorrowedFd<'_>> =
        [&program, &wanted.stdin, &wanted.stdout, &wanted.stderr]
            .into_iter()
            .flatten()
            .map(AsFd::as_fd)
            .collect();
    let link = node.monitors.link(&container.pod)?;
    // Only the process holds its ends after this, so that their end is the end of its output.
    match link.ask(Request::Exec(request), &descriptors).await {
        Ok(answer) if matches!(answer.reply, Reply::ExecStarted(_)) => Ok(Started {
            terminal: answer.descriptors.into_iter().next(),
            end,
        }),
        Ok(answer) => Err(Failure::internal(format!(
            "unexpected answer {:?}",
            answer.reply
        ))),
        Err(failure) => {
            end.over = failure.class() != Class::Unavailable;
            Err(failure)
        }
    }
}

impl End {
    /// The client of the process's terminal is gone: once our own copy of the master is closed too,
    /// the kernel hangs up.
    pub(super) fn hang_up(&self) {
        let request = Request::HangUp {
            exec: self.id.clone(),
        };
        self.send("hang up", request);
    }

    /// Asks the monitor without waiting for what it answers.
    fn send(&self, doing: &'static str, request: Request) {
        let Ok(link) = self.monitors.link(&self.pod) else {
            // The process went with its pod's monitor.
            return;
        };
        drop(self.tasks.spawn(doing, async move {
            if let Err(failure) = link.ask(request, &[]).await {
                tracing::debug!(%failure, doing, "an abandoned exec");
            }
        }));
    }

    /// Waits for the end; may be asked again if the wait was given up.
    ///
    /// # Errors
    /// When the pod's monitor goes first.
    pub(super) async fn wait(&mut self) -> Result<ExecEnd, Failure> {
        let end = (&mut self.receiver).await;
        self.over = true;
        end.map_err(|_| Failure::internal("the pod's monitor ended during the command"))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.monitors.forget_exec(&self.id);
        if self.over || !self.kill {
            return;
        }
        let id = std::mem::take(&mut self.id);
        self.send("kill exec", Request::KillExec { id });
    }
}
