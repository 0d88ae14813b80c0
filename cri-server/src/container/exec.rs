//! ExecSync: a command in a running container, its output collected within bounds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bulkhead_runtime::monitor::wire::{Exec, Reply, Request};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::start::seccomp_program;
use crate::failure::{Class, Doing, Failure};
use crate::monitor::ExecEnd;
use crate::node::{NodeHandle, fresh_id};
use crate::records::{ContainerRecord, ContainerState};
use crate::spec;

/// Both streams together, so that the answer stays below the 16 MiB the clients accept.
const MAX_OUTPUT: usize = (16 << 20) - (64 << 10);

/// How long output is still read after the command ended: a descendant may hold the pipe.
const DRAIN: Duration = Duration::from_secs(1);

/// How much longer than the time-out the monitor may take to tell that it enforced it.
const SLACK: Duration = Duration::from_secs(10);

/// What a command left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output, cut at the bound.
    pub stdout: Vec<u8>,
    /// Standard error, cut at the bound.
    pub stderr: Vec<u8>,
    /// Exit status, or 128 + signal.
    pub exit_code: i32,
}

/// Runs `command` to its end, at most `timeout`. If the caller goes away the command and its
/// descendants are killed.
///
/// # Errors
/// [`Class::Precondition`] unless the container runs; [`Class::Deadline`] when the time was up;
/// when the command can't be started.
pub async fn exec_sync(
    node: &NodeHandle,
    id: &str,
    command: Vec<String>,
    timeout: Option<Duration>,
) -> Result<Output, Failure> {
    let container = running(node, id)?;
    let spec = String::from_utf8(node.records.spec(&container.id)?).doing("read the OCI spec")?;
    let program = seccomp_program(node, &spec).await?;
    let exec = Exec {
        id: fresh_id(),
        container: container.id.clone(),
        process: spec::process::exec(&spec, command, false)?,
        timeout_ms: timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        seccomp: program.is_some(),
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC).doing("make a pipe")?;
    let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC).doing("make a pipe")?;
    let mut guard = Guard {
        node,
        pod: &container.pod,
        id: exec.id.clone(),
        ended: false,
    };
    let end = node.monitors.expect_exec(&guard.id);
    {
        let descriptors: Vec<BorrowedFd<'_>> = program
            .iter()
            .chain([&out_write, &err_write])
            .map(AsFd::as_fd)
            .collect();
        let link = node.monitors.link(&container.pod)?;
        match link.ask(Request::Exec(exec), &descriptors).await {
            Ok(answer) if matches!(answer.reply, Reply::ExecStarted(_)) => {}
            Ok(answer) => {
                return Err(Failure::internal(format!(
                    "unexpected answer {:?}",
                    answer.reply
                )));
            }
            Err(failure) => {
                guard.ended = failure.class() != Class::Unavailable;
                return Err(failure);
            }
        }
    }
    // Only the command holds the write ends now, so that their end is the end of the output.
    drop((out_write, err_write));
    let (stdout, stderr, end) = collect(out_read, err_read, end, timeout).await?;
    guard.ended = true;
    if end.timed_out {
        let limit = timeout.unwrap_or_default();
        return Err(Failure::new(
            Class::Deadline,
            format!("command timed out: it did not end within {limit:?} and was killed"),
        ));
    }
    Ok(Output {
        stdout,
        stderr,
        exit_code: end.exit_code,
    })
}

fn running(node: &NodeHandle, id: &str) -> Result<Arc<ContainerRecord>, Failure> {
    let snapshot = node.records.snapshot();
    let container = snapshot.find_container(id)?;
    if container.state != ContainerState::Running {
        return Err(Failure::precondition(format!(
            "exec in container {}: it is not running",
            container.id
        )));
    }
    Ok(container.clone())
}

/// Reads both streams until they and the command have ended.
async fn collect(
    stdout: OwnedFd,
    stderr: OwnedFd,
    end: tokio::sync::oneshot::Receiver<ExecEnd>,
    timeout: Option<Duration>,
) -> Result<(Vec<u8>, Vec<u8>, ExecEnd), Failure> {
    let budget = AtomicUsize::new(MAX_OUTPUT);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ended = {
        let reading = async {
            tokio::join!(
                read_bounded(stdout, &mut out, &budget),
                read_bounded(stderr, &mut err, &budget)
            )
        };
        tokio::pin!(reading);
        let waiting = async {
            let gone = || Failure::internal("the pod's monitor ended during the command");
            match timeout {
                None => end.await.map_err(|_| gone()),
                Some(limit) => tokio::time::timeout(limit.saturating_add(SLACK), end)
                    .await
                    .map_err(|_| Failure::new(Class::Deadline, "command timed out"))?
                    .map_err(|_| gone()),
            }
        };
        tokio::pin!(waiting);
        let mut output = None;
        let ended = loop {
            tokio::select! {
                read = &mut reading, if output.is_none() => output = Some(read),
                ended = &mut waiting => break ended?,
            }
        };
        if output.is_none() {
            // A descendant that holds the pipe doesn't hold up the answer.
            output = tokio::time::timeout(DRAIN, &mut reading).await.ok();
        }
        if let Some((stdout, stderr)) = output {
            stdout.and(stderr)?;
        }
        ended
    };
    Ok((out, err, ended))
}

/// Keeps what the shared budget allows and discards the rest, while the command runs on.
async fn read_bounded(
    from: OwnedFd,
    into: &mut Vec<u8>,
    budget: &AtomicUsize,
) -> Result<(), Failure> {
    let mut pipe = pipe::Receiver::from_owned_fd(from).doing("read the command's output")?;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let count = pipe
            .read(&mut buffer)
            .await
            .doing("read the command's output")?;
        if count == 0 {
            return Ok(());
        }
        let kept = take(budget, count);
        into.extend_from_slice(buffer.get(..kept).unwrap_or_default());
    }
}

/// Takes up to `wanted` from the budget both streams share.
fn take(budget: &AtomicUsize, wanted: usize) -> usize {
    let left = budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        Some(left.saturating_sub(wanted))
    });
    // The closure never refuses, so both arms hold what was left before.
    wanted.min(left.unwrap_or_else(|left| left))
}

/// Kills the exec when its caller goes away before its end is known.
struct Guard<'a> {
    node: &'a NodeHandle,
    pod: &'a str,
    id: String,
    ended: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.node.monitors.forget_exec(&self.id);
        if self.ended {
            return;
        }
        if let Ok(link) = self.node.monitors.link(self.pod) {
            let kill = Request::KillExec {
                id: std::mem::take(&mut self.id),
            };
            drop(self.node.tasks.spawn("kill exec", async move {
                if let Err(failure) = link.ask(kill, &[]).await {
                    tracing::debug!(%failure, "an abandoned exec could not be killed");
                }
            }));
        }
    }
}
